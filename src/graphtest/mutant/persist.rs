//! Bugs that show after a restart, a crash, or damage on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;

use crate::graphdriver::{Change, CreateOpts, DiffStream, Error, Result};

use super::base::{Base, Bug, Create, other};
use super::calls::{stateful, stateless};
use super::files::{remove_any, walk};
use crate::sync::lock;

stateless! {
    /// A new layer is there before it shows its parent.
    CreateNotAtomic;
    /// A layer is emptied before it is removed.
    RemoveNotAtomic;
    /// While it starts, the driver's directories have other names.
    StartNotAtomic;
    /// After a restart the first get mounts nothing: the mount is believed to be there.
    RestartLosesMount;
    /// After a restart layers differ from nothing: their parents are forgotten.
    RestartForgetsParents;
    /// Removing a layer whose `link` file is empty removes all links.
    EmptyLinkWipesLinks;
    /// A damaged layer is shown as an empty directory.
    DamageShownEmpty;
    /// A restart empties what was written last.
    RestartEmptiesFiles;
}

/// What of a chain stands there again, is left out.
#[derive(Debug, Default)]
pub(super) struct ChainWithoutRepeats;

impl Bug for ChainWithoutRepeats {
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        match b.inner.get(id, label) {
            Err(Error::Damaged { .. }) => {
                let layer = b.home.join(id);
                let own = fs::read_to_string(layer.join("link")).map_err(other)?;
                let lower = fs::read_to_string(layer.join("lower")).map_err(other)?;
                let mut seen = BTreeSet::from([format!("l/{own}")]);
                let once: Vec<&str> = lower
                    .split(':')
                    .filter(|short| seen.insert((*short).to_string()))
                    .collect();
                fs::write(layer.join("lower"), once.join(":")).map_err(other)?;
                b.inner.get(id, label)
            }
            done => done,
        }
    }
}

/// Layers made before a restart do not exist after it.
#[derive(Debug, Default)]
pub(super) struct RestartForgets(Mutex<BTreeSet<String>>);

impl Bug for RestartForgets {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        b.create(&c)?;
        lock(&self.0).insert(c.id.to_string());
        Ok(())
    }
    fn exists(&self, b: &Base, id: &str) -> bool {
        (!b.restarted || lock(&self.0).contains(id)) && b.inner.exists(id)
    }
}

impl Bug for CreateNotAtomic {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        if c.parent.is_none_or(|p| !b.inner.exists(p)) || b.inner.exists(c.id) {
            return b.create(&c);
        }
        b.create(&Create { parent: None, ..c })?;
        b.remove(c.id)?;
        b.create(&c)
    }
}

impl Bug for RemoveNotAtomic {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        if b.inner.exists(id) {
            b.with_root(id, |root| {
                fs::read_dir(root)?.try_for_each(|e| remove_any(&e?.path()))
            })?;
        }
        b.remove(id)
    }
}

impl Bug for StartNotAtomic {
    fn start(&self, b: &Base) -> Result<()> {
        let entries: io::Result<Vec<_>> = fs::read_dir(&b.home).and_then(Iterator::collect);
        for entry in entries.map_err(other)? {
            let aside = b.home.join(".aside");
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                fs::rename(entry.path(), &aside)
                    .and_then(|()| fs::rename(&aside, entry.path()))
                    .map_err(other)?;
            }
        }
        Ok(())
    }
}

impl Bug for RestartLosesMount {
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        let path = b.inner.get(id, label)?;
        if b.restarted {
            b.inner.put(id)?;
        }
        Ok(path)
    }
    fn put(&self, b: &Base, id: &str) -> Result<()> {
        if b.restarted { Ok(()) } else { b.inner.put(id) }
    }
}

impl Bug for RestartForgetsParents {
    fn diff(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<DiffStream> {
        b.inner.diff(id, parent.filter(|_| !b.restarted))
    }
    fn changes(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<Vec<Change>> {
        b.inner.changes(id, parent.filter(|_| !b.restarted))
    }
}

impl Bug for EmptyLinkWipesLinks {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        let empty = fs::metadata(b.home.join(id).join("link")).is_ok_and(|m| m.len() == 0);
        if empty && !id.is_empty() {
            let links = b.home.join("l");
            fs::read_dir(&links)
                .and_then(|mut d| d.try_for_each(|e| remove_any(&e?.path())))
                .map_err(other)?;
        }
        b.remove(id)
    }
}

impl Bug for DamageShownEmpty {
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        match b.inner.get(id, label) {
            Err(Error::Damaged { .. } | Error::Io { .. }) if b.inner.exists(id) => {
                let dir = b.home.join(format!(".empty-{id}"));
                fs::create_dir_all(&dir).map_err(other)?;
                Ok(dir)
            }
            done => done,
        }
    }
    fn diff(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<DiffStream> {
        b.inner.diff(id, parent)
    }
}

impl Bug for RestartEmptiesFiles {
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        let path = b.inner.get(id, label)?;
        if b.restarted {
            for f in walk(&path).map_err(other)?.iter().filter(|f| f.is_file()) {
                // A read-only view cannot be damaged this way, and is not.
                let _ = fs::OpenOptions::new()
                    .write(true)
                    .open(&f.path)
                    .and_then(|file| file.set_len(0));
            }
        }
        Ok(path)
    }
}

/// An id once removed cannot be used again.
#[derive(Debug, Default)]
pub(super) struct IdBurned(Mutex<BTreeSet<String>>);

impl Bug for IdBurned {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        if lock(&self.0).contains(c.id) {
            return Err(Error::LayerExists(c.id.to_string()));
        }
        b.create(&c)
    }
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        b.remove(id)?;
        lock(&self.0).insert(id.to_string());
        Ok(())
    }
}

/// A layer made under an id that was removed has the old content.
#[derive(Debug, Default)]
pub(super) struct RecreatedHasOldContent(Mutex<BTreeMap<String, String>>);

impl Bug for RecreatedHasOldContent {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        b.create(&c)?;
        match lock(&self.0).get(c.id) {
            Some(old) => b.with_root(c.id, |root| fs::write(root.join("left-over"), old)),
            None => Ok(()),
        }
    }
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        if b.inner.exists(id) {
            lock(&self.0).insert(id.to_string(), id.to_string());
        }
        b.remove(id)
    }
}

/// Options for a layer that the driver cannot take are remembered and fail later, at get.
#[derive(Debug, Default)]
pub(super) struct DepthErrorAtGet(Mutex<BTreeMap<String, String>>);

impl Bug for DepthErrorAtGet {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        match b.create(&c) {
            Err(e @ Error::TooDeep { .. }) => {
                lock(&self.0).insert(c.id.to_string(), e.to_string());
                b.create(&Create {
                    parent: None,
                    opts: &CreateOpts::default(),
                    ..c
                })
            }
            done => done,
        }
    }
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        match lock(&self.0).get(id) {
            Some(e) => Err(other(e)),
            None => b.inner.get(id, label),
        }
    }
}

stateful!(
    ChainWithoutRepeats,
    RestartForgets,
    IdBurned,
    RecreatedHasOldContent,
    DepthErrorAtGet
);
