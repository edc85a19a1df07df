//! `btrfs`: every layer is a subvolume; a layer with a parent begins as a snapshot of it, which shares its blocks.
//!
//! The layout is moby's: `<home>/subvolumes/<id>` is the layer, `<home>/quotas/<id>` its limit in bytes, if it has one. What differs
//! from moby's driver, for the caller's sake:
//!
//! - A layer appears and disappears whole; a call that fails changes nothing (moby's leaves the subvolume when a later step fails).
//! - Subvolumes that somebody made inside a layer are part of it: a child gets snapshots of them, too, where moby's finds empty
//!   directories; and they go with it, found by the filesystem's own records and not by a walk over all files.
//! - A diff of a large layer against its parent looks only at what the filesystem's records say was touched in either.
//! - Nothing is mounted: moby's binds the home on itself, which serves nothing.
//! - What lies in the home but is no subvolume is told as damage and not handed out.

mod limits;
pub(super) mod subvolumes;
#[cfg(test)]
mod tests;
mod touched;

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::io::Errno;

use self::limits::Limits;
use super::home::{Home, Kept, is_temporary, set_owner_and_mode, size_option};
use crate::graphdriver::{
    Capabilities, Capability, CreateOpts, Driver, Error, FsMagic, InitOptions, LayerId, NaiveDiff,
    ProtoDriver, Result, get_fs_magic, parse_key_value, parse_size,
};
use crate::sys;
use crate::sys::btrfs::QuotaMode;

/// The registered name.
pub const NAME: &str = "btrfs";

/// The directory of the layers.
const SUBVOLUMES: &str = "subvolumes";

const KEPT: Kept = Kept {
    delete: subvolumes::delete,
    ..Kept::in_directories(SUBVOLUMES)
};

/// The least size that a layer may be limited to; given, quotas are switched on at the start.
const MIN_SPACE: &str = "btrfs.min_space";

/// Starts the driver. The only option is `btrfs.min_space`.
///
/// # Errors
/// An unknown option; [`Error::Prerequisites`] when the home is not on a btrfs.
pub fn init(home: &Path, init: &InitOptions) -> Result<Arc<dyn Driver>> {
    let mut min_space = None;
    for option in &init.options {
        let (key, value) = parse_key_value(option)?;
        if key != MIN_SPACE {
            return Err(Error::InvalidOption {
                key,
                why: format!("btrfs does not know it; its only option is {MIN_SPACE}"),
            });
        }
        min_space = Some(parse_size(&key, value)?);
    }
    let btrfs = Arc::new(Btrfs::open(home, init, min_space)?);
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
    limits: Limits,
    /// Held for writing while a layer disappears: a snapshot of a subvolume that is deleted at the same moment makes kernels before
    /// 6.8 abort the filesystem (7081929ab257). Snapshots themselves may be made side by side and then share a transaction.
    disappearing: RwLock<()>,
    /// How many files a tree must have had for the search of what was touched in it; with fewer, comparing all is faster than the sync
    /// that the search needs.
    worth_searching: u64,
}

impl Btrfs {
    fn open(path: &Path, init: &InitOptions, min_space: Option<u64>) -> Result<Self> {
        check_filesystem(path)?;
        let home = Home::open_with(path, KEPT, &init.id_maps)?;
        Ok(Self {
            limits: Limits::open(&home, min_space)?,
            home,
            disappearing: RwLock::default(),
            worth_searching: touched::WORTH,
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
        let size = size_option(opts, read_write, None)?;
        let _whole = self
            .disappearing
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        if self.home.has(&id) {
            return Err(Error::LayerExists(id.to_string()));
        }
        let from = parent.map(|parent| self.open_layer(&parent)).transpose()?;
        if let Some(bytes) = size {
            self.limits.prepare(self.home.layers_dir(), bytes)?;
        }
        let stage = match from {
            None => {
                let stage = self.home.stage_by(sys::btrfs::create_subvolume)?;
                set_owner_and_mode(stage.dir(), 0o755, self.home.root_owner())
                    .map_err(|e| Error::io("set up", stage.path(), e))?;
                stage
            }
            Some(from) => {
                let stage = self.home.stage_by(|dir, name| {
                    sys::btrfs::snapshot(dir, name.as_bytes(), from.as_fd())
                })?;
                subvolumes::snapshot_nested(from.as_fd(), stage.dir())
                    .map_err(|e| Error::io("make snapshots below", stage.path(), e))?;
                stage
            }
        };
        self.limits.set(stage.dir(), size)?;
        stage.commit(&id)?;
        let Some(bytes) = size else { return Ok(()) };
        self.limits.record(&id, bytes).inspect_err(|_| {
            // What cannot be deleted now is a whole layer with its limit, which the caller can remove.
            let _ = self.home.discard(&id);
        })
    }

    /// Opens a layer's root, which must be that of a subvolume.
    fn open_layer(&self, id: &LayerId) -> Result<OwnedFd> {
        self.subvolume(id, self.home.open_layer(id)?)
    }

    fn subvolume(&self, id: &LayerId, dir: OwnedFd) -> Result<OwnedFd> {
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
        let groups = self
            .limits
            .lift(self.home.layers_dir(), || self.home.open_layer(&id));
        self.delete(&id)
            .inspect_err(|_| self.limits.restore(&id, || self.open_layer(&id)))?;
        self.limits.forget(self.home.layers_dir(), &id, groups)
    }

    fn get(&self, id: &str, _mount_label: &str) -> Result<PathBuf> {
        let id = layer_id(id)?;
        self.subvolume(&id, self.home.find_layer(&id)?)?;
        self.limits.keep(&id, || self.open_layer(&id))?;
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

    fn touched(&self, new: BorrowedFd<'_>, old: BorrowedFd<'_>) -> Option<HashSet<u64>> {
        // Whatever fails here, comparing all is right.
        touched::since_snapshot(new, old, self.worth_searching)
            .ok()
            .flatten()
    }

    fn capabilities(&self) -> Capabilities {
        let mut claims = Capabilities::new([
            Capability::IdMaps,
            Capability::IndependentChildren,
            Capability::DirRename,
            Capability::HardlinkCopyUp,
            Capability::StableInode,
            Capability::DirTimes,
            Capability::Sockets,
            Capability::HomeHoldsAll,
        ]);
        if let Some(counting) = self.limits.counting(self.home.layers_dir()) {
            claims.claims.insert(Capability::Quota);
            // With simple quotas data counts for the subvolume that wrote it.
            if counting != QuotaMode::Simple {
                claims.claims.insert(Capability::QuotaWithParent);
            }
        }
        claims
    }
}

impl Btrfs {
    /// Deletes a layer's subvolume with all that it holds.
    fn delete(&self, id: &LayerId) -> Result<()> {
        match sys::btrfs::destroy(self.home.layers_dir(), id.as_str().as_bytes()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            // It cannot be deleted before another one is the default.
            Err(Errno::PERM) if self.is_default(id) => Err(Error::InUse {
                id: id.to_string(),
                why: "it is the filesystem's default subvolume".to_owned(),
            }),
            // It holds other subvolumes, is none itself, or only its files may be deleted by this user.
            Err(_) => self.home.discard(id),
        }
    }

    fn is_default(&self, id: &LayerId) -> bool {
        self.home
            .open_layer(id)
            .is_ok_and(|dir| sys::btrfs::is_default(dir.as_fd()).unwrap_or(false))
    }
}
