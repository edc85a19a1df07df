//! The search in btrfs' trees (`BTRFS_IOC_TREE_SEARCH_V2`, CAP_SYS_ADMIN), and what it tells about a snapshot.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::ioctl::{Updater, ioctl, opcode};

use super::MAGIC;

/// The inode number of every subvolume's root directory.
pub const ROOT_DIR: u64 = 256;

/// The largest inode number (`BTRFS_LAST_FREE_OBJECTID`); keys above it are no inodes.
const LAST_INODE: u64 = u64::MAX - 255;

/// The tree that a descriptor's inode lies in.
const OWN_TREE: u64 = 0;
const INODE_ITEM: u32 = 1;
const INODE_REF: u32 = 12;
const INODE_EXTREF: u32 = 13;

/// A key: object, kind of item, offset.
pub(super) type Key = (u64, u32, u64);

/// One item of one tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    pub tree: u64,
    pub key: Key,
}

/// The tree that holds the roots of all trees, and the names of subvolumes.
pub(super) const TREE_OF_TREES: u64 = 1;

/// The directory entry `default` of the tree of trees; its offset is the checksum of the name.
pub(super) const DEFAULT_SUBVOLUME: At = At {
    tree: TREE_OF_TREES,
    key: (6, 84, 2_378_154_706),
};

/// `struct btrfs_ioctl_search_key`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SearchKey {
    tree: u64,
    min_object: u64,
    max_object: u64,
    min_offset: u64,
    max_offset: u64,
    min_transid: u64,
    max_transid: u64,
    min_kind: u32,
    max_kind: u32,
    items: u32,
    unused: u32,
    unused_more: [u64; 4],
}

/// Room for the largest item that fits into the largest node.
const LARGE: usize = 64 * 1024;
/// Room for an inode, a limit, a few names: most items that are asked for one by one. More would take longer to clear than to fill.
const SMALL: usize = 1024;

/// `struct btrfs_ioctl_search_args_v2`; the size in the ioctl's number is that of the part before the buffer.
#[repr(C)]
struct Search<const ROOM: usize> {
    key: SearchKey,
    size: u64,
    found: [u8; ROOM],
}

const _: () = assert!(size_of::<SearchKey>() == 104 && size_of::<Search<LARGE>>() == 112 + LARGE);

const TREE_SEARCH_V2: u32 = opcode::read_write::<[u8; 112]>(MAGIC, 17);

/// Where to look.
#[derive(Clone, Copy, Debug)]
struct Range {
    tree: u64,
    from: Key,
    to: Key,
    /// The transaction in which a node must have been written, or a later one.
    since: u64,
}

/// Calls `each` with every item of a range, until it says that it has enough. What is looked for is `few` items, or many.
fn search(
    fd: BorrowedFd<'_>,
    range: Range,
    few: bool,
    mut each: impl FnMut(Key, &[u8]) -> ControlFlow<()>,
) -> Result<(), Errno> {
    let mut rest = range;
    if few {
        match search_in::<SMALL>(fd, &mut rest, &mut each) {
            // The next item does not fit.
            Err(Errno::OVERFLOW) => {}
            done => return done,
        }
    }
    search_in::<LARGE>(fd, &mut rest, &mut each)
}

/// The same with a buffer of this size; `range` becomes what is still to be looked at.
///
/// # Errors
/// `EOVERFLOW` when an item does not fit into the buffer.
fn search_in<const ROOM: usize>(
    fd: BorrowedFd<'_>,
    range: &mut Range,
    each: &mut impl FnMut(Key, &[u8]) -> ControlFlow<()>,
) -> Result<(), Errno> {
    let mut args = Box::new(Search {
        key: SearchKey {
            tree: range.tree,
            min_object: 0,
            max_object: range.to.0,
            min_offset: 0,
            max_offset: range.to.2,
            min_transid: range.since,
            max_transid: u64::MAX,
            min_kind: 0,
            max_kind: range.to.1,
            items: 0,
            unused: 0,
            unused_more: [0; 4],
        },
        size: ROOM as u64,
        found: [0; ROOM],
    });
    loop {
        (args.key.min_object, args.key.min_kind, args.key.min_offset) = range.from;
        args.key.items = u32::MAX;
        args.size = ROOM as u64;
        // SAFETY: the kernel reads the key and writes at most `size` bytes behind it, which is the length of `found`.
        unsafe { ioctl(fd, Updater::<TREE_SEARCH_V2, Search<ROOM>>::new(&mut args)) }?;
        if args.key.items == 0 {
            return Ok(());
        }
        let mut rest = &args.found[..];
        let mut last = range.from;
        for _ in 0..args.key.items {
            let Some((key, data, tail)) = item(rest) else {
                return Err(Errno::IO);
            };
            if each(key, data).is_break() {
                return Ok(());
            }
            last = key;
            rest = tail;
        }
        match after(last) {
            Some(next) if next <= range.to => range.from = next,
            _ => return Ok(()),
        }
    }
}

