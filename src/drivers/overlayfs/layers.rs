//! Who holds a layer, and under which view.
//!
//! A layer has its mount point as long as it is there, so that it can be shown on a full disk. moby's drivers make it for each use; where
//! it is missing it is made.

use crate::sync::lock;
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::{AtFlags, Mode, mkdirat, statat, unlinkat};
use rustix::io::Errno;

use super::mount::OverlayMount;
use super::mounter::Mounter;
use crate::drivers::home::{
    Home, Stage, detach, make_dir_if_missing, unmount_below, write_atomically,
};
use crate::graphdriver::{Error, LayerId, MountTableChecker, RefCounter, Result};
use crate::sys;

/// The mount point in a layer's directory, where the mounter says nothing else.
pub(in crate::drivers) const MERGED: &str = "merged";

/// The file that says that a layer has children and is shown read-only. moby has it from 19.03 on (moby#39780).
pub(in crate::drivers) const COMMITTED: &str = "committed";

/// How a layer is shown.
#[derive(Debug)]
pub(in crate::drivers) enum View {
    /// This directory, as it is.
    Plain(PathBuf),
    /// This directory, read-only.
    ReadOnly(PathBuf),
    /// An overlay; paths relative to the home. Without an upper directory it is read-only.
    Overlay {
        /// Lower directories, the uppermost first.
        lowers: Vec<PathBuf>,
        /// Upper and work directory.
        upper: Option<(PathBuf, PathBuf)>,
    },
}

/// The layers in use. Callers hold the lock on the layer's id.
#[derive(Debug)]
pub(in crate::drivers) struct Mounts {
    mounter: Arc<dyn Mounter>,
    counter: RefCounter<MountTableChecker>,
    /// Layers handed out as they are, by how many.
    plain: Mutex<HashMap<LayerId, u64>>,
}

impl Mounts {
    /// Nothing in use, but for what an earlier process left mounted.
    pub fn new(mounter: Arc<dyn Mounter>) -> Self {
        Self {
            mounter,
            counter: RefCounter::new(MountTableChecker),
            plain: Mutex::default(),
        }
    }

    /// Counts a use and shows the layer, which is mounted unless it is already.
    pub fn get(&self, home: &Home, id: &LayerId, view: View, label: &str) -> Result<PathBuf> {
        let merged = self.point(home, id);
        let mut plain = self.plain();
        if let View::Plain(path) | View::ReadOnly(path) = &view {
            // Whoever has it already as it is has it until the last of them puts it: every get gives the same path.
            let held = plain.contains_key(id);
            if held || matches!(view, View::Plain(_)) {
                let path = path.clone();
                *plain.entry(id.clone()).or_default() += 1;
                return Ok(path);
            }
        }
        drop(plain);
        let uses = self.counter.increment(&merged);
        if uses > 1 && self.mounter.serves(&merged) {
            return Ok(merged);
        }
        match self.show(home, id, &view, label, &merged) {
            Ok(()) => Ok(merged),
            Err(e) => {
                if self.counter.decrement(&merged) <= 0 {
                    // The first failure is the one to tell.
                    let _ = self.mounter.unmount(&merged);
                }
                Err(e)
            }
        }
    }

