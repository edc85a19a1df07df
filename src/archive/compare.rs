//! Whether one entry of two trees is the same.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, Statx};
use rustix::io::Errno;

use super::walk::{ctime, errno, file_type, inode, mtime};
use crate::sys::copy::{next_extent, read_at};
use crate::sys::xattr;
use crate::tree::Timestamp;

/// One side of a comparison.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    pub(super) dir: BorrowedFd<'a>,
    pub(super) name: &'a CStr,
    pub(super) st: &'a Statx,
}

/// Whether the two entries differ in anything that a layer keeps.
///
/// One statx of each decides nearly always. Where all it shows is equal, two that [`are_one_version`] are the same, and so are two
/// that did not change since `settled`. Any other pair is compared in full, since a rewrite can keep the size and put the
/// mtime back, but cannot put back the ctime.
pub(super) fn differ(
    new: Side<'_>,
    old: Side<'_>,
    settled: Option<Timestamp>,
) -> rustix::io::Result<bool> {
    if inode(new.st) == inode(old.st) {
        return Ok(false);
    }
    if shown_differ(new.st, old.st) {
        return Ok(true);
    }
    let untouched = settled.is_some_and(|t| ctime(new.st) < t && ctime(old.st) < t);
    if untouched || are_one_version(new.st, old.st) {
        return Ok(false);
    }
    match hidden_differ(new, old) {
        // One of the two went away or was replaced while it was compared.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(true),
        other => other,
    }
}

/// Whether both are the same state of one inode, as it is seen through two snapshots of a volume, or through two overlay mounts over one
/// lower layer: number, birth and last change are equal.
fn are_one_version(new: &Statx, old: &Statx) -> bool {
    let birth = |st: &Statx| (st.stx_btime.tv_sec, st.stx_btime.tv_nsec);
    new.stx_ino == old.stx_ino && ctime(new) == ctime(old) && birth(new) == birth(old)
}

/// What statx shows. Size and mtime of directories follow from what is inside them, so they are no change of their own.
fn shown_differ(new: &Statx, old: &Statx) -> bool {
    let kind = file_type(new);
    let mode_differs = if kind == FileType::Symlink {
        kind != file_type(old)
    } else {
        new.stx_mode != old.stx_mode
    };
    mode_differs
        || (new.stx_uid, new.stx_gid) != (old.stx_uid, old.stx_gid)
        || (new.stx_rdev_major, new.stx_rdev_minor) != (old.stx_rdev_major, old.stx_rdev_minor)
        || (kind != FileType::Directory
            && (new.stx_size != old.stx_size || mtime(new) != mtime(old)))
}

/// What statx does not show: the target of a symbolic link, extended attributes, content.
fn hidden_differ(new: Side<'_>, old: Side<'_>) -> rustix::io::Result<bool> {
    let kind = file_type(new.st);
    if kind == FileType::Symlink {
        let target = |s: Side<'_>| rustix::fs::readlinkat(s.dir, s.name, Vec::new());
        if target(new)? != target(old)? {
            return Ok(true);
        }
    }
    let attributes = |s: Side<'_>| xattr::visible(s.dir, s.name).map_err(|e| errno(&e));
    if attributes(new)? != attributes(old)? {
        return Ok(true);
    }
    Ok(kind == FileType::RegularFile && new.st.stx_size > 0 && contents_differ(new, old)?)
}

/// Opens a regular file to read it. Should it have been replaced, a pipe does not block and a link is not followed.
pub(super) fn open_file(
    dir: BorrowedFd<'_>,
    name: impl rustix::path::Arg,
) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Whether a file has fewer blocks than its size needs, so that asking for its holes pays.
pub(super) fn has_holes(st: &Statx) -> bool {
    st.stx_blocks.saturating_mul(512) < st.stx_size
}

fn contents_differ(new: Side<'_>, old: Side<'_>) -> rustix::io::Result<bool> {
    let (a, b) = (open_file(new.dir, new.name)?, open_file(old.dir, old.name)?);
    let size = new.st.stx_size;
    let sparse = has_holes(new.st) && has_holes(old.st);
    let chunk = usize::try_from(size).unwrap_or(usize::MAX).min(128 * 1024);
    let (mut left, mut right) = (vec![0; chunk], vec![0; chunk]);
    let mut at = 0;
    while at < size {
        if sparse {
            let data = |file: &OwnedFd| next_extent(file.as_fd(), at, size);
            let (a, b) = (data(&a), data(&b));
            at = a.and_then(|a| Ok(a.0.min(b?.0))).map_err(|e| errno(&e))?;
        }
        let read = fill_at(&a, at, &mut left)?;
        if read != fill_at(&b, at, &mut right)? || left[..read] != right[..read] {
            return Ok(true);
        }
        if read == 0 {
            break;
        }
        at += read as u64;
    }
    Ok(false)
}

/// Fills the buffer from this offset; gives less than its length only at the end of the file.
fn fill_at(fd: &OwnedFd, at: u64, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = &mut buffer[filled..];
        match read_at(fd.as_fd(), rest, at + filled as u64).map_err(|e| errno(&e))? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}
