//! Copying a tree with everything it holds, or hard-linking its files.
//!
//! Directories are worked off by a few threads. Nothing is reached by a path that leads through a symbolic link, and what is mounted
//! in the source is not entered.

use crate::sync::lock;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat,
    fchmod, fchown, fstat, futimens, linkat, mkdirat, mknodat, openat, readlinkat, statat,
    symlinkat, utimensat,
};
use rustix::io::Errno;

use super::btrfs::subvolumes;
use crate::graphdriver::{Error, Result};
use crate::sys::copy::Copier;
use crate::sys::{cpus, fs as sysfs, xattr};
use crate::tree::TreePath;

/// More threads than this find no more work on one disk.
const MAX_THREADS: usize = 4;

/// What becomes of regular files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    /// They are copied: reflink, else copy_file_range(2), else read and written; holes stay holes.
    Copied,
    /// The same, and a directory that is a btrfs subvolume becomes a snapshot of it, with those inside.
    CopiedAndSnapshots,
    /// They get one more name.
    HardLinked,
}

/// Copies what is in `from` into the empty directory `to`, then gives `to` the owner, mode, attributes and times of `from`.
/// Hard links within the tree stay hard links. Attributes for which `keep` is false are left out.
///
/// # Errors
/// The first failure; `to` then holds a part.
pub(crate) fn copy_tree(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    files: Files,
    keep: fn(&[u8]) -> bool,
) -> Result<()> {
    let copy = TreeCopy {
        from,
        to,
        files,
        keep,
        copier: Copier::new(),
        links: Mutex::default(),
        work: Mutex::default(),
        changed: Condvar::new(),
    };
    let root = Arc::new(Node {
        path: TreePath::root(),
        parent: None,
        open: AtomicUsize::new(1),
    });
    copy.run(root)
}

/// A directory; `open` counts itself and its subdirectories until they are complete.
struct Node {
    path: TreePath,
    parent: Option<Arc<Node>>,
    open: AtomicUsize,
}

#[derive(Default)]
struct Work {
    queue: Vec<Arc<Node>>,
    busy: usize,
    error: Option<Error>,
}

struct TreeCopy<'a> {
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    files: Files,
    keep: fn(&[u8]) -> bool,
    copier: Copier,
    /// Where an inode with several names was first copied to.
    links: Mutex<HashMap<(u64, u64), TreePath>>,
    work: Mutex<Work>,
    changed: Condvar,
}

