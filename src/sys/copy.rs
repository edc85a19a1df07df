//! Copying file contents: reflink, then copy_file_range(2), then read and write; holes stay holes. Sending them: sendfile(2).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Copies contents and remembers which ways the filesystem at hand does not offer, so that a tree of many files asks once.
#[derive(Debug, Default)]
pub struct Copier {
    no_reflink: AtomicBool,
    no_copy_range: AtomicBool,
}

/// How the bytes of a file were copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyMethod {
    /// The extents are shared (`FICLONE`).
    Reflink,
    /// The kernel copied them.
    CopyRange,
    /// They went through user space.
    ReadWrite,
}

impl Copier {
    /// A copier that has tried nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A copier that never shares extents, for callers that want the bytes twice on disk.
    pub fn without_reflink() -> Self {
        let copier = Self::default();
        copier.no_reflink.store(true, Ordering::Relaxed);
        copier
    }

    /// Makes `to`, an empty regular file open for writing, hold what `from` holds; the size is that of `from` at the call.
    ///
    /// # Errors
    /// The errno of reading or writing.
    pub fn copy(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<CopyMethod> {
        let st = rustix::fs::fstat(from)?;
        let size = u64::try_from(st.st_size).unwrap_or(0);
        if !self.no_reflink.load(Ordering::Relaxed) && size > 0 {
            match rustix::fs::ioctl_ficlone(to, from) {
                Ok(()) => return Ok(CopyMethod::Reflink),
                Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::NOSYS | Errno::PERM) => {
                    self.no_reflink.store(true, Ordering::Relaxed);
                }
                // A swap file, a file with other flags: this one only.
                Err(Errno::INVAL | Errno::TXTBSY | Errno::ISDIR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        rustix::fs::ftruncate(to, size)?;
        let mut method = CopyMethod::CopyRange;
        // st_blocks counts 512-byte units; a file with fewer than its size has holes.
        let sparse = u64::try_from(st.st_blocks).unwrap_or(0).saturating_mul(512) < size;
        for_each_extent(from, size, sparse, |start, end| {
            if self.copy_extent(from, to, start, end)? == CopyMethod::ReadWrite {
                method = CopyMethod::ReadWrite;
            }
            Ok(())
        })?;
        Ok(method)
    }

    fn copy_extent(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        start: u64,
        end: u64,
    ) -> io::Result<CopyMethod> {
        let mut at = start;
        while at < end && !self.no_copy_range.load(Ordering::Relaxed) {
            let (mut src, mut dst) = (at, at);
            let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(1 << 30);
            match rustix::fs::copy_file_range(from, Some(&mut src), to, Some(&mut dst), want) {
                // Zero before the end: the file shrank, or a filesystem that cannot (some FUSE, procfs) says so.
                Ok(0) => break,
                Ok(n) => at += n as u64,
                Err(Errno::INTR) => {}
                Err(
                    Errno::XDEV
                    | Errno::NOSYS
                    | Errno::OPNOTSUPP
                    | Errno::INVAL
                    | Errno::PERM
                    | Errno::IO,
                ) => {
                    self.no_copy_range.store(true, Ordering::Relaxed);
                }
                Err(e) => return Err(e.into()),
            }
        }
        if at >= end {
            return Ok(CopyMethod::CopyRange);
        }
        let mut buf = vec![0u8; 128 * 1024];
        while at < end {
            let want = usize::try_from(end - at)
                .unwrap_or(usize::MAX)
                .min(buf.len());
            let got = read_at(from, &mut buf[..want], at)?;
            if got == 0 {
                break;
            }
            write_all_at(to, &buf[..got], at)?;
            at += got as u64;
        }
        Ok(CopyMethod::ReadWrite)
    }
}

/// Calls `each` with every run of data `start..end` of a file of `size` bytes. With `sparse` false, the whole file is one run.
///
/// # Errors
/// The errno of lseek(2), and whatever `each` returns, which ends the pass.
pub fn for_each_extent(
    file: BorrowedFd<'_>,
    size: u64,
    sparse: bool,
    mut each: impl FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut at = 0;
    while at < size {
        let (start, end) = if sparse {
            next_extent(file, at, size)?
        } else {
            (0, size)
        };
        if start >= size {
            break;
        }
        each(start, end.min(size))?;
        at = end;
    }
    Ok(())
}

/// The next run of data at or after `at`; `(size, size)` when only a hole is left. Filesystems without `SEEK_DATA` show the
/// rest of the file as one run.
///
/// # Errors
/// The errno of lseek(2).
pub fn next_extent(file: BorrowedFd<'_>, at: u64, size: u64) -> io::Result<(u64, u64)> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok((size, size)),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((at, size)),
        Err(e) => return Err(e.into()),
    };
    match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        Ok(end) => Ok((start, end.max(start + 1))),
        // The file shrank in between.
        Err(Errno::NXIO) => Ok((size, size)),
        Err(e) => Err(e.into()),
    }
}

/// pread(2), tried again when interrupted.
///
/// # Errors
/// The errno of the call.
pub fn read_at(file: BorrowedFd<'_>, buf: &mut [u8], at: u64) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| {
        rustix::io::pread(file, &mut *buf, at)
    })?)
}

