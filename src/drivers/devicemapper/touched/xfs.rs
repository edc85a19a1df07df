//! Where an xfs has its inodes, and what they say (fs/xfs/libxfs/xfs_format.h).

use std::io;
use std::ops::Range;

use super::Read;
use super::bytes::{be16, be32, be64};
use super::inodes::{Format, Inodes, Table};

/// `XFS_SB_VERSION_5`.
const VERSION: u16 = 5;
/// Of `sb_features_incompat`, those that change nothing about where inodes are: types in directories, chunks of inodes with holes, a uuid
/// of the metadata, large times, a repair that is due, large counts of extents, exchanges of them, parent pointers.
const KNOWN: u32 = 0xff;
/// `XFS_AGI_MAGIC` and `XFS_IBT_CRC_MAGIC`.
const AGI_MAGIC: &[u8] = b"XAGI";
const TREE_MAGIC: &[u8] = b"IAB3";
/// `struct xfs_btree_block` with short pointers and a checksum.
const TREE_HEADER: usize = 56;
/// Inodes that a record of the tree speaks of.
const CHUNK: u64 = 64;
const NO_BLOCK: u32 = u32::MAX;
/// Allocation groups at most, and blocks of their trees of inodes: 32 TiB, and 100 million inodes.
const MOST_GROUPS: u32 = 1 << 16;
const MOST_BLOCKS: usize = 1 << 13;

/// `di_flags2`: counts of extents are 64 bits.
const WIDE_COUNT: u64 = 1 << 4;
/// `XFS_DINODE_FMT_LOCAL`, `XFS_DINODE_FMT_EXTENTS`.
const LOCAL: u8 = 1;
const EXTENTS: u8 = 2;
/// Where the content, or what says where it is, begins in an inode of version 3.
const FORK: usize = 176;

/// How an xfs is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    block_size: u32,
    /// Blocks of an allocation group, and bits of a number of one of them in numbers of blocks and inodes.
    group_blocks: u32,
    group_bits: u8,
    /// Bits of the number of an inode in its block.
    inode_bits: u8,
}

impl Geometry {
    /// Where a block is, by its allocation group and number in it.
    fn at(self, group: u32, block: u64) -> u64 {
        let before = u64::from(group) * u64::from(self.group_blocks);
        (before + block).saturating_mul(self.block_size.into())
    }
}

/// Where the inodes of an xfs are; `None` for one that is made otherwise.
pub(super) fn inodes(read: &Read<'_>) -> io::Result<Option<Inodes>> {
    let superblock = read(0, 512)?;
    let geometry = Geometry {
        block_size: be32(&superblock, 4),
        group_blocks: be32(&superblock, 84),
        group_bits: superblock[124],
        inode_bits: superblock[123],
    };
    let (groups, sector) = (be32(&superblock, 88), be16(&superblock, 102));
    let size = usize::from(be16(&superblock, 104));
    let known = superblock.starts_with(b"XFSB")
        && be16(&superblock, 100) & 0xf == VERSION
        && be32(&superblock, 216) & !KNOWN == 0
        && geometry.block_size.is_power_of_two()
        && (1 << 10..=1 << 16).contains(&geometry.block_size)
        && size >= 256
        && groups <= MOST_GROUPS
        && geometry.group_bits <= 32
        && geometry.inode_bits <= 8;
    if !known {
        return Ok(None);
    }
    let mut tree = Tree {
        read,
        geometry,
        left: MOST_BLOCKS,
        tables: Vec::new(),
    };
    for group in 0..groups {
        // struct xfs_agi is in the third sector.
        let header = read(geometry.at(group, 0) + 2 * u64::from(sector), 512)?;
        if !header.starts_with(AGI_MAGIC) || be32(&header, 8) != group {
            return Ok(None);
        }
        tree.collect(group, be32(&header, 20), be32(&header, 24))?;
    }
    Ok(Some(Inodes {
        format: Format::Xfs(geometry),
        size,
        tables: tree.tables,
    }))
}

