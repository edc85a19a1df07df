//! Steps on the limits of layers: limit, statfs, foreign-limit, and the guard of what is on record.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, Timestamps, UTIME_OMIT, fstat, fstatvfs, syncfs, utimensat};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::call::{Done, Fail};
use super::lifecycle::open_dir;
use super::space::is_full;
use super::world::World;
use crate::graphdriver::{FsMagic, get_fs_magic};
use crate::graphtest::limits::Limits;
use crate::graphtest::step::{Expect, ForeignLimitStep, LimitStep, StatfsStep, Step};
use crate::lab::Fact;
use crate::sys::btrfs;
use crate::sys::quota::{project, set_project};

/// What is written at once.
const PIECE: usize = 64 << 10;

/// How often, and after what pauses, it is tried to write again what was deleted.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(250);

/// What came of writing until it was refused, or until there was enough.
#[derive(Clone, Copy, Debug)]
struct Written {
    bytes: u64,
    refused: bool,
}

/// How writers go about it.
#[derive(Clone, Copy, Debug)]
struct Writers {
    threads: u32,
    /// With CAP_SYS_RESOURCE, to which some filesystems refuse nothing.
    privileged: bool,
    /// What must fit: a refusal before that counts when there is another after all was synced. btrfs counts what it has set aside for
    /// the metadata of data that is not written yet, and gives back what of it was too much.
    least: u64,
}

/// What is on record of the limits of a home, so that it can be put back with the home.
#[derive(Debug)]
pub(super) struct OnRecord {
    limits: BTreeMap<u64, u64>,
    /// The directories of the home that are in projects, relative to it.
    projects: Vec<(PathBuf, u32)>,
    /// The subvolumes of the home that have a limit, and the limits.
    subvolumes: Vec<(PathBuf, u64)>,
}

