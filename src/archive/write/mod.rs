//! Writing a layer as a tar, pulled by its reader.

mod body;
mod header;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::hash_map::Entry as MapEntry;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Statx};
use rustix::io::Errno;

use super::compare::open_file;
use super::form::{Form, WHITEOUT};
use super::walk::{self, Dirs, InodeKey, file_type, inode};
use super::{Change, ChangeKind, Error, IdMaps, Unmapped, layer_changes, xattrs};
use crate::sys::xattr;
use crate::tree::{Owner, Rdev, Timestamp, TreePath};
use body::Body;
pub use body::FileRun;
use header::{BLOCK, EntryKind, Header};
pub(super) use header::{pax_record, put_octal};
use plan::Tour;

/// How a layer is written.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Owners are written as they are inside these maps.
    pub id_maps: IdMaps,
}

/// A layer as an uncompressed tar in the AUFS whiteout convention, made as it is read; memory does not depend on the size of files.
///
/// Entries stand in the order of a walk that takes names in byte order (a deletion at the name it deletes), so equal content gives equal
/// bytes whatever driver keeps it, and extractors that set a directory's time when they leave it get it right. Directories end
/// in `/` and come before what they hold; names of one inode become hard links to the first of them; sockets, which tar does not know, are
/// left out (in the place of something else, one is a deletion), and so is what vanished meanwhile. A file that shrinks while it is read is filled with zeros. Headers are ustar,
/// with PAX records for what that cannot hold: long or non-ASCII names, large numbers, fractions of seconds, attributes.
/// Deletions are empty files `.wh.NAME` of mode 0, owner 0:0 and time 0.
///
/// An error of the layer comes out of `read` as an [`io::Error`] that holds an [`Error`]; reading on gives it no more entries.
#[derive(Debug)]
pub struct LayerStream {
    dirs: Dirs,
    source: Source,
    options: WriteOptions,
    /// Bytes made and not yet read.
    ready: Vec<u8>,
    read: usize,
    body: Option<Body>,
    /// Inodes with several names: the name written first, and how many are still to come.
    links: HashMap<InodeKey, (TreePath, u32)>,
    state: State,
}

#[derive(Debug)]
enum Source {
    Changes(std::vec::IntoIter<Change>),
    Whole(Tour),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Entries,
    Ended,
    Failed,
}

/// How much is made ahead of the reader.
const AHEAD: usize = 32 * 1024;
/// Files up to this size are made ahead like headers.
const SMALL: u64 = 16 * 1024;

impl LayerStream {
    /// The changes as they stand below `root`. Directories around a change are written too, and so are the unchanged names of an
    /// inode that also has a changed one, so that the link is kept by who applies the stream.
    ///
    /// # Errors
    /// A changed entry cannot be looked up.
    pub fn from_changes(
        root: BorrowedFd<'_>,
        changes: Vec<Change>,
        options: WriteOptions,
    ) -> Result<Self, Error> {
        let mut dirs = Dirs::new(root).map_err(open_failed)?;
        let changes = plan::complete(&mut dirs, changes)?;
        Ok(Self::new(
            dirs,
            Source::Changes(changes.into_iter()),
            options,
        ))
    }

    /// Everything below `root`, which itself is not written.
    ///
    /// # Errors
    /// The root cannot be read.
    pub fn full(root: BorrowedFd<'_>, options: WriteOptions) -> Result<Self, Error> {
        let dirs = Dirs::new(root).map_err(open_failed)?;
        let tour = Tour::new(dirs.root()).map_err(|e| open_failed(e.into()))?;
        Ok(Self::new(dirs, Source::Whole(tour), options))
    }

    /// The changes that a driver keeps in `upper` over `lowers` (the nearest first), without a look at the mounted trees. The stream is
    /// the one that comparing those would give: an opaque directory becomes the deletions it stands for.
    ///
    /// # Errors
    /// As [`layer_changes`].
    pub fn from_upper(
        upper: BorrowedFd<'_>,
        lowers: &[BorrowedFd<'_>],
        form: Form,
        options: WriteOptions,
    ) -> Result<Self, Error> {
        Self::from_changes(upper, layer_changes(upper, lowers, form)?, options)
    }

    fn new(dirs: Dirs, source: Source, options: WriteOptions) -> Self {
        Self {
            dirs,
            source,
            options,
            ready: Vec::with_capacity(AHEAD + SMALL as usize + 4 * BLOCK),
            read: 0,
            body: None,
            links: HashMap::new(),
            state: State::Entries,
        }
    }

    /// The data of a file that comes next, where that is what comes next and is in the file; `None` says to read on, no more.
    pub fn run(&mut self) -> Option<FileRun<'_>> {
        if self.read < self.ready.len() {
            return None;
        }
        self.body.as_mut()?.run()
    }

