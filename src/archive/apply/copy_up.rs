//! Taking over a file of the layers below, to give it a further name.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, Statx, chownat, makedev, mknodat, openat, readlinkat,
    symlinkat, utimensat,
};

use super::create::{chmod_node, gid, uid};
use super::fault::{On, Outcome, refused};
use super::{Applier, c_name, timestamps};
use crate::archive::walk::{file_type, mtime, open_dir};
use crate::sys::{copy::copy_contents, xattr};
use crate::tree::{Owner, TreePath};

impl Applier<'_> {
    /// Makes `path`, whose directory is there, as the layers below show it; `None` when they do not. Other names that the file has below
    /// are not taken along.
    pub(super) fn copy_up(&mut self, path: &TreePath) -> Outcome<Option<Stat>> {
        let Some((root, st)) = self.shown_below(path)? else {
            return Ok(None);
        };
        if file_type(&st) == FileType::Directory {
            return refused("a hard link to a directory");
        }
        let above = path.parent().unwrap_or_default();
        let from = open_dir(root, &above).on("open", &above)?;
        let to = self.dirs.open(&above).on("open", &above)?;
        let (from, to, base) = (from.as_fd(), to.as_fd(), c_name(path));
        copy_node(from, to, path, &base, &st)?;
        let owner = Owner {
            uid: st.stx_uid,
            gid: st.stx_gid,
        };
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        chownat(to, &base, uid(owner), gid(owner), nofollow).on("set owner of", path)?;
        for (name, value) in &xattr::visible(from, &base).on("read attributes of", path)? {
            self.set_xattr(to, &base, path, name, value)?;
        }
        let kind = file_type(&st);
        if kind != FileType::Symlink {
            let mode = u32::from(st.stx_mode) & 0o7777;
            chmod_node(to, &base, kind, mode).on("set mode of", path)?;
        }
        utimensat(to, &base, &timestamps(mtime(&st)), nofollow).on("set times of", path)?;
        self.stat(path)
    }
}

/// Makes a node with the content of another one, and no attributes yet.
fn copy_node(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    path: &TreePath,
    base: &CStr,
    st: &Statx,
) -> Outcome {
    match file_type(st) {
        FileType::RegularFile => {
            let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let source = openat(from, base, OFlags::RDONLY | flags, Mode::empty());
            let source = source.on("open", path)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | flags;
            let copy = openat(to, base, flags, Mode::RUSR | Mode::WUSR).on("create", path)?;
            copy_contents(source, copy).on("copy", path).map(drop)
        }
        FileType::Symlink => {
            let target = readlinkat(from, base, Vec::new()).on("read link", path)?;
            symlinkat(&target, to, base).on("create", path)
        }
        kind => {
            let device = makedev(st.stx_rdev_major, st.stx_rdev_minor);
            mknodat(to, base, kind, Mode::empty(), device).on("create", path)
        }
    }
}