/// The first item of a buffer (`struct btrfs_ioctl_search_header`, then its data), and what comes after it.
fn item(bytes: &[u8]) -> Option<(Key, &[u8], &[u8])> {
    let word = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let half = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let len = usize::try_from(half(28)?).ok()?;
    let data = bytes.get(32..32 + len)?;
    Some(((word(8)?, half(24)?, word(16)?), data, &bytes[32 + len..]))
}

/// The key right behind another; the kind is a byte on disk.
fn after((object, kind, offset): Key) -> Option<Key> {
    if let Some(offset) = offset.checked_add(1) {
        return Some((object, kind, offset));
    }
    if kind < u32::from(u8::MAX) {
        return Some((object, kind + 1, 0));
    }
    Some((object.checked_add(1)?, 0, 0))
}

/// A little-endian number of an item.
pub(super) fn number(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(data.get(at..at + 8)?.try_into().ok()?))
}

/// One item, if it is there.
pub(super) fn find_item(fd: BorrowedFd<'_>, at: At) -> Result<Option<Vec<u8>>, Errno> {
    let only = Range {
        tree: at.tree,
        from: at.key,
        to: at.key,
        since: 0,
    };
    let mut found = None;
    search(fd, only, true, |_, data| {
        found = Some(data.to_vec());
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// Calls `each` with the offset and data of every item of one object and kind.
pub(super) fn for_each_item(
    fd: BorrowedFd<'_>,
    tree: u64,
    (object, kind): (u64, u32),
    mut each: impl FnMut(u64, &[u8]),
) -> Result<(), Errno> {
    let all = Range {
        tree,
        from: (object, kind, 0),
        to: (object, kind, u64::MAX),
        since: 0,
    };
    search(fd, all, false, |(_, _, offset), data| {
        each(offset, data);
        ControlFlow::Continue(())
    })
}

/// Everything about the inodes of the subvolume of a descriptor, from the one with this number on.
fn inodes_from(number: u64, since: u64) -> Range {
    Range {
        tree: OWN_TREE,
        from: (number, 0, 0),
        to: (LAST_INODE, u32::from(u8::MAX), u64::MAX),
        since,
    }
}

/// Whether the subvolume of `fd` holds an inode with this number or a higher one. Numbers are given in order and not again (but by
/// kernels before 5.11 with `inode_cache`), so a tree that had few files holds none with a high one.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `ENOTTY` on another filesystem.
pub fn holds_inode_from(fd: BorrowedFd<'_>, number: u64) -> Result<bool, Errno> {
    let mut found = false;
    search(fd, inodes_from(number, 0), true, |_, _| {
        found = true;
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// A subvolume, another made as a snapshot of it or the other way round, and when that was.
#[derive(Clone, Copy, Debug)]
pub struct Parted<'f> {
    /// The one that is asked for.
    pub of: BorrowedFd<'f>,
    /// The one that it is compared with.
    pub other: BorrowedFd<'f>,
    /// The transaction in which the snapshot was made.
    pub transaction: u64,
    /// The time of day at which it was made, in nanoseconds since 1970.
    pub nanos: u128,
}

/// The inodes of a subvolume that were made or changed since it was parted from another, and every directory above one of their names.
/// What is not written out yet (see [`super::sync`]) does not count, nor does a new time of access alone.
///
/// Every change of an inode (contents, attributes, names in a directory) rewrites its inode item with the running transaction's
/// number, and with it the node that the item is in and all nodes above: the search passes over everything older.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `ENOTTY` on another filesystem.
pub fn touched_since(parted: &Parted<'_>) -> Result<HashSet<u64>, Errno> {
    let mut written = Vec::new();
    let range = inodes_from(ROOT_DIR, parted.transaction);
    search(parted.of, range, false, |(object, kind, _), data| {
        // The transaction of the last change is the second number of an inode item.
        if kind == INODE_ITEM && number(data, 8).is_none_or(|in_| in_ >= parted.transaction) {
            written.push((object, data.to_vec()));
        }
        ControlFlow::Continue(())
    })?;
    let mut found = HashSet::new();
    for (inode, item) in written {
        if !only_read(parted, inode, &item)? {
            found.insert(inode);
        }
    }
    let mut todo: Vec<u64> = found.iter().copied().collect();
    while let Some(inode) = todo.pop() {
        for parent in parents(parted.of, inode)? {
            if found.insert(parent) {
                todo.push(parent);
            }
        }
    }
    Ok(found)
}

/// How coarse the clock of times in inodes may be, and more.
const TICK_NANOS: u128 = 100_000_000;

/// Whether nothing about an inode is new but its time of access: it was last changed before the two were parted, and its item is the
/// same in the other. One that was changed right before may have been changed again without a new time.
fn only_read(parted: &Parted<'_>, inode: u64, item: &[u8]) -> Result<bool, Errno> {
    if changed_at(item).is_none_or(|at| at.saturating_add(TICK_NANOS) >= parted.nanos) {
        return Ok(false);
    }
    let at = At {
        tree: OWN_TREE,
        key: (inode, INODE_ITEM, 0),
    };
    let other = find_item(parted.other, at)?;
    Ok(other.is_some_and(|other| but_for_access(&other).eq(but_for_access(item))))
}

/// `ctime` of a `struct btrfs_inode_item`, in nanoseconds since 1970; `None` when it lies before.
fn changed_at(item: &[u8]) -> Option<u128> {
    let secs = u64::try_from(number(item, 124)?.cast_signed()).ok()?;
    let nanos = u32::from_le_bytes(item.get(132..136)?.try_into().ok()?);
    Some(u128::from(secs) * 1_000_000_000 + u128::from(nanos))
}

/// The parts of a `struct btrfs_inode_item` that do not change with `atime`: all but that and the transaction of the last change.
fn but_for_access(item: &[u8]) -> impl Iterator<Item = &[u8]> {
    [0..8, 16..112, 124..item.len()]
        .into_iter()
        .map(|part| item.get(part).unwrap_or_default())
}

/// The directories that hold a name of an inode.
fn parents(fd: BorrowedFd<'_>, inode: u64) -> Result<HashSet<u64>, Errno> {
    let mut parents = HashSet::new();
    let names = Range {
        tree: OWN_TREE,
        from: (inode, INODE_REF, 0),
        to: (inode, INODE_EXTREF, u64::MAX),
        since: 0,
    };
    search(fd, names, true, |(_, kind, offset), data| {
        if kind == INODE_REF {
            parents.insert(offset);
            return ControlFlow::Continue(());
        }
        // Names whose checksum is the same share an item: parent, index, length of the name, name.
        let mut rest = data;
        while let (Some(parent), Some(len)) = (number(rest, 0), rest.get(16..18)) {
            parents.insert(parent);
            let len = usize::from(u16::from_le_bytes([len[0], len[1]]));
            rest = rest.get(18 + len..).unwrap_or_default();
        }
        ControlFlow::Continue(())
    })?;
    Ok(parents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_follow_each_other() {
        assert_eq!(after((1, 2, 3)), Some((1, 2, 4)));
        assert_eq!(after((1, 2, u64::MAX)), Some((1, 3, 0)));
        assert_eq!(after((1, 255, u64::MAX)), Some((2, 0, 0)));
        assert_eq!(after((u64::MAX, 255, u64::MAX)), None);
    }

    #[test]
    fn items_are_taken_apart() {
        let mut bytes = Vec::new();
        for word in [7u64, 256, 9] {
            bytes.extend(word.to_ne_bytes());
        }
        for half in [84u32, 3] {
            bytes.extend(half.to_ne_bytes());
        }
        bytes.extend(b"abcrest");
        let (key, data, rest) = item(&bytes).unwrap();
        assert_eq!((key, data, rest), ((256, 84, 9), &b"abc"[..], &b"rest"[..]));
        assert!(item(&bytes[..34]).is_none() && item(b"").is_none());
    }

    /// A `struct btrfs_inode_item` of numbers that are all different.
    fn inode_item() -> Vec<u8> {
        let mut item: Vec<u8> = (0..160).collect();
        item[124..132].copy_from_slice(&7i64.to_le_bytes());
        item[132..136].copy_from_slice(&9u32.to_le_bytes());
        item
    }

    #[test]
    fn a_time_of_access_is_told_from_every_other_change() {
        let item = inode_item();
        assert_eq!(changed_at(&item), Some(7_000_000_009));
        for at in 0..item.len() {
            let mut other = item.clone();
            other[at] ^= 1;
            let same = but_for_access(&item).eq(but_for_access(&other));
            assert_eq!(same, matches!(at, 8..16 | 112..124), "byte {at}");
        }
        let mut before = item;
        before[124..132].copy_from_slice(&(-1i64).to_le_bytes());
        assert_eq!(changed_at(&before), None);
        assert_eq!(changed_at(&[0; 100]), None);
    }
}
