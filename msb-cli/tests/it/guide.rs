//! The guides: what they show is typed, and has to say what they say.

use std::path::Path;

use crate::lab::{BUSYBOX, Lab, PYTHON, finish};

/// The words of a command line, in which only double quotes are special.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for letter in line.chars() {
        match letter {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            _ => words.last_mut().expect("a word").push(letter),
        }
    }
    words
}

/// The blocks of a guide in some language.
fn blocks<'a>(guide: &'a str, language: &str) -> Vec<&'a str> {
    let begin = format!("```{language}\n");
    let blocks = guide.split(&begin).skip(1);
    blocks
        .map(|block| block.split("\n```").next().expect("an end"))
        .collect()
}

/// Types the sessions of a guide in an empty home, with `folder` as the working folder and
/// that of commands.
fn run(guide: &str, folder: &Path) {
    let lab = Lab::own();
    let sessions = blocks(guide, "console");
    assert!(!sessions.is_empty());
    for session in sessions {
        let session = session.strip_prefix("$ ").expect("a console");
        for step in session.split("\n$ ") {
            let (line, output) = step.split_once('\n').unwrap_or((step, ""));
            type_line(&lab, folder, line, output.trim_end());
        }
    }
    assert_eq!(lab.sandboxes(), [""; 0]);
}

/// Whether a text is as a guide shows it, where `…` stands for anything.
fn is_like(text: &str, shown: &str) -> bool {
    let mut parts = shown.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// A line that ends in `# fails` has to, with the output on standard error.
fn type_line(lab: &Lab, folder: &Path, line: &str, output: &str) {
    let (line, fails) = match line.strip_suffix(" # fails") {
        Some(line) => (line, true),
        None => (line, false),
    };
    let mut words = words(line);
    let program = words.remove(0);
    for word in words.iter_mut().filter(|word| *word == "busybox") {
        *word = BUSYBOX.to_owned();
    }
    let mut command = lab.msb(&words);
    if program != "msb" {
        let mut other = std::process::Command::new(folder.join(program));
        other.args(&words);
        for (key, value) in command.get_envs() {
            other.env(key, value.expect("set"));
        }
        command = other;
    }
    command.current_dir(folder).env("MSB_BIN", folder);
    let ended = finish(&mut command, b"");
    assert_eq!(ended.code != Some(0), fails, "{line}: {ended:?}");
    let said = if fails { &ended.stderr } else { &ended.stdout };
    let said = said.replace(&folder.display().to_string(), "~/.local/bin");
    assert!(is_like(said.trim_end(), output), "{line}: {ended:?}");
}

#[test]
fn sandboxes_that_live_on() {
    let dir = tempfile::tempdir().expect("a folder");
    run(include_str!("../../../docs/life.md"), dir.path());
}

#[test]
fn first_steps() {
    let guide = include_str!("../../../docs/getting-started.md");
    let dir = tempfile::tempdir().expect("a folder");
    let file = blocks(guide, "yaml").remove(0).replace("busybox", BUSYBOX);
    std::fs::write(dir.path().join("sandbox.yaml"), file).expect("a file");
    std::fs::write(
        dir.path().join("sandbox-with-a-typo.yaml"),
        "image: busybox\nmemmory_mib: 512\n",
    )
    .expect("a file");
    run(guide, dir.path());
}

/// Lines that a shell reads, with comments and files, and whose programs need not be there: each
/// in a network of its own, where its ports are free, and without a way out of it.
#[test]
fn lines_for_a_shell() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root may make networks");
        return;
    }
    let lab = Lab::own();
    for name in [
        PYTHON,
        "debian",
        "python:3.12",
        "localhost:5000/python:3.11",
    ] {
        lab.import("python", name);
    }
    let dir = tempfile::tempdir().expect("a folder");
    let files = [
        (
            "FILE",
            "preset none\nallow tcp 443 198.51.100.0/24\nexpect deny dns a.example\n",
        ),
        ("token", "a value that is long enough\n"),
        ("index.html", "a page\n"),
        (
            "sandbox.yaml",
            "image: debian\ncommand: [cat, /etc/hostname]\n",
        ),
    ];
    for (name, content) in files {
        std::fs::write(dir.path().join(name), content).expect("a file");
    }
    // In the last one programs fail: they are not in the image.
    let guides = [
        (include_str!("../../../README.md"), PYTHON, 0),
        (include_str!("../../README.md"), PYTHON, 0),
        (include_str!("../../../docs/network.md"), BUSYBOX, 0),
        (include_str!("../../../docs/secrets.md"), PYTHON, 127),
    ];
    for (guide, image, most) in guides {
        let lines = blocks(guide, "console").into_iter().flat_map(str::lines);
        let lines: Vec<&str> = lines.filter(|line| line.starts_with("$ msb ")).collect();
        assert!(!lines.is_empty());
        for line in lines {
            // What the small image has no name of its own for.
            let line = line[2..].replace("-- wget", "-- busybox wget");
            let line = line.replace("IMAGE", image);
            let ended = finish(&mut in_a_network(&lab, dir.path(), &line), b"");
            let code = ended.code.unwrap_or(-1);
            assert!(
                (0..=most).contains(&code) && code != 125,
                "{line}: {ended:?}"
            );
        }
    }
    finish(&mut lab.msb(["rm", "-f", "app"]), b"").success();
    assert_eq!(lab.sandboxes(), [""; 0]);
}

/// A line in a network that has nothing but a service of the host.
fn in_a_network(lab: &Lab, folder: &Path, line: &str) -> std::process::Command {
    let msb = lab.msb::<&str>([]);
    let script = r#"
        msb() { "$MSB" "$@"; }
        ip link set lo up
        case $LINE in
            *host.msb.internal:8080*) busybox httpd -f -p 127.0.0.1:8080 & service=$! ;;
        esac
        eval "$LINE"
        code=$?
        test -z "$service" || kill $service
        exit $code
    "#;
    let mut command = std::process::Command::new("unshare");
    for (key, value) in msb.get_envs() {
        command.env(key, value.expect("set"));
    }
    command
        .args(["--net", "sh", "-c", script])
        .current_dir(folder)
        .env("MSB", msb.get_program())
        .env("LINE", line)
        .env("MSB_BIN", folder.join("bin"))
        .env("OPENAI_API_KEY", "a value that is long enough");
    command
}

#[test]
fn what_is_shown_may_leave_something_out() {
    for (text, shown, like) in [
        ("a b c", "a b c", true),
        ("a b c", "a b", false),
        ("a b c", "a … c", true),
        ("a b c", "… b …", true),
        ("a b c", "a …", true),
        ("a b c", "… d …", false),
        ("ac", "a…ac", false),
    ] {
        assert_eq!(is_like(text, shown), like, "{text:?} {shown:?}");
    }
}

#[test]
fn images() {
    let dir = tempfile::tempdir().expect("a folder");
    run(include_str!("../../../docs/images.md"), dir.path());
}

#[test]
fn security() {
    let dir = tempfile::tempdir().expect("a folder");
    run(include_str!("../../../docs/security.md"), dir.path());
}

/// The program of the guide is the example, which a test of the SDK builds and runs.
#[test]
fn embedding() {
    let guide = include_str!("../../../docs/embedding.md");
    let example = include_str!("../../../examples/embed/src/main.rs");
    let manifest = include_str!("../../../examples/embed/Cargo.toml");
    assert_eq!(blocks(guide, "rust"), [example.trim_end()]);
    for block in blocks(guide, "toml") {
        assert!(manifest.contains(block.trim_end()), "{block}");
    }
}
