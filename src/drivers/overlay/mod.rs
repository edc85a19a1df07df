//! `overlay`: the first driver on the overlay filesystem, which mounts one lower directory only (Linux 3.18).
//!
//! Layout, as moby's up to 23.0. An image layer is a whole tree in `root/`, whose unchanged files are hard links to those of its
//! parent. Any other layer has `upper/`, `work/` and, in `lower-id`, the image layer it lies on; a child of such a layer starts with a
//! copy of its `upper`. Applying an archive to a fresh layer on an image layer makes it an image layer. Layers are mounted on `merged/`.
//!
//! What differs from moby's driver: an image layer that shares files with its parent is mounted, too, so that writing to it never reaches
//! the parent's files (moby#7619); `parent-id` says what a layer was made on, and `committed` that it has children, which makes
//! it read-only and keeps it from being removed.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, mkdirat, renameat, unlinkat};
use rustix::io::Errno;

use super::copy::{Files, copy_directory_attributes, copy_tree};
use super::home::{
    Home, IdLocks, Stage, excerpt, has_entry, is_temporary, make_dir, open_dir, read_text,
    set_owner_and_mode, size_option,
};
use super::overlayfs::{COMMITTED, Mounter, Mounts, Support, View, freeze, make_mount_point, thaw};
use crate::archive::{self, ApplyOptions};
use crate::graphdriver::{
    ApplyDiff, Capabilities, CreateOpts, Driver, Error, InitOptions, LayerId, NaiveDiffWithApply,
    ProtoDriver, Result,
};
use crate::sys::{remove::remove_tree_at, xattr};
use crate::tree::Owner;

/// The registered name.
pub const NAME: &str = "overlay";

const ROOT: &str = "root";
const UPPER: &str = "upper";
const WORK: &str = "work";
const LOWER_ID: &str = "lower-id";
const PARENT_ID: &str = "parent-id";

/// Starts the driver, which has no options.
///
/// # Errors
/// Any option; one of the not-supported errors when no overlay can be mounted here.
pub fn init(home: &Path, init: &InitOptions) -> Result<Arc<dyn Driver>> {
    if let Some(option) = init.options.first() {
        return Err(Error::InvalidOption {
            key: option.clone(),
            why: "overlay takes no options".to_owned(),
        });
    }
    let home = Home::open(home, "", &init.id_maps)?;
    let support = Arc::new(Support::probe(&home)?);
    let overlay = Overlay {
        home,
        mounts: Mounts::new(support.clone()),
        support,
        locks: IdLocks::default(),
    };
    Ok(Arc::new(NaiveDiffWithApply::new(
        Arc::new(overlay),
        init.id_maps.clone(),
    )))
}

fn reserved(id: &str) -> bool {
    is_temporary(id) || id == "lost+found"
}

fn layer_id(id: &str) -> Result<LayerId> {
    LayerId::parse_unreserved(id, reserved)
}

#[derive(Debug)]
struct Overlay {
    home: Home,
    support: Arc<Support>,
    locks: IdLocks,
    mounts: Mounts,
}

/// What a layer's own files say.
#[derive(Debug)]
struct Record {
    /// The image layer whose `root` lies below; the layer itself, if it is one.
    image: LayerId,
    /// What it was made on; moby's driver does not write that.
    parent: Option<LayerId>,
    /// Whether it has changes of its own over that root, or a place for them.
    upper: bool,
    /// Whether it is marked as having children.
    committed: bool,
}