/// sendfile(2): puts at most `most` bytes of a file, from `*at` on, into a socket or pipe, and moves `*at` past them; tried again
/// when interrupted. Zero when the file ends there. A pipe or socket may keep the pages of the file and not their bytes: what is
/// written there before the other side reads is what that one gets.
///
/// # Errors
/// The errno of the call; nothing was put in then. `EINVAL` and others: this file, or this kernel, has to be read and written.
pub fn send_at(
    to: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    at: &mut u64,
    most: u64,
) -> io::Result<u64> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let sent = rustix::io::retry_on_intr(|| rustix::fs::sendfile(to, file, Some(&mut *at), most))?;
    Ok(sent as u64)
}

/// pwrite(2) until all is written.
///
/// # Errors
/// The errno of the call; `WriteZero` when the file takes nothing more.
pub fn write_all_at(file: BorrowedFd<'_>, mut data: &[u8], mut at: u64) -> Result<(), Errno> {
    while !data.is_empty() {
        let n = rustix::io::retry_on_intr(|| rustix::io::pwrite(file, data, at))?;
        if n == 0 {
            return Err(Errno::IO);
        }
        data = &data[n..];
        at += n as u64;
    }
    Ok(())
}

/// [`Copier::copy`] for a single file.
///
/// # Errors
/// The errno of reading or writing.
pub fn copy_contents(from: impl AsFd, to: impl AsFd) -> io::Result<CopyMethod> {
    Copier::new().copy(from.as_fd(), to.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn holes_and_bytes_are_copied() {
        let from = tempfile::tempfile().expect("a file");
        from.write_all_at(b"head", 0).expect("write");
        from.write_all_at(b"tail", 8 << 20).expect("write");
        from.set_len(16 << 20).expect("truncate");
        for copier in [Copier::new(), Copier::without_reflink(), no_kernel_copy()] {
            let to: File = tempfile::tempfile().expect("a file");
            copier.copy(from.as_fd(), to.as_fd()).expect("copy");
            assert_eq!(to.metadata().expect("stat").len(), 16 << 20);
            let (a, b) = (
                from.metadata().expect("stat").blocks(),
                to.metadata().expect("stat").blocks(),
            );
            assert!(b <= a + 256, "the holes were filled: {b} blocks from {a}");
            let mut buf = [0; 6];
            to.read_exact_at(&mut buf, (8 << 20) - 1).expect("read");
            assert_eq!(&buf, b"\0tail\0");
            to.read_exact_at(&mut buf, 0).expect("read");
            assert_eq!(&buf, b"head\0\0");
        }
    }

    fn no_kernel_copy() -> Copier {
        let copier = Copier::without_reflink();
        copier.no_copy_range.store(true, Ordering::Relaxed);
        copier
    }
}
