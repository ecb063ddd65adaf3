//! `msb run -it` on a pseudo-terminal, as a person uses it.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

use crate::lab::{BUSYBOX, Lab, signal, until, wait};

/// A person at a terminal.
struct Person {
    master: File,
    slave: File,
    seen: String,
    msb: Child,
}

impl Person {
    fn starts(lab: &Lab, args: &[&str]) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("openpt");
        grantpt(&master).expect("grantpt");
        unlockpt(&master).expect("unlockpt");
        let name = ptsname(&master, Vec::new()).expect("ptsname");
        let slave = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().expect("utf-8"))
            .expect("open");
        tcsetwinsize(&slave, size(40, 100)).expect("size");
        let end = || Stdio::from(slave.try_clone().expect("clone"));
        let msb = lab
            .msb([
                "run",
                "-q",
                "-it",
                "--net",
                "none",
                "--net-log",
                "-",
                BUSYBOX,
                "--",
            ])
            .args(args)
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn();
        Self {
            master: File::from(master),
            slave,
            seen: String::new(),
            msb: msb.expect("spawn"),
        }
    }

    fn types(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("type");
    }

    #[track_caller]
    fn sees(&mut self, text: &str) {
        let mut chunk = [0; 4096];
        while !self.seen.contains(text) {
            let count = self.master.read(&mut chunk).expect("read the terminal");
            assert!(count > 0, "the terminal closed; seen: {}", self.seen);
            self.seen
                .push_str(&String::from_utf8_lossy(&chunk[..count]));
        }
        let rest = self.seen.split_once(text).map(|(_, rest)| rest.to_owned());
        self.seen = rest.unwrap_or_default();
    }
}

fn size(rows: u16, cols: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

#[test]
fn a_shell_on_a_terminal() {
    let lab = Lab::shared();
    let mut person = Person::starts(&lab, &["sh"]);
    person.types("tty; stty size\n");
    person.sees("/dev/pts/");
    person.sees("40 100");
    // The size changes while it runs.
    tcsetwinsize(&person.slave, size(20, 60)).expect("size");
    signal(person.msb.id(), "WINCH");
    person.types("while [ \"$(stty size)\" != '20 60' ]; do :; done; echo re''sized\n");
    person.sees("resized");
    // Ctrl-C ends the program in the foreground, not the shell.
    person.types("echo wai''ting; sleep 1000\n");
    person.sees("waiting");
    person.types("\u{3}");
    person.types("echo still''here\n");
    person.sees("stillhere");
    // What msb says meanwhile begins at the left, too.
    person.types("busybox nslookup a.example\n");
    person.sees("net: query ");
    person.sees(", and the preset is none)\r\n");
    person.types("exit 5\n");
    assert_eq!(wait(person.msb).status.code(), Some(5));
}

#[test]
fn the_terminal_is_as_it_was_afterwards() {
    let lab = Lab::shared();
    let mut person = Person::starts(&lab, &["sh", "-c", "echo ready; read line"]);
    let before = tcgetattr(&person.slave).expect("attributes");
    person.sees("ready");
    let slave = person.slave.try_clone().expect("clone");
    until("the terminal is raw", || {
        !tcgetattr(&slave)
            .expect("attributes")
            .local_modes
            .contains(rustix::termios::LocalModes::ICANON)
    });
    person.types("line\r");
    assert_eq!(wait(person.msb).status.code(), Some(0));
    let after = tcgetattr(&person.slave).expect("attributes");
    assert_eq!(before.local_modes, after.local_modes);
}

#[test]
fn a_terminal_is_asked_for_where_there_is_none() {
    let lab = Lab::shared();
    let run = crate::lab::finish(&mut lab.msb(["run", "-q", "-it", BUSYBOX, "--", "sh"]), b"");
    assert_eq!(run.code, Some(125), "{run:?}");
    assert!(run.stderr.contains("terminal"), "{run:?}");
}
