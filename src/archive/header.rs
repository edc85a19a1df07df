//! One tar header block: numbers, checksum, names; and what an entry is once PAX and GNU overrides are in.
//!
//! The layout of the block comes from the `tar` crate; numbers are read here because the crate gives up base-256 below zero and
//! takes garbage for zero.

use crate::tree::{Owner, Rdev, Timestamp};

/// Bytes in a block; headers and data are padded to it.
pub const BLOCK: usize = 512;

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A further name of another entry's inode.
    Hardlink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A directory.
    Dir,
    /// A named pipe.
    Fifo,
    /// A type flag that a layer does not hold; whoever applies refuses it.
    Other(u8),
}

/// A run of data in a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the file.
    pub at: u64,
    /// Bytes.
    pub len: u64,
}

/// An entry as it stands in the archive, overrides applied, nothing cleaned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    /// Offset of its first block (of the first PAX or GNU extension block, where it has one) in the stream.
    pub offset: u64,
    /// The name, byte for byte.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Target of a symbolic or hard link, byte for byte.
    pub link: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner ids as written; a layer's must fit 32 bits, see [`EntryHeader::owner`].
    pub ids: (i128, i128),
    /// Modification time.
    pub mtime: Timestamp,
    /// Size in bytes of the file that is meant; 0 for whatever has no content.
    pub size: u64,
    /// Bytes of data that follow in the archive; differs from `size` for sparse files.
    pub stored: u64,
    /// Device numbers as written.
    pub device: (i128, i128),
    /// Extended attributes, in the order of the archive.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The data of a sparse file, ascending; `None` for an ordinary one.
    pub sparse: Option<Vec<Extent>>,
}

impl EntryHeader {
    /// The owner; `None` when an id is negative, does not fit 32 bits or is 4294967295, which chown(2) takes for "leave it".
    pub fn owner(&self) -> Option<Owner> {
        let id = |n| u32::try_from(n).ok().filter(|id| *id != u32::MAX);
        Some(Owner {
            uid: id(self.ids.0)?,
            gid: id(self.ids.1)?,
        })
    }

    /// The device number; `None` when it does not fit Linux's 12 and 20 bits, which the kernel would cut silently.
    pub fn rdev(&self) -> Option<Rdev> {
        let fit = |n, bits: u32| u32::try_from(n).ok().filter(|n| *n < 1 << bits);
        Some(Rdev {
            major: fit(self.device.0, 12)?,
            minor: fit(self.device.1, 20)?,
        })
    }
}

/// Whether all bytes are zero, as in the blocks that end an archive.
pub(super) fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|b| *b == 0)
}

/// What is wrong with a first block that is no header, in words.
pub(super) fn describe_garbage(block: &[u8]) -> String {
    const MAGIC: [(&[u8], &str); 5] = [
        (b"\x1f\x8b", "gzip"),
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\x04\x22\x4d\x18", "lz4"),
    ];
    match MAGIC.iter().find(|(magic, _)| block.starts_with(magic)) {
        Some((_, name)) => format!("{name}-compressed data; layers are applied uncompressed"),
        None => "not a tar header (the checksum does not match)".to_string(),
    }
}

/// Whether the header's checksum holds. Old tars summed signed bytes; both sums are taken.
pub(crate) fn checksum_holds(block: &[u8; BLOCK]) -> bool {
    let Ok(Some(written)) = number(&block[148..156]) else {
        return false;
    };
    let blanked = |i: usize, b: u8| if (148..156).contains(&i) { b' ' } else { b };
    let bytes = || block.iter().enumerate().map(|(i, b)| blanked(i, *b));
    let unsigned: i128 = bytes().map(i128::from).sum();
    let signed: i128 = bytes().map(|b| i128::from(b as i8)).sum();
    written == unsigned || written == signed
}

