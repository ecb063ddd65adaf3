//! Servers and a network on which nobody can rely, in virtual time: every query
//! is answered in the end, and nothing is left.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// What is on its way to the gateway.
enum Arrival {
    Datagram(Vec<u8>),
    Failed,
    Connected,
    Bytes(Vec<u8>),
    End,
}

struct World {
    now: Duration,
    gateway: Gateway,
    dice: Dice,
    arrivals: BTreeMap<(Duration, u64), (FlowId, Arrival)>,
    count: u64,
    /// Sockets that are open, and what was sent over those that are streams.
    sockets: BTreeSet<FlowId>,
    sent: BTreeMap<FlowId, Vec<u8>>,
    replies: BTreeMap<u16, (Duration, Message)>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut config = Config::new(Policy::public_only(), seed);
        config.resolvers = vec![SERVER_1.parse().unwrap(), SERVER_2.parse().unwrap()];
        Self {
            now: Duration::ZERO,
            gateway: Gateway::new(config),
            dice: Dice::new(seed),
            arrivals: BTreeMap::new(),
            count: 0,
            sockets: BTreeSet::new(),
            sent: BTreeMap::new(),
            replies: BTreeMap::new(),
        }
    }

    fn arrives(&mut self, flow: FlowId, what: Arrival) {
        let at = self.now + Duration::from_millis(self.dice.below(400));
        self.count += 1;
        self.arrivals.insert((at, self.count), (flow, what));
    }

    /// What becomes of a datagram to a server.
    fn datagram(&mut self, flow: FlowId, query: &[u8]) {
        let mut good = answer(query, 60, &["1.1.1.1"]);
        match self.dice.below(10) {
            0 | 1 => {}
            2 => self.arrives(flow, Arrival::Failed),
            3 => {
                let mut cut = Message::from_vec(&answer(query, 60, &[])).unwrap();
                cut.metadata.truncation = true;
                self.arrives(flow, Arrival::Datagram(cut.to_vec().unwrap()));
            }
            4 => {
                good[3] = 2;
                self.arrives(flow, Arrival::Datagram(good));
            }
            5 => {
                for _ in 0..self.dice.below(12) {
                    let mut guess = answer(query, 60, &["6.6.6.6"]);
                    guess[0] ^= 0x55;
                    self.arrives(flow, Arrival::Datagram(guess));
                }
                self.arrives(flow, Arrival::Datagram(good));
            }
            6 => {
                good.truncate(self.dice.below(good.len() as u64) as usize);
                self.arrives(flow, Arrival::Datagram(good));
            }
            _ => {
                for _ in 0..=self.dice.below(2) {
                    self.arrives(flow, Arrival::Datagram(good.clone()));
                }
            }
        }
    }

    /// What becomes of a query over a stream.
    fn stream(&mut self, flow: FlowId) {
        let Some((length, query)) = self.sent[&flow].split_first_chunk() else {
            return;
        };
        if query.len() < usize::from(u16::from_be_bytes(*length)) {
            return;
        }
        let good = answer(query, 60, &["1.1.1.1"]);
        let length = (good.len() as u16).to_be_bytes();
        let bytes = [&length[..], &good].concat();
        match self.dice.below(4) {
            0 => {}
            1 => self.arrives(flow, Arrival::End),
            _ => {
                let at = self.dice.below(bytes.len() as u64) as usize;
                let (first, second) = bytes.split_at(at);
                let mut whole = first.to_vec();
                whole.extend_from_slice(second);
                self.arrives(flow, Arrival::Bytes(whole));
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Send {
                flow, datagrams, ..
            } => {
                assert!(self.sockets.insert(flow), "one query, one socket");
                assert_eq!(datagrams.count(), 1);
                self.datagram(flow, datagrams.bytes());
            }
            Action::Connect { flow, .. } => {
                assert!(self.sockets.insert(flow));
                self.sent.insert(flow, Vec::new());
                let what = match self.dice.below(4) {
                    0 => Arrival::Failed,
                    _ => Arrival::Connected,
                };
                self.arrives(flow, what);
            }
            Action::Readable(flow) => {
                let sent = self.sent.get_mut(&flow).unwrap();
                while self.gateway.read(flow, |bytes| {
                    sent.extend_from_slice(&bytes[..1]);
                    1
                }) > 0
                {}
                self.stream(flow);
            }
            Action::Writable(_) => {}
            Action::Forget(flow) | Action::Close { flow, .. } => {
                assert!(self.sockets.remove(&flow), "closed once");
            }
            other @ (Action::Shutdown(_) | Action::Echo { .. } | Action::Intercept(_)) => {
                panic!("{other:?}")
            }
        }
    }

    fn deliver(&mut self, flow: FlowId, what: Arrival) {
        // What comes late is let through as well: a call and an action may cross.
        match what {
            Arrival::Datagram(bytes) => self.gateway.datagram(self.now, flow, &bytes),
            Arrival::Failed if self.sent.contains_key(&flow) => {
                let error = ConnectError::Refused;
                self.gateway.connect_failed(self.now, flow, error);
            }
            Arrival::Failed => self.gateway.datagram_failed(self.now, flow),
            Arrival::Connected => self.gateway.connected(self.now, flow),
            Arrival::Bytes(bytes) => {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let step = 1 + self.dice.below(40) as usize;
                    let taken = self.gateway.write(flow, |room| {
                        let count = rest.len().min(room.len()).min(step);
                        room[..count].copy_from_slice(&rest[..count]);
                        count
                    });
                    if taken == 0 {
                        break;
                    }
                    rest = &rest[taken..];
                }
            }
            Arrival::End => self.gateway.finish(flow),
        }
    }

    fn settle(&mut self) {
        while let Some(action) = self.gateway.poll_action() {
            self.act(action);
        }
        let mut frame = Vec::new();
        while self.gateway.poll_frame(self.now, &mut frame) {
            if let Some((_, message)) = read_reply(&frame) {
                let old = self
                    .replies
                    .insert(message.metadata.id, (self.now, message));
                assert!(old.is_none(), "answered once");
            }
        }
        while self.gateway.poll_event().is_some() {}
    }

    fn run(&mut self) {
        loop {
            self.settle();
            let arrival = self.arrivals.first_key_value().map(|((at, _), _)| *at);
            let Some(next) = arrival.into_iter().chain(self.gateway.next_timeout()).min() else {
                break;
            };
            self.now = self.now.max(next);
            if arrival == Some(next)
                && let Some((_, (flow, what))) = self.arrivals.pop_first()
            {
                self.deliver(flow, what);
            }
            self.gateway.handle_timeout(self.now);
        }
    }
}

proptest! {
    #[test]
    fn every_query_is_answered_once_and_in_time(
        seed in any::<u64>(),
        names in prop::collection::vec(0u8..6, 1..12),
    ) {
        let mut world = World::new(seed);
        for (id, number) in names.iter().enumerate() {
            let query = query(id as u16, &format!("n{number}.example."), RecordType::A);
            let frame = datagram(GUEST, GATEWAY, &query.to_vec().unwrap());
            world.gateway.handle_frame(world.now, &frame);
        }
        world.run();
        prop_assert_eq!(world.replies.len(), names.len());
        for (at, reply) in world.replies.values() {
            // Three attempts, each of which may move to TCP at its end.
            prop_assert!(*at < Duration::from_secs(18), "{at:?}");
            match reply.metadata.response_code {
                ResponseCode::NoError => {
                    let one = RData::A(A(Ipv4Addr::new(1, 1, 1, 1)));
                    prop_assert_eq!(&reply.answers[0].data, &one);
                }
                code => prop_assert_eq!(code, ResponseCode::ServFail),
            }
        }
        prop_assert!(world.sockets.is_empty());
        prop_assert_eq!(world.gateway.next_timeout(), None);
    }
}
