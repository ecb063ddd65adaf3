//! The two ends of the link in its session phase, without I/O and without time.
//!
//! An endpoint is told what was read ([`handle_input`](HostEndpoint::handle_input)),
//! says what that means ([`poll_event`](HostEndpoint::poll_event), until `None`)
//! and what is to be written ([`output`](HostEndpoint::output), then
//! [`consume_output`](HostEndpoint::consume_output)). Any call can add output.
//! An error of `poll_event` means that the peer broke the protocol: close the
//! link.
//!
//! # Life of a stream
//!
//! ```text
//! host                                  guest
//!   Open(request) ────────────────────►
//!                 ◄──────────────────── Event(Started)
//!   Data(stdin)   ◄───────────────────► Data(stdout|stderr), Window
//!   Eof(stdin)    ────────────────────►
//!                 ◄──────────────────── Eof(stdout), Eof(stderr)
//!                 ◄──────────────────── Event(Exited | Failed), Close
//!   Close         ────────────────────►   (sent by the endpoint itself)
//! ```
//!
//! Either side may send `Reset` instead and is answered with `Close` or its own
//! `Reset`. An id is free again once both sides have sent one of the two; what
//! arrives in between is checked and dropped.
//!
//! # Flow control
//!
//! Each channel starts with [`INITIAL_WINDOW`] bytes of credit. Data uses it up;
//! [`consumed`](HostEndpoint::consumed), called when the *final* consumer has
//! taken the bytes, gives it back. So whatever lies between, on either side,
//! never holds more than a window per channel, and a reader that stops reading
//! stops its own stream only. Events and commands are small, few by rule, and
//! outside flow control.

mod guest;
mod host;
mod mux;
mod stream;

pub use guest::{GuestEndpoint, GuestEvent};
pub use host::{HostEndpoint, HostEvent};

/// Credit that each channel has when its stream opens, in bytes.
///
/// Large enough that a consumer which is woken for every 64 KiB keeps the
/// producer busy; small enough that a thousand stalled streams fit in memory.
pub const INITIAL_WINDOW: u32 = 256 * 1024;

/// Most credit a channel can ever have. A peer that grants more is refused, so
/// that credit cannot be made meaningless.
pub const MAX_WINDOW: u32 = 4 * 1024 * 1024;

/// Most streams that are open at once; the guest refuses more with
/// [`ResetCode::Refused`](crate::message::ResetCode::Refused). Each costs the
/// agent up to three descriptors and a window per channel.
pub const MAX_STREAMS: usize = 1024;

/// Most bytes of unfinished messages in parts, over all streams: a few of the
/// largest at once.
pub const MAX_ASSEMBLING: usize = 4 * crate::message::MAX_MESSAGE;

#[cfg(test)]
mod tests;
