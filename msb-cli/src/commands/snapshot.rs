//! `msb snapshot`.

use std::time::{Duration, SystemTime};

use msb_sdk::{Home, Sandbox, SnapshotInfo, Snapshots};
use serde_json::json;

use crate::args::{FormatArg, SnapshotArgs, SnapshotCommand};
use crate::size::human;
use crate::table::{self, age};
use crate::{Failure, terminal};

/// Makes, lists or removes.
pub(crate) async fn run(args: SnapshotArgs) -> Result<u8, Failure> {
    let snapshots = Snapshots::open(&Home::from_env()?);
    match args.command {
        SnapshotCommand::Create { sandbox, snapshot } => {
            let sandbox = Sandbox::get(&sandbox).await?.connect().await?;
            sandbox.snapshot(&snapshot).await?;
            terminal::say(&snapshot)?;
        }
        SnapshotCommand::Ls {
            format: FormatArg::Table,
        } => table(&snapshots.list())?,
        SnapshotCommand::Ls {
            format: FormatArg::Json,
        } => json(&snapshots.list())?,
        SnapshotCommand::Rm { snapshots: names } => {
            for name in &names {
                snapshots.remove(name)?;
                terminal::say(name)?;
            }
        }
        SnapshotCommand::Prune {
            older_than,
            yes,
            dry_run,
        } => {
            return prune(
                &snapshots,
                older_than.unwrap_or(Duration::MAX),
                yes,
                dry_run,
            );
        }
    }
    Ok(0)
}

/// Says what is damaged or old, and removes it.
fn prune(snapshots: &Snapshots, limit: Duration, yes: bool, dry_run: bool) -> Result<u8, Failure> {
    let outdated = snapshots.outdated(limit);
    if outdated.is_empty() {
        terminal::say("no snapshot is damaged, or that old")?;
        return Ok(0);
    }
    for snapshot in &outdated {
        let why = if snapshot.damage.is_some() {
            "damaged".to_owned()
        } else {
            format!("made {}", age(snapshot.created))
        };
        terminal::say(&format!("  {} ({why})", snapshot.name))?;
    }
    let freed = outdated.iter().map(|snapshot| snapshot.bytes).sum();
    terminal::say(&format!("Removing them frees {}.", human(freed)))?;
    if dry_run {
        return Ok(0);
    }
    if !yes && !terminal::confirmed("to remove them all the same: `msb snapshot prune -y`")? {
        terminal::complain("nothing was removed");
        return Ok(1);
    }
    // What was told of, and nothing that has come to be so since.
    for snapshot in &outdated {
        snapshots.remove(&snapshot.name)?;
    }
    terminal::say(&format!(
        "removed {} snapshots, {} freed",
        outdated.len(),
        human(freed)
    ))?;
    Ok(0)
}

fn table(snapshots: &[SnapshotInfo]) -> Result<(), Failure> {
    let heading = ["SNAPSHOT", "SANDBOX", "IMAGE", "SIZE", "CREATED", "STATE"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    rows.extend(snapshots.iter().map(|snapshot| {
        let state = match (&snapshot.damage, &snapshot.unusable) {
            (Some(_), _) => "damaged",
            (None, Some(_)) => "unusable",
            (None, None) => "whole",
        };
        vec![
            snapshot.name.clone(),
            or_none(&snapshot.sandbox),
            or_none(&snapshot.image),
            human(snapshot.bytes),
            age(snapshot.created),
            state.to_owned(),
        ]
    }));
    table::print(&rows, &[3])
}

fn json(snapshots: &[SnapshotInfo]) -> Result<(), Failure> {
    let seconds = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs())
    };
    let list = snapshots.iter().map(|snapshot| {
        json!({
            "name": snapshot.name,
            "sandbox": snapshot.sandbox,
            "image": snapshot.image,
            "size": snapshot.bytes,
            "created": seconds(snapshot.created),
            "damage": snapshot.damage,
            "unusable": snapshot.unusable,
        })
    });
    terminal::say(&serde_json::Value::Array(list.collect()).to_string())
}
