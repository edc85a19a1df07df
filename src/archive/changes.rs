//! What differs between a layer and its parent, found by walking both, or the layer's own directory alone.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, Statx};
use rustix::io::Errno;

use super::compare::{Side, differ};
use super::form::{Form, Seen};
use super::walk::{self, Names, file_type};
use super::{Change, ChangeKind, Error};
use crate::tree::{Timestamp, TreePath};

/// Entries of one directory compared as one task.
const PART: usize = 2048;

/// What the caller knows about the trees.
#[derive(Clone, Debug, Default)]
pub struct ChangesOptions {
    /// The end of the copying that made the new tree out of the old one, on the clock of their filesystem (the ctime of a file that
    /// was written right after it). Inodes whose ctime lies before it in both trees hold what was copied, so equal
    /// attributes suffice. Without it, two inodes with equal attributes and different ctimes are compared by content: always
    /// right, but it reads every file of a tree that was copied.
    pub settled: Option<Timestamp>,
    /// For two trees of which one began as a snapshot of the other, with the same inode numbers: the numbers of all inodes that were
    /// made or changed in either since then, and of all directories above one of their names. An entry of both trees whose number
    /// is not among them is the same in both with all that lies below it, and is not looked at any further. What
    /// lies on another device than the root of its tree is not spoken of.
    pub touched: Option<HashSet<u64>>,
}

/// The changes that make `new` out of `old`, sorted by path, never the root; without `old` everything is added.
///
/// An entry is modified when type, permission bits (not of symbolic links), owner, device number, symbolic link target or an
/// extended attribute of the layer differ; one that is not a directory also when size, mtime (to the nanosecond) or content
/// do. A directory around a change is modified. A removed directory is one deletion; one that replaces another kind of entry is a
/// modification and additions below; another kind of entry in place of a directory is one modification.
/// A directory on which something is mounted counts as empty. After moby's `ChangesDirs`, which misses link targets, attributes, and rewrites of equal size in the same second.
///
/// # Errors
/// A directory or file of either tree cannot be read.
pub fn changes(new: BorrowedFd<'_>, old: Option<BorrowedFd<'_>>) -> Result<Vec<Change>, Error> {
    changes_with(new, old, &ChangesOptions::default())
}

/// As [`changes`], with what the caller knows about the trees.
///
/// # Errors
/// As [`changes`].
pub fn changes_with(
    new: BorrowedFd<'_>,
    old: Option<BorrowedFd<'_>>,
    options: &ChangesOptions,
) -> Result<Vec<Change>, Error> {
    let snapshot = match (old, &options.touched) {
        (Some(old), Some(touched)) => Some(Snapshot::new(new, old, touched)?),
        _ => None,
    };
    Walk {
        upper: new,
        lowers: old.as_slice(),
        form: Form::Plain,
        settled: options.settled,
        snapshot,
    }
    .run()
}

/// The same changes found from the layer's own directory `upper` over `lowers`, the nearest first. Only what lies in `upper` is
/// visited, so the cost does not depend on the size of the parent. The result is that of [`changes`] on the two mounted
/// trees: an opaque directory becomes the deletions it stands for, and what was copied up but not changed is left out.
///
/// # Errors
/// As [`changes`]; [`Error::Refused`] for an entry whose content lies elsewhere (overlayfs' `redirect` and `metacopy`): then the
/// mounted trees must be compared.
pub fn layer_changes(
    upper: BorrowedFd<'_>,
    lowers: &[BorrowedFd<'_>],
    form: Form,
) -> Result<Vec<Change>, Error> {
    Walk {
        upper,
        lowers,
        form,
        settled: None,
        snapshot: None,
    }
    .run()
}

struct Walk<'a> {
    upper: BorrowedFd<'a>,
    lowers: &'a [BorrowedFd<'a>],
    form: Form,
    settled: Option<Timestamp>,
    snapshot: Option<Snapshot<'a>>,
}

