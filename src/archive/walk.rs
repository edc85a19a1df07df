//! Walking directory trees by descriptor: no path is ever resolved outside its root, and no mount below it is entered.

use crate::sync::lock;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::Error;
use crate::sys::{self, cpus};
use crate::tree::{Timestamp, TreePath};

/// The names in one directory in byte order, in one allocation, since a directory may hold a hundred thousand.
#[derive(Debug, Default)]
pub(super) struct Names {
    bytes: Vec<u8>,
    spans: Vec<Span>,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    len: u16,
    kind: FileType,
}

impl Names {
    /// Reads a directory that was opened for reading.
    pub(super) fn read(dir: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        let mut names = Self::default();
        sys::fs::for_each_name(dir, |name, kind| {
            names.push(name.to_bytes(), kind);
            Ok(())
        })
        .map_err(|e| errno(&e))?;
        names.sort();
        Ok(names)
    }

    /// Adds a name; [`Names::sort`] must follow the last one.
    pub(super) fn push(&mut self, name: &[u8], kind: FileType) {
        let start = u32::try_from(self.bytes.len()).expect("names of one directory fit in 4 GiB");
        let len = u16::try_from(name.len()).expect("a name has at most 255 bytes");
        self.spans.push(Span { start, len, kind });
        self.bytes.extend_from_slice(name);
        self.bytes.push(0);
    }

    /// Puts the names in byte order.
    pub(super) fn sort(&mut self) {
        let bytes = &self.bytes;
        self.spans
            .sort_unstable_by(|a, b| slice(bytes, a).cmp(slice(bytes, b)));
    }

    pub(super) fn len(&self) -> usize {
        self.spans.len()
    }

    pub(super) fn name(&self, index: usize) -> &[u8] {
        slice(&self.bytes, &self.spans[index])
    }

    /// The name as the kernel takes it.
    pub(super) fn c_name(&self, index: usize) -> &CStr {
        let span = &self.spans[index];
        let start = span.start as usize;
        CStr::from_bytes_with_nul(&self.bytes[start..=start + span.len as usize])
            .expect("every name is stored with its NUL")
    }

    /// The type that the directory itself states; may be [`FileType::Unknown`].
    pub(super) fn kind(&self, index: usize) -> FileType {
        self.spans[index].kind
    }

    pub(super) fn find(&self, name: &[u8]) -> Option<usize> {
        self.spans
            .binary_search_by(|span| slice(&self.bytes, span).cmp(name))
            .ok()
    }
}

fn slice<'a>(bytes: &'a [u8], span: &Span) -> &'a [u8] {
    &bytes[span.start as usize..span.start as usize + span.len as usize]
}

/// Opens a directory for reading, given by its path below `root`; symbolic links on the way are refused.
pub(super) fn open_dir(root: BorrowedFd<'_>, path: &TreePath) -> rustix::io::Result<OwnedFd> {
    open_dir_with(root, path, OFlags::empty())
}

/// As [`open_dir`], with more flags.
pub(super) fn open_dir_with(
    root: BorrowedFd<'_>,
    path: &TreePath,
    more: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | more;
    sys::fs::open_beneath(root, path.as_bytes(), flags, Mode::empty()).map_err(|e| errno(&e))
}

/// The errno of a failed call.
pub(super) fn errno(e: &io::Error) -> Errno {
    Errno::from_io_error(e).unwrap_or(Errno::IO)
}

/// Whether opening a directory failed since it is no longer there, or since something is mounted on it, which is not part of the
/// layer: it then counts as empty.
pub(super) fn is_gone(e: Errno) -> bool {
    matches!(e, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV)
}

/// [`open_dir`] and its names; `None` for a directory below the root that [`is_gone`].
pub(super) fn list_dir(
    root: BorrowedFd<'_>,
    path: &TreePath,
) -> rustix::io::Result<Option<(OwnedFd, Names)>> {
    match open_dir(root, path) {
        Ok(dir) => {
            let names = Names::read(dir.as_fd())?;
            Ok(Some((dir, names)))
        }
        Err(e) if is_gone(e) && !path.is_root() => Ok(None),
        Err(e) => Err(e),
    }
}

