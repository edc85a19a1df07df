//! Which entries a layer stream holds, and in which order.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::archive::changes::with_parents;
use crate::archive::form::WHITEOUT;
use crate::archive::walk::{self, Dirs, InodeKey, Names, file_type, inode};
use crate::archive::{Change, ChangeKind, Error};
use crate::tree::TreePath;

/// Adds the directories around the changes and the unchanged names of inodes that have a changed name too (a reader that gets only
/// the new name of an old file could not make it a link of the old one), and puts all in the order of a walk. A socket, which tar does
/// not know, in the place of something else is the deletion of that: left out, what it replaced would come back.
pub(super) fn complete(dirs: &mut Dirs, changes: Vec<Change>) -> Result<Vec<Change>, Error> {
    let mut changes = with_parents(changes);
    let mut missing: HashMap<InodeKey, u32> = HashMap::new();
    for change in &mut changes {
        if change.kind == ChangeKind::Delete {
            continue;
        }
        let st = dirs.stat_if_there(&change.path);
        let Some(st) = st.map_err(|e| Error::io("stat", &change.path, e))? else {
            continue;
        };
        match file_type(&st) {
            FileType::Directory => {}
            FileType::Socket if change.kind == ChangeKind::Modify => {
                change.kind = ChangeKind::Delete;
            }
            FileType::Socket => {}
            _ if st.stx_nlink > 1 => {
                *missing.entry(inode(&st)).or_insert(st.stx_nlink) -= 1;
            }
            _ => {}
        }
    }
    missing.retain(|_, names| *names > 0);
    if !missing.is_empty() {
        let partners = names_of(dirs.root(), &missing)?;
        changes.extend(partners.into_iter().map(|path| Change {
            path,
            kind: ChangeKind::Modify,
        }));
        changes = with_parents(changes);
    }
    changes.sort_by(|a, b| parts(&a.path).cmp(parts(&b.path)));
    Ok(changes)
}

/// The components of a path. Compared by these, what a directory holds follows right behind it, whereas in byte order `a-b` stands
/// between `a` and `a/b`.
fn parts(path: &TreePath) -> impl Iterator<Item = &[u8]> {
    path.as_bytes().split(|b| *b == b'/')
}

/// Every name below `root` of one of these inodes.
fn names_of(root: BorrowedFd<'_>, inodes: &HashMap<InodeKey, u32>) -> Result<Vec<TreePath>, Error> {
    let found = walk::in_parallel(
        TreePath::root(),
        |dir: TreePath, more, found: &mut Vec<TreePath>| {
            let fail = |e: Errno| Error::io("read", &dir, e);
            let Some((fd, names)) = walk::list_dir(root, &dir).map_err(fail)? else {
                return Ok(());
            };
            for i in 0..names.len() {
                // No archive can hold such a name, and aufs has further names of its own for what it keeps.
                if names.name(i).starts_with(WHITEOUT) {
                    continue;
                }
                let st = walk::stat_if_there(fd.as_fd(), names.c_name(i)).map_err(fail)?;
                let Some(st) = st else { continue };
                if file_type(&st) == FileType::Directory {
                    more.push(dir.join(names.name(i)));
                } else if st.stx_nlink > 1 && inodes.contains_key(&inode(&st)) {
                    found.push(dir.join(names.name(i)));
                }
            }
            Ok(())
        },
    )?;
    Ok(found.into_iter().flatten().collect())
}

/// What comes next in a whole tree, found as it is asked for.
#[derive(Debug)]
pub(super) struct Tour {
    levels: Vec<Level>,
    /// The directory shown last, to be entered next.
    shown: Option<TreePath>,
}

#[derive(Debug)]
struct Level {
    path: TreePath,
    /// `None` while more levels are open than descriptors should be held for.
    dir: Option<OwnedFd>,
    names: Names,
    next: usize,
}

/// Levels whose directory stays open.
const OPEN_LEVELS: usize = 32;

impl Tour {
    pub(super) fn new(root: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        let mut tour = Self {
            levels: Vec::new(),
            shown: None,
        };
        tour.enter(root, TreePath::root())?;
        Ok(tour)
    }

    /// The next path, with the type its directory states; `None` at the end.
    pub(super) fn next(
        &mut self,
        root: BorrowedFd<'_>,
    ) -> Result<Option<(TreePath, FileType)>, Error> {
        if let Some(path) = self.shown.take() {
            self.enter(root, path.clone())
                .map_err(|e| Error::io("read", &path, e))?;
        }
        while let Some(level) = self.levels.last_mut() {
            let index = level.next;
            if index == level.names.len() {
                self.levels.pop();
                continue;
            }
            level.next += 1;
            let path = level.path.join(level.names.name(index));
            let mut kind = level.names.kind(index);
            if kind == FileType::Unknown {
                let dir = self.dir(root);
                let st = dir.and_then(|dir| walk::stat_if_there(dir, path.base()));
                let st = st.map_err(|e| Error::io("read", &path, e))?;
                kind = st.map_or(kind, |st| file_type(&st));
            }
            if kind == FileType::Directory {
                self.shown = Some(path.clone());
            }
            return Ok(Some((path, kind)));
        }
        Ok(None)
    }

    /// The directory that holds the path given last.
    pub(super) fn dir(&mut self, root: BorrowedFd<'_>) -> rustix::io::Result<BorrowedFd<'_>> {
        let level = self.levels.last_mut().ok_or(Errno::NOENT)?;
        if level.dir.is_none() {
            level.dir = Some(walk::open_dir(root, &level.path)?);
        }
        Ok(level.dir.as_ref().ok_or(Errno::NOENT)?.as_fd())
    }

    fn enter(&mut self, root: BorrowedFd<'_>, path: TreePath) -> rustix::io::Result<()> {
        let Some((dir, names)) = walk::list_dir(root, &path)? else {
            return Ok(());
        };
        if let Some(far) = self.levels.len().checked_sub(OPEN_LEVELS) {
            self.levels[far].dir = None;
        }
        self.levels.push(Level {
            path,
            dir: Some(dir),
            names,
            next: 0,
        });
        Ok(())
    }
}
