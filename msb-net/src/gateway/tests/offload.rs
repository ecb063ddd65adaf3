//! Frames whose work is left to the other side's network card.

use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::wire::{
    EthernetAddress, IpRepr, Ipv4Address, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

use super::*;

const GUEST: Ipv4Address = Ipv4Address::new(192, 168, 127, 2);
const FAR: Ipv4Address = Ipv4Address::new(1, 1, 1, 1);
const MSS: u16 = 1400;
const NEEDS_CHECKSUM: u8 = 1;

fn gateway() -> Gateway {
    let mut config = Config::new(Policy::public_only(), 7);
    config.offload = true;
    config.mtu = 1500;
    Gateway::new(config)
}

fn now() -> Duration {
    Duration::from_secs(1)
}

/// A segment of the guest without a checksum, behind a header that says so, or
/// says nothing.
fn segment(repr: &TcpRepr<'_>, flags: u8) -> Vec<u8> {
    let (guest, far) = (GUEST.into(), FAR.into());
    let ip = IpRepr::new(guest, far, IpProtocol::Tcp, repr.buffer_len(), 64);
    let mut bytes = vec![0; 10 + 14 + ip.buffer_len()];
    bytes[0] = flags;
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[10..]);
    frame.set_src_addr(EthernetAddress(GUEST_MAC));
    frame.set_dst_addr(EthernetAddress([2, 0, 0, 0, 0, 1]));
    frame.set_ethertype(EthernetProtocol::Ipv4);
    let mut checks = ChecksumCapabilities::default();
    ip.emit(frame.payload_mut(), &checks);
    checks.tcp = Checksum::None;
    let mut packet = TcpPacket::new_unchecked(&mut frame.payload_mut()[20..]);
    repr.emit(&mut packet, &guest, &far, &checks);
    bytes
}

fn syn() -> TcpRepr<'static> {
    TcpRepr {
        src_port: 40_000,
        dst_port: 80,
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(100),
        ack_number: None,
        window_len: u16::MAX,
        window_scale: Some(4),
        max_seg_size: Some(MSS),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: b"",
    }
}

/// The flow that the gateway wants to open.
fn opened(gateway: &mut Gateway) -> FlowId {
    match gateway.poll_action() {
        Some(Action::Connect { flow, .. }) => flow,
        other => panic!("{other:?}"),
    }
}

fn dropped(gateway: &mut Gateway) -> bool {
    std::iter::from_fn(|| gateway.poll_event()).any(
        |event| matches!(event, Event::Dropped { reason, .. } if reason == DropReason::Malformed),
    )
}

#[test]
fn only_a_packet_that_says_so_may_lack_its_checksum() {
    let mut gateway = gateway();
    gateway.handle_frame(now(), &segment(&syn(), 0));
    assert_eq!(gateway.poll_action(), None);
    assert!(dropped(&mut gateway));
    gateway.handle_frame(now(), &segment(&syn(), NEEDS_CHECKSUM));
    opened(&mut gateway);
    for length in 0..10 {
        gateway.handle_frame(now(), &[NEEDS_CHECKSUM; 10][..length]);
        assert!(dropped(&mut gateway), "{length}");
    }
}

#[test]
fn bytes_for_the_guest_leave_in_segments_larger_than_the_link_carries() {
    let mut gateway = gateway();
    gateway.handle_frame(now(), &segment(&syn(), NEEDS_CHECKSUM));
    let flow = opened(&mut gateway);
    gateway.connected(now(), flow);
    let mut frame = Vec::new();
    assert!(gateway.poll_frame(now(), &mut frame));
    assert_eq!(frame[..2], [NEEDS_CHECKSUM, 0], "one that need not be cut");
    let answer = TcpPacket::new_checked(&frame[10 + 14 + 20..]).unwrap();
    let ack = TcpRepr {
        control: TcpControl::None,
        seq_number: TcpSeqNumber(101),
        ack_number: Some(answer.seq_number() + 1),
        window_scale: None,
        max_seg_size: None,
        ..syn()
    };
    gateway.handle_frame(now(), &segment(&ack, NEEDS_CHECKSUM));
    let data = noise(1, 10_000);
    let written = gateway.write(flow, |room| {
        room[..data.len()].copy_from_slice(&data);
        data.len()
    });
    assert_eq!(written, data.len());
    assert!(gateway.poll_frame(now(), &mut frame));
    assert_eq!(frame[..2], [NEEDS_CHECKSUM, 1], "TCP in IPv4");
    assert_eq!(u16::from_ne_bytes([frame[4], frame[5]]), MSS);
    assert!(frame.ends_with(&data));
}
