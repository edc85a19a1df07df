//! Diffs of aufs from the branches alone, where the question allows; else by comparing mounts.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::pseudo_links;
use super::{Aufs, layer_id};
use crate::archive::{self, ApplyOptions, Form, IdMaps, LayerStream};
use crate::graphdriver::{
    Capabilities, Change, CreateOpts, DiffGetter, DiffStream, Driver, FileGetCloser, Held,
    LayerFiles, LayerId, NaiveDiff, ProtoDriver, Result, delegate_proto_driver,
};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The whole driver.
#[derive(Debug)]
pub(super) struct AufsDriver {
    aufs: Arc<Aufs>,
    naive: NaiveDiff<Aufs>,
}

/// A layer's branch and those below it, the nearest first.
struct Branches {
    own: OwnedFd,
    below: Vec<OwnedFd>,
}

impl Branches {
    fn below(&self) -> Vec<BorrowedFd<'_>> {
        self.below.iter().map(AsFd::as_fd).collect()
    }

    fn changes(&self) -> Result<Vec<Change>> {
        Ok(archive::layer_changes(
            self.own.as_fd(),
            &self.below(),
            Form::Aufs,
        )?)
    }
}

impl AufsDriver {
    pub fn new(aufs: Arc<Aufs>, id_maps: IdMaps) -> Self {
        Self {
            naive: NaiveDiff::new(Arc::clone(&aufs), id_maps),
            aufs,
        }
    }

    fn branches(&self, id: &LayerId, parents: &[LayerId]) -> Result<Branches> {
        self.aufs.check_below(id, parents)?;
        let open = |id: &LayerId| self.aufs.home.open_layer(id);
        Ok(Branches {
            own: open(id)?,
            below: parents.iter().map(open).collect::<Result<_>>()?,
        })
    }

    /// The branches, when they hold the answer; `None` when whole trees must be compared.
    fn native(&self, id: &str, parent: Option<&str>) -> Result<Option<Branches>> {
        // Without a parent all of the layer is asked for, whatever it lies on.
        let Some(parent) = parent else {
            return Ok(None);
        };
        let (id, parent) = (layer_id(id)?, layer_id(parent)?);
        let parents = self.aufs.parents(&id)?;
        if parents.first() != Some(&parent) {
            return Ok(None);
        }
        let branches = self.branches(&id, &parents)?;
        // Until they are flushed, a name in a branch below may stand for a file that was written to in this one.
        let pending = self.aufs.mounts.is_mounted(&self.aufs.home, &id)
            && pseudo_links::any(branches.own.as_fd())?;
        Ok((!pending).then_some(branches))
    }

    /// Applies an archive where nobody sees the layer meanwhile: to the branch itself.
    fn apply_to_branch(
        &self,
        id: &LayerId,
        parents: &[LayerId],
        diff: &mut dyn Read,
    ) -> Result<()> {
        let branches = self.branches(id, parents)?;
        let options = ApplyOptions {
            form: Form::Aufs,
            ..self.naive.apply_options()
        };
        archive::apply_layer(branches.own.as_fd(), &branches.below(), diff, &options)?;
        Ok(())
    }
}

impl ProtoDriver for AufsDriver {
    delegate_proto_driver!(aufs);
}

impl Driver for AufsDriver {
    fn diff(&self, id: &str, parent: Option<&str>) -> Result<DiffStream> {
        match self.native(id, parent)? {
            None => self.naive.diff(id, parent),
            Some(branches) => Ok(Box::new(LayerStream::from_upper(
                branches.own.as_fd(),
                &branches.below(),
                Form::Aufs,
                self.naive.write_options(),
            )?)),
        }
    }

    fn changes(&self, id: &str, parent: Option<&str>) -> Result<Vec<Change>> {
        match self.native(id, parent)? {
            None => self.naive.changes(id, parent),
            Some(branches) => branches.changes(),
        }
    }

    fn apply_diff(&self, id: &str, _parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        let id = layer_id(id)?;
        let guard = self.aufs.locks.lock(&[&id]);
        let parents = self.aufs.parents(&id)?;
        self.aufs
            .refuse_with_children(&id, ", which would change")?;
        if parents.is_empty() || self.aufs.mounts.in_use(&self.aufs.home, &id) {
            // Got, it is shown as it is, or as somebody sees it now.
            drop(guard);
            let layer = Held::get(Arc::clone(&self.aufs) as Arc<dyn ProtoDriver>, id.as_str())?;
            archive::apply(layer.root(), diff, &self.naive.apply_options())?;
            layer.put()?;
        } else {
            self.apply_to_branch(&id, &parents, diff)?;
        }
        let own = self.aufs.home.open_layer(&id)?;
        let form = own_form(&parents);
        Ok(archive::layer_size_in(own.as_fd(), form)?)
    }

    fn diff_size(&self, id: &str, parent: Option<&str>) -> Result<u64> {
        match self.native(id, parent)? {
            None => self.naive.diff_size(id, parent),
            Some(branches) => Ok(archive::diff_size(
                branches.own.as_fd(),
                &branches.changes()?,
            )?),
        }
    }

    fn diff_getter(&self) -> Option<&dyn DiffGetter> {
        Some(self)
    }
}

/// A layer without a parent is a plain directory.
fn own_form(parents: &[LayerId]) -> Form {
    if parents.is_empty() {
        Form::Plain
    } else {
        Form::Aufs
    }
}

impl DiffGetter for AufsDriver {
    fn diff_getter(&self, id: &str) -> Result<Box<dyn FileGetCloser>> {
        let branch = self.aufs.home.open_layer(&layer_id(id)?)?;
        Ok(Box::new(LayerFiles::new(branch)))
    }
}
