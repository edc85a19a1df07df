//! The values a tree is made of.

use std::collections::BTreeMap;
use std::fmt;

/// A path inside a tree: raw bytes, relative, no leading or trailing `/`, no `.` or `..` components; the root is empty.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreePath(pub Vec<u8>);

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Printable form: bytes that are not printable UTF-8 are shown as `\xHH`, the way scenario files write them; the root is `/`.
impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("/");
        }
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '\\' => f.write_str("\\\\")?,
                    c if c.is_control() => {
                        let mut buf = [0; 4];
                        for b in c.encode_utf8(&mut buf).bytes() {
                            write!(f, "\\x{b:02x}")?;
                        }
                    }
                    c => write!(f, "{c}")?,
                }
            }
            for b in chunk.invalid() {
                write!(f, "\\x{b:02x}")?;
            }
        }
        Ok(())
    }
}

impl TreePath {
    /// The root of a tree.
    pub fn root() -> Self {
        Self::default()
    }

    /// The bytes of the path.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The path with one more component.
    pub fn join(&self, name: &[u8]) -> Self {
        let mut v = self.0.clone();
        if !v.is_empty() {
            v.push(b'/');
        }
        v.extend_from_slice(name);
        Self(v)
    }

    /// The directory that holds this path; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.0.is_empty() {
            return None;
        }
        let cut = self.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
        Some(Self(self.0[..cut].to_vec()))
    }

    /// The last component; empty for the root.
    pub fn base(&self) -> &[u8] {
        match self.0.iter().rposition(|b| *b == b'/') {
            Some(i) => &self.0[i + 1..],
            None => &self.0,
        }
    }

    /// Whether `self` lies strictly below `dir`.
    pub fn is_below(&self, dir: &Self) -> bool {
        if dir.is_root() {
            return !self.is_root();
        }
        self.0.len() > dir.0.len() && self.0.starts_with(&dir.0) && self.0[dir.0.len()] == b'/'
    }
}

/// A point in time as the kernel keeps it: seconds since the epoch (may be negative) and nanoseconds `0..1e9`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub secs: i64,
    /// Nanoseconds past `secs`, always counted forward.
    pub nanos: u32,
}

/// Printed as a number of seconds with nine decimals.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.secs < 0 && self.nanos > 0 {
            let (secs, nanos) = (-(self.secs + 1), 1_000_000_000 - self.nanos);
            return write!(f, "-{secs}.{nanos:09}");
        }
        write!(f, "{}.{:09}", self.secs, self.nanos)
    }
}

/// A numeric owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// A device number, split as the kernel splits it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rdev {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// Digest of a file's content, see [`content::Hasher`](super::content::Hasher): SHA-256 in which zeros cost nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

/// A regular file's content, as far as it is needed to compare it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Apparent size in bytes (`st_size`).
    pub size: u64,
    /// Digest of all `size` bytes; a hole equals zeros.
    pub digest: Digest,
    /// The first bytes (at most 64), to be shown when two contents differ.
    pub head: Vec<u8>,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file; `None` content means "any" in a pattern.
    File(Option<Content>),
    /// A symbolic link and its target, byte for byte.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A unix socket.
    Socket,
    /// A character device.
    Char(Rdev),
    /// A block device.
    Block(Rdev),
}

/// One entry of a tree. In a scanned tree every attribute is `Some`; in an expected tree `None` means "not compared".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Type, with what belongs to the type alone.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky (`0o7777`). Never compared on symbolic links.
    pub mode: Option<u32>,
    /// Owner.
    pub owner: Option<Owner>,
    /// Modification time.
    pub mtime: Option<Timestamp>,
    /// Extended attributes that a user of the layer can see; overlayfs' own are never among them.
    pub xattrs: Option<BTreeMap<Vec<u8>, Vec<u8>>>,
    /// Names that are hard links of one inode share a number (the number itself has no meaning); `None`: not compared.
    /// A name that stands alone has a number of its own.
    pub link: Option<u64>,
}

/// A whole tree: every path below (and including) the root, in byte order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// The entries; the root has the empty path.
    pub entries: BTreeMap<TreePath, Entry>,
}
