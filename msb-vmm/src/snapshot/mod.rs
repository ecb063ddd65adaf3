//! Snapshots: machines that were saved while they ran, to go on as often as needed.
//!
//! A snapshot has the guest's memory in a sparse file, its device state, copies of its
//! writable disks, and a text of the caller's. A start maps the memory copy-on-write. What
//! all copies share must be made different before anything else runs in them: the guest has
//! to be at rest when it is saved, and stay so until it knows who it is.
//!
//! ```text
//! snapshots/NAME/          ram, state, disk0 …, disk0.base …, about, meta.json
//! snapshots/.NAME.draft/   one that is being made
//! snapshots/.NAME.lock     held by the maker
//! ```
//!
//! A folder NAME appears by a rename, complete and written out to the disk. Each file's
//! identity, size and time of change is noted, and its digest. Files that are as they were
//! noted are taken; others, of a home that was copied, are read and compared; what differs is
//! refused. The trust in the memory file is that of templates.

//!
//! Copies share a disk that was saved, too: each writes what it changes into an [`overlay`]
//! above it, unless the file system can clone it. What goes on from a copy has the same disk
//! below it and a copy of the overlay, so there are never more than two files to a disk.
//!
//! A snapshot *for a moment*, of which others are started at once, has its memory in a
//! nameless file in memory that is sealed: nobody can change it any more, and it is gone
//! when the last process that has it is.

mod held;
mod memory;
pub(crate) mod overlay;
mod store;

pub use held::HeldMemory;
pub use store::{GiveUp, Listed, Snapshot, SnapshotDraft, Snapshots};
