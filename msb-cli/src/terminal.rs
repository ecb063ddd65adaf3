//! The user's terminal: lines, raw mode and size.

use std::io::{self, BufRead, IsTerminal, Write};

use msb_sdk::TtySize;
use rustix::process::getpgrp;
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::{
    OptionalActions, OutputModes, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr,
};

use crate::Failure;

/// A terminal's size when there is none to ask.
const FALLBACK: TtySize = TtySize { rows: 24, cols: 80 };

/// Puts the terminal on standard input into raw mode until dropped.
pub(crate) struct RawMode(Termios);

impl RawMode {
    /// `None` when standard input is no terminal.
    pub(crate) fn enter() -> Option<Self> {
        let saved = tcgetattr(stdin()).ok()?;
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(saved))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.0);
    }
}

/// The size of the terminal on standard output, else on standard input.
pub(crate) fn size() -> TtySize {
    let found = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin()));
    match found {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => TtySize {
            rows: size.ws_row,
            cols: size.ws_col,
        },
        _ => FALLBACK,
    }
}

/// Prints a line on standard output. A reader that has seen enough, such as
/// `head`, is no failure; a full disk is.
pub(crate) fn say(line: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Usage {
            message: format!("cannot write to standard output: {error}"),
            hint: None,
        }),
        _ => Ok(()),
    }
}

/// Passes text on at once; `false` when nobody reads it any more, for commands that go on
/// until then.
pub(crate) fn pass(text: impl AsRef<[u8]>) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_ref()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Usage {
            message: format!("cannot write to standard output: {error}"),
            hint: None,
        }),
    }
}

/// Prints a line on standard error; there is no place to complain about it.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Asks whether to go on; the hint is for whoever can't be asked.
pub(crate) fn confirmed(hint: &str) -> Result<bool, Failure> {
    let failure = |message: String, hint: Option<&str>| Failure::Usage {
        message,
        hint: hint.map(str::to_owned),
    };
    if !stdin_is_terminal() {
        let message = "nobody can be asked: standard input is no terminal";
        return Err(failure(message.into(), Some(hint)));
    }
    complain("Type yes to go on:");
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| failure(format!("cannot read standard input: {error}"), None))?;
    Ok(answer.trim() == "yes")
}

/// Whether somebody sits at a terminal for this process: input, output and errors are one, and
/// it is in its foreground, where it may read from it.
pub(crate) fn is_a_persons() -> bool {
    let all = stdin_is_terminal() && stdout_is_terminal() && stderr_is_terminal();
    all && tcgetpgrp(stdin()).is_ok_and(|group| group == getpgrp())
}

/// Whether standard input is a terminal.
pub(crate) fn stdin_is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// Whether standard output is a terminal.
pub(crate) fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Whether standard error is a terminal that a program has raw: the end of a line is only that.
pub(crate) fn stderr_is_raw() -> bool {
    tcgetattr(stderr()).is_ok_and(|found| !found.output_modes.contains(OutputModes::OPOST))
}

/// Whether progress can be drawn.
pub(crate) fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}
