//! The SDK from outside, on real microVMs.
//!
//! The program has a main of its own, because a sandbox's supervisor is the embedding program
//! started again: the hook comes before the tests. It speaks as much of the usual test
//! program's command line as cargo and nextest use.

#[cfg(feature = "blocking")]
mod blocking;
mod cycles;
mod embedding;
mod exec;
mod files;
mod forks;
mod guide;
mod lab;
mod memory;
mod patches;
mod program;
mod readme;
mod sessions;
mod takeover;
mod trees;
mod watching;
#[path = "../../examples/worker.rs"]
mod worker;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// A test and its name.
type Test = (&'static str, fn());

/// Lists the tests of a module by their names.
macro_rules! tests {
    ($($(#[$when:meta])? $module:ident: $($name:ident),+;)+) => {
        const TESTS: &[&[Test]] = &[$(
            $(#[$when])?
            &[$((
                concat!(stringify!($module), "::", stringify!($name)),
                || lab::run($module::$name),
            )),+],
        )+];
    };
}

tests! {
    #[cfg(feature = "blocking")]
    blocking: the_same_names_wait, sandboxes_live_on;
    cycles: nothing_is_left_of_those_that_have_ended;
    embedding: a_program_outside_of_the_workspace_needs_no_msb;
    exec: programs_have_input_limits_and_time, a_realtime_task_leaves_the_rest_some_time,
        a_shell_is_the_images;
    files: content_goes_up_and_down, a_gigabyte_streams_both_ways, a_hundred_thousand_entries,
        operations_and_their_faults, users_have_their_rights, a_full_disk_is_told;
    forks: forks_go_on_as_others, connections_are_the_first_ones,
        a_fork_in_the_middle_of_a_transfer_is_another_one,
        a_connection_to_the_outside_stays_the_first_ones,
        a_snapshot_is_gone_on_from_as_often_as_needed, a_paused_sandbox_waits,
        an_engine_that_cannot_says_so, a_supervisor_killed_while_it_forks_leaves_nothing,
        the_guide_to_snapshots_holds;
    guide: the_guide_to_files_holds;
    memory: what_the_guest_frees_goes_back_to_the_host, a_guest_has_what_it_was_given_and_no_more;
    patches: patches_and_scripts_come_first, a_patch_that_fails_is_named;
    program: the_program_that_people_write, the_example_runs_as_it_stands;
    readme: the_examples_of_the_readmes_run;
    sessions: a_program_goes_on_while_nobody_listens, memory_that_ran_out_is_an_error_of_its_own;
    takeover: what_it_says_of_trouble_is_checked, bytes_that_are_no_frames_end_it;
    trees: a_tree_goes_in_and_comes_out, a_hostile_tree_stays_in_its_place,
        a_copy_that_is_too_large_is_removed;
    watching: a_load_changes_the_figures, a_paused_sandbox_has_the_hosts_figures_only,
        a_life_is_told_of;
}

fn main() -> ExitCode {
    msb_sdk::supervisor_hook();
    if std::env::var_os(program::WORKER).is_some() {
        return match worker::main() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => panic!("{error}"),
        };
    }
    if std::env::var_os(readme::README).is_some() {
        return match readme::main() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => panic!("{error:?}"),
        };
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let ignored = has("--ignored");
    if has("--list") {
        for (name, _) in TESTS.iter().copied().flatten().filter(|_| !ignored) {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let exact = has("--exact");
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |name: &str| {
        filters.is_empty()
            || filters.iter().any(|filter| {
                if exact {
                    name == *filter
                } else {
                    name.contains(*filter)
                }
            })
    };
    let mut failed = 0;
    for (name, test) in TESTS
        .iter()
        .copied()
        .flatten()
        .filter(|(name, _)| wanted(name) && !ignored)
    {
        // The panic's own message has been printed.
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    if failed > 0 {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
