//! `devicemapper`: every layer is a thin device with a filesystem of its own; a layer with a parent begins as a snapshot of its device.
//!
//! The layout is moby's (to 24.0): `devicemapper/data` and `devicemapper/metadata` are the sparse files of the pool, unless options name
//! devices or a pool; `metadata/` has a record of each device, of the last transaction and of the set; a layer is mounted at `mnt/<id>`, and
//! what it shows is `mnt/<id>/rootfs`. So are the options `dm.*`, but for those that make volumes of whole disks. What differs from
//! moby's driver, for the caller's sake:
//!
//! - No library, no program but mkfs and no udev is in between: devices are made by ioctl, nodes are the kernel's own.
//! - A layer appears and disappears whole: a transaction that was begun is taken back at the next start, and so is a suspension.
//! - A layer that is removed while somebody uses it gives its name free at once.
//! - A diff of a large layer looks only at what the pool and the filesystems say may differ.
//! - An archive is written back before it counts as applied, since a pool may find no room for what its layer's filesystem took.
//! - A pool that is full says so (`ENOSPC`, before Linux 6.12 `EIO`) and does not let writers wait for a minute.
//! - ext4 comes before xfs when `dm.fs` does not say.

mod devices;
mod filesystem;
mod options;
mod pool;
mod records;
mod status;
mod touched;

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::{CWD, Mode, OFlags, major, minor, syncfs};
use rustix::io::Errno;

use self::devices::Set;
use self::options::Options;
use self::pool::Pool;
use self::records::{Key, Records};
use super::home::{
    Home, detach, has_entry, make_dir, make_dir_if_missing, open_dir, set_owner_and_mode,
    size_option, unmount_below, write_atomically,
};
use crate::archive::{self, ApplyOptions};
use crate::graphdriver::{
    ApplyDiff, Capabilities, Capability, CreateOpts, Driver, Error, ErrorClass, InitOptions,
    LayerId, MountTableChecker, NaiveDiffWithApply, ProtoDriver, RefCounter, Result,
};
use crate::sync::lock;
use crate::sys::dm::{self, Control};
use crate::sys::mount::umount;

/// The registered name.
pub const NAME: &str = "devicemapper";

/// Where layers are mounted, and where their records are.
const MOUNTS: &str = "mnt";
const RECORDS: &str = "metadata";
/// What a device's filesystem has: the layer, and the id of the layer that it was first mounted for.
const ROOT: &str = "rootfs";
const ID: &str = "id";
/// Where a filesystem is mounted to be made larger.
const GROWING: &str = ".growing";

/// Starts the driver.
///
/// # Errors
/// [`Error::NotSupported`] when the kernel has no device-mapper or no thin pools, or this is not the machine's root;
/// [`Error::InvalidOption`]; [`Error::Prerequisites`] when a pool is not one, or another home's.
pub fn init(home: &Path, init: &InitOptions) -> Result<Arc<dyn Driver>> {
    let options = Options::parse(&init.options)?;
    let control = control()?;
    let driver = Arc::new(DeviceMapper::open(home, init, control, options)?);
    let maps = init.id_maps.clone();
    Ok(Arc::new(NaiveDiffWithApply::new(driver, maps)))
}

fn control() -> Result<Control> {
    Control::open(&std::env::temp_dir()).map_err(|e| {
        Error::NotSupported(match e.kind() {
            io::ErrorKind::NotFound => {
                "the kernel has no device-mapper (CONFIG_BLK_DEV_DM, the module dm_mod)".to_owned()
            }
            io::ErrorKind::PermissionDenied => {
                format!("device-mapper is for root of the machine only: {e}")
            }
            _ => format!("device-mapper: {e}"),
        })
    })
}

fn is_reserved(id: &str) -> bool {
    super::home::is_temporary(id) || records::is_reserved(id) || id == GROWING
}

fn layer_id(id: &str) -> Result<LayerId> {
    LayerId::parse_unreserved(id, is_reserved)
}

