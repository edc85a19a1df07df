//! What a mounted filesystem can be told: to stop at once, to commit, to forget a device, to begin to write a file out.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Setter, Updater, ioctl, opcode};

/// `FS_IOC_SHUTDOWN`, also known as `XFS_IOC_GOINGDOWN`.
const SHUTDOWN: Opcode = opcode::read::<u32>(b'X', 125);
/// `BTRFS_IOC_START_SYNC` and `BTRFS_IOC_WAIT_SYNC` of linux/btrfs.h.
const START_SYNC: Opcode = opcode::read::<u64>(0x94, 24);
const WAIT_SYNC: Opcode = opcode::write::<u64>(0x94, 22);
/// `BTRFS_IOC_FORGET_DEV`, since Linux 5.5.
const FORGET_DEV: Opcode = opcode::write::<VolArgs>(0x94, 5);

/// `FITRIM` of linux/fs.h.
const TRIM: Opcode = opcode::read_write::<TrimRange>(b'X', 121);
/// `EXT4_IOC_RESIZE_FS`.
const RESIZE_EXT4: Opcode = opcode::write::<u64>(b'f', 16);
/// `XFS_IOC_FSGEOMETRY_V1` and `XFS_IOC_FSGROWFSDATA` of xfs_fs.h.
const XFS_GEOMETRY: Opcode = opcode::read::<XfsGeometry>(b'X', 100);
const XFS_GROW: Opcode = opcode::write::<XfsGrow>(b'X', 110);

/// `BTRFS_IOC_QUOTA_CTL`.
const QUOTA_CTL: Opcode = opcode::read_write::<QuotaControl>(0x94, 40);

/// What a filesystem does with its journal before it stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    /// It is written first (`FLAGS_LOGFLUSH`).
    Flushed = 1,
    /// What is not on the disk yet is lost (`FLAGS_NOLOGFLUSH`).
    Lost = 2,
}

/// Has the kernel begin to write out what a file has in memory, without waiting for it (`SYNC_FILE_RANGE_WRITE`). Of several files
/// that are to be flushed, the flush of the first then carries the others along, where there is one journal for all. Alone it gives no
/// guarantee at all, so that it fails does not matter.
pub fn begin_to_write_out(file: BorrowedFd<'_>) {
    // SAFETY: no memory is touched.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE);
    }
}

/// `FS_CASEFOLD_FL` of linux/fs.h.
const CASEFOLD: IFlags = IFlags::from_bits_retain(0x4000_0000);

/// Has an empty directory ignore the case of the names that come into it, or heed it.
///
/// # Errors
/// `EOPNOTSUPP` or `EINVAL` where the filesystem cannot, `ENOTEMPTY`, `EPERM`.
pub fn ignore_case(dir: &File, ignore: bool) -> io::Result<()> {
    let mut flags = ioctl_getflags(dir)?;
    flags.set(CASEFOLD, ignore);
    Ok(ioctl_setflags(dir, flags)?)
}

/// Whether a directory ignores the case of names. What tells no flags does not.
pub fn ignores_case(dir: BorrowedFd<'_>) -> bool {
    ioctl_getflags(dir).is_ok_and(|flags| flags.contains(CASEFOLD))
}

/// Stops the filesystem that holds `dir`, as a loss of power would: nothing reaches its device from now on, and every call on it
/// fails with `EIO`.
///
/// # Errors
/// `ENOTTY` when it cannot be stopped (btrfs before Linux 6.19, tmpfs), `EPERM`.
pub fn shut_down(dir: &File, journal: Journal) -> io::Result<()> {
    // SAFETY: the kernel reads a u32, whatever the direction in the opcode says.
    Ok(unsafe { ioctl(dir, Setter::<SHUTDOWN, u32>::new(journal as u32)) }?)
}

/// Commits what a btrfs has in memory of its trees, but not the data of files that it has not begun to write.
///
/// # Errors
/// `ENOTTY` on another filesystem, `EIO`.
pub fn commit_btrfs(dir: &File) -> io::Result<()> {
    // SAFETY: BTRFS_IOC_START_SYNC writes the number of the transaction, which BTRFS_IOC_WAIT_SYNC reads.
    let transaction = unsafe { ioctl(dir, Getter::<START_SYNC, u64>::new()) }?;
    // SAFETY: as above.
    Ok(unsafe { ioctl(dir, Setter::<WAIT_SYNC, u64>::new(transaction)) }?)
}

/// `struct fstrim_range` of linux/fs.h, in bytes.
#[repr(C)]
struct TrimRange {
    start: u64,
    len: u64,
    least: u64,
}

