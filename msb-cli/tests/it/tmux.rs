//! A person at a terminal in tmux: a shell with job control, an editor, a pager, another size,
//! letting go and coming back.

use std::process::Command;

use crate::lab::{BUSYBOX, Kept, Lab, finish, text, until};

/// A terminal whose screen can be read. Its processes end with it.
pub(crate) struct Screen<'a> {
    lab: &'a Lab,
    dir: tempfile::TempDir,
}

impl<'a> Screen<'a> {
    /// A shell of this host on a screen of 100 by 30.
    pub(crate) fn open(lab: &'a Lab) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let screen = Self { lab, dir };
        screen.tmux(&[
            "-u",
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            "100",
            "-y",
            "30",
            "env",
            "PS1=host$ ",
            "ENV=",
            "sh",
        ]);
        screen.sees("host$");
        screen
    }

    fn tmux(&self, args: &[&str]) -> String {
        let mut command = Command::new("tmux");
        for (name, value) in self.lab.msb::<&str>([]).get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        let output = command
            .arg("-S")
            .arg(self.dir.path().join("socket"))
            .args(args)
            .env_remove("TMUX")
            .output()
            .expect("tmux must be installed: `cargo xtask setup`");
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    }

    fn types(&self, line: &str) {
        self.tmux(&["send-keys", "-l", "--", line]);
        self.press("Enter");
    }

    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    fn shown(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until a line of the screen begins with this text.
    #[track_caller]
    pub(crate) fn sees(&self, text: &str) {
        until(&format!("the screen shows {text:?}"), || {
            self.shown()
                .lines()
                .any(|line| line.starts_with(text) || line.starts_with(&format!("^Z{text}")))
        });
    }

    /// Enters the sandbox.
    pub(crate) fn enter(&self, command: &str) {
        self.types(&format!("{} {command}", env!("CARGO_BIN_EXE_msb")));
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the screen:\n{}", self.shown());
        }
        let socket = self.dir.path().join("socket");
        let _ = Command::new("tmux")
            .arg("-S")
            .arg(socket)
            .arg("kill-server")
            .output();
    }
}

fn sandbox(lab: &Lab) -> Kept<'_> {
    let name = format!("tmux-{}", std::process::id());
    let mut create = lab.msb([
        "create",
        "-q",
        "--name",
        &name,
        "-e",
        "PS1=guest$ ",
        BUSYBOX,
    ]);
    finish(&mut create, b"").success();
    Kept { lab, name }
}

#[test]
fn a_session_as_people_have_it() {
    let lab = Lab::shared();
    let kept = sandbox(&lab);
    let screen = Screen::open(&lab);
    screen.enter(&format!("shell {}", kept.name));
    screen.sees("guest$");
    screen.types("stty size");
    screen.sees("30 100");
    screen.tmux(&["resize-window", "-x", "90", "-y", "25"]);
    screen.types("while [ \"$(stty size)\" != '25 90' ]; do :; done; echo re''sized");
    screen.sees("resized");
    screen.types("clear");

    // Ctrl-C ends what runs in the foreground, Ctrl-Z stops it, fg takes it up again.
    screen.types("echo wai''ting; sleep 1000");
    screen.sees("waiting");
    screen.press("C-c");
    screen.types("echo code=$?");
    screen.sees("code=130");
    screen.types("sh -c 'echo be''gun; read line; echo got $line'");
    screen.sees("begun");
    screen.press("C-z");
    screen.sees("[1]+  Stopped");
    screen.types("echo the shell''s turn");
    screen.sees("the shells turn");
    // What is typed before the shell lets go of the terminal is the shell's.
    screen.types("fg");
    screen.sees("sh -c \"echo be");
    screen.types("more");
    screen.sees("got more");

    // Wide characters, and a terminal that rubs out all bytes of one.
    screen.types("sh -c 'echo rea''dy; exec cat > /tmp/wide'");
    screen.sees("ready");
    screen.tmux(&["send-keys", "-l", "--", "日本語ü語"]);
    screen.press("BSpace");
    screen.press("Enter");
    screen.press("C-d");
    screen.types("clear; cat /tmp/wide");
    screen.sees("日本語ü");
    let mut cat = lab.msb(["exec", &kept.name, "--", "cat", "/tmp/wide"]);
    assert_eq!(finish(&mut cat, b"").success(), "日本語ü\n");

    // A pager, which draws the whole screen.
    // From a file: how far a pipe has been read when a key is pressed is anybody's guess.
    screen.types("seq 1 500 > /tmp/lines; less /tmp/lines");
    screen.sees("1");
    screen.press("G");
    screen.sees("500");
    screen.press("q");
    screen.types("clear; echo back");
    screen.sees("back");
    screen.types("exit 7");
    screen.sees("host$");
    screen.types("echo left with $?");
    screen.sees("left with 7");
}

