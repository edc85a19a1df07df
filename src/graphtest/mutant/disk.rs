//! Bugs that show on a disk that is full or read-only, or whose power is cut.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use crate::archive;
use crate::graphdriver::{CreateOpts, DiffStream, Error, Result};

use super::base::{Base, Bug, Create, other};
use super::calls::{stateful, stateless};
use super::files::{lstat, walk};
use super::recipe::Layer;
use crate::sync::lock;

stateless! {
    /// A create that fails leaves a directory of another name.
    FailedCreateLeaks;
    /// The list of layers is written without a look at errors.
    ListWriteUnchecked;
    /// An archive for which there is no room is taken for applied.
    ApplyIgnoresFull;
    /// The error of an archive for which there is no room is about the archive.
    FullToldAsArchive;
    /// Before a layer is removed, a note about that is written.
    RemoveNeedsRoom;
    /// A diff is written to the home first.
    DiffSpooledInHome;
    /// A disk that is read-only is no error.
    ReadOnlyIsSuccess;
    /// A layer is not found on a read-only disk.
    ReadOnlyLooksEmpty;
    /// Records are written anew without being synced.
    RecordsNotSynced;
}

/// Whether the home has no room for a small file, one of 128 KiB.
fn has_no_room(home: &Path) -> bool {
    let probe = home.join(".room");
    let written = File::create(&probe).and_then(|mut f| f.write_all(&[1; 1 << 17]));
    // It may not even have been made.
    let _ = fs::remove_file(&probe);
    written.is_err_and(|e| e.kind() == io::ErrorKind::StorageFull)
}

fn is_read_only(home: &Path) -> bool {
    File::create(home.join(".room")).is_err_and(|e| e.kind() == io::ErrorKind::ReadOnlyFilesystem)
}

impl Bug for FailedCreateLeaks {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        let done = b.create(&c);
        if done.as_ref().is_err_and(Error::is_no_room) {
            // On a disk without inodes there is nothing to leave it in.
            let left = b.home.join(format!(".half-{}", c.id));
            let _ = fs::create_dir(left);
        }
        done
    }
}

impl ListWriteUnchecked {
    fn list(b: &Base) -> PathBuf {
        b.home.join(".list")
    }

    fn write(b: &Base, change: impl FnOnce(&mut Vec<String>)) -> Result<()> {
        let mut ids: Vec<String> = match fs::read_to_string(Self::list(b)) {
            Ok(text) => text.lines().map(str::to_string).collect(),
            Err(_) => Vec::new(),
        };
        change(&mut ids);
        let new = b.home.join(".list.new");
        let _ = fs::write(&new, ids.join("\n"));
        match fs::rename(&new, Self::list(b)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(other(e)),
            _ => Ok(()),
        }
    }
}

impl Bug for ListWriteUnchecked {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        b.create(&c)?;
        Self::write(b, |ids| ids.push(c.id.to_string()))
    }
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        b.remove(id)?;
        Self::write(b, |ids| ids.retain(|other| other != id))
    }
    fn exists(&self, b: &Base, id: &str) -> bool {
        let listed =
            fs::read_to_string(Self::list(b)).is_ok_and(|text| text.lines().any(|l| l == id));
        listed && b.inner.exists(id)
    }
}

impl Bug for ApplyIgnoresFull {
    fn apply(&self, b: &Base, id: &str, parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        match b.inner.apply_diff(id, parent, diff) {
            Err(e) if e.is_no_room() => io::copy(diff, &mut io::sink()).map_err(other),
            done => done,
        }
    }
}

impl Bug for FullToldAsArchive {
    fn apply(&self, b: &Base, id: &str, parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        b.inner.apply_diff(id, parent, diff).map_err(|e| {
            let why = e.to_string();
            Error::Archive(archive::Error::Corrupt { offset: 0, why })
        })
    }
}

impl Bug for RemoveNeedsRoom {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        let note = b.home.join(".removing");
        let noted = fs::write(&note, id.repeat(4096));
        noted.map_err(|e| Error::io("write", &note, e))?;
        b.remove(id)?;
        fs::remove_file(&note).map_err(other)
    }
}

