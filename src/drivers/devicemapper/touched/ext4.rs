//! Where an ext4 has its inodes, and what they say (Documentation/filesystems/ext4, fs/ext4/ext4.h).

use std::io;
use std::ops::Range;

use super::Read;
use super::bytes::{le16, le32};
use super::inodes::{Format, Inodes, Table};

const SUPERBLOCK: u64 = 1024;
const MAGIC: u16 = 0xef53;
/// Of `s_feature_incompat`: descriptors of groups are 64 bytes or more.
const WIDE: u32 = 0x80;
/// Those that change nothing about where inodes are: types in directories, a journal to be replayed, extents, multiple mount protection,
/// tables of several groups in one, attributes in inodes, seeds of checksums, large directories, data in inodes, encryption, names without
/// case. With others (`meta_bg`) descriptors are elsewhere.
const KNOWN: u32 = 0x2
    | 0x4
    | 0x40
    | WIDE
    | 0x100
    | 0x200
    | 0x400
    | 0x2000
    | 0x4000
    | 0x8000
    | 0x1_0000
    | 0x2_0000;
/// Groups at most: 32 TiB.
const MOST_GROUPS: u64 = 1 << 18;

/// `EXTENTS_FL` of an inode, the magic number of what is in it then, and how long an extent can be that was written.
const EXTENTS: u32 = 0x8_0000;
const EXTENTS_MAGIC: u16 = 0xf30a;
const LONGEST_WRITTEN: u16 = 1 << 15;

/// Where the inodes of an ext4 are; `None` for one that is made otherwise.
pub(super) fn inodes(read: &Read<'_>) -> io::Result<Option<Inodes>> {
    let superblock = read(SUPERBLOCK, 1024)?;
    let word = |at| le32(&superblock, at);
    let half = |at| le16(&superblock, at);
    let (shift, incompat) = (word(0x18), word(0x60));
    let per_group = [word(0x20), word(0x28)].map(u64::from);
    let [blocks_per_group, inodes_per_group] = per_group;
    let inode_size = if word(0x4c) == 0 { 128 } else { half(0x58) };
    let known = half(0x38) == MAGIC
        && incompat & !KNOWN == 0
        && shift <= 6
        && !per_group.contains(&0)
        && inode_size.is_power_of_two()
        && inode_size >= 128;
    if !known {
        return Ok(None);
    }
    let wide = incompat & WIDE != 0;
    let descriptor = if wide { half(0xfe).into() } else { 32 };
    let (block_size, first) = (1024 << shift, u64::from(word(0x14)));
    let high = if wide { word(0x150) } else { 0 };
    let blocks = u64::from(high) << 32 | u64::from(word(0x4));
    let groups = blocks.saturating_sub(first).div_ceil(blocks_per_group);
    if groups > MOST_GROUPS || descriptor < if wide { 64 } else { 32 } {
        return Ok(None);
    }
    let len = usize::try_from(groups).unwrap_or(usize::MAX) * descriptor;
    let descriptors = read((first + 1) * block_size, len)?;
    let tables = descriptors.chunks_exact(descriptor).zip(0..).map(|(d, n)| {
        let high = if wide { le32(d, 0x28) } else { 0 };
        let block = u64::from(high) << 32 | u64::from(le32(d, 0x8));
        Table {
            at: block.saturating_mul(block_size),
            first: n * inodes_per_group + 1,
            count: inodes_per_group,
        }
    });
    Ok(Some(Inodes {
        format: Format::Ext4 { block_size },
        size: inode_size.into(),
        tables: tables.collect(),
    }))
}

/// The parts of an inode that say when it was read, and the checksum of them all: `i_checksum_lo`, `i_checksum_hi`, `i_atime`,
/// `i_atime_extra`.
pub(super) fn of_access(inode: &[u8]) -> &'static [Range<usize>] {
    const SMALL: &[Range<usize>] = &[0x8..0xc, 0x7c..0x7e];
    const ALL: &[Range<usize>] = &[0x8..0xc, 0x7c..0x7e, 0x82..0x84, 0x8c..0x90];
    // How much of what is beyond 128 bytes are fields: else attributes are there.
    let has_extra = inode.len() > 128 && le16(inode, 0x80) >= 0x10;
    if has_extra { ALL } else { SMALL }
}

/// Where the content of a directory is, in bytes of the device; `None` when not all of that is in its inode.
pub(super) fn content(inode: &[u8], block_size: u64) -> Option<Vec<Range<u64>>> {
    let (magic, count, depth) = (le16(inode, 0x28), le16(inode, 0x2a), le16(inode, 0x2e));
    if le32(inode, 0x20) & EXTENTS == 0 || magic != EXTENTS_MAGIC || depth > 0 || count > 4 {
        return None;
    }
    let extents = (0..count.into()).map(|i: usize| {
        let at = 0x34 + i * 12;
        let len = match le16(inode, at + 4) {
            len if len > LONGEST_WRITTEN => len - LONGEST_WRITTEN,
            len => len,
        };
        let block = u64::from(le16(inode, at + 6)) << 32 | u64::from(le32(inode, at + 8));
        let start = block * block_size;
        start..start + u64::from(len) * block_size
    });
    Some(extents.collect())
}
