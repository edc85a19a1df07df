//! Which entries a layer stream holds, in path order.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::archive::changes::with_parents;
use crate::archive::walk::{self, Dirs, InodeKey, Names, file_type, inode};
use crate::archive::{Change, ChangeKind, Error};
use crate::tree::TreePath;

/// Sorts the changes, adds the directories around them, and adds the unchanged names of inodes that have a changed name too: a
/// reader that gets only the new name of an old file could not make it a link of the old one.
pub(super) fn complete(dirs: &mut Dirs, changes: Vec<Change>) -> Result<Vec<Change>, Error> {
    let mut changes = with_parents(changes);
    let mut missing: HashMap<InodeKey, u32> = HashMap::new();
    for change in changes.iter().filter(|c| c.kind != ChangeKind::Delete) {
        let st = dirs.stat_if_there(&change.path);
        let st = st.map_err(|e| Error::io("stat", &change.path, e))?;
        if let Some(st) = st.filter(|st| st.stx_nlink > 1 && file_type(st) != FileType::Directory) {
            *missing.entry(inode(&st)).or_insert(st.stx_nlink) -= 1;
        }
    }
    missing.retain(|_, names| *names > 0);
    if missing.is_empty() {
        return Ok(changes);
    }
    let partners = names_of(dirs.root(), &missing)?;
    changes.extend(partners.into_iter().map(|path| Change {
        path,
        kind: ChangeKind::Modify,
    }));
    Ok(with_parents(changes))
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

/// What comes next in a whole tree, in path order, found as it is asked for.
#[derive(Debug)]
pub(super) struct Tour {
    levels: Vec<Level>,
}

#[derive(Debug)]
struct Level {
    path: TreePath,
    /// `None` while more levels are open than descriptors should be held for.
    dir: Option<OwnedFd>,
    names: Names,
    /// Index into `names`, and whether this step enters the directory of that name rather than showing it.
    steps: std::vec::IntoIter<(u32, bool)>,
}

/// Levels whose directory stays open.
const OPEN_LEVELS: usize = 32;

impl Tour {
    pub(super) fn new(root: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        let mut tour = Self { levels: Vec::new() };
        tour.enter(root, TreePath::root())?;
        Ok(tour)
    }

    /// The next path; `None` at the end.
    pub(super) fn next(&mut self, root: BorrowedFd<'_>) -> Result<Option<TreePath>, Error> {
        loop {
            let Some(level) = self.levels.last_mut() else {
                return Ok(None);
            };
            let Some((index, enters)) = level.steps.next() else {
                self.levels.pop();
                continue;
            };
            let path = level.path.join(level.names.name(index as usize));
            if !enters {
                return Ok(Some(path));
            }
            self.enter(root, path.clone())
                .map_err(|e| Error::io("read", &path, e))?;
        }
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
        let steps = steps(dir.as_fd(), &names)?;
        if let Some(far) = self.levels.len().checked_sub(OPEN_LEVELS) {
            self.levels[far].dir = None;
        }
        self.levels.push(Level {
            path,
            dir: Some(dir),
            names,
            steps: steps.into_iter(),
        });
        Ok(())
    }
}

/// In path order `a-b` stands between `a` and `a/b`, so a directory is shown at `NAME` and entered at `NAME/`.
fn steps(dir: BorrowedFd<'_>, names: &Names) -> rustix::io::Result<Vec<(u32, bool)>> {
    let mut steps = Vec::with_capacity(names.len());
    for i in 0..names.len() {
        let index = u32::try_from(i).map_err(|_| Errno::OVERFLOW)?;
        steps.push((index, false));
        let kind = match names.kind(i) {
            FileType::Unknown => walk::stat_if_there(dir, names.c_name(i))?
                .map_or(FileType::Unknown, |st| file_type(&st)),
            kind => kind,
        };
        if kind == FileType::Directory {
            steps.push((index, true));
        }
    }
    let key = |step: &(u32, bool)| {
        let slash: &[u8] = if step.1 { b"/" } else { b"" };
        (names.name(step.0 as usize), slash)
    };
    steps.sort_by(|a, b| {
        let ((a, a_end), (b, b_end)) = (key(a), key(b));
        a.iter().chain(a_end).cmp(b.iter().chain(b_end))
    });
    Ok(steps)
}
