//! Pulls and imports against a scripted registry, a real one, and archives
//! made by other people's tools.

mod archives;
mod fake;
mod hostile;
mod image;
mod protocol;
mod real;
mod store;
