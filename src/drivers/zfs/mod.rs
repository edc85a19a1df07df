//! `zfs`: every layer is a dataset; a layer with a parent begins as a clone of a snapshot of it, which shares its blocks.
//!
//! The layout is moby's: layer `<id>` is the dataset `<dataset>/<id>`, with a legacy mount point, mounted at `<home>/graph/<id>` while
//! somebody has it. The option `zfs.fsname` names the dataset that holds the layers. What differs from moby's driver, for the caller's
//! sake:
//!
//! - Without the option the home has a dataset of its own, below the one that it lies on, and a file `dataset` that names it; so two homes
//!   on one filesystem do not share their layers. A home that moby's driver made is used as it is.
//! - An id that exists is refused (moby's destroys the dataset that is there, with everything that was made from it).
//! - Whether a layer exists is asked of the kernel each time, so that what others make and destroy is seen.
//! - A layer appears whole, with its quota, and disappears whole. What a killed process leaves is taken away by the next start.
//! - A layer that somebody else keeps mounted is gone when it is removed, and its space is given back when they let go.
//! - Any id is a name: what zfs does not take is written otherwise, see `names.rs`.
//! - Names of snapshots do not repeat.

mod mounts;
mod names;
mod place;
mod program;
#[cfg(test)]
mod tests;
mod work;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::mounts::{Mounts, make_mount_point};
use self::program::{Refusal, Refused, zfs, zfs_patiently, zpool};
use self::work::{Lock, Record};
use super::home::{
    Home, IdLocks, is_temporary, remove_mount_point, set_owner_and_mode, size_option,
};
use crate::graphdriver::{
    Capabilities, Capability, CreateOpts, Driver, Error, InitOptions, LayerId, NaiveDiff,
    ProtoDriver, Result, parse_key_value,
};
use crate::sys;
use crate::sys::zfs::Properties;
use crate::tree::Owner;

/// The registered name.
pub const NAME: &str = "zfs";

/// The directory of the mount points.
const GRAPH: &str = "graph";

/// Starts the driver. The only option is `zfs.fsname`, the dataset whose children the layers are.
///
/// # Errors
/// An unknown option, or a dataset that is not there; [`Error::NotSupported`] when the kernel has no zfs or its program is missing;
/// [`Error::Prerequisites`] when the home is not on a zfs and no dataset is named.
pub fn init(home: &Path, init: &InitOptions) -> Result<Arc<dyn Driver>> {
    let mut named = None;
    for option in &init.options {
        let (key, value) = parse_key_value(option)?;
        if key != place::FSNAME {
            return Err(Error::InvalidOption {
                key,
                why: format!("zfs does not know it; its only option is {}", place::FSNAME),
            });
        }
        named = Some(value);
    }
    let driver = Zfs::open(home, init, named)?;
    Ok(Arc::new(NaiveDiff::new(
        Arc::new(driver),
        init.id_maps.clone(),
    )))
}

fn layer_id(id: &str) -> Result<LayerId> {
    LayerId::parse_unreserved(id, is_temporary)
}

#[derive(Debug)]
struct Zfs {
    home: Home,
    kernel: sys::zfs::Zfs,
    /// Whose children the layers are.
    dataset: String,
    locks: IdLocks,
    mounts: Mounts,
}

impl Zfs {
    fn open(path: &Path, init: &InitOptions, named: Option<&str>) -> Result<Self> {
        let kernel = sys::zfs::Zfs::open().map_err(|e| {
            Error::NotSupported(format!("the kernel has no zfs, or not for this user: {e}"))
        })?;
        place::suits(path, named)?;
        place::make_home(path)?;
        // Programs that a killed process started have come to their end then.
        let lock = Lock::alone(path)?;
        let dataset = place::dataset(&kernel, path, named)?;
        let driver = Self {
            home: Home::open(path, GRAPH, &init.id_maps)?,
            kernel,
            dataset,
            locks: IdLocks::default(),
            mounts: Mounts::default(),
        };
        work::sweep(&driver.kernel, &driver.home, &lock)?;
        driver.sweep_mount_points()?;
        Ok(driver)
    }

