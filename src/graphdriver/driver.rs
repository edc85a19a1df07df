//! The traits.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

pub use crate::archive::{Change, ChangeKind, FileRun};

use super::{Capabilities, Result};
use crate::archive::LayerStream;
use crate::tree::Timestamp;

/// What a create call may ask for beyond id and parent (moby's `CreateOpts`, 1.13 and later).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateOpts {
    /// SELinux label for the mount; empty: none.
    pub mount_label: String,
    /// Per-layer options; the only key any driver knows is `size`. Keys are compared case-insensitively.
    pub storage_opt: BTreeMap<String, String>,
}

/// The minimum that a driver is. Ids are opaque strings; a driver validates each with [`super::LayerId::parse`] before it
/// touches a path. `parent: None` is a layer without parent.
///
/// All calls may come from several threads at once.
pub trait ProtoDriver: Send + Sync + fmt::Debug {
    /// The registered name, constant for the life of the driver.
    fn name(&self) -> &str;

    /// Makes a layer to be filled by one `apply_diff` and then only read (an image layer), showing the parent's content.
    ///
    /// # Errors
    /// The parent does not exist, the id exists already or is not valid, an option is not known; nothing is changed then.
    fn create(&self, id: &str, parent: Option<&str>, opts: &CreateOpts) -> Result<()>;

    /// Makes a layer that a container writes to. Differs from [`ProtoDriver::create`] in the options it takes (`size`).
    ///
    /// # Errors
    /// As [`ProtoDriver::create`].
    fn create_read_write(&self, id: &str, parent: Option<&str>, opts: &CreateOpts) -> Result<()>;

    /// Deletes a layer with all it holds, unmounting it first. An id that does not exist is success.
    ///
    /// # Errors
    /// The id is not valid, or the layer could not be removed whole.
    fn remove(&self, id: &str) -> Result<()>;

    /// Mounts the layer if need be, counts the use, and returns the absolute path of its root.
    ///
    /// # Errors
    /// No such layer, or it cannot be mounted; the count is as before then.
    fn get(&self, id: &str, mount_label: &str) -> Result<PathBuf>;

    /// Gives one `get` back; the last one unmounts. Without a `get` it does nothing.
    ///
    /// # Errors
    /// The mount could not be given back.
    fn put(&self, id: &str) -> Result<()>;

    /// Whether the layer exists. An id that is not valid does not exist.
    fn exists(&self, id: &str) -> bool;

    /// Key-value pairs on the driver itself, in a fixed order.
    fn status(&self) -> Vec<(String, String)>;

    /// Key-value pairs on a layer (`LowerDir`, `UpperDir`, ...); `None` when the driver has none to give.
    ///
    /// # Errors
    /// No such layer.
    fn metadata(&self, id: &str) -> Result<Option<BTreeMap<String, String>>>;

    /// Releases everything that the driver holds (mounts), not the layers. May be called twice.
    ///
    /// # Errors
    /// Something could not be released.
    fn cleanup(&self) -> Result<()>;

    /// What this driver claims; scenarios that need more are skipped with the reason.
    fn capabilities(&self) -> Capabilities;

    /// For a layer that began as a copy of `parent`: when the copy was complete, on the clock of its filesystem, as
    /// [`crate::archive::ChangesOptions::settled`] wants it. A hint that spares the naive diff reading what nobody touched; `None` is always right.
    fn settled(&self, _id: &str, _parent: &str) -> Option<Timestamp> {
        None
    }

    /// For the open roots of two layers of which one began as a snapshot of the other: the inodes that may differ, as
    /// [`crate::archive::ChangesOptions::touched`] wants them. A hint that spares the naive diff walking what nobody touched; `None` is
    /// always right.
    fn touched(&self, _new: BorrowedFd<'_>, _old: BorrowedFd<'_>) -> Option<HashSet<u64>> {
        None
    }
}

/// A diff being read: an uncompressed tar in the AUFS whiteout convention. Dropping it releases what it holds.
pub type DiffStream = Box<dyn DiffRead>;

/// What a diff is read from. A reader that wraps another one has every byte go through itself, unless it hands runs on.
pub trait DiffRead: Read + Send {
    /// The data of a file that comes next, where that is what comes next, for a caller that can pass it on without reading it. Not
    /// asking for it is always right: what was not taken of it is read.
    fn run(&mut self) -> Option<FileRun<'_>> {
        None
    }
}

impl DiffRead for LayerStream {
    fn run(&mut self) -> Option<FileRun<'_>> {
        Self::run(self)
    }
}

/// A diff that is in memory.
impl DiffRead for io::Cursor<Vec<u8>> {}

/// A diff that is in a file: an archive is bytes of it, but where it ends is for reading to find.
impl DiffRead for File {}

/// A driver whole.
pub trait Driver: ProtoDriver {
    /// The changes of `id` against `parent` as a tar; with no parent, the whole content. `parent` need not be the direct parent.
    ///
    /// # Errors
    /// A layer does not exist or cannot be read.
    fn diff(&self, id: &str, parent: Option<&str>) -> Result<DiffStream>;

    /// The changes of `id` against `parent`, sorted by path, no path twice, never the root. With no parent all are `Add`.
    ///
    /// # Errors
    /// A layer does not exist or cannot be read.
    fn changes(&self, id: &str, parent: Option<&str>) -> Result<Vec<Change>>;

    /// Applies an uncompressed tar to the layer and reads the stream to its end. Returns the size in bytes of what the layer
    /// now holds by itself: apparent sizes of non-directories, every inode once.
    ///
    /// # Errors
    /// The archive is corrupt, cut short, compressed or leaves the layer; the layer may then hold a part of it and is to be removed.
    fn apply_diff(&self, id: &str, parent: Option<&str>, diff: &mut dyn Read) -> Result<u64>;

    /// The size in bytes of the changes of `id` against `parent`: apparent sizes of added and modified non-directories,
    /// every inode once.
    ///
    /// # Errors
    /// A layer does not exist or cannot be read.
    fn diff_size(&self, id: &str, parent: Option<&str>) -> Result<u64>;

    /// Random access to the files of a layer's diff, where the driver has it natively. Callers without it `get` the layer.
    fn diff_getter(&self) -> Option<&dyn DiffGetter> {
        None
    }
}

/// moby's `DiffGetterDriver`: gives the files that tar-split needs to rebuild a layer's archive.
pub trait DiffGetter {
    /// Opens the layer for random access.
    ///
    /// # Errors
    /// No such layer.
    fn diff_getter(&self, id: &str) -> Result<Box<dyn FileGetCloser>>;
}

/// Random access to files by the name they have in the layer's archive (moby's `FileGetCloser`). Dropping it closes.
pub trait FileGetCloser: Send {
    /// Opens a regular file; the name is taken relative to the layer's root and never leaves it; a symbolic link is not followed.
    ///
    /// # Errors
    /// No such file, or not a regular one.
    fn get(&self, name: &[u8]) -> io::Result<Box<dyn Read + Send>>;
}
