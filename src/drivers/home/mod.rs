//! What the built-in drivers share: a home, layers that appear and disappear whole, and locks on ids.
//!
//! A layer is made under a temporary name and renamed to its id when it is complete; it is removed by renaming it away first. A
//! process that is killed in between leaves a temporary directory, which the next start on the home deletes. While its maker
//! lives, a temporary directory is locked with flock(2), so that a second driver on the same home leaves it alone.

mod files;
mod locks;

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, RenameFlags, flock, mkdirat, openat, renameat,
    renameat_with, statat,
};
use rustix::io::Errno;

use self::files::write_new;
pub(super) use self::files::{
    excerpt, has_entry, lock_dir, make_dir, make_dir_if_missing, open_dir, read_text,
    remove_mount_point, set_owner_and_mode, write_atomically, write_synced,
};
pub(super) use self::locks::IdLocks;
use super::quota::{LayerProject, LayerQuotas};
use crate::graphdriver::{
    CreateOpts, Error, FsMagic, IdMaps, LayerId, Result, get_fs_magic, parse_size,
};
use crate::sys;
use crate::tree::Owner;

/// Names of layers being made and being removed begin so; no layer may have such an id.
pub(super) const MAKING: &str = ".new-";
const REMOVING: &str = ".rm-";

/// Names of small files being written begin so.
pub(super) const TEMPORARY: &str = ".tmp-";

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Whether a name is a temporary one of ours.
pub(super) fn is_temporary(name: &str) -> bool {
    name.starts_with(MAKING) || name.starts_with(REMOVING)
}

/// Deletes an entry of a directory with all that is below it.
pub(super) type Delete = fn(BorrowedFd<'_>, &OsStr) -> io::Result<()>;

/// A driver's home directory.
#[derive(Debug)]
pub(super) struct Home {
    path: PathBuf,
    layers: PathBuf,
    layers_dir: OwnedFd,
    root: Owner,
    /// What limits the size of layers, or why nothing does.
    quotas: Result<LayerQuotas, String>,
    kept: Kept,
}

/// How layers are kept in a home.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    /// The directory of the home that holds them; empty: the home itself.
    pub below: &'static str,
    /// The directory of a layer that may be in a project, for its limit; empty: the layer's own.
    pub limited: &'static str,
    /// What deletes one.
    pub delete: Delete,
}

impl Kept {
    /// As directories with all that is in them.
    pub const fn in_directories(below: &'static str) -> Self {
        Self {
            below,
            limited: "",
            delete: sys::remove::remove_tree_at,
        }
    }
}

impl Home {
    /// Makes the home if need be (0710, the caller's uid with the gid of the mapped root, so that the latter can pass through
    /// but not list), and the directory `below` it that holds the layers (empty: the home itself). Deletes what a killed process left.
    pub fn open(path: &Path, below: &'static str, maps: &IdMaps) -> Result<Self> {
        Self::open_with(path, Kept::in_directories(below), maps)
    }

    /// The same for layers that are more than directories.
    pub fn open_with(path: &Path, kept: Kept, maps: &IdMaps) -> Result<Self> {
        let root = maps.remapped_root().map_err(|e| Error::InvalidOption {
            key: "id maps".to_owned(),
            why: e.to_string(),
        })?;
        let failed = |op| move |e: io::Error| Error::io(op, path, e);
        DirBuilder::new()
            .recursive(true)
            .mode(0o710)
            .create(path)
            .map_err(failed("make the home"))?;
        // A home reached through a symbolic link is known by one name, the one that the mount table has.
        let path = path.canonicalize().map_err(failed("resolve"))?;
        heeds_case(&path)?;
        own_directory(&path, root.gid)?;
        let layers = if kept.below.is_empty() {
            path.clone()
        } else {
            path.join(kept.below)
        };
        if !kept.below.is_empty() {
            make_dir_if_missing(&layers, 0o700)?;
            own_directory(&layers, root.gid)?;
        }
        let layers_dir = rustix::fs::open(&layers, DIRECTORY, Mode::empty())
            .map_err(|e| Error::io("open", &layers, e))?;
        let quotas = LayerQuotas::probe(&path, layers_dir.as_fd());
        let home = Self {
            path,
            layers,
            layers_dir,
            root,
            quotas,
            kept,
        };
        home.sweep()?;
        Ok(home)
    }

