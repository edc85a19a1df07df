//! Limits on the size of layers by project quotas, for the drivers whose layers are directories.
//!
//! A layer with a limit is a project of its own. moby counts ids up in memory, from what it finds in its own home, and leaves the
//! limit on record when the layer is gone; here the filesystem's record says which ids are free, so that homes, restarts and whatever
//! else uses projects never meet, and an id is free again when its layer is.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::graphdriver::{Error, FsMagic, Result, get_fs_magic};
use crate::sys::quota::{self, Projects};

/// Where our ids begin when the home has none of its own: far from what people and other programs count from 1 up.
const FIRST: u32 = 1 << 30;
/// How many ids are ours.
const IDS: u32 = 1 << 20;
/// moby's name for the device node, which a home may have on kernels without quotactl_fd(2).
pub(super) const NODE: &str = "backingFsBlockDev";

/// The project quotas of the filesystem that a home lies on.
#[derive(Debug)]
pub(super) struct LayerQuotas {
    projects: Projects,
    /// Our ids begin here.
    first: u32,
    /// No id before it is likely to be free.
    next: AtomicU32,
}

/// The project of a layer that is being made.
#[derive(Debug)]
pub(super) struct LayerProject<'q> {
    quotas: &'q LayerQuotas,
    id: u32,
    limit: u64,
}

impl LayerQuotas {
    /// Looks whether limits can be kept below the home, and changes nothing.
    ///
    /// # Errors
    /// Why they cannot, and what is missing.
    pub fn probe(home: &Path, layers: BorrowedFd<'_>) -> Result<Self, String> {
        let magic = get_fs_magic(home).map_err(|e| e.to_string())?;
        if ![FsMagic::EXTFS, FsMagic::XFS, FsMagic::F2FS].contains(&magic) {
            return Err(format!(
                "the home lies on {magic}, which has no project quotas; xfs mounted with pquota has, and ext4 mounted with prjquota"
            ));
        }
        let no_ids = |e| format!("{magic} tells no project ids here: {e}");
        let project = quota::project(layers).map_err(no_ids)?;
        if project.inherited {
            return Err(format!(
                "the home is in project {} itself, and what is made in it belongs to that",
                project.id
            ));
        }
        let projects = Projects::of(layers, &home.join(NODE))
            .map_err(|e| format!("no node of the block device can be made: {e}"))?;
        match projects.state() {
            Ok(state) if state.accounted && state.enforced => {}
            Ok(_) => {
                return Err(format!(
                    "{magic} keeps no limits of projects here: {}",
                    missing(magic)
                ));
            }
            Err(e) => return Err(format!("quotas are off here ({e}): {}", missing(magic))),
        }
        // moby's way to say where ids begin: the home's own id.
        let own = rustix::fs::open(home, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|home| quota::project(home.as_fd()))
            .map_err(no_ids)?;
        let first = match own.id {
            0 => FIRST,
            id => id.saturating_add(1),
        };
        match projects.record(first) {
            Ok(_) => {}
            Err(Errno::PERM | Errno::ACCESS) => {
                return Err("limits are set with CAP_SYS_ADMIN on the machine only".to_owned());
            }
            Err(e) => return Err(format!("the quotas of {magic} cannot be read: {e}")),
        }
        Ok(Self {
            projects,
            first,
            next: AtomicU32::new(first),
        })
    }

    /// Makes an empty new directory a project of its own, in which what comes into it is counted; the limit is kept from
    /// [`LayerProject::enforce`] on.
    pub fn assign(&self, dir: BorrowedFd<'_>, limit: u64) -> Result<LayerProject<'_>> {
        let end = self.first.saturating_add(IDS);
        let mut id = self.next.load(Ordering::Relaxed);
        let mut wrapped = false;
        loop {
            if id >= end {
                if wrapped {
                    let why = "all project ids for layers are in use";
                    return Err(Error::QuotaNotSupported(why.to_owned()));
                }
                (id, wrapped) = (self.first, true);
            }
            let found = self
                .projects
                .record(id)
                .map_err(failed("read the quota of"))?;
            if found.limit == 0 && found.inodes == 0 && found.bytes == 0 {
                quota::set_project(dir, id).map_err(failed("set the project of"))?;
                let taken = self
                    .projects
                    .record(id)
                    .map_err(failed("read the quota of"))?;
                if taken.inodes <= 1 && taken.limit == 0 {
                    self.next.store(id + 1, Ordering::Relaxed);
                    let quotas = self;
                    return Ok(LayerProject { quotas, id, limit });
                }
                // Somebody else took it at the same time. Both leave it, by strides that differ.
                quota::set_project(dir, 0).map_err(failed("set the project of"))?;
                id += rustix::process::getpid()
                    .as_raw_nonzero()
                    .get()
                    .unsigned_abs()
                    % 61;
            }
            id += 1;
        }
    }

    /// Has a new directory of a layer count for what another one counts for, if that is a limit of ours.
    pub fn join(&self, new: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Result<()> {
        match self.project_of(other) {
            Some(id) => quota::set_project(new, id).map_err(failed("set the project of")),
            None => Ok(()),
        }
    }

    /// The project of ours that a directory is in.
    fn project_of(&self, dir: BorrowedFd<'_>) -> Option<u32> {
        let project = quota::project(dir).ok()?;
        let ours = self.first..self.first.saturating_add(IDS);
        (project.inherited && ours.contains(&project.id)).then_some(project.id)
    }

    /// Takes the limit of a layer off the record, for one that is being deleted. A directory that is in no project of ours is left alone.
    pub fn release(&self, dir: BorrowedFd<'_>) -> Result<()> {
        let Some(id) = self.project_of(dir) else {
            return Ok(());
        };
        self.projects
            .set_limit(id, 0)
            .map_err(failed("lift the limit of"))?;
        self.next.fetch_min(id, Ordering::Relaxed);
        Ok(())
    }
}

impl LayerProject<'_> {
    /// From now on what is made in the directory itself is not counted, as opposed to what is made in those that are in it already.
    pub fn leave(&self, dir: BorrowedFd<'_>) -> Result<()> {
        quota::set_project(dir, 0).map_err(failed("set the project of"))
    }

    /// From now on the layer takes no more than its limit, with what it has already.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] when it has more already.
    pub fn enforce(&self) -> Result<()> {
        let projects = &self.quotas.projects;
        let has = projects
            .record(self.id)
            .map_err(failed("read the quota of"))?
            .bytes;
        let limit = self.limit;
        if has > limit {
            return Err(Error::InvalidOption {
                key: "size".to_owned(),
                why: format!("{limit} bytes are too few: the new layer takes {has} by itself"),
            });
        }
        projects
            .set_limit(self.id, limit)
            .map_err(failed("set the limit of"))
    }
}

fn failed(op: &'static str) -> impl Fn(Errno) -> Error {
    move |e| Error::io(op, "the layer's project", e)
}

/// What would have to be there for limits to be kept.
fn missing(magic: FsMagic) -> &'static str {
    if !Path::new("/proc/sys/fs/quota").exists() {
        return "the kernel is built without CONFIG_QUOTA";
    }
    match magic {
        // The file is there exactly when xfs is built with quotas.
        FsMagic::XFS if !Path::new("/proc/fs/xfs/xqm").exists() => {
            "the kernel's xfs is built without CONFIG_XFS_QUOTA"
        }
        FsMagic::XFS => "xfs must be mounted with pquota",
        _ => {
            "it must be made with the features quota and project, and mounted with prjquota, which takes CONFIG_QFMT_V2"
        }
    }
}