/// What is known of two trees that were one.
struct Snapshot<'a> {
    touched: &'a HashSet<u64>,
    /// The devices of the two roots.
    new: Device,
    old: Device,
}

type Device = (u32, u32);

fn device(st: &Statx) -> Device {
    (st.stx_dev_major, st.stx_dev_minor)
}

impl<'a> Snapshot<'a> {
    fn new(
        new: BorrowedFd<'_>,
        old: BorrowedFd<'_>,
        touched: &'a HashSet<u64>,
    ) -> Result<Self, Error> {
        let of = |root| {
            let st = walk::stat_open(root).map_err(|e| Error::io("look at", &TreePath::root(), e));
            st.map(|st| device(&st))
        };
        Ok(Self {
            touched,
            new: of(new)?,
            old: of(old)?,
        })
    }

    /// Whether two entries of one name are surely the same, with all below them.
    fn is_same(&self, new: &Statx, old: &Statx) -> bool {
        new.stx_ino == old.stx_ino
            && device(new) == self.new
            && device(old) == self.old
            && !self.touched.contains(&new.stx_ino)
    }
}

enum Task {
    Dir(DirTask),
    Part(Arc<Opened>, std::ops::Range<usize>),
}

/// A directory of the new tree to be walked.
struct DirTask {
    path: TreePath,
    /// The lowers that hold it as a directory and are not hidden by one before them.
    olds: Vec<usize>,
    /// Nothing of the lowers shows through.
    opaque: bool,
}

struct Opened {
    path: TreePath,
    dir: OwnedFd,
    names: Names,
    olds: Vec<OldDir>,
    /// What the lowers show here, known when nothing shows through: those are the candidates for deletion.
    old_names: Option<Names>,
    opaque: bool,
}

struct OldDir {
    lower: usize,
    dir: OwnedFd,
    /// Whiteouts here may be marked by an attribute (kernel 6.7).
    marked: bool,
}

