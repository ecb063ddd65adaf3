//! The crate as its users see it.

mod corpus;
mod gateway_example;
mod guest;
mod jail;
mod names;
mod network;
mod policy_example;
mod published;
mod world;
