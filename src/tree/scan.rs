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
    /// Regular files of which neither content nor time is looked at.
    pub unread: Vec<TreePath>,
}

impl Default for ScanOptions {
    /// Everything, but for `lost+found`, which mkfs puts into the root of a filesystem.
    fn default() -> Self {
        Self {
            contents: true,
            xattrs: true,
            skip_at_root: vec![b"lost+found".to_vec()],
            unread: Vec::new(),
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
        .entry(own.as_fd(), &CString::default(), true)
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
            let read = !self.options.unread.contains(&child);
            let entry = self
                .entry(dir.as_fd(), name, read)
                .map_err(|e| at(e, &child))?;
            if entry.kind == Kind::Dir {
                pending.push(child.clone());
            }
            self.tree.entries.insert(child, entry);
        }
        Ok(())
    }

    /// `name` in `dir`; the empty name is `dir` itself.
    fn entry(&mut self, dir: BorrowedFd<'_>, name: &CString, read: bool) -> io::Result<Entry> {
        let mut flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        if name.is_empty() {
            flags |= AtFlags::EMPTY_PATH;
        }
        let st = rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS)?;
        let kind = self.kind(dir, name, &st, read && self.options.contents)?;
        let read = read || !matches!(kind, Kind::File(_));
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
            mtime: read.then_some(Timestamp {
                secs: st.stx_mtime.tv_sec,
                nanos: st.stx_mtime.tv_nsec,
            }),
            xattrs,
            link: Some(link),
        })
    }

    fn kind(
        &self,
        dir: BorrowedFd<'_>,
        name: &CString,
        st: &Statx,
        read: bool,
    ) -> io::Result<Kind> {
        let rdev = Rdev {
            major: st.stx_rdev_major,
            minor: st.stx_rdev_minor,
        };
        Ok(match FileType::from_raw_mode(u32::from(st.stx_mode)) {
            FileType::Directory => Kind::Dir,
            FileType::RegularFile if !read => Kind::File(None),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{mount, ns, ptrace};
    use std::path::Path;

    fn needs_root() {
        assert!(
            rustix::process::geteuid().is_root(),
            "needs root: sudo -E cargo test"
        );
    }

    #[test]
    fn what_is_not_the_layers_own_is_left_out() {
        needs_root();
        let tmp = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(tmp.path().join("d/lost+found")).expect("mkdir");
        std::fs::create_dir(tmp.path().join("lost+found")).expect("mkdir");
        let dir = std::fs::File::open(tmp.path()).expect("open");
        for key in [
            c"trusted.overlay.opaque",
            c"user.overlay.origin",
            c"trusted.mine",
        ] {
            xattr::set(dir.as_fd(), c"d", key, b"y").expect("setxattr");
        }
        let tree = scan(dir.as_fd(), &ScanOptions::default()).expect("scan");
        let paths: Vec<String> = tree.entries.keys().map(ToString::to_string).collect();
        assert_eq!(paths, ["/", "d", "d/lost+found"]);
        let xattrs = tree.entries[&TreePath(b"d".to_vec())].xattrs.clone();
        let names: Vec<_> = xattrs.expect("scanned").into_keys().collect();
        assert_eq!(names, [b"trusted.mine"]);
        let bare = ScanOptions {
            contents: false,
            xattrs: false,
            skip_at_root: Vec::new(),
            unread: vec![],
        };
        let tree = scan(dir.as_fd(), &bare).expect("scan");
        assert_eq!(tree.entries.len(), 4);
        assert!(tree.entries.values().all(|e| e.xattrs.is_none()));
        std::fs::write(tmp.path().join("d/f"), "x").expect("write");
        let unread = TreePath(b"d/f".to_vec());
        let without = ScanOptions {
            unread: vec![unread.clone(), TreePath(b"d".to_vec())],
            ..ScanOptions::default()
        };
        let tree = scan(dir.as_fd(), &without).expect("scan");
        assert_eq!(tree.entries[&unread].kind, Kind::File(None));
        assert!(tree.entries[&unread].mtime.is_none());
        assert!(tree.entries[&TreePath(b"d".to_vec())].mtime.is_some());
    }

    #[test]
    fn a_mount_below_is_listed_and_not_entered() {
        needs_root();
        let tmp = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(tmp.path().join("m")).expect("mkdir");
        let outcome = ptrace::in_child(|| {
            ns::enter_private_mount_ns().expect("a mount namespace");
            let m = tmp.path().join("m");
            mount::mount(Path::new("t"), &m, "tmpfs", mount::MountFlags::empty(), b"")
                .expect("tmpfs");
            std::fs::write(m.join("inside"), "x").expect("write");
            let below = scan_path(tmp.path(), &ScanOptions::default()).expect("scan");
            let inside = scan_path(&m, &ScanOptions::default()).expect("scan");
            i32::from((below.entries.len(), inside.entries.len()) != (2, 2))
        });
        assert_eq!(outcome.expect("fork"), ptrace::Outcome::Exited(0));
    }

    #[test]
    fn a_tree_deeper_than_a_path_may_be_is_scanned() {
        let tmp = tempfile::tempdir().expect("a directory");
        let name = "d".repeat(100);
        let mut at = rustix::fs::open(tmp.path(), OFlags::PATH, Mode::empty()).expect("open");
        for _ in 0..100 {
            rustix::fs::mkdirat(&at, name.as_str(), Mode::RWXU).expect("mkdir");
            at = rustix::fs::openat(&at, name.as_str(), OFlags::PATH, Mode::empty()).expect("open");
        }
        let tree = scan_path(tmp.path(), &ScanOptions::default()).expect("scan");
        assert_eq!(tree.entries.len(), 101);
        assert!(tree.entries.keys().any(|p| p.0.len() == 100 * 101 - 1));
    }

    #[test]
    fn a_failure_names_the_path() {
        let tmp = tempfile::tempdir().expect("a directory");
        let file = tmp.path().join("f");
        std::fs::write(&file, "x").expect("write");
        let e = scan_path(&file, &ScanOptions::default()).expect_err("not a directory");
        assert_eq!(e.raw_os_error(), Some(nix::libc::ENOTDIR));
        assert!(
            at(e, &TreePath(b"a\xff".to_vec()))
                .to_string()
                .starts_with("a\\xff: ")
        );
    }
}
