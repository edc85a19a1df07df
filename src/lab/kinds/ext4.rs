//! ext4 and its variants.

use super::{Image, Kind, Program, Recipe};

/// Barriers order writes against a loss of power of the real disk, which no run survives anyway; without them fsync(2) through the
/// loop device costs a third.
const OPTIONS: &str = "nobarrier,noinit_itable";

const fn image(arguments: &'static [&'static str], options: &'static str) -> Recipe {
    Recipe::Image(Image {
        fs_type: "ext4",
        mkfs: Program::new("mkfs.ext4", "e2fsprogs"),
        arguments,
        inodes: Some(|_, inodes| vec!["-N".to_string(), inodes.to_string()]),
        options,
        devices: 1,
        least: 8 << 20,
        check: (Program::new("e2fsck", "e2fsprogs"), &["-fn"]),
    })
}

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
