//! Makes one object by its bare name in an open directory, and gives it its
//! attributes.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::Summary;
use crate::layer::Kind;
use crate::tree::Node;

const BUFFER: usize = 1 << 18;

/// Set-user-id and set-group-id.
const SET_ID: u32 = 0o6000;

/// Makes a node that is no directory. The name must be free.
pub(super) fn make(
    directory: BorrowedFd<'_>,
    name: &[u8],
    node: Node<'_, '_>,
    tar: &File,
    summary: &mut Summary,
) -> Result<(), Errno> {
    match node.kind() {
        Kind::File => {
            let flags =
                OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = File::from(rustix::fs::openat(
                directory,
                name,
                flags,
                Mode::from_raw_mode(0o600),
            )?);
            fill(&file, node, tar)?;
            describe(&file.into(), node, summary)
        }
        Kind::Symlink => {
            rustix::fs::symlinkat(node.target(), directory, name)?;
            describe_by_name(directory, name, node, summary)
        }
        Kind::CharDevice => device(directory, name, node, FileType::CharacterDevice, summary),
        Kind::BlockDevice => device(directory, name, node, FileType::BlockDevice, summary),
        Kind::Fifo => {
            rustix::fs::mknodat(
                directory,
                name,
                FileType::Fifo,
                Mode::from_raw_mode(0o600),
                0,
            )?;
            describe_by_name(directory, name, node, summary)
        }
        Kind::Directory | Kind::Socket | Kind::HardLink | Kind::Whiteout | Kind::Opaque => {
            Err(Errno::INVAL)
        }
    }
}

fn device(
    directory: BorrowedFd<'_>,
    name: &[u8],
    node: Node<'_, '_>,
    kind: FileType,
    summary: &mut Summary,
) -> Result<(), Errno> {
    let (major, minor) = node.device();
    let number = rustix::fs::makedev(major, minor);
    match rustix::fs::mknodat(directory, name, kind, Mode::from_raw_mode(0o600), number) {
        Err(Errno::PERM) => {
            summary.devices_lost += 1;
            rustix::fs::mknodat(
                directory,
                name,
                FileType::RegularFile,
                Mode::from_raw_mode(0o600),
                0,
            )?;
        }
        result => result?,
    }
    describe_by_name(directory, name, node, summary)
}

/// Copies the data; what no extent covers stays a hole.
fn fill(file: &File, node: Node<'_, '_>, tar: &File) -> Result<(), Errno> {
    let mut buffer = Vec::new();
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    for extent in node.extents() {
        let mut done = 0;
        while done < extent.length {
            let length = (extent.length - done).min(BUFFER as u64) as usize;
            buffer.resize(length, 0);
            tar.read_exact_at(&mut buffer, extent.tar_offset + done)
                .map_err(errno)?;
            file.write_all_at(&buffer, extent.offset + done)
                .map_err(errno)?;
            done += length as u64;
        }
    }
    let end = node
        .extents()
        .last()
        .map_or(0, |extent| extent.offset + extent.length);
    if end < node.size() {
        rustix::fs::ftruncate(file, node.size())
    } else {
        Ok(())
    }
}

/// Owner, xattrs, mode and time of an open file or directory. In this order:
/// a change of owner clears set-id bits and capabilities, and everything
/// before changes the time.
pub(super) fn describe(
    fd: &OwnedFd,
    node: Node<'_, '_>,
    summary: &mut Summary,
) -> Result<(), Errno> {
    let (uid, gid) = owner(node);
    let owned = kept(
        rustix::fs::fchown(fd, Some(uid), Some(gid)),
        &mut summary.owners_lost,
    )?;
    for xattr in node.xattrs() {
        let set = rustix::fs::fsetxattr(fd, xattr.name, xattr.value, XattrFlags::empty());
        kept(set, &mut summary.xattrs_lost)?;
    }
    rustix::fs::fchmod(fd, mode(node, owned))?;
    rustix::fs::futimens(fd, &times(node))?;
    summary.written += 1;
    Ok(())
}

/// The same for what can't be opened: symlinks, devices, fifos.
fn describe_by_name(
    directory: BorrowedFd<'_>,
    name: &[u8],
    node: Node<'_, '_>,
    summary: &mut Summary,
) -> Result<(), Errno> {
    let (uid, gid) = owner(node);
    let chowned = rustix::fs::chownat(
        directory,
        name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    );
    let owned = kept(chowned, &mut summary.owners_lost)?;
    let mut xattrs = node.xattrs().peekable();
    if xattrs.peek().is_some() {
        // The last component is not followed, the one before is our own
        // descriptor.
        let mut path = format!("/proc/self/fd/{}/", directory.as_fd().as_raw_fd()).into_bytes();
        path.extend_from_slice(name);
        for xattr in xattrs {
            let set = rustix::fs::lsetxattr(
                path.as_slice(),
                xattr.name,
                xattr.value,
                XattrFlags::empty(),
            );
            kept(set, &mut summary.xattrs_lost)?;
        }
    }
    if node.kind() != Kind::Symlink {
        // chmod has no form that refuses symlinks; through a descriptor that
        // is no symlink it can't meet one.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let object = rustix::fs::openat(directory, name, flags, Mode::empty())?;
        rustix::fs::chmod(
            format!("/proc/self/fd/{}", object.as_raw_fd()),
            mode(node, owned),
        )?;
    }
    rustix::fs::utimensat(directory, name, &times(node), AtFlags::SYMLINK_NOFOLLOW)?;
    summary.written += 1;
    Ok(())
}

/// Whether it worked; what an unprivileged caller or the file system can't do
/// is counted instead of being an error.
fn kept(result: Result<(), Errno>, lost: &mut u64) -> Result<bool, Errno> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL) => {
            *lost += 1;
            Ok(false)
        }
        Err(errno) => Err(errno),
    }
}

fn owner(node: Node<'_, '_>) -> (Uid, Gid) {
    (Uid::from_raw(node.uid()), Gid::from_raw(node.gid()))
}

fn mode(node: Node<'_, '_>, owned: bool) -> Mode {
    let bits = u32::from(node.mode());
    Mode::from_raw_mode(if owned { bits } else { bits & !SET_ID })
}

pub(super) fn times(node: Node<'_, '_>) -> Timestamps {
    let (seconds, nanos) = node.mtime();
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanos.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