    /// The absolute path, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a layer is.
    pub fn layer_path(&self, id: &LayerId) -> PathBuf {
        self.layers.join(id)
    }

    /// The owner of layer roots: 0:0 as the id maps have it.
    pub fn root_owner(&self) -> Owner {
        self.root
    }

    /// What limits the size of layers here.
    ///
    /// # Errors
    /// [`Error::QuotaNotSupported`] with the reason why nothing does.
    pub fn quotas(&self) -> Result<&LayerQuotas> {
        self.quotas
            .as_ref()
            .map_err(|why| Error::QuotaNotSupported(why.clone()))
    }

    /// Whether the layer is there.
    pub fn has(&self, id: &LayerId) -> bool {
        statat(&self.layers_dir, id.as_str(), AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|st| rustix::fs::FileType::from_raw_mode(st.st_mode).is_dir())
    }

    /// Opens the layer's directory.
    pub fn open_layer(&self, id: &LayerId) -> Result<OwnedFd> {
        self.open_layer_by(id, DIRECTORY)
    }

    /// The same to look at its attributes only, which takes less time.
    pub fn find_layer(&self, id: &LayerId) -> Result<OwnedFd> {
        self.open_layer_by(id, DIRECTORY | OFlags::PATH)
    }

    fn open_layer_by(&self, id: &LayerId, flags: OFlags) -> Result<OwnedFd> {
        let opened = openat(&self.layers_dir, id.as_str(), flags, Mode::empty());
        opened.map_err(|e| match e {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => id.unknown(),
            e => Error::io("open", self.layer_path(id), e),
        })
    }

    /// The ids of all layers, in no order; `reserved` names are left out.
    pub fn layers(&self, reserved: impl Fn(&str) -> bool) -> Result<Vec<LayerId>> {
        let mut ids = Vec::new();
        self.each_name(|name| {
            if let Ok(id) = LayerId::parse_unreserved(name, |id| is_temporary(id) || reserved(id))
                && self.has(&id)
            {
                ids.push(id);
            }
        })?;
        Ok(ids)
    }

