//! Applying a layer archive to a directory.
//!
//! Nothing outside the root is ever read, written or removed: every directory is opened with openat2(2) below a descriptor of the
//! root, without following symbolic links and without entering mounts; links in the middle of a name are read and resolved here, as if
//! the root were `/`. The last part of a name is never followed. No path is walked a second time by name.
//!
//! The rules are those of the OCI image specification (`layer.md`) where moby, containerd and containers-storage differ:
//! - whiteouts and opaque markers act on what was there before, never on what this archive brings, wherever they stand in it;
//! - a directory entry over a directory replaces its attributes, extended ones included; anything else is removed and made anew;
//! - of two entries of one name the last wins;
//! - the root's own entry is read over: a layer's root belongs to its driver.

#[cfg(test)]
mod branch_tests;
mod copy_up;
mod create;
mod dirs;
mod fault;
mod lowers;
mod remove;
mod whiteout;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::CString;
use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{
    AtFlags, FileType, Stat, Statx, Timespec, Timestamps, UTIME_OMIT, readlinkat, statat, utimensat,
};
use rustix::io::Errno;

use self::dirs::Dirs;
use self::fault::{Fault, On, Outcome, refused};
use self::lowers::Lowers;
use super::names::{self, Meaning};
use super::read::Reader;
use super::walk::{file_type, open_dir};
use super::{EntryHeader, EntryKind, Error, Form, IdMaps};
use crate::tree::{Timestamp, TreePath};

/// How an archive is applied.
#[derive(Clone, Debug, Default)]
pub struct ApplyOptions {
    /// How deletions are kept on disk; [`Form::Plain`] carries them out.
    pub form: Form,
    /// From the archive's owners to those on disk.
    pub id_maps: IdMaps,
    /// In a user namespace: device nodes are left out, and attributes of the `trusted` and `security` namespaces that the kernel refuses
    /// there.
    pub in_userns: bool,
    /// Leave out extended attributes that the filesystem cannot keep, instead of failing.
    pub best_effort_xattrs: bool,
}

/// What was applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Apparent size in bytes of what was made and still stands: every inode once, directories none; a file that was there before and
    /// got a further name counts as well.
    pub size: u64,
    /// Entries read.
    pub entries: u64,
}

/// Applies an uncompressed archive to the directory `root`, which must exist, and reads `input` to its end.
///
/// After an error the directory may hold a part of the archive.
///
/// # Errors
/// [`Error::Corrupt`] where the stream is not a whole archive, [`Error::Refused`] for an entry that would leave the root or cannot
/// be part of a layer, [`Error::Io`] where the filesystem fails, [`Error::Stream`] where reading does.
pub fn apply(
    root: BorrowedFd<'_>,
    input: &mut dyn Read,
    options: &ApplyOptions,
) -> Result<Applied, Error> {
    run(root, None, input, options)
}

