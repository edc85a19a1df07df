//! Making entries and giving them their attributes.

use std::ffi::{CStr, CString};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Statx, Uid, chownat, fchmod, fchown, ftruncate, futimens,
    linkat, makedev, mkdirat, mknodat, openat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::fault::{Fault, On, Outcome, refused};
use super::{Applier, Below, Missing, c_name, timestamps};
use crate::archive::read::Reader;
use crate::archive::walk::open_dir;
use crate::archive::{EntryHeader, EntryKind, Error, Extent, names};
use crate::sys::copy::write_all_at;
use crate::sys::{fs as sysfs, xattr};
use crate::tree::{Owner, Rdev, TreePath};

/// Mode of directories that no entry names.
const IMPLIED_MODE: u32 = 0o755;

/// Runs of zeros of this many bytes (one filesystem block, usually) become holes.
const HOLE: usize = 4096;

/// How a directory is opened right after it was made.
const DIR_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

impl Applier<'_> {
    /// Makes what `entry` says at `name`.
    pub(super) fn create<R: Read>(
        &mut self,
        name: &TreePath,
        entry: &EntryHeader,
        reader: &mut Reader<R>,
    ) -> Outcome {
        let owner = self.owner(entry)?;
        let device = match entry.kind {
            EntryKind::Other(flag) => {
                let flag = TreePath(vec![flag]);
                return refused(format!("type flag {flag} is not one that a layer holds"));
            }
            EntryKind::Char | EntryKind::Block if self.options.in_userns => return Ok(()),
            EntryKind::Char | EntryKind::Block => self.device(entry)?,
            EntryKind::Symlink if entry.link.is_empty() || entry.link.contains(&0) => {
                return refused("a symbolic link's target is empty or holds NUL");
            }
            _ => Rdev::default(),
        };
        let Some(dir) = self.directory(&name.parent().unwrap_or_default(), Missing::Make)? else {
            return refused("its directory cannot be made");
        };
        let path = dir.join(name.base());
        let was_hidden = self.unhide(&path)?;
        match entry.kind {
            EntryKind::File => self.file(&path, entry, owner, reader)?,
            EntryKind::Dir => self.dir(&path, entry, owner, was_hidden)?,
            EntryKind::Hardlink => self.hardlink(&path, entry)?,
            _ => self.node(&path, entry, owner, device)?,
        }
        self.made.insert(self.key(&path));
        Ok(())
    }

    fn owner(&self, entry: &EntryHeader) -> Outcome<Owner> {
        let owner = entry.owner().ok_or_else(|| {
            Fault::Refused(format!(
                "{}:{} is not an owner that a file can have",
                entry.ids.0, entry.ids.1
            ))
        })?;
        self.options
            .id_maps
            .to_host(owner)
            .map_err(|e| Fault::Refused(e.to_string()))
    }

    fn device(&self, entry: &EntryHeader) -> Outcome<Rdev> {
        let (major, minor) = entry.device;
        let rdev = entry
            .rdev()
            .ok_or_else(|| Fault::Refused(format!("{major}:{minor} is not a device number")))?;
        // In every form, so that a layer means the same on every driver.
        if entry.kind == EntryKind::Char && rdev == Rdev::default() {
            return refused("a character device 0:0 is overlayfs' mark of a deletion");
        }
        Ok(rdev)
    }

    /// Runs `make` with the directory and the name; what stands there already is removed first.
    fn make<T>(
        &mut self,
        path: &TreePath,
        op: &'static str,
        make: impl Fn(BorrowedFd<'_>, &CStr) -> rustix::io::Result<T>,
    ) -> Outcome<T> {
        let base = c_name(path);
        match make(self.holder(path)?.as_fd(), &base) {
            Err(Errno::EXIST) => {}
            other => return other.on(op, path),
        }
        self.clear(path)?;
        make(self.holder(path)?.as_fd(), &base).on(op, path)
    }

    fn file<R: Read>(
        &mut self,
        path: &TreePath,
        entry: &EntryHeader,
        owner: Owner,
        reader: &mut Reader<R>,
    ) -> Outcome {
        // Without read or execute bits until it is whole, and never through a link or onto a FIFO: O_EXCL.
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = self.make(path, "create", |dir, base| {
            openat(dir, base, flags, Mode::RUSR | Mode::WUSR)
        })?;
        write_content(fd.as_fd(), path, entry, reader)?;
        self.applied.size += entry.size;
        let inherited = self.holder(path)?.hands_down_acl;
        let fd = fd.as_fd();
        fchown(fd, uid(owner), gid(owner)).on("set owner of", path)?;
        self.set_xattrs(fd, c"", path, entry, inherited)?;
        fchmod(fd, Mode::from(entry.mode)).on("set mode of", path)?;
        futimens(fd, &timestamps(entry.mtime)).on("set times of", path)
    }

    fn dir(
        &mut self,
        path: &TreePath,
        entry: &EntryHeader,
        owner: Owner,
        was_hidden: bool,
    ) -> Outcome {
        let base = c_name(path);
        let made = mkdirat(self.holder(path)?, &base, Mode::RWXU);
        let (mut fresh, mut opaque) = (true, was_hidden);
        match made {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                match openat(self.holder(path)?, &base, DIR_FLAGS, Mode::empty()) {
                    Ok(_) => fresh = false,
                    Err(Errno::NOTDIR | Errno::LOOP) => {
                        // What stood here hid the layers below, and goes on doing so.
                        self.clear(path)?;
                        opaque = true;
                        mkdirat(self.holder(path)?, &base, Mode::RWXU).on("create", path)?;
                    }
                    Err(e) => return Err(e).on("open", path),
                }
            }
            Err(e) => return Err(e).on("create", path),
        }
        let holder = self.holder(path)?;
        let replace = !fresh || holder.hands_down_acl;
        let fd = openat(holder, &base, DIR_FLAGS, Mode::empty()).on("open", path)?;
        fchown(&fd, uid(owner), gid(owner)).on("set owner of", path)?;
        self.set_xattrs(fd.as_fd(), c"", path, entry, replace)?;
        fchmod(&fd, Mode::from(entry.mode)).on("set mode of", path)?;
        self.dirs.adopt(path.clone(), fd);
        self.times.insert(path.clone(), entry.mtime);
        if opaque {
            self.mark_opaque(path)
        } else {
            Ok(())
        }
    }

    /// A directory that entries lie in but none names: as it is in the layers below, where one of them shows it.
    pub(super) fn implied_directory(&mut self, path: &TreePath, opaque: bool) -> Outcome {
        let opaque = self.unhide(path)? || opaque;
        let below = if opaque { None } else { self.below(path)? };
        let base = c_name(path);
        mkdirat(self.holder(path)?, &base, Mode::RWXU).on("create", path)?;
        self.reset_directory(path)?;
        if let Some(Below::Dir(root, st)) = below {
            self.copy_directory(path, root, &st)?;
        }
        if opaque {
            self.mark_opaque(path)
        } else {
            Ok(())
        }
    }

    /// Gives the directory `path` the attributes that it has below `root`.
    fn copy_directory(&mut self, path: &TreePath, root: BorrowedFd<'_>, st: &Statx) -> Outcome {
        let from = open_dir(root, path).on("open", path)?;
        let to = self.dirs.open(path).on("open", path)?;
        let owner = Owner {
            uid: st.stx_uid,
            gid: st.stx_gid,
        };
        fchown(&to, uid(owner), gid(owner)).on("set owner of", path)?;
        let below = xattr::visible(from.as_fd(), c"").on("read attributes of", path)?;
        for (name, value) in &below {
            self.set_xattr(to.as_fd(), c"", path, name, value)?;
        }
        fchmod(&to, Mode::from(u32::from(st.stx_mode) & 0o7777)).on("set mode of", path)?;
        self.dirs.forget(path);
        Ok(())
    }

    /// Gives a directory the attributes of one that no entry names.
    pub(super) fn reset_directory(&mut self, path: &TreePath) -> Outcome {
        let owner = self
            .options
            .id_maps
            .remapped_root()
            .map_err(|e| Fault::Refused(e.to_string()))?;
        self.dirs.forget(path);
        let fd = self.dirs.open(path).on("open", path)?;
        fchown(&fd, uid(owner), gid(owner)).on("set owner of", path)?;
        remove_xattrs(fd.as_fd(), c"", path, |_| false)?;
        fchmod(&fd, Mode::from(IMPLIED_MODE)).on("set mode of", path)?;
        // What it hands down may have changed.
        self.dirs.forget(path);
        Ok(())
    }

    fn hardlink(&mut self, path: &TreePath, entry: &EntryHeader) -> Outcome {
        let name = names::clean(&entry.link)
            .map_err(|why| Fault::Refused(format!("hard link target: {why}")))?;
        let Some(dir) = name.parent() else {
            return refused("a hard link to the root");
        };
        let missing = || Fault::Refused(format!("the hard link's target {name} does not exist"));
        let below = match self.lowers {
            Some(_) => Missing::MakeIfShown,
            None => Missing::Leave,
        };
        let dir = self.directory(&dir, below)?.ok_or_else(missing)?;
        let target = dir.join(name.base());
        if target == *path || target.is_below(path) {
            return refused("a hard link to itself");
        }
        let st = match self.stat(&target)? {
            Some(st) => st,
            None => self.copy_up(&target)?.ok_or_else(missing)?,
        };
        if FileType::from_raw_mode(st.st_mode) == FileType::Directory {
            return refused("a hard link to a directory");
        }
        if self.is_whiteout(&st) {
            return Err(missing());
        }
        let from = self.dirs.open(&dir).on("open", &dir)?;
        let base = c_name(&target);
        self.make(path, "link", |dir, name| {
            linkat(&from, &base, dir, name, AtFlags::empty())
        })?;
        let size = u64::try_from(st.st_size).unwrap_or(0);
        let made = u64::from(self.was_made(&target));
        let names = self.links.entry((st.st_dev, st.st_ino)).or_insert(made);
        if *names == 0 {
            self.applied.size += size;
        }
        *names += 1;
        Ok(())
    }

    /// Symbolic links, pipes and devices: what cannot be opened to be given its attributes.
    fn node(
        &mut self,
        path: &TreePath,
        entry: &EntryHeader,
        owner: Owner,
        device: Rdev,
    ) -> Outcome {
        let kind = match entry.kind {
            EntryKind::Char => FileType::CharacterDevice,
            EntryKind::Block => FileType::BlockDevice,
            EntryKind::Fifo => FileType::Fifo,
            _ => FileType::Symlink,
        };
        if kind == FileType::Symlink {
            let target = CString::new(entry.link.as_slice()).unwrap_or_default();
            self.make(path, "create", |dir, base| symlinkat(&target, dir, base))?;
            self.applied.size += entry.link.len() as u64;
        } else {
            let device = makedev(device.major, device.minor);
            self.make(path, "create", |dir, base| {
                mknodat(dir, base, kind, Mode::empty(), device)
            })?;
        }
        let base = c_name(path);
        let holder = self.holder(path)?;
        let (dir, inherited) = (
            holder.as_fd().try_clone_to_owned().on("open", path)?,
            holder.hands_down_acl,
        );
        chownat(
            &dir,
            &base,
            uid(owner),
            gid(owner),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .on("set owner of", path)?;
        self.set_xattrs(
            dir.as_fd(),
            &base,
            path,
            entry,
            inherited && kind != FileType::Symlink,
        )?;
        if kind != FileType::Symlink {
            chmod_node(dir.as_fd(), &base, kind, entry.mode).on("set mode of", path)?;
        }
        utimensat(
            &dir,
            &base,
            &timestamps(entry.mtime),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .on("set times of", path)
    }

    /// Sets the entry's attributes. With `replace`, others that a layer's user owns are removed: those of the directory it replaces,
    /// or ACLs that its directory handed down.
    fn set_xattrs(
        &self,
        dir: BorrowedFd<'_>,
        base: &CStr,
        path: &TreePath,
        entry: &EntryHeader,
        replace: bool,
    ) -> Outcome {
        if replace {
            remove_xattrs(dir, base, path, |name| {
                entry.xattrs.iter().any(|(n, _)| n == name)
            })?;
        }
        for (name, value) in &entry.xattrs {
            // Labels are the host's policy, which gives them at mount.
            if !xattr::is_internal(name) {
                self.set_xattr(dir, base, path, name, value)?;
            }
        }
        Ok(())
    }

    pub(super) fn set_xattr(
        &self,
        dir: BorrowedFd<'_>,
        base: &CStr,
        path: &TreePath,
        name: &[u8],
        value: &[u8],
    ) -> Outcome {
        let key = CString::new(name)
            .map_err(|_| Fault::Refused("an attribute's name holds NUL".to_string()))?;
        match xattr::set(dir, base, &key, value) {
            Err(e) if !self.may_drop(name, e) => {
                let e = std::io::Error::from(e);
                let text = format!("attribute {}: {e}", TreePath(name.to_vec()));
                let source = std::io::Error::new(e.kind(), text);
                Err(Error::io("set", path, source).into())
            }
            _ => Ok(()),
        }
    }

    fn may_drop(&self, name: &[u8], e: Errno) -> bool {
        let privileged = name.starts_with(b"trusted.") || name.starts_with(b"security.");
        match e {
            Errno::OPNOTSUPP => self.options.best_effort_xattrs,
            Errno::PERM => {
                self.options.best_effort_xattrs || (self.options.in_userns && privileged)
            }
            _ => false,
        }
    }
}

pub(super) fn uid(owner: Owner) -> Option<Uid> {
    Some(Uid::from_raw(owner.uid))
}

pub(super) fn gid(owner: Owner) -> Option<Gid> {
    Some(Gid::from_raw(owner.gid))
}

/// Removes the attributes of a layer's user but those that `keep` names.
fn remove_xattrs(
    dir: BorrowedFd<'_>,
    base: &CStr,
    path: &TreePath,
    keep: impl Fn(&[u8]) -> bool,
) -> Outcome {
    for name in xattr::list(dir, base).on("list attributes of", path)? {
        let bytes = name.to_bytes();
        if xattr::is_internal(bytes) || keep(bytes) {
            continue;
        }
        match xattr::remove(dir, base, &name) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(e) => return Err(e).on("remove an attribute of", path),
        }
    }
    Ok(())
}

