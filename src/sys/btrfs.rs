//! btrfs: subvolumes, snapshots, quota groups and the search in its trees, by ioctl(2); see btrfs(5) and `linux/btrfs.h`.
#![allow(unsafe_code)]

mod quota;
mod search;
mod subvolume;

pub use quota::{
    QuotaMode, enable_quota, limit_referenced, limits, quota_mode, remove_qgroup, usage,
    wait_for_rescan,
};
pub use search::{Parted, ROOT_DIR, holds_inode_from, touched_since};
pub use subvolume::{
    Info, Nested, create_subvolume, destroy, info, is_default, is_read_only, is_subvolume, nested,
    set_default, set_read_only, snapshot, sync,
};

/// The number that all of btrfs' ioctls carry.
const MAGIC: u8 = 0x94;
