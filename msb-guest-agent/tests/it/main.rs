//! The crate from outside: the two ends of the protocol against each other,
//! and (feature `agent`) the agent as an ordinary process.

#[cfg(feature = "agent")]
mod agent;
mod setup;
