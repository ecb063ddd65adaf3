//! The crate as its users see it.

mod corpus;
mod guest;
mod network;
mod policy_example;
