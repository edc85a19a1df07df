//! Where the blocks of thin devices are, as a pool's metadata has it (drivers/md/dm-thin-metadata.c, drivers/md/persistent-data).

use std::cell::Cell;
use std::io;
use std::ops::Range;

use crc::{CRC_32_ISCSI, Crc};

use super::Read;
use super::bytes::{le32, le64};
use crate::drivers::devicemapper::pool::RECORD_BLOCK;

/// `THIN_SUPERBLOCK_MAGIC`.
const MAGIC: u64 = 27_022_010;
/// What checksums are mixed with, so that no block is taken for one of another kind (`SUPERBLOCK_CSUM_XOR`, `BTREE_CSUM_XOR`).
const SUPERBLOCK_SALT: u32 = 160_774;
const NODE_SALT: u32 = 121_107;
/// `struct node_header`.
const HEADER: usize = 32;
/// Flags of a node: its values are blocks of further nodes; they are what is looked for.
const INTERNAL: u32 = 1;
const LEAF: u32 = 2;
/// So many nodes at most are read (64 MiB): whatever is to be found with more takes longer than to walk two trees.
const MOST_NODES: usize = 16_384;

const BLOCK: usize = RECORD_BLOCK as usize;
static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// The blocks in which two thin devices differ.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Differences {
    /// How many bytes a block of the devices has.
    pub block_size: u64,
    /// Numbers of blocks, in order, in runs that do not touch.
    pub runs: Vec<Range<u64>>,
}

/// The blocks that are not the same for two devices: in one of them only, or in two places of the pool. Where both are mapped to one place
/// they are the same: a place that two devices have is never written to (`break_sharing` of drivers/md/dm-thin.c).
///
/// Parts of the two trees that are one and the same are not read. `read` reads the metadata, `root` is the block of the superblock.
///
/// # Errors
/// What is read is not a pool's metadata, or too much of it.
pub(super) fn differences(
    read: &Read<'_>,
    root: u64,
    devices: [u32; 2],
) -> io::Result<Differences> {
    let superblock = block(read, root, SUPERBLOCK_SALT)?;
    if le64(&superblock, 32) != MAGIC {
        return Err(damaged("no superblock", root));
    }
    let nodes = Nodes {
        read,
        left: Cell::new(MOST_NODES),
    };
    let mapping_root = le64(&superblock, 320);
    let [mut new, mut old] = [Side::default(), Side::default()];
    for (side, device) in [&mut new, &mut old].into_iter().zip(devices) {
        let block = nodes.find(mapping_root, device.into())?;
        side.todo.push(Item::Tree { first: 0, block });
    }
    Ok(Differences {
        block_size: u64::from(le32(&superblock, 336)) * crate::sys::dm::SECTOR,
        runs: compare(&nodes, new, old)?,
    })
}

fn damaged(what: &str, block: u64) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} at {block}"))
}

/// Reads a block and checks it: `dm_bm_checksum` is CRC-32C without the final inversion.
fn block(read: &Read<'_>, at: u64, salt: u32) -> io::Result<Vec<u8>> {
    let start = at.checked_mul(RECORD_BLOCK);
    let bytes = read(start.ok_or_else(|| damaged("no block", at))?, BLOCK)?;
    if le32(&bytes, 0) != !CRC.checksum(&bytes[4..]) ^ salt || le64(&bytes, 8) != at {
        return Err(damaged("another block", at));
    }
    Ok(bytes)
}

/// What a tree holds.
#[derive(Clone, Copy, Debug)]
enum Item {
    /// A part of the tree, in which no key is less than `first`.
    Tree { first: u64, block: u64 },
    /// A block of the device, and its place in the pool.
    Mapped { key: u64, place: u64 },
}

impl Item {
    fn first(self) -> u64 {
        match self {
            Self::Tree { first, .. } => first,
            Self::Mapped { key, .. } => key,
        }
    }
}

struct Nodes<'r> {
    read: &'r Read<'r>,
    left: Cell<usize>,
}

struct Node {
    internal: bool,
    /// Keys and values, in the order of the keys.
    entries: Vec<(u64, u64)>,
}

