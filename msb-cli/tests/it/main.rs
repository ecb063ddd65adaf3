//! `msb` as a user runs it: real machines, real images, a real registry.
//!
//! Run by `cargo xtask test`, which builds the guest and the images and says
//! where they are.

mod attacks;
mod clients;
mod errors;
mod file;
mod forks;
mod guide;
mod images;
mod install;
mod kill;
mod lab;
mod life;
mod network;
mod outside;
mod run;
mod sdk;
mod secrets;
mod state;
mod surface;
mod terminal;
mod tmux;
mod trouble;
mod watching;
