//! The command lines of the manual that people bring along, typed as they stand. What means
//! something else here is in `DIFFERENT`, with what is said about it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::lab::{Lab, Registry, Run, finish};

/// Lines in their order, and what each has to print somewhere. `REGISTRY` is one on loopback,
/// `python` a Debian with Python, and the other images are small ones.
const TYPED: &[(&str, &str)] = &[
    // A program.
    (
        "msb run python -- python3 -c \"print('Hello from a microVM!')\"",
        "Hello from a microVM!\n",
    ),
    ("echo exit | msb run debian", ""),
    ("echo 'echo in $0' | msb run alpine -- sh", "in sh\n"),
    ("msb run alpine --no-net -- echo air gap", "air gap\n"),
    ("msb run alpine --memory 256M --cpus 1 true", ""),
    // Sandboxes with names.
    (
        "msb run --name devbox python -- bash -c 'echo kept > /note'",
        "",
    ),
    ("msb ps devbox", "stopped"),
    ("msb start devbox", "devbox\n"),
    ("msb exec devbox -- cat /note", "kept\n"),
    (
        "msb exec devbox -- sh -c \"ls / && echo \\\"Hello from devbox\\\"\"",
        "Hello from devbox\n",
    ),
    ("msb exec devbox -- ln -s python3 /usr/bin/python", ""),
    (
        "msb exec devbox -- python -c \"import this\"",
        "Beautiful is better",
    ),
    ("msb exec devbox -- ls -la /tmp", "total"),
    (
        "msb exec -e DEBUG=true -w /tmp -u nobody devbox -- sh -c 'pwd; id -un; echo $DEBUG'",
        "/tmp\nnobody\ntrue\n",
    ),
    (
        "msb exec --timeout 30s --rlimit nofile=1024 -q --no-tty devbox -- sh -c 'ulimit -n'",
        "1024\n",
    ),
    (
        "echo 'echo shell $((6 * 7))' | msb shell devbox",
        "shell 42\n",
    ),
    ("msb shell devbox -- 'cd /etc && pwd'", "/etc\n"),
    (
        "echo local > local.txt; msb copy ./local.txt devbox:/tmp/local.txt",
        "",
    ),
    (
        "msb cp devbox:/tmp/local.txt ./out.txt; cat out.txt",
        "local\n",
    ),
    ("msb create --name my-app python", "my-app\n"),
    (
        "msb run --name api --port 0:8000 -e DEBUG=true -w /tmp -d python -- python3 -m http.server",
        "api\n",
    ),
    ("msb run -d --name worker python", "worker\n"),
    ("msb exec worker -- python3 -c 'print(1)'", "1\n"),
    // What there is of them.
    ("msb ls", "my-app"),
    ("msb ls --running", "worker"),
    ("msb ls --stopped", "NAME"),
    ("msb ls --format json", "\"name\":\"devbox\""),
    ("msb ls -q", "devbox\n"),
    ("msb ps", "worker"),
    ("msb ps my-app", "running"),
    ("msb status my-app", "running"),
    ("msb ps -a", "devbox"),
    ("msb ps --format json", "\"running\""),
    ("msb inspect my-app", "\"status\": \"running\""),
    ("msb inspect devbox --format json", "\"name\": \"devbox\""),
    ("msb metrics", "worker"),
    ("msb metrics my-app", "my-app"),
    ("msb metrics --format json", "\"cpu_percent\""),
    ("msb metrics -w my-app | head -n 1", "NAME"),
    ("msb events --since 1h --for 1s", "my-app created"),
    ("msb logs api", ""),
    ("msb logs worker --tail 100", ""),
    // Ends and beginnings.
    ("msb stop devbox", "devbox\n"),
    ("msb logs devbox -f", ""),
    ("msb start devbox", "devbox\n"),
    ("msb stop --force devbox", "devbox\n"),
    ("msb start -q devbox; msb stop -t 30 devbox", "devbox\n"),
    ("msb restart devbox", "devbox\n"),
    ("msb restart api worker", "api\nworker\n"),
    ("msb restart --force devbox", "devbox\n"),
    ("msb restart -t 30 devbox", "devbox\n"),
    ("msb create --replace python --name worker", "worker\n"),
    (
        "msb create --replace-with-timeout 30s python --name worker -c 2 -m 1G",
        "worker\n",
    ),
    (
        "msb create --replace-with-timeout 0 python --name worker",
        "worker\n",
    ),
    ("msb stop my-app && msb rm my-app", "my-app\n"),
    ("msb rm --force devbox", "devbox\n"),
    ("msb rm -f worker api", "worker\napi\n"),
    // Images.
    ("msb pull REGISTRY/python", "sha256:"),
    ("msb pull -q REGISTRY/python", ""),
    ("msb image ls", "REGISTRY/python"),
    ("msb images", "alpine"),
    ("msb image ls --format json", "\"digest\""),
    ("msb image ls -q", "docker.io/library/python:latest\n"),
    ("msb image inspect python", "\"digest\""),
    ("msb image inspect python --format json", "\"layers\""),
    ("msb image save -o images.tar REGISTRY/python", ""),
    ("msb image rm REGISTRY/python", "removed"),
    ("msb image load -i images.tar", "REGISTRY/python"),
    ("msb rmi REGISTRY/python", "removed"),
    ("msb image prune --dry-run", "frees"),
    // Commands.
    ("msb install ubuntu", "/ubuntu\n"),
    ("echo 'echo in a $0' | ubuntu", "in a sh"),
    ("msb install --name nodebox node", "/nodebox\n"),
    ("msb install --tmp alpine", "/alpine\n"),
    ("alpine echo fresh", "fresh\n"),
    ("msb install -c 2 -m 1G python", "/python\n"),
    ("msb install --list", "nodebox"),
    ("msb uninstall nodebox", "nodebox\n"),
    ("msb uninstall ubuntu alpine", "ubuntu\nalpine\n"),
    // Itself.
    ("msb --version", "msb"),
    ("msb --help", "Examples:"),
    ("msb --tree", "--replace-with-timeout"),
    ("msb image --tree", "prune"),
    ("msb run --tree", "--no-net"),
    ("msb doctor", "isolation: "),
    ("msb self doctor", "isolation: "),
    ("msb self check", "isolation: "),
    ("msb schema", "\"memory_mib\""),
    ("msb completion bash", "_msb"),
    ("msb completion zsh", "#compdef msb"),
    ("msb completion fish", "complete -c msb"),
    ("msb completion elvish", "edit:completion"),
    ("msb completion powershell", "Register-ArgumentCompleter"),
    ("msb self uninstall --yes", "bin/msb"),
];

