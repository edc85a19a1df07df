//! Limits on the size of layers by quota groups.
//!
//! Quotas are a matter of the whole filesystem: they are switched on when the first layer with a size is made, and never off, since
//! somebody else may rely on them. The kernel keeps a limit with the subvolume; `quotas/<id>` in the home keeps it as moby does, for the
//! case that quotas are switched off and on again. The limit is on what the layer refers to, its parent's data included.

use crate::sync::lock;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Mutex;

use rustix::fs::CWD;
use rustix::io::Errno;

use super::super::home::{Home, is_temporary, open_dir, write_atomically};
use crate::graphdriver::{Error, LayerId, Result};
use crate::sys::btrfs::{self, QuotaMode};

/// The directory of the limits.
const QUOTAS: &str = "quotas";

/// The least that a subvolume takes: a tree block of the usual size.
const NODE: u64 = 16 << 10;

/// The limits of a home's layers.
#[derive(Debug)]
pub(super) struct Limits {
    dir: PathBuf,
    /// A layer with a smaller size is refused.
    min_space: u64,
    /// Those on record, by layer. A layer that another process made is missing here and limited all the same.
    known: Mutex<BTreeMap<String, u64>>,
    /// Quota groups of deleted subvolumes that the kernel did not yet let go.
    stale: Mutex<Vec<u64>>,
}

impl Limits {
    /// Reads the limits on record and deletes those of layers that are not there. With `min_space` (moby's `btrfs.min_space`) quotas are
    /// switched on at once.
    pub fn open(home: &Home, min_space: Option<u64>) -> Result<Self> {
        let limits = Self {
            dir: home.path().join(QUOTAS),
            min_space: min_space.unwrap_or(0),
            known: Mutex::default(),
            stale: Mutex::default(),
        };
        limits
            .read(home)
            .map_err(|e| Error::io("read the limits in", &limits.dir, e))?;
        if min_space.is_some() {
            limits.switch_on(home.layers_dir())?;
        }
        Ok(limits)
    }

