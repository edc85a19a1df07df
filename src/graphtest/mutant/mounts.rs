//! Bugs in get, put and what happens when several ask at once.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::graphdriver::{CreateOpts, DiffRead, DiffStream, Error, Result};

use super::base::{Base, Bug, Create, other};
use super::calls::{stateful, stateless};
use super::files::{copy, lstat, remove_any, walk};
use crate::sync::lock;

stateless! {
    /// No mount is ever taken away.
    PutLeaks;
    /// Getting a layer that does not exist makes it.
    GetCreates;
    /// A failed get leaves a directory.
    GetLeavesDir;
    /// Cleanup leaves the mounts.
    CleanupLeavesMounts;
    /// Cleanup deletes the layers.
    CleanupDeletes;
    /// What is written into a layer reaches the children it has already.
    ParentWritableLeaks;
    /// A layer with children is handed out as a writable copy.
    ViewWritable;
    /// Puts of a layer that does not exist fail.
    PutMissingFails;
}

/// How often each layer is held.
type Counts = Mutex<BTreeMap<String, i64>>;

fn add(counts: &Counts, id: &str, n: i64) -> i64 {
    let mut counts = lock(counts);
    let count = counts.entry(id.to_string()).or_default();
    *count += n;
    *count
}

/// The first put takes the mount away from all who hold it.
#[derive(Debug, Default)]
pub(super) struct RefcountUnmountsEarly(Counts);

impl Bug for RefcountUnmountsEarly {
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        let path = b.inner.get(id, label)?;
        add(&self.0, id, 1);
        Ok(path)
    }
    fn put(&self, b: &Base, id: &str) -> Result<()> {
        let held = lock(&self.0).remove(id).unwrap_or(1);
        (0..held).try_for_each(|_| b.inner.put(id))
    }
}

/// A put without a get takes the count below zero, and the next get mounts nothing.
#[derive(Debug, Default)]
pub(super) struct PutBelowZero(Counts);

impl Bug for PutBelowZero {
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        let path = b.inner.get(id, label)?;
        if add(&self.0, id, 1) <= 0 {
            b.inner.put(id)?;
        }
        Ok(path)
    }
    fn put(&self, b: &Base, id: &str) -> Result<()> {
        if b.inner.exists(id) && add(&self.0, id, -1) < 0 {
            return Ok(());
        }
        b.inner.put(id)
    }
}

impl Bug for PutLeaks {
    fn put(&self, _: &Base, _: &str) -> Result<()> {
        Ok(())
    }
}

impl Bug for PutMissingFails {
    fn put(&self, b: &Base, id: &str) -> Result<()> {
        b.inner.put(id)?;
        if b.inner.exists(id) {
            Ok(())
        } else {
            Err(Error::UnknownLayer(id.to_string()))
        }
    }
}

/// Each get of a held layer answers with another path.
#[derive(Debug, Default)]
pub(super) struct GetPathVaries(AtomicUsize);

impl Bug for GetPathVaries {
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        let mut path = b.inner.get(id, label)?;
        if self.0.fetch_add(1, Ordering::SeqCst) % 2 == 1
            && let Some(name) = path.file_name().map(ToOwned::to_owned)
        {
            path.push("..");
            path.push(name);
        }
        Ok(path)
    }
}

impl Bug for GetCreates {
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        if !b.inner.exists(id) {
            b.inner.create(id, None, &CreateOpts::default())?;
        }
        b.inner.get(id, label)
    }
}

impl Bug for GetLeavesDir {
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        let got = b.inner.get(id, label);
        if got.is_err() {
            fs::create_dir_all(b.home.join("mnt-of-failed-get")).map_err(other)?;
        }
        got
    }
}

impl Bug for CleanupLeavesMounts {
    fn cleanup(&self, _: &Base) -> Result<()> {
        Ok(())
    }
}

impl Bug for CleanupDeletes {
    fn cleanup(&self, b: &Base) -> Result<()> {
        b.inner.cleanup()?;
        let wipe = || fs::read_dir(&b.home)?.try_for_each(|e| remove_any(&e?.path()));
        wipe().map_err(other)
    }
}

/// A second cleanup fails.
#[derive(Debug, Default)]
pub(super) struct CleanupOnce(AtomicUsize);

impl Bug for CleanupOnce {
    fn cleanup(&self, b: &Base) -> Result<()> {
        if self.0.fetch_add(1, Ordering::SeqCst) > 0 {
            return Err(other("cleanup: already closed"));
        }
        b.inner.cleanup()
    }
}

/// The count is read and written without a lock.
#[derive(Debug, Default)]
pub(super) struct RefcountUnlocked(Counts);

impl RefcountUnlocked {
    fn racy_add(&self, id: &str, n: i64) -> i64 {
        let old = add(&self.0, id, 0);
        thread::sleep(Duration::from_micros(300));
        lock(&self.0).insert(id.to_string(), old + n);
        old + n
    }
}

impl Bug for RefcountUnlocked {
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        if self.racy_add(id, 1) == 1 {
            b.inner.get(id, label)
        } else {
            b.inner
                .get(id, label)
                .and_then(|p| b.inner.put(id).map(|()| p))
        }
    }
    fn put(&self, b: &Base, id: &str) -> Result<()> {
        if self.racy_add(id, -1) <= 0 {
            b.inner.put(id)
        } else {
            Ok(())
        }
    }
}

/// A second diff fails while one is being read.
#[derive(Debug, Default)]
pub(super) struct DiffsCollide(std::sync::Arc<AtomicUsize>);

