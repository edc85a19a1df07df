//! Where the blocks of a file are (`FS_IOC_FIEMAP`): which of them it shares with other files, which are compressed.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// How many extents are asked for at once.
const BATCH: usize = 64;

/// `struct fiemap` of `linux/fiemap.h` without its extents.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Header {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

#[repr(C)]
struct Request {
    header: Header,
    extents: [Extent; BATCH],
}

/// `_IOWR('f', 11, struct fiemap)`: the extents do not count.
const FIEMAP: Opcode = opcode::read_write::<Header>(b'f', 11);
/// Write out first what only the page cache has, so that it has a place.
const SYNC: u32 = 1;
const LAST: u32 = 1;
const ENCODED: u32 = 8;
const SHARED: u32 = 0x2000;

/// How many bytes of a file lie how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    /// In extents that other files have too.
    pub shared: u64,
    /// In extents that are compressed or encrypted.
    pub encoded: u64,
    /// In any extent.
    pub mapped: u64,
}

/// Writes a file out and sums up its extents.
///
/// # Errors
/// `EOPNOTSUPP` or `ENOTTY` where the filesystem does not tell, or the errno of the call.
pub fn blocks(file: impl AsFd) -> Result<Blocks, Errno> {
    let mut found = Blocks::default();
    let mut start = 0;
    while let Some(next) = batch(file.as_fd(), start, &mut found)? {
        start = next;
    }
    Ok(found)
}

/// One call; where to go on, if there is more.
fn batch(file: BorrowedFd<'_>, start: u64, found: &mut Blocks) -> Result<Option<u64>, Errno> {
    let mut request = Request {
        header: Header {
            start,
            length: u64::MAX - start,
            flags: SYNC,
            count: BATCH as u32,
            ..Header::default()
        },
        extents: [Extent::default(); BATCH],
    };
    // SAFETY: FIEMAP is _IOWR('f', 11, struct fiemap), and `Request` has that layout with room for as many extents as its header
    // says; the kernel writes no more.
    unsafe { ioctl(file, Updater::<FIEMAP, Request>::new(&mut request)) }?;
    let extents = &request.extents[..(request.header.mapped as usize).min(BATCH)];
    for extent in extents {
        found.mapped += extent.length;
        if extent.flags & SHARED != 0 {
            found.shared += extent.length;
        }
        if extent.flags & ENCODED != 0 {
            found.encoded += extent.length;
        }
    }
    let last = extents.last().filter(|last| last.flags & LAST == 0);
    Ok(last.map(|last| last.logical + last.length))
}