impl Walk<'_> {
    fn run(&self) -> Result<Vec<Change>, Error> {
        let root = Task::Dir(DirTask {
            path: TreePath::root(),
            olds: (0..self.lowers.len()).collect(),
            opaque: self.form == Form::Plain,
        });
        let found = walk::in_parallel(root, |task, more, found: &mut Vec<Change>| match task {
            Task::Dir(task) => self.dir(task, more, found),
            Task::Part(opened, range) => self.part(&opened, range, more, found),
        })?;
        Ok(with_parents(found.into_iter().flatten().collect()))
    }

    fn dir(
        &self,
        task: DirTask,
        more: &mut Vec<Task>,
        found: &mut Vec<Change>,
    ) -> Result<(), Error> {
        let Some(opened) = self.open(task)? else {
            return Ok(());
        };
        if let Some(old_names) = &opened.old_names {
            for i in 0..old_names.len() {
                if opened.names.find(old_names.name(i)).is_none() {
                    found.push(opened.change(old_names.name(i), ChangeKind::Delete));
                }
            }
        }
        let count = opened.names.len();
        if count < 2 * PART {
            return self.part(&opened, 0..count, more, found);
        }
        let opened = Arc::new(opened);
        for start in (0..count).step_by(PART) {
            let range = start..(start + PART).min(count);
            more.push(Task::Part(Arc::clone(&opened), range));
        }
        Ok(())
    }

    /// Opens a directory and those below it; `None` when it has gone meanwhile.
    fn open(&self, task: DirTask) -> Result<Option<Opened>, Error> {
        let DirTask {
            path,
            olds,
            mut opaque,
        } = task;
        let fail = |e: Errno| Error::io("read", &path, e);
        let Some((dir, names)) = walk::list_dir(self.upper, &path).map_err(fail)? else {
            return Ok(None);
        };
        if !path.is_root() {
            self.form.refuse_redirected(dir.as_fd(), &path)?;
            opaque |= self.form.is_opaque(dir.as_fd()).map_err(fail)?;
        }
        let olds = self.open_olds(&path, &olds)?;
        let old_names = if !opaque {
            None
        } else if let (Form::Plain, [only]) = (self.form, &olds[..]) {
            Some(Names::read(only.dir.as_fd()).map_err(fail)?)
        } else {
            Some(self.merged(&olds).map_err(fail)?)
        };
        Ok(Some(Opened {
            path,
            dir,
            names,
            olds,
            old_names,
            opaque,
        }))
    }

    fn open_olds(&self, path: &TreePath, lowers: &[usize]) -> Result<Vec<OldDir>, Error> {
        let fail = |e: Errno| Error::io("read", path, e);
        let mut olds = Vec::with_capacity(lowers.len());
        for &lower in lowers {
            let dir = match walk::open_dir(self.lowers[lower], path) {
                Ok(dir) => dir,
                Err(e) if walk::is_gone(e) && !path.is_root() => continue,
                Err(e) => return Err(fail(e)),
            };
            if !path.is_root() {
                self.form.refuse_redirected(dir.as_fd(), path)?;
            }
            let marked = self.form.has_marked_whiteouts(dir.as_fd()).map_err(fail)?;
            let opaque = !path.is_root() && self.form.is_opaque(dir.as_fd()).map_err(fail)?;
            olds.push(OldDir { lower, dir, marked });
            if opaque {
                break;
            }
        }
        Ok(olds)
    }

    /// The names that the lowers show together.
    fn merged(&self, olds: &[OldDir]) -> rustix::io::Result<Names> {
        let mut shown = std::collections::BTreeMap::new();
        for old in olds {
            let names = Names::read(old.dir.as_fd())?;
            for i in 0..names.len() {
                let Some((name, is_whiteout)) = self.form.listed(names.name(i)) else {
                    continue;
                };
                if shown.contains_key(name) {
                    continue;
                }
                let there = !is_whiteout
                    && matches!(
                        self.form
                            .look(old.dir.as_fd(), names.c_name(i), old.marked)?,
                        Seen::Entry(_)
                    );
                shown.insert(name.to_vec(), there);
            }
        }
        let mut names = Names::default();
        for (name, _) in shown.iter().filter(|(_, there)| **there) {
            names.push(name, FileType::Unknown);
        }
        Ok(names)
    }

    fn part(
        &self,
        opened: &Opened,
        range: std::ops::Range<usize>,
        more: &mut Vec<Task>,
        found: &mut Vec<Change>,
    ) -> Result<(), Error> {
        for i in range {
            let name = opened.names.name(i);
            self.entry(opened, opened.names.c_name(i), more, found)
                .map_err(|e| match e {
                    EntryError::Errno(e) => Error::io("compare", &opened.path.join(name), e),
                    EntryError::Refused(e) => e,
                })?;
        }
        Ok(())
    }

    fn entry(
        &self,
        opened: &Opened,
        name: &CStr,
        more: &mut Vec<Task>,
        found: &mut Vec<Change>,
    ) -> Result<(), EntryError> {
        let Some((shown, is_whiteout)) = self.form.listed(name.to_bytes()) else {
            return Ok(());
        };
        if is_whiteout {
            // An entry beside its own whiteout is the newer of the two.
            if opened.names.find(shown).is_none() && self.lookup(opened, shown)?.is_some() {
                found.push(opened.change(shown, ChangeKind::Delete));
            }
            return Ok(());
        }
        let st = match self.form.look(opened.dir.as_fd(), name, false)? {
            Seen::Entry(st) => st,
            Seen::Whiteout => {
                if self.lookup(opened, shown)?.is_some() {
                    found.push(opened.change(shown, ChangeKind::Delete));
                }
                return Ok(());
            }
            Seen::Nothing => return Ok(()),
        };
        let is_dir = file_type(&st) == FileType::Directory;
        let mut olds = Vec::new();
        match self.lookup(opened, shown)? {
            None => found.push(opened.change(shown, ChangeKind::Add)),
            Some((at, old_st)) => {
                let known = |s: &Snapshot<'_>| s.is_same(&st, &old_st);
                if walk::inode(&st) == walk::inode(&old_st)
                    || self.snapshot.as_ref().is_some_and(known)
                {
                    return Ok(());
                }
                let old = Side {
                    dir: opened.olds[at].dir.as_fd(),
                    name,
                    st: &old_st,
                };
                let new = Side {
                    dir: opened.dir.as_fd(),
                    name,
                    st: &st,
                };
                self.refuse_metadata_only(opened, new, old)?;
                if differ(new, old, self.settled)? {
                    found.push(opened.change(shown, ChangeKind::Modify));
                }
                if is_dir && file_type(&old_st) == FileType::Directory {
                    olds = self.merging(opened, at, name)?;
                }
            }
        }
        if is_dir {
            more.push(Task::Dir(DirTask {
                path: opened.path.join(shown),
                olds,
                opaque: opened.opaque,
            }));
        }
        Ok(())
    }

    /// The entry that the lowers show under this name, and which of them has it.
    fn lookup(&self, opened: &Opened, name: &[u8]) -> rustix::io::Result<Option<(usize, Statx)>> {
        if let Some(old_names) = &opened.old_names
            && old_names.find(name).is_none()
        {
            return Ok(None);
        }
        for (at, old) in opened.olds.iter().enumerate() {
            match self.form.look(old.dir.as_fd(), name, old.marked)? {
                Seen::Entry(st) => return Ok(Some((at, st))),
                Seen::Whiteout => return Ok(None),
                Seen::Nothing => {}
            }
        }
        Ok(None)
    }

    /// The lowers whose directory `name` is part of what the lowers show, the first of them being number `at`.
    fn merging(&self, opened: &Opened, at: usize, name: &CStr) -> rustix::io::Result<Vec<usize>> {
        let mut lowers = vec![opened.olds[at].lower];
        for old in &opened.olds[at + 1..] {
            match self.form.look(old.dir.as_fd(), name, old.marked)? {
                Seen::Entry(st) if file_type(&st) == FileType::Directory => lowers.push(old.lower),
                Seen::Nothing => {}
                Seen::Entry(_) | Seen::Whiteout => break,
            }
        }
        Ok(lowers)
    }

    fn refuse_metadata_only(
        &self,
        opened: &Opened,
        new: Side<'_>,
        old: Side<'_>,
    ) -> Result<(), EntryError> {
        for side in [new, old] {
            if self.form.is_metadata_only(side.dir, side.name, side.st)? {
                return Err(EntryError::Refused(Error::Refused {
                    name: opened.path.join(new.name.to_bytes()),
                    why: "it was copied up without its content (metacopy)".into(),
                }));
            }
        }
        Ok(())
    }
}

