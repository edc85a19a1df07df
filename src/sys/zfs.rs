//! The kernel's zfs, as far as it is asked without a program: whether it is there, and whether a dataset is.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl};

/// Where the kernel takes requests. Opening it loads the module where that can be found (`char-major-10-249`).
const DEVICE: &str = "/dev/zfs";

/// `ZFS_IOC_OBJSET_STATS` of sys/fs/zfs.h, the same number since the first release for Linux.
const OBJSET_STATS: Opcode = 0x5a12;

/// The longest name of a dataset or snapshot in bytes (`ZFS_MAX_DATASET_NAME_LEN` less the final NUL).
pub const MAX_NAME: usize = 255;

/// The start of `zfs_cmd_t`, in which every release has the name first. The kernel copies as much as its own release has, 13 to 14 KiB;
/// where nothing but a name is asked with, all else is zero and whatever comes back is not looked at.
#[repr(C)]
struct Command {
    name: [u8; 4096],
    rest: [u8; 28 << 10],
}

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
        let mut command = Box::new(Command {
            name: [0; 4096],
            rest: [0; 28 << 10],
        });
        if name.is_empty() || name.len() > MAX_NAME || name.contains('\0') {
            return Err(Errno::INVAL.into());
        }
        command.name[..name.len()].copy_from_slice(name.as_bytes());
        // SAFETY: the kernel reads and writes a zfs_cmd_t at the address, for which there is more than enough room. With no address of a
        // list in it (they are zero) nothing else is written.
        match unsafe { ioctl(&self.0, Updater::<OBJSET_STATS, Command>::new(&mut command)) } {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_zfs_says_so() {
        match Zfs::open() {
            Err(e) => assert!(e.to_string().starts_with("open /dev/zfs: "), "{e}"),
            Ok(zfs) => {
                assert!(Zfs::version().is_some());
                assert!(!zfs.has("graphtest-no-such-pool/x").unwrap());
                assert!(zfs.has("").is_err() && zfs.has(&"x".repeat(256)).is_err());
            }
        }
    }
}
