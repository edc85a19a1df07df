//! Bugs in what drivers do with datasets of zfs.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::graphdriver::Result;
use crate::graphtest::limits;
use crate::sync::lock;

use super::base::{Base, Bug, Create, other};
use super::calls::{stateful, stateless};

/// The dataset that a layer is.
fn dataset(b: &Base, id: &str) -> Result<Option<String>> {
    if !b.inner.exists(id) {
        return Ok(None);
    }
    let told = b.inner.metadata(id)?;
    Ok(told.and_then(|all| all.get("Dataset").cloned()))
}

fn zfs(words: &[&str]) -> Result<String> {
    limits::zfs(words).map_err(other)
}

stateless! {
    /// Snapshots that somebody else made keep a layer from being removed.
    SnapshotsBlock;
    /// Datasets inside keep a layer from being removed.
    DatasetsBlock;
    /// Removing a layer removes those made from it.
    ClonesRemoved;
    /// A mount elsewhere keeps a layer from being removed.
    BusyBlocks;
}

/// How many lines `zfs list` has of this type at and below a dataset.
fn count(kind: &str, name: &str) -> Result<usize> {
    let listed = zfs(&["list", "-H", "-r", "-t", kind, "-o", "name", name])?;
    Ok(listed.lines().count())
}

impl Bug for SnapshotsBlock {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        match dataset(b, id)? {
            Some(name) if count("snapshot", &name)? > 0 => Err(other("filesystem has children")),
            _ => b.remove(id),
        }
    }
}

impl Bug for DatasetsBlock {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        match dataset(b, id)? {
            Some(name) if count("filesystem", &name)? > 1 => Err(other("filesystem has children")),
            _ => b.remove(id),
        }
    }
}

impl Bug for ClonesRemoved {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        match dataset(b, id)? {
            Some(name) => zfs(&["destroy", "-R", &name]).map(drop),
            None => Ok(()),
        }
    }
}

impl Bug for BusyBlocks {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        let Some(name) = dataset(b, id)? else {
            return b.remove(id);
        };
        b.inner.cleanup()?;
        zfs(&["destroy", "-r", &name]).map(drop)
    }
}

/// The dataset of a layer stays, under another name.
#[derive(Debug, Default)]
pub(super) struct LeftBehind(AtomicU32);

/// What was created is said to exist until it is removed.
#[derive(Debug, Default)]
pub(super) struct Remembered(Mutex<BTreeSet<String>>);

stateful!(LeftBehind, Remembered);

impl Bug for LeftBehind {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        let Some(name) = dataset(b, id)? else {
            return b.remove(id);
        };
        b.inner.cleanup()?;
        let n = self.0.fetch_add(1, Ordering::Relaxed);
        zfs(&["rename", &name, &format!("{name}-left-{n}")]).map(drop)
    }
}

impl Bug for Remembered {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        b.create(&c)?;
        lock(&self.0).insert(c.id.to_owned());
        Ok(())
    }

    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        lock(&self.0).remove(id);
        b.remove(id)
    }

    fn exists(&self, b: &Base, id: &str) -> bool {
        lock(&self.0).contains(id) || b.inner.exists(id)
    }
}
