//! Operations on the blocks of a file, and files made in other ways than by a name.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, ioctl_ficlone, linkat, unlinkat};

use super::steps::{CREATE_MODE_FILE, mode, new_name, open, parent};
use super::{Failure, Outcome};
use crate::sys::copy::write_all_at;
use crate::sys::fiemap;
use crate::sys::fs::fd_path;
use crate::tree::op;

/// Makes a file that shares its blocks with another; where that cannot be done, there is no file.
pub(super) fn clone(root: BorrowedFd<'_>, o: &op::CloneOp) -> Outcome {
    let from = open(root, &o.from.0, OFlags::RDONLY, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let to = open(root, &o.path.0, flags, mode(CREATE_MODE_FILE))?;
    if let Err(e) = ioctl_ficlone(&to, &from) {
        let (dir, name) = new_name(root, &o.path.0)?;
        unlinkat(dir, name, AtFlags::empty())?;
        return Err(e.into());
    }
    Ok(())
}

/// Makes a file that has no name until its content is there.
pub(super) fn unnamed(root: BorrowedFd<'_>, o: &op::UnnamedOp) -> Outcome {
    let (dir, name) = new_name(root, &o.path.0)?;
    // The one that `parent` opens has a path only.
    let at = o.path.0.parent().unwrap_or_default();
    let flags = OFlags::WRONLY | OFlags::TMPFILE;
    let file = open(root, &at, flags, mode(CREATE_MODE_FILE))?;
    write_all_at(file.as_fd(), &o.text.0, 0)?;
    let it = fd_path(file.as_fd());
    Ok(linkat(CWD, it, dir, name, AtFlags::SYMLINK_FOLLOW)?)
}

/// Compares how many bytes of a file lie in blocks that other files have too.
pub(super) fn shared(root: BorrowedFd<'_>, o: &op::SharedOp) -> Outcome {
    let file = open(root, &o.path.0, OFlags::RDONLY, Mode::empty())?;
    let found = fiemap::blocks(file.as_fd())?;
    if found.shared < o.at_least.0 {
        return Err(Failure::Mismatch(format!(
            "{} of {} bytes shared with other files, not {} at least",
            found.shared, found.mapped, o.at_least.0
        )));
    }
    Ok(())
}

/// Compares the space on the disk.
pub(super) fn space(root: BorrowedFd<'_>, o: &op::SpaceOp) -> Outcome {
    /// What `st_blocks` counts in, whatever the filesystem's blocks are.
    const UNIT: u64 = 512;
    let (parent, name) = parent(root, &o.path.0)?;
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let st = rustix::fs::statx(&parent, &name, flags, StatxFlags::BLOCKS)?;
    let found = st.stx_blocks.saturating_mul(UNIT);
    if found > o.at_most.0 {
        return Err(Failure::Mismatch(format!(
            "{found} bytes on the disk, not {} at most",
            o.at_most.0
        )));
    }
    Ok(())
}
