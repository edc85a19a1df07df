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
const ROOM: usize = 64 * 1024;

/// `struct btrfs_ioctl_search_args_v2`; the size in the ioctl's number is that of the part before the buffer.
#[repr(C)]
struct Search {
    key: SearchKey,
    size: u64,
    found: [u8; ROOM],
}

const _: () = assert!(size_of::<SearchKey>() == 104 && size_of::<Search>() == 112 + ROOM);

const TREE_SEARCH_V2: u32 = opcode::read_write::<[u8; 112]>(MAGIC, 17);

/// Calls `each` with every item between two keys whose node was written in `since` or later.
fn search(
    fd: BorrowedFd<'_>,
    tree: u64,
    range: (Key, Key),
    since: u64,
    mut each: impl FnMut(Key, &[u8]),
) -> Result<(), Errno> {
    search_until(fd, tree, range, since, |key, data| {
        each(key, data);
        ControlFlow::Continue(())
    })
}

/// [`search`] that ends when `each` says so.
fn search_until(
    fd: BorrowedFd<'_>,
    tree: u64,
    (from, to): (Key, Key),
    since: u64,
    mut each: impl FnMut(Key, &[u8]) -> ControlFlow<()>,
) -> Result<(), Errno> {
    let mut from = from;
    let mut args = Box::new(Search {
        key: SearchKey {
            tree,
            min_object: 0,
            max_object: to.0,
            min_offset: 0,
            max_offset: to.2,
            min_transid: since,
            max_transid: u64::MAX,
            min_kind: 0,
            max_kind: to.1,
            items: 0,
            unused: 0,
            unused_more: [0; 4],
        },
        size: ROOM as u64,
        found: [0; ROOM],
    });
    loop {
        (args.key.min_object, args.key.min_kind, args.key.min_offset) = from;
        args.key.items = u32::MAX;
        args.size = ROOM as u64;
        // SAFETY: the kernel reads the key and writes at most `size` bytes behind it, which is the length of `found`.
        unsafe { ioctl(fd, Updater::<TREE_SEARCH_V2, Search>::new(&mut args)) }?;
        if args.key.items == 0 {
            return Ok(());
        }
        let mut rest = &args.found[..];
        for _ in 0..args.key.items {
            let Some((key, data, tail)) = item(rest) else {
                return Err(Errno::IO);
            };
            if each(key, data).is_break() {
                return Ok(());
            }
            from = key;
            rest = tail;
        }
        match after(from) {
            Some(next) if next <= to => from = next,
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
    let mut found = None;
    search(fd, at.tree, (at.key, at.key), 0, |_, data| {
        found = Some(data.to_vec());
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
    let all = ((object, kind, 0), (object, kind, u64::MAX));
    search(fd, tree, all, 0, |(_, _, offset), data| each(offset, data))
}

/// Whether the subvolume of `fd` holds an inode with this number or a higher one. Numbers are given in order and not again (but by
/// kernels before 5.11 with `inode_cache`), so a tree that had few files holds none with a high one.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `ENOTTY` on another filesystem.
pub fn holds_inode_from(fd: BorrowedFd<'_>, number: u64) -> Result<bool, Errno> {
    let mut found = false;
    let range = ((number, 0, 0), (LAST_INODE, u32::from(u8::MAX), u64::MAX));
    search_until(fd, OWN_TREE, range, 0, |_, _| {
        found = true;
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// The inodes of the subvolume of `fd` that were made or changed in any way in the transaction `since` or later, and every directory
/// above one of their names. What is not written out yet (see [`super::sync`]) does not count.
///
/// Every change of an inode (contents, attributes, names in a directory) rewrites its inode item with the running transaction's
/// number, and with it the node that the item is in and all nodes above: the search passes over everything older.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `ENOTTY` on another filesystem.
pub fn touched_since(fd: BorrowedFd<'_>, since: u64) -> Result<HashSet<u64>, Errno> {
    let mut found = HashSet::new();
    let everything = ((ROOT_DIR, 0, 0), (LAST_INODE, u32::from(u8::MAX), u64::MAX));
    search(
        fd,
        OWN_TREE,
        everything,
        since,
        |(object, kind, _), data| {
            // The transaction of the last change is the second number of an inode item.
            if kind == INODE_ITEM && number(data, 8).is_none_or(|changed| changed >= since) {
                found.insert(object);
            }
        },
    )?;
    let mut todo: Vec<u64> = found.iter().copied().collect();
    while let Some(inode) = todo.pop() {
        for parent in parents(fd, inode)? {
            if found.insert(parent) {
                todo.push(parent);
            }
        }
    }
    Ok(found)
}

/// The directories that hold a name of an inode.
fn parents(fd: BorrowedFd<'_>, inode: u64) -> Result<HashSet<u64>, Errno> {
    let mut parents = HashSet::new();
    let names = ((inode, INODE_REF, 0), (inode, INODE_EXTREF, u64::MAX));
    search(fd, OWN_TREE, names, 0, |(_, kind, offset), data| {
        if kind == INODE_REF {
            parents.insert(offset);
            return;
        }
        // Names whose checksum is the same share an item: parent, index, length of the name, name.
        let mut rest = data;
        while let (Some(parent), Some(len)) = (number(rest, 0), rest.get(16..18)) {
            parents.insert(parent);
            let len = usize::from(u16::from_le_bytes([len[0], len[1]]));
            rest = rest.get(18 + len..).unwrap_or_default();
        }
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
}
