//! Bugs in where a home lies: what else is mounted there, of which part of which filesystem, and how names are told apart.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use crate::graphdriver::Result;
use crate::sys::fsctl::{ignore_case, ignores_case};
use crate::sys::mount::{MountPoint, mount_of, mount_table, mounts_below, umount_detach};

use super::base::{Base, Bug, Create, other};
use super::calls::stateless;

stateless! {
    /// Cleanup unmounts the home itself.
    CleanupUnmountsHome;
    /// Cleanup unmounts what is mounted beside the home of the same filesystem.
    ForeignMountsTakenAway;
    /// A part of a filesystem is none.
    OnlyWholeFilesystems;
    /// What is read-only at one place counts as read-only everywhere.
    ReadOnlyElsewhere;
}

impl Bug for CleanupUnmountsHome {
    fn cleanup(&self, b: &Base) -> Result<()> {
        b.inner.cleanup()?;
        // Where nothing is mounted on it there is nothing to do wrong.
        let _ = umount_detach(&b.home);
        Ok(())
    }
}

/// The other mounts of the filesystem that the home lies on.
fn mounted_elsewhere(b: &Base) -> io::Result<Vec<MountPoint>> {
    let own = mount_of(&b.home.canonicalize()?)?;
    let mut table = mount_table()?;
    table.retain(|m| m.device == own.device && m.id != own.id);
    Ok(table)
}

impl Bug for ForeignMountsTakenAway {
    fn cleanup(&self, b: &Base) -> Result<()> {
        b.inner.cleanup()?;
        // Not those of everybody who works on it now: those in the directory that the mount is in on which the home lies.
        let above = b.home.ancestors().nth(2).unwrap_or(&b.home);
        let elsewhere = mounted_elsewhere(b).map_err(other)?;
        for mount in elsewhere.iter().filter(|m| m.path.starts_with(above)) {
            umount_detach(&mount.path).map_err(other)?;
        }
        Ok(())
    }
}

impl Bug for OnlyWholeFilesystems {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        let on = b.home.canonicalize().and_then(|home| mount_of(&home));
        if on.map_err(other)?.root != Path::new("/") {
            return Err(other("only a part of the filesystem is mounted"));
        }
        b.create(&c)
    }
}

impl Bug for ReadOnlyElsewhere {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        let elsewhere = mounted_elsewhere(b).map_err(other)?;
        let read_only = |m: &MountPoint| m.options.split(',').any(|option| option == "ro");
        if elsewhere.iter().any(read_only) {
            return Err(other("the filesystem is mounted read-only"));
        }
        b.create(&c)
    }
}

/// Fails while something is mounted below a home.
pub(super) fn no_mounts(home: &Path) -> io::Result<()> {
    match mounts_below(home)?.first() {
        Some(mount) => Err(io::Error::other(format!(
            "{}: in use",
            mount.path.display()
        ))),
        None => Ok(()),
    }
}

/// What [`heeding_case`] makes.
pub(super) const HEEDING: &str = "heeding-case";

/// A directory in the home that heeds case; the home itself where it does.
pub(super) fn heeding_case(home: &Path) -> io::Result<Cow<'_, Path>> {
    if !ignores_case(File::open(home)?.as_fd()) {
        return Ok(home.into());
    }
    let place = home.join(HEEDING);
    match fs::create_dir(&place) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.and_then(|()| ignore_case(&File::open(&place)?, false))?,
    }
    Ok(place.into())
}