    /// A directory under a temporary name, to become a layer. Its mode is 0700 until its maker sets it.
    pub fn stage(&self) -> Result<Stage<'_>> {
        self.stage_by(|dir, name| mkdirat(dir, name, Mode::RWXU))
    }

    /// The same, made in another way.
    pub fn stage_by(
        &self,
        make: impl Fn(BorrowedFd<'_>, &str) -> Result<(), Errno>,
    ) -> Result<Stage<'_>> {
        loop {
            let name = temporary_name(MAKING);
            let at = self.layers.join(&name);
            let failed = |op| {
                let at = &at;
                move |e: Errno| Error::io(op, at, e)
            };
            match make(self.layers_dir.as_fd(), &name) {
                Ok(()) => {}
                Err(Errno::EXIST) => continue,
                Err(e) => return Err(failed("make")(e)),
            }
            // A driver that starts just now may take the directory for a leftover before it is locked.
            let dir = match open_dir(self.layers_dir.as_fd(), &name) {
                Ok(dir) => dir,
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(failed("open")(e)),
            };
            match lock_linked(self.layers_dir.as_fd(), &name, dir.as_fd()) {
                Ok(true) => {
                    return Ok(Stage {
                        home: self,
                        name,
                        dir,
                        committed: false,
                    });
                }
                Ok(false) | Err(Errno::WOULDBLOCK) => {}
                Err(e) => return Err(failed("lock")(e)),
            }
        }
    }

    /// A further directory of the driver's own, made if need be.
    pub fn directory(&self, name: &str) -> Result<OwnedFd> {
        let path = self.path.join(name);
        make_dir_if_missing(&path, 0o700)?;
        own_directory(&path, self.root.gid)?;
        open_dir(rustix::fs::CWD, &path).map_err(|e| Error::io("open", path, e))
    }

    /// Unmounts a layer, and has other namespaces, such as those of containers, lose their copies of the mount, which would keep the
    /// layer in use.
    pub fn take_away(&self, at: &Path, unmount: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let mounted = sys::mount::is_mount_point(at).unwrap_or(false);
        unmount(at)?;
        if mounted {
            self.renew_mount_point(at);
        }
        Ok(())
    }

    /// Puts a new directory in the place of one that nothing is mounted on any more here: the kernel drops what other namespaces still
    /// have mounted on the old one (Linux 3.18). That is best done where there is room; else, or where somebody wrote into the
    /// directory, it stays, for it is there to be mounted on.
    fn renew_mount_point(&self, at: &Path) {
        let Ok(old) = rustix::fs::lstat(at) else {
            return;
        };
        let new = self.layers.join(temporary_name(MAKING));
        let made = rustix::fs::mkdir(&new, Mode::from_raw_mode(old.st_mode));
        if made.is_ok() && rustix::fs::rename(&new, at).is_err() {
            let _ = rustix::fs::rmdir(&new);
        }
    }

    /// The directory of the layers.
    pub fn layers_dir(&self) -> BorrowedFd<'_> {
        self.layers_dir.as_fd()
    }

    /// Removes a layer: it is gone from its name at once, and then deleted. That it does not exist is success.
    pub fn discard(&self, id: &LayerId) -> Result<()> {
        self.set_aside(id)?.map_or(Ok(()), |aside| aside.delete())
    }

    /// The first half of [`Home::discard`]: the layer is gone from its name. `None` when there is none.
    pub fn set_aside(&self, id: &LayerId) -> Result<Option<Aside<'_>>> {
        let path = self.layer_path(id);
        let failed = |op| {
            let path = &path;
            move |e: Errno| Error::io(op, path, e)
        };
        if !self.has(id) {
            return Ok(None);
        }
        // Locked before it has the temporary name, so that nobody else deletes at the same time. A directory that cannot be
        // opened (an ordinary user's with mode 0) goes without.
        let lock = open_dir(self.layers_dir.as_fd(), id.as_str()).ok();
        if let Some(dir) = &lock {
            // A maker holds the lock until its layer is complete; it never waits for another.
            flock(dir, FlockOperation::LockExclusive).map_err(failed("lock"))?;
        }
        let name = temporary_name(REMOVING);
        match renameat(&self.layers_dir, id.as_str(), &self.layers_dir, &name) {
            Ok(()) => Ok(Some(Aside {
                home: self,
                name,
                _lock: lock,
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(failed("rename")(e)),
        }
    }

    fn delete(&self, name: &str) -> Result<()> {
        let path = self.layers.join(name);
        // First, so that no limit stays on record for a layer that is gone, whenever the process dies.
        if let (Ok(quotas), Ok(dir)) = (&self.quotas, open_dir(self.layers_dir.as_fd(), name)) {
            quotas.release(dir.as_fd())?;
            if let Ok(limited) = open_dir(dir.as_fd(), self.kept.limited) {
                quotas.release(limited.as_fd())?;
            }
        }
        let delete = || (self.kept.delete)(self.layers_dir.as_fd(), OsStr::new(name));
        match delete() {
            Err(e) if mounted(&e) => {
                unmount_below(&path)?;
                delete().map_err(|e| Error::io("remove", path, e))
            }
            other => other.map_err(|e| Error::io("remove", path, e)),
        }
    }

    fn sweep(&self) -> Result<()> {
        let mut stale = Vec::new();
        self.each_name(|name| {
            if is_temporary(name) {
                stale.push(name.to_owned());
            }
        })?;
        for name in stale {
            let Ok(dir) = open_dir(self.layers_dir.as_fd(), &name) else {
                continue;
            };
            match lock_linked(self.layers_dir.as_fd(), &name, dir.as_fd()) {
                Ok(true) => match self.delete(&name) {
                    // It waits for a start on a disk that can be written to.
                    Err(e) if e.errno() == Some(Errno::ROFS) => {}
                    deleted => deleted?,
                },
                // In use, or deleted by somebody else.
                Ok(false) | Err(Errno::WOULDBLOCK) => {}
                Err(e) => return Err(Error::io("lock", self.layers.join(name), e)),
            }
        }
        Ok(())
    }

    fn each_name(&self, mut each: impl FnMut(&str)) -> Result<()> {
        let failed = |e: io::Error| Error::io("read the directory", &self.layers, e);
        // A descriptor of its own: reading moves its offset.
        let dir = open_dir(self.layers_dir.as_fd(), ".").map_err(|e| failed(e.into()))?;
        sys::fs::for_each_name(dir.as_fd(), |name, _| {
            if let Ok(name) = name.to_str() {
                each(name);
            }
            Ok(())
        })
        .map_err(failed)
    }
}

/// Where `Foo` and `foo` are one name, so are two ids and two files of a layer.
fn heeds_case(home: &Path) -> Result<()> {
    let dir = open_dir(rustix::fs::CWD, home).map_err(|e| Error::io("open the home", home, e))?;
    if !sys::fsctl::ignores_case(dir.as_fd()) {
        return Ok(());
    }
    Err(Error::IncompatibleFs(format!(
        "{} ignores the case of names, which layers differ in; `chattr -F` on it while it is empty mends that",
        home.display()
    )))
}

/// A layer that has lost its name and is still to be deleted; the next start on the home does what is left undone.
#[derive(Debug)]
pub(super) struct Aside<'h> {
    home: &'h Home,
    name: String,
    _lock: Option<OwnedFd>,
}

