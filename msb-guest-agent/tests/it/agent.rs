//! The agent's session phase: a real process at the other end of a socket.

mod dial;
mod files;
mod harness;

use harness::{Agent, Run, WithStdin};
use msb_guest_agent::endpoint::INITIAL_WINDOW;
use msb_guest_agent::message::{
    AgentMessage, ExecError, ExecRequest, ExitStatus, HostMessage, ResetCode, Signal,
    StreamCommand, TtySize,
};

fn shell(script: &str) -> ExecRequest {
    exec(&["/bin/sh", "-c", script])
}

fn exec(argv: &[&str]) -> ExecRequest {
    ExecRequest {
        argv: argv.iter().map(|argument| (*argument).into()).collect(),
        ..ExecRequest::default()
    }
}

fn on_terminal(script: &str) -> ExecRequest {
    ExecRequest {
        tty: Some(TtySize { rows: 24, cols: 80 }),
        ..shell(script)
    }
}

#[test]
fn output_and_exit_codes() {
    let mut agent = Agent::start();
    let run = agent.run(shell("echo out; echo err >&2; exit 7"));
    assert_eq!(run, Run::exited(7, "out\n", "err\n"));
    assert_eq!(agent.run(exec(&["true"])), Run::exited(0, "", ""));
    let run = agent.run(shell("kill -9 $$"));
    assert_eq!(
        run.status,
        Ok(ExitStatus::Signal {
            signal: 9,
            core_dumped: false
        })
    );
    assert_eq!(run.status.unwrap().shell_code(), 137);
}

#[test]
fn commands_that_cannot_run_say_why() {
    let mut agent = Agent::start();
    let mut fails = |request| agent.run(request).status.unwrap_err();
    let missing = fails(exec(&["/no/such/program"]));
    assert!(matches!(&missing, ExecError::NotFound { .. }), "{missing}");
    assert_eq!(missing.shell_code(), 127);
    assert!(matches!(
        fails(exec(&["no-such-program"])),
        ExecError::NotFound { .. }
    ));
    assert!(matches!(fails(exec(&[""])), ExecError::NotFound { .. }));
    assert!(matches!(fails(exec(&[])), ExecError::Invalid { .. }));
    assert!(matches!(fails(exec(&["a\0b"])), ExecError::Invalid { .. }));
    for path in ["/etc/passwd", "/etc"] {
        let denied = fails(exec(&[path]));
        assert!(
            matches!(&denied, ExecError::NotExecutable { .. }),
            "{denied}"
        );
        assert_eq!(denied.shell_code(), 126);
    }
    let elsewhere = ExecRequest {
        cwd: Some("/no/such/directory".into()),
        ..exec(&["true"])
    };
    assert!(matches!(fails(elsewhere), ExecError::BadWorkdir { .. }));
    let nobody = ExecRequest {
        user: Some("no-such-user".into()),
        ..exec(&["true"])
    };
    assert!(matches!(fails(nobody), ExecError::BadUser { .. }));
    let text = ExecRequest {
        argv: vec!["/bin/true".into(), vec![b'x'; 1_900_000].into()],
        ..ExecRequest::default()
    };
    assert!(matches!(fails(text), ExecError::Resources { .. }));
}

#[test]
fn directory_environment_and_signals_are_fresh() {
    let mut agent = Agent::start();
    let request = ExecRequest {
        cwd: Some("/usr".into()),
        env: vec!["GREETING=hello you".into(), "PATH=/bin:/usr/bin".into()],
        ..shell("pwd; echo $GREETING; echo $HOSTNAME; ulimit -c >/dev/null; trap")
    };
    assert_eq!(
        agent.run(request),
        Run::exited(0, "/usr\nhello you\nattached\n", "")
    );
    let masks = "grep -E '^Sig(Blk|Ign)' /proc/self/status";
    let run = agent.run(shell(masks));
    let zero = "0000000000000000";
    assert_eq!(
        run.stdout_text(),
        format!("SigBlk:\t{zero}\nSigIgn:\t{zero}\n")
    );
    // The descriptors of these tests, if they were given more than three, but
    // none of the agent's.
    let list = "ls /proc/self/fd | wc -l";
    let here = std::process::Command::new("/bin/sh")
        .args(["-c", list])
        .output()
        .unwrap();
    assert_eq!(agent.run(shell(list)).stdout, here.stdout);
}

