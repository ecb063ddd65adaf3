//! Patches and scripts, before anybody else talks to the agent.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use msb_guest_agent::endpoint::HostEndpoint;

use super::start::Failure;
use crate::error::Error;
use crate::fs::Fs;
use crate::link::Link;
use crate::patch;
use crate::spec::SandboxSpec;

/// Longer than copying what fits on a disk takes; a guest that hangs is given up.
const LIMIT: Duration = Duration::from_secs(1800);

/// Makes the changes that the spec asks for. Afterwards the link is as it was: no stream is
/// open and nothing is left to be read.
pub(super) fn apply(agent: &UnixStream, spec: &SandboxSpec) -> Result<(), Failure> {
    if spec.patches.is_empty() && spec.scripts.is_empty() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::io)?;
    let socket = agent.try_clone().map_err(Failure::io)?;
    let applied = runtime.block_on(async {
        let link = Link::with(socket, HostEndpoint::new()).map_err(Failure::io)?;
        let work = async {
            let fs = Fs::new(link.clone());
            let applied = patch::apply(&fs, &spec.patches, &spec.scripts).await;
            applied.map_err(failed)?;
            link.release().await.map_err(failed)
        };
        let limited = tokio::time::timeout(LIMIT, work).await;
        limited.unwrap_or_else(|_| Err(Failure::bug("the guest did not take its patches in time")))
    });
    drop(runtime);
    // The clone has the same flags.
    agent.set_nonblocking(false).map_err(Failure::io)?;
    applied
}

#[allow(clippy::needless_pass_by_value)] // the shape that map_err wants
fn failed(error: Error) -> Failure {
    Failure {
        reason: format!("a patch failed: {error}"),
        hint: error.hint(),
    }
}