impl Record {
    fn read(home: &Home, id: &LayerId) -> Result<Self> {
        let dir = home.open_layer(id)?;
        let has = |name: &str| has_entry(dir.as_fd(), name);
        let named = |file: &str| match read_text(dir.as_fd(), id, file)? {
            None => Ok(None),
            Some(text) => match layer_id(&text) {
                Ok(named) => Ok(Some(named)),
                Err(_) => Err(id.damaged(format!(
                    "its file `{file}` names no layer but {}",
                    excerpt(&text)
                ))),
            },
        };
        let image = match named(LOWER_ID) {
            // What is left of the time before an archive was applied does not count.
            _ if has(ROOT) => id.clone(),
            Ok(Some(image)) => image,
            Ok(None) => return Err(id.damaged("it has neither `root` nor `lower-id`")),
            Err(e) => return Err(e),
        };
        if image != *id && !has(UPPER) {
            return Err(id.damaged("it has neither `root` nor `upper`"));
        }
        Ok(Self {
            image,
            parent: named(PARENT_ID)?,
            upper: has(UPPER),
            committed: has(COMMITTED),
        })
    }

    /// Whether the layer lies on this one.
    fn is_on(&self, id: &LayerId) -> bool {
        self.image == *id || self.parent.as_ref() == Some(id)
    }
}

/// The kernel's marks that hold only for the very directories they were made in.
fn survives_copying(key: &[u8]) -> bool {
    let marks: [&[u8]; 5] = [b"origin", b"impure", b"nlink", b"uuid", b"upper"];
    let overlay = key
        .strip_prefix(b"trusted.overlay.")
        .or_else(|| key.strip_prefix(b"user.overlay."));
    overlay.is_none_or(|name| !marks.contains(&name))
}

