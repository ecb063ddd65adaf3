//! The sandbox's network: a gateway on a thread of its own, and its journal.
//!
//! All guests have the same addresses: each is alone on its link, and what is the same
//! in all of them is set before a template is saved.

use bytes::BytesMut;
use msb_guest_agent::message::{Address, Host, NetworkSettings, NetworkSpec, TrustSpec};
use msb_net::error::PortRefusal;
use msb_net::gateway::{Config, Mac};
use msb_net::policy::Policy;
use msb_net::publish::Publish;
use msb_net::shell::{
    Capture, Events, Interception, Link, Network, Options, Publication, TrafficMeter,
    host_addresses, host_resolvers,
};
use msb_vmm::{Card, TEMPLATE_MAC, Vm};
use tokio::sync::mpsc;

use super::dial;
use super::start::{Failure, random};
use super::trust;
use crate::control::{self, FromSupervisor};
use crate::machine::Source;
use crate::port::{MAX_PORTS, PortAnswer, PortFailure, PortRequest, PublishedPort};
use crate::secret::{self, Values};
use crate::snapshot::MAX_FORKS;
use crate::spec::SandboxSpec;

/// The name by which a guest may call the host, whether or not it may reach it.
const HOST_NAME: &str = "host.msb.internal";

/// The guest's link-local address. Only neighbour discovery uses it.
const LINK_LOCAL: &str = "fe80::2";

/// Bits of an address that name the link, of both families.
const PREFIX_V4: u8 = 24;
const PREFIX_V6: u8 = 64;

/// The guest's side of the link.
pub(super) struct Wiring {
    config: Config,
    mac: Mac,
    capture: Option<Capture>,
    interception: Interception,
}

impl Wiring {
    /// Makes up a card address and everything else that must not be guessed.
    ///
    /// A guest that goes on from where another was (`source`) gets addresses of its own: what
    /// it still has of the other's can't be taken for its own then.
    pub(super) fn new(
        spec: &SandboxSpec,
        values: &Values,
        source: Option<&Source>,
    ) -> Result<Self, Failure> {
        let mut seed = [0; 8];
        seed.copy_from_slice(&random(8)?);
        let mut mac = [0; 6];
        mac.copy_from_slice(&random(6)?);
        // Administered locally, for one receiver.
        mac[0] = mac[0] & 0xfc | 0x02;
        let mut config = Config::new(spec.network.policy().clone(), u64::from_ne_bytes(seed));
        config.guest_mac = Some(mac);
        // The agent sees to it.
        config.guest_loopback = true;
        if let Some(source) = source {
            let mut bytes = [0; 6];
            bytes.copy_from_slice(&random(6)?);
            let seat = source.seats.first().copied();
            move_guest(&mut config, seat, &bytes);
        }
        spec.network_limits.apply(&mut config.limits);
        config.resolvers = match &spec.resolvers[..] {
            [] => host_resolvers().map_err(net)?,
            given => given.to_vec(),
        };
        let capture = spec.capture.as_deref();
        let capture = capture.map(|file| Capture::create(file, Capture::DEFAULT_LIMIT));
        let capture = capture.transpose().map_err(net)?;
        Ok(Self {
            config,
            mac,
            capture,
            interception: Interception {
                secrets: values.secrets(&spec.secrets).map_err(net)?,
                extra_roots: trust::extra(&spec.tls.authorities)?,
                all: spec.tls.intercept_all,
                passthrough: secret::patterns(&spec.tls.passthrough).map_err(net)?,
                ..Interception::default()
            },
        })
    }

    pub(super) fn card(&self) -> Card {
        Card {
            mac: self.mac,
            mtu: self.config.mtu,
        }
    }

    /// The seats of guests that go on from this one.
    pub(super) fn seats(&self) -> Seats {
        let [.., own] = self.config.guest_v4.octets();
        Seats { own, taken: 0 }
    }

    /// What the agent is told when it becomes this guest.
    pub(super) fn spec(&self) -> NetworkSpec {
        spec(&self.config, self.mac)
    }

    /// Starts the gateway at the machine's end of the link.
    pub(super) fn connect(mut self, vm: &mut Vm) -> Result<Wire, Failure> {
        // Which addresses are the host is for the host's kernel to say: one that is not
        // known would be an address like any other.
        self.config.host_addresses = host_addresses().map_err(net)?;
        let link = vm
            .take_network()
            .ok_or_else(|| Failure::bug("the machine has no network card"))?;
        let (handover, refused) = dial::channel();
        let mut options = Options::new(self.config);
        options.fallback = Some(Box::new(handover));
        options.capture = self.capture;
        options.interception = self.interception;
        let (network, events) = Network::spawn(options, Link::stream(link)).map_err(net)?;
        Ok(Wire {
            network,
            events,
            refused: Some(refused),
            published: Vec::new(),
        })
    }
}

