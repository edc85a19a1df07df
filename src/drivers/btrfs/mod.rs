//! `btrfs`: every layer is a subvolume; a layer with a parent begins as a snapshot of it, which shares its blocks.
//!
//! The layout is moby's: `<home>/subvolumes/<id>` is the layer, `<home>/quotas/<id>` its limit in bytes, if it has one. What differs
//! from moby's driver, for the caller's sake:
//!
//! - A layer appears and disappears whole; a call that fails changes nothing (moby's leaves the subvolume when a later step fails).
//! - Subvolumes that somebody made inside a layer are part of it: a child gets snapshots of them, too, where moby's finds empty
//!   directories; and they go with it, found by the filesystem's own records and not by a walk over all files.
//! - Nothing is mounted: moby's binds the home on itself, which serves nothing.
//! - What lies in the home but is no subvolume is told as damage and not handed out.

pub(super) mod subvolumes;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::io::Errno;

use super::home::{Home, is_temporary, set_owner_and_mode, size_option};
use crate::graphdriver::{
    Capabilities, Capability, CreateOpts, Driver, Error, FsMagic, InitOptions, LayerId, NaiveDiff,
    ProtoDriver, Result, get_fs_magic, parse_key_value,
};
use crate::sys;

/// The registered name.
pub const NAME: &str = "btrfs";

/// The directory of the layers.
const SUBVOLUMES: &str = "subvolumes";

/// Starts the driver.
///
/// # Errors
/// An unknown option; [`Error::Prerequisites`] when the home is not on a btrfs.
pub fn init(home: &Path, init: &InitOptions) -> Result<Arc<dyn Driver>> {
    if let Some(option) = init.options.first() {
        let (key, _) = parse_key_value(option)?;
        return Err(Error::InvalidOption {
            key,
            why: "btrfs does not know it".to_owned(),
        });
    }
    let btrfs = Arc::new(Btrfs::open(home, init)?);
    Ok(Arc::new(NaiveDiff::new(btrfs, init.id_maps.clone())))
}

/// Looks at the filesystem before anything is made on it.
fn check_filesystem(home: &Path) -> Result<()> {
    let there = home
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("."));
    let found = get_fs_magic(there)?;
    if found == FsMagic::BTRFS {
        return Ok(());
    }
    Err(Error::Prerequisites(format!(
        "{} is on {found}, and btrfs keeps layers on nothing but btrfs",
        there.display()
    )))
}

fn layer_id(id: &str) -> Result<LayerId> {
    LayerId::parse_unreserved(id, is_temporary)
}

#[derive(Debug)]
struct Btrfs {
    home: Home,
    /// Held for writing while a layer disappears: a snapshot of a subvolume that is deleted at the same moment makes kernels before
    /// 6.8 abort the filesystem (7081929ab257). Snapshots themselves may be made side by side and then share a transaction.
    disappearing: RwLock<()>,
}

impl Btrfs {
    fn open(path: &Path, init: &InitOptions) -> Result<Self> {
        check_filesystem(path)?;
        Ok(Self {
            home: Home::open_with(path, SUBVOLUMES, &init.id_maps, subvolumes::delete)?,
            disappearing: RwLock::default(),
        })
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
        if size_option(opts, read_write, None)?.is_some() {
            return Err(Error::QuotaNotSupported("not yet kept".to_owned()));
        }
        let _whole = self
            .disappearing
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        if self.home.has(&id) {
            return Err(Error::LayerExists(id.to_string()));
        }
        let stage = match parent {
            None => {
                let stage = self.home.stage_by(sys::btrfs::create_subvolume)?;
                set_owner_and_mode(stage.dir(), 0o755, self.home.root_owner())
                    .map_err(|e| Error::io("set up", stage.path(), e))?;
                stage
            }
            Some(parent) => {
                let from = self.open_layer(&parent)?;
                let stage = self.home.stage_by(|dir, name| {
                    sys::btrfs::snapshot(dir, name.as_bytes(), from.as_fd())
                })?;
                subvolumes::snapshot_nested(from.as_fd(), stage.dir())
                    .map_err(|e| Error::io("make snapshots below", stage.path(), e))?;
                stage
            }
        };
        stage.commit(&id)
    }

    /// Opens a layer's root, which must be that of a subvolume.
    fn open_layer(&self, id: &LayerId) -> Result<OwnedFd> {
        let dir = self.home.open_layer(id)?;
        match sys::btrfs::is_subvolume(dir.as_fd()) {
            Ok(true) => Ok(dir),
            Ok(false) => Err(id.damaged("it is no subvolume but a plain directory")),
            Err(e) => Err(Error::io("look at", self.home.layer_path(id), e)),
        }
    }
}

impl ProtoDriver for Btrfs {
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
        let _alone = self
            .disappearing
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match sys::btrfs::destroy(self.home.layers_dir(), id.as_str().as_bytes()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            // It cannot be deleted before another one is the default.
            Err(Errno::PERM) if self.is_default(&id) => Err(Error::InUse {
                id: id.to_string(),
                why: "it is the filesystem's default subvolume".to_owned(),
            }),
            // It holds other subvolumes, is none itself, or only its files may be deleted by this user.
            Err(_) => self.home.discard(&id),
        }
    }

    fn get(&self, id: &str, _mount_label: &str) -> Result<PathBuf> {
        let id = layer_id(id)?;
        self.open_layer(&id)?;
        Ok(self.home.layer_path(&id))
    }

    fn put(&self, id: &str) -> Result<()> {
        layer_id(id).map(drop)
    }

    fn exists(&self, id: &str) -> bool {
        layer_id(id).is_ok_and(|id| self.home.has(&id))
    }

    fn status(&self) -> Vec<(String, String)> {
        vec![("Backing Filesystem".to_owned(), NAME.to_owned())]
    }

    fn metadata(&self, id: &str) -> Result<Option<BTreeMap<String, String>>> {
        self.get(id, "").map(|_| None)
    }

    fn cleanup(&self) -> Result<()> {
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new([
            Capability::IdMaps,
            Capability::IndependentChildren,
            Capability::DirRename,
            Capability::HardlinkCopyUp,
            Capability::StableInode,
            Capability::DirTimes,
            Capability::Sockets,
        ])
    }
}

impl Btrfs {
    fn is_default(&self, id: &LayerId) -> bool {
        self.home
            .open_layer(id)
            .is_ok_and(|dir| sys::btrfs::is_default(dir.as_fd()).unwrap_or(false))
    }
}
