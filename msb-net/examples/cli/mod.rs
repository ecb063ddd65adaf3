//! What the command lines of the examples have in common: how a policy is given,
//! where events go, how errors are shown.

pub(crate) mod capture;
pub(crate) mod journal;
pub(crate) mod policy;

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use clap::Args;
use msb_net::gateway::Config;
use msb_net::policy::Policy;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A failure with advice.
#[derive(Debug)]
pub(crate) struct Hinted {
    pub(crate) message: String,
    pub(crate) hint: String,
}

impl std::fmt::Display for Hinted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Hinted {}

/// Shows an error and its advice; the exit status is that of a tool that could
/// not even start what it was asked to.
pub(crate) fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    for cause in error.chain() {
        let hint = match cause.downcast_ref::<Hinted>() {
            Some(hinted) => Some(hinted.hint.clone()),
            None => cause
                .downcast_ref::<msb_net::Error>()
                .and_then(msb_net::Error::hint),
        };
        if let Some(hint) = hint {
            eprintln!("hint: {hint}");
            break;
        }
    }
    ExitCode::from(125)
}

/// Lets this process have as many descriptors as it may: each flow has a socket, and
/// systems begin with few.
pub(crate) fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // What it was will do for most programs; the gateway tells where it does not.
    let _ = setrlimit(Resource::Nofile, raised);
}

/// Has the C library take large blocks from the system and give them back there. Left to
/// itself it keeps them, once it has seen some come and go, and clears them for the next who
/// asks: buffers of connections, which most hardly use, are resident then, and making two
/// thousand takes half a second.
#[allow(unsafe_code)]
pub(crate) fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers. Of the library's settings it changes one, which is valid
    // at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
    }
}

#[derive(Args)]
pub(crate) struct ResolverArgs {
    /// Asks the server at ADDRESS for names, in place of those of this host; may be
    /// given again
    #[arg(long, value_name = "ADDRESS")]
    resolver: Vec<IpAddr>,
}

impl ResolverArgs {
    fn servers(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let given = self.resolver.iter().map(|address| (*address, 53).into());
        Ok(match &self.resolver[..] {
            [] => msb_net::shell::host_resolvers()?,
            _ => given.collect(),
        })
    }
}

/// A gateway's configuration with a seed that nobody can guess.
pub(crate) fn config(policy: Policy, resolvers: &ResolverArgs) -> anyhow::Result<Config> {
    let mut seed = [0; 8];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
    let mut config = Config::new(policy, u64::from_ne_bytes(seed));
    config.host_addresses = msb_net::shell::host_addresses()?;
    config.resolvers = resolvers.servers()?;
    Ok(config)
}
