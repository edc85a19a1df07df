//! Which inodes differ between two filesystems of which one began as a copy of the other, when it is known in which bytes they do.

use std::collections::HashSet;
use std::io;
use std::ops::Range;

use super::bytes::{be16, le16};
use super::{Read, ext4, xfs};

/// So much is read of each at most: with more, comparing the two trees is not slower.
const MOST_BYTES: u64 = 64 << 20;
/// How much is read at once.
const CHUNK: u64 = 1 << 20;

/// The part of a mode that says what the inode is, and that of a directory.
const TYPE: u16 = 0xf000;
const DIRECTORY: u16 = 0x4000;

/// Inodes that lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// The byte of the device where they begin.
    pub at: u64,
    /// The number of the first one.
    pub first: u64,
    /// How many they are.
    pub count: u64,
}

/// What inodes say, by the filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Ext4 { block_size: u64 },
    Xfs(xfs::Geometry),
}

/// Where a filesystem has its inodes.
#[derive(Debug)]
pub(super) struct Inodes {
    pub format: Format,
    /// Bytes of one.
    pub size: usize,
    pub tables: Vec<Table>,
}

impl Inodes {
    /// Those of the filesystem on a device, if it is one of which that is known.
    pub fn of(read: &Read<'_>) -> io::Result<Option<Self>> {
        match xfs::inodes(read)? {
            None => ext4::inodes(read),
            found => Ok(found),
        }
    }

    /// Keeps those that are in the same place in another filesystem; false when that is another kind. What only one of the two has room
    /// for is nothing that both can have.
    pub fn retain_common(&mut self, other: &Self) -> bool {
        if (self.format, self.size) != (other.format, other.size) {
            return false;
        }
        if let Format::Ext4 { .. } = self.format {
            let common = self.tables.len().min(other.tables.len());
            self.tables.truncate(common);
            return self.tables == other.tables[..common];
        }
        // The number of an inode is its place.
        true
    }

    /// The numbers of the inodes that differ between two devices, which are the same but for the bytes in `changed`, in anything but the
    /// time of the last access; and of all directories whose content may differ.
    ///
    /// # Errors
    /// Something cannot be read, or it is too much.
    pub fn differing(
        &self,
        changed: &Runs,
        [new, old]: [&Read<'_>; 2],
    ) -> io::Result<HashSet<u64>> {
        let mut found = HashSet::new();
        let mut left = MOST_BYTES;
        let size = self.size as u64;
        for table in &self.tables {
            let end = table.at.saturating_add(table.count * size);
            for run in changed.within(table.at..end) {
                let (first, last) = (
                    (run.start - table.at) / size,
                    (run.end - 1 - table.at) / size,
                );
                let mut next = first;
                while next <= last {
                    let count = (last - next + 1).min(CHUNK / size);
                    let (at, len) = (table.at + next * size, count * size);
                    left = left
                        .checked_sub(len)
                        .ok_or_else(|| io::Error::other("too many inodes changed"))?;
                    let len = usize::try_from(len).map_err(io::Error::other)?;
                    let (new, old) = (new(at, len)?, old(at, len)?);
                    let pairs = new.chunks_exact(self.size).zip(old.chunks_exact(self.size));
                    for ((new, old), number) in pairs.zip(table.first + next..) {
                        if self.differ(changed, new, old) {
                            found.insert(number);
                        }
                    }
                    next += count;
                }
            }
        }
        Ok(found)
    }

    fn differ(&self, changed: &Runs, new: &[u8], old: &[u8]) -> bool {
        let (of_access, mode) = match self.format {
            Format::Ext4 { .. } => (ext4::of_access(new), le16(new, 0)),
            Format::Xfs(_) => (xfs::of_access(), be16(new, 2)),
        };
        let mut at = 0;
        for part in of_access {
            if new[at..part.start] != old[at..part.start] {
                return true;
            }
            at = part.end;
        }
        if new[at..] != old[at..] {
            return true;
        }
        if mode & TYPE != DIRECTORY {
            return false;
        }
        let content = match self.format {
            Format::Ext4 { block_size } => ext4::content(new, block_size),
            Format::Xfs(geometry) => xfs::content(new, geometry),
        };
        let is_same = |part: &Range<u64>| changed.within(part.clone()).next().is_none();
        !content.is_some_and(|parts| parts.iter().all(is_same))
    }
}

/// Parts of a device, in order, which do not touch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Runs(pub Vec<Range<u64>>);

impl Runs {
    /// What of them lies in a part of the device.
    pub fn within(&self, part: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = self.0.partition_point(|run| run.end <= part.start);
        let runs = self.0[first..].iter();
        let end = part.end;
        runs.take_while(move |run| run.start < end)
            .map(move |run| run.start.max(part.start)..run.end.min(end))
            .filter(|run| !run.is_empty())
    }
}