/// One statx, not following a symbolic link.
pub(super) fn stat(dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> rustix::io::Result<Statx> {
    rustix::fs::statx(
        dir,
        name,
        AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT,
        StatxFlags::BASIC_STATS | StatxFlags::BTIME,
    )
}

/// One statx of what is open.
pub(super) fn stat_open(file: BorrowedFd<'_>) -> rustix::io::Result<Statx> {
    rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
}

/// As [`stat`], with a name that is not there, or whose directory is gone, as `None`.
pub(super) fn stat_if_there(
    dir: BorrowedFd<'_>,
    name: impl rustix::path::Arg,
) -> rustix::io::Result<Option<Statx>> {
    match stat(dir, name) {
        Ok(st) => Ok(Some(st)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(e) => Err(e),
    }
}

pub(super) fn file_type(st: &Statx) -> FileType {
    FileType::from_raw_mode(st.stx_mode.into())
}

/// What identifies an inode.
pub(super) type InodeKey = (u32, u32, u64);

pub(super) fn inode(st: &Statx) -> InodeKey {
    (st.stx_dev_major, st.stx_dev_minor, st.stx_ino)
}

pub(super) fn mtime(st: &Statx) -> Timestamp {
    Timestamp {
        secs: st.stx_mtime.tv_sec,
        nanos: st.stx_mtime.tv_nsec,
    }
}

pub(super) fn ctime(st: &Statx) -> Timestamp {
    Timestamp {
        secs: st.stx_ctime.tv_sec,
        nanos: st.stx_ctime.tv_nsec,
    }
}

/// The directories used last, open, so that entries that come in path order do not each resolve their path.
#[derive(Debug)]
pub(super) struct Dirs {
    root: OwnedFd,
    recent: Vec<(TreePath, OwnedFd)>,
}

impl Dirs {
    const KEPT: usize = 8;

    pub(super) fn new(root: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self {
            root: root.try_clone_to_owned()?,
            recent: Vec::new(),
        })
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The directory that holds `path`, open for reading.
    pub(super) fn parent(&mut self, path: &TreePath) -> rustix::io::Result<BorrowedFd<'_>> {
        let bytes = path.as_bytes();
        let cut = bytes.len() - path.base().len();
        let dir = &bytes[..cut.saturating_sub(1)];
        match self.recent.iter().position(|(p, _)| p.as_bytes() == dir) {
            Some(0) => {}
            Some(at) => self.recent[..=at].rotate_right(1),
            None => {
                let dir = TreePath(dir.to_vec());
                let fd = open_dir(self.root.as_fd(), &dir)?;
                self.recent.truncate(Self::KEPT - 1);
                self.recent.insert(0, (dir, fd));
            }
        }
        Ok(self.recent[0].1.as_fd())
    }

    /// One statx of `path`; `None` when it is not there.
    pub(super) fn stat_if_there(&mut self, path: &TreePath) -> rustix::io::Result<Option<Statx>> {
        match self.parent(path) {
            Ok(dir) => stat_if_there(dir, path.base()),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

struct Queue<T> {
    stack: Vec<T>,
    busy: usize,
    error: Option<Error>,
}

/// Runs `work` on every task and on the tasks it adds, on all processors; gives what each worker gathered.
/// The newest task goes first, which keeps the queue (and so the memory) small. The first error ends it.
pub(super) fn in_parallel<T: Send, R: Default + Send>(
    first: T,
    work: impl Fn(T, &mut Vec<T>, &mut R) -> Result<(), Error> + Sync,
) -> Result<Vec<R>, Error> {
    // Small trees are done before a thread would have started.
    const ALONE: usize = 16;
    let mut gathered = R::default();
    let mut stack = vec![first];
    for _ in 0..ALONE {
        let Some(task) = stack.pop() else {
            return Ok(vec![gathered]);
        };
        work(task, &mut stack, &mut gathered)?;
    }
    let queue = Mutex::new(Queue {
        stack,
        busy: 0,
        error: None,
    });
    let changed = Condvar::new();
    let run = |mut gathered: R| {
        let mut more = Vec::new();
        let mut state = lock(&queue);
        loop {
            if state.error.is_some() || (state.stack.is_empty() && state.busy == 0) {
                changed.notify_all();
                return gathered;
            }
            let Some(task) = state.stack.pop() else {
                state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.busy += 1;
            drop(state);
            let done = work(task, &mut more, &mut gathered);
            state = lock(&queue);
            state.busy -= 1;
            if let Err(error) = done {
                state.error.get_or_insert(error);
            }
            if more.len() > 1 || state.busy == 0 {
                changed.notify_all();
            }
            state.stack.append(&mut more);
        }
    };
    let threads = cpus().min(8);
    let results = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .map(|_| scope.spawn(|| run(R::default())))
            .collect();
        let mut results = vec![run(gathered)];
        for other in others {
            results.push(
                other
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            );
        }
        results
    });
    match queue
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .error
    {
        Some(error) => Err(error),
        None => Ok(results),
    }
}