    /// Makes at least one more byte ready, unless the end is reached or a body follows.
    fn prepare(&mut self) -> Result<(), Error> {
        self.ready.clear();
        self.read = 0;
        while self.state == State::Entries && self.body.is_none() && self.ready.len() < AHEAD {
            if !self.next_entry()? {
                self.ready.resize(self.ready.len() + 2 * BLOCK, 0);
                self.state = State::Ended;
            }
        }
        Ok(())
    }

    fn next_entry(&mut self) -> Result<bool, Error> {
        let (path, kind, deleted) = match &mut self.source {
            Source::Changes(changes) => match changes.next() {
                Some(c) => (c.path, FileType::Unknown, c.kind == ChangeKind::Delete),
                None => return Ok(false),
            },
            Source::Whole(tour) => match tour.next(self.dirs.root())? {
                Some((path, kind)) => (path, kind, false),
                None => return Ok(false),
            },
        };
        if path.base().starts_with(WHITEOUT) {
            let why = "a name that begins with `.wh.` would be read as a deletion".into();
            return Err(Error::Refused { name: path, why });
        }
        if deleted {
            self.whiteout(&path)?;
        } else {
            self.entry(path, kind)?;
        }
        Ok(true)
    }

    fn whiteout(&mut self, path: &TreePath) -> Result<(), Error> {
        let name = [WHITEOUT, path.base()].concat();
        let name = path.parent().unwrap_or_default().join(&name);
        let header = Header {
            path: name.as_bytes(),
            kind: EntryKind::File(0),
            mode: 0,
            owner: Owner::default(),
            mtime: Timestamp::default(),
            xattrs: &BTreeMap::new(),
        };
        header::append(&mut self.ready, &header).map_err(|why| Error::Refused { name, why })
    }

    fn entry(&mut self, path: TreePath, listed: FileType) -> Result<(), Error> {
        let dir = match &mut self.source {
            Source::Changes(_) => self.dirs.parent(&path),
            Source::Whole(tour) => tour.dir(self.dirs.root()),
        };
        let found = CString::new(path.base())
            .map_err(|_| Errno::INVAL)
            .and_then(|name| Found::read(dir?, &name, listed));
        let Some(found) = found
            .map_err(|e| Error::io("read", &path, e))
            .or_else(vanished)?
        else {
            return Ok(());
        };
        let Found {
            st,
            kind,
            file,
            target,
            mut xattrs,
        } = found;
        let owner = self.map(
            &path,
            Owner {
                uid: st.stx_uid,
                gid: st.stx_gid,
            },
        )?;
        for (name, value) in &mut xattrs {
            self.convert(&path, name, value)?;
        }
        let device = Rdev {
            major: st.stx_rdev_major,
            minor: st.stx_rdev_minor,
        };
        let first = self.first_name(&path, &st);
        let entry_kind = match (&first, kind) {
            (Some(first), _) => EntryKind::Hardlink(first.as_bytes()),
            (None, FileType::RegularFile) => EntryKind::File(st.stx_size),
            (None, FileType::Directory) => EntryKind::Dir,
            (None, FileType::Symlink) => EntryKind::Symlink(&target),
            (None, FileType::CharacterDevice) => EntryKind::Char(device),
            (None, FileType::BlockDevice) => EntryKind::Block(device),
            (None, _) => EntryKind::Fifo,
        };
        let header = Header {
            path: path.as_bytes(),
            kind: entry_kind,
            mode: u32::from(st.stx_mode),
            owner,
            mtime: walk::mtime(&st),
            xattrs: &xattrs,
        };
        header::append(&mut self.ready, &header).map_err(|why| Error::Refused {
            name: path.clone(),
            why,
        })?;
        match file {
            Some(file) if matches!(entry_kind, EntryKind::File(_)) && st.stx_size > 0 => {
                self.content(path, file, &st)
            }
            _ => Ok(()),
        }
    }

    fn content(&mut self, path: TreePath, file: OwnedFd, st: &Statx) -> Result<(), Error> {
        let mut body = Body::new(path, file, st);
        if body.size > SMALL {
            self.body = Some(body);
            return Ok(());
        }
        self.ready.resize(self.ready.len() + body.size as usize, 0);
        while body.left() > 0 {
            let at = self.ready.len() - body.left() as usize;
            body.read(&mut self.ready[at..])?;
        }
        header::pad(&mut self.ready, body.size);
        Ok(())
    }

