//! Datagrams that came one right after the other are sent in one call.

use std::time::Duration;

use super::{datagram, sim};
use crate::gateway::Action;

/// How many datagrams each action has that the frames bring about, by flow.
fn actions(frames: &[Vec<u8>]) -> Vec<(u64, usize)> {
    let mut sim = sim("preset public-only");
    for frame in frames {
        sim.gateway.handle_frame(Duration::ZERO, frame);
    }
    let mut counts = Vec::new();
    while let Some(action) = sim.gateway.poll_action() {
        let Action::Send {
            flow, datagrams, ..
        } = action
        else {
            panic!("{action:?}");
        };
        counts.push((flow.number(), datagrams.count()));
    }
    counts
}

fn to(far: &str, size: usize) -> Vec<u8> {
    datagram("192.168.127.2:5000", far, &vec![1; size])
}

#[test]
fn those_of_one_flow_and_size_are_joined() {
    let mut frames = vec![to("1.1.1.1:123", 1000); 10];
    frames.push(to("1.1.1.1:123", 20));
    frames.push(to("1.1.1.1:123", 20));
    assert_eq!(actions(&frames), [(1, 11), (1, 1)]);
}

#[test]
fn those_of_different_flows_are_not() {
    let (one, other) = (to("1.1.1.1:123", 1000), to("1.1.1.2:123", 1000));
    let frames = [one.clone(), one.clone(), other.clone(), one];
    assert_eq!(actions(&frames), [(1, 2), (2, 1), (1, 1)]);
}

#[test]
fn one_that_is_to_be_sent_in_another_way_is_alone() {
    let one = to("1.1.1.1:123", 1000);
    let mut far_less = one.clone();
    // Fewer hops, and so another sum of the header (RFC 1624).
    far_less[22] = 3;
    far_less[24..26].copy_from_slice(&[0, 0]);
    let sum: u32 = far_less[14..34]
        .chunks_exact(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    far_less[24..26].copy_from_slice(&sum.to_be_bytes());
    let frames = [one.clone(), one.clone(), far_less, one];
    assert_eq!(actions(&frames), [(1, 2), (1, 1), (1, 1)]);
}
