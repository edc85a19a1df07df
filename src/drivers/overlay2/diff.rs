//! Diffs of overlay2 from what a layer's `diff` holds, where the kernel and the question allow; else by comparing mounts.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use super::{Overlay2, Record, layer_id};
use crate::archive::{self, IdMaps, LayerStream};
use crate::graphdriver::{
    Capabilities, Change, CreateOpts, DiffGetter, DiffStream, Driver, Error, FileGetCloser, Held,
    LayerFiles, NaiveDiff, ProtoDriver, Result, delegate_proto_driver,
};

/// The whole driver.
#[derive(Debug)]
pub(super) struct Overlay2Driver {
    overlay: Arc<Overlay2>,
    naive: NaiveDiff<Overlay2>,
}

impl Overlay2Driver {
    pub fn new(overlay: Arc<Overlay2>, id_maps: IdMaps) -> Self {
        Self {
            naive: NaiveDiff::new(Arc::clone(&overlay), id_maps),
            overlay,
        }
    }

    /// What the layer holds by itself, found without a look at the whole trees; `None` when they must be compared.
    fn native(&self, id: &str, parent: Option<&str>) -> Result<Option<Native>> {
        // Without a parent all of the layer is asked for, whatever it lies on.
        let Some(parent) = parent else {
            return Ok(None);
        };
        let (id, parent) = (layer_id(id)?, layer_id(parent)?);
        let Some(form) = self.overlay.kind.mounter.upper_form() else {
            return Ok(None);
        };
        if !self.overlay.is_parent(&id, Some(&parent))? {
            return Ok(None);
        }
        let below = Held::get(
            Arc::clone(&self.overlay) as Arc<dyn ProtoDriver>,
            parent.as_str(),
        )?;
        let upper = self.overlay.open_diff(&id)?;
        let changes = match archive::layer_changes(upper.as_fd(), &[below.root()], form) {
            Ok(changes) => changes,
            // A layer written under other kernel settings holds redirects.
            Err(archive::Error::Refused { .. }) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        below.put()?;
        Ok(Some(Native { upper, changes }))
    }
}

struct Native {
    upper: OwnedFd,
    changes: Vec<Change>,
}

impl ProtoDriver for Overlay2Driver {
    delegate_proto_driver!(overlay);
}

impl Driver for Overlay2Driver {
    fn diff(&self, id: &str, parent: Option<&str>) -> Result<DiffStream> {
        match self.native(id, parent)? {
            None => self.naive.diff(id, parent),
            Some(native) => Ok(Box::new(LayerStream::from_changes(
                native.upper.as_fd(),
                native.changes,
                self.naive.write_options(),
            )?)),
        }
    }

    fn changes(&self, id: &str, parent: Option<&str>) -> Result<Vec<Change>> {
        match self.native(id, parent)? {
            None => self.naive.changes(id, parent),
            Some(native) => Ok(native.changes),
        }
    }

    fn apply_diff(&self, id: &str, _parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        let id = layer_id(id)?;
        {
            let _guard = self.overlay.locks.lock(&[&id]);
            let record = Record::read(&self.overlay.home, &id)?;
            if self.overlay.still_frozen(&id, &record)? {
                let why = "layers lie on it, which would change".to_owned();
                return Err(Error::InUse {
                    id: id.to_string(),
                    why,
                });
            }
        }
        let layer = Held::get(
            Arc::clone(&self.overlay) as Arc<dyn ProtoDriver>,
            id.as_str(),
        )?;
        archive::apply(layer.root(), diff, &self.naive.apply_options())?;
        layer.put()?;
        self.overlay.settle(&id)?;
        Ok(archive::layer_size(self.overlay.open_diff(&id)?.as_fd())?)
    }

    fn diff_size(&self, id: &str, parent: Option<&str>) -> Result<u64> {
        match self.native(id, parent)? {
            None => self.naive.diff_size(id, parent),
            Some(native) => Ok(archive::diff_size(native.upper.as_fd(), &native.changes)?),
        }
    }

    fn diff_getter(&self) -> Option<&dyn DiffGetter> {
        Some(self)
    }
}

impl DiffGetter for Overlay2Driver {
    fn diff_getter(&self, id: &str) -> Result<Box<dyn FileGetCloser>> {
        let id = layer_id(id)?;
        let diff = self.overlay.open_diff(&id)?;
        self.overlay.settle(&id)?;
        Ok(Box::new(LayerFiles::new(diff)))
    }
}
