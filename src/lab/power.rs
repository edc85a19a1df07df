//! A loss of power, as a filesystem in loop devices sees it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::sys::copy::copy_contents;
use crate::sys::fsctl::{Journal, commit_btrfs, shut_down};

/// Where the first superblock of a btrfs is, and how large it is.
const SUPER_AT: u64 = 64 << 10;
const SUPER_SIZE: usize = 4096;
/// How often the disk's state is copied until no commit comes in between.
const TRIES: usize = 20;

/// Stops the filesystem mounted at `on` as if its power were cut. Returns what then stands on the disk, when that is not in `images`:
/// copies of them, beside them.
///
/// # Errors
/// The filesystem cannot be stopped and its images cannot be copied.
pub(super) fn cut(
    on: &Path,
    images: &[PathBuf],
    btrfs: bool,
    journal: Journal,
) -> io::Result<Option<Vec<PathBuf>>> {
    let dir = File::open(on)?;
    if btrfs && journal == Journal::Flushed {
        commit_btrfs(&dir)?;
    }
    match shut_down(&dir, journal) {
        Ok(()) => Ok(None),
        Err(e) if btrfs && Errno::from_io_error(&e) == Some(Errno::NOTTY) => {
            drop(dir);
            snapshot(images).map(Some)
        }
        Err(e) => Err(e),
    }
}

/// Copies the images of a mounted btrfs as they are at one moment. Whatever the superblock refers to is not written over until the next
/// superblock is there; so a copy is of one moment when the superblock is the same before and after.
fn snapshot(images: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    for _ in 0..TRIES {
        let before = superblocks(images)?;
        let copies: Vec<PathBuf> = images.iter().map(|i| i.with_extension("copy")).collect();
        for (image, copy) in images.iter().zip(&copies) {
            copy_contents(File::open(image)?, File::create(copy)?)?;
        }
        if superblocks(images)? == before && superblocks(&copies)? == before {
            return Ok(copies);
        }
    }
    Err(io::Error::other(
        "the filesystem commits too often for a copy of one moment",
    ))
}

fn superblocks(images: &[PathBuf]) -> io::Result<Vec<Vec<u8>>> {
    let read = |image: &PathBuf| {
        let mut block = vec![0; SUPER_SIZE];
        File::open(image)?.read_exact_at(&mut block, SUPER_AT)?;
        Ok(block)
    };
    images.iter().map(read).collect()
}
