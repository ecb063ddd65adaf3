//! What `--secret` comes to. A value is never an argument, because everybody on the host can
//! read those; nor is any part of such a mistake shown.

use std::ffi::OsString;
use std::fmt;
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

/// One flag, and what messages call it: nothing of its text, all of which may be a value or
/// part of one, except a name in front of a source that is one.
#[derive(Clone, Copy)]
struct Flag<'a> {
    text: &'a str,
    /// Which one it is, and of how many.
    place: (usize, usize),
}

impl fmt::Display for Flag<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            (_, 1) => f.write_str("--secret"),
            (number, all) => write!(f, "--secret number {number} of {all}"),
        }
    }
}

fn numbered(flags: &[String]) -> impl Iterator<Item = Flag<'_>> {
    let all = flags.len();
    flags.iter().enumerate().map(move |(index, text)| Flag {
        text,
        place: (index + 1, all),
    })
}

/// A name as it may be shown: what does not look like one may be half of a value.
pub(crate) fn shown(name: &str) -> &str {
    let usual = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    if !name.is_empty() && name.bytes().all(usual) {
        name
    } else {
        "NAME"
    }
}

impl<'a> Flag<'a> {
    /// The name and what stands behind it.
    fn named(self) -> Result<(&'a str, &'a str), Failure> {
        let failed = |what: &str| Failure::Usage {
            message: format!("{self} has no {what}"),
            hint: Some("write NAME=SOURCE@HOST, such as TOKEN=env:TOKEN@api.example.com".into()),
        };
        let parts = self.text.split_once('=').ok_or_else(|| failed("'='"))?;
        let named = somewhere(parts.0).check();
        named.map_err(|_| failed("name of a variable in front of its '='"))?;
        Ok(parts)
    }

