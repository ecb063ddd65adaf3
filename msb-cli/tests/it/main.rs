//! `msb` as a user runs it: real machines, real images, a real registry.
//!
//! Run by `cargo xtask test`, which builds the guest and the images and says
//! where they are.

mod errors;
mod forks;
mod images;
mod kill;
mod lab;
mod life;
mod network;
mod run;
mod sdk;
mod secrets;
mod state;
mod terminal;
