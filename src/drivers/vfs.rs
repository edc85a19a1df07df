//! `vfs`: every layer is a whole copy of its parent. Needs nothing of the kernel and works on every filesystem.
//!
//! Layout, as moby's: `<home>/dir/<id>/` is the layer. Where the home has project quotas, the size of a layer can be limited. moby's own leaves an empty layer behind when the parent is missing, loses all
//! attributes but capabilities, and turns sockets into FIFOs; here a layer appears whole or not at all and keeps everything.

use crate::sync::lock;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::{Mode, fchmod, fstat, fstatfs};

use super::copy::{Files, copy_tree};
use super::home::{Home, is_temporary, set_owner_and_mode, size_option};
use crate::graphdriver::{
    Capabilities, Capability, CreateOpts, Driver, Error, FsMagic, InitOptions, LayerId, NaiveDiff,
    ProtoDriver, Result, parse_key_value, parse_size,
};
use crate::tree::Timestamp;

/// The registered name.
pub const NAME: &str = "vfs";

/// Starts the driver. The only option is `size`, the limit of layers that are made by `create_read_write` without one.
///
/// # Errors
/// An unknown option, the home cannot be made, or it has no project quotas and `size` is not 0.
pub fn init(home: &Path, init: &InitOptions) -> Result<Arc<dyn Driver>> {
    let mut size = None;
    for option in &init.options {
        let (key, value) = parse_key_value(option)?;
        if key != "size" {
            return Err(Error::InvalidOption {
                key,
                why: "vfs does not know it; its only option is size".to_owned(),
            });
        }
        size = Some(parse_size(&key, value)?).filter(|size| *size > 0);
    }
    let home = Home::open(home, "dir", &init.id_maps)?;
    if size.is_some() {
        home.quotas()?;
    }
    let vfs = Vfs {
        home,
        size,
        copied: Mutex::default(),
    };
    Ok(Arc::new(NaiveDiff::new(
        Arc::new(vfs),
        init.id_maps.clone(),
    )))
}

fn layer_id(id: &str) -> Result<LayerId> {
    LayerId::parse_unreserved(id, is_temporary)
}

#[derive(Debug)]
struct Vfs {
    home: Home,
    /// The limit of layers that are written to.
    size: Option<u64>,
    /// When the copies that this instance made were complete: by layer, with the parent that was copied. A new instance knows none
    /// and has contents compared, which is slower and as right.
    copied: Mutex<HashMap<String, (String, Timestamp)>>,
}

/// The clock of the filesystem that `dir` lies on: changing an inode, even to what it is, stamps it. `None` on xfs, which exchanges two
/// names (`RENAME_EXCHANGE`) without stamping either inode, so that an old stamp does not say that nothing moved.
fn now_on(dir: BorrowedFd<'_>) -> rustix::io::Result<Option<Timestamp>> {
    // The field is wider than the magic on most architectures.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    if FsMagic(fstatfs(dir)?.f_type as u32) == FsMagic::XFS {
        return Ok(None);
    }
    fchmod(dir, Mode::from_raw_mode(fstat(dir)?.st_mode))?;
    let stat = fstat(dir)?;
    Ok(Some(Timestamp {
        secs: stat.st_ctime,
        nanos: stat.st_ctime_nsec as u32,
    }))
}

impl Vfs {
    fn make(
        &self,
        id: &str,
        parent: Option<&str>,
        opts: &CreateOpts,
        read_write: bool,
    ) -> Result<()> {
        let id = layer_id(id)?;
        let parent = parent.map(layer_id).transpose()?;
        let size = size_option(opts, read_write, self.size)?;
        if size.is_some() {
            self.home.quotas()?;
        }
        if self.home.has(&id) {
            return Err(Error::LayerExists(id.to_string()));
        }
        let Some(parent) = parent else {
            let stage = self.home.stage()?;
            let limit = stage.count_for(size)?;
            set_owner_and_mode(stage.dir(), 0o755, self.home.root_owner())
                .map_err(|e| Error::io("set up", stage.path(), e))?;
            limit.map_or(Ok(()), |limit| limit.enforce())?;
            return stage.commit(&id);
        };
        let from = self.home.open_layer(&parent)?;
        let stage = self.home.stage()?;
        let limit = stage.count_for(size)?;
        copy_tree(from.as_fd(), stage.dir(), Files::Copied, |_| true)?;
        let copied = now_on(stage.dir()).map_err(|e| Error::io("stamp", stage.path(), e))?;
        limit.map_or(Ok(()), |limit| limit.enforce())?;
        stage.commit(&id)?;
        if let Some(at) = copied {
            self.copied()
                .insert(id.to_string(), (parent.to_string(), at));
        }
        Ok(())
    }

    fn copied(&self) -> MutexGuard<'_, HashMap<String, (String, Timestamp)>> {
        lock(&self.copied)
    }
}

impl ProtoDriver for Vfs {
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
        self.copied().remove(id.as_str());
        self.home.discard(&id)
    }

    fn get(&self, id: &str, _mount_label: &str) -> Result<PathBuf> {
        let id = layer_id(id)?;
        if self.home.has(&id) {
            Ok(self.home.layer_path(&id))
        } else {
            Err(id.unknown())
        }
    }

    fn put(&self, id: &str) -> Result<()> {
        layer_id(id).map(drop)
    }

    fn exists(&self, id: &str) -> bool {
        layer_id(id).is_ok_and(|id| self.home.has(&id))
    }

    fn status(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    fn metadata(&self, id: &str) -> Result<Option<BTreeMap<String, String>>> {
        self.get(id, "").map(|_| None)
    }

    fn cleanup(&self) -> Result<()> {
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        let claims = [
            Capability::IdMaps,
            Capability::IndependentChildren,
            Capability::DirRename,
            Capability::HardlinkCopyUp,
            Capability::StableInode,
            Capability::DirTimes,
            Capability::Sockets,
            Capability::HomeHoldsAll,
        ];
        let limits = self.home.quotas().is_ok();
        let limits = limits.then_some([
            Capability::Quota,
            Capability::QuotaWithParent,
            Capability::QuotaInStatfs,
        ]);
        Capabilities::new(claims.into_iter().chain(limits.into_iter().flatten()))
    }

    fn settled(&self, id: &str, parent: &str) -> Option<Timestamp> {
        let copied = self.copied();
        let (from, at) = copied.get(id)?;
        (from == parent).then_some(*at)
    }
}
