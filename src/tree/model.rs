//! The in-memory model: what POSIX and Linux say that operations do to a tree, with the errno they give.
//!
//! The model never guesses. Where the answer depends on the filesystem or on the machine's settings (room for
//! attributes, `fs.protected_*`, whiteout devices, ...) it says [`Prediction::Unpredicted`], and takes what really happened.

mod access;
mod acl;
mod follow;
mod inode;
mod layer;
mod make;
mod names;
mod open;
mod resolve;
#[cfg(test)]
mod tests;
mod xattrs;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustix::io::Errno;

use super::build::DirTimes;
use super::op::Op;
use super::{Entry, Tree, TreePath};

pub use follow::Disagreement;
use inode::{Inode, Node};
pub use layer::ChildRules;
use resolve::Follow;

/// What an operation is to come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// It succeeds.
    Done,
    /// It fails with this errno.
    Fails(Errno),
    /// It may do either, for this reason; it was not carried out in the model.
    Unpredicted(&'static str),
}

/// Why an operation stops.
enum Stop {
    Errno(Errno),
    Unpredicted(&'static str),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// The number of an inode in the model.
type Ino = u64;

const ROOT: Ino = 0;

/// A tree in memory that operations act on. Clones share what is equal, so a layer's model may start as its parent's clone.
#[derive(Clone, Debug)]
pub struct Model {
    inodes: BTreeMap<Ino, Arc<Inode>>,
    next: Ino,
    /// Inodes from a layer below whose names part when one of them is changed.
    parting: BTreeSet<Ino>,
    /// Changing something that comes from below may move the time of the directories that it is in.
    moving_times: bool,
}

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}

/// What is known of the outcome beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Nothing: doubt stops the act.
    Nothing,
    /// Whatever is in doubt went well.
    DoubtsPassed,
    /// All of it succeeded: no permission is asked for.
    Success,
}

/// Who acts, and whether doubt is allowed to stop the act.
#[derive(Clone, Copy, Debug)]
struct Actor {
    uid: u32,
    gid: u32,
    /// Has every capability.
    capable: bool,
    known: Known,
}

impl Actor {
    /// Carries out what is known to have happened.
    const CERTAIN: Self = Self {
        uid: 0,
        gid: 0,
        capable: true,
        known: Known::Success,
    };

    fn of(op: &Op, known: Known) -> Self {
        match op.as_owner() {
            Some(owner) => Self {
                uid: owner.uid,
                gid: owner.gid,
                capable: false,
                known,
            },
            None => Self {
                uid: 0,
                gid: 0,
                capable: true,
                known,
            },
        }
    }

    /// Nothing stops it.
    fn all_powerful(self) -> bool {
        self.capable || self.known == Known::Success
    }

    /// Stops at what cannot be known.
    fn doubt(self, why: &'static str) -> Result<(), Stop> {
        if self.known == Known::Nothing {
            Err(Stop::Unpredicted(why))
        } else {
            Ok(())
        }
    }
}

impl Model {
    /// An empty tree: a root directory 0755, 0:0.
    pub fn new() -> Self {
        let root = Inode::new(
            Node::Dir {
                names: BTreeMap::new(),
                parent: ROOT,
            },
            0o755,
            0,
            0,
        );
        Self {
            inodes: BTreeMap::from([(ROOT, Arc::new(root))]),
            next: 1,
            parting: BTreeSet::new(),
            moving_times: false,
        }
    }

    /// Carries out a list of operations, those after a failed one too, and then sets the times of the directories made,
    /// as [`run_ops`](super::build::run_ops) does.
    pub fn apply(&mut self, ops: &[Op]) -> Vec<Prediction> {
        let mut times = DirTimes::default();
        let predictions = ops.iter().map(|op| {
            let prediction = self.step(op, Known::Nothing);
            if prediction == Prediction::Done {
                times.follow(op);
            }
            prediction
        });
        let predictions = predictions.collect();
        self.set_dir_times(&times);
        predictions
    }

    fn step(&mut self, op: &Op, known: Known) -> Prediction {
        match self.run(op, Actor::of(op, known)) {
            Ok(()) => Prediction::Done,
            Err(Stop::Errno(errno)) => Prediction::Fails(errno),
            Err(Stop::Unpredicted(why)) => Prediction::Unpredicted(why),
        }
    }