impl World<'_> {
    /// What is on record now, where the scenario has a filesystem to itself that keeps limits of projects or of subvolumes.
    pub(super) fn on_record(&mut self) -> Done<Option<OnRecord>> {
        let Some(own) = &self.own else {
            return Ok(None);
        };
        let groups = get_fs_magic(own.dir()).is_ok_and(|magic| magic == FsMagic::BTRFS);
        if !groups && !self.place.facts.has(Fact::ProjectQuota) {
            return Ok(None);
        }
        let wrong =
            |e: io::Error| Fail::new(format!("the filesystem's limits cannot be read: {e}"));
        let limits = self.limits_on_record()?.all().map_err(wrong)?;
        let (mut projects, mut subvolumes) = (Vec::new(), Vec::new());
        let mut note = |dir: BorrowedFd<'_>, path: &Path| -> io::Result<()> {
            if !groups {
                let found = project(dir)?;
                if found.inherited {
                    projects.push((path.to_path_buf(), found.id));
                }
            } else if btrfs::is_subvolume(dir)?
                && let Some(limit) = limits.get(&btrfs::info(dir)?.id)
            {
                subvolumes.push((path.to_path_buf(), *limit));
            }
            Ok(())
        };
        if !groups || !limits.is_empty() {
            each_dir(&self.home, Path::new(""), &mut note).map_err(wrong)?;
        }
        Ok(Some(OnRecord {
            limits,
            projects,
            subvolumes,
        }))
    }

    /// Makes the record what it was, and puts the directories of the home, which are copies, into their projects; copies of subvolumes
    /// get the limits of what they are copies of, which the kernel gives them only where it counts by who shares what.
    pub(super) fn put_on_record(&mut self, was: &OnRecord) -> Done {
        let limits = self.limits_on_record()?;
        let put = || -> io::Result<()> {
            for (path, bytes) in &was.subvolumes {
                let id = btrfs::info(open_dir(&self.home.join(path))?.as_fd())?.id;
                limits.set(id, *bytes)?;
            }
            if limits.are_of_subvolumes() {
                return Ok(());
            }
            for number in limits.all()?.keys().filter(|n| !was.limits.contains_key(n)) {
                limits.set(*number, 0)?;
            }
            for (number, limit) in &was.limits {
                limits.set(*number, *limit)?;
            }
            for (path, id) in &was.projects {
                set_project(open_dir(&self.home.join(path))?.as_fd(), *id)?;
            }
            Ok(())
        };
        put().map_err(|e| Fail::new(format!("the filesystem's limits cannot be put back: {e}")))
    }

    /// There must be no more limits on record than there were then.
    pub(super) fn no_more_limits(&mut self, then: &OnRecord) -> Done {
        let now = self.limits_on_record()?.all();
        let now = now.map_err(|e| Fail::new(format!("the limits cannot be read: {e}")))?;
        if now.len() <= then.limits.len() {
            return Ok(());
        }
        let (expected, found) = (then.limits.len(), now.len());
        Err(Fail::lines(
            format!("expected {expected} limits on record after the steps, found {found}:"),
            now.iter()
                .map(|(number, limit)| format!("{number}: {limit} bytes")),
        ))
    }

    pub fn limit(&mut self, s: &LimitStep, expect: &Expect) -> Done {
        let (least, most) = (s.at_least.0, s.at_most.as_ref().map(|most| most.0));
        let writers = Writers {
            threads: s.writers.unwrap_or(1),
            privileged: s.privileged,
            least,
        };
        let done = self.inside(&s.id, expect, |_, root, path| {
            let wrong = |e: io::Error| Fail::new(format!("{} cannot be written to: {e}", s.id));
            let before = fstat(root).map_err(|e| wrong(e.into()))?;
            let names: Vec<PathBuf> = (0..writers.threads)
                .map(|n| path.join(format!("written-{n}")))
                .collect();
            // What was deleted before is given back when the filesystem gets to it, and a child that another scenario forked meanwhile may
            // have a deleted file open for as long as it lives.
            let write_again = |most: u64| {
                let mut written = write(&names, writers, most).map_err(wrong)?;
                for _ in 0..TRIES {
                    if !written.refused || written.bytes >= least {
                        break;
                    }
                    std::thread::sleep(PAUSE);
                    remove(root, &names).map_err(wrong)?;
                    written = write(&names, writers, most).map_err(wrong)?;
                }
                Ok::<_, Fail>(written)
            };
            judge(&s.id, write_again(most.unwrap_or(least))?, least, most)?;
            if s.keep {
                return Ok(());
            }
            remove(root, &names).map_err(wrong)?;
            if most.is_some() {
                // What was deleted can be written again.
                judge(&s.id, write_again(least)?, least, None)
                    .map_err(|f| f.context("once more, after all was deleted"))?;
                remove(root, &names).map_err(wrong)?;
            }
            let times = Timestamps {
                last_access: rustix::fs::Timespec {
                    tv_sec: 0,
                    tv_nsec: UTIME_OMIT,
                },
                last_modification: rustix::fs::Timespec {
                    tv_sec: before.st_mtime,
                    tv_nsec: before.st_mtime_nsec as _,
                },
            };
            utimensat(root, "", &times, AtFlags::EMPTY_PATH).map_err(|e| wrong(e.into()))
        })?;
        if done.is_some() && s.keep {
            self.layers.forget_tree(&s.id);
        }
        Ok(())
    }

    pub fn statfs(&mut self, s: &StatfsStep, expect: &Expect) -> Done {
        let told = self.inside(&s.id, expect, |_, root, _| {
            fstatvfs(root).map_err(|e| Fail::new(format!("statfs of {}: {e}", s.id)))
        })?;
        let Some(told) = told else { return Ok(()) };
        let unit = told.f_frsize;
        let found = [
            ("in all", told.f_blocks * unit),
            ("free", told.f_bavail * unit),
        ];
        let at_most = [&s.size_at_most, &s.free_at_most];
        let at_least = [&s.size_at_least, &s.free_at_least];
        for ((what, bytes), (most, least)) in
            found.into_iter().zip(at_most.into_iter().zip(at_least))
        {
            let bound = match (most, least) {
                (Some(most), _) if bytes > most.0 => format!("at most {}", most.0),
                (_, Some(least)) if bytes < least.0 => format!("at least {}", least.0),
                _ => continue,
            };
            return Err(Fail::new(format!(
                "statfs of {}: expected {bound} bytes {what}, found {bytes}",
                s.id
            )));
        }
        Ok(())
    }

    pub fn foreign_limit(&mut self, s: &ForeignLimitStep) -> Done {
        let dir = self.own()?.dir().join(format!("foreign-{}", self.scratch));
        self.scratch += 1;
        self.limits_on_record()?
            .make_foreign(&dir, s.size.0)
            .map_err(|e| Fail::new(format!("no foreign limit can be set: {e}")))
    }

    fn limits_on_record(&mut self) -> Done<Limits> {
        let node = self.scratch_path("node");
        let dir = self.own()?.dir();
        Limits::of(dir, &node)
            .map_err(|e| Fail::new(format!("the filesystem's limits cannot be read: {e}")))
    }

    /// What is on record must be the same after steps as before.
    pub fn guard_limits(&mut self, body: &[Step]) -> Done {
        let limits = self.limits_on_record()?;
        let all = || {
            limits
                .all()
                .map_err(|e| Fail::new(format!("the filesystem's limits cannot be read: {e}")))
        };
        let before = all()?;
        self.run(body)?;
        let after = all()?;
        let mut lines = Vec::new();
        for (number, limit) in &before {
            match after.get(number) {
                Some(now) if now == limit => {}
                Some(now) => lines.push(format!("{number}: {limit} bytes expected, {now} found")),
                None => lines.push(format!("{number}: {limit} bytes expected, no limit found")),
            }
        }
        for (number, limit) in after.iter().filter(|(n, _)| !before.contains_key(n)) {
            lines.push(format!("{number}: no limit expected, {limit} bytes found"));
        }
        if lines.is_empty() {
            return Ok(());
        }
        Err(Fail::lines(
            "the limits that the filesystem has on record are not those of before:",
            lines,
        ))
    }
}

