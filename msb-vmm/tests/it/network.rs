//! The network card: whole frames across the socket, in booted guests and in copies.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use msb_vmm::{Card, EngineKind, Error, MAX_MTU, Machine, TEMPLATE_MAC};

use crate::guest::{Lab, PORT, UNBIND, engine, run};

const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x42];

/// Makes the card usable: an address, and a neighbour that needs no asking for.
const UP: &str = "echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6; \
    ifconfig eth0 10.0.0.2 netmask 255.255.255.0 mtu 65520 up; arp -s 10.0.0.1 02:00:00:00:00:01";

/// Longer than a guest needs for a frame; a bound against hangs.
const PATIENCE: Duration = Duration::from_secs(60);

fn machine(lab: &Lab) -> Machine {
    Machine {
        network: Some(Card {
            mac: MAC,
            mtu: MAX_MTU,
        }),
        ..lab.machine()
    }
}

/// Receives one frame: its length as a 32-bit big-endian number, then itself.
fn receive(mut link: &UnixStream) -> Vec<u8> {
    link.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut length = [0; 4];
    link.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    link.read_exact(&mut frame).unwrap();
    frame
}

#[test]
fn frames_cross_the_socket_whole_in_both_directions() {
    let lab = Lab::new();
    let mut vm = engine().boot(&machine(&lab)).unwrap();
    let mtu = match vm.engine() {
        // libkrun has no way to tell it: the guest's agent sets it.
        EngineKind::Krun => 1500,
        _ => MAX_MTU,
    };
    let shell = vm.take_port(PORT).unwrap();
    let link = vm.take_network().unwrap();
    assert!(vm.take_network().is_none(), "the card is taken once");
    let run = |command: &str| run(&shell, command).unwrap();
    assert_eq!(
        run("cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu | tr '\\n' ' '"),
        format!("02:00:00:00:00:42 {mtu}")
    );
    run(UP);
    // The answer is this frame with addresses and ICMP type exchanged.
    run("ping -c 1 -W 60 -s 60000 10.0.0.1 > /tmp-ping 2>&1 &");
    let mut frame = receive(&link);
    assert_eq!(frame.len(), 14 + 20 + 8 + 60_000);
    assert_eq!(frame[..12], [[2, 0, 0, 0, 0, 1], MAC].concat());
    let (receiver, sender) = ([2, 0, 0, 0, 0, 1], MAC);
    frame[..6].copy_from_slice(&sender);
    frame[6..12].copy_from_slice(&receiver);
    for byte in 0..4 {
        frame.swap(26 + byte, 30 + byte);
    }
    // Type 8 becomes type 0, which the checksum has to make up for.
    frame[34] = 0;
    let sum = u32::from(u16::from_be_bytes([frame[36], frame[37]])) + 0x0800;
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[36..38].copy_from_slice(&(sum as u16).to_be_bytes());
    let length = (frame.len() as u32).to_be_bytes();
    (&link).write_all(&[&length[..], &frame].concat()).unwrap();
    assert!(run("wait; cat /tmp-ping").contains("1 packets received"));
}

#[test]
fn a_copy_has_the_card_of_its_template_and_a_link_of_its_own() {
    let lab = Lab::new();
    let templates = lab.templates();
    let machine = machine(&lab);
    let template = templates
        .ensure(
            &machine,
            |_| (),
            |port| run(port, UP).and_then(|_| run(port, UNBIND).map(drop)),
        )
        .unwrap();
    let other = Machine {
        network: None,
        ..machine.clone()
    };
    assert!(matches!(
        template.start(&other),
        Err(Error::OtherMachine { .. })
    ));

    for last in [1, 2] {
        let card = Card {
            mac: [2, 0, 0, 0, 1, last],
            mtu: MAX_MTU,
        };
        let machine = Machine {
            network: Some(card),
            ..machine.clone()
        };
        let mut vm = template.start(&machine).unwrap();
        let shell = vm.take_port(PORT).unwrap();
        let link = vm.take_network().unwrap();
        let before = run(&shell, "cat /sys/class/net/eth0/address").unwrap();
        assert_eq!(before, written(TEMPLATE_MAC));
        // The address can be changed while the card is up.
        let own = written([2, 0, 0, 0, 1, last]);
        let set = format!("ifconfig eth0 hw ether {own}; arp -s 10.0.0.1 02:00:00:00:00:01");
        assert_eq!(run(&shell, &set).unwrap(), "");
        // Nothing was announced: the first frame is the first that the guest means to send.
        link.set_nonblocking(true).unwrap();
        let nothing = (&link).read(&mut [0]).unwrap_err();
        assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
        link.set_nonblocking(false).unwrap();
        run(&shell, "ping -c 1 -W 1 -s 1 10.0.0.1 > /dev/null &").unwrap();
        let frame = receive(&link);
        assert_eq!(frame[6..12], [2, 0, 0, 0, 1, last]);
    }
}

#[test]
fn a_guest_outlives_the_other_end_of_its_link() {
    let lab = Lab::new();
    let mut vm = engine().boot(&machine(&lab)).unwrap();
    let shell = vm.take_port(PORT).unwrap();
    run(&shell, UP).unwrap();
    drop(vm.take_network());
    let lost = run(&shell, "ping -c 1 -W 1 10.0.0.1").unwrap();
    assert!(lost.contains("0 packets received"), "{lost}");
    assert_eq!(run(&shell, "echo alive").unwrap(), "alive");
}

/// A hardware address as the guest writes it.
fn written(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