/// A system call that failed, before the path is known.
type Failed = (&'static str, Errno);

impl TreeCopy<'_> {
    fn run(&self, root: Arc<Node>) -> Result<()> {
        // The root's own entries first: a tree without subdirectories is not worth a thread.
        self.directory(&root);
        let threads = self.lock().queue.len().min(cpus()).min(MAX_THREADS);
        std::thread::scope(|scope| {
            for _ in 1..threads {
                // A thread that cannot be had is done without.
                let _ = std::thread::Builder::new().spawn_scoped(scope, || self.work_off());
            }
            self.work_off();
        });
        match self.lock().error.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Work> {
        lock(&self.work)
    }

    fn work_off(&self) {
        let mut work = self.lock();
        loop {
            if work.error.is_some() {
                break;
            }
            if let Some(node) = work.queue.pop() {
                work.busy += 1;
                drop(work);
                self.directory(&node);
                work = self.lock();
                work.busy -= 1;
            } else if work.busy == 0 {
                break;
            } else {
                work = self
                    .changed
                    .wait(work)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
        drop(work);
        self.changed.notify_all();
    }

    fn directory(&self, node: &Arc<Node>) {
        if let Err(error) = self.fill(node).and_then(|()| self.complete(node)) {
            self.lock().error.get_or_insert(error);
        }
        self.changed.notify_all();
    }

    /// Copies the entries of one directory; subdirectories are made and queued.
    fn fill(&self, node: &Arc<Node>) -> Result<()> {
        let from = match open_directory(self.from, &node.path) {
            Ok(from) => from,
            // Something is mounted there, which is not a part of the tree.
            Err(e) if Errno::from_io_error(&e) == Some(Errno::XDEV) => return Ok(()),
            Err(e) => return Err(Error::io("open", shown(&node.path), e)),
        };
        let to = open_directory(self.to, &node.path)
            .map_err(|e| Error::io("open the copy of", shown(&node.path), e))?;
        let mut names: Vec<(CString, FileType)> = Vec::new();
        sysfs::for_each_name(from.as_fd(), |name, kind| {
            names.push((name.to_owned(), kind));
            Ok(())
        })
        .map_err(|e| Error::io("read the directory", shown(&node.path), e))?;
        let mut subdirectories = Vec::new();
        for (name, _) in &names {
            let path = node.path.join(name.to_bytes());
            let entry = Entry {
                from: from.as_fd(),
                to: to.as_fd(),
                name,
                path: &path,
            };
            let made = self
                .entry(&entry)
                .map_err(|(op, e)| Error::io(op, shown(&path), e))?;
            if made == FileType::Directory {
                node.open.fetch_add(1, Ordering::Relaxed);
                subdirectories.push(Arc::new(Node {
                    path,
                    parent: Some(Arc::clone(node)),
                    open: AtomicUsize::new(1),
                }));
            }
        }
        self.lock().queue.append(&mut subdirectories);
        Ok(())
    }

    /// Sets the attributes of a directory when all below it is done, and looks after the one above. Not before: files made in it
    /// change its time, and an ordinary user makes none in a directory without the write bit.
    fn complete(&self, node: &Arc<Node>) -> Result<()> {
        let mut node = Some(Arc::clone(node));
        while let Some(done) = node
            .take()
            .filter(|n| n.open.fetch_sub(1, Ordering::AcqRel) == 1)
        {
            self.finish_directory(&done.path)
                .map_err(|e| Error::io("give attributes to", shown(&done.path), e))?;
            node = done.parent.clone();
        }
        Ok(())
    }

    fn finish_directory(&self, path: &TreePath) -> io::Result<()> {
        let from = match open_directory(self.from, path) {
            Err(e) if Errno::from_io_error(&e) == Some(Errno::XDEV) => return Ok(()),
            other => other?,
        };
        let to = open_directory(self.to, path)?;
        copy_directory_attributes(from.as_fd(), to.as_fd(), self.keep)
    }

    /// Copies one entry and returns its type, of a directory only the directory itself; what was a snapshot has no type.
    fn entry(&self, e: &Entry<'_>) -> Result<FileType, Failed> {
        let st = statat(e.from, e.name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| ("stat", e))?;
        let kind = FileType::from_raw_mode(st.st_mode);
        if kind == FileType::Directory {
            if self.files == Files::CopiedAndSnapshots
                && subvolumes::snapshot_whole(e.from, e.to, e.name.to_bytes())
                    .map_err(|e| ("make a snapshot of", errno(&e)))?
            {
                // Nothing is left to be done below it.
                return Ok(FileType::Unknown);
            }
            mkdirat(e.to, e.name, Mode::RWXU).map_err(|e| ("make the copy of", e))?;
            return Ok(kind);
        }
        if kind == FileType::RegularFile && self.files == Files::HardLinked {
            linkat(e.from, e.name, e.to, e.name, AtFlags::empty()).map_err(|e| ("link", e))?;
            return Ok(kind);
        }
        if st.st_nlink > 1 {
            return self.linked(e, &st, kind);
        }
        self.make(e, &st, kind)?;
        Ok(kind)
    }

    /// An inode with several names: made once, then linked.
    fn linked(&self, e: &Entry<'_>, st: &Stat, kind: FileType) -> Result<FileType, Failed> {
        let mut links = lock(&self.links);
        let first = links
            .entry((st.st_dev, st.st_ino))
            .or_insert_with(|| e.path.clone())
            .clone();
        if first == *e.path {
            // The lock is held until the first name is complete: another thread may be about to link to it.
            self.make(e, st, kind)?;
            return Ok(kind);
        }
        drop(links);
        let dir = sysfs::open_beneath(
            self.to,
            first.parent().unwrap_or_default().as_bytes(),
            OFlags::PATH | OFlags::DIRECTORY,
            Mode::empty(),
        )
        .map_err(|e| ("open the directory of the other name of", errno(&e)))?;
        linkat(dir, first.base(), e.to, e.name, AtFlags::empty()).map_err(|e| ("link", e))?;
        Ok(kind)
    }

    fn make(&self, e: &Entry<'_>, st: &Stat, kind: FileType) -> Result<(), Failed> {
        if kind == FileType::RegularFile {
            return self.make_file(e, st);
        }
        let made = if kind == FileType::Symlink {
            readlinkat(e.from, e.name, Vec::new())
                .and_then(|target| symlinkat(target.as_c_str(), e.to, e.name))
        } else {
            mknodat(e.to, e.name, kind, Mode::RUSR | Mode::WUSR, st.st_rdev)
        };
        made.map_err(|e| ("make the copy of", e))?;
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let (uid, gid) = (Uid::from_raw(st.st_uid), Gid::from_raw(st.st_gid));
        chownat(e.to, e.name, Some(uid), Some(gid), nofollow)
            .map_err(|e| ("change the owner of", e))?;
        copy_xattrs(e.from, e.name, e.to, e.name, self.keep)
            .map_err(|e| ("copy the attributes of", errno(&e)))?;
        if kind != FileType::Symlink {
            // It was made just now, as something that is no symbolic link.
            chmodat(e.to, e.name, mode_of(st), AtFlags::empty())
                .map_err(|e| ("change the mode of", e))?;
        }
        utimensat(e.to, e.name, &times_of(st), nofollow).map_err(|e| ("set the times of", e))
    }

    fn make_file(&self, e: &Entry<'_>, st: &Stat) -> Result<(), Failed> {
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let from = openat(
            e.from,
            e.name,
            flags | OFlags::RDONLY | OFlags::NONBLOCK,
            Mode::empty(),
        )
        .map_err(|e| ("open", e))?;
        let create = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let to = openat(e.to, e.name, create, Mode::RUSR | Mode::WUSR)
            .map_err(|e| ("make the copy of", e))?;
        if st.st_size > 0 {
            self.copier
                .copy(from.as_fd(), to.as_fd())
                .map_err(|e| ("copy the content of", errno(&e)))?;
        }
        // Writing and a change of owner clear setuid bits and capabilities, so those come after; the mode comes last,
        // because user attributes want the write bit.
        fchown(
            &to,
            Some(Uid::from_raw(st.st_uid)),
            Some(Gid::from_raw(st.st_gid)),
        )
        .map_err(|e| ("change the owner of", e))?;
        copy_xattrs(from.as_fd(), c"", to.as_fd(), c"", self.keep)
            .map_err(|e| ("copy the attributes of", errno(&e)))?;
        fchmod(&to, mode_of(st)).map_err(|e| ("change the mode of", e))?;
        futimens(&to, &times_of(st)).map_err(|e| ("set the times of", e))
    }
}

/// One name in a directory of the source, and the directory of the copy.
struct Entry<'a> {
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    name: &'a CStr,
    path: &'a TreePath,
}

/// Gives the directory `to` the owner, mode, times and those attributes of `from` for which `keep` is true.
///
/// # Errors
/// The errno of the first call that fails.
pub(super) fn copy_directory_attributes(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    keep: fn(&[u8]) -> bool,
) -> io::Result<()> {
    let st = fstat(from)?;
    fchown(
        to,
        Some(Uid::from_raw(st.st_uid)),
        Some(Gid::from_raw(st.st_gid)),
    )?;
    copy_xattrs(from, c"", to, c"", keep)?;
    fchmod(to, mode_of(&st))?;
    Ok(futimens(to, &times_of(&st))?)
}

/// The empty name is what the descriptor is open on.
fn copy_xattrs(
    from: BorrowedFd<'_>,
    from_name: &CStr,
    to: BorrowedFd<'_>,
    to_name: &CStr,
    keep: fn(&[u8]) -> bool,
) -> io::Result<()> {
    for key in xattr::list(from, from_name)? {
        // The label is the host's policy's to give, not the layer's to keep.
        if key.to_bytes() != b"security.selinux"
            && keep(key.to_bytes())
            && let Some(value) = xattr::get(from, from_name, &key)?
        {
            xattr::set(to, to_name, &key, &value)?;
        }
    }
    Ok(())
}

fn open_directory(root: BorrowedFd<'_>, path: &TreePath) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    sysfs::open_beneath(root, path.as_bytes(), flags, Mode::empty())
}

fn mode_of(st: &Stat) -> Mode {
    Mode::from_raw_mode(st.st_mode & 0o7777)
}

fn times_of(st: &Stat) -> Timestamps {
    let time = |tv_sec, tv_nsec: u64| Timespec {
        tv_sec,
        tv_nsec: i64::try_from(tv_nsec).unwrap_or(0),
    };
    Timestamps {
        last_access: time(st.st_atime, st.st_atime_nsec),
        last_modification: time(st.st_mtime, st.st_mtime_nsec),
    }
}

fn errno(e: &io::Error) -> Errno {
    Errno::from_io_error(e).unwrap_or(Errno::IO)
}

fn shown(path: &TreePath) -> String {
    path.to_string()
}
