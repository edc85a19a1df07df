//! Homes of other names than usual, and homes that are reached or lie otherwise.

use std::ffi::OsStr;
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::call::{Done, Fail};
use super::subvolumes::mount_new_subvolume;
use super::world::World;
use crate::graphtest::step::{Expect, HomeStep, SubvolumeBy};
use crate::sys;
use crate::sys::mount::{MountFlags, escape_overlay_path};

/// Makes a directory and those above it.
pub(super) fn make_dir(path: &Path) -> Done {
    std::fs::create_dir_all(path).map_err(|e| cannot("make the directory", path, e))
}

/// Mounts an overlay of these directories, the uppermost lower one first.
pub(super) fn mount_overlay(
    at: &Path,
    lowers: &[PathBuf],
    upper: &Path,
    work: &Path,
    options: &[String],
) -> Done {
    let lowers: Vec<Vec<u8>> = lowers.iter().map(|dir| escape_overlay_path(dir)).collect();
    let dirs = [
        ("lowerdir=", lowers.join(&b':')),
        (",upperdir=", escape_overlay_path(upper)),
        (",workdir=", escape_overlay_path(work)),
    ];
    let mut data: Vec<u8> = Vec::new();
    for (key, value) in dirs {
        data.extend_from_slice(key.as_bytes());
        data.extend_from_slice(&value);
    }
    for option in options {
        data.push(b',');
        data.extend_from_slice(option.as_bytes());
    }
    if sys::ns::in_user_ns() {
        data.extend_from_slice(b",userxattr");
    }
    let source = Path::new("overlay");
    sys::mount::mount(source, at, "overlay", MountFlags::empty(), &data)
        .map_err(|e| cannot("mount an overlay at", at, e))
}

fn cannot(what: &str, path: &Path, e: impl Display) -> Fail {
    Fail::new(format!("cannot {what} {}: {e}", path.display()))
}

impl World<'_> {
    /// Makes the home as a step says and starts the first driver on it; `false` when the driver refuses it, as stated.
    pub fn start_in(&mut self, step: &HomeStep, expect: &Expect) -> Done<bool> {
        let below = match step.subvolume {
            Some(by) => self.in_subvolume(by)?,
            None => self.stacked(step.overlays.unwrap_or(0))?,
        };
        self.home = below.join(OsStr::from_bytes(&step.name.0));
        if step.link {
            let behind = below.join("behind-the-link");
            make_dir(&behind)?;
            make_dir(self.home.parent().unwrap_or(&below))?;
            symlink(&behind, &self.home).map_err(|e| cannot("make the link", &self.home, e))?;
        } else {
            make_dir(&self.home)?;
        }
        if step.bind {
            let behind = below.join("behind-the-mount");
            make_dir(&behind)?;
            sys::mount::bind(&behind, &self.home)
                .map_err(|e| cannot("bind a directory to", &self.home, e))?;
            self.bound = true;
        }
        if step.ignore_case {
            std::fs::File::open(&self.home)
                .and_then(|home| sys::fsctl::ignore_case(&home, true))
                .map_err(|e| cannot("turn off the case of names in", &self.home, e))?;
        }
        self.options = step.opts.clone();
        self.init(expect)
    }

    /// The directory that homes are in, where a subvolume is mounted by itself.
    fn in_subvolume(&self, by: SubvolumeBy) -> Done<PathBuf> {
        let at = self.homes().join("mounted");
        make_dir(&at)?;
        mount_new_subvolume(self.homes(), "subvolume", by, &at, MountFlags::empty())
            .map_err(|e| cannot("mount a subvolume at", &at, e))?;
        Ok(at)
    }

    /// A directory on that many overlays, the upper directories of which lie on the backing; they are taken away with the scenario's
    /// directory.
    fn stacked(&self, overlays: u32) -> Done<PathBuf> {
        let mut on = self.homes().to_path_buf();
        for level in 1..=overlays {
            let at = self.homes().join(format!("overlay-{level}"));
            let [lower, upper, work, merged] =
                ["lower", "upper", "work", "merged"].map(|name| at.join(name));
            for dir in [&lower, &upper, &work, &merged] {
                make_dir(dir)?;
            }
            let lower = if level == 1 { &lower } else { &on };
            mount_overlay(&merged, std::slice::from_ref(lower), &upper, &work, &[])?;
            on = merged;
        }
        Ok(on)
    }
}
