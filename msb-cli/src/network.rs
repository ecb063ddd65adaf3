//! What the network flags of `msb run` come to, and showing what the network does.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use msb_sdk::{NetworkEvent, NetworkEvents, NetworkPolicy};

use crate::Failure;
use crate::args::{NetArg, NetworkArgs};

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
    if let Some(rule) = args.net_rule.iter().find(|rule| rule.contains('@')) {
        return Err(Failure::Usage {
            message: format!("network rule {rule:?}: rules are words here, without '@' and ':'"),
            hint: Some(
                "such as \"allow api.github.com\", \"deny tcp 25\" or \"allow tcp 80,443 suffix debian.org\"".into(),
            ),
        });
    }
    if !args.net_rule.is_empty() {
        policy = policy.rules_first(&args.net_rule);
    }
    for suffix in &args.block_domain {
        policy = policy.block_domain_suffix(suffix);
    }
    policy.check()?;
    Ok(policy)
}

/// Where the network's events are written to.
pub(crate) struct NetLog {
    out: Box<dyn Write + Send>,
    json: bool,
}

impl NetLog {
    /// Opens what `--net-log` names, if it was given.
    pub(crate) fn open(args: &NetworkArgs) -> Result<Option<Self>, Failure> {
        let Some(path) = &args.net_log else {
            return Ok(None);
        };
        let out: Box<dyn Write + Send> = if path == Path::new("-") {
            Box::new(io::stderr())
        } else {
            let file = File::create(path).map_err(|error| Failure::Usage {
                message: format!("cannot write {}: {error}", path.display()),
                hint: None,
            })?;
            Box::new(file)
        };
        let json = args.json;
        Ok(Some(Self { out, json }))
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
        // A line at once, because the program writes to the same terminal.
        let line = if self.json {
            format!("{}\n", event.json())
        } else {
            format!("net: {event}\n")
        };
        self.out.write_all(line.as_bytes())
    }
}