/// Has a filesystem tell its device which blocks it does not use.
///
/// # Errors
/// `EOPNOTSUPP` or `ENOTTY` where that serves nothing.
pub fn trim(dir: &File) -> io::Result<()> {
    let mut all = TrimRange {
        start: 0,
        len: u64::MAX,
        least: 0,
    };
    // SAFETY: FITRIM reads and writes a struct fstrim_range.
    Ok(unsafe { ioctl(dir, Updater::<TRIM, TrimRange>::new(&mut all)) }?)
}

/// Makes the mounted ext4 that holds `dir` so many of its blocks large, at most as many as its device has.
///
/// # Errors
/// `ENOTTY` on another filesystem, `ENOSPC` when the device is smaller, `EPERM`.
pub fn grow_ext4(dir: &File, blocks: u64) -> io::Result<()> {
    // SAFETY: EXT4_IOC_RESIZE_FS reads the number of blocks.
    Ok(unsafe { ioctl(dir, Setter::<RESIZE_EXT4, u64>::new(blocks)) }?)
}

/// `struct xfs_fsop_geom_v1` of xfs_fs.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct XfsGeometry {
    before: [u32; 7],
    /// Which part of the space inodes may take, in percent.
    inodes: u32,
    after: [u64; 10],
}

/// `struct xfs_growfs_data` of xfs_fs.h.
#[repr(C)]
struct XfsGrow {
    blocks: u64,
    inodes: u32,
}

/// Makes the mounted xfs that holds `dir` so many of its blocks large, at most as many as its device has.
///
/// # Errors
/// `ENOTTY` on another filesystem, `EINVAL` when the device is smaller, `EPERM`.
pub fn grow_xfs(dir: &File, blocks: u64) -> io::Result<()> {
    // SAFETY: XFS_IOC_FSGEOMETRY_V1 writes a struct xfs_fsop_geom_v1.
    let is = unsafe { ioctl(dir, Getter::<XFS_GEOMETRY, XfsGeometry>::new()) }?;
    let to = XfsGrow {
        blocks,
        inodes: is.inodes,
    };
    // SAFETY: XFS_IOC_FSGROWFSDATA reads a struct xfs_growfs_data.
    Ok(unsafe { ioctl(dir, Setter::<XFS_GROW, XfsGrow>::new(to)) }?)
}

/// How a btrfs counts what its subvolumes hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quotas {
    /// `BTRFS_QUOTA_CTL_ENABLE`: by qgroups, which know what is shared.
    Full = 1,
    /// `BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA`, since Linux 6.7: an extent counts for the subvolume that wrote it.
    Simple = 4,
}

/// `struct btrfs_ioctl_quota_ctl_args` of linux/btrfs.h.
#[repr(C)]
struct QuotaControl {
    command: u64,
    status: u64,
}

/// Turns the quotas of the btrfs that holds `dir` on.
///
/// # Errors
/// `EINVAL` when the kernel does not know that way of counting.
pub fn enable_btrfs_quotas(dir: &File, quotas: Quotas) -> io::Result<()> {
    let mut control = QuotaControl {
        command: quotas as u64,
        status: 0,
    };
    // SAFETY: BTRFS_IOC_QUOTA_CTL reads and writes a struct btrfs_ioctl_quota_ctl_args.
    Ok(unsafe { ioctl(dir, Updater::<QUOTA_CTL, QuotaControl>::new(&mut control)) }?)
}

/// `struct btrfs_ioctl_vol_args` of linux/btrfs.h.
#[repr(C)]
struct VolArgs {
    fd: i64,
    name: [u8; 4088],
}

/// Makes the kernel forget that a device, by its node, holds a btrfs that is not mounted; false while it is mounted.
///
/// # Errors
/// No btrfs in the kernel, or no permission. That nothing was known of the device is success.
pub fn forget_btrfs(node: &Path) -> io::Result<bool> {
    let mut arguments = VolArgs {
        fd: 0,
        name: [0; 4088],
    };
    let name = node.as_os_str().as_bytes();
    let room = arguments.name.get_mut(..name.len());
    room.ok_or(Errno::NAMETOOLONG)?.copy_from_slice(name);
    let control = File::open("/dev/btrfs-control")?;
    // SAFETY: BTRFS_IOC_FORGET_DEV reads a struct btrfs_ioctl_vol_args.
    match unsafe { ioctl(&control, Setter::<FORGET_DEV, VolArgs>::new(arguments)) } {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::BUSY) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
