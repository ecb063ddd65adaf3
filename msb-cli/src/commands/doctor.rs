//! `msb doctor`.

use msb_sdk::Home;
use msb_sdk::doctor::{Finding, State, examine};
use serde_json::{Value, json};

use crate::args::FormatArg;
use crate::{Failure, terminal};

/// Exits with 1 when sandboxes can't run here.
pub(crate) async fn run(format: FormatArg) -> Result<u8, Failure> {
    let findings = examine(&Home::from_env()?);
    let usable = findings
        .iter()
        .all(|finding| finding.state != State::Missing);
    if let FormatArg::Json = format {
        let list = findings.iter().map(describe).collect();
        terminal::say(&Value::Array(list).to_string())?;
        return Ok(u8::from(!usable));
    }
    let width = findings
        .iter()
        .map(|finding| finding.name.len())
        .max()
        .unwrap_or(0);
    for finding in &findings {
        let word = word(finding);
        terminal::say(&format!(
            "{:<width$}  {word:<7}  {}",
            finding.name, finding.detail
        ))?;
        if let Some(hint) = &finding.hint {
            terminal::say(&format!("{:<width$}  {:<7}  hint: {hint}", "", ""))?;
        }
    }
    terminal::say(if usable {
        "\nSandboxes can run here."
    } else {
        "\nSandboxes can't run here yet: see MISSING."
    })?;
    Ok(u8::from(!usable))
}

fn word(finding: &Finding) -> &'static str {
    match finding.state {
        State::Good => "ok",
        State::Limited => "no",
        _ => "MISSING",
    }
}

/// One finding. Keys are added, never renamed.
fn describe(finding: &Finding) -> Value {
    json!({
        "name": finding.name,
        "state": word(finding).to_lowercase(),
        "detail": finding.detail,
        "hint": finding.hint,
    })
}
