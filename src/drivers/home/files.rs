//! Small files and directories of layers.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FlockOperation, Gid, Mode, OFlags, Uid, fchmod, fchown, flock, mkdirat, openat,
    renameat, statat,
};
use rustix::io::Errno;

use super::{DIRECTORY, TEMPORARY, temporary_name};
use crate::graphdriver::{Error, LayerId, Result};
use crate::sys;
use crate::tree::Owner;

/// Writes a small file so that it is there whole or not at all, also after a power cut: under a temporary name, flushed, renamed. For
/// files of a layer that is being made see [`Stage::write_records`].
pub(in crate::drivers) fn write_atomically(
    dir: BorrowedFd<'_>,
    name: &str,
    content: &[u8],
    mode: u32,
) -> Result<()> {
    if content.is_empty() {
        return mark(dir, name, mode);
    }
    // Not made from the name, which may be as long as names can be.
    let temporary = temporary_name(TEMPORARY);
    write_synced(dir, &temporary, content, mode)?;
    renameat(dir, &temporary, dir, name).map_err(|e| {
        // The first failure is the one to tell.
        let _ = rustix::fs::unlinkat(dir, &temporary, AtFlags::empty());
        Error::io("rename", name, e)
    })
}

/// Makes an empty file, which is whole once it has its name; a temporary one would stay behind when the process dies in between.
fn mark(dir: BorrowedFd<'_>, name: &str, mode: u32) -> Result<()> {
    let failed = |op| move |e: Errno| Error::io(op, name, e);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(mode);
    let file = openat(dir, name, flags, mode).map_err(failed("create"))?;
    fchmod(&file, mode).map_err(failed("change the mode of"))
}

/// Writes a new file and has its content on the disk; after an error there is none.
pub(in crate::drivers) fn write_synced(
    dir: BorrowedFd<'_>,
    name: &str,
    content: &[u8],
    mode: u32,
) -> Result<()> {
    let file = write_new(dir, name, content, mode)?;
    rustix::fs::fsync(&file).map_err(|e| {
        // The first failure is the one to tell.
        let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
        Error::io("sync", name, e)
    })
}

/// Writes a new file, which may be in memory only still; after an error there is none.
pub(super) fn write_new(
    dir: BorrowedFd<'_>,
    name: &str,
    content: &[u8],
    mode: u32,
) -> Result<OwnedFd> {
    let failed = |op| move |e: Errno| Error::io(op, name, e);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(mode);
    let file = openat(dir, name, flags, mode).map_err(failed("create"))?;
    let written = fchmod(&file, mode)
        .map_err(failed("change the mode of"))
        .and_then(|()| sys::copy::write_all_at(file.as_fd(), content, 0).map_err(failed("write")));
    match written {
        Ok(()) => Ok(file),
        Err(e) => {
            // The first failure is the one to tell.
            let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
            Err(e)
        }
    }
}

/// Room for 500 names of 29 bytes, and to see that a file is longer than any we write.
const MAX_FILE: u64 = 64 * 1024;

/// Whether a directory has an entry of this name.
pub(in crate::drivers) fn has_entry(dir: BorrowedFd<'_>, name: &str) -> bool {
    statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// The start of a text, quoted, for a message.
pub(in crate::drivers) fn excerpt(text: &str) -> String {
    let cut: String = text.chars().take(40).collect();
    format!("{cut:?}{}", if cut.len() < text.len() { "..." } else { "" })
}

/// A small file of a layer; `None` when there is none.
pub(in crate::drivers) fn read_text(
    dir: BorrowedFd<'_>,
    id: &LayerId,
    name: &str,
) -> Result<Option<String>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(dir, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP) => return Err(id.damaged(format!("its file `{name}` is a symbolic link"))),
        Err(e) => return Err(Error::io("open", format!("{id}/{name}"), e)),
    };
    let mut text = Vec::new();
    std::fs::File::from(file)
        .take(MAX_FILE)
        .read_to_end(&mut text)
        .map_err(|e| Error::io("read", format!("{id}/{name}"), e))?;
    match String::from_utf8(text) {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(id.damaged(format!("its file `{name}` is not text"))),
    }
}

/// Makes a directory with exactly this mode and owner, whatever the umask, and opens it.
pub(in crate::drivers) fn make_dir(
    at: BorrowedFd<'_>,
    name: &str,
    mode: u32,
    owner: Owner,
) -> Result<OwnedFd> {
    let failed = |op| move |e: Errno| Error::io(op, name, e);
    mkdirat(at, name, Mode::RWXU).map_err(failed("make"))?;
    let dir = open_dir(at, name).map_err(failed("open"))?;
    set_owner_and_mode(dir.as_fd(), mode, owner).map_err(failed("change the owner and mode of"))?;
    Ok(dir)
}

/// Makes a directory with this mode, less the umask; that it is there is success.
pub(in crate::drivers) fn make_dir_if_missing(path: &Path, mode: u32) -> Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(Error::io("make", path, e)),
    }
}

/// Removes the directory where a layer was mounted.
pub(in crate::drivers) fn remove_mount_point(at: &Path) -> Result<()> {
    match rustix::fs::rmdir(at) {
        // Somebody wrote into the directory while nothing was mounted on it; that is theirs. On a disk that has become read-only it
        // stays, empty, until the next put.
        Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::BUSY | Errno::ROFS) => Ok(()),
        Err(e) => Err(Error::io("remove", at, e)),
    }
}

/// Owner first: a change of owner can clear mode bits.
pub(in crate::drivers) fn set_owner_and_mode(
    dir: BorrowedFd<'_>,
    mode: u32,
    owner: Owner,
) -> Result<(), Errno> {
    fchown(
        dir,
        Some(Uid::from_raw(owner.uid)),
        Some(Gid::from_raw(owner.gid)),
    )?;
    fchmod(dir, Mode::from_raw_mode(mode))
}

/// Locks a directory as a whole, through a descriptor of its own; it is free again when that is dropped.
pub(in crate::drivers) fn lock_dir(
    dir: BorrowedFd<'_>,
    how: FlockOperation,
) -> Result<OwnedFd, Errno> {
    let own = open_dir(dir, ".")?;
    flock(&own, how)?;
    Ok(own)
}

/// Opens a directory by one name, never following a symbolic link.
pub(in crate::drivers) fn open_dir(
    at: BorrowedFd<'_>,
    name: impl rustix::path::Arg,
) -> Result<OwnedFd, Errno> {
    openat(at, name, DIRECTORY, Mode::empty())
}