    fn run(&mut self, op: &Op, who: Actor) -> Result<(), Stop> {
        if op.slashes() != (false, false) {
            who.doubt("a `/` at the end of a name")?;
        }
        match op {
            Op::File(o) => self.file(o, who),
            Op::Dir(o) => self.dir(o, who),
            Op::Symlink(o) => self.symlink(o, who),
            Op::Hardlink(o) => self.hardlink(&o.to.0, &o.path.0, who),
            Op::Fifo(o) => self.special(&o.path.0, Node::Fifo, (&o.mode, &o.owner, &o.mtime), who),
            Op::Socket(o) => self.special(&o.path.0, Node::Socket, (&o.mode, &o.owner, &None), who),
            Op::Char(o) => self.special(
                &o.path.0,
                Node::Char(o.dev.0),
                (&o.mode, &o.owner, &o.mtime),
                who,
            ),
            Op::Block(o) => self.special(
                &o.path.0,
                Node::Block(o.dev.0),
                (&o.mode, &o.owner, &o.mtime),
                who,
            ),
            Op::Remove(o) => self.remove(&o.path.0, who),
            Op::Unlink(o) => self.unlink(&o.path.0, who),
            Op::Rmdir(o) => self.rmdir(&o.path.0, who),
            Op::Rename(o) => self.rename(o, who),
            Op::Chmod(o) => {
                let ino = self.existing(&o.path.0, who)?;
                self.chmod(ino, o.mode.0, who)
            }
            Op::Chown(o) => {
                let ino = self.named(&o.path.0, who)?;
                self.chown_tree(ino, o.owner.0, o.recursive, who)
            }
            Op::Touch(o) => {
                let ino = self.named(&o.path.0, who)?;
                self.touch(ino, o.mtime.0, who)
            }
            Op::Write(o) => self.write(
                &o.path.0,
                Some(o.at.as_ref().map_or(0, |at| at.0)),
                &o.text.0,
                who,
            ),
            Op::Append(o) => self.write(&o.path.0, None, &o.text.0, who),
            Op::Truncate(o) => self.truncate(&o.path.0, o.size.0, who),
            Op::Setxattr(o) => {
                xattrs::checked(&o.name, &o.value.0)?;
                let ino = self.named(&o.path.0, who)?;
                self.set_xattr(ino, &o.name, &o.value.0, who)
            }
            Op::Rmxattr(o) => {
                xattrs::checked(&o.name, b"")?;
                let ino = self.named(&o.path.0, who)?;
                self.remove_xattr(ino, &o.name, who)
            }
            Op::Open(o) => self.open_op(o, who),
            Op::Read(o) => self.read(&o.path.0, who),
            Op::List(o) => self.list(&o.path.0, who),
            Op::Clone(o) => self.clone_file(&o.from.0, &o.path.0, who),
            Op::Unnamed(o) => self.unnamed(&o.path.0, &o.text.0, who),
            Op::Shared(o) => self.named(&o.path.0, who).map(drop),
            Op::Space(o) => self.named(&o.path.0, who).map(drop),
            Op::Inode(o) => self.named(&o.path.0, who).map(drop),
        }
    }

    fn set_dir_times(&mut self, times: &DirTimes) {
        for (path, time) in &times.0 {
            let who = Actor {
                uid: 0,
                gid: 0,
                capable: true,
                known: Known::Success,
            };
            if let Ok(found) = self.walk(path.as_bytes(), Follow::No, who)
                && let Some(ino) = found.ino
                && self.is_dir(ino)
            {
                self.inode_mut(ino).mtime = Some(*time);
            }
        }
    }

    /// The tree as it is to be seen. Times that were not set by an operation (nor [learnt](Self::learn_times)) are `None`, so that they are not compared.
    pub fn tree(&self) -> Tree {
        let mut tree = Tree::default();
        let mut pending = vec![(TreePath::root(), ROOT)];
        while let Some((path, ino)) = pending.pop() {
            let inode = self.inode(ino);
            if let Node::Dir { names, .. } = &inode.node {
                pending.extend(names.iter().map(|(name, ino)| (path.join(name), *ino)));
            }
            let entry = Entry {
                kind: inode.node.kind(),
                mode: Some(inode.mode),
                owner: Some(inode.owner),
                mtime: inode.mtime,
                xattrs: Some(inode.xattrs.clone()),
                link: Some(ino),
            };
            tree.entries.insert(path, entry);
        }
        tree
    }

    /// Takes the times that the model does not know from a scan of the real tree: from now on they must stay so.
    pub fn learn_times(&mut self, found: &Tree) {
        for (path, entry) in &self.tree().entries {
            if let (None, Some(ino), Some(seen)) =
                (entry.mtime, entry.link, found.entries.get(path))
            {
                self.inode_mut(ino).mtime = seen.mtime;
            }
        }
    }
}
