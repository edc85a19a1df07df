//! The limits that a filesystem has on record, whoever set them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::sys::quota::{self, Projects};

/// The record of one filesystem. What has a limit is known by its number there: a project's id.
#[derive(Debug)]
pub(crate) struct Limits {
    projects: Projects,
}

impl Limits {
    /// That of the filesystem that `dir` lies on; on an old kernel a device node is made at `node`.
    pub fn of(dir: &Path, node: &Path) -> io::Result<Self> {
        let projects = Projects::of(open(dir)?.as_fd(), node)?;
        Ok(Self { projects })
    }

    /// Every limit, in bytes, by number.
    pub fn all(&self) -> io::Result<BTreeMap<u64, u64>> {
        let mut found = BTreeMap::new();
        let mut from = 0;
        while let Some(record) = self.projects.next_record(from)? {
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
        let id = u32::try_from(number).map_err(io::Error::other)?;
        Ok(self.projects.set_limit(id, bytes)?)
    }

    /// Makes a directory at `dir` with a limit and a file of its own, as somebody does who has nothing to do with the driver. Its
    /// number is the one after the highest that has a limit, so that a driver that counts by itself meets it.
    pub fn make_foreign(&self, dir: &Path, bytes: u64) -> io::Result<()> {
        /// Where people and programs begin that count from no record.
        const ELSE: u64 = 1 << 20;
        let last = self.all()?.last_key_value().map(|(number, _)| *number);
        let number = last.map_or(ELSE, |last| last + 1);
        std::fs::create_dir(dir)?;
        let id = u32::try_from(number).map_err(io::Error::other)?;
        quota::set_project(open(dir)?.as_fd(), id)?;
        std::fs::write(dir.join("theirs"), "theirs")?;
        self.set(number, bytes)
    }
}

fn open(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(dir, flags, Mode::empty())?)
}
