//! The crate as its users see it.

mod attacks;
mod corpus;
mod endurance;
mod gateway_example;
mod guest;
mod hostile;
mod intercepted;
mod jail;
mod names;
mod network;
mod policy_example;
mod published;
mod world;
