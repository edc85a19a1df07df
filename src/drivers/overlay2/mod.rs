//! `overlay2`: every layer is a directory of its own changes; the kernel's overlay filesystem shows it on top of those below.
//!
//! The layout is moby's and dockerd can take over a home (`<home>/<id>/{diff,link,lower,work,merged,committed}`, `<home>/l/<short>`).
//! What differs from moby's driver, for the caller's sake:
//!
//! - A layer appears and disappears whole; a call that fails changes nothing (moby's deletes what stood under the id before).
//! - A layer with children is read-only also when it has no parent, and cannot be removed; it can be written to again when the last child is gone.
//! - Archives are applied through the mount, so that links, attributes and parents that lie in lower layers are what they are on
//!   any other driver. moby's unpacks into the bare `diff`, where `d/f` without an entry for `d` hides the mode of the lower `d`.
//! - Chains beyond what fits in a page are mounted through fsconfig(2), as far as the kernel goes.
//! - Damaged files are told, never followed; lost and leaked links in `l` are mended at the start.

mod diff;
mod layout;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, mkdirat};
use rustix::io::Errno;

use super::copy::copy_directory_attributes;
use super::home::{Home, IdLocks, Kept, Stage, is_temporary, make_dir, open_dir, size_option};
use super::overlayfs::{
    MERGED, Mounter, Mounts, OverlayMount, Support, View, freeze, make_mount_point, thaw,
};
use super::quota;
use crate::graphdriver::{
    Capabilities, Capability, CreateOpts, Driver, Error, InitOptions, LayerId, ProtoDriver, Result,
    parse_bool, parse_key_value, parse_size,
};
use crate::sys::xattr;
use crate::tree::Owner;
use layout::{LINKS, Links, Record, Short, lower_text};

/// The registered name.
pub const NAME: &str = "overlay2";

/// Its layers: `diff` and `work` are counted for a limit, and not the layer's records beside them. A layer that is full can be mounted and
/// get children, for which something is to be made in its directory.
pub(super) const KEPT: Kept = Kept {
    limited: "diff",
    ..Kept::in_directories("")
};

/// Starts the driver. Options: `overlay2.size`, the limit of layers that are made by `create_read_write` without one, and
/// `overlay2.override_kernel_check` (read and ignored, as moby does since 20.10).
///
/// # Errors
/// An unknown option; one of the not-supported errors when no overlay can be mounted here, or when the home has no project quotas
/// and `overlay2.size` is not 0.
pub fn init(home: &Path, init: &InitOptions) -> Result<Arc<dyn Driver>> {
    let mut size = None;
    for option in &init.options {
        let (key, value) = parse_key_value(option)?;
        match key.as_str() {
            "overlay2.override_kernel_check" => drop(parse_bool(&key, value)?),
            "overlay2.size" => size = Some(parse_size(&key, value)?).filter(|size| *size > 0),
            _ => {
                let why = "overlay2 does not know it; it has overlay2.size and overlay2.override_kernel_check";
                return Err(Error::InvalidOption {
                    key,
                    why: why.to_owned(),
                });
            }
        }
    }
    let home = Home::open_with(home, KEPT, &init.id_maps)?;
    let support = Support::probe(&home)?;
    let own = [
        ("Using metacopy", support.metacopy),
        ("Native Overlay Diff", support.native_diff),
        ("userxattr", support.user_xattr),
    ];
    let status = own.map(|(key, value)| (key.to_owned(), value.to_string()));
    let kind = Kind {
        name: NAME,
        size,
        status: status.into(),
        mounter: Arc::new(support),
    };
    start(home, kind, init)
}

/// Starts a driver of this layout, whatever mounts its layers.
pub(super) fn start(home: Home, kind: Kind, init: &InitOptions) -> Result<Arc<dyn Driver>> {
    let overlay = Arc::new(Overlay2::open(home, kind)?);
    Ok(Arc::new(diff::Overlay2Driver::new(
        overlay,
        init.id_maps.clone(),
    )))
}