impl Nodes<'_> {
    fn read(&self, at: u64) -> io::Result<Node> {
        let left = self.left.get().checked_sub(1);
        self.left
            .set(left.ok_or_else(|| io::Error::other("the two devices differ in too much"))?);
        let bytes = block(self.read, at, NODE_SALT)?;
        let [flags, count, most, value_size] = [4, 16, 20, 24].map(|at| le32(&bytes, at));
        let fits = HEADER + most as usize * 16 <= BLOCK && count <= most && value_size == 8;
        if !fits || ![INTERNAL, LEAF].contains(&flags) {
            return Err(damaged("no node", at));
        }
        let values = HEADER + most as usize * 8;
        let entry = |i: usize| (le64(&bytes, HEADER + i * 8), le64(&bytes, values + i * 8));
        Ok(Node {
            internal: flags == INTERNAL,
            entries: (0..count as usize).map(entry).collect(),
        })
    }

    /// The value of a key.
    fn find(&self, root: u64, key: u64) -> io::Result<u64> {
        let mut at = root;
        loop {
            let node = self.read(at)?;
            let before = node.entries.partition_point(|(k, _)| *k <= key);
            let found = before.checked_sub(1).map(|last| node.entries[last]);
            match found {
                Some((_, value)) if node.internal => at = value,
                Some((k, value)) if k == key => return Ok(value),
                _ => return Err(damaged("no device", key)),
            }
        }
    }
}

/// How far one of the two trees was gone through.
#[derive(Default)]
struct Side {
    /// What is still to come, the next one last.
    todo: Vec<Item>,
}

impl Side {
    /// Puts what is in a part of the tree in its place.
    fn expand(&mut self, nodes: &Nodes<'_>, block: u64) -> io::Result<()> {
        self.todo.pop();
        let node = nodes.read(block)?;
        let items = node.entries.iter().rev().map(|&(key, value)| {
            if node.internal {
                Item::Tree {
                    first: key,
                    block: value,
                }
            } else {
                // The low 24 bits are the pool's time at which it was mapped.
                let place = value >> 24;
                Item::Mapped { key, place }
            }
        });
        self.todo.extend(items);
        Ok(())
    }
}

