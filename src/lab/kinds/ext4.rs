//! ext4 and its variants.

use super::{Image, Kind, Program, Recipe};

/// Barriers order writes against a loss of power of the real disk, which no run survives anyway; without them fsync(2) through the
/// loop device takes a third of the time.
const OPTIONS: &str = "nobarrier,noinit_itable";

const fn image(arguments: &'static [&'static str], options: &'static str) -> Recipe {
    Recipe::Image(Image {
        fs_type: "ext4",
        mkfs: Program::new("mkfs.ext4", "e2fsprogs"),
        disturbed: None,
        arguments,
        inodes: Some(|_, inodes| vec!["-N".to_string(), inodes.to_string()]),
        options,
        devices: 1,
        least: 8 << 20,
        prepare: None,
        check: (Program::new("e2fsck", "e2fsprogs"), &["-fn"]),
    })
}

/// What every one is made with.
macro_rules! arguments {
    ($($more:literal),*) => {
        &["-q", "-F", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1" $(, $more)*]
    };
}

pub(super) const EXT4: Kind = Kind {
    name: "ext4",
    about: "an ext4 in a loop device",
    // Left out, the block size of a small one would be 1 KiB.
    recipe: image(arguments!("-b", "4096"), OPTIONS),
};

pub(super) const ONE_K: Kind = Kind {
    name: "ext4+1k",
    about: "an ext4 with blocks of 1 KiB, where extended attributes find less room",
    recipe: image(arguments!("-b", "1024"), OPTIONS),
};

pub(super) const NO_DIR_INDEX: Kind = Kind {
    name: "ext4+nodirindex",
    about: "an ext4 without dir_index and dir_nlink: directories are lists and hold 65000 directories at most",
    recipe: image(
        arguments!("-b", "4096", "-O", "^dir_index,^dir_nlink"),
        OPTIONS,
    ),
};

pub(super) const NO_FILETYPE: Kind = Kind {
    name: "ext4+nofiletype",
    about: "an ext4 without filetype: directories do not tell the types of files (d_type), so that overlays cannot be had",
    recipe: image(arguments!("-b", "4096", "-O", "^filetype"), OPTIONS),
};

pub(super) const PQUOTA: Kind = Kind {
    name: "ext4+pquota",
    about: "an ext4 with project quotas; needs CONFIG_QUOTA and CONFIG_QFMT_V2",
    recipe: image(
        arguments!(
            "-b",
            "4096",
            "-O",
            "quota,project",
            "-E",
            "quotatype=prjquota"
        ),
        "nobarrier,noinit_itable,prjquota",
    ),
};

pub(super) const CASEFOLD: Kind = Kind {
    name: "ext4+casefold",
    about: "an ext4 on which a directory can be made to ignore case; needs CONFIG_UNICODE",
    recipe: image(
        arguments!("-b", "4096", "-O", "casefold", "-E", "encoding=utf8"),
        OPTIONS,
    ),
};
