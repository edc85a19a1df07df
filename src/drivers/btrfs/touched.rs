//! What a layer and its parent can differ in, by the filesystem's own records, so that a diff needs not walk the rest.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::sys::btrfs::{
    Parted, ROOT_DIR, holds_inode_from, info, is_subvolume, nested, sync, touched_since,
};
use crate::sys::mount::mounts_below;

/// How many files are worth a sync of the whole filesystem.
pub(super) const WORTH: u64 = 10_000;

/// The inodes that were touched in either tree since one was made as a snapshot of the other. `None` when neither was, when less
/// than `worth` files were ever in the tree, and for layers with subvolumes or mounts inside, of which the records of the layer's own
/// subvolume know nothing.
///
/// A new time of access alone is no change, so a tree that was read whole still gains.
///
/// # Errors
/// No CAP_SYS_ADMIN, a kernel before 4.18, a failed sync.
pub(super) fn since_snapshot(
    new: BorrowedFd<'_>,
    old: BorrowedFd<'_>,
    worth: u64,
) -> io::Result<Option<HashSet<u64>>> {
    if !holds_inode_from(new, ROOT_DIR.saturating_add(worth))? {
        return Ok(None);
    }
    let Some((transaction, nanos)) = parted(new, old)? else {
        return Ok(None);
    };
    for root in [new, old] {
        let path = std::fs::read_link(format!("/proc/self/fd/{}", root.as_raw_fd()))?;
        if !is_subvolume(root)? || !nested(root)?.is_empty() || !mounts_below(&path)?.is_empty() {
            return Ok(None);
        }
    }
    sync(new)?;
    let in_one = |of, other| {
        touched_since(&Parted {
            of,
            other,
            transaction,
            nanos,
        })
    };
    let mut touched = in_one(new, old)?;
    touched.extend(in_one(old, new)?);
    Ok(Some(touched))
}

/// The transaction and the time of day in which one was made as a snapshot of the other. The transaction's number stands in the inodes
/// that were changed before the snapshot, too, but in the same transaction: those may be compared for nothing, and no later change is
/// missed.
fn parted(new: BorrowedFd<'_>, old: BorrowedFd<'_>) -> io::Result<Option<(u64, u128)>> {
    let (new, old) = (info(new)?, info(old)?);
    let is_of = |child: [u8; 16], parent: [u8; 16]| child == parent && parent != [0; 16];
    Ok(if is_of(new.parent_uuid, old.uuid) {
        Some((new.made_in, new.made_at))
    } else if is_of(old.parent_uuid, new.uuid) {
        Some((old.made_in, old.made_at))
    } else {
        None
    })
}
