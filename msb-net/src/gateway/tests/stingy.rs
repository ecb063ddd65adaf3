//! Guests that are short of memory: they drop what they had room for, close their
//! window with bytes under way, and say nothing of their own accord.

use smoltcp::wire::{TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use super::*;

const GUEST: &str = "192.168.127.2:40000";
const MSS: usize = 1460;

/// The receiving half of a guest, which answers segments and does nothing else: what it
/// has to say is lost with the segment that it would answer.
struct Stingy {
    gateway: Gateway,
    flow: FlowId,
    now: Duration,
    /// The gateway's first byte, and ours.
    first: TcpSeqNumber,
    seq: TcpSeqNumber,
    got: Vec<u8>,
    ended: bool,
    window: u16,
}

impl Stingy {
    fn new() -> Self {
        let mut config = Config::new(Policy::public_only(), 7);
        config.mtu = 1500;
        let mut gateway = Gateway::new(config);
        let seq = TcpSeqNumber(1000);
        let now = Duration::ZERO;
        gateway.handle_frame(now, &segment(TcpControl::Syn, seq, None, 8000));
        let Some(Action::Connect { flow, .. }) = gateway.poll_action() else {
            panic!("it is allowed");
        };
        gateway.connected(now, flow);
        let mut guest = Self {
            gateway,
            flow,
            now,
            first: TcpSeqNumber(0),
            seq: seq + 1,
            got: Vec::new(),
            ended: false,
            window: 8000,
        };
        let mut frame = Vec::new();
        assert!(guest.gateway.poll_frame(now, &mut frame));
        guest.first = TcpPacket::new_checked(&frame[34..]).unwrap().seq_number() + 1;
        guest.acknowledge();
        guest
    }

    fn acknowledge(&mut self) {
        let ack = self.first + self.got.len() + usize::from(self.ended);
        let frame = segment(TcpControl::None, self.seq, Some(ack), self.window);
        self.gateway.handle_frame(self.now, &frame);
    }

    /// Takes what the gateway has to send; `window` says of each segment what is
    /// answered, or that it is lost.
    fn receive(&mut self, mut window: impl FnMut() -> Option<u16>) {
        let mut frames = Vec::new();
        let mut frame = Vec::new();
        while self.gateway.poll_frame(self.now, &mut frame) {
            frames.push(std::mem::take(&mut frame));
        }
        for frame in frames {
            let segment = TcpPacket::new_checked(&frame[34..]).unwrap();
            let Some(window) = window() else {
                continue;
            };
            let next = self.first + self.got.len();
            if segment.seq_number() <= next {
                let payload = segment.payload();
                let known = (next - segment.seq_number()).min(payload.len());
                let taken = (payload.len() - known).min(self.window.into());
                self.got.extend_from_slice(&payload[known..known + taken]);
                self.ended |= segment.fin() && known + taken == payload.len();
            }
            self.window = window;
            self.acknowledge();
        }
    }

    /// Lets the gateway do what it does next; false when that is nothing, ever.
    fn wait(&mut self) -> bool {
        let Some(at) = self.gateway.next_timeout() else {
            return false;
        };
        self.now = self.now.max(at);
        self.gateway.handle_timeout(self.now);
        true
    }

    fn write(&mut self, data: &[u8]) -> usize {
        self.gateway.write(self.flow, |room| {
            let length = room.len().min(data.len());
            room[..length].copy_from_slice(&data[..length]);
            length
        })
    }
}

fn segment(
    control: TcpControl,
    seq_number: TcpSeqNumber,
    ack_number: Option<TcpSeqNumber>,
    window_len: u16,
) -> Vec<u8> {
    let (from, to): (SocketAddr, SocketAddr) = (GUEST.parse().unwrap(), SERVER.parse().unwrap());
    let repr = TcpRepr {
        src_port: from.port(),
        dst_port: to.port(),
        control,
        seq_number,
        ack_number,
        window_len,
        window_scale: None,
        max_seg_size: (control == TcpControl::Syn).then_some(MSS as u16),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: b"",
    };
    let mut outbox = Outbox::new(GUEST_MAC, Some([2, 0, 0, 0, 0, 1]), 1500);
    outbox.tcp(from.ip(), to.ip(), &repr);
    let mut frame = Vec::new();
    assert!(outbox.pop(&mut frame));
    frame
}

/// Runs until all of `data` arrived, of which some may be written, and the end. No
/// silence may be so long that the gateway gives up.
fn deliver(
    guest: &mut Stingy,
    data: &[u8],
    mut written: usize,
    mut window: impl FnMut() -> Option<u16>,
) {
    loop {
        written += guest.write(&data[written..]);
        // The end is not there to push what comes before it.
        if guest.got.len() == data.len() {
            guest.gateway.finish(guest.flow);
        }
        let all = guest.got.len() == data.len();
        guest.receive(|| if all { Some(8000) } else { window() });
        while guest.gateway.poll_action().is_some() {}
        if guest.ended {
            return assert!(guest.got == data);
        }
        let got = guest.got.len();
        assert_eq!(guest.gateway.flows().0, 1, "it gave up at {got}");
        assert!(guest.wait(), "it waits for ever at {got}");
    }
}

#[test]
fn a_window_that_closes_over_what_is_under_way_is_asked_after() {
    let mut guest = Stingy::new();
    let data = noise(1, 5000);
    assert_eq!(guest.write(&data), data.len());
    // Nothing of it fits, after all.
    guest.window = 0;
    let mut number = 0;
    guest.receive(|| {
        number += 1;
        (number == 1).then_some(0)
    });
    assert!(number > 1 && guest.got.is_empty());
    deliver(&mut guest, &data, data.len(), || Some(8000));
}

#[test]
fn what_was_lost_before_a_window_closed_is_sent_again_once_it_opens() {
    let mut guest = Stingy::new();
    let data = noise(1, 5000);
    let mut number = 0;
    assert_eq!(guest.write(&data), data.len());
    guest.receive(|| {
        number += 1;
        (number == 1).then_some(0)
    });
    assert_eq!(guest.got.len(), MSS);
    guest.window = 8000;
    guest.acknowledge();
    deliver(&mut guest, &data, data.len(), || Some(8000));
}

#[test]
fn everything_arrives_at_the_stingiest_guest() {
    for seed in 0..100 {
        let mut dice = Dice::new(seed);
        let mut guest = Stingy::new();
        let data = noise(seed, 40_000);
        // Its memory is short for a while.
        let mut short = 40;
        deliver(&mut guest, &data, 0, || {
            short -= u32::from(short > 0);
            match dice.below(10) {
                _ if short == 0 => Some(8000),
                0..3 => None,
                3..5 => Some(0),
                5..7 => Some(dice.below(1000) as u16),
                _ => Some(8000),
            }
        });
    }
}
