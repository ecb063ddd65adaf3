//! Properties that must hold for any input; each function panics where one does not.

use std::time::Duration;

use crate::claim::{Claimed, examine};
use crate::gateway::{Action, Config, Gateway};
use crate::policy::{Document, Policy};

/// Policy text: never panics; what is read can be written and read again.
pub fn policy_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(document) = text.parse::<Document>() else {
        return;
    };
    let written = document.policy.to_string();
    let again: Policy = written.parse().expect("a written policy can be read");
    assert_eq!(again, document.policy);
    for expectation in &document.expectations {
        let verdict = document
            .policy
            .explain_subject(&expectation.subject)
            .verdict;
        let line = format!("expect {} {}", expectation.action, expectation.subject);
        let reread: Document = line.parse().expect("a written expectation can be read");
        let subject = &reread.expectations[0].subject;
        assert_eq!(document.policy.explain_subject(subject).verdict, verdict);
    }
}

/// Frames from a guest, each behind its length in two bytes: the gateway never
/// panics, keeps its bounds, and sends no frame larger than the link allows.
pub fn gateway_frames(mut data: &[u8]) {
    const MTU: usize = 1500;
    let mut config = Config::new(Policy::allow_all(), 1);
    config.mtu = MTU as u16;
    config.limits.tcp_flows = 4;
    config.limits.udp_flows = 4;
    config.limits.tcp_buffer = 4096;
    let mut gateway = Gateway::new(config);
    let mut now = Duration::ZERO;
    let mut frame = Vec::new();
    while let Some((&[high, low], rest)) = data.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
        gateway.handle_frame(now, &rest[..length]);
        data = &rest[length..];
        while let Some(action) = gateway.poll_action() {
            answer(&mut gateway, now, &action);
        }
        let mut frames = 0;
        while gateway.poll_frame(now, &mut frame) {
            assert!(frame.len() <= MTU + 14, "{} bytes", frame.len());
            frames += 1;
            assert!(frames < 1000, "one frame is not answered with a thousand");
        }
        let (tcp, udp) = gateway.flows();
        assert!(tcp <= 4 && udp <= 4);
        while gateway.poll_event().is_some() {}
        now += Duration::from_millis(u64::from(low));
        gateway.handle_timeout(now);
        assert!(gateway.next_timeout().is_none_or(|at| at > now));
    }
}

/// Plays an upstream that echoes datagrams and talks on every connection.
fn answer(gateway: &mut Gateway, now: Duration, action: &Action) {
    match action {
        Action::Connect { flow, .. } => gateway.connected(now, *flow),
        Action::Readable(flow) => while gateway.read(*flow, <[u8]>::len) > 0 {},
        Action::Writable(flow) => {
            gateway.write(*flow, |room| room.len().min(3000));
        }
        Action::Shutdown(flow) => gateway.finish(*flow),
        Action::Send { flow, payload, .. } => gateway.datagram(now, *flow, payload),
        Action::Close { .. } | Action::Forget(_) => {}
    }
}

/// A client's first bytes: never panics, and an answer once given holds for
/// whatever follows.
pub fn claim(data: &[u8]) {
    let mut answer = Claimed::Partial;
    for end in 0..=data.len().min(600) {
        let next = examine(&data[..end]);
        if answer != Claimed::Partial {
            assert_eq!(next, answer, "at {end}");
        }
        answer = next;
    }
    if answer != Claimed::Partial {
        assert_eq!(examine(data), answer);
    }
}