#[test]
fn stdin_reaches_the_command_and_ends() {
    let mut agent = Agent::start();
    let cat = ExecRequest {
        stdin: true,
        ..exec(&["cat"])
    };
    let input = vec![b'a'; 3 * INITIAL_WINDOW as usize + 17];
    let run = agent.run_with_input(cat, &input);
    assert_eq!(
        (run.status, run.stdout == input),
        (Ok(ExitStatus::Code(0)), true)
    );
    // A command that does not read does not hold up its input.
    let ignores = ExecRequest {
        stdin: true,
        ..shell("exec <&-; echo closed; sleep 0.1; echo done")
    };
    let run = agent.run_with_input(ignores, &input);
    assert_eq!(run, Run::exited(0, "closed\ndone\n", ""));
    assert_eq!(
        agent.run(exec(&["cat"])),
        Run::exited(0, "", ""),
        "null without stdin"
    );
}

#[test]
fn half_closed_output_is_seen_before_the_end() {
    let mut agent = Agent::start();
    let stream = agent.open(shell("echo first; exec >&-; read never; echo late >&2").with_stdin());
    agent.until(|agent| agent.eof(stream, msb_guest_agent::wire::Channel::Stdout));
    assert!(agent.result(stream).is_none());
    agent.finish(stream);
    let run = agent.finished(stream);
    assert_eq!(run, Run::exited(0, "first\n", "late\n"));
}

#[test]
fn terminals() {
    let mut agent = Agent::start();
    let run = agent.run(on_terminal(
        "tty >/dev/null && stty size && ps -o sid= -p $$ | grep -qw $$ && echo leads",
    ));
    assert_eq!(run.stdout_text(), "24 80\r\nleads\r\n");
    // A new size is announced.
    let stream = agent.open(
        on_terminal("trap 'stty size; exit' WINCH; echo ready; while :; do read x; done")
            .with_stdin(),
    );
    agent.until(|agent| agent.stdout(stream).ends_with(b"ready\r\n"));
    let size = TtySize {
        rows: 50,
        cols: 132,
    };
    agent.command(stream, StreamCommand::Resize(size));
    // Interrupts `read`, so that the shell runs its trap.
    let run = agent.finished(stream);
    assert_eq!(run.stdout_text(), "ready\r\n50 132\r\n");
}

#[test]
fn terminal_input_ends_lines_and_interrupts() {
    let mut agent = Agent::start();
    let run = agent.run_with_input(
        on_terminal("stty -echo; echo go; cat; echo end").with_stdin(),
        b"",
    );
    assert_eq!(run.stdout_text(), "go\r\nend\r\n");
    let stream = agent.open(on_terminal("stty -echo; echo go; cat; echo end").with_stdin());
    agent.until(|agent| agent.stdout(stream).ends_with(b"go\r\n"));
    agent.send(stream, b"no newline");
    agent.finish(stream);
    assert_eq!(
        agent.finished(stream).stdout_text(),
        "go\r\nno newlineend\r\n"
    );
    let stream = agent.open(on_terminal("stty -echo; echo go; exec sleep 1000").with_stdin());
    agent.until(|agent| agent.stdout(stream).ends_with(b"go\r\n"));
    agent.send(stream, &[3]);
    assert_eq!(agent.finished(stream).status.unwrap().shell_code(), 130);
}

#[test]
fn signals_go_to_the_group_or_the_process() {
    let mut agent = Agent::start();
    let waits = "trap 'kill $!; echo caught; exit 3' TERM; echo ready; sleep 1000 & wait $!";
    for group in [true, false] {
        let stream = agent.open(shell(waits));
        agent.until(|agent| agent.stdout(stream) == b"ready\n");
        let signal = Signal::TERM;
        agent.command(stream, StreamCommand::Signal { signal, group });
        // The shell may say on stderr that its `sleep` was terminated, too.
        let run = agent.finished(stream);
        assert_eq!(run.stdout_text(), "ready\ncaught\n");
        assert_eq!(run.status, Ok(ExitStatus::Code(3)));
    }
}

#[test]
fn background_processes_do_not_hold_up_the_end() {
    let mut agent = Agent::start();
    let run = agent.run(shell("sleep 1000 & echo $!"));
    assert_eq!(run.status, Ok(ExitStatus::Code(0)));
    // It outlives its command, as it should; here it ends with the test.
    let sleeper = run.stdout_text();
    let killed = agent.run(exec(&["kill", sleeper.trim()]));
    assert_eq!(killed.status, Ok(ExitStatus::Code(0)), "{sleeper}");
    let run = agent.run(shell("yes & sleep 0.01; exit 4"));
    assert_eq!(
        run.status,
        Ok(ExitStatus::Code(4)),
        "even when they go on writing"
    );
    let run = agent.run(on_terminal("sleep 1000 & echo $!"));
    let sleeper = run.stdout_text();
    // The end of its terminal may have ended it already.
    agent.run(exec(&["kill", sleeper.trim()]));
    assert!(sleeper.trim().parse::<u32>().is_ok(), "{sleeper}");
}

