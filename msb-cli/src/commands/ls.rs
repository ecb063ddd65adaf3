//! `msb ls` and `msb ps`.

use msb_sdk::{Sandbox, SandboxStatus, Status};

use super::inspect::describe;
use crate::args::{FormatArg, ListArgs, LsArgs, PsArgs};
use crate::table::{self, age};
use crate::{Failure, terminal};

/// Lists all sandboxes, those that run, or those that do not.
pub(crate) async fn run(args: LsArgs) -> Result<u8, Failure> {
    let mut sandboxes = Sandbox::list().await?;
    sandboxes.retain(|sandbox| match sandbox.status {
        Status::Stopped => !args.running,
        _ => !args.stopped,
    });
    print(&args.list, &sandboxes)
}

/// Lists those that run, or those that are named.
pub(crate) async fn ps(args: PsArgs) -> Result<u8, Failure> {
    let mut sandboxes = Vec::new();
    for name in &args.names {
        sandboxes.push(Sandbox::get(name).await?.status().await?);
    }
    if args.names.is_empty() {
        sandboxes = Sandbox::list().await?;
        sandboxes.retain(|sandbox| args.all || sandbox.status != Status::Stopped);
    }
    print(&args.list, &sandboxes)
}

fn print(args: &ListArgs, sandboxes: &[SandboxStatus]) -> Result<u8, Failure> {
    match args.format {
        _ if args.quiet => {
            for sandbox in sandboxes {
                terminal::say(&sandbox.name)?;
            }
        }
        FormatArg::Table => {
            let heading = ["NAME", "IMAGE", "STATUS", "CREATED", "PORTS"];
            let mut rows = vec![heading.map(str::to_owned).to_vec()];
            rows.extend(sandboxes.iter().map(row));
            table::print(&rows, &[])?;
        }
        FormatArg::Json => {
            let list = sandboxes.iter().map(describe).collect();
            terminal::say(&serde_json::Value::Array(list).to_string())?;
        }
    }
    Ok(0)
}

fn row(sandbox: &SandboxStatus) -> Vec<String> {
    let image = sandbox.spec.as_ref().map_or("-", |spec| &spec.image);
    let status = if sandbox.failed {
        "failed".to_owned()
    } else {
        sandbox.status.to_string()
    };
    let ports: Vec<_> = sandbox.ports.iter().map(ToString::to_string).collect();
    vec![
        sandbox.name.clone(),
        image.to_owned(),
        status,
        sandbox.created.map_or_else(|| "-".into(), age),
        ports.join(", "),
    ]
}
