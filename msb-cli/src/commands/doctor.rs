//! `msb doctor`.

use msb_sdk::Home;
use msb_sdk::doctor::{State, examine};

use crate::{Failure, terminal};

/// Exits with 1 when sandboxes can't run here.
pub(crate) async fn run() -> Result<u8, Failure> {
    let findings = examine(&Home::from_env()?);
    let width = findings
        .iter()
        .map(|finding| finding.name.len())
        .max()
        .unwrap_or(0);
    for finding in &findings {
        let word = match finding.state {
            State::Good => "ok",
            State::Limited => "no",
            _ => "MISSING",
        };
        terminal::say(&format!(
            "{:<width$}  {word:<7}  {}",
            finding.name, finding.detail
        ))?;
        if let Some(hint) = &finding.hint {
            terminal::say(&format!("{:<width$}  {:<7}  hint: {hint}", "", ""))?;
        }
    }
    let usable = findings
        .iter()
        .all(|finding| finding.state != State::Missing);
    terminal::say(if usable {
        "\nSandboxes can run here."
    } else {
        "\nSandboxes can't run here yet: see MISSING."
    })?;
    Ok(u8::from(!usable))
}
