//! Subvolumes inside layers: made by whoever works in the layer, and part of it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Mode, OFlags, Timestamps, fstat, futimens, unlinkat};
use rustix::io::Errno;

use crate::sys::btrfs::{destroy, info, is_subvolume, nested, set_read_only, snapshot};
use crate::sys::fs::open_beneath;
use crate::sys::remove::remove_tree_at;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

fn open(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    open_beneath(root, path, DIRECTORY, Mode::empty())
}

/// Deletes a subvolume with those inside it, or a directory, or what else has the name.
pub(super) fn delete(at: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let whole = || destroy(at, name.as_bytes());
    match whole() {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTEMPTY) => {
            let emptied = open(at, name.as_bytes()).and_then(|root| delete_nested(root.as_fd()));
            if emptied.is_ok() && whole().is_ok() {
                return Ok(());
            }
        }
        Err(_) => {}
    }
    // No subvolume, or not the right to delete it at once; since kernel 4.18 an empty one goes with rmdir(2).
    remove_tree_at(at, name)
}

fn delete_nested(root: BorrowedFd<'_>) -> io::Result<()> {
    let inside = nested(root)?;
    if !inside.is_empty() {
        // Out of a read-only one, such as one that was received, nothing can be deleted.
        set_read_only(root, false)?;
    }
    for found in inside {
        let dir = open(root, &found.dir)?;
        delete(dir.as_fd(), OsStr::from_bytes(&found.name))?;
    }
    Ok(())
}

/// The ids of a subvolume and of all inside it.
pub(super) fn ids(root: BorrowedFd<'_>) -> io::Result<Vec<u64>> {
    let mut found = vec![info(root)?.id];
    for inside in nested(root)? {
        let dir = open(root, &inside.dir)?;
        found.extend(ids(open(dir.as_fd(), &inside.name)?.as_fd())?);
    }
    Ok(found)
}

/// Makes a snapshot of the subvolume `name` in another directory, with those inside it; `false` when it is none, or lies on
/// another filesystem.
pub(in crate::drivers) fn snapshot_whole(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &[u8],
) -> io::Result<bool> {
    let source = open(from, name)?;
    if !is_subvolume(source.as_fd())? {
        return Ok(false);
    }
    match snapshot(to, name, source.as_fd()) {
        Err(Errno::XDEV | Errno::NOTTY) => return Ok(false),
        other => other?,
    }
    let made = open(to, name)?;
    snapshot_nested(source.as_fd(), made.as_fd())?;
    Ok(true)
}

/// Puts snapshots of the subvolumes in `from` where its snapshot `to` has empty directories.
pub(super) fn snapshot_nested(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let inside = match nested(from) {
        // Kernels before 4.18 do not tell.
        Err(e) if Errno::from_io_error(&e) == Some(Errno::NOTTY) => return Ok(()),
        other => other?,
    };
    for found in inside {
        let (source, dir) = (open(from, &found.dir)?, open(to, &found.dir)?);
        let times = fstat(&dir)?;
        unlinkat(&dir, OsStr::from_bytes(&found.name), AtFlags::REMOVEDIR)?;
        match snapshot_whole(source.as_fd(), dir.as_fd(), &found.name) {
            // Deleted meanwhile; then it is no part of the snapshot either.
            Err(e) if Errno::from_io_error(&e) == Some(Errno::NOENT) => {}
            other => drop(other?),
        }
        // Last, as every change in the directory sets them.
        futimens(&dir, &times_of(&times))?;
    }
    Ok(())
}

fn times_of(st: &rustix::fs::Stat) -> Timestamps {
    let time = |secs, nanos| rustix::fs::Timespec {
        tv_sec: secs,
        tv_nsec: nanos as _,
    };
    Timestamps {
        last_access: time(st.st_atime, st.st_atime_nsec),
        last_modification: time(st.st_mtime, st.st_mtime_nsec),
    }
}
