//! What is in the destination already, as the index of a lowest layer: types
//! and symlink targets only. Nothing is followed.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType};

use super::UnpackError;
use super::root::{Root, failed, names};
use crate::layer::{Builder, Draft, Kind, LayerIndex};

pub(super) fn scan(root: &Root) -> Result<LayerIndex, UnpackError> {
    let mut builder = Builder::default();
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let directory = root.directory(&path).map_err(failed("open", &path))?;
        for name in names(&directory).map_err(failed("list", &path))? {
            let mut child = path.clone();
            if !child.is_empty() {
                child.push(b'/');
            }
            child.extend_from_slice(&name);
            let (kind, target) = look(&directory, &name, &child)?;
            let draft = Draft {
                kind,
                mode: 0,
                uid: 0,
                gid: 0,
                mtime: (0, 0),
                size: 0,
                device: (0, 0),
                path: &child,
                target: &target,
            };
            builder
                .add(&draft, &[], std::iter::empty())
                .map_err(|fault| UnpackError::Refused {
                    layer: "(destination)".to_owned(),
                    fault,
                })?;
            if kind == Kind::Directory {
                pending.push(child);
            }
        }
    }
    Ok(builder.finish(0))
}

fn look(directory: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(Kind, Vec<u8>), UnpackError> {
    let stat = rustix::fs::statat(directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed("read", path))?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::CharacterDevice => Kind::CharDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        _ => Kind::File,
    };
    let target = match kind {
        Kind::Symlink => rustix::fs::readlinkat(directory.as_fd(), name, Vec::new())
            .map_err(failed("read", path))?
            .into_bytes(),
        _ => Vec::new(),
    };
    Ok((kind, target))
}