/// chmod(2) of what was just made and must not be opened; anything that was put in its place meanwhile is left alone.
pub(super) fn chmod_node(
    dir: BorrowedFd<'_>,
    base: &CStr,
    kind: FileType,
    mode: u32,
) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd: OwnedFd = openat(dir, base, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != kind {
        return Err(Errno::AGAIN);
    }
    rustix::fs::chmod(sysfs::fd_path(fd.as_fd()), Mode::from(mode))
}

/// Copies the entry's data into the file; holes of a sparse entry and long runs of zeros stay holes.
fn write_content<R: Read>(
    fd: BorrowedFd<'_>,
    path: &TreePath,
    entry: &EntryHeader,
    reader: &mut Reader<R>,
) -> Outcome {
    let whole = [Extent {
        at: 0,
        len: entry.size,
    }];
    let mut end = 0;
    for extent in entry.sparse.as_deref().unwrap_or(&whole) {
        let (mut at, stop) = (extent.at, extent.at + extent.len);
        while at < stop {
            let data = reader.data(stop - at)?;
            let taken = data.len();
            for run in runs(data) {
                if !run.zeros {
                    write_all_at(fd, run.data, at).on("write", path)?;
                    end = at + run.data.len() as u64;
                }
                at += run.data.len() as u64;
            }
            reader.consume(taken);
        }
    }
    if end < entry.size {
        ftruncate(fd, entry.size).on("set size of", path)?;
    }
    Ok(())
}

struct Run<'a> {
    zeros: bool,
    data: &'a [u8],
}

/// Splits data into runs that are all zeros and runs that are not, in steps of [`HOLE`].
fn runs(data: &[u8]) -> impl Iterator<Item = Run<'_>> {
    let zeros = |from: usize| {
        data.get(from..from + HOLE)
            .is_some_and(|step| step.iter().all(|b| *b == 0))
    };
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= data.len() {
            return None;
        }
        let start = at;
        let kind = zeros(at);
        while at < data.len() && zeros(at) == kind {
            at = (at + HOLE).min(data.len());
        }
        Some(Run {
            zeros: kind,
            data: &data[start..at],
        })
    })
}