/// The same for the own directory of a layer, `upper`, when the layers below it are known: `lowers`, the nearest first, in the same
/// form. Directories that no entry names then look as they do below, deletions of what is not there leave nothing behind, and an
/// opaque marker on the root works, which overlayfs has no form for.
///
/// # Errors
/// As [`apply`].
pub fn apply_layer(
    upper: BorrowedFd<'_>,
    lowers: &[BorrowedFd<'_>],
    input: &mut dyn Read,
    options: &ApplyOptions,
) -> Result<Applied, Error> {
    run(upper, Some(lowers), input, options)
}

fn run(
    root: BorrowedFd<'_>,
    lowers: Option<&[BorrowedFd<'_>]>,
    input: &mut dyn Read,
    options: &ApplyOptions,
) -> Result<Applied, Error> {
    let mut reader = Reader::new(input);
    let dirs = Dirs::new(root).map_err(|e| Error::io("open", &TreePath::root(), e))?;
    let lowers = lowers.map(|roots| Lowers {
        form: options.form,
        roots,
    });
    let mut applier = Applier::new(dirs, lowers, options);
    while let Some(entry) = reader.next_entry()? {
        applier.applied.entries += 1;
        applier
            .entry(&entry, &mut reader)
            .map_err(|fault| fault.into_error(&entry.name))?;
    }
    applier
        .set_directory_times()
        .map_err(|fault| fault.into_error(b""))?;
    reader.drain()?;
    Ok(applier.applied)
}

/// The most symbolic links in the directories of one name, as the kernel's own limit.
const MAX_LINKS: usize = 40;

struct Applier<'a> {
    options: &'a ApplyOptions,
    /// The layers below, where they are known and not part of the root.
    lowers: Option<Lowers<'a>>,
    dirs: Dirs,
    applied: Applied,
    hashers: [RandomState; 2],
    /// Paths that this archive made, as 128 keyed bits each: a million entries cost 32 MiB whatever their names.
    made: HashSet<u128>,
    /// Paths whose whiteout was carried out, and directories made opaque.
    hidden: HashSet<u128>,
    opaque: HashSet<u128>,
    /// Inodes with several names: how many of them this archive made.
    links: HashMap<(u64, u64), u64>,
    /// Times of directories, set at the end because their children would move them.
    times: BTreeMap<TreePath, Timestamp>,
}

impl<'a> Applier<'a> {
    fn new(dirs: Dirs, lowers: Option<Lowers<'a>>, options: &'a ApplyOptions) -> Self {
        Self {
            options,
            lowers,
            dirs,
            applied: Applied::default(),
            hashers: [RandomState::new(), RandomState::new()],
            made: HashSet::new(),
            hidden: HashSet::new(),
            opaque: HashSet::new(),
            links: HashMap::new(),
            times: BTreeMap::new(),
        }
    }

    fn entry<R: Read>(&mut self, entry: &EntryHeader, reader: &mut Reader<R>) -> Outcome {
        let meaning = names::meaning(&entry.name).map_err(Fault::Refused)?;
        check_xattrs(entry)?;
        match meaning {
            Meaning::Root if entry.kind == EntryKind::Dir => Ok(()),
            Meaning::Root => refused("the root of a layer is a directory"),
            Meaning::Metadata => Ok(()),
            Meaning::Opaque(dir) => self.opaque(&dir),
            Meaning::Whiteout(path) => self.whiteout(&path),
            Meaning::Entry(path) => self.create(&path, entry, reader),
        }
    }

    fn key(&self, path: &TreePath) -> u128 {
        let [a, b] = &self.hashers;
        u128::from(a.hash_one(&path.0)) << 64 | u128::from(b.hash_one(&path.0))
    }

    fn was_made(&self, path: &TreePath) -> bool {
        self.made.contains(&self.key(path))
    }

    /// Where the directory `path` really is, with symbolic links resolved inside the root; `None` where it is
    /// missing and not to be made.
    fn directory(&mut self, path: &TreePath, missing: Missing) -> Outcome<Option<TreePath>> {
        if self.dirs.get(path).is_ok() {
            return Ok(Some(path.clone()));
        }
        let mut todo = Vec::new();
        push_parts(&mut todo, &path.0);
        let (mut at, mut links) = (TreePath::root(), 0);
        while let Some(part) = todo.pop() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    at = at.parent().unwrap_or_default();
                    continue;
                }
                _ => {}
            }
            let child = at.join(&part);
            match self.step(&child, missing)? {
                Step::Into => at = child,
                Step::Nowhere => return Ok(None),
                Step::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS && missing != Missing::Make {
                        return Ok(None);
                    }
                    if links > MAX_LINKS {
                        return refused("too many symbolic links in its directories");
                    }
                    if target.starts_with(b"/") {
                        at = TreePath::root();
                    }
                    push_parts(&mut todo, &target);
                }
            }
        }
        Ok(Some(at))
    }

    /// What the directory part `child`, whose own directories are real ones, leads to.
    fn step(&mut self, child: &TreePath, missing: Missing) -> Outcome<Step> {
        let Err(e) = self.dirs.get(child).map(drop) else {
            return Ok(Step::Into);
        };
        let obstacle = match Errno::from_io_error(&e) {
            Some(Errno::NOENT) => match self.below(child)? {
                Some(Below::Link(target)) => return Ok(Step::Link(target)),
                Some(Below::Other) => Obstacle::Other,
                below => {
                    let shown = below.is_some() || self.lowers.is_none();
                    if missing == Missing::Make || (missing == Missing::MakeIfShown && shown) {
                        self.implied_directory(child, false)?;
                        return Ok(Step::Into);
                    }
                    return Ok(Step::Nowhere);
                }
            },
            Some(Errno::LOOP | Errno::NOTDIR) => self.obstacle(child)?,
            _ => return Err(e).on("open", child),
        };
        match obstacle {
            Obstacle::Link(target) => Ok(Step::Link(target)),
            Obstacle::Whiteout if missing == Missing::Make => {
                self.clear(child)?;
                self.implied_directory(child, true)?;
                Ok(Step::Into)
            }
            Obstacle::Other if missing == Missing::Make => {
                refused(format!("{child} is not a directory"))
            }
            _ => Ok(Step::Nowhere),
        }
    }

    /// What the layers below show at `path`, which the layer itself does not have.
    fn below(&mut self, path: &TreePath) -> Outcome<Option<Below<'a>>> {
        let Some((root, st)) = self.shown_below(path)? else {
            return Ok(None);
        };
        match file_type(&st) {
            FileType::Directory => Ok(Some(Below::Dir(root, st))),
            FileType::Symlink => {
                let dir = open_dir(root, &path.parent().unwrap_or_default());
                let dir = dir.on("open", path)?;
                let target = readlinkat(&dir, c_name(path), Vec::new()).on("read link", path)?;
                Ok(Some(Below::Link(target.into_bytes())))
            }
            _ => Ok(Some(Below::Other)),
        }
    }

    /// The entry at `path` of the layers below, and the root of the one that has it, when the layer itself does not hide it.
    fn shown_below(&mut self, path: &TreePath) -> Outcome<Option<(BorrowedFd<'a>, Statx)>> {
        let Some(lowers) = self.lowers else {
            return Ok(None);
        };
        if self.hidden.contains(&self.key(path))
            || self.is_deleted(path)?
            || self.is_covered(path)?
        {
            return Ok(None);
        }
        let found = lowers.look(path).on("look up below", path)?;
        Ok(found.map(|(number, st)| (lowers.roots[number], st)))
    }

    /// Whether an earlier archive left a file that says that `path` is deleted.
    fn is_deleted(&mut self, path: &TreePath) -> Outcome<bool> {
        if self.options.form != Form::Aufs {
            return Ok(false);
        }
        // A name too long to have a marker has none.
        let marker = self.stat(&whiteout::marker_of(path));
        Ok(matches!(marker, Ok(Some(_))))
    }

    /// Whether nothing of the layers below shows at `path`, since this archive deleted a directory above it, or one is opaque.
    fn is_covered(&mut self, path: &TreePath) -> Outcome<bool> {
        let mut above = path.parent();
        while let Some(dir) = above {
            let key = self.key(&dir);
            if self.opaque.contains(&key) || self.hidden.contains(&key) {
                return Ok(true);
            }
            if !dir.is_root() && self.lowers.is_some() {
                let own = self.dirs.get(&dir).on("open", &dir)?;
                if self
                    .options
                    .form
                    .is_opaque(own.as_fd())
                    .on("look at", &dir)?
                {
                    return Ok(true);
                }
            }
            above = dir.parent();
        }
        Ok(false)
    }

    /// What stands where a directory should.
    fn obstacle(&mut self, path: &TreePath) -> Outcome<Obstacle> {
        let base = c_name(path);
        let dir = self.holder(path)?;
        match readlinkat(dir, &base, Vec::new()) {
            Ok(target) => Ok(Obstacle::Link(target.into_bytes())),
            Err(Errno::INVAL) => {
                let st = statat(dir, &base, AtFlags::SYMLINK_NOFOLLOW).on("examine", path)?;
                let whiteout = self.is_whiteout(&st);
                Ok(if whiteout {
                    Obstacle::Whiteout
                } else {
                    Obstacle::Other
                })
            }
            Err(e) => Err(e).on("read link", path),
        }
    }

    /// The open directory that holds `path`, whose own directories are real ones.
    fn holder(&mut self, path: &TreePath) -> Outcome<&dirs::Held> {
        let dir = path.parent().unwrap_or_default();
        self.dirs.get(&dir).on("open", &dir)
    }

    /// What stands at `path`, not followed.
    fn stat(&mut self, path: &TreePath) -> Outcome<Option<Stat>> {
        let base = c_name(path);
        match statat(self.holder(path)?, &base, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(st) => Ok(Some(st)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e).on("examine", path),
        }
    }

    /// A character device 0/0 in a directory that overlayfs reads.
    fn is_whiteout(&self, st: &Stat) -> bool {
        matches!(self.options.form, Form::Overlay | Form::OverlayUser)
            && FileType::from_raw_mode(st.st_mode) == FileType::CharacterDevice
            && st.st_rdev == 0
    }

    fn set_directory_times(&mut self) -> Outcome {
        for (path, mtime) in std::mem::take(&mut self.times) {
            let base = c_name(&path);
            let times = timestamps(mtime);
            let dir = self.holder(&path)?.as_fd();
            utimensat(dir, &base, &times, AtFlags::SYMLINK_NOFOLLOW).on("set times of", &path)?;
        }
        Ok(())
    }
}

