//! A dozen sandboxes at once: nobody is told to come again, and nothing is left of them.

use std::collections::BTreeSet;

use crate::lab::{BUSYBOX, Lab, Run, files, finish, processes, until};

/// How many; `MSB_DOZEN` says another number.
const MANY: usize = 12;

#[test]
fn a_dozen_live_at_once() {
    let many = std::env::var("MSB_DOZEN").map_or(MANY, |many| many.parse().expect("a number"));
    let lab = Lab::own();
    let msb = |args: &[&str]| finish(&mut lab.msb(args), b"");
    // The template is what stays.
    msb(&["run", "-q", "-m", "128M", BUSYBOX, "--", "true"]).success();
    let before = files(lab.home());
    let names: Vec<String> = (0..many)
        .map(|number| format!("one-of-many-{number}"))
        .collect();
    // Each command by as many processes as there are sandboxes.
    let all = |args: &(dyn Fn(&str) -> Vec<String> + Sync)| -> Vec<Run> {
        std::thread::scope(|scope| {
            let run = |name: &str| finish(&mut lab.msb(args(name)), b"");
            let runs: Vec<_> = names
                .iter()
                .map(|name| scope.spawn(move || run(name)))
                .collect();
            runs.into_iter()
                .map(|run| run.join().expect("it ends"))
                .collect()
        })
    };
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let ok = |runs: Vec<Run>| runs.into_iter().map(Run::success).collect::<Vec<_>>();

    ok(all(&|name| {
        words(&format!(
            "create -q -m 128M --disk 64M --name {name} {BUSYBOX}"
        ))
    }));
    let listed = msb(&["ls", "-q"]).success();
    let listed: BTreeSet<&str> = listed.lines().collect();
    assert_eq!(listed, names.iter().map(String::as_str).collect());
    let said = ok(all(&|name| words(&format!("exec {name} -- hostname"))));
    for (said, name) in said.iter().zip(&names) {
        assert_eq!(said.trim(), name);
    }
    // Everybody lists, while others look at one of them.
    ok(all(&|name| words(&format!("inspect {name}"))));
    for list in ok(all(&|_| words("ls"))) {
        assert_eq!(list.matches("running").count(), many, "{list}");
    }
    ok(all(&|name| words(&format!("stop -t 5 {name}"))));
    assert_eq!(msb(&["ls"]).success().matches("stopped").count(), many);
    ok(all(&|name| words(&format!("start {name}"))));
    ok(all(&|name| words(&format!("exec {name} -- true"))));
    ok(all(&|name| words(&format!("rm -f {name}"))));
    until("all processes are gone", || {
        processes(lab.home()).is_empty()
    });
    // Who could not clear up beside others has left a note for whoever comes next.
    msb(&["image", "ls"]).success();
    assert_eq!(files(lab.home()), before);
}
