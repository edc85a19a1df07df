//! Scanning a directory into a [`Tree`]: one getdents pass per directory, one statx per entry, everything by descriptor.

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::{Content, Entry, Kind, Owner, Rdev, Timestamp, Tree, TreePath};
use crate::sys::{fs, xattr};

/// What a scan reads.
#[derive(Clone, Debug)]
pub struct ScanOptions {
    /// Read and digest the contents of regular files; without it, they are `None`.
    pub contents: bool,
    /// Read extended attributes; without it, they are `None`.
    pub xattrs: bool,
    /// Names right below the root that are not part of the tree, such as `lost+found`.
    pub skip_at_root: Vec<Vec<u8>>,
}

impl Default for ScanOptions {
    /// Everything, but for `lost+found`, which mkfs puts into the root of a filesystem.
    fn default() -> Self {
        Self {
            contents: true,
            xattrs: true,
            skip_at_root: vec![b"lost+found".to_vec()],
        }
    }
}

/// Scans the directory `root` with everything below it. Directories on which something is mounted are listed, not entered. Every attribute is `Some`,
/// but for what the options leave out; times keep their nanoseconds; [`Entry::link`] tells hard-linked names; attributes of the
/// overlay filesystem itself are left out.
///
/// # Errors
/// The first errno, with the path it was met at in the text.
pub fn scan(root: BorrowedFd<'_>, options: &ScanOptions) -> io::Result<Tree> {
    let mut scanner = Scanner {
        options,
        tree: Tree::default(),
        links: HashMap::new(),
        next_link: 0,
    };
    let own = fs::open_beneath(root, b"", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    let entry = scanner
        .entry(own.as_fd(), &CString::default())
        .map_err(|e| at(e, &TreePath::root()))?;
    scanner.tree.entries.insert(TreePath::root(), entry);
    // Depth first, with one descriptor open at a time: a deep tree must not run out of descriptors.
    let mut pending = Vec::new();
    scanner.directory(&own, &TreePath::root(), &mut pending)?;
    drop(own);
    while let Some(path) = pending.pop() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        match fs::open_beneath(root, path.as_bytes(), flags, Mode::empty()) {
            Ok(dir) => scanner.directory(&dir, &path, &mut pending)?,
            Err(e) if Errno::from_io_error(&e) == Some(Errno::XDEV) => {}
            Err(e) => return Err(at(e, &path)),
        }
    }
    Ok(scanner.tree)
}

/// [`scan`] of the directory at `path`.
///
/// # Errors
/// Those of [`scan`].
pub fn scan_path(path: &std::path::Path, options: &ScanOptions) -> io::Result<Tree> {
    let root = rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    scan(root.as_fd(), options)
}

fn at(e: io::Error, path: &TreePath) -> io::Error {
    io::Error::new(e.kind(), format!("{path}: {e}"))
}

struct Scanner<'a> {
    options: &'a ScanOptions,
    tree: Tree,
    /// Link numbers of the inodes with more than one name.
    links: HashMap<(u32, u32, u64), u64>,
    next_link: u64,
}

impl Scanner<'_> {
    fn directory(
        &mut self,
        dir: &OwnedFd,
        path: &TreePath,
        pending: &mut Vec<TreePath>,
    ) -> io::Result<()> {
        let names = fs::sorted_names(dir.as_fd()).map_err(|e| at(e, path))?;
        for name in &names {
            if path.is_root()
                && self
                    .options
                    .skip_at_root
                    .iter()
                    .any(|skip| skip == name.to_bytes())
            {
                continue;
            }
            let child = path.join(name.to_bytes());
            let entry = self.entry(dir.as_fd(), name).map_err(|e| at(e, &child))?;
            if entry.kind == Kind::Dir {
                pending.push(child.clone());
            }
            self.tree.entries.insert(child, entry);
        }
        Ok(())
    }

    /// `name` in `dir`; the empty name is `dir` itself.
    fn entry(&mut self, dir: BorrowedFd<'_>, name: &CString) -> io::Result<Entry> {
        let mut flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        if name.is_empty() {
            flags |= AtFlags::EMPTY_PATH;
        }
        let st = rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS)?;
        let kind = self.kind(dir, name, &st)?;
        let xattrs = if self.options.xattrs {
            Some(xattr::visible(dir, name)?)
        } else {
            None
        };
        let link = self.link(&st, kind == Kind::Dir);
        Ok(Entry {
            kind,
            mode: Some(u32::from(st.stx_mode) & 0o7777),
            owner: Some(Owner {
                uid: st.stx_uid,
                gid: st.stx_gid,
            }),
            mtime: Some(Timestamp {
                secs: st.stx_mtime.tv_sec,
                nanos: st.stx_mtime.tv_nsec,
            }),
            xattrs,
            link: Some(link),
        })
    }

    fn kind(&self, dir: BorrowedFd<'_>, name: &CString, st: &Statx) -> io::Result<Kind> {
        let rdev = Rdev {
            major: st.stx_rdev_major,
            minor: st.stx_rdev_minor,
        };
        Ok(match FileType::from_raw_mode(u32::from(st.stx_mode)) {
            FileType::Directory => Kind::Dir,
            FileType::RegularFile if !self.options.contents => Kind::File(None),
            FileType::RegularFile => Kind::File(Some(content(dir, name, st)?)),
            FileType::Symlink => {
                Kind::Symlink(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes())
            }
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::CharacterDevice => Kind::Char(rdev),
            FileType::BlockDevice => Kind::Block(rdev),
            other => {
                return Err(io::Error::other(format!(
                    "a file of unknown type {other:?}"
                )));
            }
        })
    }

    fn link(&mut self, st: &Statx, is_dir: bool) -> u64 {
        let fresh = self.next_link;
        self.next_link += 1;
        // A directory's link count says nothing about names.
        if is_dir || st.stx_nlink < 2 {
            return fresh;
        }
        let key = (st.stx_dev_major, st.stx_dev_minor, st.stx_ino);
        *self.links.entry(key).or_insert(fresh)
    }
}

fn content(dir: BorrowedFd<'_>, name: &CString, st: &Statx) -> io::Result<Content> {
    if st.stx_size == 0 {
        return Ok(Content::of_bytes(b""));
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOATIME;
    let file = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        // O_NOATIME is for the owner; to look must work for others too.
        Err(Errno::PERM) => rustix::fs::openat(dir, name, flags - OFlags::NOATIME, Mode::empty())?,
        other => other?,
    };
    let sparse = st.stx_blocks.saturating_mul(512) < st.stx_size;
    Content::of_file(file.as_fd(), st.stx_size, sparse)
}
