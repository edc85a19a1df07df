//! `aufs`: every layer is a branch, a directory of its own changes; the aufs filesystem shows it on top of those below.
//!
//! The layout is moby's and dockerd can take over a home (`<home>/{diff,layers,mnt}/<id>`). aufs is not part of Linux: it is a patch
//! and a module (<https://github.com/sfjro/aufs-standalone>); where the kernel has none the driver says so. Changes, diffs and sizes are
//! found in the branches alone, without a mount, and archives go into them.
//!
//! What differs from moby's driver, for the caller's sake:
//!
//! - A layer appears and disappears whole; a call that fails changes nothing.
//! - A layer with children is read-only, and cannot be removed.
//! - An archive gives what it says: a directory that no entry names looks as it does below, a file below gets a further name as a
//!   link, and a deletion of what is not there leaves nothing. moby's unpacks into the bare branch.
//! - Names of one file that lie in several branches stay one after an unmount, without the program `auplink`.
//! - Ids and homes may hold the characters that mean something in a list of branches.
//! - Mounts of several processes do not get in each other's way: each has a file of its own for inode numbers.
//! - Damaged lists of parents are told, never followed.

mod diff;
mod layout;
mod mount;
mod probe;
mod pseudo_links;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::io::Errno;

use super::copy::copy_directory_attributes;
use super::home::{Home, IdLocks, Stage, set_owner_and_mode, size_option, unmount_below};
use super::overlayfs::{Mounter, Mounts, View};
use crate::graphdriver::{
    Capabilities, Capability, CreateOpts, Driver, Error, InitOptions, LayerId, ProtoDriver, Result,
};
use crate::sys::xattr;
use layout::{DIFF, Lists, MNT, reserved};

/// The registered name.
pub const NAME: &str = "aufs";

/// Starts the driver, which has no options (moby's ignores them).
///
/// # Errors
/// Any option; [`Error::NotSupported`] where the kernel has no aufs; [`Error::IncompatibleFs`] on filesystems that aufs does not work on.
pub fn init(home: &Path, init: &InitOptions) -> Result<Arc<dyn Driver>> {
    if let Some(option) = init.options.first() {
        return Err(Error::InvalidOption {
            key: option.clone(),
            why: format!("{NAME} takes no options"),
        });
    }
    // Before the home is made: one with something in it is taken for a driver's state.
    probe::check_kernel()?;
    probe::check_backing(home)?;
    let home = Home::open(home, DIFF, &init.id_maps)?;
    match probe::Support::probe(&home) {
        Ok(support) => start(home, Arc::new(support), init),
        Err(e) => {
            let _ = rustix::fs::rmdir(home.path().join(DIFF));
            Err(e)
        }
    }
}

/// Starts a driver of this layout, whatever mounts its layers.
fn start(home: Home, mounter: Arc<dyn Mounter>, init: &InitOptions) -> Result<Arc<dyn Driver>> {
    let aufs = Arc::new(Aufs::open(home, mounter)?);
    Ok(Arc::new(diff::AufsDriver::new(aufs, init.id_maps.clone())))
}

fn layer_id(id: &str) -> Result<LayerId> {
    LayerId::parse_unreserved(id, reserved)
}

#[derive(Debug)]
struct Aufs {
    home: Home,
    lists: Lists,
    mounter: Arc<dyn Mounter>,
    locks: IdLocks,
    mounts: Mounts,
}

impl Aufs {
    fn open(home: Home, mounter: Arc<dyn Mounter>) -> Result<Self> {
        let lists = Lists::open(&home)?;
        home.directory(MNT)?;
        let aufs = Self {
            lists,
            mounts: Mounts::new(Arc::clone(&mounter)),
            mounter,
            locks: IdLocks::default(),
            home,
        };
        aufs.sweep()?;
        Ok(aufs)
    }

