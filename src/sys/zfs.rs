//! The kernel's zfs, asked without a program: whether a dataset is there, and to make, clone and destroy one.
//!
//! The requests are those of libzfs_core, which stay what they are from release to release.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl};

use super::nvlist::NvList;

/// Where the kernel takes requests. Opening it loads the module where that can be found (`char-major-10-249`).
const DEVICE: &str = "/dev/zfs";

/// Requests by their numbers in sys/fs/zfs.h, which have been the same since the first release for Linux.
const OBJSET_STATS: Opcode = 0x5a12;
const CREATE: Opcode = 0x5a17;
const DESTROY: Opcode = 0x5a18;
const SNAPSHOT: Opcode = 0x5a23;
const DESTROY_SNAPS: Opcode = 0x5a3b;
const CLONE: Opcode = 0x5a42;

/// `LZC_DATSET_TYPE_ZFS`: a filesystem.
const FILESYSTEM: i32 = 2;

/// The longest name of a dataset or snapshot in bytes (`ZFS_MAX_DATASET_NAME_LEN` less the final NUL).
pub const MAX_NAME: usize = 255;

/// The start of `zfs_cmd_t`, which every release has in this order. The kernel copies as much as its own release has, 13 to 14 KiB; all
/// that is not named here is zero.
#[repr(C)]
struct Command {
    name: [u8; 4096],
    source: u64,
    source_size: u64,
    answer: u64,
    answer_size: u64,
    rest: [u8; 28 << 10],
}

/// Room for which of several names could not be dealt with. It is not looked at: there is one name at a time.
const ANSWER: usize = 16 << 10;

/// The connection to the kernel's zfs.
#[derive(Debug)]
pub struct Zfs(File);

impl Zfs {
    /// Connects.
    ///
    /// # Errors
    /// `ENOENT`, `ENODEV` or `ENXIO` when the kernel has no zfs; `EACCES` without the right to use it.
    pub fn open() -> io::Result<Self> {
        let device = OpenOptions::new().read(true).write(true).open(DEVICE);
        device
            .map(Self)
            .map_err(|e| io::Error::new(e.kind(), format!("open {DEVICE}: {e}")))
    }

    /// The release of the module, such as `2.1.11-1`; `None` when it does not tell.
    pub fn version() -> Option<String> {
        let text = std::fs::read_to_string("/sys/module/zfs/version").ok()?;
        Some(text.trim().to_owned())
    }

    /// Whether there is a dataset or snapshot of this name.
    ///
    /// # Errors
    /// `EINVAL` for what cannot be a name; `EAGAIN` when its pool is suspended.
    pub fn has(&self, name: &str) -> io::Result<bool> {
        match self.request::<OBJSET_STATS>(name, None) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Makes an empty filesystem.
    ///
    /// # Errors
    /// `EEXIST`; `ENOENT` without the dataset above; `ENOSPC` or `EDQUOT` without room; `EROFS` on a pool that is read-only.
    pub fn create(&self, name: &str, own: &Properties) -> rustix::io::Result<()> {
        let list = NvList::new().int32("type", FILESYSTEM);
        self.request::<CREATE>(name, Some(list.list("props", own.list())))
    }

    /// Makes a filesystem that begins as a snapshot.
    ///
    /// # Errors
    /// As of [`Zfs::create`]; `ENOENT` without the snapshot, too.
    pub fn clone_snapshot(
        &self,
        snapshot: &str,
        name: &str,
        own: &Properties,
    ) -> rustix::io::Result<()> {
        let list = NvList::new().string("origin", snapshot);
        self.request::<CLONE>(name, Some(list.list("props", own.list())))
    }

    /// Makes a snapshot, `DATASET@NAME`.
    ///
    /// # Errors
    /// As of [`Zfs::create`].
    pub fn snapshot(&self, name: &str) -> rustix::io::Result<()> {
        let list = NvList::new().list("snaps", NvList::new().flag(name));
        self.request::<SNAPSHOT>(pool(name), Some(list))
    }

    /// Destroys a snapshot when nothing holds it and no clone is left of it, which may be now. That there is none is success.
    ///
    /// # Errors
    /// `EROFS`, and what the disk gives.
    pub fn destroy_snapshot(&self, name: &str) -> rustix::io::Result<()> {
        let list = NvList::new().list("snaps", NvList::new().flag(name));
        self.request::<DESTROY_SNAPS>(pool(name), Some(list.flag("defer")))
    }

    /// Destroys a filesystem of which there are neither snapshots nor datasets below, and which nobody uses.
    ///
    /// # Errors
    /// `ENOENT`; `EBUSY` or `EEXIST` where it is not so; `EROFS`.
    pub fn destroy(&self, name: &str) -> rustix::io::Result<()> {
        self.request::<DESTROY>(name, None)
    }

    fn request<const REQUEST: Opcode>(
        &self,
        name: &str,
        list: Option<NvList>,
    ) -> rustix::io::Result<()> {
        if name.is_empty() || name.len() > MAX_NAME || name.contains('\0') {
            return Err(Errno::INVAL);
        }
        let mut command = Box::new(Command {
            name: [0; 4096],
            source: 0,
            source_size: 0,
            answer: 0,
            answer_size: 0,
            rest: [0; 28 << 10],
        });
        command.name[..name.len()].copy_from_slice(name.as_bytes());
        let list = list.map(NvList::packed);
        let mut answer = Vec::new();
        if let Some(list) = &list {
            answer.resize(ANSWER, 0u8);
            (command.source, command.source_size) = (address(list.as_ptr()), list.len() as u64);
            (command.answer, command.answer_size) = (address(answer.as_mut_ptr()), ANSWER as u64);
        }
        // SAFETY: the kernel reads and writes a zfs_cmd_t at the address, for which there is more than enough room. Beside it, it reads the
        // list and writes into `answer`, whose addresses and sizes it is given, and which live until it returns.
        unsafe { ioctl(&self.0, Updater::<REQUEST, Command>::new(&mut command)) }
    }
}

/// What a dataset is made with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Properties {
    /// The most bytes that it may hold, with what is made from it.
    pub quota: Option<u64>,
}

impl Properties {
    /// With the mount point that says that it is mounted by mount(2) alone.
    fn list(self) -> NvList {
        let list = NvList::new().string("mountpoint", "legacy");
        match self.quota {
            Some(bytes) => list.uint64("quota", bytes),
            None => list,
        }
    }
}

fn address(of: *const u8) -> u64 {
    of.expose_provenance() as u64
}

/// The pool of a dataset or snapshot.
fn pool(name: &str) -> &str {
    name.split(['/', '@']).next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_the_first_part_of_a_name() {
        assert_eq!(["p/a@s", "p@s", "p"].map(pool), ["p"; 3]);
    }

    #[test]
    fn a_kernel_without_zfs_says_so() {
        match Zfs::open() {
            Err(e) => assert!(e.to_string().starts_with("open /dev/zfs: "), "{e}"),
            Ok(zfs) => {
                assert!(Zfs::version().is_some());
                assert!(!zfs.has("graphtest-no-such-pool/x").unwrap());
                assert!(zfs.has("").is_err() && zfs.has(&"x".repeat(256)).is_err());
                let none = "graphtest-no-such-pool/x@y";
                assert_eq!(zfs.destroy("graphtest-no-such-pool/x"), Err(Errno::NOENT));
                assert_eq!(zfs.snapshot(none), Err(Errno::NOENT));
            }
        }
    }
}
