//! The link itself: address resolution.
//!
//! The gateway is the only neighbour. It answers for its own addresses and for
//! nothing else (RFC 826; RFC 4861, 7.2.4).

use std::net::IpAddr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetProtocol, Icmpv6Message,
    Icmpv6Packet, Icmpv6Repr, NdiscNeighborFlags, NdiscRepr,
};

use super::Gateway;
use super::event::DropReason;
use super::outbox::HOP_LIMIT;
use super::packet::Packet;

impl Gateway {
    pub(super) fn handle_arp(&mut self, payload: &[u8]) {
        let request = ArpPacket::new_checked(payload).and_then(|packet| ArpRepr::parse(&packet));
        let Ok(ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        }) = request
        else {
            return self.events.dropped(DropReason::Malformed);
        };
        let probe = source_protocol_addr.is_unspecified();
        if !probe && source_protocol_addr != self.config.guest_v4 {
            return self.events.dropped(DropReason::SpoofedAddress);
        }
        if operation != ArpOperation::Request || target_protocol_addr != self.config.gateway_v4 {
            return;
        }
        let reply = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: EthernetAddress(self.config.mac),
            source_protocol_addr: target_protocol_addr,
            target_hardware_addr: source_hardware_addr,
            target_protocol_addr: source_protocol_addr,
        };
        self.outbox
            .push(EthernetProtocol::Arp, reply.buffer_len(), |buffer| {
                reply.emit(&mut ArpPacket::new_unchecked(buffer));
            });
    }

    /// Takes neighbour discovery and its kin; false for any other ICMPv6 message.
    pub(super) fn handle_neighbor(&mut self, packet: &Packet<'_>) -> bool {
        let (IpAddr::V6(source), IpAddr::V6(destination)) = (packet.source, packet.destination)
        else {
            return false;
        };
        let Ok(message) = Icmpv6Packet::new_checked(packet.payload) else {
            self.events.dropped(DropReason::Malformed);
            return true;
        };
        match message.msg_type() {
            Icmpv6Message::NeighborSolicit => {}
            // Routers, other neighbours and multicast groups do not exist here.
            Icmpv6Message::NeighborAdvert
            | Icmpv6Message::RouterSolicit
            | Icmpv6Message::RouterAdvert
            | Icmpv6Message::Redirect
            | Icmpv6Message::MldQuery
            | Icmpv6Message::MldReport => return true,
            _ => return false,
        }
        let checks = ChecksumCapabilities::default();
        let parsed = Icmpv6Repr::parse(&source, &destination, &message, &checks);
        let Ok(Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, .. })) = parsed else {
            self.events.dropped(DropReason::Malformed);
            return true;
        };
        let own = source == self.config.guest_v6 || source.is_unicast_link_local();
        let on_link = packet.header.hop_limit() == HOP_LIMIT;
        if target_addr != self.config.gateway_v6 || !on_link || !own {
            // Among them the guest's own search for a duplicate of its address.
            return true;
        }
        let reply = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
            flags: NdiscNeighborFlags::SOLICITED
                | NdiscNeighborFlags::OVERRIDE
                | NdiscNeighborFlags::ROUTER,
            target_addr,
            lladdr: Some(EthernetAddress(self.config.mac).into()),
        });
        self.outbox
            .icmpv6(target_addr.into(), source.into(), &reply);
        true
    }
}