fn layer(id: &str) -> Result<Key> {
    layer_id(id).map(Key::Layer)
}

#[derive(Debug)]
struct DeviceMapper {
    home: Home,
    /// Everything that changes; one call at a time.
    set: Mutex<Set>,
    uses: RefCounter<MountTableChecker>,
    /// How many files both of two layers must have for a search of what may differ.
    worth_searching: u64,
}

impl DeviceMapper {
    fn open(path: &Path, init: &InitOptions, control: Control, options: Options) -> Result<Self> {
        let home = Home::open(path, MOUNTS, &init.id_maps)?;
        let at = home.path().metadata();
        let at = at.map_err(|e| Error::io("look at", home.path(), e))?;
        let (major, minor) = (major(at.dev()), minor(at.dev()));
        let prefix = format!("docker-{major}:{minor}-{}", at.ino());
        let pool = Pool::new(home.path(), &prefix, &options)?;
        let records = Records::new(home.path().join(RECORDS), records_dir(&home)?);
        let set = Set::open(control, pool, records, prefix, options)?;
        let driver = Self {
            home,
            set: Mutex::new(set),
            uses: RefCounter::new(MountTableChecker),
            worth_searching: touched::WORTH,
        };
        driver.forget_mounts()?;
        driver.grow_base()?;
        Ok(driver)
    }

    /// The state, with the pool there.
    fn set(&self) -> Result<MutexGuard<'_, Set>> {
        let mut set = self.set_as_it_is();
        set.up()?;
        Ok(set)
    }

    fn set_as_it_is(&self) -> MutexGuard<'_, Set> {
        lock(&self.set)
    }

    /// Where a layer is mounted.
    fn mount_point(&self, id: &LayerId) -> PathBuf {
        self.home.layer_path(id)
    }

    /// Takes away the mount points of layers that are no more, which a killed process left.
    fn forget_mounts(&self) -> Result<()> {
        let set = self.set_as_it_is();
        for id in self.home.layers(|_| false)? {
            if !set.has(&Key::Layer(id.clone())) {
                self.take_away(&id)?;
            }
        }
        Ok(())
    }

    fn make(&self, id: &str, parent: Option<&str>, opts: &CreateOpts) -> Result<()> {
        let key = layer(id)?;
        let from = parent.map_or(Ok(Key::Base), layer)?;
        // A size makes a layer larger here, so one that is only read may have one, too.
        let size = size_option(opts, true, None)?;
        let mut set = self.set()?;
        if set.has(&key) {
            return Err(Error::LayerExists(id.to_owned()));
        }
        let below = set.device(&from)?.size;
        set.sweep();
        // Made now, so that a layer can be shown when the disk is full.
        let id = layer_id(id)?;
        make_dir_if_missing(&self.mount_point(&id), 0o700)?;
        set.snapshot(&key, &from, size).inspect_err(|_| {
            // The first failure is the one to tell.
            let _ = self.take_away(&id);
        })?;
        if size.is_some_and(|size| size > below) {
            self.grow(&set, &key).inspect_err(|_| {
                let _ = set.delete(&key);
                let _ = self.take_away(&id);
            })?;
        }
        Ok(())
    }

    /// Makes the filesystem on a device as large as the device.
    fn grow(&self, set: &Set, key: &Key) -> Result<()> {
        let device = set.device(key)?;
        let info = set.activate(key, &device)?;
        let at = self.home.path().join(MOUNTS).join(GROWING);
        let grown = self.mounted_at(set, &info, &at, "").and_then(|()| {
            let grown = set.filesystem()?.grow(&at, device.size);
            unmount(&at).and(grown)
        });
        let _ = rustix::fs::rmdir(&at);
        let left = set.deactivate(key, &device);
        grown.and(left.map(drop))
    }

    fn grow_base(&self) -> Result<()> {
        let mut set = self.set_as_it_is();
        let Some(size) = set.base_growth()? else {
            return Ok(());
        };
        set.set_size(&Key::Base, size)?;
        self.grow(&set, &Key::Base)
    }

    /// Mounts a device at a directory, which is made.
    fn mounted_at(&self, set: &Set, info: &dm::Info, at: &Path, label: &str) -> Result<()> {
        make_dir_if_missing(at, 0o700)?;
        let node = dm::node(info, set.pool.nodes())
            .map_err(|e| Error::io("find the node of the device for", at, e))?;
        let filesystem = set.filesystem()?;
        filesystem.mount(&node, at, &set.options.mount_options, label)?;
        set.tune(info).inspect_err(|_| {
            let _ = detach(at);
        })
    }

    /// Mounts a layer and makes what it must have.
    fn show(&self, set: &Set, id: &LayerId, label: &str) -> Result<()> {
        let key = Key::Layer(id.clone());
        let device = set.device(&key)?;
        let at = self.mount_point(id);
        let shown = set.activate(&key, &device).and_then(|info| {
            self.mounted_at(set, &info, &at, label)?;
            self.lay_out(&at, id)
        });
        shown.inspect_err(|_| {
            // The first failure is the one to tell.
            let _ = unmount(&at);
            let _ = set.deactivate(&key, &device);
        })
    }

    /// Makes the layer's root and the file with its id in a mounted filesystem, where they are missing.
    fn lay_out(&self, at: &Path, id: &LayerId) -> Result<()> {
        let top = open_dir(CWD, at).map_err(|e| Error::io("open", at, e))?;
        if !has_entry(top.as_fd(), ROOT) {
            set_owner_and_mode(top.as_fd(), 0o755, self.home.root_owner())
                .map_err(|e| Error::io("set up", at, e))?;
            make_dir(top.as_fd(), ROOT, 0o755, self.home.root_owner())?;
        }
        if !has_entry(top.as_fd(), ID) {
            write_atomically(top.as_fd(), ID, id.as_str().as_bytes(), 0o600)?;
        }
        Ok(())
    }

    /// Unmounts a layer and removes its mount point.
    fn take_away(&self, id: &LayerId) -> Result<()> {
        let at = self.mount_point(id);
        unmount(&at)?;
        match rustix::fs::rmdir(&at) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(Error::io("remove", &at, e)),
        }
    }
}

