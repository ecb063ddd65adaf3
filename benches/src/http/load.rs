//! Requests over TLS, by `h2load`.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{HOST, LARGE};

/// Which HTTP the client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1.
    One,
    /// HTTP/2.
    Two,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Small requests over 16 connections, in a second.
    Requests,
    /// Bytes of large answers over 4 connections, in MiB a second.
    Download,
    /// How long one request takes that has no other beside it, in microseconds.
    Latency,
}

impl Load {
    /// The arguments of h2load, for requests that go to `to`.
    #[must_use]
    pub fn arguments(self, version: Version, to: SocketAddr, time: Duration) -> Vec<String> {
        let (clients, streams, path) = match self {
            Load::Requests => (16, 8, ""),
            Load::Download => (4, 1, "large"),
            Load::Latency => (1, 1, ""),
        };
        let mut words = vec![
            format!("--clients={clients}"),
            format!("--duration={}", time.as_secs().max(1)),
            format!("--connect-to={to}"),
        ];
        match version {
            Version::One => words.push("--h1".into()),
            Version::Two => words.push(format!("--max-concurrent-streams={streams}")),
        }
        words.push(format!("https://{HOST}/{path}"));
        words
    }

    /// Runs a command that runs h2load, and reads what it says.
    ///
    /// # Errors
    /// When it does not run, or a request failed.
    pub fn run(self, command: &mut Command) -> Result<f64> {
        let output = command.output().context("h2load does not run")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() || !text.contains(" 0 failed, 0 errored, 0 timeout") {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{command:?}: {}\n{text}{said}", output.status);
        }
        let line = |begin: &str| {
            let mut lines = text.lines().map(str::trim);
            let line = lines.find_map(|line| line.strip_prefix(begin));
            line.with_context(|| format!("h2load says no {begin:?}: {text}"))
        };
        match self {
            Load::Requests | Load::Download => {
                let words = line("finished in")?;
                let rate = words.split(',').nth(1).context("no rate")?.trim();
                let rate: f64 = rate.trim_end_matches(" req/s").parse()?;
                Ok(match self {
                    Load::Download => rate * LARGE as f64 / f64::from(1 << 20),
                    _ => rate,
                })
            }
            // Of least, greatest and mean, the mean.
            Load::Latency => {
                let words = line("time for request:")?;
                micros(words.split_whitespace().nth(2).context("no mean")?)
            }
        }
    }
}

/// Reads a time with its unit.
fn micros(text: &str) -> Result<f64> {
    for (unit, factor) in [("us", 1.0), ("ms", 1e3), ("s", 1e6)] {
        if let Some(number) = text.strip_suffix(unit) {
            return Ok(number.parse::<f64>()? * factor);
        }
    }
    bail!("{text:?} is no time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, expected) in [("97us", 97.0), ("1.20ms", 1200.0), ("2.0s", 2e6)] {
            assert!((micros(text).unwrap() - expected).abs() < 1e-6, "{text}");
        }
        assert!(micros("7").is_err());
    }
}
