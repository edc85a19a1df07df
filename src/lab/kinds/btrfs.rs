//! btrfs and its variants.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use super::{Image, Kind, Program, Recipe};
use crate::sys::btrfs::wait_for_rescan;
use crate::sys::fsctl::{Quotas, enable_btrfs_quotas};

/// As for ext4: without barriers, fsync(2) through the loop device takes a third of the time.
const OPTIONS: &str = "nobarrier";

/// What is done to it when it is mounted for the first time.
type Prepare = Option<fn(&Path) -> io::Result<()>>;

const fn image(options: &'static str, devices: u64, prepare: Prepare) -> Recipe {
    Recipe::Image(Image {
        fs_type: "btrfs",
        mkfs: Program::new("mkfs.btrfs", "btrfs-progs"),
        arguments: &["-q", "-f", "-K"],
        disturbed: Some("not check mount status"),
        inodes: None,
        options,
        devices,
        least: (128 << 20) * devices,
        prepare,
        check: (
            Program::new("btrfs", "btrfs-progs"),
            &["check", "--readonly"],
        ),
    })
}

/// Until the first count has come to its end the kernel may count what a snapshot shares twice, and the checker calls that damage: seen
/// with 6.18, of 300 snapshots made right after `btrfs quota enable` 22 were.
fn quotas(on: &Path, quotas: Quotas) -> io::Result<()> {
    let on = File::open(on)?;
    enable_btrfs_quotas(&on, quotas)
        .and_then(|()| Ok(wait_for_rescan(on.as_fd())?))
        .map_err(|e| io::Error::new(e.kind(), format!("turn quotas on: {e}")))
}

pub(super) const BTRFS: Kind = Kind {
    name: "btrfs",
    about: "a btrfs in a loop device",
    recipe: image(OPTIONS, 1, None),
};

pub(super) const QGROUPS: Kind = Kind {
    name: "btrfs+qgroups",
    about: "a btrfs with quotas turned on",
    recipe: image(OPTIONS, 1, Some(|on| quotas(on, Quotas::Full))),
};

pub(super) const SQUOTA: Kind = Kind {
    name: "btrfs+squota",
    about: "a btrfs with simple quotas turned on; Linux 6.7 and later",
    recipe: image(OPTIONS, 1, Some(|on| quotas(on, Quotas::Simple))),
};

pub(super) const COMPRESS: Kind = Kind {
    name: "btrfs+compress",
    about: "a btrfs that compresses files with zstd",
    recipe: image("nobarrier,compress=zstd", 1, None),
};

pub(super) const TWO: Kind = Kind {
    name: "btrfs+two",
    about: "a btrfs over two loop devices",
    recipe: image(OPTIONS, 2, None),
};