impl Aside<'_> {
    /// Deletes it.
    pub fn delete(self) -> Result<()> {
        self.home.delete(&self.name)
    }
}

/// A layer being made; dropped without [`Stage::commit`], it is deleted.
#[derive(Debug)]
pub(super) struct Stage<'h> {
    home: &'h Home,
    name: String,
    dir: OwnedFd,
    committed: bool,
}

impl Stage<'_> {
    /// The directory.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Where it is until it is committed.
    pub fn path(&self) -> PathBuf {
        self.home.layers.join(&self.name)
    }

    /// Begins to count what comes into the directory for a limit, if there is to be one.
    ///
    /// # Errors
    /// [`Error::QuotaNotSupported`] where no limit can be kept.
    pub fn count_for(&self, limit: Option<u64>) -> Result<Option<LayerProject<'_>>> {
        limit
            .map(|limit| self.home.quotas()?.assign(self.dir(), limit))
            .transpose()
    }

    /// Writes the records of a layer (name, content, mode), last of what is put into its directory. They are there whole when its name
    /// is, also after a power cut.
    ///
    /// Only contents are flushed. Names reach the disk in the order in which they were made on every filesystem with a journal, so a
    /// layer whose name is there has its records, and its parent has its own; flushing directories as well would make each layer wait
    /// for everything else that is being written to the same disk. btrfs has no journal: it brings back what was flushed, under the name
    /// it has got since, and nothing that lay beside it, so there the directory is flushed too.
    pub fn write_records(&self, records: &[(&str, &[u8], u32)]) -> Result<()> {
        let mut files = Vec::new();
        for (name, content, mode) in records {
            files.push((*name, write_new(self.dir(), name, content, *mode)?));
        }
        for (_, file) in &files {
            sys::fsctl::begin_to_write_out(file.as_fd());
        }
        for (name, file) in &files {
            rustix::fs::fsync(file).map_err(|e| Error::io("sync", *name, e))?;
        }
        if get_fs_magic(&self.path())? != FsMagic::BTRFS {
            return Ok(());
        }
        rustix::fs::fsync(self.dir()).map_err(|e| Error::io("sync", self.path(), e))
    }

    /// Gives the directory the layer's name.
    pub fn commit(mut self, id: &LayerId) -> Result<()> {
        let dir = &self.home.layers_dir;
        let exists = || Error::LayerExists(id.to_string());
        let renamed = match renameat_with(dir, &self.name, dir, id.as_str(), RenameFlags::NOREPLACE)
        {
            // Some filesystems (NFS, old FUSE) have no flags; a rename never replaces a directory that holds anything.
            Err(Errno::INVAL | Errno::NOSYS) if self.home.has(id) => return Err(exists()),
            Err(Errno::INVAL | Errno::NOSYS) => renameat(dir, &self.name, dir, id.as_str()),
            other => other,
        };
        match renamed {
            Ok(()) => {
                self.committed = true;
                Ok(())
            }
            Err(Errno::EXIST | Errno::NOTEMPTY) => Err(exists()),
            Err(e) => Err(Error::io(
                "rename the new layer to",
                self.home.layer_path(id),
                e,
            )),
        }
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        if !self.committed {
            // What cannot be deleted now is deleted at the next start.
            let _ = self.home.delete(&self.name);
        }
    }
}