struct Busy {
    inner: DiffStream,
    busy: std::sync::Arc<AtomicUsize>,
}

impl Read for Busy {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        thread::sleep(Duration::from_micros(200));
        self.inner.read(buf)
    }
}

impl DiffRead for Busy {}

impl Drop for Busy {
    fn drop(&mut self) {
        self.busy.store(0, Ordering::SeqCst);
    }
}

impl Bug for DiffsCollide {
    fn diff(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<DiffStream> {
        if self.0.swap(1, Ordering::SeqCst) == 1 {
            return Err(other("parent-view exists already"));
        }
        let busy = Busy {
            inner: b.inner.diff(id, parent)?,
            busy: self.0.clone(),
        };
        Ok(Box::new(busy))
    }
}

/// All children of one parent are shown at the same place.
#[derive(Debug, Default)]
pub(super) struct SiblingsShare;

impl SiblingsShare {
    fn first(b: &Base, id: &str) -> String {
        let siblings = b
            .parent_of(id)
            .map(|p| b.children_of(&p))
            .unwrap_or_default();
        siblings
            .into_iter()
            .next()
            .unwrap_or_else(|| id.to_string())
    }
}

impl Bug for SiblingsShare {
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        b.inner.get(&Self::first(b, id), label)
    }
    fn put(&self, b: &Base, id: &str) -> Result<()> {
        b.inner.put(&Self::first(b, id))
    }
}

/// Of many children made at once on one parent, every sixteenth gets the name of another.
#[derive(Debug, Default)]
pub(super) struct FanoutCollides {
    made: AtomicUsize,
    same: Mutex<BTreeMap<String, String>>,
    last: Mutex<String>,
}

impl FanoutCollides {
    fn real(&self, id: &str) -> String {
        lock(&self.same)
            .get(id)
            .cloned()
            .unwrap_or_else(|| id.to_string())
    }
}

impl Bug for FanoutCollides {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        if c.parent.is_some() && self.made.fetch_add(1, Ordering::SeqCst) % 16 == 15 {
            let other = lock(&self.last).clone();
            lock(&self.same).insert(c.id.to_string(), other);
            return Ok(());
        }
        b.create(&c)?;
        if c.parent.is_some() {
            *lock(&self.last) = c.id.to_string();
        }
        Ok(())
    }
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        b.inner.get(&self.real(id), label)
    }
    fn put(&self, b: &Base, id: &str) -> Result<()> {
        b.inner.put(&self.real(id))
    }
    fn exists(&self, b: &Base, id: &str) -> bool {
        b.inner.exists(&self.real(id))
    }
}

impl Bug for ParentWritableLeaks {
    fn put(&self, b: &Base, id: &str) -> Result<()> {
        for child in b.children_of(id) {
            b.with_root(id, |root| {
                let leak = |below: &std::path::Path| {
                    for f in walk(root)?.iter().filter(|f| f.is_file() || f.is_dir()) {
                        let there = below.join(&f.rel);
                        let stale = f.is_file()
                            && lstat(&there).is_some_and(|m| m.is_file())
                            && fs::read(&there)? != fs::read(&f.path)?;
                        if lstat(&there).is_none() || stale {
                            copy(&f.path, &there)?;
                        }
                    }
                    Ok(())
                };
                b.with_root(&child, leak).map_err(io::Error::other)
            })?;
        }
        b.inner.put(id)
    }
}

impl Bug for ViewWritable {
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        if b.children_of(id).is_empty() {
            return b.inner.get(id, label);
        }
        let view = b.home.join(format!(".view-{id}"));
        b.with_root(id, |root| copy(root, &view))?;
        Ok(view)
    }
    fn put(&self, b: &Base, id: &str) -> Result<()> {
        if b.children_of(id).is_empty() {
            b.inner.put(id)
        } else {
            Ok(())
        }
    }
}

/// A layer that is mounted is not removed, only forgotten.
#[derive(Debug, Default)]
pub(super) struct RemoveForgetsMounted {
    held: Counts,
    forgotten: Counts,
}

impl Bug for RemoveForgetsMounted {
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        let path = b.inner.get(id, label)?;
        add(&self.held, id, 1);
        Ok(path)
    }
    fn put(&self, b: &Base, id: &str) -> Result<()> {
        if add(&self.held, id, 0) > 0 {
            add(&self.held, id, -1);
        }
        b.inner.put(id)
    }
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        if add(&self.held, id, 0) > 0 {
            add(&self.forgotten, id, 1);
            return Ok(());
        }
        b.remove(id)
    }
    fn exists(&self, b: &Base, id: &str) -> bool {
        add(&self.forgotten, id, 0) == 0 && b.inner.exists(id)
    }
}

/// Two threads that create one id both believe to have made it: the second starts anew.
#[derive(Debug, Default)]
pub(super) struct CreateUnlocked;

impl Bug for CreateUnlocked {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        if b.inner.exists(c.id) {
            return Err(Error::LayerExists(c.id.to_string()));
        }
        thread::sleep(Duration::from_millis(20));
        match b.create(&c) {
            Err(Error::LayerExists(_)) => {
                b.remove(c.id)?;
                // A third thread may have been faster again.
                b.create(&c)
            }
            done => done,
        }
    }
}

stateful!(
    RefcountUnmountsEarly,
    PutBelowZero,
    GetPathVaries,
    CleanupOnce,
    RefcountUnlocked,
    DiffsCollide,
    SiblingsShare,
    FanoutCollides,
    RemoveForgetsMounted,
    CreateUnlocked
);