enum EntryError {
    Errno(Errno),
    Refused(Error),
}

impl From<Errno> for EntryError {
    fn from(e: Errno) -> Self {
        Self::Errno(e)
    }
}

impl Opened {
    fn change(&self, name: &[u8], kind: ChangeKind) -> Change {
        Change {
            path: self.path.join(name),
            kind,
        }
    }
}

/// Sorts by path, drops what stands twice, and adds every directory around a change that is not a change of its own.
pub(super) fn with_parents(mut all: Vec<Change>) -> Vec<Change> {
    all.sort_unstable();
    all.dedup_by(|a, b| a.path == b.path);
    let mut parents = Vec::new();
    // In path order the changes of one directory stand together, so the last parent looked at is nearly always the right one.
    let mut last = TreePath::root();
    for change in &all {
        let Some(mut dir) = change.path.parent() else {
            continue;
        };
        let direct = dir.clone();
        while !dir.is_root() && dir != last {
            if all.binary_search_by(|c| c.path.cmp(&dir)).is_ok() {
                break;
            }
            parents.push(Change {
                path: dir.clone(),
                kind: ChangeKind::Modify,
            });
            dir = dir.parent().unwrap_or_default();
        }
        last = direct;
    }
    if !parents.is_empty() {
        all.append(&mut parents);
        all.sort_unstable();
        all.dedup_by(|a, b| a.path == b.path);
    }
    all
}
