//! What can be wrong with an archive.

use std::io;

use rustix::io::Errno;

use crate::tree::TreePath;

/// An error of reading, applying or writing a layer archive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The stream is not a whole tar: garbage, a bad checksum, an end too early, or compressed data.
    #[error("the archive is corrupt at byte {offset}: {why}")]
    Corrupt {
        /// Offset in the stream, in bytes.
        offset: u64,
        /// What was found.
        why: String,
    },
    /// An entry would act outside the layer, or on the layer's root in a way that would lose it.
    #[error("the archive is refused: entry {name}: {why}")]
    Refused {
        /// The entry's name as it stands in the archive.
        name: TreePath,
        /// Why it cannot be applied.
        why: String,
    },
    /// A system call failed on an entry.
    #[error("{op} {path}: {source}")]
    Io {
        /// What was being done.
        op: &'static str,
        /// On which path of the layer.
        path: TreePath,
        /// The errno.
        source: io::Error,
    },
    /// Reading the stream, or writing it, failed.
    #[error("the stream failed: {0}")]
    Stream(io::Error),
    /// tar-split metadata does not fit the layer.
    #[error("tar-split: {0}")]
    Split(String),
}

impl Error {
    /// Wraps a failed system call on an entry.
    pub fn io(op: &'static str, path: &TreePath, source: impl Into<io::Error>) -> Self {
        Self::Io {
            op,
            path: path.clone(),
            source: source.into(),
        }
    }

    /// Whether the disk is at fault, not the archive: it is full, read-only or failing.
    pub fn is_of_the_disk(&self) -> bool {
        let of_the_disk = [Errno::NOSPC, Errno::DQUOT, Errno::ROFS, Errno::IO];
        match self {
            Self::Io { source, .. } => {
                Errno::from_io_error(source).is_some_and(|e| of_the_disk.contains(&e))
            }
            _ => false,
        }
    }

    /// Wraps a failure of the stream; an archive error that another reader of this module wrapped comes out as it was.
    pub fn stream(e: io::Error) -> Self {
        match e.downcast::<Self>() {
            Ok(inner) => inner,
            Err(e) => Self::Stream(e),
        }
    }

    /// An entry that is refused.
    pub fn refused(name: &[u8], why: impl Into<String>) -> Self {
        Self::Refused {
            name: TreePath(name.to_vec()),
            why: why.into(),
        }
    }
}
