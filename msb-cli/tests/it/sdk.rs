//! The SDK in a program of its own, with `msb` on its `PATH` as the supervisor.
//!
//! A test's process has another environment than the one that sandboxes need, and cannot
//! change it. So each test starts itself again with what is needed, and does its work there.

use std::future::Future;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use msb_sdk::{Error, ExecEvent, ExecOptions, PortProtocol, PublishedPort, Sandbox};

use crate::lab::{BUSYBOX, Lab, finish};

/// Set where the work is done.
const INSIDE: &str = "MSB_TEST_INSIDE";

/// Does the work of the test `name`, in a process whose environment is right for it.
fn embedded<F: Future<Output = ()>>(name: &str, work: impl FnOnce() -> F) {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        return runtime.expect("a runtime").block_on(work());
    }
    let lab = Lab::shared();
    let msb = Path::new(env!("CARGO_BIN_EXE_msb"));
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    command
        .args(["--exact", name])
        .env(INSIDE, "1")
        .env("PATH", msb.parent().expect("a folder"))
        .env("MSB_HOME", lab.home());
    let run = finish(&mut command, b"");
    assert!(run.stdout.contains("1 passed"), "it ran: {run:?}");
    run.success();
}

fn get(place: SocketAddr) -> std::io::Result<String> {
    let mut client = TcpStream::connect(place)?;
    client.write_all(b"GET /word HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The same where the guest's frames need this thread's runtime.
async fn fetch(place: SocketAddr) -> std::io::Result<String> {
    let got = tokio::task::spawn_blocking(move || get(place));
    got.await.expect("it does not panic")
}

/// A sandbox whose port 80 is served, on all its addresses. The server has a session of
/// its own from the start: its program is ended when its handle goes.
async fn serving(name: &str) -> Sandbox {
    let name = format!("{name}-{}", std::process::id());
    let sandbox = Sandbox::builder(name).image(BUSYBOX).create().await;
    let sandbox = sandbox.expect("a sandbox");
    let script = "mkdir /www; echo served > /www/word; setsid busybox httpd -p 80 -h /www; echo up";
    let options = ExecOptions::new("sh", ["-c", script]);
    let mut server = sandbox.exec_with(options).await.expect("a program");
    loop {
        match server.recv().await {
            Some(ExecEvent::Stdout(_)) => return sandbox,
            Some(_) => {}
            None => panic!("it serves before it ends"),
        }
    }
}

#[test]
fn ports_come_and_go_while_a_sandbox_runs() {
    embedded("sdk::ports_come_and_go_while_a_sandbox_runs", || async {
        let sandbox = serving("ports").await;
        assert_eq!(sandbox.ports().await.expect("a list"), []);

        let published = sandbox.publish("0:80").await.expect("a port");
        let [port] = published[..] else {
            panic!("{published:?}")
        };
        assert!(port.host.ip().is_loopback() && port.host.port() != 0);
        assert_eq!((port.guest, port.protocol), (80, PortProtocol::Tcp));
        let answer = fetch(port.host).await.expect("it is served");
        assert!(answer.ends_with("\r\n\r\nserved\n"), "{answer}");

        let again = format!("{}:81", port.host.port());
        let taken = sandbox.publish(&again).await.expect_err("it is taken");
        assert!(matches!(taken, Error::PortTaken { host } if host == port.host));
        let nonsense = sandbox.publish("80:80/sctp").await;
        assert!(matches!(nonsense, Err(Error::Network(_))), "{nonsense:?}");

        // The host's IPv6 address; and questions that are asked at once.
        let (six, many) = tokio::join!(sandbox.publish("[::1]:0:80"), sandbox.publish("0:1-3/udp"));
        let (six, many) = (six.expect("a port"), many.expect("ports"));
        assert_eq!((six.len(), many.len()), (1, 3));
        assert!(six[0].host.is_ipv6() && many[2].guest == 3);
        let answer = fetch(six[0].host).await.expect("it is served");
        assert!(answer.ends_with("served\n"), "{answer}");
        let all: Vec<PublishedPort> = [&published[..], &six, &many].concat();
        assert_eq!(sandbox.ports().await.expect("a list"), all);

        sandbox.unpublish(&port).await.expect("it was published");
        let refused = fetch(port.host).await.expect_err("nobody listens");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let twice = sandbox.unpublish(&port).await;
        assert!(matches!(twice, Err(Error::NotPublished { port: p }) if p == port));
        assert_eq!(sandbox.ports().await.expect("a list"), all[1..]);
        sandbox.kill().await.expect("it ends");
    });
}

#[test]
fn more_ports_than_there_may_be_are_refused() {
    embedded("sdk::more_ports_than_there_may_be_are_refused", || async {
        let name = format!("many-{}", std::process::id());
        let builder = Sandbox::builder(&name).image(BUSYBOX);
        let most = builder.clone().publish("0:1-900").publish("0:1-200");
        let refused = most.create().await;
        assert!(matches!(refused, Err(Error::TooManyPorts { .. })));
        let sandbox = builder.create().await.expect("a sandbox");
        let refused = sandbox.publish("0:1-900").await.map(|ports| ports.len());
        assert_eq!(refused.expect("they fit"), 900);
        let refused = sandbox.publish("0:1-200").await;
        assert!(matches!(refused, Err(Error::TooManyPorts { .. })));
        sandbox.kill().await.expect("it ends");
    });
}
