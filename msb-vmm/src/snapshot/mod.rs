//! Snapshots: machines that were saved while they ran, to go on as often as needed.
//!
//! A snapshot has the guest's memory in a sparse file, its device state, copies of its
//! writable disks, and a text of the caller's. A start maps the memory copy-on-write. What
//! all copies share must be made different before anything else runs in them: the guest has
//! to be at rest when it is saved, and stay so until it knows who it is.
//!
//! ```text
//! snapshots/NAME/          ram, state, disk0 …, about, meta.json
//! snapshots/.NAME.draft/   one that is being made
//! snapshots/.NAME.lock     held by the maker
//! ```
//!
//! A folder NAME appears by a rename, complete and written out to the disk. Each file's
//! identity, size and time of change is noted, and its digest. Files that are as they were
//! noted are taken; others, of a home that was copied, are read and compared; what differs is
//! refused. The trust in the memory file is that of templates.

mod memory;
mod store;

pub use store::{Listed, Snapshot, SnapshotDraft, Snapshots};