    /// Removes mount points of layers that are not there: a process was killed, or somebody else destroyed the dataset.
    fn sweep_mount_points(&self) -> Result<()> {
        let graph = self.home.path().join(GRAPH);
        let failed = |e| Error::io("read the directory", &graph, e);
        for entry in std::fs::read_dir(&graph).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let id = entry.file_name().into_string().ok();
            let id = id.and_then(|id| layer_id(&id).ok());
            if !id.is_some_and(|id| self.has(&id).unwrap_or(true)) {
                // What is not ours to remove stays.
                let _ = remove_mount_point(&entry.path());
            }
        }
        Ok(())
    }

    fn dataset_of(&self, id: &LayerId) -> String {
        names::dataset(&self.dataset, id)
    }

    fn has(&self, id: &LayerId) -> Result<bool> {
        let name = self.dataset_of(id);
        let asked = self.kernel.has(&name);
        asked.map_err(|e| Error::io("look for the dataset", name, e))
    }

    fn make(
        &self,
        id: &str,
        parent: Option<&str>,
        opts: &CreateOpts,
        read_write: bool,
    ) -> Result<()> {
        let id = layer_id(id)?;
        let parent = parent.map(layer_id).transpose()?;
        let size = size_option(opts, read_write, None)?;
        let ids: Vec<&LayerId> = [Some(&id), parent.as_ref()].into_iter().flatten().collect();
        let _guard = self.locks.lock(&ids);
        if self.has(&id)? {
            return Err(Error::LayerExists(id.to_string()));
        }
        let own = Properties { quota: size };
        let lock = Lock::shared(self.home.path())?;
        let at = self.home.layer_path(&id);
        make_mount_point(&at)?;
        let made = match &parent {
            Some(parent) => self.clone_layer(&id, parent, &own),
            None if self.home.root_owner() == Owner::default() => {
                let name = self.dataset_of(&id);
                // Written although it names nothing that is to go: a home that has become read-only is not to change.
                let _record = Record::write(self.home.path(), "")?;
                self.create_dataset(&name, &own).map_err(|e| e.on(&id))
            }
            None => self.create_owned(&id, &own, &lock),
        };
        if made.is_err() {
            // The first failure is the one to tell; the next start removes it else.
            let _ = remove_mount_point(&at);
        }
        made
    }

    /// Makes a layer as a clone of what its parent holds now.
    fn clone_layer(&self, id: &LayerId, parent: &LayerId, own: &Properties) -> Result<()> {
        if !self.has(parent)? {
            return Err(parent.unknown());
        }
        self.mounts.flush(&self.home, parent)?;
        let snapshot = format!("{}@{}", self.dataset_of(parent), work::unique());
        let record = Record::write(self.home.path(), &snapshot)?;
        let refused = |what: &str| {
            let what = format!("{what} {snapshot}");
            move |e| Refused::with(e, what)
        };
        let made = self.kernel.snapshot(&snapshot);
        let made = made.map_err(|e| refused("make the snapshot")(e).on(parent));
        let made = made.and_then(|()| {
            let made = self
                .kernel
                .clone_snapshot(&snapshot, &self.dataset_of(id), own);
            made.map_err(|e| refused("clone")(e).on(id))
        });
        // It goes with its last clone; without one, now. What does not go now goes at the next start.
        if self.kernel.destroy_snapshot(&snapshot).is_err() {
            record.keep();
        }
        made
    }

    /// Makes an empty layer whose root belongs to the root of the id maps. It gets its name when all is done.
    fn create_owned(&self, id: &LayerId, own: &Properties, lock: &Lock) -> Result<()> {
        let making = format!("{}/{}{}", self.dataset, super::home::MAKING, work::unique());
        let record = Record::write(self.home.path(), &making)?;
        let made = self
            .create_dataset(&making, own)
            .map_err(|e| e.on(id))
            .and_then(|()| {
                let owner = self.home.root_owner();
                self.mounts.with_mounted(&self.home, &making, |root| {
                    set_owner_and_mode(root, 0o755, owner)
                })
            })
            .and_then(|()| {
                let words = ["rename", &making, &self.dataset_of(id)];
                zfs_patiently(&words, lock.pass()).map_err(|e| e.on(id))
            });
        if made.is_err() && work::destroy(&self.kernel, &making, lock).is_err() {
            record.keep();
        }
        made.map(drop)
    }

    /// Makes an empty dataset.
    fn create_dataset(&self, name: &str, own: &Properties) -> Result<(), Refused> {
        let made = self.kernel.create(name, own);
        made.map_err(|e| Refused::with(e, format!("make the dataset {name}")))
    }

    /// Destroys a layer's dataset with all that it holds.
    fn destroy(&self, id: &LayerId, lock: &Lock) -> Result<()> {
        let name = self.dataset_of(id);
        match work::destroy(&self.kernel, &name, lock) {
            Ok(()) => Ok(()),
            Err(e) if e.why == Refusal::Busy => self.put_aside(id, &name, lock, e),
            Err(e) => Err(self.shown(e).on(id)),
        }
    }

    /// Gives a dataset that somebody keeps mounted another name, under which it is destroyed when they let go.
    fn put_aside(&self, id: &LayerId, name: &str, lock: &Lock, busy: Refused) -> Result<()> {
        let aside = format!("{}/.rm-{}", self.dataset, work::unique());
        let Ok(record) = Record::write(self.home.path(), &aside) else {
            return Err(busy.on(id));
        };
        zfs(&["rename", name, &aside], lock.pass()).map_err(|_| busy.on(id))?;
        record.keep();
        Ok(())
    }

    /// Names of datasets below ours as ids of layers, for a message.
    fn shown(&self, mut refused: Refused) -> Refused {
        if let Refusal::Dependents(names) = &mut refused.why {
            let ours = format!("{}/", self.dataset);
            for name in names {
                if let Some(id) = name.strip_prefix(&ours) {
                    *name = format!("layer {id}");
                }
            }
        }
        refused
    }
}