    /// Deletes what processes that were killed have left: half a layer, of ours or of moby's.
    fn sweep(&self) -> Result<()> {
        let _lock = self.lists.lock()?;
        for id in self.home.layers(|_| false)? {
            if reserved(id.as_str()) && !self.lists.has(&id) && id.as_str() != "lost+found" {
                self.home.discard(&id)?;
            }
        }
        self.lists.sweep(&self.home)?;
        let failed = |e| Error::io("read the directory", self.home.path().join(MNT), e);
        for entry in std::fs::read_dir(self.home.path().join(MNT)).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let id = path.file_name().and_then(|name| name.to_str());
            if id.is_some_and(|id| LayerId::parse(id).is_ok_and(|id| !self.home.has(&id))) {
                remove_mount_point(&path)?;
            }
        }
        Ok(())
    }

    fn make(&self, id: &str, parent: Option<&str>, opts: &CreateOpts, rw: bool) -> Result<()> {
        let id = layer_id(id)?;
        let parent = parent.map(layer_id).transpose()?;
        if size_option(opts, rw, None)?.is_some() {
            let why = format!("{NAME} limits no layers");
            return Err(Error::QuotaNotSupported(why));
        }
        // The parent is locked too: it must not be removed meanwhile.
        let _guard = self.locks.lock(
            &[Some(&id), parent.as_ref()]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>(),
        );
        if self.home.has(&id) {
            return Err(Error::LayerExists(id.to_string()));
        }
        let parents = match &parent {
            Some(parent) => self.chain_on(&id, parent)?,
            None => Vec::new(),
        };
        let stage = self.home.stage()?;
        self.fill(&stage, parent.as_ref())?;
        self.publish(stage, &id, &parents)
    }

    /// The list of a child of `parent`.
    fn chain_on(&self, id: &LayerId, parent: &LayerId) -> Result<Vec<LayerId>> {
        let mut parents = self.parents(parent)?;
        self.check_below(parent, &parents)?;
        parents.insert(0, parent.clone());
        let limit = self.mounter.max_lowers();
        if parents.len() > limit {
            let layers = |lowers: usize| u32::try_from(lowers + 1).unwrap_or(u32::MAX);
            return Err(Error::TooDeep {
                id: id.to_string(),
                depth: layers(parents.len()),
                limit: layers(limit),
            });
        }
        Ok(parents)
    }

    /// Makes a branch of a directory.
    fn fill(&self, stage: &Stage<'_>, parent: Option<&LayerId>) -> Result<()> {
        set_owner_and_mode(stage.dir(), 0o755, self.home.root_owner())
            .map_err(|e| Error::io("set up", stage.path(), e))?;
        if let Some(parent) = parent {
            // The root of the mount shows the attributes of this directory, so they are the parent's.
            let above = self.home.open_layer(parent)?;
            copy_directory_attributes(above.as_fd(), stage.dir(), |key| !xattr::is_internal(key))
                .map_err(|e| Error::io("copy the attributes of", self.home.layer_path(parent), e))?;
        }
        Ok(())
    }

    /// Gives a complete branch its name, after its list: a branch without one would be damaged.
    fn publish(&self, stage: Stage<'_>, id: &LayerId, parents: &[LayerId]) -> Result<()> {
        let list = self.lists.write(parents)?;
        let _lock = self.lists.lock()?;
        // Another process may have been faster.
        if self.home.has(id) {
            return Err(Error::LayerExists(id.to_string()));
        }
        list.name(id)?;
        let point = self.mount_point(id);
        let made = match rustix::fs::mkdir(&point, Mode::from(0o755)) {
            Ok(()) | Err(Errno::EXIST) => stage.commit(id),
            Err(e) => Err(Error::io("make", &point, e)),
        };
        if made.is_err() {
            // The first failure is the one to tell.
            let _ = self.lists.remove(id);
            let _ = remove_mount_point(&point);
        }
        made
    }

    fn mount_point(&self, id: &LayerId) -> PathBuf {
        self.home.path().join(MNT).join(id)
    }

    fn parents(&self, id: &LayerId) -> Result<Vec<LayerId>> {
        if !self.home.has(id) {
            return Err(id.unknown());
        }
        self.lists.parents(id)
    }

    /// A branch that is gone would be missing from the view without a word.
    fn check_below(&self, id: &LayerId, parents: &[LayerId]) -> Result<()> {
        match parents.iter().find(|parent| !self.home.has(parent)) {
            Some(gone) => Err(id.damaged(format!("nothing is left of {gone}, which it lies on"))),
            None => Ok(()),
        }
    }

    /// A layer that lies on this one, directly or not.
    fn child_of(&self, id: &LayerId) -> Result<Option<LayerId>> {
        let lies_on = |other: &LayerId| {
            // One that is damaged cannot be mounted anyway, and one may vanish just now.
            self.lists.parents(other).is_ok_and(|p| p.contains(id))
        };
        let others = self.home.layers(reserved)?;
        Ok(others
            .into_iter()
            .find(|other| other != id && lies_on(other)))
    }

    fn refuse_with_children(&self, id: &LayerId, why: &str) -> Result<()> {
        match self.child_of(id)? {
            Some(child) => Err(Error::InUse {
                id: id.to_string(),
                why: format!("layer {child} lies on it{why}"),
            }),
            None => Ok(()),
        }
    }

    fn view(&self, id: &LayerId) -> Result<View> {
        let parents = self.parents(id)?;
        let frozen = self.child_of(id)?.is_some();
        if parents.is_empty() {
            let branch = self.home.layer_path(id);
            // Every get gives the path that the first one gave.
            return Ok(if frozen || self.mounts.is_mounted(&self.home, id) {
                View::ReadOnly(branch)
            } else {
                View::Plain(branch)
            });
        }
        self.check_below(id, &parents)?;
        let branch = |id: &LayerId| Path::new(DIFF).join(id);
        let below = parents.iter().map(branch);
        Ok(if frozen {
            View::Overlay {
                lowers: std::iter::once(branch(id)).chain(below).collect(),
                upper: None,
            }
        } else {
            View::Overlay {
                lowers: below.collect(),
                // aufs needs no directory to work in.
                upper: Some((branch(id), PathBuf::new())),
            }
        })
    }
}