impl Overlay {
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
            return Err(Error::QuotaNotSupported(
                "overlay keeps no quota".to_owned(),
            ));
        }
        let ids: Vec<&LayerId> = [Some(&id), parent.as_ref()].into_iter().flatten().collect();
        let _guard = self.locks.lock(&ids);
        if self.home.has(&id) {
            return Err(Error::LayerExists(id.to_string()));
        }
        let below = parent
            .as_ref()
            .map(|parent| self.checked(parent))
            .transpose()?;
        let stage = self.home.stage()?;
        let root = self.home.root_owner();
        let me = Owner {
            uid: rustix::process::geteuid().as_raw(),
            gid: root.gid,
        };
        set_owner_and_mode(stage.dir(), 0o710, me)
            .map_err(|e| Error::io("set up", stage.path(), e))?;
        match (&parent, &below) {
            (Some(parent), Some(below)) => self.fill_child(&stage, parent, below)?,
            _ => drop(make_dir(stage.dir(), ROOT, 0o755, root)?),
        }
        make_mount_point(&stage)?;
        if let Some(parent) = &parent {
            freeze(&self.home, parent)?;
        }
        stage.commit(&id)
    }

    /// The record of a layer whose image layer is there.
    fn checked(&self, id: &LayerId) -> Result<Record> {
        let record = Record::read(&self.home, id)?;
        if record.image != *id {
            self.open(&record.image, ROOT).map_err(|_| {
                id.damaged(format!(
                    "nothing is left of layer {}, which it lies on",
                    record.image
                ))
            })?;
        }
        Ok(record)
    }

    fn fill_child(&self, stage: &Stage<'_>, parent: &LayerId, below: &Record) -> Result<()> {
        let upper = make_dir(stage.dir(), UPPER, 0o755, self.home.root_owner())?;
        if below.upper {
            let from = self.open(parent, UPPER)?;
            copy_tree(from.as_fd(), upper.as_fd(), Files::Copied, survives_copying)?;
        } else {
            self.dress(parent, ROOT, &upper)?;
        }
        make_dir(stage.dir(), WORK, 0o700, self.home.root_owner())?;
        let (image, parent) = (below.image.as_str(), parent.as_str());
        stage.write_records(&[
            (LOWER_ID, image.as_bytes(), 0o600),
            (PARENT_ID, parent.as_bytes(), 0o600),
        ])
    }

    /// Gives a directory, whose attributes the root of a layer shows, those of a layer's directory.
    fn dress(&self, id: &LayerId, name: &str, dir: &OwnedFd) -> Result<()> {
        let from = self.open(id, name)?;
        copy_directory_attributes(from.as_fd(), dir.as_fd(), |key| !xattr::is_internal(key))
            .map_err(|e| {
                Error::io(
                    "copy the attributes of",
                    self.home.layer_path(id).join(name),
                    e,
                )
            })
    }

    fn open(&self, id: &LayerId, name: &str) -> Result<OwnedFd> {
        let layer = self.home.open_layer(id)?;
        open_dir(layer.as_fd(), name).map_err(|e| match e {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => {
                id.damaged(format!("it has no directory `{name}`"))
            }
            e => Error::io("open", self.home.layer_path(id).join(name), e),
        })
    }

    /// Whether the layer is frozen; the mark goes when the last child is gone and nobody has the layer.
    fn still_frozen(&self, id: &LayerId, record: &Record) -> Result<bool> {
        if !record.committed {
            return Ok(false);
        }
        if self.child_of(id)?.is_some() || self.mounts.in_use(&self.home, id) {
            return Ok(true);
        }
        thaw(&self.home, id).map(|()| false)
    }

    fn child_of(&self, id: &LayerId) -> Result<Option<LayerId>> {
        for other in self.home.layers(reserved)? {
            if other != *id && Record::read(&self.home, &other).is_ok_and(|record| record.is_on(id))
            {
                return Ok(Some(other));
            }
        }
        Ok(None)
    }

    fn view(&self, id: &LayerId) -> Result<View> {
        let record = self.checked(id)?;
        let frozen = self.still_frozen(id, &record)?;
        let own_root = self.home.layer_path(id).join(ROOT);
        let layer = Path::new(id.as_str());
        let below = Path::new(record.image.as_str()).join(ROOT);
        Ok(match (frozen, record.upper) {
            (true, true) => View::Overlay {
                lowers: vec![layer.join(UPPER), below],
                upper: None,
            },
            (true, false) => View::ReadOnly(own_root),
            // An image layer without a parent shares its files with nobody.
            (false, false) if record.parent.is_none() => View::Plain(own_root),
            (false, _) => {
                self.make_upper(id, &record)?;
                View::Overlay {
                    lowers: vec![below],
                    upper: Some((layer.join(UPPER), layer.join(WORK))),
                }
            }
        })
    }

    /// A place for the changes of an image layer, which has none when it comes out of an archive.
    fn make_upper(&self, id: &LayerId, record: &Record) -> Result<()> {
        let layer = self.home.open_layer(id)?;
        match mkdirat(&layer, WORK, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(Error::io("make", self.home.layer_path(id).join(WORK), e)),
        }
        if record.upper {
            return Ok(());
        }
        // Under another name until it is complete.
        let making = "upper.new";
        self.delete(id, &layer, making)?;
        let upper = make_dir(layer.as_fd(), making, 0o755, self.home.root_owner())?;
        self.dress(id, ROOT, &upper)?;
        renameat(&layer, making, &layer, UPPER)
            .map_err(|e| Error::io("rename", self.home.layer_path(id).join(making), e))
    }

    fn delete(&self, id: &LayerId, layer: &OwnedFd, name: &str) -> Result<()> {
        remove_tree_at(layer.as_fd(), name.as_ref())
            .map_err(|e| Error::io("remove", self.home.layer_path(id).join(name), e))
    }

    /// Whether an archive for this layer is best unpacked into a tree of links to the image layer below: that is its parent, and
    /// the layer has nothing of its own yet.
    fn becomes_image(&self, id: &LayerId, parent: &LayerId, record: &Record) -> Result<bool> {
        if record.image == *id || record.image != *parent || self.mounts.in_use(&self.home, id) {
            return Ok(false);
        }
        if Record::read(&self.home, parent)?.upper && !self.is_empty(parent)? {
            return Ok(false);
        }
        self.is_empty(id)
    }

    fn is_empty(&self, id: &LayerId) -> Result<bool> {
        let upper = self.open(id, UPPER)?;
        let mut empty = true;
        crate::sys::fs::for_each_name(upper.as_fd(), |_, _| {
            empty = false;
            Ok(())
        })
        .map_err(|e| {
            Error::io(
                "read the directory",
                self.home.layer_path(id).join(UPPER),
                e,
            )
        })?;
        Ok(empty)
    }

    fn unpack(
        &self,
        id: &LayerId,
        parent: &LayerId,
        diff: &mut dyn Read,
        options: &ApplyOptions,
    ) -> Result<u64> {
        let stage = self.home.stage()?;
        let root = make_dir(stage.dir(), ROOT, 0o755, self.home.root_owner())?;
        let from = self.open(parent, ROOT)?;
        copy_tree(
            from.as_fd(),
            root.as_fd(),
            Files::HardLinked,
            survives_copying,
        )?;
        // The layer's own root may have been given other attributes, or its parent's may.
        self.dress(id, UPPER, &root)?;
        // What is replaced is unlinked first, so the parent's files are never written to.
        let applied = archive::apply(root.as_fd(), diff, options)?;
        let layer = self.home.open_layer(id)?;
        renameat(stage.dir(), ROOT, &layer, ROOT).map_err(|e| {
            Error::io(
                "rename the new root to",
                self.home.layer_path(id).join(ROOT),
                e,
            )
        })?;
        // From here on it is an image layer, whatever else is left.
        self.delete(id, &layer, UPPER)?;
        self.delete(id, &layer, WORK)?;
        match unlinkat(&layer, LOWER_ID, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(applied.size),
            Err(e) => Err(Error::io(
                "remove",
                self.home.layer_path(id).join(LOWER_ID),
                e,
            )),
        }
    }
}