/// Looks at the directories at and below `path` in `home`.
fn each_dir(
    home: &Path,
    path: &Path,
    look: &mut impl FnMut(BorrowedFd<'_>, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let dir = home.join(path);
    look(open_dir(&dir)?.as_fd(), path)?;
    for entry in std::fs::read_dir(&dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            each_dir(home, &path.join(entry.file_name()), look)?;
        }
    }
    Ok(())
}

fn judge(id: &str, written: Written, least: u64, most: Option<u64>) -> Done {
    let Written { bytes, refused } = written;
    if refused && bytes < least {
        return Err(Fail::new(format!(
            "expected {id} to take at least {least} bytes, a write was refused after {bytes}"
        )));
    }
    match most {
        Some(most) if !refused => Err(Fail::new(format!(
            "expected {id} to take at most {most} bytes, it took {bytes}"
        ))),
        _ => Ok(()),
    }
}

/// Writes files at once until they hold `enough` and a piece more in all, or a write is refused for lack of room.
fn write(names: &[PathBuf], writers: Writers, enough: u64) -> io::Result<Written> {
    let total = AtomicU64::new(0);
    let total = &total;
    let results: Vec<io::Result<bool>> = std::thread::scope(|scope| {
        let threads: Vec<_> = names
            .iter()
            .zip(1..)
            .map(|(name, seed)| scope.spawn(move || write_one(name, seed, writers, enough, total)))
            .collect();
        threads
            .into_iter()
            .map(|t| {
                t.join()
                    .unwrap_or_else(|_| Err(io::Error::other("a writer panicked")))
            })
            .collect()
    });
    let mut refused = false;
    for result in results {
        refused |= result?;
    }
    Ok(Written {
        bytes: total.load(Ordering::Relaxed),
        refused,
    })
}

/// What one thread writes; whether it was refused in the end.
fn write_one(
    name: &Path,
    seed: u64,
    writers: Writers,
    enough: u64,
    total: &AtomicU64,
) -> io::Result<bool> {
    if !writers.privileged {
        // Of this thread alone, which ends with the writing.
        let mut mine = capabilities(None)?;
        mine.effective.remove(CapabilitySet::SYS_RESOURCE);
        set_capabilities(None, mine)?;
    }
    let full = |e: &io::Error| Errno::from_io_error(e).is_some_and(is_full);
    let mut file = match File::create(name) {
        Ok(file) => file,
        Err(e) if full(&e) => return Ok(true),
        Err(e) => return Err(e),
    };
    let mut noise = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut piece = vec![0; PIECE];
    let mut synced = false;
    while total.load(Ordering::Relaxed) <= enough {
        // What cannot be compressed.
        for bytes in piece.chunks_exact_mut(8) {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            bytes.copy_from_slice(&noise.to_le_bytes());
        }
        let mut rest = &piece[..];
        while !rest.is_empty() {
            // At the limit a write may come out short; the next one is refused.
            match file.write(rest) {
                Ok(n) => {
                    total.fetch_add(n as u64, Ordering::Relaxed);
                    rest = &rest[n..];
                    synced = false;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if full(&e) => {
                    if synced || total.load(Ordering::Relaxed) >= writers.least {
                        return Ok(true);
                    }
                    match syncfs(&file) {
                        Err(e) if !is_full(e) => return Err(e.into()),
                        _ => synced = true,
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }
    // Some filesystems find out only now.
    match file.sync_all() {
        Err(e) if full(&e) => Ok(true),
        other => other.map(|()| false),
    }
}

/// Removes the files, and waits until the space is there again: some filesystems give it back with the next commit.
fn remove(root: BorrowedFd<'_>, names: &[PathBuf]) -> io::Result<()> {
    for name in names {
        match std::fs::remove_file(name) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(syncfs(root)?)
}
