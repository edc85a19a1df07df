//! A pool's metadata as it was at one moment, for others to read (`reserve_metadata_snap` of Documentation/admin-guide/device-mapper/thin-provisioning.rst).
//!
//! There can be one of it, whoever reserves it, and it stays when its maker dies. So a file of the home says that it is ours as long as it may
//! be; the next start gives back what that file speaks of.

use std::fs::{File, remove_file};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;

use crate::drivers::devicemapper::pool::Pool;
use crate::drivers::home::{open_dir, write_atomically};
use crate::graphdriver::{Error, Result};
use crate::sys::dm::Control;

/// The file that says that it is ours.
const MARK: &str = "reserved";

/// The metadata, reserved until this is dropped.
#[derive(Debug)]
pub(super) struct Reserved<'p> {
    pool: &'p Pool,
    control: &'p Control,
    /// The block where it begins.
    pub root: u64,
}

impl<'p> Reserved<'p> {
    /// Has the pool commit, and reserves what it has committed.
    ///
    /// # Errors
    /// Somebody else has reserved it.
    pub fn take(pool: &'p Pool, control: &'p Control) -> Result<Self> {
        if pool.usage(control)?.reserved.is_some() {
            return Err(pool.failed("reserve the metadata of")(Errno::BUSY));
        }
        let opened = open_dir(CWD, pool.nodes());
        let dir = opened.map_err(|e| Error::io("open", pool.nodes(), e))?;
        let dir = File::from(dir);
        write_atomically(dir.as_fd(), MARK, b"", 0o600)?;
        // The pool's own record of it outlives a cut of power.
        let synced = dir.sync_all();
        synced.map_err(|e| Error::io("sync", pool.nodes(), e))?;
        let told = pool.message(control, "reserve_metadata_snap");
        told.map_err(|e| {
            // It is not ours.
            let _ = remove_file(mark(pool.nodes()));
            pool.failed("reserve the metadata of")(e)
        })?;
        let mut reserved = Self {
            pool,
            control,
            root: 0,
        };
        let root = pool.usage(control)?.reserved;
        reserved.root =
            root.ok_or_else(|| pool.failed("reserve the metadata of")(Errno::NODATA))?;
        Ok(reserved)
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        release(self.pool, self.control);
    }
}

/// Gives back what a process had reserved when it was killed.
pub(in crate::drivers::devicemapper) fn release_left(pool: &Pool, control: &Control) {
    if mark(pool.nodes()).exists() {
        release(pool, control);
    }
}

fn mark(dir: &Path) -> PathBuf {
    dir.join(MARK)
}

/// Gives it back; that there is none is success. What fails is tried again at the next start.
fn release(pool: &Pool, control: &Control) {
    match pool.message(control, "release_metadata_snap") {
        Ok(()) | Err(Errno::INVAL) => drop(remove_file(mark(pool.nodes()))),
        Err(_) => {}
    }
}
