//! What the network flags of `msb run` come to, and showing what the network does.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use msb_sdk::{Error, NetworkEvent, NetworkEvents, NetworkPolicy};

use crate::args::{NetArg, NetworkArgs};
use crate::{Failure, terminal};

/// Puts a policy together: rules of the command line come ahead of the file's, and without
/// a file or a preset of those that there are.
pub(crate) fn policy(args: &NetworkArgs, there: NetworkPolicy) -> Result<NetworkPolicy, Failure> {
    let mut policy = match (&args.policy, args.net) {
        (Some(path), _) => NetworkPolicy::from_file(path)?,
        _ if args.no_net => NetworkPolicy::none(),
        (None, Some(NetArg::PublicOnly)) => NetworkPolicy::public_only(),
        (None, Some(NetArg::AllowAll)) => NetworkPolicy::allow_all(),
        (None, Some(NetArg::None)) => NetworkPolicy::none(),
        (None, None) => there,
    };
    if !args.net_rule.is_empty() {
        policy = policy.rules_first(&args.net_rule);
    }
    for suffix in &args.block_domain {
        policy = policy.block_domain_suffix(suffix);
    }
    let checked = policy.check();
    checked.map_err(|error| unreadable(error, &args.net_rule))?;
    Ok(policy)
}

/// A mistake in a rule, as whoever typed it is told: other tools write rules with an '@'.
fn unreadable(error: Error, typed: &[String]) -> Failure {
    // What stands behind such a letter is not shown.
    let cut = matches!(&error, Error::PolicyRule { rule, .. } if rule.ends_with('…'));
    let elsewhere = |rule: &String| rule.contains('@') && !rule.contains("http ");
    if !cut || !typed.iter().any(elsewhere) {
        return error.into();
    }
    let hint = "rules are words here, such as \"allow api.github.com\", \"deny tcp 25\" or \
                \"allow tcp 80,443 suffix debian.org\"";
    Failure::Usage {
        message: error.to_string(),
        hint: Some(hint.into()),
    }
}

/// Where the network's events are written to.
pub(crate) struct NetLog {
    out: Box<dyn Write + Send>,
    /// It goes to standard error.
    shown: bool,
    json: bool,
}

impl NetLog {
    /// Opens what `--net-log` names, if it was given.
    pub(crate) fn open(args: &NetworkArgs) -> Result<Option<Self>, Failure> {
        let Some(path) = &args.net_log else {
            return Ok(None);
        };
        let shown = path == Path::new("-");
        let out: Box<dyn Write + Send> = if shown {
            Box::new(io::stderr())
        } else {
            let file = File::create(path).map_err(|error| Failure::Usage {
                message: format!("cannot write {}: {error}", path.display()),
                hint: None,
            })?;
            Box::new(file)
        };
        let json = args.json;
        Ok(Some(Self { out, shown, json }))
    }

    /// Writes events until the sandbox has ended, or nobody reads them.
    pub(crate) async fn follow(mut self, mut events: NetworkEvents) {
        while let Some(event) = events.recv().await {
            if self.write(&event).is_err() {
                return;
            }
        }
    }

    fn write(&mut self, event: &NetworkEvent) -> io::Result<()> {
        let end = match self.shown && terminal::stderr_is_raw() {
            true => "\r\n",
            false => "\n",
        };
        // A line at once, because the program writes to the same terminal.
        let line = if self.json {
            format!("{}{end}", event.json())
        } else {
            format!("net: {event}{end}")
        };
        self.out.write_all(line.as_bytes())
    }
}
