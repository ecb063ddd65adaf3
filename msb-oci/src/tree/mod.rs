//! Merges layers into the tree that the container sees.
//!
//! Owns: whiteouts, opaque directories, replacement, hard links across
//! layers, implicit parents, and the resolution of symlinks inside paths.
//! Deliberately absent: any I/O. A [`Tree`] borrows names and attributes from
//! the [`LayerIndex`]es it was merged from.
//!
//! Read first: `layer.md` of the OCI image specification. Where it is silent
//! the behaviour is that of umoci and containerd.
//!
//! ```
//! use msb_oci::{layer::{Indexer, Limits}, tree::Tree};
//!
//! let index = Indexer::new(Limits::default()).finish()?;
//! let tree = Tree::merge([&index]).unwrap();
//! assert_eq!(tree.root().children().count(), 0);
//! # Ok::<(), msb_oci::layer::Fault>(())
//! ```

mod merge;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::layer::{Entry, Extent, Fault, Kind, LayerIndex, Xattr};

/// Permission bits of a directory that no entry describes.
const IMPLICIT_MODE: u16 = 0o755;

/// The number of a layer that stands for what was there before the first.
pub(crate) const BASE: u32 = u32::MAX;

/// A layer that can't be applied to those below it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("layer {layer}: {fault}")]
pub struct MergeFault {
    /// Number of the layer, the lowest being 0.
    pub layer: usize,
    /// Entry and reason.
    #[source]
    pub fault: Fault,
}

/// Layers merged, whiteouts resolved.
#[derive(Debug)]
pub struct Tree<'a> {
    nodes: Vec<NodeData<'a>>,
    /// So many of the first nodes are from the base.
    base_nodes: u32,
}

/// Index into `Tree::nodes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(u32);

const ROOT: NodeId = NodeId(0);

#[derive(Debug)]
struct NodeData<'a> {
    /// `None` for implicit directories.
    entry: Option<Entry<'a>>,
    /// The layer that the entry is from.
    layer: u32,
    /// The last layer that changed something here or below.
    touched: u32,
    /// For directories: the one parent. Others: where they were made.
    parent: NodeId,
    name: &'a [u8],
    depth: u16,
    path_length: u16,
    children: BTreeMap<&'a [u8], Edge>,
}

#[derive(Clone, Copy, Debug)]
struct Edge {
    node: NodeId,
    /// The layer that put the name here.
    layer: u32,
}

impl<'a> Tree<'a> {
    /// Applies layers in order, the lowest first.
    ///
    /// # Errors
    /// Whatever makes a layer inapplicable or dangerous; the fault names the
    /// layer and the entry.
    pub fn merge(layers: impl IntoIterator<Item = &'a LayerIndex>) -> Result<Tree<'a>, MergeFault> {
        merge::merge(None, layers)
    }

    /// Like [`Tree::merge`], on top of what `base` describes.
    pub(crate) fn merge_onto(
        base: &'a LayerIndex,
        layers: impl IntoIterator<Item = &'a LayerIndex>,
    ) -> Result<Tree<'a>, MergeFault> {
        merge::merge(Some(base), layers)
    }

    /// The root directory.
    pub fn root(&self) -> Node<'_, 'a> {
        self.node(ROOT)
    }

    /// Upper bound of the number of inodes.
    pub(crate) fn capacity(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn node(&self, id: NodeId) -> Node<'_, 'a> {
        Node { tree: self, id }
    }

    /// Every path in depth-first order, directories before their content,
    /// siblings sorted by bytes. The root's path is empty.
    pub fn walk(&self) -> Walk<'_, 'a> {
        Walk {
            path: Vec::new(),
            stack: Vec::new(),
            tree: self,
            started: false,
        }
    }
}

/// A file, directory or other object of a [`Tree`]. Several names may lead to
/// one node: hard links.
#[derive(Clone, Copy)]
pub struct Node<'t, 'a> {
    tree: &'t Tree<'a>,
    id: NodeId,
}

impl<'t, 'a> Node<'t, 'a> {
    pub(crate) fn id(&self) -> NodeId {
        self.id
    }

    /// Whether the node was there before the first layer.
    pub(crate) fn is_base(&self) -> bool {
        self.id.0 < self.tree.base_nodes
    }