/// The limit on the size of a new layer, in bytes: the option `size` of a create call, else the driver's default for layers that are
/// written to. 0 is no limit, in both.
///
/// # Errors
/// An unknown key, a bad size, or a size on a layer that is not to be written to.
pub(super) fn size_option(
    opts: &CreateOpts,
    read_write: bool,
    default: Option<u64>,
) -> Result<Option<u64>> {
    let mut size = default.filter(|_| read_write);
    for (key, value) in &opts.storage_opt {
        let invalid = |why: &str| Error::InvalidOption {
            key: key.clone(),
            why: why.to_owned(),
        };
        if !key.eq_ignore_ascii_case("size") {
            return Err(invalid("not an option of a layer; the only one is size"));
        }
        if !read_write {
            return Err(invalid("a layer that is only read takes no size"));
        }
        size = Some(parse_size(key, value)?);
    }
    Ok(size.filter(|size| *size > 0))
}

/// Detaches every mount at or below `path`, the innermost first.
pub(super) fn unmount_below(path: &Path) -> Result<()> {
    sys::mount::umount_below(path)
        .map(drop)
        .map_err(|e| Error::io("take mounts away below", path, e))
}

/// Detaches a mount; that nothing is mounted there is success.
pub(super) fn detach(path: &Path) -> Result<()> {
    match sys::mount::umount_detach(path) {
        Err(e) if !matches!(Errno::from_io_error(&e), Some(Errno::INVAL | Errno::NOENT)) => {
            Err(Error::io("unmount", path, e))
        }
        _ => Ok(()),
    }
}

fn mounted(e: &io::Error) -> bool {
    matches!(Errno::from_io_error(e), Some(Errno::XDEV | Errno::BUSY))
}

/// Locks a directory and says whether it still has its name. A deleted subvolume's link count does not tell.
fn lock_linked(at: BorrowedFd<'_>, name: &str, dir: BorrowedFd<'_>) -> Result<bool, Errno> {
    flock(dir, FlockOperation::NonBlockingLockExclusive)?;
    let held = rustix::fs::fstat(dir)?;
    match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok((named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

fn own_directory(path: &Path, gid: u32) -> Result<()> {
    let owner = Owner {
        uid: rustix::process::geteuid().as_raw(),
        gid,
    };
    let own = || {
        let dir = rustix::fs::open(path, DIRECTORY, Mode::empty())?;
        let stat = rustix::fs::fstat(&dir)?;
        let found = (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777);
        // On a disk that has become read-only a home that is as it should be can still be read.
        if found == (owner.uid, owner.gid, 0o710) {
            return Ok(());
        }
        set_owner_and_mode(dir.as_fd(), 0o710, owner)
    };
    own().map_err(|e: Errno| Error::io("take over", path, e))
}

/// Unique in this boot: two processes differ in their id, two calls in the count.
pub(super) fn temporary_name(prefix: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let pid = rustix::process::getpid().as_raw_nonzero();
    format!("{prefix}{pid:x}-{count:x}")
}
