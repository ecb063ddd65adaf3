//! `msb attach`: back to a program that was let go of.

use msb_sdk::{Sandbox, SessionInfo};
use serde_json::{Value, json};

use crate::args::{AttachArgs, FormatArg};
use crate::session::{Session, forwarded_signals};
use crate::table::{self, age};
use crate::{Failure, terminal};

/// Comes back to the program and returns its exit code.
pub(crate) async fn run(args: AttachArgs) -> Result<u8, Failure> {
    let sandbox = Sandbox::get(&args.name).await?.connect().await?;
    if args.list {
        return list(&sandbox.sessions().await?, args.format);
    }
    let id = match args.session {
        Some(id) => id,
        None => only(&args.name, &sandbox.sessions().await?)?,
    };
    let handle = sandbox.attach(id).await?;
    let terminal = terminal::stdin_is_terminal();
    let session = Session::new(terminal, terminal)?.detached_by(args.detach_keys);
    session.resume(&sandbox, handle, forwarded_signals()).await
}

/// The one that there is.
fn only(name: &str, sessions: &[SessionInfo]) -> Result<msb_sdk::SessionId, Failure> {
    match sessions {
        [one] => Ok(one.id),
        [] => Err(Failure::Usage {
            message: format!("nothing in the sandbox {name:?} was let go of"),
            hint: Some(format!(
                "`msb shell {name}` opens a shell, `msb logs -f {name}` follows its program"
            )),
        }),
        several => {
            let shown = |one: &SessionInfo| format!("{} ({})", one.id, one.command);
            let shown: Vec<String> = several.iter().map(shown).collect();
            Err(Failure::Usage {
                message: format!("several programs were let go of: {}", shown.join(", ")),
                hint: Some(format!("name one: `msb attach {name} {}`", several[0].id)),
            })
        }
    }
}

fn list(sessions: &[SessionInfo], format: FormatArg) -> Result<u8, Failure> {
    match format {
        FormatArg::Json => {
            let list = sessions.iter().map(|one| {
                json!({
                    "id": one.id.to_string(),
                    "command": one.command,
                    "pid": one.pid,
                    "ended": one.ended,
                })
            });
            terminal::say(&Value::Array(list.collect()).to_string())?;
        }
        FormatArg::Table => {
            let heading = ["ID", "COMMAND", "STATUS", "LET GO"];
            let mut rows = vec![heading.map(str::to_owned).to_vec()];
            rows.extend(sessions.iter().map(row));
            table::print(&rows, &[0])?;
        }
    }
    Ok(0)
}

fn row(one: &SessionInfo) -> Vec<String> {
    let status = if one.ended { "ended" } else { "running" };
    vec![
        one.id.to_string(),
        one.command.clone(),
        status.to_owned(),
        age(one.since),
    ]
}