    /// Whether a layer says what the node's attributes are, or an implicit
    /// directory's were chosen here.
    pub(crate) fn is_described(&self) -> bool {
        self.data().layer != BASE || self.tree.base_nodes == 0
    }

    /// The path under which the node was made.
    pub(crate) fn first_path(&self) -> Vec<u8> {
        let mut names = Vec::new();
        let mut current = self.id;
        while current != ROOT {
            let data = &self.tree.nodes[current.0 as usize];
            names.push(data.name);
            current = data.parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    pub(crate) fn has_child(&self, name: &[u8]) -> bool {
        self.data().children.contains_key(name)
    }

    fn data(&self) -> &'t NodeData<'a> {
        &self.tree.nodes[self.id.0 as usize]
    }

    /// The entry that describes the node; `None` for a directory that no
    /// layer has an entry for.
    pub fn entry(&self) -> Option<Entry<'a>> {
        self.data().entry
    }

    /// Number of the layer that the node's data and attributes are from.
    pub fn layer(&self) -> u32 {
        self.data().layer
    }

    /// Type; never a hard link or a whiteout.
    pub fn kind(&self) -> Kind {
        self.entry().map_or(Kind::Directory, |entry| entry.kind())
    }

    /// Permission bits.
    pub fn mode(&self) -> u16 {
        self.entry().map_or(IMPLICIT_MODE, |entry| entry.mode())
    }

    /// Owner.
    pub fn uid(&self) -> u32 {
        self.entry().map_or(0, |entry| entry.uid())
    }

    /// Group.
    pub fn gid(&self) -> u32 {
        self.entry().map_or(0, |entry| entry.gid())
    }

    /// Modification time; 1970 for implicit directories.
    pub fn mtime(&self) -> (i64, u32) {
        self.entry().map_or((0, 0), |entry| entry.mtime())
    }

    /// Bytes of a regular file.
    pub fn size(&self) -> u64 {
        self.entry().map_or(0, |entry| entry.size())
    }

    /// Major and minor number of a device.
    pub fn device(&self) -> (u32, u32) {
        self.entry().map_or((0, 0), |entry| entry.device())
    }

    /// Target of a symlink; empty for others.
    pub fn target(&self) -> &'a [u8] {
        self.entry()
            .filter(|entry| entry.kind() == Kind::Symlink)
            .map_or(b"", |entry| entry.target())
    }

    /// Where the data lies in the tar of layer [`Node::layer`].
    pub fn extents(&self) -> &'a [Extent] {
        self.entry().map_or(&[], |entry| entry.extents())
    }

    /// Extended attributes, sorted by name.
    pub fn xattrs(&self) -> impl Iterator<Item = Xattr<'a>> + use<'a> {
        self.entry().into_iter().flat_map(|entry| entry.xattrs())
    }

    /// A directory's content, sorted by the bytes of the names.
    pub fn children(
        &self,
    ) -> impl ExactSizeIterator<Item = (&'a [u8], Node<'t, 'a>)> + use<'t, 'a> {
        let tree = self.tree;
        self.data()
            .children
            .iter()
            .map(move |(&name, edge)| (name, tree.node(edge.node)))
    }
}

impl std::fmt::Debug for Node<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.id)
            .field("kind", &self.kind())
            .finish_non_exhaustive()
    }
}

/// The iterator of [`Tree::walk`].
pub struct Walk<'t, 'a> {
    tree: &'t Tree<'a>,
    path: Vec<u8>,
    stack: Vec<(usize, std::collections::btree_map::Iter<'t, &'a [u8], Edge>)>,
    started: bool,
}

impl<'t, 'a> Iterator for Walk<'t, 'a> {
    type Item = (Vec<u8>, Node<'t, 'a>);

    fn next(&mut self) -> Option<Self::Item> {
        if !self.started {
            self.started = true;
            self.stack
                .push((0, self.tree.root().data().children.iter()));
            return Some((Vec::new(), self.tree.root()));
        }
        loop {
            let (length, children) = self.stack.last_mut()?;
            self.path.truncate(*length);
            let Some((name, edge)) = children.next() else {
                self.stack.pop();
                continue;
            };
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name);
            let node = self.tree.node(edge.node);
            if node.kind() == Kind::Directory {
                self.stack
                    .push((self.path.len(), node.data().children.iter()));
            }
            return Some((self.path.clone(), node));
        }
    }
}

impl std::fmt::Debug for Walk<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}