/// What went wrong in a layer: all that its filesystem learns of a full disk below the pool is that writing failed.
fn or_full(set: &Set, e: Error) -> Error {
    if e.class() != ErrorClass::Other || e.is_no_room() || !set.pool.disk_is_full() {
        return e;
    }
    let full = io::Error::from(Errno::NOSPC);
    Error::NoSpace(format!("{e}; below the pool: {full}"))
}

/// Applies an archive to a mounted layer, and has its files written.
fn apply(root: &Path, diff: &mut dyn Read, options: &ApplyOptions) -> Result<u64> {
    let failed = |op| move |e| Error::io(op, root, e);
    let opened = open_dir(CWD, root).map_err(failed("open the layer"))?;
    let applied = archive::apply(opened.as_fd(), diff, options)?;
    syncfs(&opened).map_err(failed("write back"))?;
    Ok(applied.size)
}

/// The directory of the records.
fn records_dir(home: &Home) -> Result<OwnedFd> {
    let failed = |e| Error::io("open", home.path(), e);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(home.path(), flags, Mode::empty()).map_err(failed)?;
    if has_entry(top.as_fd(), RECORDS) {
        return open_dir(top.as_fd(), RECORDS).map_err(failed);
    }
    make_dir(top.as_fd(), RECORDS, 0o700, home.root_owner())
}

/// Unmounts what is mounted at a path, with what is mounted on it. What somebody still uses goes when they let go of it.
fn unmount(at: &Path) -> Result<()> {
    match umount(at) {
        Ok(()) => Ok(()),
        Err(e) if Errno::from_io_error(&e) == Some(Errno::BUSY) => unmount_below(at),
        Err(_) => detach(at),
    }
}

