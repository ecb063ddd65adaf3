//! What goes through a tunnel that a proxy opened (RFC 9110, 9.3.6).
//!
//! Its end was judged by the name that the guest gave, before the proxy was asked. Where
//! that leads only the proxy knows; so what the guest says in it is looked at as if it had
//! connected to that name. TLS must be for that name; it is taken apart where a secret
//! or a rule is about the host, and the server verified, whoever carries it there.
//! What is neither TLS nor HTTP is judged once more, and passes unread.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::relay::{self, Opened};
use super::{AlertDescription, Connection, refuse, secure};
use crate::claim::{self, Claimed};
use crate::gateway::{Intercepted, Kind, Way, way};
use crate::http::session::Note;
use crate::policy::{Action, Claim, Flow, Names};

/// Bytes that are on their way in each direction.
const BUFFER: usize = 64 * 1024;

/// Serves a tunnel until it ends.
pub(super) async fn run<G, H, S, T>(proxy: Connection, opened: Opened<G, H, S, T>)
where
    G: AsyncRead + Unpin + 'static,
    H: AsyncWrite + Unpin + 'static,
    S: AsyncRead + Unpin + 'static,
    T: AsyncWrite + Unpin + 'static,
{
    let Opened {
        port,
        guest: (mut from_guest, mut to_guest),
        server: (mut from_server, to_server),
    } = opened;
    let begun = begin(&mut from_guest, &mut to_guest, &mut from_server).await;
    let Some(Begun {
        bytes,
        claimed,
        spoke,
    }) = begun
    else {
        return;
    };
    let Connection {
        shared, own, host, ..
    } = proxy;
    let kind = Kind::of(&bytes, &claimed);
    // Only the proxy knows the address: no name is bound to it, except for the policy.
    let own = Intercepted {
        flow: own.flow,
        facts: Flow::by_name(port),
        bound: vec![host.clone()],
        host: Some(host.clone()),
        secure: kind == Kind::Tls,
    };
    let inner = Connection {
        shared,
        own,
        host,
        tunnelled: true,
    };
    let way = judge(&inner, &claimed, kind);
    let guest = std::io::Cursor::new(bytes).chain(from_guest);
    let mut guest = tokio::io::join(guest, to_guest);
    let mut server = tokio::io::join(from_server, to_server);
    match (way, kind) {
        (Way::Pass | Way::Spare, _) => {
            let copy = tokio::io::copy_bidirectional_with_sizes;
            // Whoever cut it off knows.
            let _ = copy(&mut guest, &mut server, BUFFER, BUFFER).await;
        }
        (Way::Intercept, _) if spoke => {
            inner.refuse_tunnel("its end spoke first, which no server of HTTP does");
        }
        (Way::Intercept, Kind::Tls) => secure(inner, guest, server).await,
        (Way::Intercept, _) => {
            let session = inner.session().await;
            relay::run(&inner, session, guest, server).await;
        }
        (Way::Refuse, Kind::Tls) => refuse(guest, AlertDescription::UnrecognisedName).await,
        (Way::Refuse, _) => {}
    }
}

/// What a tunnel began with.
struct Begun {
    bytes: Vec<u8>,
    claimed: Claimed,
    /// Its end sent something before.
    spoke: bool,
}

/// Reads what the guest says first. What the end of the tunnel says before is passed on:
/// in many protocols it greets.
async fn begin(
    from_guest: &mut (impl AsyncRead + Unpin),
    to_guest: &mut (impl AsyncWrite + Unpin),
    from_server: &mut (impl AsyncRead + Unpin),
) -> Option<Begun> {
    let (mut bytes, mut spoke) = (Vec::new(), false);
    let (mut up, mut down) = (vec![0; 4096], vec![0; 4096]);
    loop {
        let claimed = match claim::examine(&bytes) {
            // An answer to whoever spoke first, which no server of HTTP does.
            Claimed::Partial if spoke && !bytes.is_empty() && claim::is_skipped(&bytes) => {
                Some(Claimed::Foreign)
            }
            Claimed::Partial => None,
            // A tunnel's client that speaks first says a whole line.
            Claimed::Unclear if !spoke && bytes.len() < claim::MAX_EXAMINED => None,
            claimed => Some(claimed),
        };
        if let Some(claimed) = claimed {
            return Some(Begun {
                bytes,
                claimed,
                spoke,
            });
        }
        tokio::select! {
            read = from_guest.read(&mut up) => match read {
                Ok(length @ 1..) => bytes.extend_from_slice(&up[..length]),
                // One that ends without a word asks for nothing.
                Ok(0) if !bytes.is_empty() => {
                    let claimed = Claimed::Absent;
                    return Some(Begun { bytes, claimed, spoke });
                }
                Ok(0) | Err(_) => return None,
            },
            read = from_server.read(&mut down) => match read {
                Ok(length @ 1..) => {
                    to_guest.write_all(&down[..length]).await.ok()?;
                    to_guest.flush().await.ok()?;
                    spoke = true;
                }
                Ok(0) | Err(_) => return None,
            },
        }
    }
}

/// Says what happens to a tunnel, and tells of it if it is refused.
fn judge(inner: &Connection, claimed: &Claimed, kind: Kind) -> Way {
    if kind == Kind::Http {
        // Each request must be for its end.
        return Way::Intercept;
    }
    let (policy, facts) = (&inner.shared.policy, &inner.own.facts);
    let claim = claimed.by(facts.transport);
    if kind == Kind::Tls && claim != Claim::Name(&inner.host) {
        inner.refuse_tunnel("the name in TLS is not that of the tunnel's end");
        return Way::Refuse;
    }
    let names = Names {
        bound: &inner.own.bound,
        claim,
    };
    let verdict = policy.decide(facts, &names);
    if verdict.action == Action::Deny {
        let by = policy.describe(&verdict.by);
        let (method, path) = inner.tunnel();
        inner.note(Note::Denied { method, path, by });
        return Way::Refuse;
    }
    let intercept = inner.shared.intercept.as_ref();
    let way = way((policy, intercept), facts, &names, &verdict, kind);
    match way {
        Way::Refuse => inner.refuse_tunnel("a rule is about its requests, and it is not HTTP"),
        Way::Spare => inner.note(Note::Passed),
        Way::Pass | Way::Intercept => {}
    }
    way
}

impl Connection {
    /// How events tell of a tunnel.
    fn tunnel(&self) -> (String, String) {
        let path = match self.own.facts.transport {
            crate::policy::Transport::Tcp(port) => format!(":{port}"),
            _ => String::new(),
        };
        ("CONNECT".into(), path)
    }

    fn refuse_tunnel(&self, why: &str) {
        let (method, path) = self.tunnel();
        let why = why.into();
        self.note(Note::Refused { method, path, why });
    }
}
