use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::graphdriver::{FsMagic, get_fs_magic};
use crate::sys::btrfs;
use crate::sys::quota::{self, Projects};

/// The record of one filesystem. What has a limit is known by its number there: a project's id, or a subvolume's.
#[derive(Debug)]
pub(crate) enum Limits {
    /// Those of projects.
    Projects(Projects),
    /// Those of btrfs' quota groups, by a directory on it.
    Groups(OwnedFd),
}

impl Limits {
    /// That of the filesystem that `dir` lies on; on an old kernel a device node is made at `node`.
    pub fn of(dir: &Path, node: &Path) -> io::Result<Self> {
        let on = open(dir)?;
        let magic = get_fs_magic(dir).map_err(io::Error::other)?;
        Ok(if magic == FsMagic::BTRFS {
            Self::Groups(on)
        } else {
            Self::Projects(Projects::of(on.as_fd(), node)?)
        })
    }

    /// Every limit, in bytes, by number.
    pub fn all(&self) -> io::Result<BTreeMap<u64, u64>> {
        let projects = match self {
            Self::Projects(projects) => projects,
            Self::Groups(on) => {
                return match btrfs::limits(on.as_fd()) {
                    // Quotas are off.
                    Err(Errno::NOENT) => Ok(BTreeMap::new()),
                    other => Ok(other?.into_iter().collect()),
                };
            }
        };
        let mut found = BTreeMap::new();
        let mut from = 0;
        while let Some(record) = projects.next_record(from)? {
            if record.limit > 0 {
                found.insert(u64::from(record.id), record.limit);
            }
            match record.id.checked_add(1) {
                Some(next) => from = next,
                None => break,
            }
        }
        Ok(found)
    }

    /// Sets the limit of a number; 0 lifts it.
    pub fn set(&self, number: u64, bytes: u64) -> io::Result<()> {
        match self {
            Self::Projects(projects) => {
                let id = u32::try_from(number).map_err(io::Error::other)?;
                Ok(projects.set_limit(id, bytes)?)
            }
            Self::Groups(on) => {
                let bytes = Some(bytes).filter(|bytes| *bytes > 0);
                Ok(btrfs::limit_referenced(on.as_fd(), number, bytes)?)
            }
        }
    }

    /// Makes a directory at `dir` with a limit and a file of its own, as somebody does who has nothing to do with the driver. The number
    /// of a project is the one after the highest that has a limit, so that a driver that counts by itself meets it.
    pub fn make_foreign(&self, dir: &Path, bytes: u64) -> io::Result<()> {
        let number = match self {
            Self::Projects(_) => self.make_project(dir)?,
            Self::Groups(on) => {
                if btrfs::quota_mode(on.as_fd())?.is_none() {
                    btrfs::enable_quota(on.as_fd())?;
                    btrfs::wait_for_rescan(on.as_fd())?;
                }
                let name = dir.file_name().and_then(OsStr::to_str);
                let (Some(above), Some(name)) = (dir.parent(), name) else {
                    return Err(io::ErrorKind::InvalidInput.into());
                };
                btrfs::create_subvolume(open(above)?.as_fd(), name)?;
                btrfs::info(open(dir)?.as_fd())?.id
            }
        };
        std::fs::write(dir.join("theirs"), "theirs")?;
        self.set(number, bytes)
    }

    fn make_project(&self, dir: &Path) -> io::Result<u64> {
        /// Where people and programs begin that count from no record.
        const ELSE: u64 = 1 << 20;
        let last = self.all()?.last_key_value().map(|(number, _)| *number);
        let number = last.map_or(ELSE, |last| last + 1);
        std::fs::create_dir(dir)?;
        let id = u32::try_from(number).map_err(io::Error::other)?;
        quota::set_project(open(dir)?.as_fd(), id)?;
        Ok(number)
    }
}

fn open(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(dir, flags, Mode::empty())?)
}
