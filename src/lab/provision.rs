//! Making the place of a cell, and giving it back.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::damage::Damage;
use super::own::Source;
use super::stack::Stack;
use super::{Backing, Place, Register};
use crate::graphdriver::{FsMagic, get_fs_magic};
use crate::sys::mount::{mount_of, mounts_below};

/// How often, and after what pauses, giving back is tried.
const TRIES: usize = 10;
const PAUSE: Duration = Duration::from_millis(50);

/// A place made for one cell.
#[derive(Debug)]
pub struct Provisioned {
    /// The place; homes are made below its directory.
    pub place: Place,
    /// The filesystem the place is on, by the name the kernel's mount table gives it.
    pub filesystem: String,
    /// The program that serves the place, and its version.
    pub program: Option<(String, String)>,
    /// The directory made for it, which the register knows.
    made: PathBuf,
    stack: Stack,
}

/// What came of giving back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct GivenBack {
    /// What could not be given back, and why.
    pub left: Vec<String>,
    /// What the filesystem's checker and the kernel's log say is wrong with it.
    pub damage: Vec<String>,
    /// What could not be looked at, and trouble in the kernel's log that names no filesystem of the cell.
    pub notes: Vec<String>,
}

impl GivenBack {
    pub(super) fn add(&mut self, found: Damage) {
        self.damage.extend(found.damage);
        self.notes.extend(found.notes);
    }
}

impl Provisioned {
    /// Unmounts all of it, checks the filesystem for damage, removes it, and makes sure that nothing is left. Takes as long as the
    /// filesystem's checker, some tens of milliseconds for a small one.
    pub fn give_back(mut self, register: &Register) -> GivenBack {
        let mut given = GivenBack::default();
        let unmounted = self.stack.unmount();
        if unmounted.is_ok() {
            given.add(self.stack.damage());
        }
        if let Err(why) = unmounted {
            // It stays registered for `clean`, with the image by which its loop device is found.
            given.left.push(why);
            return given;
        }
        // The thread of a scenario that was given up may still be making files; it ends when its home is gone.
        let mut tries = 0;
        while let Err(why) = register.give_back(&self.made) {
            tries += 1;
            if tries == TRIES {
                given.left.push(why);
                return given;
            }
            std::thread::sleep(PAUSE);
        }
        match mounts_below(&self.made) {
            Ok(mounts) => given.left.extend(
                mounts
                    .first()
                    .map(|m| format!("{}: still mounted", m.path.display())),
            ),
            Err(e) => given
                .left
                .push(format!("{}: list mounts: {e}", self.made.display())),
        }
        given
    }
}

/// Makes a place: a marked directory of the run, in it whatever the backing is made of, probed. Images and mount points are in the
/// directory that `TMPDIR` names; where it names none, in memory (`/dev/shm`) if there is plenty of it, else in `/tmp`.
///
/// # Errors
/// Which step failed, with its path and errno; what is not installed, with its package.
pub fn provision(backing: &Backing, register: &Register) -> io::Result<Provisioned> {
    let parent = match (&backing.path, backing.is_made()) {
        (Some(path), _) => path.clone(),
        (None, false) => std::env::current_dir()?,
        (None, true) => for_images(),
    };
    if let Some(program) = backing.kind.program() {
        program.find()?;
    }
    let said = |what: &str, e: io::Error| {
        io::Error::new(e.kind(), format!("{what} {}: {e}", parent.display()))
    };
    let made = register
        .make_dir(&parent)
        .map_err(|e| said("make a directory in", e))?;
    let result = (|| {
        let mut stack = Stack::make(backing.kind, &made, None)?;
        stack.watch();
        let mut place =
            Place::probe(stack.on(), backing.to_string()).map_err(|e| said("write in", e))?;
        place.pool = stack.pool();
        if backing.is_made() {
            place.own = Some(Arc::new(Source::new(backing.kind, made.join("own"))));
            for &fact in backing.kind.own_facts() {
                place.facts.add(fact);
            }
        }
        let filesystem = filesystem_of(&place.dir);
        Ok(Provisioned {
            place,
            filesystem,
            program: stack.program(),
            made: made.clone(),
            stack,
        })
    })();
    if result.is_err() {
        // Whatever cannot be given back now stays registered for `clean`.
        let _ = register.give_back(&made);
    }
    result
}

/// What must be free in memory and in its filesystem for images to be made there: several cells are open at a time, and each takes a few
/// hundred MiB.
const PLENTY: u64 = 8 << 30;

/// Where images are made. In memory they are flushed at once, and most scenarios wait for little else than flushes.
fn for_images() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if std::env::var_os("TMPDIR").is_none() && has_plenty(memory).unwrap_or(false) {
        return memory.to_path_buf();
    }
    std::env::temp_dir()
}

fn has_plenty(memory: &Path) -> io::Result<bool> {
    if get_fs_magic(memory).map_err(io::Error::other)? != FsMagic::TMPFS {
        return Ok(false);
    }
    let fs = rustix::fs::statvfs(memory)?;
    let read_only = fs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
    let free = fs.f_bavail.saturating_mul(fs.f_frsize);
    let known = std::fs::read_to_string("/proc/meminfo")?;
    Ok(!read_only && free.min(available(&known).unwrap_or(0)) >= PLENTY)
}

/// The bytes of `MemAvailable` in proc_meminfo(5).
fn available(known: &str) -> Option<u64> {
    let line = known
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The filesystem type of the mount that holds `dir`, from the mount table.
fn filesystem_of(dir: &Path) -> String {
    mount_of(dir).map_or_else(|_| "unknown".to_string(), |m| m.fs_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_read() {
        let known = "MemTotal:  9 kB\nMemFree:  7 kB\nMemAvailable:   16384 kB\nBuffers: 1 kB\n";
        assert_eq!(available(known), Some(16 << 20));
        assert_eq!(available("MemTotal: 9 kB\n"), None);
        let here = std::fs::read_to_string("/proc/meminfo").unwrap();
        assert!(available(&here).unwrap() > 0);
        assert!(!has_plenty(Path::new("/proc")).unwrap());
    }
}
