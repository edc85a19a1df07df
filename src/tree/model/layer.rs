//! Models of layers: what a layer shows of the one below it, and taking over what a real directory holds.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::inode::{Inode, Node};
use super::resolve::Follow;
use super::{Actor, Ino, Model, ROOT};
use crate::sys::copy::{for_each_extent, read_at};
use crate::sys::fs::open_beneath;
use crate::tree::data::Data;
use crate::tree::op::Op;
use crate::tree::{Kind, Tree, TreePath};

/// How a layer shows what lies below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChildRules {
    /// Sockets of the parent are seen.
    pub sockets: bool,
    /// Hard links from the parent stay links of one inode when one of them is changed; otherwise that name parts from the others.
    pub links_stay: bool,
    /// Changing something of the parent's leaves the times of the directories that it is in alone; otherwise they may move.
    pub dir_times: bool,
}

impl Model {
    /// The model of a fresh layer on top of this one.
    pub fn child(&self, rules: ChildRules) -> Self {
        let mut child = self.clone();
        if !rules.sockets {
            child.drop_sockets();
        }
        child.moving_times = !rules.dir_times;
        child.parting = if rules.links_stay {
            BTreeSet::new()
        } else {
            let linked =
                |(_, i): &(&Ino, &Arc<Inode>)| i.names > 1 && !matches!(i.node, Node::Dir { .. });
            let linked = child.inodes.iter().filter(linked);
            linked.map(|(ino, _)| *ino).collect()
        };
        child
    }

    /// The same layer, if some of the hard links from below that may part stay together after all: every choice of them, and just all of
    /// them where there are many.
    pub fn with_links_kept(&self) -> Vec<Self> {
        const MANY: usize = 4;
        let groups: Vec<Ino> = self.parting.iter().copied().collect();
        let all = (1_u32 << groups.len().min(MANY)) - 1;
        let choices = if groups.len() > MANY {
            all..=all
        } else {
            1..=all
        };
        choices
            .map(|choice| {
                let kept = |i: usize| i >= MANY || choice & (1 << i) != 0;
                let parts = groups.iter().enumerate().filter(|(i, _)| !kept(*i));
                let mut other = self.clone();
                other.parting = parts.map(|(_, ino)| *ino).collect();
                other
            })
            .collect()
    }

    fn drop_sockets(&mut self) {
        let sockets: Vec<TreePath> = self
            .tree()
            .entries
            .into_iter()
            .filter(|(_, e)| e.kind == Kind::Socket)
            .map(|(path, _)| path)
            .collect();
        for path in sockets {
            if let Ok(found) = self.walk(path.as_bytes(), Follow::No, Actor::CERTAIN) {
                self.drop_name(found.dir, &found.name);
            }
        }
    }

    /// The model of what `root` holds, of which `found` is a scan with contents, attributes and links. From `before`, what the same
    /// layer held, it is taken which hard links come from below.
    ///
    /// # Errors
    /// A file cannot be read, or is not what was scanned.
    pub fn of_directory(
        root: BorrowedFd<'_>,
        found: &Tree,
        before: Option<&Self>,
    ) -> io::Result<Self> {
        let mut model = Self::new();
        let mut inos: BTreeMap<u64, Ino> = BTreeMap::new();
        for (path, entry) in &found.entries {
            if let Some(ino) = entry.link.and_then(|link| inos.get(&link).copied()) {
                model.inode_mut(ino).names += 1;
                model.enter(path, ino);
                continue;
            }
            let node = match &entry.kind {
                Kind::Dir => Node::Dir {
                    names: BTreeMap::new(),
                    parent: ROOT,
                },
                Kind::File(_) => Node::File(Arc::new(contents(root, path)?)),
                Kind::Symlink(target) => Node::Symlink(target.clone()),
                Kind::Fifo => Node::Fifo,
                Kind::Socket => Node::Socket,
                Kind::Char(dev) => Node::Char(*dev),
                Kind::Block(dev) => Node::Block(*dev),
            };
            let owner = entry.owner.unwrap_or_default();
            let mode = entry.mode.unwrap_or_default();
            let mut inode = Inode::new(node, mode, owner.uid, owner.gid);
            inode.mtime = entry.mtime;
            inode.xattrs = entry.xattrs.clone().unwrap_or_default();
            let ino = if path.is_root() {
                model.inodes.insert(ROOT, Arc::new(inode));
                ROOT
            } else {
                let ino = model.add_inode(inode);
                model.enter(path, ino);
                ino
            };
            if let Some(link) = entry.link {
                inos.insert(link, ino);
            }
        }
        if let Some(before) = before {
            model.keep_parting(before);
            model.moving_times = before.moving_times;
        }
        Ok(model)
    }

    /// Puts a name into its directory, which comes before it in the order of paths, and leaves times alone.
    fn enter(&mut self, path: &TreePath, ino: Ino) {
        let dir = path.parent().unwrap_or_default();
        let Ok(found) = self.walk(dir.as_bytes(), Follow::No, Actor::CERTAIN) else {
            return;
        };
        let at = found.ino.unwrap_or(ROOT);
        if let Node::Dir { names, .. } = &mut self.inode_mut(at).node {
            names.insert(path.base().to_vec(), ino);
        }
        if let Node::Dir { parent, .. } = &mut self.inode_mut(ino).node {
            *parent = at;
        }
    }

