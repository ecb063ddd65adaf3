//! `msb install`.

use msb_sdk::Home;
use serde_json::json;

use crate::args::{FormatArg, InstallArgs};
use crate::installed::{self, Installed, failed};
use crate::{Failure, sandbox, table, terminal};

/// Makes a command that opens a sandbox, or lists those that there are.
pub(crate) fn run(args: &InstallArgs) -> Result<u8, Failure> {
    let home = Home::from_env()?;
    if args.list {
        return list(&home, args.format);
    }
    let file = args.sandbox.file.as_deref();
    let mut spec = sandbox::spec(file, args.name.as_deref(), args.image.as_deref())?;
    if spec.name.is_empty() {
        spec.name = named_after(&spec.image).to_owned();
    }
    let name = spec.name.clone();
    if name == "msb" {
        return Err(Failure::Usage {
            message: "a command of the name msb would hide msb itself".into(),
            hint: Some("give it another name: --name NAME".into()),
        });
    }
    if !args.network.secret.is_empty() {
        return Err(Failure::Usage {
            message: "a command keeps no --secret of its command line".into(),
            hint: Some("describe it in a file, and install that: -f FILE".into()),
        });
    }
    let builder = sandbox::builder(spec, &args.sandbox, &args.network)?;
    builder.spec().validate()?;
    let mut spec = builder.spec().clone();
    // The file that is written lies elsewhere.
    let paths = spec.capture.iter_mut().chain(&mut spec.tls.authorities);
    for path in paths {
        *path = std::path::absolute(&*path).map_err(|error| failed("find", path, &error))?;
    }
    if args.tmp {
        // Each time another one.
        spec.name.clear();
    }
    let script = installed::add(&home, &name, &spec)?;
    terminal::say(&script.display().to_string())?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).any(|folder| Some(folder.as_path()) == script.parent());
    if let (false, Some(folder)) = (found, script.parent()) {
        let folder = folder.display();
        terminal::complain(&format!("hint: {folder} is not on your PATH; add it"));
    }
    Ok(0)
}

/// The last word of an image's name: `ubuntu` of `docker.io/library/ubuntu:24.04`.
fn named_after(image: &str) -> &str {
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split([':', '@']).next().unwrap_or(last)
}

fn list(home: &Home, format: FormatArg) -> Result<u8, Failure> {
    let found = installed::list(home)?;
    match format {
        FormatArg::Table => {
            let heading = ["NAME", "IMAGE", "SANDBOX", "COMMAND"];
            let mut rows = vec![heading.map(str::to_owned).to_vec()];
            rows.extend(found.iter().map(row));
            table::print(&rows, &[])?;
        }
        FormatArg::Json => {
            let entries = found.iter().map(|command| {
                json!({
                    "name": command.name,
                    "image": command.spec.as_ref().map(|spec| &spec.image),
                    "tmp": command.is_temporary(),
                    "command": command.script.to_string_lossy(),
                })
            });
            terminal::say(&serde_json::Value::Array(entries.collect()).to_string())?;
        }
    }
    Ok(0)
}

fn row(command: &Installed) -> Vec<String> {
    let image = command.spec.as_ref().map_or("-", |spec| &spec.image);
    let sandbox = if command.is_temporary() {
        "(new each time)"
    } else {
        &command.name
    };
    vec![
        command.name.clone(),
        image.to_owned(),
        sandbox.to_owned(),
        command.script.display().to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::named_after;

    #[test]
    fn a_command_is_called_as_its_image() {
        for (image, name) in [
            ("ubuntu", "ubuntu"),
            ("python:3.12", "python"),
            ("localhost:5000/some/app:1", "app"),
            ("docker.io/library/debian@sha256:00", "debian"),
        ] {
            assert_eq!(named_after(image), name);
        }
    }
}
