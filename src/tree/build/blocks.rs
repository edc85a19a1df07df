//! Operations on the blocks of a file.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, ioctl_ficlone, unlinkat};

use super::steps::{CREATE_MODE_FILE, mode, new_name, open, parent};
use super::{Failure, Outcome};
use crate::sys::fiemap;
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