impl Bug for DiffSpooledInHome {
    fn diff(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<DiffStream> {
        let spool = b.home.join(".spool");
        let mut file = File::create(&spool).map_err(other)?;
        io::copy(&mut b.inner.diff(id, parent)?, &mut file).map_err(other)?;
        let file = File::open(&spool).map_err(other)?;
        fs::remove_file(&spool).map_err(other)?;
        Ok(Box::new(file))
    }
}

/// Whatever fails because the disk is read-only is done, as far as the caller hears.
fn done_if_read_only<T: Default>(done: Result<T>) -> Result<T> {
    match done {
        Err(e) if e.errno() == Some(Errno::ROFS) => Ok(T::default()),
        done => done,
    }
}

impl Bug for ReadOnlyIsSuccess {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        done_if_read_only(b.create(&c))
    }
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        done_if_read_only(b.remove(id))
    }
    fn apply(&self, b: &Base, id: &str, parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        done_if_read_only(b.inner.apply_diff(id, parent, diff))
    }
}

impl Bug for ReadOnlyLooksEmpty {
    fn exists(&self, b: &Base, id: &str) -> bool {
        !is_read_only(&b.home) && b.inner.exists(id)
    }
}

impl Bug for RecordsNotSynced {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        b.create(&c)?;
        let layer = b.home.join(c.id);
        if lstat(&layer).is_none() {
            return Ok(());
        }
        let anew = || {
            for entry in fs::read_dir(&layer)? {
                let path = entry?.path();
                if lstat(&path).is_some_and(|m| m.is_file()) {
                    let text = fs::read(&path)?;
                    fs::remove_file(&path)?;
                    fs::write(&path, text)?;
                }
            }
            Ok::<_, io::Error>(())
        };
        anew().map_err(other)
    }
}

/// Once a create failed on a full disk, every other one does.
#[derive(Debug, Default)]
pub(super) struct FullForEver(AtomicBool);

impl Bug for FullForEver {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        if self.0.load(Ordering::SeqCst) {
            return Err(Error::io("write", &b.home, Errno::NOSPC));
        }
        let done = b.create(&c);
        self.0.store(
            done.as_ref().is_err_and(Error::is_no_room),
            Ordering::SeqCst,
        );
        done
    }
}

/// Once a call failed on a read-only disk, nothing is made any more.
#[derive(Debug, Default)]
pub(super) struct ReadOnlyForEver(AtomicBool);

impl Bug for ReadOnlyForEver {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        if self.0.load(Ordering::SeqCst) {
            return Err(Error::io("write", &b.home, Errno::ROFS));
        }
        let done = b.create(&c);
        let refused = done.as_ref().is_err_and(|e| e.errno() == Some(Errno::ROFS));
        self.0.store(refused, Ordering::SeqCst);
        done
    }
}

/// A child is made when it is first got, and until then only remembered.
#[derive(Debug, Default)]
pub(super) struct CreateDeferred(Mutex<BTreeMap<String, Option<String>>>);

impl CreateDeferred {
    fn really(b: &Base, id: &str, parent: Option<&str>) -> Result<()> {
        b.create(&Create {
            id,
            parent,
            opts: &CreateOpts::default(),
            rw: false,
        })
    }

    /// Makes what is waited for.
    fn settle(&self, b: &Base) -> Result<()> {
        let waiting = std::mem::take(&mut *lock(&self.0));
        waiting
            .iter()
            .try_for_each(|(id, parent)| Self::really(b, id, parent.as_deref()))
    }
}

impl Bug for CreateDeferred {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        let plain = c.opts.storage_opt.is_empty() && !b.inner.exists(c.id);
        if !plain || !c.parent.is_some_and(|p| b.inner.exists(p)) {
            self.settle(b)?;
            return b.create(&c);
        }
        lock(&self.0).insert(c.id.to_string(), c.parent.map(str::to_string));
        Ok(())
    }
    fn exists(&self, b: &Base, id: &str) -> bool {
        lock(&self.0).contains_key(id) || b.inner.exists(id)
    }
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        self.settle(b)?;
        b.inner.get(id, label)
    }
    fn cleanup(&self, b: &Base) -> Result<()> {
        self.settle(b)?;
        b.inner.cleanup()
    }
}

stateful!(FullForEver, ReadOnlyForEver, CreateDeferred);

/// On a disk that has no room, what a layer changed of its parent is cut short.
pub(super) fn put_truncates_when_full(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    if !has_no_room(&layer.base.home) {
        return Ok(());
    }
    for f in walk(root)?.iter().filter(|f| f.is_file()) {
        // Where not even that is possible the file stays as it is.
        let _ = OpenOptions::new().write(true).truncate(true).open(&f.path);
    }
    Ok(())
}
