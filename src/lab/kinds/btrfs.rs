//! btrfs and its variants.

use super::{Image, Kind, Program, Recipe};

/// As for ext4: without barriers, fsync(2) through the loop device costs a third.
const OPTIONS: &str = "nobarrier";

const fn image(options: &'static str, devices: u64) -> Recipe {
    Recipe::Image(Image {
        fs_type: "btrfs",
        mkfs: Program::new("mkfs.btrfs", "btrfs-progs"),
        arguments: &["-q", "-f", "-K"],
        inodes: None,
        options,
        devices,
        least: 128 << 20,
        check: (
            Program::new("btrfs", "btrfs-progs"),
            &["check", "--readonly"],
        ),
    })
}

pub(super) const BTRFS: Kind = Kind {
    name: "btrfs",
    about: "a btrfs in a loop device",
    recipe: image(OPTIONS, 1),
};