/// The last bytes of IPv4 addresses for forks of one guest, which are few: none has that of
/// the guest, and no two the same until all have been given.
#[derive(Debug)]
pub(super) struct Seats {
    own: u8,
    taken: usize,
}

/// The network's and the gateway's are below, everybody's is above.
const SEATS: std::ops::RangeInclusive<u8> = 2..=254;

impl Seats {
    /// Those of so many more, at most [`MAX_FORKS`].
    pub(super) fn take(&mut self, count: usize) -> Vec<u8> {
        let free: Vec<u8> = SEATS.filter(|seat| *seat != self.own).collect();
        let first = free.partition_point(|seat| *seat < self.own) + self.taken;
        let end = first + count.min(MAX_FORKS);
        self.taken = (self.taken + end - first) % free.len();
        (first..end)
            .map(|number| free[number % free.len()])
            .collect()
    }
}

/// Gives the guest other addresses on its link: of IPv4 that with the last byte `seat`, and the
/// rest made of six random bytes.
///
/// The end of that of IPv6 stays: the group that neighbours ask for it in is made of it, and to
/// leave one group and join another is much kernel code for a freshly restored guest.
fn move_guest(config: &mut Config, seat: Option<u8>, bytes: &[u8; 6]) {
    let mut octets = config.guest_v4.octets();
    // Whose address the snapshot has is not known; most have the first.
    let made_up = SEATS.start() + 1 + bytes[0] % (SEATS.end() - SEATS.start());
    octets[3] = seat.filter(|seat| SEATS.contains(seat)).unwrap_or(made_up);
    config.guest_v4 = octets.into();
    let mut octets = config.guest_v6.octets();
    octets[8..13].copy_from_slice(&bytes[1..]);
    // No multicast router's, and none of the first: those are below 256.
    octets[8] = octets[8] & 0xfc | 0x40;
    config.guest_v6 = octets.into();
}

/// What the agent is told before a template is saved.
pub(super) fn template_spec() -> NetworkSpec {
    spec(&Config::new(Policy::none(), 0), TEMPLATE_MAC)
}

fn spec(config: &Config, mac: Mac) -> NetworkSpec {
    let address = |address, prefix| Address { address, prefix };
    let gateway = config.gateway_v4.into();
    let settings = NetworkSettings {
        mtu: config.mtu,
        addresses: vec![
            address(config.guest_v4.into(), PREFIX_V4),
            address(config.guest_v6.into(), PREFIX_V6),
            address(LINK_LOCAL.parse().expect("an address"), PREFIX_V6),
        ],
        gateways: vec![gateway, config.gateway_v6.into()],
        resolvers: vec![gateway],
        search: Vec::new(),
        hosts: vec![Host {
            address: gateway,
            name: HOST_NAME.into(),
        }],
    };
    NetworkSpec::new(mac, &settings)
}

/// A running gateway. Its sockets are closed when this is dropped.
pub(super) struct Wire {
    network: Network,
    events: Events,
    /// Clients of published ports whom the guest refused.
    refused: Option<mpsc::Receiver<dial::Client>>,
    published: Vec<(PublishedPort, Publication)>,
}

impl Wire {
    /// Whom the guest has to trust, if any of its flows are taken apart.
    pub(super) fn trust(&self) -> Option<TrustSpec> {
        self.network.ca_pem().map(trust::spec)
    }

    /// What the guest has in place of its secrets: variables and placeholders.
    pub(super) fn placeholders(&self) -> impl Iterator<Item = (String, String)> {
        let pairs = self.network.placeholders().iter();
        pairs.map(|(name, placeholder)| (name.clone(), placeholder.to_string()))
    }

    /// Takes the clients that the guest refused, to be served in another way; once.
    pub(super) fn take_refused(&mut self) -> Option<mpsc::Receiver<dial::Client>> {
        self.refused.take()
    }

    /// What tells how much has crossed the link.
    pub(super) fn traffic(&self) -> TrafficMeter {
        self.network.traffic()
    }

    /// Offers the guest's ports on the host; says where it listens for each.
    pub(super) fn publish_all(&mut self, ports: &[String]) -> Result<Vec<PublishedPort>, Failure> {
        for text in ports {
            let publish = text.parse().map_err(net)?;
            self.publish(&publish).map_err(net)?;
        }
        Ok(self.ports())
    }

    /// Does what the creator asks about ports. The answer is a message to it.
    pub(super) fn handle(&mut self, request: PortRequest) -> BytesMut {
        let answer = match request {
            PortRequest::Publish { ports } => self.publish_more(&ports),
            PortRequest::Unpublish { port } => self.unpublish(port),
            PortRequest::List => Ok(self.ports()),
        };
        control::encode(&FromSupervisor::Ports(answer))
    }

    fn publish_more(&mut self, ports: &str) -> PortAnswer {
        let publish: Publish = ports.parse().map_err(refusal)?;
        if self.published.len() + publish.pairs().count() > MAX_PORTS {
            return Err(PortFailure::TooMany);
        }
        self.publish(&publish).map_err(refusal)
    }