    fn read(&self, home: &Home) -> io::Result<()> {
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let mut known = lock(&self.known);
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
            let there = LayerId::parse_unreserved(name, is_temporary).is_ok_and(|id| home.has(&id));
            if !there {
                // A layer that went while its record could not be deleted, or a record that was never finished.
                fs::remove_file(&path)?;
                continue;
            }
            // What cannot be read as a number limits nothing, as with moby; the kernel still keeps what was set.
            if let Ok(bytes) = fs::read_to_string(&path)?.trim().parse() {
                known.insert(name.to_owned(), bytes);
            }
        }
        Ok(())
    }

    /// How data counts for limits here; `None` when none can be kept.
    pub fn counting(&self, on: BorrowedFd<'_>) -> Option<QuotaMode> {
        match btrfs::quota_mode(on) {
            Ok(mode) => Some(mode.unwrap_or(QuotaMode::Full)),
            Err(_) => None,
        }
    }

    /// Makes the filesystem keep quotas, for a layer that is to be limited to so many bytes.
    pub fn prepare(&self, on: BorrowedFd<'_>, bytes: u64) -> Result<()> {
        if bytes < self.min_space {
            return Err(Error::InvalidOption {
                key: "size".to_owned(),
                why: format!(
                    "{bytes} bytes are less than the {} of btrfs.min_space",
                    self.min_space
                ),
            });
        }
        self.switch_on(on)
    }

    fn switch_on(&self, on: BorrowedFd<'_>) -> Result<()> {
        let switch = || match btrfs::quota_mode(on)? {
            Some(_) => Ok(()),
            None => {
                btrfs::enable_quota(on)?;
                // Until everything is counted a limit means nothing.
                btrfs::wait_for_rescan(on)
            }
        };
        switch().map_err(|e| match e {
            Errno::PERM => Error::QuotaNotSupported(
                "quotas of btrfs take CAP_SYS_ADMIN in the first user namespace".to_owned(),
            ),
            e => Error::QuotaNotSupported(format!("the filesystem cannot keep quotas: {e}")),
        })
    }

    /// Sets the limit of a layer that is being made. One without a size has none: a snapshot takes that of its origin over otherwise.
    pub fn set(&self, root: BorrowedFd<'_>, bytes: Option<u64>) -> Result<()> {
        let on = matches!(btrfs::quota_mode(root), Ok(Some(_)));
        if !on && bytes.is_none() {
            return Ok(());
        }
        let failed = |e| Error::QuotaNotSupported(format!("the limit cannot be set: {e}"));
        let id = btrfs::info(root).map_err(failed)?.id;
        btrfs::limit_referenced(root, id, bytes).map_err(failed)?;
        let Some(bytes) = bytes else { return Ok(()) };
        // Known to the byte: making a snapshot ends the transaction.
        let taken = btrfs::usage(root, id).map_err(failed)?.unwrap_or(0);
        if bytes > taken.max(NODE) {
            return Ok(());
        }
        Err(Error::InvalidOption {
            key: "size".to_owned(),
            why: format!(
                "the layer takes {} bytes from the start, its parent's content included, and {bytes} are asked for",
                taken.max(NODE)
            ),
        })
    }

    /// Puts a limit on record.
    pub fn record(&self, id: &LayerId, bytes: u64) -> Result<()> {
        self.write(id, bytes)?;
        lock(&self.known).insert(id.to_string(), bytes);
        Ok(())
    }

    fn write(&self, id: &LayerId, bytes: u64) -> Result<()> {
        match fs::DirBuilder::new().mode(0o700).create(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io("make", &self.dir, e));
            }
            _ => {}
        }
        let dir = open_dir(CWD, &self.dir).map_err(|e| Error::io("open", &self.dir, e))?;
        // What is left of a record that was not finished the next start deletes.
        write_atomically(
            dir.as_fd(),
            id.as_str(),
            bytes.to_string().as_bytes(),
            0o644,
        )?;
        rustix::fs::fsync(&dir).map_err(|e| Error::io("sync", &self.dir, e))
    }

    /// Sets the limit on record again, should somebody have switched quotas off since.
    pub fn keep(&self, id: &LayerId, root: impl FnOnce() -> Result<OwnedFd>) -> Result<()> {
        let Some(bytes) = lock(&self.known).get(id.as_str()).copied() else {
            return Ok(());
        };
        let root = root()?;
        let root = root.as_fd();
        match btrfs::quota_mode(root) {
            Ok(None) => {
                self.switch_on(root)?;
                self.set(root, Some(bytes))
            }
            // Without the right to look, what the kernel has stays.
            Ok(Some(_)) | Err(_) => Ok(()),
        }
    }

    /// Lifts the limit of a layer that is about to be deleted, since the kernel's record of it goes some time later only. Returns its
    /// quota group, and those of subvolumes inside it.
    pub fn lift(&self, on: BorrowedFd<'_>, root: impl FnOnce() -> Result<OwnedFd>) -> Vec<u64> {
        if !matches!(btrfs::quota_mode(on), Ok(Some(_))) {
            return Vec::new();
        }
        let Ok(root) = root() else {
            return Vec::new();
        };
        let root = root.as_fd();
        let groups = super::subvolumes::ids(root).unwrap_or_default();
        if let Some(own) = groups.first() {
            // A limit that stays is one of a group that is deleted.
            let _ = btrfs::limit_referenced(root, *own, None);
        }
        groups
    }

    /// Sets the limit on record of a layer again that could not be deleted.
    pub fn restore(&self, id: &LayerId, root: impl FnOnce() -> Result<OwnedFd>) {
        let bytes = lock(&self.known).get(id.as_str()).copied();
        if let (Some(bytes), Ok(root)) = (bytes, root()) {
            // The caller gets the first error; a limit that is missing now is on record still.
            let _ = self.set(root.as_fd(), Some(bytes));
        }
    }

    /// Forgets a layer that is gone, and removes quota groups that are not in use any more. Kernels from 6.10 do that by themselves some
    /// time after; before, or when it is too early now, the next removal tries again.
    pub fn forget(&self, on: BorrowedFd<'_>, id: &LayerId, groups: Vec<u64>) -> Result<()> {
        lock(&self.known).remove(id.as_str());
        let path = self.dir.join(id);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("delete the limit", path, e));
            }
            _ => {}
        }
        let mut stale = lock(&self.stale);
        stale.extend(groups);
        stale.retain(|group| btrfs::remove_qgroup(on, *group) == Err(Errno::BUSY));
        Ok(())
    }
}
