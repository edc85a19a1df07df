//! Quotas: whether the filesystem keeps them, and limits of single subvolumes. They are a matter of the whole filesystem.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::ioctl::{NoArg, Setter, Updater, ioctl, opcode};

use super::MAGIC;
use super::search::{At, TREE_OF_TREES, find_item, for_each_item, number};

/// `struct btrfs_ioctl_quota_ctl_args`.
#[repr(C)]
struct Control {
    command: u64,
    status: u64,
}

/// `struct btrfs_ioctl_qgroup_create_args`.
#[repr(C)]
struct CreateGroup {
    create: u64,
    id: u64,
}

/// `struct btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
struct Limit {
    id: u64,
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved: [u64; 2],
}

const _: () = assert!(size_of::<Limit>() == 48);

const QUOTA_CTL: u32 = opcode::read_write::<Control>(MAGIC, 40);
const QGROUP_CREATE: u32 = opcode::write::<CreateGroup>(MAGIC, 42);
const QGROUP_LIMIT: u32 = opcode::read::<Limit>(MAGIC, 43);
const QUOTA_RESCAN_WAIT: u32 = opcode::none(MAGIC, 46);

const ENABLE: u64 = 1;
const MAX_REFERENCED: u64 = 1;
/// As a limit: none from now on.
const CLEAR: u64 = u64::MAX;

const QUOTA_TREE: u64 = 8;
const STATUS: (u64, u32, u64) = (0, 240, 0);
const INFO: u32 = 242;
const LIMIT: u32 = 244;
const ROOT_BACKREF: u32 = 144;
const ON: u64 = 1;
const SIMPLE: u64 = 1 << 3;

/// How a filesystem counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaMode {
    /// Quota groups: what a subvolume refers to counts, also when it shares it with others.
    Full,
    /// Simple quotas (kernel 6.7): data counts for the subvolume that wrote it first.
    Simple,
}

/// Whether and how the filesystem keeps quotas.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `ENOTTY` on another filesystem.
pub fn quota_mode(fd: BorrowedFd<'_>) -> Result<Option<QuotaMode>, Errno> {
    let status = At {
        tree: QUOTA_TREE,
        key: STATUS,
    };
    let item = match find_item(fd, status) {
        // There is no such tree.
        Err(Errno::NOENT) => return Ok(None),
        other => other?,
    };
    // Version, generation, flags.
    let flags = item.as_deref().and_then(|item| number(item, 16));
    Ok(flags.filter(|flags| flags & ON != 0).map(|flags| {
        if flags & SIMPLE != 0 {
            QuotaMode::Simple
        } else {
            QuotaMode::Full
        }
    }))
}

/// Makes the filesystem keep quota groups. That it does already is success.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `EROFS`, `ENOTTY`.
pub fn enable_quota(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut args = Control {
        command: ENABLE,
        status: 0,
    };
    // SAFETY: the ioctl reads and fills the structure that its number says.
    match unsafe { ioctl(fd, Updater::<QUOTA_CTL, Control>::new(&mut args)) } {
        // Somebody else did it meanwhile.
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// Waits until the counting that follows enabling has come to its end; returns at once when there is none.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `EINTR`.
pub fn wait_for_rescan(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the ioctl takes no argument.
    unsafe { ioctl(fd, NoArg::<QUOTA_RESCAN_WAIT>::new()) }
}

/// Limits the bytes that a subvolume may refer to, or takes the limit away. `id` is the subvolume's; a group that is missing is made.
///
/// # Errors
/// `ENOTCONN` when the filesystem keeps no quotas, `EPERM` without CAP_SYS_ADMIN.
pub fn limit_referenced(fd: BorrowedFd<'_>, id: u64, bytes: Option<u64>) -> Result<(), Errno> {
    let set = || {
        let args = Limit {
            id,
            flags: MAX_REFERENCED,
            max_referenced: bytes.unwrap_or(CLEAR),
            max_exclusive: 0,
            reserved: [0; 2],
        };
        // SAFETY: the ioctl reads the structure that its number says; it writes nothing, for all that the number says.
        unsafe { ioctl(fd, Setter::<QGROUP_LIMIT, Limit>::new(args)) }
    };
    match set() {
        // The subvolume is older than the quotas, or somebody removed its group.
        Err(Errno::NOENT) if bytes.is_some() => {
            change_group(fd, id, true)?;
            set()
        }
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Removes the quota group of a subvolume. Newer kernels (6.10) do so by themselves some time after the subvolume is deleted.
///
/// # Errors
/// `EBUSY` while the subvolume is there or not yet given back whole; `ENOENT`; `ENOTCONN` when no quotas are kept.
pub fn remove_qgroup(fd: BorrowedFd<'_>, id: u64) -> Result<(), Errno> {
    change_group(fd, id, false)
}

fn change_group(fd: BorrowedFd<'_>, id: u64, create: bool) -> Result<(), Errno> {
    let args = CreateGroup {
        create: u64::from(create),
        id,
    };
    // SAFETY: the ioctl reads the structure that its number says, and nothing else.
    match unsafe { ioctl(fd, Setter::<QGROUP_CREATE, CreateGroup>::new(args)) } {
        Err(Errno::EXIST) if create => Ok(()),
        other => other,
    }
}

/// The bytes that a subvolume refers to, as of the last transaction; `None` when it has no group.
///
/// # Errors
/// `ENOENT` when no quotas are kept, `EPERM` without CAP_SYS_ADMIN.
pub fn usage(fd: BorrowedFd<'_>, id: u64) -> Result<Option<u64>, Errno> {
    let info = At {
        tree: QUOTA_TREE,
        key: (0, INFO, id),
    };
    // Generation, referenced.
    Ok(find_item(fd, info)?.and_then(|item| number(&item, 8)))
}

/// Every limit on the bytes that a subvolume may refer to, by the subvolume's id. Those of subvolumes that are deleted, which the
/// kernel forgets when it comes to it, are left out.
///
/// # Errors
/// `ENOENT` when no quotas are kept, `EPERM` without CAP_SYS_ADMIN.
pub fn limits(fd: BorrowedFd<'_>) -> Result<Vec<(u64, u64)>, Errno> {
    let mut found = Vec::new();
    for_each_item(fd, QUOTA_TREE, (0, LIMIT), |id, item| {
        // Flags, referenced.
        if let (Some(flags), Some(bytes)) = (number(item, 0), number(item, 8))
            && flags & MAX_REFERENCED != 0
        {
            found.push((id, bytes));
        }
    })?;
    let mut linked = Vec::with_capacity(found.len());
    for (id, bytes) in found {
        let mut names = 0;
        for_each_item(fd, TREE_OF_TREES, (id, ROOT_BACKREF), |_, _| names += 1)?;
        if names > 0 {
            linked.push((id, bytes));
        }
    }
    Ok(linked)
}