    fn publish(&mut self, publish: &Publish) -> Result<Vec<PublishedPort>, msb_net::Error> {
        let protocol = publish.protocol();
        let publication = self.network.publish(publish)?;
        let known = self.published.len();
        self.published
            .extend(publication.into_single().map(|single| {
                let (host, guest) = single.ports()[0];
                let port = PublishedPort {
                    host,
                    guest,
                    protocol,
                };
                (port, single)
            }));
        Ok(self.published[known..]
            .iter()
            .map(|(port, _)| *port)
            .collect())
    }

    fn unpublish(&mut self, port: PublishedPort) -> PortAnswer {
        let place = self.published.iter().position(|(known, _)| *known == port);
        let place = place.ok_or(PortFailure::NotPublished { port })?;
        let (port, publication) = self.published.remove(place);
        self.network.unpublish(&publication);
        Ok(vec![port])
    }

    fn ports(&self) -> Vec<PublishedPort> {
        self.published.iter().map(|(port, _)| *port).collect()
    }

    /// Waits for the next event as a message to clients. Nothing is lost when this is given up.
    pub(super) async fn message(&mut self) -> BytesMut {
        match self.events.recv().await {
            Some(entry) => message(entry.to_json(self.network.policy())),
            // The link has ended.
            None => std::future::pending().await,
        }
    }

    /// Ends the network; returns what is left to tell.
    pub(super) fn finish(self) -> Vec<BytesMut> {
        let Self {
            network,
            mut events,
            refused: _,
            published: _,
        } = self;
        let policy = network.policy().clone();
        network.stop();
        let left = std::iter::from_fn(|| events.try_recv());
        left.map(|entry| message(entry.to_json(&policy))).collect()
    }
}

fn message(line: String) -> BytesMut {
    control::encode(&FromSupervisor::Network { line })
}

#[allow(clippy::needless_pass_by_value)] // the shape that map_err wants
fn refusal(error: msb_net::Error) -> PortFailure {
    match error {
        msb_net::Error::Port {
            address,
            reason: PortRefusal::InUse,
        } => PortFailure::Taken { host: address },
        other => PortFailure::Refused {
            reason: other.to_string(),
            hint: other.hint(),
        },
    }
}

#[allow(clippy::needless_pass_by_value)] // the shape that map_err wants
fn net(error: msb_net::Error) -> Failure {
    Failure {
        reason: error.to_string(),
        hint: error.hint(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_moves_has_addresses_that_nobody_else_has_on_its_link() {
        let fixed = Config::new(Policy::none(), 0);
        for byte in 0..=255 {
            let mut config = fixed.clone();
            move_guest(&mut config, None, &[byte; 6]);
            let [a, b, c, last] = config.guest_v4.octets();
            assert_eq!([a, b, c], fixed.guest_v4.octets()[..3]);
            assert!((3..255).contains(&last), "{last}");
            assert_eq!(
                config.guest_v6.segments()[..4],
                fixed.guest_v6.segments()[..4]
            );
            assert_eq!(
                config.guest_v6.octets()[13..],
                fixed.guest_v6.octets()[13..]
            );
            assert!(![fixed.guest_v6, fixed.gateway_v6].contains(&config.guest_v6));
        }
    }

    #[test]
    fn no_two_forks_have_a_seat_until_all_are_taken() {
        for own in SEATS {
            let mut seats = Seats { own, taken: 0 };
            let mut given = seats.take(10);
            given.extend(seats.take(0));
            given.extend(seats.take(242));
            assert_eq!(seats.take(1), given[..1]);
            given.push(own);
            given.sort_unstable();
            assert!(given.into_iter().eq(SEATS), "{own}");
            assert_eq!(seats.take(usize::MAX).len(), MAX_FORKS);
        }
    }

    #[test]
    fn a_seat_is_what_the_address_ends_with() {
        let mut config = Config::new(Policy::none(), 0);
        move_guest(&mut config, Some(77), &[0; 6]);
        assert_eq!(config.guest_v4.octets()[3], 77);
        // Those that are others'.
        for taken in [0, 1, 255] {
            move_guest(&mut config, Some(taken), &[0; 6]);
            assert_eq!(config.guest_v4.octets()[3], 3);
        }
    }

    /// What differs between copies costs each of them time.
    #[test]
    fn a_copy_differs_from_its_template_in_the_cards_address_only() {
        let wiring = Wiring::new(&SandboxSpec::new("demo".into()), &Values::default(), None);
        let wiring = wiring.ok().expect("wiring");
        let mut spec = wiring.spec();
        assert_ne!(spec.mac, TEMPLATE_MAC);
        assert_eq!(spec.mac[0] & 3, 2);
        spec.mac = TEMPLATE_MAC;
        assert_eq!(spec, template_spec());
    }
}