/// Adds the parts of a path, the first one last.
fn push_parts(todo: &mut Vec<Vec<u8>>, path: &[u8]) {
    todo.extend(path.split(|b| *b == b'/').rev().map(<[u8]>::to_vec));
}

/// What to do about a directory that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// Nothing.
    Leave,
    /// Make it; something else in its place is an error.
    Make,
    /// Make it if the layers below show it, or may show it.
    MakeIfShown,
}

/// Where a part of a directory's name leads.
enum Step {
    Into,
    Link(Vec<u8>),
    Nowhere,
}

/// What a layer below has.
#[allow(clippy::large_enum_variant)] // One lives at a time, on the stack.
enum Below<'a> {
    Dir(BorrowedFd<'a>, Statx),
    Link(Vec<u8>),
    Other,
}

/// What stands where a directory should.
enum Obstacle {
    Link(Vec<u8>),
    Whiteout,
    Other,
}

/// The last part of a path, for a system call. Names were checked for NUL when they were read.
fn c_name(path: &TreePath) -> CString {
    CString::new(path.base()).unwrap_or_default()
}

fn timestamps(mtime: Timestamp) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: mtime.secs,
            tv_nsec: mtime.nanos.into(),
        },
    }
}

/// Refuses attributes by which overlayfs is told what to show: in a layer's directory they would act, not be kept.
fn check_xattrs(entry: &EntryHeader) -> Outcome {
    for (name, _) in &entry.xattrs {
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            let name = TreePath(name.clone());
            return refused(format!(
                "the attribute {name} belongs to the overlay filesystem"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