impl ApplyDiff for DeviceMapper {
    fn try_apply_diff(
        &self,
        id: &str,
        _parent: Option<&str>,
        diff: &mut dyn Read,
        options: &ApplyOptions,
    ) -> Result<Option<u64>> {
        let root = self.get(id, "")?;
        let key = layer(id)?;
        // The layer's filesystem takes all without knowing what room there is below the pool, and unmounting, which writes it, too, tells
        // nobody what was lost. Nor does syncfs(2) tell of a journal that was given up a moment before.
        let applied = apply(&root, diff, options)
            .and_then(|size| self.set()?.write_out(&key).map(|()| size))
            .map_err(|e| or_full(&self.set_as_it_is(), e));
        let put = self.put(id);
        let size = applied?;
        put.map(|()| Some(size))
    }
}

impl ProtoDriver for DeviceMapper {
    fn name(&self) -> &str {
        NAME
    }

    fn create(&self, id: &str, parent: Option<&str>, opts: &CreateOpts) -> Result<()> {
        self.make(id, parent, opts)
    }

    fn create_read_write(&self, id: &str, parent: Option<&str>, opts: &CreateOpts) -> Result<()> {
        self.make(id, parent, opts)
    }

    fn remove(&self, id: &str) -> Result<()> {
        let id = layer_id(id)?;
        let key = Key::Layer(id.clone());
        let mut set = self.set()?;
        if !set.has(&key) {
            return Ok(());
        }
        unmount(&self.mount_point(&id))?;
        self.uses.forget(&self.mount_point(&id));
        set.delete(&key)?;
        set.sweep();
        self.take_away(&id)
    }

    fn get(&self, id: &str, mount_label: &str) -> Result<PathBuf> {
        let id = layer_id(id)?;
        let set = self.set()?;
        set.device(&Key::Layer(id.clone()))?;
        let at = self.mount_point(&id);
        if self.uses.increment(&at) <= 1
            && let Err(e) = self.show(&set, &id, mount_label)
        {
            self.uses.decrement(&at);
            return Err(or_full(&set, e));
        }
        Ok(at.join(ROOT))
    }

    fn put(&self, id: &str) -> Result<()> {
        let id = layer_id(id)?;
        let set = self.set_as_it_is();
        let at = self.mount_point(&id);
        if self.uses.decrement(&at) > 0 || !self.home.has(&id) {
            return Ok(());
        }
        unmount(&at)?;
        let key = Key::Layer(id);
        let device = set.device(&key)?;
        set.deactivate(&key, &device).map(drop)
    }

    fn exists(&self, id: &str) -> bool {
        layer(id).is_ok_and(|key| self.set_as_it_is().has(&key))
    }

    fn status(&self) -> Vec<(String, String)> {
        status::of(&self.set_as_it_is(), self.home.path())
    }

    fn metadata(&self, id: &str) -> Result<Option<BTreeMap<String, String>>> {
        let key = layer(id)?;
        let set = self.set_as_it_is();
        let device = set.device(&key)?;
        let values = [
            ("DeviceId", device.device_id.to_string()),
            ("DeviceSize", device.size.to_string()),
            ("DeviceName", set.name(&key, &device)),
        ];
        let owned = values.map(|(key, value)| (key.to_owned(), value));
        Ok(Some(owned.into_iter().collect()))
    }

    fn cleanup(&self) -> Result<()> {
        let mut set = self.set_as_it_is();
        for id in self.home.layers(|_| false)? {
            let at = self.mount_point(&id);
            unmount(&at)?;
            self.uses.forget(&at);
        }
        set.sweep();
        set.down()
    }

    fn touched(&self, new: BorrowedFd<'_>, old: BorrowedFd<'_>) -> Option<HashSet<u64>> {
        // Whatever fails here, comparing all is right.
        self.find_touched(new, old).ok().flatten()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new([
            Capability::IdMaps,
            Capability::Mounts,
            Capability::IndependentChildren,
            Capability::DirRename,
            Capability::HardlinkCopyUp,
            Capability::StableInode,
            Capability::DirTimes,
            Capability::Sockets,
            Capability::HomeHoldsAll,
        ])
    }
}
