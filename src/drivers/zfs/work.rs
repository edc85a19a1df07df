//! Changes of datasets that must not be lost: locked while they are made, and written down until they are done.
//!
//! The home's directory is locked, shared, by every call that changes datasets, and by a program that it runs, which may outlive it; a
//! driver that starts waits for all of them. What a call makes for a time only (a snapshot, a dataset that is to be renamed or destroyed)
//! stands in a file of the home before it is made. Whoever starts, alone, destroys what files still name.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::program::{Refusal, Refused, SOON, patiently, zfs, zfs_patiently};
use crate::drivers::home::{Home, MAKING, temporary_name};
use crate::graphdriver::{Error, Result};
use crate::sys::zfs::Zfs;

/// A lock on a home.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    /// For a call that changes something.
    pub fn shared(home: &Path) -> Result<Self> {
        Self::take(home, FlockOperation::LockShared)
    }

    /// For a driver that starts: nobody else changes anything.
    pub fn alone(home: &Path) -> Result<Self> {
        Self::take(home, FlockOperation::LockExclusive)
    }

    fn take(home: &Path, how: FlockOperation) -> Result<Self> {
        let failed = |e: io::Error| Error::io("lock", home, e);
        let dir = File::open(home).map_err(failed)?;
        loop {
            match flock(&dir, how) {
                Ok(()) => return Ok(Self(dir)),
                Err(Errno::INTR) => {}
                Err(e) => return Err(failed(e.into())),
            }
        }
    }

    /// For a program to hold as well.
    pub fn pass(&self) -> Option<&File> {
        Some(&self.0)
    }
}

/// A file in the home that names what is not to stay. Dropped, it is removed.
#[derive(Debug)]
pub(super) struct Record(Option<PathBuf>);

impl Record {
    /// Writes it.
    pub fn write(home: &Path, name: &str) -> Result<Self> {
        let path = home.join(temporary_name(MAKING));
        let record = Self(Some(path.clone()));
        fs::write(&path, name).map_err(|e| Error::io("write", path, e))?;
        Ok(record)
    }

    /// Leaves it for the next start, or the next [`retry`].
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // Whoever finds it later finds nothing of that name.
            let _ = fs::remove_file(path);
        }
    }
}

/// Destroys a dataset with its snapshots and what was made below it; that there is none is success.
pub(super) fn destroy(kernel: &Zfs, name: &str, lock: &Lock) -> Result<(), Refused> {
    if destroyed(kernel, name) {
        return Ok(());
    }
    match zfs_patiently(&["destroy", "-r", name], lock.pass()) {
        Err(e) if e.why != Refusal::Missing => Err(e),
        _ => Ok(()),
    }
}

/// Destroys a dataset of which there is nothing more, as of most layers. The program finds the rest, and says what is in the way.
fn destroyed(kernel: &Zfs, name: &str) -> bool {
    let done = patiently(SOON, |e| *e == Errno::BUSY, || kernel.destroy(name));
    matches!(done, Ok(()) | Err(Errno::NOENT))
}

/// Destroys what files of the home name, as far as nobody uses it. The lock says that no call is under way.
pub(super) fn sweep(kernel: &Zfs, home: &Home, lock: &Lock) -> Result<()> {
    for path in records(home)? {
        take_up(kernel, &path, lock);
    }
    Ok(())
}

/// Tries again to destroy datasets that were in use; other calls may be under way.
pub(super) fn retry(kernel: &Zfs, home: &Home, lock: &Lock) {
    for path in records(home).unwrap_or_default() {
        if fs::read_to_string(&path).is_ok_and(|name| name.contains("/.rm-")) {
            take_up(kernel, &path, lock);
        }
    }
}

/// The files of the home that name something.
fn records(home: &Home) -> Result<Vec<PathBuf>> {
    let failed = |e: io::Error| Error::io("read the directory", home.path(), e);
    let mut found = Vec::new();
    for entry in fs::read_dir(home.path()).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(MAKING.as_bytes())
        {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn take_up(kernel: &Zfs, path: &Path, lock: &Lock) {
    let gone = match fs::read_to_string(path) {
        // Killed before it was written, and so before anything was made.
        Ok(name) if name.is_empty() => true,
        Ok(name) if name.contains('@') => kernel.destroy_snapshot(&name).is_ok(),
        Ok(name) if destroyed(kernel, &name) => true,
        Ok(name) => {
            let once = zfs(&["destroy", "-r", &name], lock.pass());
            once.is_ok() || once.is_err_and(|e| e.why == Refusal::Missing)
        }
        // Somebody else has just done it.
        Err(_) => false,
    };
    if gone {
        // It waits for a start on a disk that can be written to.
        let _ = fs::remove_file(path);
    }
}

/// Part of a name that is used once, whatever the clock does in one process, and whatever processes do at one time.
pub(super) fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_nanos();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{now:x}-{:x}-{count:x}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_stays_only_when_it_is_kept() {
        let home = tempfile::tempdir().unwrap();
        let files = || fs::read_dir(home.path()).unwrap().count();
        let record = Record::write(home.path(), "p/a@x").unwrap();
        assert_eq!(files(), 1);
        drop(record);
        assert_eq!(files(), 0);
        Record::write(home.path(), "p/a@x").unwrap().keep();
        assert_eq!(files(), 1);
        assert!(Record::write(&home.path().join("none"), "p/a@x").is_err());
    }

    #[test]
    fn a_start_waits_for_what_is_under_way() {
        let home = tempfile::tempdir().unwrap();
        let (one, two) = (
            Lock::shared(home.path()).unwrap(),
            Lock::shared(home.path()).unwrap(),
        );
        let (started, ended) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _alone = Lock::alone(home.path()).unwrap();
                started.send(()).unwrap();
            });
            drop(one);
            let soon = std::time::Duration::from_millis(50);
            assert!(ended.recv_timeout(soon).is_err());
            drop(two);
            ended.recv().unwrap();
        });
    }

    #[test]
    fn names_do_not_repeat() {
        let names: std::collections::HashSet<_> = (0..1000).map(|_| unique()).collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|n| n.len() < 40));
    }
}