/// Removes a mount point; anything that is in it stays.
fn remove_mount_point(path: &Path) -> Result<()> {
    match rustix::fs::rmdir(path) {
        Ok(())
        | Err(Errno::NOENT | Errno::NOTDIR | Errno::NOTEMPTY | Errno::BUSY | Errno::ROFS) => Ok(()),
        Err(e) => Err(Error::io("remove", path, e)),
    }
}

impl ProtoDriver for Aufs {
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
        if !self.home.has(&id) {
            return Ok(());
        }
        self.refuse_with_children(&id, "")?;
        // What the mounter does before an unmount is for those who go on with the layer.
        let point = self.mount_point(&id);
        unmount_below(&point)?;
        self.mounts.release(&self.home, &id)?;
        unmount_below(&self.home.layer_path(&id))?;
        let aside = {
            let _lock = self.lists.lock()?;
            let aside = self.home.set_aside(&id)?;
            self.lists.remove(&id)?;
            remove_mount_point(&point)?;
            aside
        };
        aside.map_or(Ok(()), |aside| aside.delete())
    }

    fn get(&self, id: &str, mount_label: &str) -> Result<PathBuf> {
        let id = layer_id(id)?;
        let _guard = self.locks.lock(&[&id]);
        let view = self.view(&id)?;
        self.mounts.get(&self.home, &id, view, mount_label)
    }

    fn put(&self, id: &str) -> Result<()> {
        let id = layer_id(id)?;
        let _guard = self.locks.lock(&[&id]);
        self.mounts.put(&self.home, &id)
    }

    fn exists(&self, id: &str) -> bool {
        layer_id(id).is_ok_and(|id| self.home.has(&id))
    }

    /// moby's keys, and what was found out about the module.
    fn status(&self) -> Vec<(String, String)> {
        let dirs = self.home.layers(reserved).map_or(0, |layers| layers.len());
        let mut status = vec![
            (
                "Root Dir".to_owned(),
                self.home.path().display().to_string(),
            ),
            ("Dirs".to_owned(), dirs.to_string()),
        ];
        status.extend(self.mounter.status());
        status
    }

    /// `UpperDir` always; `LowerDir` with a parent; `MergedDir` while the layer is mounted. Every path exists.
    fn metadata(&self, id: &str) -> Result<Option<BTreeMap<String, String>>> {
        let id = layer_id(id)?;
        let parents = self.parents(&id)?;
        self.check_below(&id, &parents)?;
        let shown = |id: &LayerId| self.home.layer_path(id).to_string_lossy().into_owned();
        let mut data = BTreeMap::from([("UpperDir".to_owned(), shown(&id))]);
        if !parents.is_empty() {
            let lowers: Vec<String> = parents.iter().map(shown).collect();
            data.insert("LowerDir".to_owned(), lowers.join(":"));
        }
        if let Some(point) = self.mounts.mounted_at(&self.home, &id) {
            data.insert("MergedDir".to_owned(), point.to_string_lossy().into_owned());
        }
        Ok(Some(data))
    }

    fn cleanup(&self) -> Result<()> {
        self.mounts.release_all(&self.home)
    }

    fn capabilities(&self) -> Capabilities {
        let mut claims = self.mounter.claims();
        claims.extend([Capability::DiffGetter, Capability::NativeDiff]);
        let layers = u32::try_from(self.mounter.max_lowers() + 1).unwrap_or(u32::MAX);
        Capabilities::new(claims).with_max_depth(layers)
    }
}
