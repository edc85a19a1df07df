//! Filesystem magic numbers (`statfs` `f_type`) and the names that drivers report for them.

use std::fmt;
use std::path::Path;

use super::{Error, Result};

/// The number that says which filesystem a path lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FsMagic(pub u32);

macro_rules! magics {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        impl FsMagic {
            $(#[doc = concat!("`", $text, "`")] pub const $name: Self = Self($value);)*

            /// Every number with a name; the names are moby's.
            pub const NAMES: &'static [(Self, &'static str)] = &[$((Self::$name, $text)),*];
        }
    };
}

magics! {
    UNSUPPORTED = 0x0000_0000, "unsupported";
    AUFS = 0x6175_6673, "aufs";
    BTRFS = 0x9123_683e, "btrfs";
    CRAMFS = 0x28cd_3d45, "cramfs";
    ECRYPTFS = 0xf15f, "ecryptfs";
    EROFS = 0xe0f5_e1e2, "erofs";
    EXTFS = 0xef53, "extfs";
    F2FS = 0xf2f5_2010, "f2fs";
    FUSE = 0x6573_5546, "fuse";
    GPFS = 0x4750_4653, "gpfs";
    JFFS2 = 0x72b6, "jffs2";
    JFS = 0x3153_464a, "jfs";
    NFS = 0x6969, "nfs";
    OVERLAY = 0x794c_7630, "overlayfs";
    RAMFS = 0x8584_58f6, "ramfs";
    REISERFS = 0x5265_4973, "reiserfs";
    SMB = 0x517b, "smb";
    SQUASHFS = 0x7371_7368, "squashfs";
    TMPFS = 0x0102_1994, "tmpfs";
    VXFS = 0xa501_fcf5, "vxfs";
    XFS = 0x5846_5342, "xfs";
    ZFS = 0x2fc1_2fc1, "zfs";
}

impl FsMagic {
    /// The name; `<unknown>` for a number that is not in the table, as moby reports it.
    pub fn name(self) -> &'static str {
        Self::NAMES
            .iter()
            .find(|(magic, _)| *magic == self)
            .map_or("<unknown>", |(_, name)| name)
    }
}

impl fmt::Display for FsMagic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The filesystem that `path` lies on.
///
/// # Errors
/// `statfs` fails, for example because there is no such path.
pub fn get_fs_magic(path: &Path) -> Result<FsMagic> {
    let stat = rustix::fs::statfs(path).map_err(|e| Error::io("statfs", path, e))?;
    // The field is signed and wider than 32 bits on most architectures; the magic is its low half.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok(FsMagic(stat.f_type as u32))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("/proc", FsMagic(0x9fa0), "<unknown>")]
    #[case("/dev/shm", FsMagic::TMPFS, "tmpfs")]
    fn of_a_path(#[case] path: &str, #[case] magic: FsMagic, #[case] name: &str) {
        let found = get_fs_magic(Path::new(path)).unwrap();
        assert_eq!((found, found.name()), (magic, name));
    }

    #[test]
    fn a_missing_path_is_an_error() {
        assert!(matches!(
            get_fs_magic(Path::new("/nonexistent/x")),
            Err(Error::Io { .. })
        ));
    }

    #[test]
    fn no_number_and_no_name_twice() {
        for (i, (magic, name)) in FsMagic::NAMES.iter().enumerate() {
            assert!(
                FsMagic::NAMES[i + 1..]
                    .iter()
                    .all(|(m, n)| m != magic && n != name),
                "{name}"
            );
        }
    }
}
