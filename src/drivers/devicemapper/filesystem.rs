//! The filesystems on the devices: made, told from others, mounted, made larger.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::statvfs;
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::graphdriver::{Error, Result};
use crate::sys;
use crate::sys::program::Program;

/// The names that `dm.fs` takes.
pub(super) const NAMES: &[&str] = &["ext4", "xfs"];

/// The least that `mkfs.xfs` makes since xfsprogs 5.19, in bytes.
const LEAST_XFS: u64 = 300 << 20;

/// A filesystem that layers can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filesystem {
    Ext4,
    Xfs,
}

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Filesystem {
    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Ext4, Self::Xfs]
            .into_iter()
            .find(|fs| fs.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => NAMES[0],
            Self::Xfs => NAMES[1],
        }
    }

    /// The one that is taken when nobody says: ext4, where it can be made. moby's takes xfs first, whose log alone takes 64 MiB of
    /// every pool, and which tries for ever to write what finds no room.
    pub fn usual() -> Self {
        if Self::Ext4.maker().find().is_err() && Self::Xfs.maker().find().is_ok() {
            Self::Xfs
        } else {
            Self::Ext4
        }
    }

    fn maker(self) -> Program {
        match self {
            Self::Ext4 => Program::new("mkfs.ext4", "e2fsprogs"),
            Self::Xfs => Program::new("mkfs.xfs", "xfsprogs"),
        }
    }

    /// Makes it on a device of so many bytes.
    pub fn make(self, device: &Path, size: u64, arguments: &[String]) -> Result<()> {
        if self == Self::Xfs && size < LEAST_XFS {
            return Err(Error::InvalidOption {
                key: "dm.basesize".to_owned(),
                why: format!("{size} bytes are too few for xfs, which takes {LEAST_XFS}"),
            });
        }
        // Nothing to discard on a new device. Tables of inodes are marked as not yet written, so that they take no room in the pool. The
        // journal is written, since what a pool gives a device may hold what was an older journal of the same filesystem; it is a small
        // one, as every layer gets its own with time. Room for more group descriptors need not be kept: ext4 finds it when it grows.
        let own: &[&str] = match self {
            Self::Ext4 => &[
                "-q",
                "-F",
                "-E",
                "nodiscard,lazy_itable_init=1,lazy_journal_init=0",
                "-O",
                "^resize_inode",
                "-J",
                "size=4",
            ],
            Self::Xfs => &["-q", "-f", "-K"],
        };
        let own = own.iter().map(|a| (*a).to_owned());
        let device = device.to_string_lossy().into_owned();
        let all = own.chain(arguments.iter().cloned()).chain([device]);
        let maker = self.maker();
        maker.run(all).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::NotSupported(e.to_string()),
            _ => Error::Other(format!("make the base filesystem: {e}")),
        })
    }

    /// The one on a device, with its uuid; the error says what is there instead.
    pub fn probe(device: &Path) -> Result<(Self, String)> {
        let read = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            File::open(device)?
                .read_exact_at(&mut bytes, at)
                .map(|()| bytes)
        };
        let failed = |e| Error::io("read", device, e);
        // The magic numbers and uuids of the superblocks.
        let (fs, at) = if read(0, 4).map_err(failed)? == b"XFSB" {
            (Self::Xfs, 32)
        } else if read(0x438, 2).map_err(failed)? == [0x53, 0xef] {
            (Self::Ext4, 0x468)
        } else {
            let device = device.display();
            return Err(Error::Other(format!("no ext4 and no xfs is on {device}")));
        };
        Ok((fs, uuid_text(&read(at, 16).map_err(failed)?)))
    }

    /// Mounts it.
    pub fn mount(self, device: &Path, at: &Path, more: &[String], label: &str) -> Result<()> {
        let mut options = vec![match self {
            // A layer and its snapshots have one uuid.
            Self::Xfs => "nouuid".to_owned(),
            // Every layer would write the same tables for itself, in the background.
            Self::Ext4 => "noinit_itable".to_owned(),
        }];
        options.extend(more.iter().cloned());
        if !label.is_empty() {
            options.push(format!("context=\"{label}\""));
        }
        let mount = |flags, options: &[String]| {
            let data = options.join(",");
            sys::mount::mount(device, at, self.name(), flags, data.as_bytes())
        };
        let mounted = match mount(MountFlags::empty(), &options) {
            // Mounting writes, for which a full pool or disk has no room. What was unmounted in order can be read without.
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::IO | Errno::NOSPC)) => {
                options.push(match self {
                    Self::Xfs => "norecovery".to_owned(),
                    Self::Ext4 => "noload".to_owned(),
                });
                mount(MountFlags::RDONLY, &options).map_err(|_| e)
            }
            other => other,
        };
        mounted.map_err(|e| Error::io("mount", at, e))
    }

    /// Makes it, mounted at `at`, as large as its device, which has so many bytes.
    pub fn grow(self, at: &Path, size: u64) -> Result<()> {
        let failed = |e: std::io::Error| Error::io("enlarge the filesystem at", at, e);
        let root = File::open(at).map_err(failed)?;
        let block = statvfs(at).map_err(|e| failed(e.into()))?.f_bsize;
        let blocks = size / block.max(1);
        match self {
            Self::Ext4 => sys::fsctl::grow_ext4(&root, blocks),
            Self::Xfs => sys::fsctl::grow_xfs(&root, blocks),
        }
        .map_err(failed)
    }
}

/// How often the xfs on a device tries again to write what finds no room.
pub(super) fn set_xfs_retries(device: &str, retries: u64) -> Result<()> {
    let knob = format!("/sys/fs/xfs/{device}/error/metadata/ENOSPC/max_retries");
    std::fs::write(&knob, retries.to_string()).map_err(|e| Error::io("write", knob, e))
}

fn uuid_text(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text += &format!("{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(bytes: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        file
    }

    #[test]
    fn what_was_made_is_found_again() {
        let sizes = [(Filesystem::Ext4, 64 << 20), (Filesystem::Xfs, LEAST_XFS)];
        for (fs, size) in sizes {
            let file = image(size);
            fs.make(file.path(), size, &[]).unwrap();
            let (found, uuid) = Filesystem::probe(file.path()).unwrap();
            assert_eq!((found, uuid.len()), (fs, 36));
            assert_eq!(Filesystem::named(fs.name()), Some(fs));
            let again = image(size);
            fs.make(again.path(), size, &[]).unwrap();
            assert_ne!(Filesystem::probe(again.path()).unwrap().1, uuid);
        }
    }

    #[test]
    fn nothing_is_told_from_a_filesystem() {
        let empty = image(1 << 20);
        let e = Filesystem::probe(empty.path()).unwrap_err().to_string();
        assert!(e.contains("no ext4 and no xfs"), "{e}");
        assert!(Filesystem::probe(image(100).path()).is_err());
        let small = Filesystem::Xfs.make(empty.path(), 1 << 20, &[]);
        assert!(matches!(small, Err(Error::InvalidOption { .. })));
        assert_eq!(
            uuid_text(&[0xab; 16]),
            "abababab-abab-abab-abab-abababababab"
        );
    }
}