/// A numeric field: octal text, or base-256 (two's complement) when the top bit of the first byte is set. `None`: empty.
pub(super) fn number(field: &[u8]) -> Result<Option<i128>, ()> {
    if field.first().is_some_and(|b| b & 0x80 != 0) {
        let negative = field[0] & 0x40 != 0;
        let first = if negative {
            i128::from(field[0] as i8)
        } else {
            i128::from(field[0] & 0x7f)
        };
        // Twelve bytes at most: fits.
        let rest = field[1..].iter();
        return Ok(Some(rest.fold(first, |n, b| (n << 8) | i128::from(*b))));
    }
    let text = field.split(|b| *b == 0).find(|part| !part.is_empty());
    let text = text.unwrap_or_default().trim_ascii();
    if text.is_empty() {
        return Ok(None);
    }
    text.iter()
        .try_fold(0i128, |n, b| match b {
            b'0'..=b'7' => Ok((n << 3) | i128::from(b - b'0')),
            _ => Err(()),
        })
        .map(Some)
}

/// The bytes before the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// The name in the block: the prefix of a ustar (or star) header joined on.
pub(super) fn block_name(block: &[u8; BLOCK]) -> Vec<u8> {
    let header = tar::Header::from_byte_slice(block);
    let name = text(&header.as_old().name);
    let prefix = match header.as_ustar() {
        // Joerg Schilling's star keeps two times in the last bytes of the prefix.
        Some(_) if &block[508..] == b"tar\0" => text(&block[345..476]),
        Some(ustar) => text(&ustar.prefix),
        None => b"",
    };
    if prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

/// The fields of the block, before any override.
///
/// # Errors
/// Names the field that is not a number.
pub(super) fn parse(block: &[u8; BLOCK], offset: u64) -> Result<EntryHeader, String> {
    let old = tar::Header::from_byte_slice(block).as_old();
    let num = |what: &str, field: &[u8]| match number(field) {
        Ok(n) => Ok(n.unwrap_or(0)),
        Err(()) => Err(format!("the header's {what} is not a number")),
    };
    let name = block_name(block);
    let kind = match old.linkflag[0] {
        // The oldest tars know directories only by the slash.
        0 if name.ends_with(b"/") => EntryKind::Dir,
        0 | b'0' | b'S' => EntryKind::File,
        b'1' => EntryKind::Hardlink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::Char,
        b'4' => EntryKind::Block,
        b'5' => EntryKind::Dir,
        b'6' => EntryKind::Fifo,
        other => EntryKind::Other(other),
    };
    let size = num("size", &old.size)?;
    let size = u64::try_from(size)
        .map_err(|_| format!("the header's size {size} is not one that a file can have"))?;
    let device = match kind {
        EntryKind::Char | EntryKind::Block => (
            num("device major", &block[329..337])?,
            num("device minor", &block[337..345])?,
        ),
        _ => (0, 0),
    };
    let mtime = num("mtime", &old.mtime)?;
    Ok(EntryHeader {
        offset,
        name,
        kind,
        link: text(&old.linkname).to_vec(),
        mode: (num("mode", &old.mode)? & 0o7777) as u32,
        ids: (num("uid", &old.uid)?, num("gid", &old.gid)?),
        mtime: Timestamp {
            secs: i64::try_from(mtime)
                .map_err(|_| format!("the header's mtime {mtime} is out of range"))?,
            nanos: 0,
        },
        size,
        stored: size,
        device,
        xattrs: Vec::new(),
        sparse: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::octal(b"0000644\0", Ok(Some(0o644)))]
    #[case::spaces(b"   644 \0", Ok(Some(0o644)))]
    #[case::empty(b"\0\0\0\0\0\0\0\0", Ok(None))]
    #[case::blank(b"        ", Ok(None))]
    #[case::base256(b"\x80\0\0\0\0\0\x01\0", Ok(Some(256)))]
    #[case::base256_big(b"\x80\0\0\0\xff\xff\xff\xff", Ok(Some(0xffff_ffff)))]
    #[case::base256_negative(b"\xff\xff\xff\xff\xff\xff\xff\xfe", Ok(Some(-2)))]
    #[case::garbage(b"12x4567\0", Err(()))]
    #[case::minus(b"-000001\0", Err(()))]
    fn numbers(#[case] field: &[u8], #[case] expected: Result<Option<i128>, ()>) {
        assert_eq!(number(field), expected);
    }
}
