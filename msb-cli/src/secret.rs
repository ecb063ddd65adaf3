//! What `--secret` comes to. A value is never an argument, because everybody on the host can
//! read those; nor is any part of such a mistake shown.

use std::io::{self, IsTerminal, Read};

use msb_sdk::Secret;
use rustix::process::{Resource, Rlimit, setrlimit};
use zeroize::Zeroizing;

use crate::Failure;

/// The longest value and its line's end. What is longer is refused by the SDK.
const MAX_READ: u64 = 8 * 1024 + 3;

/// A value on its way to the SDK, overwritten when it has been handed over.
type Bytes = Zeroizing<Vec<u8>>;

/// A dump of this process would hold values, which are in its environment perhaps. One byte,
/// as for the supervisor: none at all does not keep a program that takes dumps from one.
fn leave_no_dump(flags: &[String]) {
    if !flags.is_empty() {
        let limit = Rlimit {
            current: Some(1),
            maximum: Some(1),
        };
        // It can always be lowered.
        let _ = setrlimit(Resource::Core, limit);
    }
}

/// Where a value comes from, as typed.
#[derive(Debug, PartialEq, Eq)]
enum From<'a> {
    Env(&'a str),
    File(&'a str),
    Command(&'a str),
    Stdin,
}

/// A name as it may be shown: what does not look like one may be half of a value that has
/// a '=' in it.
fn shown(name: &str) -> &str {
    let usual = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    if !name.is_empty() && name.bytes().all(usual) {
        name
    } else {
        "NAME"
    }
}

impl<'a> From<'a> {
    fn parse(name: &str, text: &'a str) -> Result<Self, Failure> {
        let parts = text.split_once(':').filter(|(_, what)| !what.is_empty());
        Ok(match (parts, text) {
            (Some(("env", variable)), _) => Self::Env(variable),
            (Some(("file", path)), _) => Self::File(path),
            (Some(("cmd", script)), _) => Self::Command(script),
            (_, "stdin") => Self::Stdin,
            _ => {
                let name = shown(name);
                return Err(Failure::Usage {
                    message: format!("--secret {name}=… does not say where the value comes from"),
                    hint: Some(format!(
                        "a value cannot be given here, where everybody sees it: write \
                         {name}=env:VARIABLE, {name}=file:PATH, {name}=cmd:COMMAND or {name}=stdin"
                    )),
                });
            }
        })
    }

    fn give(self, secret: Secret) -> Result<Secret, Failure> {
        Ok(match self {
            Self::Env(variable) => {
                // The shell may have put the value there: env:$TOKEN.
                if std::env::var_os(variable).is_none() && shown(variable) != variable {
                    return Err(failed("the variable that --secret names is not set"));
                }
                secret.from_env_var(variable)
            }
            Self::File(path) => {
                exists(path)?;
                secret.from_file(path)
            }
            Self::Command(script) => secret.from_command(["sh", "-c", script]),
            Self::Stdin => secret.value(&*stdin()?),
        })
    }
}

/// Refuses a file that is not there, without its name if that may be a value: file:$TOKEN.
fn exists(path: &str) -> Result<(), Failure> {
    let is_path = path.starts_with(['/', '.', '~']);
    if is_path || std::path::Path::new(path).exists() {
        return Ok(());
    }
    Err(failed("the file that --secret names is not there"))
}

/// Reads `NAME=SOURCE@HOST[,HOST…][,OPTION=VALUE…]` of each flag.
pub(crate) fn secrets(flags: &[String]) -> Result<Vec<Secret>, Failure> {
    leave_no_dump(flags);
    one_input(flags)?;
    flags.iter().map(|flag| secret(flag)).collect()
}

fn secret(flag: &str) -> Result<Secret, Failure> {
    let (name, rest) = named(flag)?;
    let Some((source, places)) = rest.rsplit_once('@') else {
        From::parse(name, rest)?;
        return Err(Failure::Usage {
            message: format!("--secret {}=… names no host", shown(name)),
            hint: Some("say which hosts may get the value, such as @api.example.com".into()),
        });
    };
    let mut secret = From::parse(name, source)?.give(Secret::env(name))?;
    for part in places.split(',') {
        secret = match part.split_once('=') {
            None => secret.allow_host(part),
            Some(("header", field)) => secret.header(field),
            Some(("method", method)) => secret.method(method),
            Some(("path", path)) => secret.path(path),
            Some(("prefix", prefix)) => secret.prefix(prefix),
            Some(("in", "query")) => secret.query(),
            Some(("in", "body")) => secret.body(),
            Some(("http", "allow")) => secret.allow_plain_http(),
            Some(("elsewhere", "block")) => secret.block_elsewhere(),
            Some(_) => {
                let name = shown(name);
                return Err(Failure::Usage {
                    message: format!("--secret {name}=… has an option that there is not"),
                    hint: Some(
                        "options are header=NAME, method=NAME, path=PATH, prefix=TEXT, in=query, \
                         in=body, http=allow and elsewhere=block"
                            .into(),
                    ),
                });
            }
        };
    }
    Ok(secret)
}

/// Reads `NAME=SOURCE` of each flag, for a sandbox that knows where its values may go: their
/// names and values.
pub(crate) fn values(flags: &[String]) -> Result<Vec<(String, Bytes)>, Failure> {
    leave_no_dump(flags);
    one_input(flags)?;
    let value = |flag: &String| {
        let (name, source) = named(flag)?;
        let value = match From::parse(name, source)? {
            From::Stdin => stdin()?,
            From::File(path) => {
                exists(path)?;
                let file = std::fs::File::open(path);
                let read = file.and_then(bounded);
                read.map_err(|error| failed(&format!("cannot read {path}: {error}")))?
            }
            From::Env(variable) => {
                use std::os::unix::ffi::OsStringExt;
                let found = std::env::var_os(variable);
                let unset = || match shown(variable) == variable {
                    true => failed(&format!("the variable {variable} is not set")),
                    false => failed("the variable that --secret names is not set"),
                };
                Zeroizing::new(found.ok_or_else(unset)?.into_vec())
            }
            From::Command(_) => {
                return Err(Failure::Usage {
                    message: format!("--secret {}=cmd:… cannot be given at a start", shown(name)),
                    hint: Some(
                        "pipe its output in: COMMAND | msb start --secret NAME=stdin".into(),
                    ),
                });
            }
        };
        Ok((name.to_owned(), value))
    };
    flags.iter().map(value).collect()
}

fn named(flag: &str) -> Result<(&str, &str), Failure> {
    flag.split_once('=').ok_or_else(|| Failure::Usage {
        message: "--secret has no '='".into(),
        hint: Some("write NAME=SOURCE@HOST, such as TOKEN=env:TOKEN@api.example.com".into()),
    })
}

/// Standard input is one value.
fn one_input(flags: &[String]) -> Result<(), Failure> {
    let is_input = |flag: &&String| {
        let source = flag.split_once('=').map(|(_, source)| source);
        source.is_some_and(|source| source == "stdin" || source.starts_with("stdin@"))
    };
    if flags.iter().filter(is_input).count() > 1 {
        return Err(Failure::Usage {
            message: "only one secret can come from standard input".into(),
            hint: Some("name files for the others: NAME=file:PATH@HOST".into()),
        });
    }
    Ok(())
}

fn stdin() -> Result<Bytes, Failure> {
    let input = io::stdin();
    if input.is_terminal() {
        return Err(Failure::Usage {
            message: "a secret is not read from a terminal, which shows it".into(),
            hint: Some("pipe it in, or name a file: NAME=file:PATH@HOST".into()),
        });
    }
    bounded(input.lock()).map_err(|error| failed(&format!("cannot read standard input: {error}")))
}

fn bounded(from: impl Read) -> io::Result<Bytes> {
    // Enough room: a vector that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_READ as usize + 32));
    from.take(MAX_READ).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn failed(message: &str) -> Failure {
    Failure::Usage {
        message: message.to_owned(),
        hint: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(flag: &str) -> String {
        match secrets(&[flag.to_owned()]) {
            Err(Failure::Usage { message, hint }) => format!("{message} {}", hint.expect("a hint")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_value_on_the_command_line_is_refused_and_not_repeated() {
        for flag in [
            "TOKEN=hunter2hunter2@a.example",
            "TOKEN=hunter2hunter2",
            "TOKEN=env:@hunter2hunter2",
            "TOKEN=env:A@a.example,hunter2=hunter2",
        ] {
            let text = refusal(flag);
            assert!(text.contains("TOKEN="), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
        for flag in ["hunter2=", "hunter2==@a.example", "hunter2=@a.example"] {
            let text = refusal(flag);
            assert!(!text.contains("hunter2"), "{text}");
        }
        // As a shell has it when a '$' was too much.
        for flag in [
            "TOKEN=env:hunter2hunter2@a.example",
            "TOKEN=file:hunter2@a.example",
        ] {
            let Err(Failure::Usage { message, .. }) = secrets(&[flag.to_owned()]) else {
                panic!("{flag}");
            };
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn hosts_and_options_come_behind_the_source() {
        let flag = "TOKEN=cmd:id a@b@a.example,.b.example,header=X-Key,in=query,prefix=sk-";
        let shown = format!("{:?}", secrets(&[flag.to_owned()]).expect("a secret"));
        for part in [
            "\"id a@b\"",
            "\"a.example\"",
            "\".b.example\"",
            "\"x-key\"",
            "query: true",
            "\"sk-\"",
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert!(refusal("TOKEN=env:A").contains("@api.example.com"));
        assert!(refusal("TOKEN=env:A@b,colour=red").contains("elsewhere=block"));
        assert!(refusal("TOKEN").contains("NAME=SOURCE@HOST"));
    }
}
