//! What a sandbox may reach, and what came of it.

mod event;
mod limits;
mod policy;

pub(crate) use event::NetworkWatcher;
pub use event::{Decision, NetworkActivity, NetworkEvent, NetworkEvents, Query, Request};
pub use limits::NetworkLimits;
pub use policy::NetworkPolicy;
pub(crate) use policy::{read_document, shown_rule};
