//! Digests of contents: holes and written zeros are the same, and cost nothing.

use std::io;
use std::os::fd::BorrowedFd;

use sha2::{Digest as _, Sha256};

use super::{Content, Digest};
use crate::sys::copy::{for_each_extent, read_at};

/// Zeros are left out in units of this many bytes.
pub const BLOCK: usize = 4096;

/// How many first bytes a [`Content`] keeps to be shown.
pub const HEAD: usize = 64;

static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Computes a [`Digest`]: SHA-256 over every 4096-byte block that is not all zeros, each after its number, and then the size.
/// So a terabyte of hole is digested at once, and a hole equals written zeros.
#[derive(Debug, Default)]
pub struct Hasher {
    sha: Sha256,
}

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes block number `index`; blocks come in ascending order, those left out are zeros, and only the last may be short.
    pub fn block(&mut self, index: u64, data: &[u8]) {
        debug_assert!(data.len() <= BLOCK);
        // A short block and the same block followed by zeros are one: the size tells them apart.
        let used = if data == &ZEROS[..data.len()] {
            0
        } else {
            data.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1)
        };
        if used > 0 {
            self.sha.update(index.to_le_bytes());
            self.sha.update(&data[..used]);
            self.sha.update(&ZEROS[used..]);
        }
    }

    /// The digest of a content of `size` bytes.
    pub fn finish(mut self, size: u64) -> Digest {
        self.sha.update(size.to_le_bytes());
        Digest(self.sha.finalize().into())
    }
}

/// Fills `buf` with the pseudo-random bytes of `seed` from offset `at`, a multiple of 8, on: the same bytes for the same
/// seed and offset everywhere and for ever (SplitMix64, one word for each eight bytes).
pub fn pseudo_random(seed: u64, at: u64, buf: &mut [u8]) {
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
    let start = seed.wrapping_mul(0xd134_2543_de82_ef95);
    for (i, chunk) in buf.chunks_mut(8).enumerate() {
        let n = at / 8 + i as u64 + 1;
        let mut z = start.wrapping_add(GAMMA.wrapping_mul(n));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        chunk.copy_from_slice(&z.to_le_bytes()[..chunk.len()]);
    }
}

impl Content {
    /// The content of a file that holds just these bytes.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        for (i, block) in bytes.chunks(BLOCK).enumerate() {
            hasher.block(i as u64, block);
        }
        let size = bytes.len() as u64;
        Self {
            size,
            digest: hasher.finish(size),
            head: bytes[..bytes.len().min(HEAD)].to_vec(),
        }
    }

    /// Reads the content of an open regular file of `size` bytes; with `sparse`, its holes are skipped unread.
    ///
    /// # Errors
    /// The errno of reading; `UnexpectedEof` when the file is shorter than `size`.
    pub fn of_file(file: BorrowedFd<'_>, size: u64, sparse: bool) -> io::Result<Self> {
        let mut hasher = Hasher::new();
        let mut head = Vec::new();
        let want = usize::try_from(size).unwrap_or(usize::MAX).min(64 * BLOCK);
        let mut buf = vec![0u8; want.next_multiple_of(BLOCK)];
        let mut done = 0u64;
        for_each_extent(file, size, sparse, |start, end| {
            // Extents end at the filesystem's blocks, which may be smaller than ours; read whole blocks, none twice.
            let mut at = (start / BLOCK as u64 * BLOCK as u64).max(done);
            while at < end {
                let whole = end.next_multiple_of(BLOCK as u64).min(size);
                let len = usize::try_from(whole - at)
                    .unwrap_or(usize::MAX)
                    .min(buf.len());
                fill(file, &mut buf[..len], at)?;
                if at == 0 {
                    head = buf[..len.min(HEAD)].to_vec();
                }
                for (i, block) in buf[..len].chunks(BLOCK).enumerate() {
                    hasher.block(at / BLOCK as u64 + i as u64, block);
                }
                at += len as u64;
                done = at;
            }
            Ok(())
        })?;
        let shown = usize::try_from(size).unwrap_or(usize::MAX).min(HEAD);
        head.resize(shown, 0);
        Ok(Self {
            size,
            digest: hasher.finish(size),
            head,
        })
    }
}

fn fill(file: BorrowedFd<'_>, mut buf: &mut [u8], mut at: u64) -> io::Result<()> {
    while !buf.is_empty() {
        let n = read_at(file, buf, at)?;
        if n == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was read",
            ));
        }
        at += n as u64;
        buf = &mut buf[n..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_equal_zeros_and_sizes_and_places_count() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(b"abc", 10_000).expect("write");
        file.set_len(300_001).expect("truncate");
        let mut bytes = vec![0u8; 300_001];
        bytes[10_000..10_003].copy_from_slice(b"abc");
        let flat = Content::of_bytes(&bytes);
        for sparse in [false, true] {
            assert_eq!(
                Content::of_file(file.as_fd(), 300_001, sparse).expect("read"),
                flat
            );
        }
        bytes.push(0);
        assert_ne!(
            Content::of_bytes(&bytes).digest,
            flat.digest,
            "one zero more"
        );
        bytes.pop();
        bytes.swap(10_000, 20_000);
        assert_ne!(
            Content::of_bytes(&bytes).digest,
            flat.digest,
            "a byte elsewhere"
        );
        assert!(
            Content::of_file(file.as_fd(), 300_002, false).is_err(),
            "a file that became shorter"
        );
    }

    #[test]
    fn a_terabyte_of_hole_is_digested_at_once() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 40).expect("truncate");
        file.write_all_at(b"x", 1 << 39).expect("write");
        let content = Content::of_file(file.as_fd(), 1 << 40, true).expect("read");
        let mut hasher = Hasher::new();
        hasher.block(1 << 27, b"x");
        assert_eq!(content.digest, hasher.finish(1 << 40));
    }
}
