//! Checks a policy file, or says what it does with one flow.
//!
//! ```text
//! cargo run -p msb-net --example policy -- check FILE
//! cargo run -p msb-net --example policy -- explain FILE tcp 443 api.github.com
//! ```
//!
//! `check` runs the `expect` lines of the file; the exit status is 0 when all
//! hold, 1 when one does not, 2 when the file cannot be read.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use msb_net::policy::Document;

const USAGE: &str = "usage: policy check FILE
       policy explain FILE [in] tcp|udp PORT DESTINATION [at IP] [sni NAME|no-sni]
       policy explain FILE icmp DESTINATION
       policy explain FILE dns NAME";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            let hint = error
                .chain()
                .find_map(|cause| cause.downcast_ref::<msb_net::Error>()?.hint());
            if let Some(hint) = hint {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &[String]) -> anyhow::Result<bool> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *arguments {
        ["-h" | "--help"] => {
            println!("{USAGE}");
            Ok(true)
        }
        ["check", path] => {
            let document = read(path)?;
            let failures = document
                .failures()
                .inspect(|failure| eprintln!("{path}: {failure}"))
                .count();
            let total = document.expectations.len();
            println!("{path}: {} of {total} expectations hold", total - failures);
            Ok(failures == 0)
        }
        ["explain", path, ref subject @ ..] if !subject.is_empty() => {
            let policy = read(path)?.policy;
            let question: Document = format!("expect allow {}", subject.join(" "))
                .parse()
                .context("the flow to explain")?;
            for expectation in &question.expectations {
                println!("{}", policy.explain_subject(&expectation.subject));
            }
            Ok(true)
        }
        _ => bail!("{USAGE}"),
    }
}

fn read(path: &str) -> anyhow::Result<Document> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Document::from_file(path.as_ref(), &text).with_context(|| path.to_owned())
}
