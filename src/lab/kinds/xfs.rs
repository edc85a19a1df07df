//! xfs and its variants.

use super::{Image, Kind, Program, Recipe};

/// How many bytes an inode takes in the default format.
const INODE: u64 = 512;

const fn image(arguments: &'static [&'static str], options: &'static str) -> Recipe {
    Recipe::Image(Image {
        fs_type: "xfs",
        mkfs: Program::new("mkfs.xfs", "xfsprogs"),
        disturbed: None,
        arguments,
        inodes: Some(limit),
        options,
        devices: 1,
        // mkfs.xfs 5.19 and later make none that is smaller.
        least: 300 << 20,
        prepare: None,
        check: (Program::new("xfs_repair", "xfsprogs"), &["-n", "-f"]),
    })
}

/// xfs limits the share of the space that inodes may take, in percent: the next that gives at least as many.
fn limit(size: u64, inodes: u64) -> Vec<String> {
    let percent = (inodes * INODE * 100).div_ceil(size).clamp(1, 100);
    vec!["-i".to_string(), format!("maxpct={percent}")]
}

pub(super) const XFS: Kind = Kind {
    name: "xfs",
    about: "an xfs in a loop device",
    recipe: image(&["-q", "-f", "-K"], ""),
};

pub(super) const NO_REFLINK: Kind = Kind {
    name: "xfs+noreflink",
    about: "an xfs on which files cannot share blocks",
    recipe: image(&["-q", "-f", "-K", "-m", "reflink=0"], ""),
};

pub(super) const NO_FTYPE: Kind = Kind {
    name: "xfs+noftype",
    about: "an xfs of version 4 with ftype=0: directories do not tell the types of files (d_type); needs CONFIG_XFS_SUPPORT_V4",
    recipe: image(&["-q", "-f", "-K", "-m", "crc=0", "-n", "ftype=0"], ""),
};

pub(super) const PQUOTA: Kind = Kind {
    name: "xfs+pquota",
    about: "an xfs with project quotas; needs CONFIG_XFS_QUOTA",
    recipe: image(&["-q", "-f", "-K"], "pquota"),
};