    /// Gives a use back; the last one unmounts.
    pub fn put(&self, home: &Home, id: &LayerId) -> Result<()> {
        {
            let mut plain = self.plain();
            if let Some(count) = plain.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    plain.remove(id);
                }
                return Ok(());
            }
        }
        let merged = self.point(home, id);
        if self.counter.decrement(&merged) > 0 {
            return Ok(());
        }
        home.take_away(&merged, |at| self.mounter.unmount(at))
    }

    /// Unmounts the layer whoever uses it, and forgets that.
    pub fn release(&self, home: &Home, id: &LayerId) -> Result<()> {
        self.plain().remove(id);
        let merged = self.point(home, id);
        self.counter.forget(&merged);
        // An earlier process may have mounted it twice.
        while sys::mount::is_mount_point(&merged).unwrap_or(false) {
            self.mounter.unmount(&merged)?;
        }
        self.mounter.unmount(&merged)
    }

    /// Unmounts the layer, and whatever else is mounted below its directory, and removes it.
    pub fn remove(&self, home: &Home, id: &LayerId) -> Result<()> {
        self.release(home, id)?;
        unmount_below(&home.layer_path(id))?;
        home.discard(id)
    }

    /// Unmounts every layer below the home, also of earlier processes; nothing else that is mounted there.
    pub fn release_all(&self, home: &Home) -> Result<()> {
        let mut first = Ok(());
        let below = sys::mount::mounts_below(home.path())
            .map_err(|e| Error::io("read the mounts below", home.path(), e))?;
        for mount in below.iter().rev() {
            let inside = mount
                .path
                .strip_prefix(home.path())
                .unwrap_or(Path::new(""));
            if let Some(point) = self.point_above(inside) {
                let done = if inside == point {
                    home.take_away(&mount.path, |at| self.mounter.unmount(at))
                } else {
                    detach(&mount.path)
                };
                if first.is_ok() {
                    first = done;
                }
                self.counter.forget(&mount.path);
            }
        }
        self.plain().clear();
        first
    }

    /// Whether somebody has the layer now.
    pub fn in_use(&self, home: &Home, id: &LayerId) -> bool {
        self.plain().contains_key(id)
            || self.counter.count(&self.point(home, id)) > 0
            || self.is_mounted(home, id)
    }

    /// Whether the layer is mounted now, by whomever.
    pub fn is_mounted(&self, home: &Home, id: &LayerId) -> bool {
        self.mounted_at(home, id).is_some()
    }

    /// Where the layer is mounted now, by whomever.
    pub fn mounted_at(&self, home: &Home, id: &LayerId) -> Option<PathBuf> {
        let point = self.point(home, id);
        let mounted = sys::mount::is_mount_point(&point).unwrap_or(false);
        mounted.then_some(point)
    }

    /// Where the layer is mounted.
    fn point(&self, home: &Home, id: &LayerId) -> PathBuf {
        home.path().join(self.mounter.mount_point(id.as_str()))
    }

    /// The mount point of a layer that a path in the home is, or lies below.
    fn point_above(&self, inside: &Path) -> Option<PathBuf> {
        let ids = inside.iter().filter_map(|part| part.to_str()).take(2);
        let mut points = ids.map(|id| self.mounter.mount_point(id));
        points.find(|point| inside.starts_with(point))
    }

    fn show(
        &self,
        home: &Home,
        id: &LayerId,
        view: &View,
        label: &str,
        merged: &Path,
    ) -> Result<()> {
        make_dir_if_missing(merged, 0o700)?;
        let failed = |e| Error::io("mount", merged, e);
        match view {
            View::Plain(path) | View::ReadOnly(path) => {
                sys::mount::bind(path, merged).map_err(failed)?;
                sys::mount::remount_bind_read_only(merged).map_err(failed)
            }
            View::Overlay { lowers, upper } => self.mounter.mount(&OverlayMount {
                home: home.path(),
                lowers,
                upper: upper.clone(),
                target: self.mounter.mount_point(id.as_str()),
                options: self.mounter.options(),
                label,
            }),
        }
    }

    fn plain(&self) -> MutexGuard<'_, HashMap<LayerId, u64>> {
        lock(&self.plain)
    }
}

/// Makes the mount point of a layer that is being made, where the mounter says nothing else.
pub(in crate::drivers) fn make_mount_point(stage: &Stage<'_>) -> Result<()> {
    mkdirat(stage.dir(), MERGED, Mode::RWXU)
        .map_err(|e| Error::io("make", stage.path().join(MERGED), e))
}

/// Marks a layer as having children.
pub(in crate::drivers) fn freeze(home: &Home, id: &LayerId) -> Result<()> {
    let dir = home.open_layer(id)?;
    match statat(&dir, COMMITTED, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(()),
        Err(Errno::NOENT) => write_atomically(dir.as_fd(), COMMITTED, b"", 0o600),
        Err(e) => Err(Error::io("look at", home.layer_path(id).join(COMMITTED), e)),
    }
}

/// Takes the mark away.
pub(in crate::drivers) fn thaw(home: &Home, id: &LayerId) -> Result<()> {
    let dir = home.open_layer(id)?;
    match unlinkat(&dir, COMMITTED, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(Error::io("remove", home.layer_path(id).join(COMMITTED), e)),
    }
}
