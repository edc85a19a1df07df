//! Names of one file that lie in several branches.
//!
//! When a file with several names below is first written to through one of them, aufs copies it up under that name alone and gives the copy
//! a second name in `.wh..wh.plnk`, `<inode number in the mount>.<inode number in the branch>`. From then on all names show the copy, but the
//! kernel knows that only while the layer is mounted: names that lie in branches below must be made in the branch before it is unmounted, or
//! they show the old content afterwards. The program `auplink MOUNT flush` does that; so does [`flush`], which needs nothing installed.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, chownat, statat, unlinkat};
use rustix::io::Errno;

use super::layout::PSEUDO_LINKS;
use crate::drivers::home::open_dir;
use crate::graphdriver::{Error, Result};
use crate::sys::fs::{Mode, OFlags, for_each_name, open_beneath};

/// Whether a branch has any.
pub(super) fn any(branch: BorrowedFd<'_>) -> Result<bool> {
    Ok(!names(branch).map_err(failed)?.is_empty())
}

/// Gives each name in the mount `root` that stands for a file of `branch` its place there; says how many names were visited.
///
/// A change of owner that changes nothing has the kernel copy a name up; what has a second name kept is linked, not copied.
///
/// # Errors
/// The layer cannot be read, or there is no room for the names.
pub(super) fn flush(root: BorrowedFd<'_>, branch: BorrowedFd<'_>) -> Result<usize> {
    let kept: HashSet<u64> = names(branch)
        .map_err(failed)?
        .iter()
        .filter_map(|name| name.to_str().ok()?.split_once('.')?.0.parse().ok())
        .collect();
    if kept.is_empty() {
        return Ok(0);
    }
    touch(root, &kept).map_err(failed)
}

/// Removes the second names. Nothing may be mounted of the branch.
pub(super) fn clear(branch: BorrowedFd<'_>) -> Result<()> {
    let Some(dir) = kept_dir(branch).map_err(failed)? else {
        return Ok(());
    };
    for name in names(branch).map_err(failed)? {
        match unlinkat(&dir, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(failed(e.into())),
        }
    }
    Ok(())
}

fn failed(e: io::Error) -> Error {
    Error::io("look after", PSEUDO_LINKS, e)
}

fn kept_dir(branch: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    match open_dir(branch, PSEUDO_LINKS) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn names(branch: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut found = Vec::new();
    if let Some(dir) = kept_dir(branch)? {
        for_each_name(dir.as_fd(), |name, _| {
            found.push(name.to_owned());
            Ok(())
        })?;
    }
    Ok(found)
}

/// Visits every name below `root`; a path, not a chain of descriptors, says where it is, however deep the tree.
fn touch(root: BorrowedFd<'_>, inodes: &HashSet<u64>) -> io::Result<usize> {
    let mut visited = 0;
    let mut dirs = vec![Vec::new()];
    while let Some(path) = dirs.pop() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let dir = match open_beneath(root, &path, flags, Mode::empty()) {
            Ok(dir) => dir,
            // Removed meanwhile, or something is mounted on it.
            Err(e) if is_gone(&e) && !path.is_empty() => continue,
            Err(e) => return Err(e),
        };
        let mut names = Vec::new();
        for_each_name(dir.as_fd(), |name, _| {
            names.push(name.to_owned());
            Ok(())
        })?;
        for name in names {
            let st = match statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                st => st?,
            };
            if FileType::from_raw_mode(st.st_mode) == FileType::Directory {
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                dirs.push([&path, slash, name.as_bytes()].concat());
            } else if inodes.contains(&st.st_ino) {
                match chownat(&dir, &name, None, None, AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => {}
                    // Nothing was written through a mount that is read-only.
                    Err(Errno::ROFS) => return Ok(visited),
                    other => other?,
                }
                visited += 1;
            }
        }
    }
    Ok(visited)
}

fn is_gone(e: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(e),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV)
    )
}
