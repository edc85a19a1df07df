use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::graphdriver::{FsMagic, get_fs_magic};
use crate::sys::btrfs;
use crate::sys::mount::{MountFlags, mount, mount_of};
use crate::sys::quota::{self, Projects};

/// The record of one filesystem. What has a limit is known by its number there: a project's id, a subvolume's, or a
/// dataset's.
#[derive(Debug)]
pub(crate) enum Limits {
    /// Those of projects.
    Projects(Projects),
    /// Those of btrfs' quota groups, by a directory on it.
    Groups(OwnedFd),
    /// The quotas of zfs' datasets, by the one that is mounted there; their numbers are those of their object sets.
    Datasets(String),
}

impl Limits {
    /// That of the filesystem that `dir` lies on; on an old kernel a device node is made at `node`.
    pub fn of(dir: &Path, node: &Path) -> io::Result<Self> {
        let on = open(dir)?;
        let magic = get_fs_magic(dir).map_err(io::Error::other)?;
        Ok(if magic == FsMagic::BTRFS {
            Self::Groups(on)
        } else if magic == FsMagic::ZFS {
            Self::Datasets(dataset_on(dir)?)
        } else {
            Self::Projects(Projects::of(on.as_fd(), node)?)
        })
    }

    /// Whether a copy of what has a limit has a number of its own.
    pub fn are_of_subvolumes(&self) -> bool {
        matches!(self, Self::Groups(_))
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
            Self::Datasets(top) => {
                let all = datasets(top)?.into_iter();
                let limited = all.filter(|d| d.quota > 0);
                return Ok(limited.map(|d| (d.number, d.quota)).collect());
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
            Self::Datasets(top) => {
                let all = datasets(top)?;
                let it = all.iter().find(|d| d.number == number);
                let name = &it.ok_or(io::ErrorKind::NotFound)?.name;
                zfs(&["set", &format!("quota={bytes}"), name]).map(drop)
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
            Self::Datasets(top) => {
                let name = dir.file_name().unwrap_or_default().to_string_lossy();
                let name = format!("{top}/{name}");
                zfs(&["create", "-o", "mountpoint=legacy", &name])?;
                std::fs::create_dir(dir)?;
                mount(Path::new(&name), dir, "zfs", MountFlags::empty(), b"")?;
                let made = datasets(top)?.into_iter().find(|d| d.name == name);
                made.ok_or(io::ErrorKind::NotFound)?.number
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

/// A dataset of zfs as `zfs list` tells it.
struct Dataset {
    number: u64,
    /// In bytes; 0: none.
    quota: u64,
    name: String,
}

/// All at and below one.
fn datasets(top: &str) -> io::Result<Vec<Dataset>> {
    let columns = ["-o", "objsetid,quota,name"];
    let words = [
        &["list", "-Hp", "-r", "-t", "filesystem"][..],
        &columns,
        &[top],
    ]
    .concat();
    let read = |line: &str| {
        let mut words = line.split('\t');
        let mut number = || words.next()?.parse().ok();
        let (number, quota) = (number()?, number()?);
        let name = words.next()?.to_string();
        Some(Dataset {
            number,
            quota,
            name,
        })
    };
    let listed = zfs(&words)?;
    let all: Option<Vec<Dataset>> = listed.lines().map(read).collect();
    all.ok_or_else(|| io::Error::other(format!("zfs list is not understood: {listed}")))
}

/// The dataset that is mounted where a directory is.
fn dataset_on(dir: &Path) -> io::Result<String> {
    let name = mount_of(dir)?.source.into_string();
    name.map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Runs `zfs` as somebody else than the driver would; what it says on its standard error is the error.
pub(crate) fn zfs(words: &[&str]) -> io::Result<String> {
    let out = Command::new("zfs")
        .args(words)
        .stdin(Stdio::null())
        .output()?;
    match out.status.success() {
        true => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
        false => Err(io::Error::other(
            String::from_utf8_lossy(&out.stderr).trim(),
        )),
    }
}

fn open(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(dir, flags, Mode::empty())?)
}