/// What one driver of this layout has for itself.
#[derive(Debug)]
pub(super) struct Kind {
    /// The registered name.
    pub name: &'static str,
    /// The limit of layers that are written to.
    pub size: Option<u64>,
    /// Lines of the status after those of the mounter.
    pub status: Vec<(String, String)>,
    /// What shows the layers.
    pub mounter: Arc<dyn Mounter>,
}

fn reserved(id: &str) -> bool {
    id == LINKS || is_temporary(id) || id == quota::NODE || id == "lost+found"
}

fn layer_id(id: &str) -> Result<LayerId> {
    LayerId::parse_unreserved(id, reserved)
}

#[derive(Debug)]
struct Overlay2 {
    home: Home,
    links: Links,
    kind: Kind,
    locks: IdLocks,
    mounts: Mounts,
}

impl Overlay2 {
    fn open(home: Home, kind: Kind) -> Result<Self> {
        if kind.size.is_some() {
            home.quotas()?;
        }
        let links = home.path().join(LINKS);
        match rustix::fs::mkdir(&links, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(Error::io("make", links, e)),
        }
        let dir = open_dir(rustix::fs::CWD, &links).map_err(|e| Error::io("open", &links, e))?;
        let links = Links::new(dir);
        links.mend(&home, &home.layers(reserved)?)?;
        Ok(Self {
            home,
            links,
            mounts: Mounts::new(kind.mounter.clone()),
            kind,
            locks: IdLocks::default(),
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
        let size = size_option(opts, read_write, self.kind.size)?;
        if size.is_some() {
            self.home.quotas()?;
        }
        // The parent is locked too: it must not be removed, nor lose the mark that it has children, meanwhile.
        let _guard = self.locks.lock(
            &[Some(&id), parent.as_ref()]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>(),
        );
        if self.home.has(&id) {
            return Err(Error::LayerExists(id.to_string()));
        }
        let lower = match &parent {
            Some(parent) => self.lower_for(&id, parent)?,
            None => Vec::new(),
        };
        let stage = self.home.stage()?;
        let limit = stage.count_for(size)?;
        let short = Short::random()?;
        self.make_dirs(&stage, parent.as_ref())?;
        make_mount_point(&stage)?;
        if let Some(limit) = limit {
            limit.leave(stage.dir())?;
            limit.enforce()?;
        }
        let lower = lower_text(&lower);
        let records: [(&str, &[u8], u32); 2] = [
            ("link", short.as_str().as_bytes(), 0o644),
            ("lower", lower.as_bytes(), 0o644),
        ];
        // A layer without parent lies on none.
        stage.write_records(if lower.is_empty() {
            &records[..1]
        } else {
            &records
        })?;
        if let Some(parent) = &parent {
            freeze(&self.home, parent)?;
        }
        let _sweep = self.links.being_made()?;
        self.links.make(&short, &id)?;
        if let Err(e) = stage.commit(&id) {
            // The first failure is the one to tell.
            let _ = self.links.remove(&short, &id);
            return Err(e);
        }
        Ok(())
    }

    /// What a child of `parent` lies on.
    fn lower_for(&self, id: &LayerId, parent: &LayerId) -> Result<Vec<Short>> {
        let record = Record::read(&self.home, parent)?;
        self.check_lower(parent, &record)?;
        let mut lower = vec![record.link];
        lower.extend(record.lower);
        let limit = self.kind.mounter.max_lowers();
        let paths: Vec<PathBuf> = lower.iter().map(Short::path).collect();
        let fits = self.kind.mounter.takes(&self.overlay(id, &paths));
        if lower.len() > limit || !fits {
            let layers = |lowers: usize| u32::try_from(lowers + 1).unwrap_or(u32::MAX);
            return Err(Error::TooDeep {
                id: id.to_string(),
                depth: layers(lower.len()),
                limit: layers(limit.min(lower.len() - usize::from(!fits))),
            });
        }
        Ok(lower)
    }

    fn overlay<'a>(&'a self, id: &LayerId, lowers: &'a [PathBuf]) -> OverlayMount<'a> {
        let layer = Path::new(id.as_str());
        OverlayMount {
            home: self.home.path(),
            lowers,
            upper: Some((layer.join("diff"), layer.join("work"))),
            target: layer.join(MERGED),
            options: self.kind.mounter.options(),
            label: "",
        }
    }

    /// Makes the directories of a layer, the root of which shows the attributes of its parent's.
    fn make_dirs(&self, stage: &Stage<'_>, parent: Option<&LayerId>) -> Result<()> {
        let root = self.home.root_owner();
        let me = Owner {
            uid: rustix::process::geteuid().as_raw(),
            gid: root.gid,
        };
        super::home::set_owner_and_mode(stage.dir(), 0o710, me)
            .map_err(|e| Error::io("set up", stage.path(), e))?;
        let diff = make_dir(stage.dir(), "diff", 0o755, root)?;
        let Some(parent) = parent else { return Ok(()) };
        // The root of the mount shows the attributes of this directory, so they are the parent's.
        let above = self.open_diff(parent)?;
        copy_directory_attributes(above.as_fd(), diff.as_fd(), |key| !xattr::is_internal(key))
            .map_err(|e| Error::io("copy the attributes of", self.diff_path(parent), e))?;
        make_dir(stage.dir(), "work", 0o700, root).map(drop)
    }

    fn diff_path(&self, id: &LayerId) -> PathBuf {
        self.home.layer_path(id).join("diff")
    }

    fn open_diff(&self, id: &LayerId) -> Result<std::os::fd::OwnedFd> {
        let layer = self.home.open_layer(id)?;
        open_dir(layer.as_fd(), "diff").map_err(|e| match e {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => id.damaged("it has no directory `diff`"),
            e => Error::io("open", self.diff_path(id), e),
        })
    }

    /// Sees to it that `diff` holds what was written so far by those who have the layer.
    fn settle(&self, id: &LayerId) -> Result<()> {
        let merged = self.home.layer_path(id).join(MERGED);
        self.kind.mounter.settle(&merged)
    }

    /// Takes the mark away when the last child is gone and nobody has the layer; says whether it is still frozen. The caller holds
    /// the lock on the id, so no child is being made.
    fn still_frozen(&self, id: &LayerId, record: &Record) -> Result<bool> {
        if !record.committed {
            return Ok(false);
        }
        if self.child_of(id, &record.link)?.is_some() || self.mounts.in_use(&self.home, id) {
            return Ok(true);
        }
        thaw(&self.home, id)?;
        Ok(false)
    }

    /// A layer that lies on this one, directly or not.
    fn child_of(&self, id: &LayerId, link: &Short) -> Result<Option<LayerId>> {
        for other in self.home.layers(reserved)? {
            // One that is damaged cannot be mounted anyway, and one may vanish just now.
            if other != *id
                && Record::read(&self.home, &other).is_ok_and(|r| r.lower.contains(link))
            {
                return Ok(Some(other));
            }
        }
        Ok(None)
    }

    fn view(&self, id: &LayerId) -> Result<View> {
        let record = Record::read(&self.home, id)?;
        let frozen = self.still_frozen(id, &record)?;
        if record.lower.is_empty() {
            let diff = self.diff_path(id);
            return Ok(if frozen {
                View::ReadOnly(diff)
            } else {
                View::Plain(diff)
            });
        }
        self.check_lower(id, &record)?;
        let (diff, work) = if self.kind.mounter.wants_short_names() {
            (record.link.path(), record.link.path().join("../work"))
        } else {
            let layer = Path::new(id.as_str());
            (layer.join("diff"), layer.join("work"))
        };
        let below = record.lower.iter().map(Short::path);
        Ok(if frozen {
            let lowers = std::iter::once(diff).chain(below).collect();
            View::Overlay {
                lowers,
                upper: None,
            }
        } else {
            self.make_work(id)?;
            let upper = Some((diff, work));
            View::Overlay {
                lowers: below.collect(),
                upper,
            }
        })
    }

    /// Every short name must lead to a layer whose `link` it is: a name that leads elsewhere would give a wrong view. None may stand there
    /// twice, nor the layer's own: the kernel mounts no directory over itself (`ELOOP`), and a program that does shows it wrongly.
    fn check_lower(&self, id: &LayerId, record: &Record) -> Result<()> {
        let mut seen = HashSet::from([&record.link]);
        for short in &record.lower {
            if !seen.insert(short) {
                let why = format!("{} stands twice in its chain", short.path().display());
                return Err(id.damaged(why));
            }
            let below = self
                .links
                .layer_of(short)
                .filter(|below| self.home.has(below));
            if below.is_none() {
                let why = format!(
                    "nothing is left of {}, which it lies on",
                    short.path().display()
                );
                return Err(id.damaged(why));
            }
        }
        Ok(())
    }

    /// A lost work directory holds nothing that is needed.
    fn make_work(&self, id: &LayerId) -> Result<()> {
        let layer = self.home.open_layer(id)?;
        match mkdirat(&layer, "work", Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(()),
            Err(e) => return Err(Error::io("make", format!("{id}/work"), e)),
        }
        let Ok(quotas) = self.home.quotas() else {
            return Ok(());
        };
        // What is copied up is made in the one and renamed into the other, which must count for the same.
        let work = open_dir(layer.as_fd(), "work")
            .map_err(|e| Error::io("open", format!("{id}/work"), e))?;
        quotas.join(work.as_fd(), self.open_diff(id)?.as_fd())
    }

    /// Whether `parent` is what `id` lies on directly.
    fn is_parent(&self, id: &LayerId, parent: Option<&LayerId>) -> Result<bool> {
        let record = Record::read(&self.home, id)?;
        self.check_lower(id, &record)?;
        Ok(match (record.lower.first(), parent) {
            (None, None) => true,
            (Some(short), Some(parent)) => self.links.layer_of(short).as_ref() == Some(parent),
            _ => false,
        })
    }
}

impl ProtoDriver for Overlay2 {
    fn name(&self) -> &str {
        self.kind.name
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
        let record = Record::read(&self.home, &id).ok();
        if let Some(record) = record.as_ref().filter(|r| r.committed)
            && let Some(child) = self.child_of(&id, &record.link)?
        {
            return Err(Error::InUse {
                id: id.to_string(),
                why: format!("layer {child} lies on it"),
            });
        }
        self.mounts.remove(&self.home, &id)?;
        // After the layer, so that a layer never lacks its link; what a killed process leaves is swept at the next start.
        match record {
            Some(record) => self.links.remove(&record.link, &id),
            None => self.links.remove_all_to(&id),
        }
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
        let mut status = self.kind.mounter.status();
        status.extend(self.kind.status.iter().cloned());
        status
    }

    /// `UpperDir` always; `LowerDir` and `WorkDir` with a parent; `MergedDir` while the layer is mounted. Every path exists.
    fn metadata(&self, id: &str) -> Result<Option<BTreeMap<String, String>>> {
        let id = layer_id(id)?;
        let record = Record::read(&self.home, &id)?;
        let layer = self.home.layer_path(&id);
        let shown = |path: PathBuf| path.to_string_lossy().into_owned();
        let mut data = BTreeMap::from([("UpperDir".to_owned(), shown(layer.join("diff")))]);
        if !record.lower.is_empty() {
            self.check_lower(&id, &record)?;
            let lowers = record
                .lower
                .iter()
                .filter_map(|short| self.links.layer_of(short));
            let lowers: Vec<String> = lowers.map(|lower| shown(self.diff_path(&lower))).collect();
            data.insert("LowerDir".to_owned(), lowers.join(":"));
            data.insert("WorkDir".to_owned(), shown(layer.join("work")));
        }
        if let Some(merged) = self.mounts.mounted_at(&self.home, &id) {
            data.insert("MergedDir".to_owned(), shown(merged));
        }
        Ok(Some(data))
    }

    fn cleanup(&self) -> Result<()> {
        self.mounts.release_all(&self.home)
    }

    fn capabilities(&self) -> Capabilities {
        let mounter = &self.kind.mounter;
        let mut claims = mounter.claims();
        claims.push(Capability::DiffGetter);
        claims.extend(mounter.upper_form().map(|_| Capability::NativeDiff));
        if self.home.quotas().is_ok() {
            claims.extend([Capability::Quota, Capability::QuotaInStatfs]);
        }
        let layers = u32::try_from(mounter.max_lowers() + 1).unwrap_or(u32::MAX);
        Capabilities::new(claims).with_max_depth(layers)
    }
}
