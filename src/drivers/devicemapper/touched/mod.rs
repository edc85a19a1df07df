//! What two layers can differ in, by the pool's records and their filesystems', so that a diff needs not walk the rest.
//!
//! The two are thin devices of one pool, mounted. What is in memory of either is written to its place first, the journal, too, which
//! suspending the device does (`lock_fs` of drivers/md/dm.c freezes the filesystem). Then the pool's metadata tells in which blocks the devices
//! differ, the superblocks where inodes are, and those in blocks that differ are compared, byte by byte. This gives
//!
//! - the inodes that differ in anything but their time of access, and the directories whose inode lies in a block that differs, and
//!   whose content does, too, or is not known to be the same;
//! - and with a reading of all directories of the new layer, those above.
//!
//! **Nothing is missed.** Take an entry that has one path and one inode number in both layers, and is not among these; the comparison of
//! the two trees would find nothing about it, nor below it:
//!
//! - All that statx(2) shows is in the inode, which is the same but for the time of access: so it shows the same, ctime and birth
//!   included, and that is all that the comparison asks of one inode in two snapshots. A content that was changed (by a mapping, too: the
//!   first write to a page that is clean sets the times), attributes in a block of their own, a further name or one less, an owner: each
//!   sets the ctime. A number that was used again stands for an inode with other times and another generation.
//! - The names in a directory are changed together with its inode, in one transaction: ext4 and xfs write an inode whenever they
//!   change what the directory holds, and with it the block, whatever the clock says. So a directory whose inode lies in no block that differs
//!   has the same names. One whose block differs has them if its inode is the same, which says where its content is, and that lies in no block
//!   that differs either. Equal times would not tell: both layers can have been changed in one tick of the clock.
//! - Below a directory with the same names for the same numbers lies the same, unless one of them, at whatever depth, is touched; then
//!   the directory is above it in the new layer. Whatever was moved, lost or linked elsewhere has touched the directories that it was moved
//!   from and to.
//!
//! None of it rests on which layer was made from which, or when: two devices of one pool that have nothing to do with each other differ
//! in nearly everything. What is on a block that was written with the same bytes counts as different, and is compared.
//!
//! Whatever is not as it should be is an error, and the whole trees are compared: a kind of filesystem that is not known in all that
//! matters, one that is mounted read-only (what it shows of a journal that was not replayed is not what is on the device) or frozen by
//! somebody, something mounted inside of a layer, metadata that somebody else has reserved, a pool without room to write to.

mod bytes;
mod ext4;
mod inodes;
mod mappings;
mod reserved;
mod xfs;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use rustix::fs::{StatVfsMountFlags, fstat, fstatvfs, major, minor};

use self::inodes::{Inodes, Runs};
use self::mappings::Differences;
use self::reserved::Reserved;
pub(super) use self::reserved::release_left;
use super::devices::Set;
use super::records::Key;
use super::{DeviceMapper, ROOT, layer_id};
use crate::archive::add_directories_above;
use crate::graphdriver::{Error, Result};
use crate::sys;
use crate::sys::direct::Direct;
use crate::sys::dm;

/// How many files are worth it: writing out two filesystems and committing the pool's metadata.
pub(super) const WORTH: u64 = 10_000;
/// The part of the pool that must be free, in percent, if nothing else is wanted: xfs tries for ever to write what finds no room.
const LEAST_FREE: u64 = 1;

/// Reads so many bytes of a device from some byte on.
type Read<'r> = dyn Fn(u64, usize) -> io::Result<Vec<u8>> + 'r;

/// Two devices, and where they differ.
struct Compared {
    nodes: [PathBuf; 2],
    changed: Runs,
}

impl DeviceMapper {
    /// The inodes that may differ, and all directories above them; `None` when that is not known, or not worth being found.
    ///
    /// # Errors
    /// Anything that went wrong, which says nothing about the layers.
    pub(super) fn find_touched(
        &self,
        new: BorrowedFd<'_>,
        old: BorrowedFd<'_>,
    ) -> Result<Option<HashSet<u64>>> {
        for root in [new, old] {
            let failed = |e: rustix::io::Errno| Error::io("look at", sys::fs::fd_path(root), e);
            let st = fstatvfs(root).map_err(failed)?;
            let files = st.f_files.saturating_sub(st.f_ffree);
            if files < self.worth_searching || st.f_flag.contains(StatVfsMountFlags::RDONLY) {
                return Ok(None);
            }
        }
        let layers = [self.shown(new)?, self.shown(old)?];
        let [Some(new_key), Some(old_key)] = layers else {
            return Ok(None);
        };
        let compared = self.set()?.compare([(new_key, new), (old_key, old)])?;
        let Some(mut touched) = differing(&compared)? else {
            return Ok(None);
        };
        let told = add_directories_above(new, &mut touched)?;
        Ok(told.then_some(touched))
    }

