//! `msb logs`.

use msb_sdk::{Logs, Sandbox};
use std::io;

use crate::args::LogsArgs;
use crate::{Failure, terminal};

/// Of more than that only the lines that are asked for are kept: a program may write faster
/// than this reads.
const MAX_KEPT: usize = 32 << 20;

/// Prints the log; with `-f` until the sandbox is stopped or nobody reads any more.
pub(crate) async fn run(args: LogsArgs) -> Result<u8, Failure> {
    let sandbox = Sandbox::get(&args.name).await?;
    let mut logs = sandbox.logs();
    if let Some(lines) = args.tail
        && !print_last(&mut logs, lines)?
    {
        return Ok(0);
    }
    if args.follow {
        let end = sandbox.wait();
        tokio::pin!(end);
        loop {
            if !print(&mut logs)? {
                return Ok(0);
            }
            tokio::select! {
                _ = &mut end => break,
                changed = logs.changed() => changed.map_err(failed)?,
            }
        }
    }
    print(&mut logs)?;
    Ok(0)
}

#[allow(clippy::needless_pass_by_value)] // the shape that map_err wants
fn failed(error: io::Error) -> Failure {
    Failure::Usage {
        message: format!("cannot pass the log on: {error}"),
        hint: None,
    }
}

/// Prints the last lines of what there is; `false` when nobody reads it.
fn print_last(logs: &mut Logs, lines: usize) -> Result<bool, Failure> {
    let mut kept = Vec::new();
    loop {
        let chunk = logs.read().map_err(failed)?;
        if chunk.is_empty() {
            return terminal::pass(&kept[last(&kept, lines)..]);
        }
        kept.extend(chunk);
        if kept.len() > MAX_KEPT {
            kept.drain(..last(&kept, lines));
        }
    }
}

/// Where the last lines begin.
fn last(text: &[u8], lines: usize) -> usize {
    let Some(others) = lines.checked_sub(1) else {
        return text.len();
    };
    let before = text.strip_suffix(b"\n").unwrap_or(text).iter().enumerate();
    let mut ends = before.rev().filter(|(_, byte)| **byte == b'\n');
    ends.nth(others).map_or(0, |(at, _)| at + 1)
}

/// Prints what there is; `false` when nobody reads it.
fn print(logs: &mut Logs) -> Result<bool, Failure> {
    loop {
        let chunk = logs.read().map_err(failed)?;
        if chunk.is_empty() {
            return Ok(true);
        }
        if !terminal::pass(&chunk)? {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::last;

    #[test]
    fn lines_are_counted_from_the_end() {
        for (text, lines, shown) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\n", 2, "a\nb\n"),
            ("a\n", 9, "a\n"),
            ("a\n\n", 1, "\n"),
            ("a\n", 0, ""),
            ("", 1, ""),
        ] {
            assert_eq!(
                &text[last(text.as_bytes(), lines)..],
                shown,
                "{text:?} {lines}"
            );
        }
    }
}
