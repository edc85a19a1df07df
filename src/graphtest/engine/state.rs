//! The driver's home as a whole: what it held, whether it still does, taking it away.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::call::{Done, Fail};
use crate::lab;
use crate::sys;
use crate::tree::compare::{Compare, compare};
use crate::tree::{ScanOptions, Tree, TreePath, scan_path};

/// Everything below a home at one moment, without what is mounted there.
#[derive(Debug)]
pub(crate) struct HomeState(Tree);

impl HomeState {
    /// Looks at a home. A file behind a loop device is known by its name and size: what is on the device shows in layers, and a pool
    /// changes the rest whenever it likes.
    pub fn of(home: &Path) -> Done<Self> {
        Self::with(
            home,
            ScanOptions {
                unread: behind_devices(home),
                ..ScanOptions::default()
            },
        )
    }

    /// Looks at the names in a home alone.
    pub fn names(home: &Path) -> Done<Self> {
        Self::with(
            home,
            ScanOptions {
                contents: false,
                xattrs: false,
                ..ScanOptions::default()
            },
        )
    }

    fn with(home: &Path, options: ScanOptions) -> Done<Self> {
        let options = ScanOptions {
            skip_at_root: Vec::new(),
            ..options
        };
        match scan_path(home, &options) {
            Ok(tree) => Ok(Self(tree)),
            Err(e) => Err(Fail::new(format!("the driver's home cannot be read: {e}"))),
        }
    }

    /// The home must still be so; only times of directories may move, since a call may have made and removed something in them.
    pub fn compare(&self, home: &Path) -> Done {
        let how = Compare {
            ignore_dir_mtime: true,
            ..Compare::default()
        };
        let diff = compare(&self.0, &Self::of(home)?.0, &how);
        if diff.is_empty() {
            return Ok(());
        }
        Err(Fail::lines(
            "the driver's home is not as it was before:",
            diff.lines(),
        ))
    }

    /// Paths that are here and not there.
    pub fn not_in(&self, other: &Self) -> Vec<String> {
        let paths = self.0.entries.keys();
        paths
            .filter(|p| !other.0.entries.contains_key(*p))
            .map(ToString::to_string)
            .collect()
    }

    /// How many files and directories there are.
    pub fn len(&self) -> usize {
        self.0.entries.len()
    }
}

/// The files below a directory that are behind loop devices.
fn behind_devices(dir: &Path) -> Vec<TreePath> {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let attached = sys::loopdev::attached().unwrap_or_default();
    let below = attached.iter().filter_map(|(_, file)| {
        let path = file.strip_prefix(&dir).ok()?;
        Some(TreePath(path.as_os_str().as_bytes().to_vec()))
    });
    below.collect()
}

/// Removes a scenario's directory, with what is still mounted there, and the devices that stand on files in it.
pub(crate) fn remove_dir(dir: &Path) -> io::Result<()> {
    lab::take_down_devices(dir)?;
    sys::mount::umount_below(dir)?;
    sys::remove::remove_tree(dir)
}