fn compare(nodes: &Nodes<'_>, mut new: Side, mut old: Side) -> io::Result<Vec<Range<u64>>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    let mut differs = |key: u64| match runs.last_mut() {
        Some(last) if last.end == key => last.end += 1,
        _ => runs.push(key..key + 1),
    };
    // Beyond every key.
    let first = |item: Option<&Item>| item.map_or(u128::MAX, |item| item.first().into());
    loop {
        let (a, b) = (new.todo.last().copied(), old.todo.last().copied());
        let order = first(a.as_ref()).cmp(&first(b.as_ref()));
        match (a, b) {
            (None, None) => return Ok(runs),
            (Some(Item::Tree { block: a, .. }), Some(Item::Tree { block: b, .. })) if a == b => {
                new.todo.pop();
                old.todo.pop();
            }
            (Some(Item::Tree { block, .. }), _) if order.is_le() => new.expand(nodes, block)?,
            (_, Some(Item::Tree { block, .. })) if order.is_ge() => old.expand(nodes, block)?,
            (Some(Item::Mapped { key, .. }), _) if order.is_lt() => {
                differs(key);
                new.todo.pop();
            }
            (_, Some(Item::Mapped { key, .. })) if order.is_gt() => {
                differs(key);
                old.todo.pop();
            }
            (Some(Item::Mapped { key, place: a }), Some(Item::Mapped { place: b, .. })) => {
                if a != b {
                    differs(key);
                }
                new.todo.pop();
                old.todo.pop();
            }
            // The first of two is always one that was looked at above.
            _ => return Err(damaged("no order", 0)),
        }
    }
}
#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Metadata that is made up.
    #[derive(Default)]
    struct Metadata(Vec<u8>);

    impl Metadata {
        /// Puts a block at the end.
        fn put(&mut self, salt: u32, fill: impl FnOnce(&mut [u8])) -> u64 {
            let at = (self.0.len() / BLOCK) as u64;
            let mut block = vec![0; BLOCK];
            fill(&mut block);
            block[8..16].copy_from_slice(&at.to_le_bytes());
            let sum = !CRC.checksum(&block[4..]) ^ salt;
            block[..4].copy_from_slice(&sum.to_le_bytes());
            self.0.extend(block);
            at
        }

        fn node(&mut self, flags: u32, entries: &[(u64, u64)]) -> u64 {
            self.put(NODE_SALT, |block| {
                let count = u32::try_from(entries.len()).unwrap();
                for (at, word) in [(4, flags), (16, count), (20, 126), (24, 8)] {
                    block[at..at + 4].copy_from_slice(&word.to_le_bytes());
                }
                for (i, (key, value)) in entries.iter().enumerate() {
                    let (key_at, value_at) = (HEADER + i * 8, HEADER + 126 * 8 + i * 8);
                    block[key_at..key_at + 8].copy_from_slice(&key.to_le_bytes());
                    block[value_at..value_at + 8].copy_from_slice(&value.to_le_bytes());
                }
            })
        }

        /// A leaf of blocks in these places, mapped at some time.
        fn leaf(&mut self, places: &[(u64, u64)], time: u64) -> u64 {
            let values = places.iter().map(|(key, place)| (*key, place << 24 | time));
            let values: Vec<(u64, u64)> = values.collect();
            self.node(LEAF, &values)
        }

        /// The superblock over the trees of devices.
        fn superblock(&mut self, devices: &[(u64, u64)]) -> u64 {
            let mapping_root = self.node(LEAF, devices);
            self.put(SUPERBLOCK_SALT, |block| {
                block[32..40].copy_from_slice(&MAGIC.to_le_bytes());
                block[320..328].copy_from_slice(&mapping_root.to_le_bytes());
                block[336..340].copy_from_slice(&128u32.to_le_bytes());
            })
        }

        fn compare(&self, root: u64, devices: [u32; 2]) -> io::Result<Vec<Range<u64>>> {
            let read = |at: u64, len: usize| {
                let at = usize::try_from(at).unwrap();
                let part = self.0.get(at..at + len);
                part.map(<[u8]>::to_vec)
                    .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            };
            let found = differences(&read, root, devices)?;
            assert_eq!(found.block_size, 64 << 10);
            Ok(found.runs)
        }
    }

    #[test]
    fn trees_that_share_nodes_are_compared() {
        let mut metadata = Metadata::default();
        let shared = metadata.leaf(&[(10, 110), (11, 111)], 0);
        let old = metadata.leaf(&[(0, 100), (1, 101), (2, 102), (5, 105)], 0);
        let new = metadata.leaf(&[(0, 100), (1, 201), (2, 202), (7, 207)], 3);
        let last = metadata.leaf(&[(20, 120)], 0);
        let old = metadata.node(INTERNAL, &[(0, old), (10, shared), (20, last)]);
        let new = metadata.node(INTERNAL, &[(0, new), (9, shared)]);
        let empty = metadata.leaf(&[], 0);
        let root = metadata.superblock(&[(1, old), (2, new), (9, empty)]);
        let expected: [Range<u64>; 4] = [1..3, 5..6, 7..8, 20..21];
        assert_eq!(metadata.compare(root, [2, 1]).unwrap(), expected);
        assert_eq!(metadata.compare(root, [1, 2]).unwrap(), expected);
        assert_eq!(metadata.compare(root, [2, 2]).unwrap(), []);
        let all: [Range<u64>; 4] = [0..3, 7..8, 10..12, 10..10];
        assert_eq!(metadata.compare(root, [9, 2]).unwrap(), all[..3]);
        assert!(metadata.compare(root, [1, 3]).is_err(), "no such device");

        // What is not shared is read, and what is not whole is told.
        for (at, right) in [(shared, true), (last, false)] {
            let mut damaged = Metadata(metadata.0.clone());
            damaged.0[usize::try_from(at).unwrap() * BLOCK + 100] ^= 1;
            assert_eq!(damaged.compare(root, [1, 2]).is_ok(), right);
        }
        assert!(metadata.compare(root - 1, [1, 2]).is_err(), "a node");
    }

    /// Trees of any shape, built of leaves of which some are shared.
    #[test]
    fn any_two_trees_are_compared() {
        let places = || prop::collection::btree_map(0..40u64, 0..3u64, 0..30);
        proptest!(ProptestConfig { failure_persistence: None, ..Default::default() },
            |(old in places(), change in places(), widths in prop::array::uniform4(1..9usize))| {
            let mut new = old.clone();
            new.retain(|key, _| key % 7 != 3);
            new.extend(change);
            let mut metadata = Metadata::default();
            let mut nodes = std::collections::BTreeMap::new();
            let mut roots = Vec::new();
            for (map, widths) in [(&old, [widths[0], widths[1]]), (&new, [widths[2], widths[3]])] {
                let entries: Vec<(u64, u64)> = map.iter().map(|(k, p)| (*k, p << 24)).collect();
                let mut level: Vec<(u64, u64)> = entries
                    .chunks(widths[0])
                    .map(|part| {
                        let at = nodes.entry(part.to_vec());
                        (part[0].0, *at.or_insert_with(|| metadata.node(LEAF, part)))
                    })
                    .collect();
                while level.len() > 1 {
                    let above = level.chunks(widths[1] + 1);
                    level = above
                        .map(|part| {
                            let at = nodes.entry(part.to_vec());
                            (part[0].0, *at.or_insert_with(|| metadata.node(INTERNAL, part)))
                        })
                        .collect();
                }
                roots.push(level.first().map_or_else(|| metadata.node(LEAF, &[]), |(_, at)| *at));
            }
            let root = metadata.superblock(&[(1, roots[0]), (2, roots[1])]);
            let found = metadata.compare(root, [2, 1]).unwrap();
            let keys: Vec<u64> = found.into_iter().flatten().collect();
            let expected: Vec<u64> = (0..40).filter(|key| old.get(key) != new.get(key)).collect();
            prop_assert_eq!(keys, expected);
        });
    }
}