#[test]
fn a_hundred_megabytes_arrive_and_a_slow_reader_stalls_nobody() {
    const SIZE: usize = 100_000_000;
    let mut agent = Agent::start();
    let slow = agent.open(shell(&format!("head -c {SIZE} /dev/zero; echo end >&2")));
    agent.hold(slow);
    agent.until(|agent| agent.stdout(slow).len() == INITIAL_WINDOW as usize);
    // Nothing is consumed, so no more may come, while others run.
    for _ in 0..20 {
        assert_eq!(
            agent.run(shell("echo other")),
            Run::exited(0, "other\n", "")
        );
    }
    assert_eq!(agent.stdout(slow).len(), INITIAL_WINDOW as usize);
    assert!(agent.resident() < 16 * 1024 * 1024);
    agent.release(slow);
    let run = agent.finished(slow);
    assert_eq!(
        (run.status, run.stdout.len()),
        (Ok(ExitStatus::Code(0)), SIZE)
    );
    assert_eq!(run.stderr, b"end\n");
    assert!(agent.resident() < 16 * 1024 * 1024);
}

#[test]
fn ten_thousand_short_commands_leave_nothing() {
    let mut agent = Agent::start();
    agent.run(exec(&["/bin/true"]));
    let (fds, memory) = (agent.descriptors(), agent.resident());
    for _ in 0..100 {
        let streams: Vec<_> = (0..100).map(|_| agent.open(exec(&["/bin/true"]))).collect();
        for stream in streams {
            assert_eq!(agent.finished(stream), Run::exited(0, "", ""));
        }
    }
    assert_eq!(agent.descriptors(), fds);
    assert!(agent.resident() < memory + 4 * 1024 * 1024);
    assert_eq!(agent.children(), 0);
}

#[test]
fn orphans_are_reaped() {
    let mut agent = Agent::start();
    // Each child exits after its parent and becomes the agent's.
    for _ in 0..50 {
        agent.run(shell("(sleep 0.01 &)"));
    }
    agent.run(shell("sleep 0.05"));
    agent.until(|agent| agent.children() == 0);
}

#[test]
fn a_stream_given_up_is_killed() {
    let mut agent = Agent::start();
    let stream = agent.open(shell("echo ready; exec sleep 1000"));
    agent.until(|agent| agent.stdout(stream) == b"ready\n");
    agent.reset(stream, ResetCode::Cancelled);
    agent.ping();
    agent.until(|agent| agent.children() == 0);
}

#[test]
fn sync_and_shutdown_are_answered() {
    let mut agent = Agent::start();
    agent.sync();
    let stubborn = agent.open(shell(
        "trap '' TERM; echo ready; while :; do sleep 1000; done",
    ));
    let polite = agent.open(shell(
        "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.1; done",
    ));
    agent.until(|agent| agent.stdout(stubborn) == b"ready\n" && agent.stdout(polite) == b"ready\n");
    agent.control(&HostMessage::Shutdown { grace_ms: 500 });
    let late = agent.open(exec(&["true"]));
    let run = agent.finished(polite);
    // The shell says on stderr that its `sleep` was terminated, too.
    assert_eq!(
        (run.stdout_text(), run.status),
        ("ready\nbye\n".into(), Ok(ExitStatus::Code(5)))
    );
    assert_eq!(agent.finished(stubborn).status.unwrap().shell_code(), 137);
    agent.until(|agent| agent.was_reset(late) == Some(ResetCode::ShuttingDown));
    assert!(agent.shut_down());
}

#[test]
fn a_host_that_breaks_the_protocol_is_dropped() {
    for garbage in [&[0xff; 64][..], &[6, 0, 0, 0, 0x13, 9, 0, 0, 0, 0]] {
        let mut agent = Agent::start();
        agent.write_raw(garbage);
        assert!(!agent.wait().success());
    }
}

/// All of it is read at once: nothing is answered before its turn, and nothing is left lying.
#[test]
fn what_is_said_behind_the_wish_to_hold_everybody_is_heard_after_it() {
    let mut agent = Agent::start();
    // Which only PID 1 of a guest can do.
    let ping = HostMessage::Ping { token: 7 };
    let answers = agent.exchange(&[HostMessage::Freeze, ping, HostMessage::Thaw]);
    let [AgentMessage::Failed(_), pong, thawed] = &answers[..] else {
        panic!("{answers:?}");
    };
    assert_eq!(*pong, AgentMessage::Pong { token: 7 });
    assert_eq!(*thawed, AgentMessage::Thawed);
}
