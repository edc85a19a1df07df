//! Reading a device past every cache of it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// What the kernel wants offsets, lengths and memory to be multiples of: the device's logical blocks (open(2), `O_DIRECT`), which are 512
/// or 4096 bytes.
const ALIGN: usize = 4096;

/// A device that is read as it is, whatever the page cache has of it: what writes by itself, such as a filesystem with buffers of its own
/// or another device on this one, leaves there what was.
#[derive(Debug)]
pub struct Direct(File);

impl Direct {
    /// Opens a device.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECT.bits().cast_signed();
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path)?;
        Ok(Self(file))
    }

    /// Reads so many bytes.
    ///
    /// # Errors
    /// Those of pread(2); `UnexpectedEof` where the device ends before.
    pub fn read(&self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let before = usize::try_from(at % ALIGN as u64).unwrap_or_default();
        let (start, end) = (at - before as u64, before + len);
        let room = end.next_multiple_of(ALIGN);
        let mut memory = vec![0; room + ALIGN];
        let skipped = memory.as_ptr().align_offset(ALIGN);
        let aligned = memory
            .get_mut(skipped..skipped + room)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let mut filled = 0;
        while filled < end {
            match self
                .0
                .read_at(&mut aligned[filled..], start + filled as u64)
            {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        memory.truncate(skipped + end);
        memory.drain(..skipped + before);
        Ok(memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_is_read() {
        // Not every filesystem has O_DIRECT; that of the sources does.
        let dir = tempfile::tempdir_in(".").expect("a directory");
        let path = dir.path().join("f");
        let bytes: Vec<u8> = (0..10_000u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&path, &bytes).expect("write");
        let direct = Direct::open(&path).expect("open");
        for (at, len) in [
            (0, 1),
            (4095, 2),
            (5, 30_000),
            (8192, 4096),
            (39_000, 1000),
            (7, 0),
        ] {
            let read = direct.read(at as u64, len).expect("read");
            assert_eq!(read, bytes[at..at + len], "{len} at {at}");
        }
        let e = direct.read(39_000, 1001).expect_err("beyond the end");
        assert_eq!(e.kind(), io::ErrorKind::UnexpectedEof);
    }
}
