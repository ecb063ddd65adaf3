//! Shared parts of the benchmarks `boot`, `files`, `http`, `image`, `life` and `net`: what is measured where,
//! how samples become a table with verdicts, and the peers' tools.
//!
//! `docs/performance.md` says how to run them and what they have shown.
#![forbid(unsafe_code)]

pub mod conditions;
pub mod floor;
pub mod http;
pub mod instructions;
pub mod large_image;
pub mod net;
pub mod program;
pub mod registry;
pub mod report;
pub mod versus;
pub mod wanted;

/// The workspace's README, so that its examples are compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

/// The guide to files, so that its examples are compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/files.md")]
pub struct FilesGuide;
