//! The inodes of the model.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Ino, Model};
use crate::tree::data::Data;
use crate::tree::{Kind, Owner, Rdev, Timestamp};

/// What an inode is.
#[derive(Clone, Debug)]
pub enum Node {
    /// Its names, and the directory that holds it (its own number for the root).
    Dir {
        names: BTreeMap<Vec<u8>, Ino>,
        parent: Ino,
    },
    /// Shared between clones: contents are large, and attributes change more often.
    File(Arc<Data>),
    Symlink(Vec<u8>),
    Fifo,
    Socket,
    Char(Rdev),
    Block(Rdev),
}

impl Node {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Dir { .. } => Kind::Dir,
            Self::File(data) => Kind::File(Some(data.content())),
            Self::Symlink(target) => Kind::Symlink(target.clone()),
            Self::Fifo => Kind::Fifo,
            Self::Socket => Kind::Socket,
            Self::Char(dev) => Kind::Char(*dev),
            Self::Block(dev) => Kind::Block(*dev),
        }
    }
}

/// An inode: what it is, its attributes, and how many names it has.
#[derive(Clone, Debug)]
pub struct Inode {
    pub node: Node,
    pub mode: u32,
    pub owner: Owner,
    /// `None`: some time that no operation set.
    pub mtime: Option<Timestamp>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub names: u32,
}

impl Inode {
    pub fn new(node: Node, mode: u32, uid: u32, gid: u32) -> Self {
        Self {
            node,
            mode,
            owner: Owner { uid, gid },
            mtime: None,
            xattrs: BTreeMap::new(),
            names: 1,
        }
    }
}

impl Model {
    /// Numbers come from this model only, and an inode goes with its last name, so there is one.
    pub(super) fn inode(&self, ino: Ino) -> &Inode {
        &self.inodes[&ino]
    }

    pub(super) fn inode_mut(&mut self, ino: Ino) -> &mut Inode {
        let inode = self.inodes.get_mut(&ino).expect("a number of this model");
        Arc::make_mut(inode)
    }

    pub(super) fn is_dir(&self, ino: Ino) -> bool {
        matches!(self.inode(ino).node, Node::Dir { .. })
    }

    pub(super) fn names_of(&self, dir: Ino) -> Option<&BTreeMap<Vec<u8>, Ino>> {
        match &self.inode(dir).node {
            Node::Dir { names, .. } => Some(names),
            _ => None,
        }
    }

    /// Puts a name into a directory, or takes it out; the directory's time moves.
    pub(super) fn set_name(&mut self, dir: Ino, name: &[u8], to: Option<Ino>) {
        let inode = self.inode_mut(dir);
        inode.mtime = None;
        if let Node::Dir { names, .. } = &mut inode.node {
            match to {
                Some(ino) => names.insert(name.to_vec(), ino),
                None => names.remove(name),
            };
        }
    }

    /// Takes a name away; the inode goes with its last one, a directory with all that is below it.
    pub(super) fn drop_name(&mut self, dir: Ino, name: &[u8]) {
        let Some(ino) = self
            .names_of(dir)
            .and_then(|names| names.get(name).copied())
        else {
            return;
        };
        self.set_name(dir, name, None);
        self.forget(ino);
    }

    fn forget(&mut self, ino: Ino) {
        let mut pending = vec![ino];
        while let Some(ino) = pending.pop() {
            let inode = self.inode_mut(ino);
            inode.names -= 1;
            if inode.names == 0 {
                pending.extend(
                    self.names_of(ino)
                        .into_iter()
                        .flat_map(|names| names.values().copied()),
                );
                self.inodes.remove(&ino);
            }
        }
    }

    pub(super) fn add_inode(&mut self, inode: Inode) -> Ino {
        let ino = self.next;
        self.next += 1;
        self.inodes.insert(ino, Arc::new(inode));
        ino
    }
}
