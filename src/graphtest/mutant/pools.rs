//! Bugs in what drivers do with pools of devices and the filesystems on them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::graphdriver::{CreateOpts, Result};
use crate::sync::lock;

use super::base::{Base, Bug, Create, other};
use super::calls::{stateful, stateless};
use super::files::remove_any;

stateless! {
    /// A removed layer's space stays taken.
    SpaceKept;
}

/// The home forgets which pool it is of.
pub(super) fn forget_identity(home: &Path) -> io::Result<()> {
    let record = home.join("metadata/deviceset-metadata");
    let mut known: serde_json::Value = serde_json::from_slice(&fs::read(&record)?)?;
    known["BaseDeviceUUID"] = "".into();
    fs::write(record, known.to_string())
}

impl Bug for SpaceKept {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        if b.inner.exists(id) {
            let kept = format!("{id}-kept");
            b.inner.create(&kept, Some(id), &CreateOpts::default())?;
        }
        b.remove(id)
    }
}

/// A layer cannot be mounted while its parent is.
#[derive(Debug, Default)]
pub(super) struct MountedApart(Mutex<BTreeMap<String, u32>>);

impl Bug for MountedApart {
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        let mut held = lock(&self.0);
        if b.parent_of(id).is_some_and(|p| held.contains_key(&p)) {
            return Err(other("its uuid is that of a mounted filesystem"));
        }
        let path = b.inner.get(id, label)?;
        *held.entry(id.to_owned()).or_default() += 1;
        Ok(path)
    }
    fn put(&self, b: &Base, id: &str) -> Result<()> {
        let mut held = lock(&self.0);
        if let Some(n) = held.get_mut(id) {
            *n -= 1;
        }
        held.retain(|_, n| *n > 0);
        b.inner.put(id)
    }
}

/// How often a layer is held, and the names that it had when it was mounted.
type Mounted = (u32, BTreeSet<OsString>);

/// What was written into a layer that is mounted has not reached the disk when a snapshot is made of it: the child lacks what is new.
#[derive(Debug, Default)]
pub(super) struct SnapshotOfDisk(Mutex<BTreeMap<String, Mounted>>);

fn names(root: &Path) -> io::Result<BTreeSet<OsString>> {
    fs::read_dir(root)?.map(|e| Ok(e?.file_name())).collect()
}

impl Bug for SnapshotOfDisk {
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        let path = b.inner.get(id, label)?;
        let mut held = lock(&self.0);
        match held.get_mut(id) {
            Some((n, _)) => *n += 1,
            None => {
                held.insert(id.to_owned(), (1, names(&path).map_err(other)?));
            }
        }
        Ok(path)
    }
    fn put(&self, b: &Base, id: &str) -> Result<()> {
        let mut held = lock(&self.0);
        if let Some((n, _)) = held.get_mut(id) {
            *n -= 1;
        }
        held.retain(|_, (n, _)| *n > 0);
        b.inner.put(id)
    }
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        b.create(&c)?;
        let known = c.parent.and_then(|p| lock(&self.0).get(p).cloned());
        let Some((_, known)) = known else {
            return Ok(());
        };
        b.with_root(c.id, |root| {
            let new = names(root)?;
            new.difference(&known)
                .try_for_each(|name| remove_any(&root.join(name)))
        })
    }
}

stateful!(MountedApart, SnapshotOfDisk);
