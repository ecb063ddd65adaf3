//! Two people who use the same sandboxes at once, while processes are killed at random: every
//! command ends and says what it means, everything works afterwards, and nothing is left.
//!
//! What is chosen follows from a seed, which is printed; when things happen does not.
//! `MSB_STRESS_SEED` says another one, `MSB_STRESS_STEPS` how many commands each person types.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use crate::lab::{BUSYBOX, Lab, PANIC, files, finish, processes, signal, text, until, wait};

/// Commands that each person types.
const STEPS: u64 = 25;

/// Few, so that both mean the same one often.
const NAMES: [&str; 3] = ["one", "two", "three"];

/// Numbers that follow from a seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn one_of<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[usize::try_from(self.below(of.len() as u64)).expect("an index")]
    }
}

/// How a command that was not killed may end.
#[derive(Clone, Copy, PartialEq)]
enum Ends {
    /// Well, or with a failure of msb's own.
    Told,
    /// Or as the program in the sandbox does, which may be killed with it.
    AsProgram,
}

/// What is typed; `{}` is the name of a sandbox, `%` the folder of whoever types.
const COMMANDS: [(&str, Ends); 22] = [
    ("create -q -m 128M --disk 64M --name {} busybox", Ends::Told),
    ("create -q -m 128M --disk 64M --name {} busybox", Ends::Told),
    (
        "run -q -m 128M --disk 64M --name {} -d busybox -- sleep 1000",
        Ends::Told,
    ),
    (
        "run -q -m 128M --name {} --rm busybox -- echo ran",
        Ends::AsProgram,
    ),
    ("run -q -m 128M busybox -- echo ran", Ends::AsProgram),
    ("exec {} -- echo ran", Ends::AsProgram),
    ("exec {} -- sleep 1", Ends::AsProgram),
    ("exec {} -- dd if=/dev/zero bs=1M count=20", Ends::AsProgram),
    ("start {}", Ends::Told),
    ("start {}", Ends::Told),
    ("stop -t 0 {}", Ends::Told),
    ("stop -t 1 {}", Ends::Told),
    ("restart -t 0 {}", Ends::Told),
    ("kill {}", Ends::Told),
    ("rm {}", Ends::Told),
    ("rm -f {}", Ends::Told),
    ("ls", Ends::Told),
    ("inspect {}", Ends::Told),
    ("logs {}", Ends::Told),
    ("metrics {}", Ends::Told),
    ("cp %/tree {}:/tmp", Ends::Told),
    ("cp {}:/etc %/etc", Ends::Told),
];

/// Words that no message of a command has: what is behind them is somebody else's doing, and
/// is to be told as that.
const NEVER: [&str; 6] = [
    "panicked at",
    "os error",
    "damaged",
    "makes no sense",
    "broke the protocol",
    "No such file",
];

struct Storm<'a> {
    lab: &'a Lab,
    seed: u64,
    /// What commands have said, and how often.
    said: Mutex<BTreeMap<String, usize>>,
    over: AtomicBool,
}

