//! Names: what a guest's queries and their answers may be.
//!
//! Messages and tables only; who is asked and when is the
//! [gateway](crate::gateway)'s part.
//!
//! ```text
//!   guest ── Query ──► Cache ── hit ─────────────────────────► Body ──► guest
//!                        │ miss                                 ▲
//!                        ▼                                      │
//!                      Budget ──► upstream server ──► judge ────┤
//!                                                       │       ▼
//!                                                       └─► Bindings, Cache
//! ```
//!
//! Read RFC 1035, 4; RFC 6891 (EDNS); RFC 8914 (extended errors); RFC 2308
//! (negative answers); RFC 9460 (SVCB and HTTPS). A guest's query is read by a few
//! lines of our own, because most are answered from the cache and reading is then
//! most of the work; what a server sends is read and written by `hickory-proto`.

mod answer;
mod bindings;
mod body;
mod budget;
mod cache;
mod code;
mod local;
mod query;

pub(crate) use self::answer::{Subject, Verdicts, header, judge};
pub(crate) use self::bindings::Bindings;
pub(crate) use self::body::{Body, Note, UDP_SIZE};
pub(crate) use self::budget::Budget;
pub(crate) use self::cache::Cache;
pub use self::code::{Outcome, Rcode, RecordKind, Source, Unanswered};
pub(crate) use self::local::{HOST_NAME, is_inside, local};
pub(crate) use self::query::{FLAG_CHECKING_DISABLED, FLAG_DNSSEC_OK, Query, Unreadable, text};

/// The port of the domain name system.
pub(crate) const PORT: u16 = 53;