#[test]
fn whoever_types_a_command_gives_it_the_terminal() {
    let lab = Lab::shared();
    let screen = Screen::open(&lab);
    screen.enter(&format!("run -q -e 'PS1=guest$ ' {BUSYBOX}"));
    screen.sees("guest$");
    screen.types("clear; tty; stty size");
    screen.sees("/dev/pts/");
    screen.sees("30 100");
    screen.types("exit 3");
    screen.sees("host$");
    screen.types("echo left with $?");
    screen.sees("left with 3");
    // Not to one that may not read from it, and not against somebody's will.
    let asks = r#"-- sh -c 'test -t 0 || printf "\nnone %s\n" $0'"#;
    screen.enter(&format!("run -q {BUSYBOX} {asks} behind &"));
    screen.sees("none behind");
    screen.enter(&format!("run -q --no-tty {BUSYBOX} {asks} unwanted"));
    screen.sees("none unwanted");
    screen.enter(&format!("run -q {BUSYBOX} {asks} piped | cat"));
    screen.sees("none piped");
}

#[test]
fn an_editor_that_is_let_go_of_and_come_back_to() {
    let lab = Lab::shared();
    let kept = sandbox(&lab);
    let screen = Screen::open(&lab);
    screen.enter(&format!("exec {} -- busybox vi /tmp/note", kept.name));
    screen.sees("~");
    screen.press("i");
    screen.types("first line");
    screen.sees("first line");
    // Let go: the editor goes on, and the host's shell is back.
    screen.press("C-p");
    screen.press("C-q");
    // What is typed before that may be thrown away, with what was meant for the editor.
    screen.sees("host$");
    screen.types("clear; echo at home");
    screen.sees("at home");
    let mut list = lab.msb(["attach", "--list", &kept.name]);
    let listed = finish(&mut list, b"").success();
    assert!(listed.contains("busybox vi /tmp/note  running"), "{listed}");
    // Back on a screen of another size, it draws anew.
    screen.tmux(&["resize-window", "-x", "70", "-y", "20"]);
    screen.enter(&format!("attach {}", kept.name));
    screen.sees("first line");
    screen.sees("~");
    screen.types("second line");
    screen.press("Escape");
    // An escape and what follows at once would be a function key.
    screen.sees("- /tmp/note");
    screen.types(":wq");
    screen.sees("host$");
    screen.types("clear; echo saved with $?");
    screen.sees("saved with 0");
    let mut cat = lab.msb(["exec", &kept.name, "--", "cat", "/tmp/note"]);
    let note = finish(&mut cat, b"").success();
    assert_eq!(note, "first line\nsecond line\n\n");
    let none = finish(&mut lab.msb(["attach", &kept.name]), b"");
    assert_eq!(none.code, Some(125), "{none:?}");
    assert!(none.stderr.contains("let go of"), "{none:?}");
}

/// Nobody reads what it writes, and it neither waits for that nor is forgotten.
#[test]
fn a_program_that_nobody_listens_to_goes_on_and_its_end_is_kept() {
    let lab = Lab::shared();
    let kept = sandbox(&lab);
    let screen = Screen::open(&lab);
    let script = "echo be''gun; read line; yes | head -c 3000000; echo; echo the end; touch /tmp/done; exit 9";
    screen.enter(&format!(
        "exec -it --detach-keys ctrl-x,d {} -- sh -c \"{script}\"",
        kept.name
    ));
    screen.sees("begun");
    screen.press("Enter");
    screen.press("C-x");
    screen.press("d");
    // It is let go of in the middle of its output, or after it.
    let done = || {
        let mut test = lab.msb(["exec", &kept.name, "--", "test", "-e", "/tmp/done"]);
        finish(&mut test, b"").code == Some(0)
    };
    until("it has written everything", done);
    screen.types("clear; echo at home");
    screen.sees("at home");
    let back = finish(&mut lab.msb(["attach", &kept.name]), b"");
    if back.code == Some(9) {
        assert!(
            back.stdout.ends_with("the end\r\n"),
            "{:?}",
            back.stdout.len()
        );
        assert!(back.stdout.len() <= 256 * 1024, "{}", back.stdout.len());
    } else {
        // It was faster than the keys.
        assert!(back.stderr.contains("let go of"), "{back:?}");
    }
}