    /// Hard links that were to part in `before` and are the same names still are to part here.
    fn keep_parting(&mut self, before: &Self) {
        let groups = |model: &Self| {
            let mut groups: BTreeMap<Ino, BTreeSet<TreePath>> = BTreeMap::new();
            for (path, entry) in model.tree().entries {
                groups
                    .entry(entry.link.unwrap_or_default())
                    .or_default()
                    .insert(path);
            }
            groups
        };
        let mut below = groups(before);
        below.retain(|ino, _| before.parting.contains(ino));
        let below: BTreeSet<BTreeSet<TreePath>> = below.into_values().collect();
        self.parting = groups(self)
            .into_iter()
            .filter(|(_, names)| below.contains(names))
            .map(|(ino, _)| ino)
            .collect();
    }

    /// Before an operation that succeeded: the times of the directories above what it changes are open, where they may move.
    pub(super) fn open_times_above(&mut self, op: &Op) {
        let looks = matches!(op, Op::Read(_) | Op::List(_) | Op::Space(_) | Op::Inode(_));
        if !self.moving_times || looks {
            return;
        }
        let other = match op {
            Op::Hardlink(o) => Some(&o.to.0),
            Op::Rename(o) => Some(&o.to.0),
            _ => None,
        };
        for path in [Some(op.path()), other].into_iter().flatten() {
            for follow in [Follow::No, Follow::Yes] {
                let Ok(found) = self.walk(path.as_bytes(), follow, Actor::CERTAIN) else {
                    continue;
                };
                let mut at = found.dir;
                loop {
                    self.inode_mut(at).mtime = None;
                    match &self.inode(at).node {
                        Node::Dir { parent, .. } if at != ROOT => at = *parent,
                        _ => break,
                    }
                }
            }
        }
        if matches!(op, Op::Chown(o) if o.recursive) {
            let below = self.tree().entries.into_iter();
            let below = below.filter(|(at, _)| at == op.path() || at.is_below(op.path()));
            let dirs = below.filter(|(_, e)| e.kind == Kind::Dir);
            let dirs: Vec<Ino> = dirs.filter_map(|(_, e)| e.link).collect();
            for dir in dirs {
                self.inode_mut(dir).mtime = None;
            }
        }
    }

    /// Before an operation that succeeded: names that it changes part from hard links that come from below.
    pub(super) fn part_links(&mut self, op: &Op) {
        if self.parting.is_empty() {
            return;
        }
        match op {
            Op::File(o) => self.part(&o.path.0, Follow::Yes),
            Op::Write(o) => self.part(&o.path.0, Follow::Yes),
            Op::Append(o) => self.part(&o.path.0, Follow::Yes),
            Op::Truncate(o) => self.part(&o.path.0, Follow::Yes),
            Op::Chmod(o) => self.part(&o.path.0, Follow::Yes),
            Op::Open(o) => {
                let writes = |f: &String| {
                    matches!(f.as_str(), "O_WRONLY" | "O_RDWR" | "O_TRUNC" | "O_APPEND")
                };
                if o.flags.iter().any(writes) {
                    self.part(&o.path.0, Follow::Yes);
                }
            }
            Op::Touch(o) => self.part(&o.path.0, Follow::No),
            Op::Setxattr(o) => self.part(&o.path.0, Follow::No),
            Op::Rmxattr(o) => self.part(&o.path.0, Follow::No),
            Op::Hardlink(o) => self.part(&o.to.0, Follow::No),
            Op::Rename(o) => {
                self.part(&o.path.0, Follow::No);
                if o.exchange {
                    self.part(&o.to.0, Follow::No);
                }
            }
            Op::Chown(o) if o.recursive => {
                let all = self.tree().entries.into_keys();
                for path in all.filter(|p| *p == o.path.0 || p.is_below(&o.path.0)) {
                    self.part(&path, Follow::No);
                }
            }
            Op::Chown(o) => self.part(&o.path.0, Follow::No),
            _ => {}
        }
    }

    fn part(&mut self, path: &TreePath, follow: Follow) {
        let Ok(found) = self.walk(path.as_bytes(), follow, Actor::CERTAIN) else {
            return;
        };
        let Some(old) = found.ino.filter(|ino| self.parting.contains(ino)) else {
            return;
        };
        if self.inode(old).names < 2 {
            return;
        }
        let mut own = self.inode(old).clone();
        own.names = 1;
        self.inode_mut(old).names -= 1;
        let new = self.add_inode(own);
        // Copying up leaves the directory's time alone.
        if let Node::Dir { names, .. } = &mut self.inode_mut(found.dir).node {
            names.insert(found.name, new);
        }
    }
}

/// The bytes of a file below `root`.
fn contents(root: BorrowedFd<'_>, path: &TreePath) -> io::Result<Data> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = open_beneath(root, path.as_bytes(), flags, Mode::empty())?;
    let st = rustix::fs::fstat(&file)?;
    let size = u64::try_from(st.st_size).unwrap_or_default();
    let mut data = Data::default();
    data.set_len(size);
    let mut buf = vec![0; 64 << 10];
    for_each_extent(file.as_fd(), size, true, |mut at, end| {
        while at < end {
            let len = usize::try_from(end - at)
                .unwrap_or(usize::MAX)
                .min(buf.len());
            let n = read_at(file.as_fd(), &mut buf[..len], at)?;
            if n == 0 {
                break;
            }
            data.write(at, &buf[..n]);
            at += n as u64;
        }
        Ok(())
    })?;
    Ok(data)
}