/// The trees of the chunks of inodes.
struct Tree<'r> {
    read: &'r Read<'r>,
    geometry: Geometry,
    left: usize,
    tables: Vec<Table>,
}

impl Tree<'_> {
    fn block(&mut self, group: u32, block: u32, level: u32) -> io::Result<Vec<u8>> {
        let wrong = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let left = self.left.checked_sub(1);
        self.left = left.ok_or_else(|| wrong("too many inodes"))?;
        let size = self.geometry.block_size as usize;
        let bytes = (self.read)(self.geometry.at(group, block.into()), size)?;
        let entry = if level == 0 { 16 } else { 8 };
        let fits = TREE_HEADER + usize::from(be16(&bytes, 6)) * entry <= size;
        if !bytes.starts_with(TREE_MAGIC) || u32::from(be16(&bytes, 4)) != level || !fits {
            return Err(wrong("no tree of inodes"));
        }
        Ok(bytes)
    }

    /// Adds the chunks of an allocation group, whose tree has so many levels.
    fn collect(&mut self, group: u32, root: u32, levels: u32) -> io::Result<()> {
        let mut at = root;
        for level in (1..levels).rev() {
            let node = self.block(group, at, level)?;
            // Keys, of which there is room for as many as for pointers, then these.
            let most = (node.len() - TREE_HEADER) / 8;
            at = be32(&node, TREE_HEADER + most * 4);
        }
        while at != NO_BLOCK {
            let leaf = self.block(group, at, 0)?;
            let count = usize::from(be16(&leaf, 6));
            for record in leaf[TREE_HEADER..].chunks_exact(16).take(count) {
                let first = u64::from(be32(record, 0));
                let Geometry {
                    group_bits,
                    inode_bits,
                    ..
                } = self.geometry;
                self.tables.push(Table {
                    at: self.geometry.at(group, first >> inode_bits),
                    first: u64::from(group) << (group_bits + inode_bits) | first,
                    count: CHUNK,
                });
            }
            // The block to the right.
            at = be32(&leaf, 12);
        }
        Ok(())
    }
}

/// The parts of an inode that say when it was read, its checksum, and what is written of it with each change whatever that is:
/// `di_atime`, `di_crc`, `di_changecount`, `di_lsn`.
pub(super) fn of_access() -> &'static [Range<usize>] {
    &[32..40, 100..120]
}

/// Where the content of a directory is, in bytes of the device, besides its inode; `None` when not all of that is in the inode.
pub(super) fn content(inode: &[u8], geometry: Geometry) -> Option<Vec<Range<u64>>> {
    match (inode[4], inode[5]) {
        (3, LOCAL) => return Some(Vec::new()),
        (3, EXTENTS) => {}
        _ => return None,
    }
    let count = if be64(inode, 120) & WIDE_COUNT == 0 {
        be32(inode, 76).into()
    } else {
        be64(inode, 24)
    };
    let attributes = match usize::from(inode[82]) * 8 {
        0 => inode.len(),
        offset => FORK + offset,
    };
    let records = inode.get(FORK..attributes)?.chunks_exact(16);
    let count = usize::try_from(count).ok()?;
    if records.len() < count {
        return None;
    }
    let extents = records.take(count).map(|record| {
        // One bit that it was not written, 54 of the place in the file, 52 of the block, 21 of how many.
        let bits = u128::from(be64(record, 0)) << 64 | u128::from(be64(record, 8));
        let (block, len) = (bits >> 21 & ((1 << 52) - 1), bits & ((1 << 21) - 1));
        let group = u32::try_from(block >> geometry.group_bits).ok()?;
        let number = u64::try_from(block & ((1 << geometry.group_bits) - 1)).ok()?;
        let start = geometry.at(group, number);
        let len = u64::try_from(len).ok()? * u64::from(geometry.block_size);
        Some(start..start.checked_add(len)?)
    });
    extents.collect()
}
