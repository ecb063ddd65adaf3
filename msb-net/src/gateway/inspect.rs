//! The second judgement of a TCP flow: by the name that its client claims.
//!
//! What is read of the client's first bytes, and how, is [`claim`]'s part.

use smoltcp::socket::tcp::State;

use super::event::Event;
use super::{FlowId, Gateway, policy};
use crate::Name;
use crate::claim::{self, Claimed};
use crate::policy::{Claim, Names};

/// What a flow was judged by when it opened, and will be again.
pub(super) struct Unjudged {
    pub(super) facts: policy::Flow,
    pub(super) bound: Vec<Name>,
}

impl Gateway {
    /// Judges what the client claims, once that can be read.
    pub(super) fn examine(&mut self, id: FlowId) {
        let Some((socket, told)) = self.tcp.open(id) else {
            return;
        };
        let Some(unjudged) = &told.unjudged else {
            return;
        };
        let facts = unjudged.facts;
        let waiting = socket.recv_queue();
        let more_may_come = matches!(
            socket.state(),
            State::SynReceived | State::Established | State::FinWait1 | State::FinWait2
        );
        let claimed = match claim::examine(socket.peek(claim::MAX_EXAMINED).unwrap_or(&[])) {
            Claimed::Partial if more_may_come => return,
            // A client that ends without a word asks for nothing.
            Claimed::Partial if waiting == 0 => {
                told.unjudged = None;
                return;
            }
            Claimed::Partial => Claimed::Absent,
            claimed => claimed,
        };
        let claim = match &claimed {
            Claimed::Name(name) => Claim::Name(name),
            Claimed::Foreign if !facts.transport.must_claim() => Claim::None,
            _ => Claim::Absent,
        };
        let bound = &unjudged.bound;
        let verdict = self.config.policy.decide(&facts, &Names { bound, claim });
        let name = bound.iter().rfind(|bound| claim == Claim::Name(bound));
        let name = name.or(bound.last()).cloned();
        told.unjudged = None;
        told.denied = verdict.action == policy::Action::Deny;
        if told.denied {
            socket.abort();
        }
        let denied = told.denied;
        self.events.push(Event::Decided {
            flow: (!denied).then_some(id),
            facts,
            name,
            claim: match claimed {
                Claimed::Name(name) => Some(name),
                _ => None,
            },
            verdict,
            refusal: None,
        });
        self.tcp.mark_ready(id);
    }
}
