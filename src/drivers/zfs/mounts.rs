//! Who has a layer: mounts, counted.
//!
//! A layer has its mount point as long as it is there (moby's driver makes it for each use): where the pool is full, none can be made.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;

use super::program::{PATIENCE, patiently};
use crate::drivers::home::{
    Home, detach, make_dir_if_missing, open_dir, remove_mount_point, temporary_name, unmount_below,
};
use crate::graphdriver::{Error, LayerId, MountTableChecker, RefCounter, Result};
use crate::sys;
use crate::sys::mount::MountFlags;

/// The layers in use. Callers hold the lock on the layer's id.
#[derive(Debug)]
pub(super) struct Mounts(RefCounter<MountTableChecker>);

impl Default for Mounts {
    fn default() -> Self {
        Self(RefCounter::new(MountTableChecker))
    }
}

impl Mounts {
    /// Counts a use and mounts the layer, unless it is already.
    pub fn get(&self, home: &Home, id: &LayerId, dataset: &str, label: &str) -> Result<PathBuf> {
        let at = home.layer_path(id);
        let uses = self.0.increment(&at);
        if uses > 1 && sys::mount::is_mount_point(&at).unwrap_or(false) {
            return Ok(at);
        }
        match mount(dataset, &at, label) {
            Ok(()) => Ok(at),
            Err(e) => {
                if self.0.decrement(&at) <= 0 {
                    // The first failure is the one to tell.
                    let _ = unmount(&at);
                }
                Err(e)
            }
        }
    }

    /// Gives a use back; the last one unmounts.
    pub fn put(&self, home: &Home, id: &LayerId) -> Result<()> {
        let at = home.layer_path(id);
        if self.0.decrement(&at) > 0 {
            return Ok(());
        }
        home.take_away(&at, unmount)
    }

    /// Unmounts the layer whoever uses it, and forgets that.
    pub fn release(&self, home: &Home, id: &LayerId) -> Result<()> {
        let at = home.layer_path(id);
        self.0.forget(&at);
        home.take_away(&at, unmount)?;
        // An earlier process may have mounted it twice.
        match std::fs::symlink_metadata(&at) {
            Ok(_) => unmount_below(&at),
            Err(_) => Ok(()),
        }
    }

    /// Unmounts every layer below the home, also of earlier processes; nothing else that is mounted there.
    pub fn release_all(&self, home: &Home) -> Result<()> {
        let graph = home.path().join(super::GRAPH);
        let below = sys::mount::mounts_below(&graph)
            .map_err(|e| Error::io("read the mounts below", &graph, e))?;
        let mut first = Ok(());
        for mount in below.iter().rev() {
            let done = if mount.path.parent() == Some(&graph) {
                self.0.forget(&mount.path);
                home.take_away(&mount.path, unmount)
            } else if mount.path.starts_with(&graph) && mount.path != graph {
                detach(&mount.path)
            } else {
                Ok(())
            };
            if first.is_ok() {
                first = done;
            }
        }
        first
    }

    /// Writes out what was written into a mapping of a file of the layer, which a snapshot would lack.
    pub fn flush(&self, home: &Home, id: &LayerId) -> Result<()> {
        let at = home.layer_path(id);
        if !sys::mount::is_mount_point(&at).unwrap_or(false) {
            return Ok(());
        }
        open_dir(CWD, &at)
            .and_then(rustix::fs::syncfs)
            .map_err(|e| Error::io("flush", at, e))
    }

    /// Mounts a dataset that is no layer yet for a moment, and does something with its root.
    pub fn with_mounted(
        &self,
        home: &Home,
        dataset: &str,
        work: impl FnOnce(BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> Result<()> {
        let at = home
            .path()
            .join(super::GRAPH)
            .join(temporary_name(crate::drivers::home::MAKING));
        let done = mount(dataset, &at, "").and_then(|()| {
            open_dir(CWD, &at)
                .and_then(|root| work(root.as_fd()))
                .map_err(|e| Error::io("set up", &at, e))
        });
        let gone = unmount(&at).and_then(|()| remove_mount_point(&at));
        done.and(gone)
    }
}

/// Makes the directory where a layer is mounted, if it is missing.
pub(super) fn make_mount_point(at: &Path) -> Result<()> {
    make_dir_if_missing(at, 0o755)
}

fn mount(dataset: &str, at: &Path, label: &str) -> Result<()> {
    make_mount_point(at)?;
    let data = if label.is_empty() {
        String::new()
    } else {
        format!("context=\"{label}\"")
    };
    // Busy is a dataset that was just unmounted, or is being mounted by another.
    let busy = |e: &std::io::Error| Errno::from_io_error(e) == Some(Errno::BUSY);
    let none = MountFlags::empty();
    patiently(PATIENCE, busy, || {
        sys::mount::mount(Path::new(dataset), at, "zfs", none, data.as_bytes())
    })
    .map_err(|e| Error::io("mount", at, e))
}

/// Unmounts; that nothing is mounted is success.
fn unmount(at: &Path) -> Result<()> {
    match sys::mount::umount(at).map_err(|e| Errno::from_io_error(&e).ok_or(e)) {
        Ok(()) | Err(Ok(Errno::INVAL | Errno::NOENT)) => Ok(()),
        // Somebody has a file open: it is gone from here now, and the dataset is free when that is closed.
        Err(Ok(Errno::BUSY)) => detach(at),
        Err(Ok(e)) => Err(Error::io("unmount", at, e)),
        Err(Err(e)) => Err(Error::io("unmount", at, e)),
    }
}
