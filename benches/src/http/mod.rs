//! Requests that are read on their way: servers with TLS, loads, and mitmproxy.

mod load;
mod servers;

pub use self::load::{Load, Version};
pub use self::servers::{Mitmproxy, Server};

/// The host that all requests are for.
const HOST: &str = "a.example";

/// Bytes of the large answer.
const LARGE: u64 = 8 << 20;
