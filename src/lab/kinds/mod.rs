//! The kinds of backing: one file each (variants of a filesystem share one), one line in [`ALL`].

mod btrfs;
mod dir;
mod ext4;
mod over;
mod tmpfs;
mod xfs;
mod zfs;

use std::io;
use std::path::Path;

use super::Fact;
use super::program::Program;

/// One kind of backing.
#[derive(Debug)]
pub(super) struct Kind {
    /// As people name it.
    pub name: &'static str,
    /// One sentence about it, for lists.
    pub about: &'static str,
    /// How it is made.
    pub recipe: Recipe,
}

/// How a backing is made.
#[derive(Debug)]
pub(super) enum Recipe {
    /// Nothing is mounted.
    Dir,
    /// A tmpfs.
    Tmpfs,
    /// A filesystem in sparse files behind loop devices.
    Image(Image),
    /// An overlay over a tmpfs: of the kernel, or of a program.
    Overlay(Option<Program>),
    /// A pool of zfs in a sparse file.
    Pool(Pool),
}

/// How a pool is made.
#[derive(Debug)]
pub(super) struct Pool {
    /// Properties of its first dataset, which the others inherit.
    pub properties: &'static [&'static str],
}

/// The programs of zfs.
pub(super) const ZPOOL: Program = Program::new("zpool", "zfsutils-linux");
pub(super) const ZFS: Program = Program::new("zfs", "zfsutils-linux");

/// How a filesystem in an image is made, mounted and checked.
#[derive(Debug)]
pub(super) struct Image {
    /// Its type, for mount(2).
    pub fs_type: &'static str,
    /// What makes it.
    pub mkfs: Program,
    /// The arguments, before those for the inodes and the images.
    pub arguments: &'static [&'static str],
    /// What its programs say when they could not see to its end what else is mounted, since a device of others went meanwhile.
    pub disturbed: Option<&'static str>,
    /// The arguments that limit the number of inodes, from the size in bytes and the number; `None`: there is no such limit.
    pub inodes: Option<fn(u64, u64) -> Vec<String>>,
    /// Mount options.
    pub options: &'static str,
    /// Over how many images it goes.
    pub devices: u64,
    /// The smallest that can be made of it, in bytes.
    pub least: u64,
    /// What is done to it when it is mounted for the first time.
    pub prepare: Option<fn(&Path) -> io::Result<()>>,
    /// What checks it without changing anything, and with which arguments before the image.
    pub check: (Program, &'static [&'static str]),
}

impl Image {
    /// Runs one of its programs, and again while it fails for nothing but what others did meanwhile; `said` is what it says when it fails.
    pub(super) fn undisturbed<T>(
        &self,
        mut run: impl FnMut() -> T,
        said: impl Fn(&T) -> Option<String>,
    ) -> T {
        const TRIES: usize = 10;
        for _ in 1..TRIES {
            let done = run();
            let was = |said: String| self.disturbed.is_some_and(|d| said.contains(d));
            if !said(&done).is_some_and(was) {
                return done;
            }
        }
        run()
    }
}

impl Kind {
    /// The program without which there is none.
    pub(super) fn program(&self) -> Option<Program> {
        match &self.recipe {
            Recipe::Dir | Recipe::Tmpfs => None,
            Recipe::Image(image) => Some(image.mkfs),
            Recipe::Overlay(program) => *program,
            Recipe::Pool(_) => Some(ZPOOL),
        }
    }

    /// The filesystem, as mount(8) calls it.
    pub(super) fn filesystem(&self) -> &'static str {
        match &self.recipe {
            Recipe::Image(image) => image.fs_type,
            Recipe::Pool(_) => "zfs",
            Recipe::Dir | Recipe::Tmpfs | Recipe::Overlay(_) => self.name,
        }
    }

    /// What a filesystem that a scenario has for itself can do.
    pub(super) fn own_facts(&self) -> &'static [Fact] {
        match &self.recipe {
            Recipe::Dir => &[],
            Recipe::Tmpfs | Recipe::Overlay(_) => &[Fact::OwnBacking, Fact::InodeLimit],
            Recipe::Pool(_) => &[Fact::OwnBacking],
            Recipe::Image(Image { inodes: None, .. }) => &[Fact::OwnBacking, Fact::PowerCut],
            Recipe::Image(_) => &[Fact::OwnBacking, Fact::PowerCut, Fact::InodeLimit],
        }
    }
}

/// Every kind, in the order of lists.
pub(super) const ALL: &[&Kind] = &[
    &dir::DIR,
    &tmpfs::TMPFS,
    &ext4::EXT4,
    &ext4::ONE_K,
    &ext4::NO_DIR_INDEX,
    &ext4::NO_FILETYPE,
    &ext4::PQUOTA,
    &ext4::CASEFOLD,
    &xfs::XFS,
    &xfs::NO_REFLINK,
    &xfs::NO_FTYPE,
    &xfs::PQUOTA,
    &btrfs::BTRFS,
    &btrfs::QGROUPS,
    &btrfs::SQUOTA,
    &btrfs::COMPRESS,
    &btrfs::TWO,
    &over::OVERLAY,
    &over::FUSE,
    &zfs::ZFS,
    &zfs::COMPRESS,
];

/// Every program that making a backing or looking for damage runs.
pub(super) fn programs() -> impl Iterator<Item = Program> {
    ALL.iter().flat_map(|kind| {
        let check = match &kind.recipe {
            Recipe::Image(image) => Some(image.check.0),
            _ => None,
        };
        kind.program().into_iter().chain(check)
    })
}

pub(super) use dir::DIR;
pub(super) use tmpfs::TMPFS;
