//! Filesystems for one scenario: of the same kind as the place's own, of a size of one's choice, so that filling one disturbs nobody.

use crate::sync::lock;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::kinds::Kind;
use super::stack::Stack;
use super::{Fact, GivenBack, Place};
pub use crate::sys::fsctl::Journal;
use crate::sys::mount::umount_below;
use crate::sys::remove::remove_tree;

/// What is wanted of a filesystem made for one scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fresh {
    /// Its size in bytes, metadata included; `None`: that of the cell's. A kind that cannot be made so small gives its smallest (xfs: 300 MiB, btrfs: 128 MiB).
    pub size: Option<u64>,
    /// How many inodes it may have at most, where its kind has such a limit; ext4 rounds to its groups, xfs up to a percent of the
    /// size.
    pub inodes: Option<u64>,
}

/// Where a place makes filesystems for scenarios.
#[derive(Debug)]
pub(super) struct Source {
    kind: &'static Kind,
    /// Below the directory that the cell's place was made in, so that it goes with it.
    dir: PathBuf,
    made: AtomicU64,
}

impl Source {
    pub(super) fn new(kind: &'static Kind, dir: PathBuf) -> Self {
        Self {
            kind,
            dir,
            made: AtomicU64::new(0),
        }
    }
}

/// A filesystem of one scenario's own. Dropping it takes it away too, without a word about what is left or damaged.
#[derive(Debug)]
pub struct OwnBacking {
    /// The place on it; homes are made below its directory.
    pub place: Place,
    base: PathBuf,
    stack: Mutex<Stack>,
    given_back: bool,
}

impl Place {
    /// Makes a filesystem of the place's kind for one scenario; possible when the place has the fact `own-backing`.
    ///
    /// # Errors
    /// `Unsupported` when there can be none of this kind, or none with a limit of inodes; else which step failed.
    pub fn fresh(&self, wanted: &Fresh) -> io::Result<OwnBacking> {
        let source = self.own.as_ref().ok_or_else(|| {
            let why = self.facts.why_not(Fact::OwnBacking);
            let why = why.unwrap_or("no filesystem can be made here");
            io::Error::new(io::ErrorKind::Unsupported, why)
        })?;
        let number = source.made.fetch_add(1, Ordering::Relaxed);
        let base = source.dir.join(number.to_string());
        std::fs::create_dir_all(&base)?;
        let stack = Stack::make(source.kind, &base, Some(wanted)).inspect_err(|_| {
            let _ = umount_below(&base);
            let _ = remove_tree(&base);
        })?;
        let place = Place {
            dir: stack.on(),
            backing: self.backing.clone(),
            facts: self.facts.clone(),
            pool: None,
            own: Some(Arc::clone(source)),
        };
        Ok(OwnBacking {
            place,
            base,
            stack: Mutex::new(stack),
            given_back: false,
        })
    }
}

impl OwnBacking {
    /// Makes the filesystem itself (not a mount of it) read-only, or writable again.
    ///
    /// # Errors
    /// `EBUSY` when a file on it is open for writing.
    pub fn remount(&self, read_only: bool) -> io::Result<()> {
        self.stack().remount(read_only)
    }

    /// Cuts its power: what is not on the disk yet is lost, but for the journal when it is [`Journal::Flushed`]. Then calls `let_go`, after
    /// which nobody may have anything open on it, takes away whatever is mounted on it, mounts it again, as after a crash, and
    /// checks that it is whole. Possible when the place has the fact `power-cut`.
    ///
    /// # Errors
    /// `Unsupported` on a kind that does not outlive it; what still uses it; what its checker says; why it cannot be mounted.
    pub fn cut_power(&self, journal: Journal, let_go: impl FnOnce()) -> io::Result<()> {
        self.stack().cut_power(journal, let_go)
    }

    fn stack(&self) -> MutexGuard<'_, Stack> {
        lock(&self.stack)
    }

    /// Leaves it in place until the place it was made at is given back.
    pub fn keep(mut self) {
        self.stack().leave();
        self.given_back = true;
    }

    /// Unmounts it, with everything that is mounted on it, checks it for damage, and removes it.
    pub fn give_back(mut self) -> GivenBack {
        self.take_away(true)
    }

    fn take_away(&mut self, check: bool) -> GivenBack {
        self.given_back = true;
        let mut given = GivenBack::default();
        {
            let mut stack = self.stack();
            match stack.unmount() {
                Ok(()) if check => given.add(stack.damage()),
                Ok(()) => {}
                Err(why) => given.left.push(why),
            }
        }
        if let Err(e) = remove_tree(&self.base) {
            given.left.push(format!("{}: {e}", self.base.display()));
        }
        given
    }
}

impl Drop for OwnBacking {
    fn drop(&mut self) {
        if !self.given_back {
            let _ = self.take_away(false);
        }
    }
}