impl ApplyDiff for Overlay {
    fn try_apply_diff(
        &self,
        id: &str,
        parent: Option<&str>,
        diff: &mut dyn Read,
        options: &ApplyOptions,
    ) -> Result<Option<u64>> {
        let id = layer_id(id)?;
        let parent = parent.map(layer_id).transpose()?;
        let _guard = self.locks.lock(&[&id]);
        let record = self.checked(&id)?;
        if self.still_frozen(&id, &record)? {
            let why = "layers lie on it, which would change".to_owned();
            return Err(Error::InUse {
                id: id.to_string(),
                why,
            });
        }
        match parent {
            Some(parent) if self.becomes_image(&id, &parent, &record)? => {
                self.unpack(&id, &parent, diff, options).map(Some)
            }
            _ => Ok(None),
        }
    }
}

impl ProtoDriver for Overlay {
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
        // moby's own layers have no mark, so all are asked.
        if let Some(child) = self.child_of(&id)? {
            return Err(Error::InUse {
                id: id.to_string(),
                why: format!("layer {child} lies on it"),
            });
        }
        self.mounts.remove(&self.home, &id)
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

    fn status(&self) -> Vec<(String, String)> {
        self.support.status()
    }

    /// Of an image layer `RootDir`; of others `LowerDir`, `UpperDir` and `WorkDir`, and `MergedDir` while it is mounted. Every path exists.
    fn metadata(&self, id: &str) -> Result<Option<BTreeMap<String, String>>> {
        let id = layer_id(id)?;
        let record = self.checked(&id)?;
        let layer = self.home.layer_path(&id);
        let mut paths = Vec::new();
        if record.image == id {
            paths.push(("RootDir", layer.join(ROOT)));
        } else {
            paths.push(("LowerDir", self.home.layer_path(&record.image).join(ROOT)));
            paths.push(("UpperDir", layer.join(UPPER)));
            paths.push(("WorkDir", layer.join(WORK)));
        }
        if let Some(merged) = self.mounts.mounted_at(&self.home, &id) {
            paths.push(("MergedDir", merged));
        }
        let shown =
            |(key, path): (&str, PathBuf)| (key.to_owned(), path.to_string_lossy().into_owned());
        Ok(Some(paths.into_iter().map(shown).collect()))
    }

    fn cleanup(&self) -> Result<()> {
        self.mounts.release_all(&self.home)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(self.support.claims())
    }
}
