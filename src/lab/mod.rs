//! Where a driver's home can live: backings, made for a cell and given back.

mod backing;
mod clean;
mod damage;
mod devices;
mod facts;
mod kinds;
mod leftover;
mod made;
mod overlay;
mod own;
mod pool;
mod power;
mod provision;
mod stack;
#[cfg(test)]
mod tests;
mod user;
#[cfg(feature = "vm")]
pub mod vm;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::sys::program;

pub use backing::Backing;
pub use clean::{Cleaned, clean, dead_runs};
pub(crate) use devices::take_down as take_down_devices;
pub use facts::{Fact, Facts};
pub use leftover::enter_mount_namespace;
pub use made::{Register, state_dir};
pub use own::{Fresh, Journal, OwnBacking};
pub use provision::{GivenBack, Provisioned, provision};

/// A directory in which homes of a driver under test are made, with what was found out about it.
#[derive(Clone, Debug)]
pub struct Place {
    /// An absolute path; everything below it belongs to the run.
    pub dir: PathBuf,
    /// The backing's name as reports show it: `dir`, `tmpfs`, ...
    pub backing: String,
    /// What the machine and the filesystem can do, probed.
    pub facts: Facts,
    /// The pool of zfs that was made for it.
    pool: Option<String>,
    /// Where [`Place::fresh`] makes filesystems; `None` at a place that was not made.
    own: Option<Arc<own::Source>>,
}

/// Less than this, deleted, is not worth looking for.
const MUCH: u64 = 16 << 20;

impl Place {
    /// Deletes something below [`Place::dir`] by `delete`. When that was much, the file behind the filesystem, where it is one that was made
    /// in a file, forgets it too: many scenarios, one after the other, take no more room than one.
    ///
    /// # Errors
    /// Those of `delete`.
    pub fn delete(&self, delete: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let free = || rustix::fs::statvfs(&self.dir).map_or(0, |st| st.f_bfree * st.f_frsize);
        let before = free();
        delete()?;
        if self.own.is_some() && free().saturating_sub(before) > MUCH {
            // What cannot be told to forget takes room, no more.
            let _ = std::fs::File::open(&self.dir).and_then(|dir| crate::sys::fsctl::trim(&dir));
        }
        Ok(())
    }

    /// Probes `dir`, which must exist and be writable.
    ///
    /// # Errors
    /// The directory cannot be resolved or nothing can be made in it.
    pub fn probe(dir: impl Into<PathBuf>, backing: impl Into<String>) -> io::Result<Self> {
        let dir = std::fs::canonicalize(dir.into())?;
        let facts = Facts::probe(&dir)?;
        Ok(Self {
            dir,
            backing: backing.into(),
            facts,
            pool: None,
            own: None,
        })
    }

    /// Gives back what drivers keep elsewhere on the place for homes in a directory, which is gone: datasets of zfs.
    pub fn forget(&self, dir: &Path) {
        if let Some(pool) = &self.pool {
            pool::forget_homes(pool, dir);
        }
    }
}
