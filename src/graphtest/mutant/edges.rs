//! Bugs that show only at an edge of the filesystem: long paths, many names, shared blocks.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::base::{Base, Bug};
use super::calls::stateless;
use super::files::{Found, copy_attributes, keeping_dir_time, lstat, remove_any, walk, xattrs};
use super::recipe::Layer;
use crate::graphdriver::Result;

stateless! {
    /// Whether a layer is mounted is asked by the home's path as it was given.
    SoughtUnresolved;
    /// What the mount table writes as `\040` is compared as it stands.
    NotUnescaped;
}

/// What lies deeper than this many bytes of path is lost.
const LONGEST: usize = 1000;

/// A child has nothing whose path is longer than 1000 bytes.
pub(super) fn long_paths_lost(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    cut_below(root, 0)
}

fn cut_below(dir: &Path, length: usize) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let length = length + 1 + entry.file_name().as_bytes().len();
        if length > LONGEST {
            keeping_dir_time(&entry.path(), || remove_any(&entry.path()))?;
        } else if entry.file_type()?.is_dir() {
            cut_below(&entry.path(), length)?;
        }
    }
    Ok(())
}

impl Bug for SoughtUnresolved {
    fn put(&self, b: &Base, id: &str) -> Result<()> {
        match b.home.canonicalize() {
            Ok(resolved) if resolved == b.home => b.inner.put(id),
            // Nothing of that path is in the mount table, so there is nothing to unmount.
            _ => Ok(()),
        }
    }
}

impl Bug for NotUnescaped {
    fn put(&self, b: &Base, id: &str) -> Result<()> {
        let escaped = |c: &u8| b" \t\n\\#".contains(c);
        if b.restarted && b.home.as_os_str().as_bytes().iter().any(escaped) {
            return Ok(());
        }
        b.inner.put(id)
    }
}

/// What was set inside a layer acts: an opaque directory has nothing of the parent's, a whiteout is no file.
pub(super) fn overlay_attributes_act(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    let marked = |found: &Found, what: &str| {
        let all = xattrs(&found.path).unwrap_or_default();
        all.iter()
            .any(|(name, _)| name.as_bytes() == what.as_bytes())
    };
    for found in walk(root)? {
        if marked(&found, "trusted.overlay.whiteout") {
            keeping_dir_time(&found.path, || remove_any(&found.path))?;
        }
        if !marked(&found, "trusted.overlay.opaque") {
            continue;
        }
        layer.with_parent(|parent| {
            for below in walk(&parent.join(&found.rel))? {
                let here = found.path.join(&below.rel);
                if lstat(&here).is_some() {
                    remove_any(&here)?;
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// An empty file is left.
pub(super) fn put_leaves_file(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    fs::write(root.join(".used"), "")
}

/// Files of equal content become names of one file.
pub(super) fn clone_becomes_link(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    let mut first: BTreeMap<Vec<u8>, Found> = BTreeMap::new();
    for file in walk(root)?.into_iter().filter(Found::is_file) {
        match first.entry(fs::read(&file.path)?) {
            Entry::Vacant(entry) => {
                entry.insert(file);
            }
            Entry::Occupied(other) if other.get().inode() != file.inode() => {
                keeping_dir_time(&file.path, || {
                    fs::remove_file(&file.path)?;
                    fs::hard_link(&other.get().path, &file.path)
                })?;
            }
            Entry::Occupied(_) => {}
        }
    }
    Ok(())
}

/// What a layer has of its parent's files, and changed, is written out byte by byte.
pub(super) fn copies_unshared(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    let time = |m: &fs::Metadata| (m.mtime(), m.mtime_nsec());
    let below = layer.with_parent(walk)?;
    for file in below.iter().filter(|f| f.is_file()) {
        let here = root.join(&file.rel);
        let Some(meta) = lstat(&here).filter(|m| m.is_file() && time(m) != time(&file.meta)) else {
            continue;
        };
        let content = fs::read(&here)?;
        keeping_dir_time(&here, || {
            fs::remove_file(&here)?;
            // Not std::fs::copy, which shares blocks itself.
            fs::write(&here, content)?;
            copy_attributes(&file.path, &meta, &here)
        })?;
    }
    Ok(())
}

/// Of files of one size, which may share their blocks, one is counted.
pub(super) fn shared_once(size: u64, layer: &Layer<'_>) -> Result<u64> {
    let sizes = layer.base.with_root(layer.id, |root| {
        let files = walk(root)?.into_iter().filter(Found::is_file);
        Ok(files.map(|f| f.meta.size()).collect::<Vec<_>>())
    })?;
    let mut seen = BTreeSet::new();
    let again: u64 = sizes.into_iter().filter(|s| !seen.insert(*s)).sum();
    Ok(size.saturating_sub(again))
}
