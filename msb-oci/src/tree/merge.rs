//! Applies one layer after the other.
//!
//! A layer is applied in two passes, so that the order of its entries does
//! not matter for what it hides: first its whiteouts are resolved and carried
//! out against the lower layers alone, then its entries are added.

use std::collections::{BTreeMap, HashMap};

use super::{BASE, Edge, MergeFault, NodeData, NodeId, ROOT, Tree};
use crate::layer::{Entry, Fault, Kind, LayerIndex, MAX_DEPTH, MAX_PATH, Reason, printable};

/// Symlinks that one path may run through: Linux's own bound.
const MAX_LINKS: usize = 40;

/// Directories of an image that no entry describes. Each name of a few
/// kilobytes can make a thousand of them; real layers describe their own.
#[cfg(not(test))]
const MAX_IMPLICIT: u32 = 1 << 20;
#[cfg(test)]
const MAX_IMPLICIT: u32 = 1 << 12;

/// Steps that the paths of an image may take inside targets of symlinks. One
/// entry could take eighty thousand, at a few bytes of archive; a real image
/// of a hundred thousand entries takes some for each.
#[cfg(not(test))]
const MAX_LINK_STEPS: u64 = 1 << 26;
#[cfg(test)]
const MAX_LINK_STEPS: u64 = 1 << 14;

/// A layer number that no layer has.
const NEVER: u32 = BASE - 1;

pub(super) fn merge<'a>(
    base: Option<&'a LayerIndex>,
    layers: impl IntoIterator<Item = &'a LayerIndex>,
) -> Result<Tree<'a>, MergeFault> {
    let root = NodeData {
        entry: None,
        layer: BASE,
        touched: NEVER,
        parent: ROOT,
        name: b"",
        depth: 0,
        path_length: 0,
        children: BTreeMap::new(),
    };
    let mut merge = Merge {
        nodes: vec![root],
        layer: BASE,
        last_parent: None,
        hidden: HashMap::new(),
        implicit: 0,
        link_steps: 0,
    };
    if let Some(base) = base {
        merge
            .apply(base)
            .map_err(|fault| MergeFault { layer: 0, fault })?;
    }
    let base_nodes = if base.is_some() {
        merge.nodes.len() as u32
    } else {
        0
    };
    for (number, index) in layers.into_iter().enumerate() {
        merge.layer = u32::try_from(number).unwrap_or(NEVER - 1);
        merge.apply(index).map_err(|fault| MergeFault {
            layer: number,
            fault,
        })?;
    }
    Ok(Tree {
        nodes: merge.nodes,
        base_nodes,
    })
}

struct Merge<'a> {
    nodes: Vec<NodeData<'a>>,
    layer: u32,
    /// The directory that the last entry was put into, by the path the entry
    /// spelled: neighbours in a tar mostly share it.
    last_parent: Option<(&'a [u8], NodeId)>,
    /// What this layer's whiteouts took away: its hard links may still mean
    /// it, as the order of entries is not significant.
    hidden: HashMap<(NodeId, &'a [u8]), Edge>,
    /// Directories made for their content alone, so far.
    implicit: u32,
    /// Steps inside targets of symlinks, so far.
    link_steps: u64,
}

/// What [`Merge::directory`] does about components that do not exist.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Create,
    GiveUp,
    /// Look among what this layer hides, then give up.
    LookHidden,
}

/// What a whiteout found in the lower layers.
enum Hidden<'a> {
    Name(NodeId, &'a [u8]),
    Content(NodeId),
}

impl<'a> Merge<'a> {
    fn apply(&mut self, index: &'a LayerIndex) -> Result<(), Fault> {
        let mut hidden = Vec::new();
        for entry in index
            .entries()
            .filter(|entry| matches!(entry.kind(), Kind::Whiteout | Kind::Opaque))
        {
            let found = self
                .hidden_by(entry)
                .map_err(|reason| Fault::new(entry.path(), reason))?;
            hidden.extend(found);
        }
        self.hidden.clear();
        for hidden in hidden {
            match hidden {
                Hidden::Name(directory, name) => {
                    let edge = self.node_mut(directory).children.remove(name);
                    self.hidden
                        .extend(edge.map(|edge| ((directory, name), edge)));
                }
                Hidden::Content(directory) => {
                    let children = std::mem::take(&mut self.node_mut(directory).children);
                    self.hidden.extend(
                        children
                            .into_iter()
                            .map(|(name, edge)| ((directory, name), edge)),
                    );
                }
            }
        }
        self.last_parent = None;
        for entry in index.entries() {
            self.add(entry)
                .map_err(|reason| Fault::new(entry.path(), reason))?;
        }
        self.last_parent = None;
        Ok(())
    }

