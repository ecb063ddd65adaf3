//! `msb inspect`.

use std::time::{SystemTime, UNIX_EPOCH};

use msb_sdk::{Sandbox, SandboxStatus, TroubleStatus};
use serde_json::{Value, json};

use crate::args::{InspectArgs, JsonArg};
use crate::{Failure, terminal};

/// Prints an array with an object for each sandbox.
pub(crate) async fn run(args: InspectArgs) -> Result<u8, Failure> {
    let JsonArg::Json = args.format;
    let mut list = Vec::new();
    for name in &args.names {
        list.push(describe(&Sandbox::get(name).await?.status().await?));
    }
    terminal::say(&format!("{:#}", Value::Array(list)))?;
    Ok(0)
}

/// All that is known of a sandbox. Keys are added, never renamed.
pub(crate) fn describe(sandbox: &SandboxStatus) -> Value {
    let program = sandbox.program.as_ref().map(|program| {
        json!({
            "reason": program.reason,
            "code": program.code,
            "at": millis(Some(program.at)),
        })
    });
    let mut spec = json!(sandbox.spec);
    hide_sources(&mut spec);
    let troubles: Vec<_> = sandbox.troubles.iter().map(trouble).collect();
    json!({
        "name": sandbox.name,
        "status": sandbox.status.to_string(),
        "failed": sandbox.failed,
        "reason": sandbox.reason,
        "kept": sandbox.kept,
        "created": millis(sandbox.created),
        "started": millis(sandbox.started),
        "image_digest": sandbox.image_digest,
        "engine": sandbox.engine,
        "supervisor_pid": sandbox.pids.map(|(supervisor, _)| supervisor),
        "vmm_pid": sandbox.pids.map(|(_, vmm)| vmm),
        "ports": sandbox.ports,
        "program": program,
        "troubles": troubles,
        "spec": spec,
    })
}

fn trouble(trouble: &TroubleStatus) -> Value {
    json!({
        "kind": trouble.kind,
        "message": trouble.message,
        "count": trouble.count,
        "at": millis(Some(trouble.at)),
    })
}

/// Where a secret comes from is not shown, only in which way: a command may hold what it
/// logs in with.
fn hide_sources(spec: &mut Value) {
    let secrets = spec.get_mut("secrets").and_then(Value::as_array_mut);
    for secret in secrets.into_iter().flatten() {
        let kind = match secret.get("source") {
            Some(Value::Object(source)) => source.keys().next().cloned(),
            Some(Value::String(kind)) => Some(kind.clone()),
            _ => None,
        };
        secret["source"] = Value::from(kind);
    }
}

/// Milliseconds since the Unix epoch.
fn millis(time: Option<SystemTime>) -> Option<u64> {
    let since = time?.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_secrets_source_only_the_way_is_shown() {
        let mut spec = json!({"secrets": [
            {"name": "A", "source": "given", "hosts": ["a.example"]},
            {"name": "B", "source": {"command": ["sh", "-c", "login --password p"]}},
            {"name": "C", "source": {"env": "VARIABLE"}},
        ]});
        hide_sources(&mut spec);
        let expected = json!({"secrets": [
            {"name": "A", "source": "given", "hosts": ["a.example"]},
            {"name": "B", "source": "command"},
            {"name": "C", "source": "env"},
        ]});
        assert_eq!(spec, expected);
        let mut none = Value::Null;
        hide_sources(&mut none);
        assert_eq!(none, Value::Null);
    }
}
