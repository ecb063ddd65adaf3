//! `msb` as a user runs it: real machines, real images, a real registry.
//!
//! Run by `cargo xtask test`, which builds the guest and the images and says
//! where they are.

mod attacks;
mod clients;
mod copies;
mod dozen;
mod errors;
mod file;
mod forks;
mod guide;
mod images;
mod install;
mod kill;
mod lab;
mod life;
mod manual;
mod network;
mod outside;
mod run;
mod sdk;
mod secrets;
mod service;
mod state;
mod stress;
mod surface;
mod terminal;
mod tmux;
mod trouble;
mod watching;