    /// Where the value comes from.
    fn source(self, text: &'a str) -> Result<From<'a>, Failure> {
        let parts = text.split_once(':').filter(|(_, what)| !what.is_empty());
        Ok(match (parts, text) {
            (Some(("env", variable)), _) => From::Env(variable),
            (Some(("file", path)), _) => From::File(path),
            (Some(("cmd", script)), _) => From::Command(script),
            (_, "stdin") => From::Stdin,
            _ => {
                return Err(Failure::Usage {
                    message: format!("{self} does not say where the value comes from"),
                    hint: Some(
                        "a value cannot be given here, where everybody sees it: write \
                         NAME=env:VARIABLE, NAME=file:PATH, NAME=cmd:COMMAND or NAME=stdin"
                            .into(),
                    ),
                });
            }
        })
    }
}

/// The value of a variable. Its name is not shown: a shell may have put a value there, as
/// with `env:$TOKEN`.
fn variable(name: &str, variable: &str) -> Result<OsString, Failure> {
    std::env::var_os(variable).ok_or_else(|| Failure::Usage {
        message: format!("the variable of --secret {}=env:… is not set", shown(name)),
        hint: Some("behind env: stands the name of a variable, without a '$'".into()),
    })
}

/// Refuses a file that is not there.
fn exists(name: &str, path: &str) -> Result<(), Failure> {
    let found = std::fs::metadata(path).map(drop);
    found.map_err(|error| unreadable(name, &error))
}

/// What is said of a file: not its name, for the same reason.
fn unreadable(name: &str, error: &io::Error) -> Failure {
    Failure::Usage {
        message: format!(
            "the file of --secret {}=file:… cannot be read: {error}",
            shown(name)
        ),
        hint: Some("behind file: stands the path of a file that holds the value".into()),
    }
}

/// What the SDK says of a secret, with its name only as it may be shown: one in a flag for
/// a sandbox that has no such secret may be half of a value.
pub(crate) fn quoted(error: &msb_sdk::Error) -> String {
    match error {
        msb_sdk::Error::Secret { name, problem } if shown(name) != name => {
            let problem = problem.to_string().replace(name.as_str(), "NAME");
            format!("a secret of --secret NAME=… cannot be used: {problem}")
        }
        error => error.to_string(),
    }
}

/// A secret with nothing but a name and some place to go: to try out what else it is to have.
fn somewhere(name: &str) -> Secret {
    Secret::env(name).allow_host("a.example")
}

/// A secret with one more of what stands behind the source, if that is anything.
fn with(secret: Secret, part: &str) -> Option<Secret> {
    Some(match part.split_once('=') {
        None => secret.allow_host(part),
        Some(("header", field)) => secret.header(field),
        Some(("method", method)) => secret.method(method),
        Some(("path", path)) => secret.path(path),
        Some(("prefix", prefix)) => secret.prefix(prefix),
        Some(("in", "query")) => secret.query(),
        Some(("in", "body")) => secret.body(),
        Some(("http", "allow")) => secret.allow_plain_http(),
        Some(("elsewhere", "block")) => secret.block_elsewhere(),
        Some(_) => return None,
    })
}

/// The same, or the reason why not, which does not repeat it: a value with a comma or an '@'
/// in it is taken for such.
fn extended(secret: Secret, name: &str, part: &str) -> Result<Secret, Failure> {
    let name = shown(name);
    let (Some(secret), Some(tried)) = (with(secret, part), with(somewhere("NAME"), part)) else {
        return Err(Failure::Usage {
            message: format!("--secret {name}=… has an option that there is not"),
            hint: Some(
                "options are header=NAME, method=NAME, path=PATH, prefix=TEXT, in=query, \
                 in=body, http=allow and elsewhere=block"
                    .into(),
            ),
        });
    };
    let (what, hint) = match part.split_once('=') {
        Some(("header", _)) => (
            "header field",
            "name one that can carry a credential, such as header=authorization",
        ),
        Some(("method", _)) => ("method", "name one such as method=POST"),
        Some(("path", _)) => (
            "path",
            "write how paths begin, such as path=/v1, without '?' and '..'",
        ),
        Some(("prefix", _)) => (
            "prefix",
            "write a few letters, digits, '-' and '_', such as prefix=sk-",
        ),
        _ => (
            "host",
            "write names such as api.example.com, or .example.com for all below it",
        ),
    };
    let checked = tried.check().map(|()| secret);
    checked.map_err(|_| Failure::Usage {
        message: format!("--secret {name}=… has a {what} that there cannot be"),
        hint: Some(hint.into()),
    })
}

/// Reads `NAME=SOURCE@HOST[,HOST…][,OPTION=VALUE…]` of each flag.
pub(crate) fn secrets(flags: &[String]) -> Result<Vec<Secret>, Failure> {
    leave_no_dump(flags);
    one_input(flags)?;
    numbered(flags).map(secret).collect()
}

fn secret(flag: Flag<'_>) -> Result<Secret, Failure> {
    let (name, rest) = flag.named()?;
    let Some((source, places)) = rest.rsplit_once('@') else {
        flag.source(rest)?;
        return Err(Failure::Usage {
            message: format!("--secret {}=… names no host", shown(name)),
            hint: Some("say which hosts may get the value, such as @api.example.com".into()),
        });
    };
    let mut secret = Secret::env(name);
    for part in places.split(',') {
        secret = extended(secret, name, part)?;
    }
    Ok(match flag.source(source)? {
        From::Env(own) => {
            variable(name, own)?;
            secret.from_env_var(own)
        }
        From::File(path) => {
            exists(name, path)?;
            secret.from_file(path)
        }
        From::Command(script) => secret.from_command(["sh", "-c", script]),
        From::Stdin => secret.value(&*stdin()?),
    })
}

/// Reads `NAME=SOURCE` of each flag, for a sandbox that knows where its values may go: their
/// names and values.
pub(crate) fn values(flags: &[String]) -> Result<Vec<(String, Bytes)>, Failure> {
    leave_no_dump(flags);
    one_input(flags)?;
    let value = |flag: Flag<'_>| {
        let (name, source) = flag.named()?;
        let value = match flag.source(source)? {
            From::Stdin => stdin()?,
            From::File(path) => {
                exists(name, path)?;
                let file = std::fs::File::open(path);
                let read = file.and_then(bounded);
                read.map_err(|error| unreadable(name, &error))?
            }
            From::Env(own) => {
                use std::os::unix::ffi::OsStringExt;
                Zeroizing::new(variable(name, own)?.into_vec())
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
    numbered(flags).map(value).collect()
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

    /// Whatever is wrong with it.
    #[test]
    fn a_value_on_the_command_line_is_refused_and_not_repeated() {
        for flag in [
            "TOKEN=HUNTER2@a.example",
            "TOKEN=HUNTER2",
            "TOKEN=HUN/TER2@a.example",
            "TOKEN=fil:HUNTER2@a.example",
            "TOKEN=ENV:HUNTER2@a.example",
            "TOKEN=env=HUNTER2@a.example",
            "TOKEN=stdin:HUNTER2@a.example",
            "TOKEN=env:@HUNTER2",
            "TOKEN=env:PATH@a.example,HUNTER2=HUNTER2",
            "TOKEN=env:PATH@a.example,header=x-key: HUNTER2",
            "HUNTER2",
            "HUNTER2=",
            "HUNTER2==@a.example",
            "HUNTER2=@a.example",
            "HUNTER2=HUNTER2",
            // As a shell has it when a '$' was too much.
            "TOKEN=env:HUNTER2@a.example",
            "TOKEN=file:HUNTER2@a.example",
            "TOKEN=file:/HUN/TER2@a.example",
            "TOKEN=file:~HUNTER2@a.example",
            // As the places are read, and the name.
            "TOKEN=env:PATH@a.example,HUN TER2!",
            "TOKEN=env:PATH@HUN*TER2",
            "TOKEN=env:PATH@a.example,header=HUN/TER2",
            "TOKEN=env:PATH@a.example,method=HUN/TER2",
            "TOKEN=env:PATH@a.example,method=hun@TER2",
            "TOKEN=env:PATH@a.example,path=HUNTER2",
            "TOKEN=env:PATH@a.example,path=/HUNTER2?",
            "TOKEN=env:PATH@a.example,prefix=HUN/TER2",
            "sk-HUNTER2=env:PATH@a.example",
            "1HUNTER2=env:PATH@a.example",
        ] {
            for flags in [vec![flag.to_owned()], vec![flag.to_owned(); 2]] {
                let refused = [secrets(&flags).err(), values(&flags).err()];
                for failure in refused.into_iter().flatten() {
                    let text = format!("{failure:?}");
                    assert!(text.contains("--secret"), "{flag}: {text}");
                    assert!(!text.contains("HUN") && !text.contains("TER2"), "{text}");
                }
                assert!(secrets(&flags).is_err(), "{flag}");
            }
        }
    }

    #[test]
    fn what_is_given_at_a_start_is_not_repeated_either() {
        for flag in ["sk-HUNTER2=stdin", "HUN.TER2=env:PATH", "TOKEN=file:/"] {
            let failure = values(&[flag.to_owned()]).expect_err(flag);
            let text = format!("{failure:?}");
            assert!(text.contains("--secret"), "{flag}: {text}");
            assert!(!text.contains("HUN") && !text.contains("\"/\""), "{text}");
        }
        let unknown = |name: &str| msb_sdk::Error::Secret {
            name: name.into(),
            problem: msb_sdk::SecretProblem::Unknown,
        };
        assert!(quoted(&unknown("TOKNE")).contains("\"TOKNE\""));
        let text = quoted(&unknown("hunter2"));
        assert!(
            text.contains("no such secret") && !text.contains("hunter2"),
            "{text}"
        );
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
        assert!(refusal("TOKEN=env:PATH@b,colour=red").contains("elsewhere=block"));
        assert!(refusal("TOKEN").contains("NAME=SOURCE@HOST"));
    }
}
