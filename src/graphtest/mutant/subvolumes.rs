//! Bugs in what drivers do with subvolumes: those inside layers, those beside the home, and what only looks like one.
#![allow(clippy::ptr_arg)] // All have the one signature that a recipe asks for.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use tar::EntryType;

use crate::graphdriver::{Error, Result};
use crate::sys::btrfs::{self, destroy, is_subvolume};

use super::base::{Base, Bug, Create, other};
use super::calls::{stateful, stateless};
use super::files::{remove_any, walk};
use super::recipe::Layer;
use super::tarball::TarEntry;

fn is_root_of_subvolume(path: &Path) -> io::Result<bool> {
    Ok(is_subvolume(File::open(path)?.as_fd())?)
}

/// The subvolumes below a directory, the outer ones before those inside them.
fn subvolumes(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for f in walk(root)?.into_iter().filter(|f| f.is_dir()) {
        if is_root_of_subvolume(&f.path)? {
            found.push(f.path);
        }
    }
    Ok(found)
}

/// Subvolumes inside the parent are empty directories in the child.
pub(super) fn empty_in_child(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    for path in subvolumes(root)?.iter().rev() {
        for entry in fs::read_dir(path)? {
            remove_any(&entry?.path())?;
        }
    }
    Ok(())
}

/// What lies in subvolumes inside a layer is left out of its diff.
pub(super) fn left_out_of_diff(entries: &mut Vec<TarEntry>, layer: &Layer<'_>) -> Result<()> {
    let inside = layer.base.with_root(layer.id, |root| {
        let mut below = subvolumes(root)?;
        for path in &mut below {
            *path = path.strip_prefix(root).map_err(io::Error::other)?.into();
        }
        Ok(below)
    })?;
    entries.retain(|e| {
        let dir = Path::new(std::ffi::OsStr::from_bytes(e.dir()));
        !inside.iter().any(|subvolume| dir.starts_with(subvolume))
    });
    Ok(())
}

/// Files of different subvolumes that have the same inode number are taken for one file.
pub(super) fn inodes_mixed(entries: &mut Vec<TarEntry>, layer: &Layer<'_>) -> Result<()> {
    let numbers: BTreeMap<Vec<u8>, u64> = layer.base.with_root(layer.id, |root| {
        let files = walk(root)?.into_iter().filter(|f| f.is_file());
        Ok(files
            .map(|f| (f.rel.as_os_str().as_bytes().to_vec(), f.meta.ino()))
            .collect())
    })?;
    let mut first: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for e in entries.iter_mut().filter(|e| e.is_file()) {
        let Some(number) = numbers.get(e.path()) else {
            continue;
        };
        match first.get(number) {
            Some(name) => {
                e.kind = EntryType::Link;
                e.link.clone_from(name);
                e.data.clear();
            }
            None => {
                first.insert(*number, e.name.clone());
            }
        }
    }
    Ok(())
}

stateless! {
    /// A layer with subvolumes inside cannot be removed.
    BlockRemoval;
    /// Removing a layer removes subvolumes beside the home.
    ForeignRemoved;
    /// A layer that cannot be removed is said to be.
    RemoveFailureSwallowed;
    /// What is no subvolume is handed out.
    PlainDirectoryHandedOut;
    /// A layer whose subvolume is read-only cannot be removed.
    ReadOnlyStays;
    /// Nor can one that is read-only and holds others.
    ReadOnlyNestedStays;
    /// A subvolume that is read-only is made writable.
    ReadOnlyWritten;
    /// A snapshot of a subvolume that is read-only is so, too.
    ReadOnlyInherited;
}

impl Bug for BlockRemoval {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        if b.inner.exists(id) && !b.with_root(id, subvolumes)?.is_empty() {
            return Err(other("directory not empty"));
        }
        b.remove(id)
    }
}

impl Bug for ForeignRemoved {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        b.remove(id)?;
        let Some(beside) = b.home.parent() else {
            return Ok(());
        };
        let dir = File::open(beside).map_err(other)?;
        for entry in fs::read_dir(beside).map_err(other)? {
            let path = entry.map_err(other)?.path();
            let name = path.file_name().unwrap_or_default();
            if path != b.home && path.is_dir() && is_root_of_subvolume(&path).map_err(other)? {
                destroy(dir.as_fd(), name.as_bytes()).map_err(other)?;
            }
        }
        Ok(())
    }
}

impl Bug for RemoveFailureSwallowed {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        let _ = b.remove(id);
        Ok(())
    }
}

impl Bug for PlainDirectoryHandedOut {
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        match b.inner.get(id, label) {
            Err(Error::Damaged { .. }) => Ok(b.home.join("subvolumes").join(id)),
            done => done,
        }
    }
}

/// Whether a layer's subvolume is read-only.
fn is_read_only(root: &Path) -> io::Result<bool> {
    Ok(btrfs::is_read_only(File::open(root)?.as_fd())?)
}

fn set_read_only(root: &Path, read_only: bool) -> io::Result<()> {
    Ok(btrfs::set_read_only(File::open(root)?.as_fd(), read_only)?)
}

impl Bug for ReadOnlyStays {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        if b.inner.exists(id) && b.with_root(id, is_read_only)? {
            return Err(other("read-only file system"));
        }
        b.remove(id)
    }
}

impl Bug for ReadOnlyNestedStays {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        let stays = |root: &Path| Ok(is_read_only(root)? && !subvolumes(root)?.is_empty());
        if b.inner.exists(id) && b.with_root(id, stays)? {
            return Err(other("read-only file system"));
        }
        b.remove(id)
    }
}

impl Bug for ReadOnlyWritten {
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        let path = b.inner.get(id, label)?;
        set_read_only(&path, false).map_err(other)?;
        Ok(path)
    }
}

impl Bug for ReadOnlyInherited {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        b.create(&c)?;
        match c.parent {
            Some(parent) if b.with_root(parent, is_read_only)? => {
                b.with_root(c.id, |root| set_read_only(root, true))
            }
            _ => Ok(()),
        }
    }
}

/// Subvolumes inside a layer stay when it is removed.
#[derive(Debug, Default)]
pub(super) struct LeftBehind(AtomicU32);

stateful!(LeftBehind);

impl Bug for LeftBehind {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        if b.inner.exists(id) {
            b.with_root(id, |root| {
                for path in subvolumes(root)?.iter().rev() {
                    let n = self.0.fetch_add(1, Ordering::Relaxed);
                    fs::rename(path, b.home.join(format!(".left-{n}")))?;
                }
                Ok(())
            })?;
        }
        b.remove(id)
    }
}