    /// The name written before for the same inode; remembers this one when there will be others.
    fn first_name(&mut self, path: &TreePath, st: &Statx) -> Option<TreePath> {
        if st.stx_nlink < 2 || file_type(st) == FileType::Directory {
            return None;
        }
        match self.links.entry(inode(st)) {
            MapEntry::Vacant(slot) => {
                slot.insert((path.clone(), st.stx_nlink - 1));
                None
            }
            MapEntry::Occupied(mut slot) => {
                slot.get_mut().1 -= 1;
                Some(if slot.get().1 == 0 {
                    slot.remove().0
                } else {
                    slot.get().0.clone()
                })
            }
        }
    }

    fn map(&self, path: &TreePath, owner: Owner) -> Result<Owner, Error> {
        self.options
            .id_maps
            .to_container(owner)
            .map_err(|e| unmapped(path, e))
    }

    /// Puts an attribute into the form it has in archives.
    fn convert(&self, path: &TreePath, name: &[u8], value: &mut Vec<u8>) -> Result<(), Error> {
        match name {
            b"security.capability" => xattrs::to_capability_v2(value),
            b"system.posix_acl_access" | b"system.posix_acl_default"
                if !self.options.id_maps.is_identity() =>
            {
                xattrs::map_acl(value, &self.options.id_maps).map_err(|e| unmapped(path, e))?;
            }
            _ => {}
        }
        Ok(())
    }
}

fn unmapped(path: &TreePath, e: Unmapped) -> Error {
    Error::io("map the owner of", path, io::Error::other(e))
}

fn open_failed(e: io::Error) -> Error {
    Error::io("open", &TreePath::root(), e)
}

/// Turns the errors of an entry that is no longer there into "nothing".
fn vanished(error: Error) -> Result<Option<Found>, Error> {
    match &error {
        Error::Io { source, .. }
            if matches!(
                walk::errno(source),
                Errno::NOENT | Errno::NOTDIR | Errno::LOOP
            ) =>
        {
            Ok(None)
        }
        _ => Err(error),
    }
}

/// What the filesystem says about an entry.
struct Found {
    st: Statx,
    kind: FileType,
    /// Open, when it is a regular file.
    file: Option<OwnedFd>,
    /// Of a symbolic link.
    target: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Found {
    /// `None` for what no archive holds. What is listed as a regular file is opened at once, which saves looking its name up twice.
    fn read(
        dir: BorrowedFd<'_>,
        name: &CStr,
        listed: FileType,
    ) -> rustix::io::Result<Option<Self>> {
        if listed == FileType::RegularFile {
            let file = open_file(dir, name)?;
            let st = walk::stat_open(file.as_fd())?;
            if file_type(&st) == FileType::RegularFile {
                return Self::file(st, file).map(Some);
            }
        }
        let st = walk::stat(dir, name)?;
        let kind = file_type(&st);
        let mut found = Self {
            st,
            kind,
            file: None,
            target: Vec::new(),
            xattrs: BTreeMap::new(),
        };
        match kind {
            FileType::Socket | FileType::Unknown => return Ok(None),
            FileType::RegularFile => return Self::file(st, open_file(dir, name)?).map(Some),
            FileType::Symlink => {
                found.target = rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes();
            }
            _ => {}
        }
        found.xattrs = xattr::visible(dir, name).map_err(|e| walk::errno(&e))?;
        Ok(Some(found))
    }

    fn file(st: Statx, file: OwnedFd) -> rustix::io::Result<Self> {
        let xattrs = xattr::visible(file.as_fd(), c"").map_err(|e| walk::errno(&e))?;
        Ok(Self {
            st,
            kind: FileType::RegularFile,
            file: Some(file),
            target: Vec::new(),
            xattrs,
        })
    }
}

impl Read for LayerStream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            let ready = &self.ready[self.read..];
            if !ready.is_empty() {
                let n = ready.len().min(out.len());
                out[..n].copy_from_slice(&ready[..n]);
                self.read += n;
                return Ok(n);
            }
            let step = match &mut self.body {
                Some(body) if body.left() > 0 => body.read(out),
                Some(body) => {
                    self.ready.clear();
                    self.read = 0;
                    header::pad(&mut self.ready, body.size);
                    self.body = None;
                    continue;
                }
                None => match self.state {
                    State::Ended => return Ok(0),
                    State::Failed => return Err(io::Error::other("the layer could not be read")),
                    State::Entries => self.prepare().map(|()| 0),
                },
            };
            match step {
                Ok(0) => {}
                Ok(n) => return Ok(n),
                Err(error) => {
                    self.state = State::Failed;
                    self.body = None;
                    self.ready.clear();
                    self.read = 0;
                    return Err(io::Error::other(error));
                }
            }
        }
    }
}