    /// The layer whose root is open; `None` when it is none, or something is mounted inside.
    fn shown(&self, root: BorrowedFd<'_>) -> Result<Option<Key>> {
        let link = sys::fs::fd_path(root);
        let failed = |e| Error::io("look at", &link, e);
        let path = std::fs::read_link(&link).map_err(failed)?;
        let mounts = sys::mount::mounts_below(&path).map_err(failed)?;
        let below = self.home.path().join(super::MOUNTS);
        let rest = path.strip_prefix(&below).ok().and_then(|p| p.to_str());
        let id = rest.and_then(|rest| rest.strip_suffix(ROOT)?.strip_suffix('/'));
        let key = id.and_then(|id| layer_id(id).ok()).map(Key::Layer);
        Ok(key.filter(|_| mounts.is_empty()))
    }
}

impl Set {
    /// Writes two mounted layers out and finds where their devices differ.
    fn compare(&self, layers: [(Key, BorrowedFd<'_>); 2]) -> Result<Compared> {
        let usage = self.pool.usage(&self.control)?;
        let percent = self.options.min_free_percent.max(LEAST_FREE);
        usage.check(percent, &self.pool.name)?;
        if !usage.writable || self.pool.disk_is_full() {
            let why = format!("the pool {} cannot be written to", self.pool.name);
            return Err(Error::Other(why));
        }
        let mut found = Vec::new();
        for (key, root) in &layers {
            let device = self.device(key)?;
            let name = self.name(key, &device);
            let failed = |e| Error::io("look at", format!("/dev/mapper/{name}"), e);
            let info = self.control.info(&name).map_err(|e| failed(e.into()))?;
            let st = fstat(root).map_err(|e| failed(e.into()))?;
            let info = info.filter(|info| info.number == (major(st.st_dev), minor(st.st_dev)));
            // A layer that was removed and made anew has another device.
            let info = info.ok_or_else(|| Error::UnknownLayer(key.to_string()))?;
            let node = dm::node(&info, self.pool.nodes()).map_err(failed)?;
            self.write_out(key)?;
            found.push((device.device_id, node));
        }
        let [(new, new_node), (old, old_node)] = <[_; 2]>::try_from(found)
            .map_err(|_| Error::Other("two layers are two devices".to_owned()))?;
        Ok(Compared {
            nodes: [new_node, old_node],
            changed: self.differences([new, old])?,
        })
    }

    /// The bytes in which two devices differ.
    fn differences(&self, devices: [u32; 2]) -> Result<Runs> {
        let node = self.pool.metadata_node(&self.control)?;
        let failed = |e| Error::io("read", &node, e);
        let metadata = Direct::open(&node).map_err(failed)?;
        let reserved = Reserved::take(&self.pool, &self.control)?;
        let read = |at, len| metadata.read(at, len);
        let found = mappings::differences(&read, reserved.root, devices).map_err(failed)?;
        let Differences { block_size, runs } = found;
        let bytes = runs
            .into_iter()
            .map(|run| run.start * block_size..run.end * block_size);
        Ok(Runs(bytes.collect()))
    }
}

/// The inodes in which two filesystems may differ; `None` when it is not known where they are.
fn differing(Compared { nodes, changed }: &Compared) -> Result<Option<HashSet<u64>>> {
    let [new_node, old_node] = nodes;
    let open = |node| Direct::open(node).map_err(|e| Error::io("open", node, e));
    let (new, old) = (open(new_node)?, open(old_node)?);
    let (new, old) = (|at, len| new.read(at, len), |at, len| old.read(at, len));
    compare_inodes(changed, [&new, &old]).map_err(|e| Error::io("compare", new_node, e))
}

fn compare_inodes(changed: &Runs, [new, old]: [&Read<'_>; 2]) -> io::Result<Option<HashSet<u64>>> {
    let (Some(mut inodes), Some(others)) = (Inodes::of(new)?, Inodes::of(old)?) else {
        return Ok(None);
    };
    if !inodes.retain_common(&others) {
        return Ok(None);
    }
    inodes.differing(changed, [new, old]).map(Some)
}
