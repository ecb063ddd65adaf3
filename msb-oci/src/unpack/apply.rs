//! Makes the destination equal to the merged tree.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, Timespec, Timestamps};
use rustix::io::Errno;

use super::root::{Root, failed, names, open_beneath, remove};
use super::{Source, Summary, UnpackError, object};
use crate::layer::Kind;
use crate::tree::{Node, NodeId, Tree};

pub(super) fn apply(
    root: &Root,
    tree: &Tree<'_>,
    layers: &[Source],
) -> Result<Summary, UnpackError> {
    let mut apply = Apply {
        root,
        layers,
        summary: Summary::default(),
        made: HashMap::new(),
        kept_times: Vec::new(),
        stage: None,
    };
    let result = apply
        .stage_moved_links(tree)
        .and_then(|()| apply.make_all(tree));
    if let Some((name, _)) = apply.stage.take() {
        let top = root.directory(b"").map_err(failed("open", b""))?;
        remove(top.as_fd(), &name).map_err(failed("remove", &name))?;
    }
    result?;
    apply.describe_directories(tree)?;
    Ok(apply.summary)
}

struct Apply<'r> {
    root: &'r Root,
    layers: &'r [Source],
    summary: Summary,
    /// The first path of each node made here, for its further links.
    made: HashMap<NodeId, Vec<u8>>,
    /// Times of directories that no layer has an entry for.
    kept_times: Vec<(Vec<u8>, Timespec)>,
    /// A directory in the destination that keeps files of it alive which get
    /// new names while their old ones go.
    stage: Option<(Vec<u8>, OwnedFd)>,
}

impl Apply<'_> {
    /// Files that were in the destination and have a new name in the tree
    /// are linked aside before anything is deleted.
    fn stage_moved_links(&mut self, tree: &Tree<'_>) -> Result<(), UnpackError> {
        for (path, node) in tree.walk() {
            if !node.is_base() || node.kind() == Kind::Directory || node.first_path() == path {
                continue;
            }
            if self.stage.is_none() {
                self.stage = Some(self.make_stage()?);
            }
            let Some((stage_name, stage)) = &self.stage else {
                continue;
            };
            let name = format!("{:?}", node.id()).into_bytes();
            let old = node.first_path();
            let (parent, base) = split(&old);
            let parent = self
                .root
                .directory(parent)
                .map_err(failed("open", parent))?;
            match rustix::fs::linkat(&parent, base, stage, name.as_slice(), AtFlags::empty()) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed("link", &old)(errno)),
            }
            let staged = [stage_name.as_slice(), &name].join(&b'/');
            self.made.insert(node.id(), staged);
        }
        Ok(())
    }

    fn make_stage(&self) -> Result<(Vec<u8>, OwnedFd), UnpackError> {
        let name = format!(".msb-unpack-{}", std::process::id()).into_bytes();
        let top = self.root.directory(b"").map_err(failed("open", b""))?;
        rustix::fs::mkdirat(&top, name.as_slice(), Mode::RWXU).map_err(failed("create", &name))?;
        let stage = open_beneath(top.as_fd(), &name).map_err(failed("open", &name))?;
        Ok((name, stage))
    }

    fn make_all(&mut self, tree: &Tree<'_>) -> Result<(), UnpackError> {
        let mut parent: Option<(Vec<u8>, OwnedFd)> = None;
        for (path, node) in tree.walk() {
            if path.is_empty() {
                self.enter(&path, node)?;
                continue;
            }
            let (parent_path, name) = split(&path);
            if parent.as_ref().is_none_or(|(open, _)| open != parent_path) {
                let fd = self
                    .root
                    .directory(parent_path)
                    .map_err(failed("open", parent_path))?;
                parent = Some((parent_path.to_vec(), fd));
            }
            let Some((_, directory)) = &parent else {
                continue;
            };
            if node.kind() == Kind::Directory {
                if !node.is_base() {
                    self.clear(directory, name, &path)?;
                    rustix::fs::mkdirat(directory, name, Mode::RWXU)
                        .map_err(failed("create", &path))?;
                }
                self.enter(&path, node)?;
            } else if !(node.is_base() && node.first_path() == path) {
                self.clear(directory, name, &path)?;
                self.make(directory, name, &path, node)?;
            }
        }
        Ok(())
    }

    fn clear(&mut self, directory: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), UnpackError> {
        let removed = remove(directory.as_fd(), name).map_err(failed("remove", path))?;
        self.summary.removed += u64::from(removed);
        Ok(())
    }

    /// Prepares a directory that was there before: deletes what the tree does
    /// not have, and notes its time if no layer sets one.
    fn enter(&mut self, path: &[u8], node: Node<'_, '_>) -> Result<(), UnpackError> {
        if !node.is_base() {
            return Ok(());
        }
        let directory = self.root.directory(path).map_err(failed("open", path))?;
        if !node.is_described() {
            let stat = rustix::fs::fstat(&directory).map_err(failed("read", path))?;
            let time = Timespec {
                tv_sec: stat.st_mtime as i64,
                tv_nsec: stat.st_mtime_nsec as _,
            };
            self.kept_times.push((path.to_vec(), time));
        }
        for name in names(&directory).map_err(failed("list", path))? {
            let is_stage =
                path.is_empty() && self.stage.as_ref().is_some_and(|(stage, _)| *stage == name);
            if !is_stage && !node.has_child(&name) {
                self.clear(&directory, &name, &name)?;
            }
        }
        Ok(())
    }

    fn make(
        &mut self,
        directory: &OwnedFd,
        name: &[u8],
        path: &[u8],
        node: Node<'_, '_>,
    ) -> Result<(), UnpackError> {
        if let Some(first) = self.made.get(&node.id()) {
            let (parent, base) = split(first);
            let parent = self
                .root
                .directory(parent)
                .map_err(failed("open", parent))?;
            return rustix::fs::linkat(&parent, base, directory, name, AtFlags::empty())
                .map_err(failed("link", path));
        }
        let layer = &self.layers[node.layer() as usize];
        object::make(
            directory.as_fd(),
            name,
            node,
            layer.tar(),
            &mut self.summary,
        )
        .map_err(failed("create", path))?;
        self.made.insert(node.id(), path.to_vec());
        Ok(())
    }

    /// Directories get their attributes last, the deepest first: their times
    /// would not survive, and a mode without write permission or a default
    /// ACL would get in the way.
    fn describe_directories(&mut self, tree: &Tree<'_>) -> Result<(), UnpackError> {
        for (path, time) in self.kept_times.iter().rev() {
            let directory = self.root.directory(path).map_err(failed("open", path))?;
            let omit = Timespec {
                tv_sec: 0,
                tv_nsec: rustix::fs::UTIME_OMIT,
            };
            let times = Timestamps {
                last_access: omit,
                last_modification: *time,
            };
            match rustix::fs::futimens(&directory, &times) {
                // Somebody else's directory that we may write to.
                Ok(()) | Err(Errno::PERM) => {}
                Err(errno) => return Err(failed("set the time of", path)(errno)),
            }
        }
        let directories = tree
            .walk()
            .filter(|(_, node)| node.kind() == Kind::Directory && node.is_described());
        let mut directories: Vec<_> = directories.collect();
        directories.reverse();
        for (path, node) in directories {
            let directory = self.root.directory(&path).map_err(failed("open", &path))?;
            object::describe(&directory, node, &mut self.summary)
                .map_err(failed("describe", &path))?;
        }
        Ok(())
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}