/// Lines that fail, and what is said about what to do instead.
const DIFFERENT: &[(&str, &str)] = &[
    // Its output is a pipe's: the copy would go through this host and lose owners on its way.
    (
        "msb copy app:/tmp/a app:/tmp/b",
        "msb exec app -- cp -a /tmp/a /tmp/b",
    ),
    (
        "msb copy app:/tmp/a other:/tmp",
        "msb exec app -- tar -c /tmp/a | msb exec other",
    ),
    // As container tools have it: what runs is not removed in passing.
    ("msb rm app", "msb rm -f app"),
    // One grammar for the command line, policy files and explanations.
    (
        "msb run alpine --net none --net-rule allow@github.com",
        "\"allow api.github.com\"",
    ),
    // Misspelt after the image's name, too.
    ("msb run alpine --memroy 1G", "--memory"),
];

/// A shell with `msb` and its commands on its path.
struct Typist {
    lab: Lab,
    folder: tempfile::TempDir,
}

impl Typist {
    fn new(images: &[(&str, &str)]) -> Self {
        let lab = Lab::empty();
        for (layout, name) in images {
            lab.import(layout, &format!("docker.io/library/{name}:latest"));
        }
        let folder = tempfile::tempdir().expect("a folder");
        let bin = folder.path().join("bin");
        fs::create_dir(&bin).expect("a folder");
        // One of its own, which may remove itself.
        fs::copy(env!("CARGO_BIN_EXE_msb"), bin.join("msb")).expect("a copy");
        fs::set_permissions(bin.join("msb"), fs::Permissions::from_mode(0o755)).expect("mode");
        Self { lab, folder }
    }

    fn types(&self, line: &str) -> Run {
        let bin = self.folder.path().join("bin");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = [bin.clone()]
            .into_iter()
            .chain(std::env::split_paths(&path));
        let mut shell = Command::new("sh");
        for (key, value) in self.lab.msb::<&str>([]).get_envs() {
            shell.env(key, value.expect("set"));
        }
        shell
            .args(["-c", line])
            .current_dir(self.folder.path())
            .env("PATH", std::env::join_paths(path).expect("a path"))
            .env("MSB_BIN", bin);
        finish(&mut shell, b"")
    }
}

#[test]
fn lines_of_the_manual_do_what_they_say() {
    let small = ["alpine", "debian", "node", "ubuntu"].map(|name| ("busybox", name));
    let typist = Typist::new(&[&[("python", "python")][..], &small].concat());
    let registry = Registry::start();
    let pushed = registry.push("python", "python");
    let place = pushed.strip_suffix("/python").expect("a place");
    for (line, told) in TYPED {
        let line = line.replace("REGISTRY", place);
        let run = typist.types(&line);
        assert_eq!(run.code, Some(0), "{line}: {run:?}");
        let told = told.replace("REGISTRY", place);
        assert!(run.stdout.contains(&told), "{line}: {run:?}");
    }
    assert!(!Path::new(typist.lab.home()).join("sandboxes").exists());
}

#[test]
fn lines_that_mean_something_else_here_say_what_to_type() {
    let typist = Typist::new(&[("busybox", "alpine")]);
    assert_eq!(
        typist.types("msb create -q --name app alpine").success(),
        "app\n"
    );
    for (line, told) in DIFFERENT {
        let run = typist.types(line);
        assert_eq!(run.code, Some(125), "{line}: {run:?}");
        assert!(run.stderr.contains(told), "{line}: {run:?}");
    }
    typist.types("msb rm -f app").success();
}

/// What is replaced goes only when what comes instead can be made.
#[test]
fn a_sandbox_is_not_removed_for_one_that_cannot_be() {
    let typist = Typist::new(&[("busybox", "alpine")]);
    typist.types("msb create -q --name app alpine").success();
    for line in [
        "msb create --replace --pull never none --name app",
        "msb create --replace alpine --name app -w relative",
        "msb run --replace alpine --name app -it",
        "msb run --replace alpine --name app --net-log /nonexistent/log true",
        "msb run --replace alpine --name app -d -- printf \"$(printf '\\377')\"",
        "msb create --replace alpine",
    ] {
        let run = typist.types(line);
        assert_eq!(run.code, Some(125), "{line}: {run:?}");
        assert!(
            typist.types("msb ps -q app").success().contains("app"),
            "{line}"
        );
    }
    typist.types("msb rm -f app").success();
}
