//! HTTP as the gateway reads it: strictly, in bounded memory, without I/O.
//!
//! - [`head`] and [`body`]: messages of HTTP/1, and what is refused of them;
//! - [`session`]: what happens to requests and responses, of either version;
//! - [`relay`]: a connection of HTTP/1 from end to end;
//! - [`outgoing`]: what waits to be written, and is overwritten then;
//! - [`path`]: paths, and what servers may take them for.

pub mod body;
pub mod head;
pub mod outgoing;
pub mod path;
pub mod relay;
pub mod session;