impl Storm<'_> {
    /// Somebody types commands.
    fn person(&self, number: u64, steps: u64) {
        let mut dice = Dice(self.seed.wrapping_add(number));
        let folder = tempfile::tempdir().expect("tempdir");
        fs::create_dir(folder.path().join("tree")).expect("a folder");
        fs::write(folder.path().join("tree/file"), [1; 100_000]).expect("a file");
        for _ in 0..steps {
            let name = dice.one_of(&NAMES);
            let (line, ends) =
                COMMANDS[usize::try_from(dice.below(COMMANDS.len() as u64)).expect("an index")];
            let killed_after = (dice.below(6) == 0).then(|| Duration::from_millis(dice.below(600)));
            self.types(line, name, folder.path(), killed_after, ends);
        }
    }

    fn types(
        &self,
        line: &str,
        name: &str,
        folder: &Path,
        killed_after: Option<Duration>,
        ends: Ends,
    ) {
        let words = line.split(' ').map(|word| {
            let word = if word == "busybox" { BUSYBOX } else { word };
            word.replace("{}", name)
                .replace('%', &folder.display().to_string())
        });
        let child = self
            .lab
            .msb(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("spawn");
        if let Some(after) = killed_after {
            std::thread::sleep(after);
            signal(child.id(), "KILL");
        }
        let output = wait(child);
        let stderr = text(&output.stderr);
        let told = format!("{line}: {:?} {stderr}", output.status.code());
        *self
            .said
            .lock()
            .expect("no panic")
            .entry(told.clone())
            .or_default() += 1;
        for word in NEVER {
            assert!(!stderr.contains(word), "seed {}: {name}: {told}", self.seed);
        }
        match output.status.code() {
            Some(0) if line.ends_with("echo ran") => assert_eq!(text(&output.stdout), "ran\n"),
            Some(0) => {}
            Some(125) => assert!(stderr.starts_with("msb: "), "seed {}: {told}", self.seed),
            // A program that was killed as its sandbox was stopped.
            Some(137 | 143) if ends == Ends::AsProgram => {}
            None if killed_after.is_some() && output.status.signal() == Some(9) => {}
            _ => panic!("seed {}: {name}: {told}", self.seed),
        }
    }

    /// Somebody kills what runs, until the storm is over.
    fn killer(&self) {
        let mut dice = Dice(!self.seed);
        while !self.over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(200 + dice.below(800)));
            let name = dice.one_of(&NAMES);
            let how = dice.below(3);
            if how == 2 {
                // A program in it that is killed with it is a failure of that.
                let options = ["exec", "--timeout", "10s", name, "--", "sh", "-c", PANIC];
                finish(&mut self.lab.msb(options), b"");
                continue;
            }
            let key = ["supervisor_pid", "vmm_pid"][usize::try_from(how).expect("0 or 1")];
            let told = finish(&mut self.lab.msb(["inspect", name]), b"");
            let told: serde_json::Value = serde_json::from_str(&told.stdout).unwrap_or_default();
            // Its number may be another's by now.
            let pid = told[0][key].as_u64().unwrap_or(0);
            let is_ours = |line: &String| line.split(':').next() == Some(&*pid.to_string());
            if processes(self.lab.home()).iter().any(is_ours) {
                signal(u32::try_from(pid).expect("a process id"), "KILL");
            }
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

#[test]
fn two_people_and_a_killer() {
    let lab = Lab::own();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"");
    // Everything that stays is there afterwards: templates, and what is known of the host.
    msb(&["run", "-q", "-m", "128M", BUSYBOX, "--", "true"]).success();
    whole_life(&lab, NAMES[0]);
    let before = files(lab.home());

    let seed = number("MSB_STRESS_SEED").unwrap_or(1);
    let steps = number("MSB_STRESS_STEPS").unwrap_or(STEPS);
    println!("MSB_STRESS_SEED={seed}");
    let storm = Storm {
        lab: &lab,
        seed,
        said: Mutex::default(),
        over: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| storm.killer());
        let people = [1, 2].map(|person| {
            scope.spawn({
                let storm = &storm;
                move || storm.person(person, steps)
            })
        });
        let ended = people.map(ScopedJoinHandle::join);
        storm.over.store(true, Ordering::Relaxed);
        killer.join().expect("the killer");
        for (said, count) in &*storm.said.lock().unwrap_or_else(PoisonError::into_inner) {
            println!("{count:4} {said}");
        }
        for ended in ended {
            ended.expect("a person saw what must not be");
        }
    });

    for name in NAMES {
        let removed = msb(&["rm", "-f", name]);
        let none = removed.stderr.contains("there is no sandbox");
        assert!(removed.code == Some(0) || none, "seed {seed}: {removed:?}");
        whole_life(&lab, name);
    }
    assert!(msb(&["ls", "-q"]).success().is_empty());
    until("all processes are gone", || {
        processes(lab.home()).is_empty()
    });
    assert_eq!(files(lab.home()), before, "seed {seed}: files are left");
    let mounts = fs::read_to_string("/proc/mounts").expect("mounts");
    assert!(
        !mounts.contains(&lab.home().display().to_string()),
        "{mounts}"
    );
}

/// Every command works, each at its first attempt.
fn whole_life(lab: &Lab, name: &str) {
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"").success();
    let folder = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::write(at("in"), "in and out").expect("a file");
    msb(&[
        "create", "-q", "-m", "128M", "--disk", "64M", "--name", name, BUSYBOX,
    ]);
    assert_eq!(msb(&["exec", name, "--", "echo", "ran"]), "ran\n");
    msb(&["cp", &at("in"), &format!("{name}:/kept")]);
    msb(&["stop", "-t", "0", name]);
    assert!(msb(&["ls"]).contains("stopped"));
    msb(&["start", name]);
    msb(&["cp", &format!("{name}:/kept"), &at("out")]);
    assert_eq!(fs::read_to_string(at("out")).expect("a file"), "in and out");
    msb(&["restart", "-t", "0", name]);
    for command in ["inspect", "logs", "metrics"] {
        msb(&[command, name]);
    }
    msb(&["kill", name]);
    msb(&["rm", name]);
}