impl ProtoDriver for Zfs {
    fn name(&self) -> &str {
        NAME
    }

    fn create(&self, id: &str, parent: Option<&str>, opts: &CreateOpts) -> Result<()> {
        self.make(id, parent, opts, false)
    }

    fn create_read_write(&self, id: &str, parent: Option<&str>, opts: &CreateOpts) -> Result<()> {
        self.make(id, parent, opts, true)
    }

    fn remove(&self, id: &str) -> Result<()> {
        let id = layer_id(id)?;
        let _guard = self.locks.lock(&[&id]);
        if !self.has(&id)? {
            return Ok(());
        }
        let lock = Lock::shared(self.home.path())?;
        // A home that has become read-only is not to change; one that is full can be made room in.
        match Record::write(self.home.path(), "") {
            Err(e) if !e.is_no_room() => return Err(e),
            _ => {}
        }
        // What was put aside may be all that still lies on this one.
        work::retry(&self.kernel, &self.home, &lock);
        self.mounts.release(&self.home, &id)?;
        self.destroy(&id, &lock)?;
        remove_mount_point(&self.home.layer_path(&id))
    }

    fn get(&self, id: &str, mount_label: &str) -> Result<PathBuf> {
        let id = layer_id(id)?;
        let _guard = self.locks.lock(&[&id]);
        let name = self.dataset_of(&id);
        if !self.has(&id)? {
            return Err(id.unknown());
        }
        self.mounts.get(&self.home, &id, &name, mount_label)
    }

    fn put(&self, id: &str) -> Result<()> {
        let id = layer_id(id)?;
        let _guard = self.locks.lock(&[&id]);
        self.mounts.put(&self.home, &id)
    }

    fn exists(&self, id: &str) -> bool {
        layer_id(id).is_ok_and(|id| self.has(&id).unwrap_or(false))
    }

    /// moby's keys, with the values of now, and the release of the kernel's module.
    fn status(&self) -> Vec<(String, String)> {
        let pool = self.dataset.split('/').next().unwrap_or_default();
        let health = zpool(&["list", "-H", "-o", "health", pool]);
        let numbers = zfs(
            &[
                "list",
                "-Hp",
                "-o",
                "used,available,quota,compression",
                &self.dataset,
            ],
            None,
        );
        let health = health.map_or_else(|e| e.said, |text| text.trim().to_owned());
        let numbers = numbers.unwrap_or_default();
        let mut numbers = numbers.trim().split('\t').map(str::to_owned);
        let mut next = || numbers.next().unwrap_or_default();
        let pairs = [
            ("Zpool", pool.to_owned()),
            ("Zpool Health", health),
            ("Parent Dataset", self.dataset.clone()),
            ("Space Used By Parent", next()),
            ("Space Available", next()),
            (
                "Parent Quota",
                Some(next()).filter(|q| q != "0").unwrap_or("no".to_owned()),
            ),
            ("Compression", next()),
            (
                "Module Version",
                sys::zfs::Zfs::version().unwrap_or_default(),
            ),
        ];
        pairs.map(|(key, value)| (key.to_owned(), value)).to_vec()
    }

    /// `Dataset`, and `Mountpoint` while it is mounted.
    fn metadata(&self, id: &str) -> Result<Option<BTreeMap<String, String>>> {
        let id = layer_id(id)?;
        if !self.has(&id)? {
            return Err(id.unknown());
        }
        let mut found = BTreeMap::from([("Dataset".to_owned(), self.dataset_of(&id))]);
        let at = self.home.layer_path(&id);
        if sys::mount::is_mount_point(&at).unwrap_or(false) {
            found.insert("Mountpoint".to_owned(), at.to_string_lossy().into_owned());
        }
        Ok(Some(found))
    }

    fn cleanup(&self) -> Result<()> {
        let released = self.mounts.release_all(&self.home);
        if let Ok(lock) = Lock::shared(self.home.path()) {
            work::retry(&self.kernel, &self.home, &lock);
        }
        released
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new([
            Capability::Quota,
            Capability::QuotaInStatfs,
            Capability::IdMaps,
            Capability::Mounts,
            Capability::RefusesParentRemoval,
            Capability::DirRename,
            Capability::HardlinkCopyUp,
            Capability::StableInode,
            Capability::DirTimes,
            Capability::Sockets,
        ])
    }
}