    fn hidden_by(&mut self, entry: Entry<'a>) -> Result<Option<Hidden<'a>>, Reason> {
        let (parent, name) = split(entry.path());
        let opaque = entry.kind() == Kind::Opaque;
        let directory =
            match self.directory(if opaque { entry.path() } else { parent }, Missing::GiveUp) {
                Ok(Some(directory)) => directory,
                // What is no directory below has nothing to hide.
                Ok(None) | Err(Reason::ParentNotDirectory { .. }) => return Ok(None),
                Err(reason) => return Err(reason),
            };
        Ok(Some(if opaque {
            Hidden::Content(directory)
        } else {
            Hidden::Name(directory, name)
        }))
    }

    fn add(&mut self, entry: Entry<'a>) -> Result<(), Reason> {
        if matches!(entry.kind(), Kind::Whiteout | Kind::Opaque) {
            // Done already. What remains is to refuse one whose path this
            // layer itself turns into a trick.
            return self.hidden_by(entry).map(|_| ());
        }
        if entry.path().is_empty() {
            return self.describe(ROOT, entry);
        }
        let (parent_path, name) = split(entry.path());
        let parent = match self.last_parent {
            Some((path, node)) if path == parent_path => node,
            _ => {
                let node = self.create_directory(parent_path)?;
                self.touch(node);
                self.last_parent = Some((parent_path, node));
                node
            }
        };
        match entry.kind() {
            Kind::Directory => self.add_directory(parent, name, entry),
            Kind::HardLink => {
                let target = self.link_target(entry)?;
                self.put(parent, name, target)
            }
            _ => {
                let node = self.new_node(parent, name, Some(entry))?;
                self.put(parent, name, node)
            }
        }
    }

    fn add_directory(
        &mut self,
        parent: NodeId,
        name: &'a [u8],
        entry: Entry<'a>,
    ) -> Result<(), Reason> {
        match self.child(parent, name) {
            Some(edge) if self.kind(edge.node) == Kind::Directory => {
                self.describe(edge.node, entry)
            }
            _ => {
                let node = self.new_node(parent, name, Some(entry))?;
                self.put(parent, name, node)
            }
        }
    }

    /// Gives a directory that exists the attributes of `entry`.
    fn describe(&mut self, directory: NodeId, entry: Entry<'a>) -> Result<(), Reason> {
        let layer = self.layer;
        let node = self.node_mut(directory);
        match node.entry {
            Some(before) if node.layer == layer && !same_attributes(before, entry) => {
                Err(Reason::Duplicate)
            }
            _ => {
                (node.entry, node.layer) = (Some(entry), layer);
                Ok(())
            }
        }
    }

    /// Puts a node under a name, replacing what lower layers have there.
    fn put(&mut self, parent: NodeId, name: &'a [u8], node: NodeId) -> Result<(), Reason> {
        if let Some(edge) = self.child(parent, name) {
            let ours_below = self.kind(edge.node) == Kind::Directory
                && self.node(edge.node).touched == self.layer;
            if edge.layer == self.layer || ours_below {
                return Err(Reason::Duplicate);
            }
            // A cached path may have led through what goes away.
            self.last_parent = None;
        }
        let edge = Edge {
            node,
            layer: self.layer,
        };
        self.node_mut(parent).children.insert(name, edge);
        Ok(())
    }

    fn link_target(&mut self, entry: Entry<'a>) -> Result<NodeId, Reason> {
        let target = || printable(entry.target());
        let (parent, name) = split(entry.target());
        if name.is_empty() {
            return Err(Reason::LinkToDirectory { target: target() });
        }
        let directory = match self.directory(parent, Missing::LookHidden) {
            Ok(directory) => directory,
            Err(Reason::ParentNotDirectory { .. }) => None,
            Err(reason) => return Err(reason),
        };
        let edge = directory.and_then(|directory| {
            self.child(directory, name)
                .or_else(|| self.hidden.get(&(directory, name)).copied())
        });
        let edge = edge.ok_or_else(|| Reason::LinkMissing { target: target() })?;
        if self.kind(edge.node) == Kind::Directory {
            return Err(Reason::LinkToDirectory { target: target() });
        }
        Ok(edge.node)
    }

    fn create_directory(&mut self, path: &'a [u8]) -> Result<NodeId, Reason> {
        let found = self.directory(path, Missing::Create)?;
        Ok(found.unwrap_or(ROOT))
    }

    /// Follows a path to a directory, through symlinks, never above the root.
    fn directory(&mut self, path: &'a [u8], missing: Missing) -> Result<Option<NodeId>, Reason> {
        let mut current = ROOT;
        let mut rest: Vec<&'a [u8]> = vec![path];
        let mut links = 0;
        let mut last_link = None;
        while let Some(tail) = rest.pop() {
            let (component, tail) = split_first(tail);
            if !tail.is_empty() {
                rest.push(tail);
            }
            if links > 0 {
                if self.link_steps == MAX_LINK_STEPS {
                    return Err(Reason::LimitExceeded {
                        what: "steps through symlinks",
                        limit: MAX_LINK_STEPS,
                    });
                }
                self.link_steps += 1;
            }
            match component {
                b"" | b"." => continue,
                b".." if current == ROOT => {
                    return Err(Reason::SymlinkEscape {
                        link: self.display(last_link.unwrap_or(ROOT)),
                    });
                }
                b".." => {
                    current = self.node(current).parent;
                    continue;
                }
                _ => {}
            }
            let edge = match missing {
                Missing::LookHidden => self
                    .child(current, component)
                    .or_else(|| self.hidden.get(&(current, component)).copied()),
                Missing::Create | Missing::GiveUp => self.child(current, component),
            };
            let Some(edge) = edge else {
                if missing != Missing::Create {
                    return Ok(None);
                }
                if self.implicit == MAX_IMPLICIT {
                    return Err(Reason::LimitExceeded {
                        what: "directories without entries of their own",
                        limit: u64::from(MAX_IMPLICIT),
                    });
                }
                self.implicit += 1;
                let node = self.new_node(current, component, None)?;
                self.put(current, component, node)?;
                current = node;
                continue;
            };
            match self.kind(edge.node) {
                Kind::Directory => current = edge.node,
                Kind::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Reason::SymlinkLoop);
                    }
                    let target = self
                        .node(edge.node)
                        .entry
                        .map_or(&b""[..], |entry| entry.target());
                    if target.starts_with(b"/") {
                        if edge.layer == self.layer {
                            return Err(Reason::SymlinkTrick {
                                link: self.display(edge.node),
                            });
                        }
                        current = ROOT;
                    }
                    last_link = Some(edge.node);
                    rest.push(target);
                }
                _ => {
                    return Err(Reason::ParentNotDirectory {
                        parent: self.display(edge.node),
                    });
                }
            }
        }
        Ok(Some(current))
    }

    fn new_node(
        &mut self,
        parent: NodeId,
        name: &'a [u8],
        entry: Option<Entry<'a>>,
    ) -> Result<NodeId, Reason> {
        let above = self.node(parent);
        let depth = above.depth + 1;
        let path_length =
            usize::from(above.path_length) + usize::from(above.depth > 0) + name.len();
        if usize::from(depth) > MAX_DEPTH {
            return Err(Reason::TooDeep);
        }
        if path_length > MAX_PATH {
            return Err(Reason::NameTooLong { limit: MAX_PATH });
        }
        let number = u32::try_from(self.nodes.len())
            .ok()
            .filter(|&number| number < u32::MAX);
        let limit = u64::from(u32::MAX);
        let number = number.ok_or(Reason::LimitExceeded {
            what: "files in an image",
            limit,
        })?;
        self.nodes.push(NodeData {
            entry,
            layer: self.layer,
            touched: NEVER,
            parent,
            name,
            depth,
            path_length: path_length as u16,
            children: BTreeMap::new(),
        });
        Ok(NodeId(number))
    }

    /// Notes that this layer has something in the directory.
    fn touch(&mut self, directory: NodeId) {
        let layer = self.layer;
        let mut current = directory;
        while self.node(current).touched != layer {
            let node = self.node_mut(current);
            node.touched = layer;
            current = node.parent;
        }
    }

    fn node(&self, id: NodeId) -> &NodeData<'a> {
        &self.nodes[id.0 as usize]
    }

    fn node_mut(&mut self, id: NodeId) -> &mut NodeData<'a> {
        &mut self.nodes[id.0 as usize]
    }

    fn kind(&self, id: NodeId) -> Kind {
        self.node(id)
            .entry
            .map_or(Kind::Directory, |entry| entry.kind())
    }

    fn child(&self, directory: NodeId, name: &[u8]) -> Option<Edge> {
        self.node(directory).children.get(name).copied()
    }

    fn display(&self, id: NodeId) -> String {
        let mut names = Vec::new();
        let mut current = id;
        while current != ROOT {
            names.push(self.node(current).name);
            current = self.node(current).parent;
        }
        names.reverse();
        printable(&names.join(&b'/'))
    }
}

/// Splits a path into its directory and its last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// Splits a path into its first component and the rest.
fn split_first(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().position(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (path, b""),
    }
}

fn same_attributes(one: Entry<'_>, other: Entry<'_>) -> bool {
    let attributes = |entry: Entry<'_>| (entry.mode(), entry.uid(), entry.gid(), entry.mtime());
    attributes(one) == attributes(other) && one.xattrs().eq(other.xattrs())
}
