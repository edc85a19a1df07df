//! The register of made things: what a run makes is written down, safely, before it is made, so that [`clean`] can give it back when
//! the run was killed.
//!
//! Each run has one file in the state directory and holds a lock on it for as long as it lives. Each directory it makes has
//! the run's id in its name and a marker file inside; nothing without both is ever touched.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Deserialize, Serialize};

use crate::sys::mount::umount_below;
use crate::sys::remove::remove_tree;
use crate::tree::op::Bytes;

/// The file inside a made directory that holds the run's id.
const MARKER: &str = ".graphtest-mark";
/// How the files in the state directory end.
const SUFFIX: &str = ".jsonl";

/// One line of a run's file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Record {
    /// A directory is about to be made, with everything below it.
    Directory(Bytes),
}

/// The state directory: `$GRAPHTEST_STATE`; else, as root, `/var/lib/graphtest`; else `$XDG_STATE_HOME/graphtest` or
/// `~/.local/state/graphtest`.
///
/// # Errors
/// None of these is set.
pub fn state_dir() -> io::Result<PathBuf> {
    let var = |name| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    if let Some(dir) = var("GRAPHTEST_STATE") {
        return Ok(dir);
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/graphtest"));
    }
    var("XDG_STATE_HOME")
        .or_else(|| var("HOME").map(|home| home.join(".local/state")))
        .map(|dir| dir.join("graphtest"))
        .ok_or_else(|| io::Error::other("neither GRAPHTEST_STATE, XDG_STATE_HOME nor HOME is set"))
}

/// What this run has made. Dropping it leaves everything to [`clean`]; [`Register::close`] ends it.
#[derive(Debug)]
pub struct Register {
    id: String,
    path: PathBuf,
    file: Mutex<File>,
    dirs: Mutex<Vec<PathBuf>>,
}

impl Register {
    /// Begins a run in the [`state_dir`]. As an ordinary user, to be called before a user namespace is entered: inside it one seems to
    /// be root.
    ///
    /// # Errors
    /// There is no state directory, or it cannot be written; the message names it.
    pub fn begin() -> io::Result<Self> {
        let state = state_dir().map_err(|e| {
            io::Error::new(e.kind(), format!("cannot find the state directory: {e}"))
        })?;
        Self::open(&state).map_err(|e| {
            let what = format!(
                "cannot write in the state directory {}; set GRAPHTEST_STATE to another one: {e}",
                state.display()
            );
            io::Error::new(e.kind(), what)
        })
    }

    /// Begins a run: makes its file in `state` (which is made if need be) and locks it.
    ///
    /// # Errors
    /// The state directory cannot be written.
    pub fn open(state: &Path) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state)?;
        loop {
            let id = random_id()?;
            let path = state.join(format!("{id}{SUFFIX}"));
            let file = match OpenOptions::new()
                .create_new(true)
                .append(true)
                .mode(0o600)
                .open(&path)
            {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                other => other?,
            };
            flock(&file, FlockOperation::LockExclusive)?;
            // Between making and locking it, a `clean` may have taken the file for one left behind.
            if file.metadata()?.nlink() == 0 {
                continue;
            }
            File::open(state)?.sync_all()?;
            return Ok(Self {
                id,
                path,
                file: Mutex::new(file),
                dirs: Mutex::default(),
            });
        }
    }

    /// The run's id, eight hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Makes a directory in `parent` that is the run's own: mode 0755, marked, written down before it is made.
    ///
    /// # Errors
    /// The register or the directory cannot be written.
    pub fn make_dir(&self, parent: &Path) -> io::Result<PathBuf> {
        let parent = fs::canonicalize(parent)?;
        let mut dirs = lock(&self.dirs);
        let path = parent.join(format!(".graphtest-{}-{}", self.id, dirs.len() + 1));
        let record = Record::Directory(Bytes(path.as_os_str().as_bytes().to_vec()));
        let mut line = serde_json::to_string(&record)?;
        line.push('\n');
        {
            let mut file = lock(&self.file);
            file.write_all(line.as_bytes())?;
            file.sync_data()?;
        }
        DirBuilder::new().mode(0o755).create(&path)?;
        dirs.push(path.clone());
        fs::write(path.join(MARKER), &self.id)?;
        Ok(path)
    }

    /// Unmounts what is mounted below a made directory and removes it; that it is gone already is success.
    ///
    /// # Errors
    /// What is left, and why.
    pub fn give_back(&self, dir: &Path) -> Result<(), String> {
        give_back(&self.id, dir).map(|_| ())
    }

    /// Ends the run. Directories that still exist are listed and stay registered for [`clean`]; if there are none, the run's
    /// file goes too.
    ///
    /// # Errors
    /// The run's file cannot be removed.
    pub fn close(&self) -> io::Result<Vec<PathBuf>> {
        let mut dirs = std::mem::take(&mut *lock(&self.dirs));
        dirs.retain(|d| fs::symlink_metadata(d).is_ok());
        if dirs.is_empty() {
            fs::remove_file(&self.path)?;
        }
        Ok(dirs)
    }
}

/// What [`clean`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// The directories that were given back, with the mounts below them.
    pub given_back: Vec<String>,
    /// What could not be given back, and why.
    pub left: Vec<String>,
    /// How many runs are still going; they were left alone.
    pub running: usize,
}

/// Gives back what dead runs left behind. Runs that still hold their lock are not touched, nor is any directory that does
/// not carry the mark of its run.
///
/// # Errors
/// The state directory exists and cannot be read.
pub fn clean(state: &Path) -> io::Result<Cleaned> {
    let mut cleaned = Cleaned::default();
    let entries = match fs::read_dir(state) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(cleaned),
        other => other?,
    };
    for entry in entries {
        let path = entry?.path();
        let Some(id) = path
            .file_name()
            .and_then(|n| n.to_str())
            .and_then(|n| n.strip_suffix(SUFFIX))
        else {
            continue;
        };
        clean_run(id, &path, &mut cleaned);
    }
    cleaned.given_back.sort();
    cleaned.left.sort();
    Ok(cleaned)
}

/// How many dead runs have something registered; a cheap look without giving anything back.
///
/// # Errors
/// The state directory exists and cannot be read.
pub fn dead_runs(state: &Path) -> io::Result<usize> {
    let entries = match fs::read_dir(state) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    let dead = |path: &Path| open_if_dead(path).is_ok_and(|f| f.is_some());
    Ok(entries
        .filter_map(Result::ok)
        .filter(|e| e.file_name().as_bytes().ends_with(SUFFIX.as_bytes()) && dead(&e.path()))
        .count())
}

/// Opens a run's file, locked, unless the run still holds it.
fn open_if_dead(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn clean_run(id: &str, path: &Path, cleaned: &mut Cleaned) {
    let mut text = String::new();
    let file = match open_if_dead(path) {
        Ok(None) => {
            cleaned.running += 1;
            return;
        }
        Ok(Some(mut file)) => file.read_to_string(&mut text).map(|_| file),
        Err(e) => Err(e),
    };
    let _locked = match file {
        Ok(file) => file,
        Err(e) => {
            cleaned.left.push(format!("{}: {e}", path.display()));
            return;
        }
    };
    let left_before = cleaned.left.len();
    for line in text.lines() {
        // A last line cut short by a crash was never acted on: the thing is made after the line is on disk.
        let Ok(Record::Directory(dir)) = serde_json::from_str(line) else {
            continue;
        };
        let dir = PathBuf::from(std::ffi::OsString::from_vec(dir.0));
        match give_back(id, &dir) {
            Ok(true) => cleaned.given_back.push(dir.display().to_string()),
            Ok(false) => {}
            Err(why) => cleaned.left.push(why),
        }
    }
    if cleaned.left.len() == left_before
        && let Err(e) = fs::remove_file(path)
    {
        cleaned.left.push(format!("{}: {e}", path.display()));
    }
}

/// Gives back one directory of run `id` after checking that it is its own; false when there is none.
fn give_back(id: &str, dir: &Path) -> Result<bool, String> {
    let fail = |what: &str, e: &dyn std::fmt::Display| format!("{}: {what}: {e}", dir.display());
    match fs::symlink_metadata(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(fail("stat", &e)),
        Ok(m) if !m.is_dir() => return Err(fail("not touched", &"not a directory")),
        Ok(_) => {}
    }
    let named = dir.file_name().is_some_and(|n| {
        n.as_bytes()
            .starts_with(format!(".graphtest-{id}-").as_bytes())
    });
    if !named || !dir.is_absolute() {
        return Err(fail("not touched", &"its name is not of this run"));
    }
    let marked = fs::read(dir.join(MARKER)).is_ok_and(|m| m == id.as_bytes());
    if !marked {
        // Killed between making the directory and marking it: then it is empty, and rmdir takes nothing else.
        return match fs::remove_dir(dir) {
            Ok(()) => Ok(true),
            Err(_) if only_an_unfinished_mark(dir) => remove_tree(dir)
                .map(|()| true)
                .map_err(|e| fail("remove", &e)),
            Err(_) => Err(fail(
                "not touched",
                &"it does not carry the mark of its run",
            )),
        };
    }
    umount_below(dir).map_err(|e| fail("take mounts away", &e))?;
    // The mark goes last: a removal that is itself interrupted can be taken up again.
    let inner = fs::read_dir(dir).map_err(|e| fail("read", &e))?;
    for entry in inner
        .filter_map(Result::ok)
        .filter(|e| e.file_name() != MARKER)
    {
        remove_tree(&entry.path()).map_err(|e| fail("remove", &e))?;
    }
    remove_tree(dir).map_err(|e| fail("remove", &e))?;
    Ok(true)
}

/// The mark's file was made but not yet written, and nothing else is there.
fn only_an_unfinished_mark(dir: &Path) -> bool {
    let names: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|e| e.file_name())
        .collect();
    names == [MARKER] && fs::read(dir.join(MARKER)).is_ok_and(|m| m.is_empty())
}

fn random_id() -> io::Result<String> {
    let mut bytes = [0; 4];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:08x}", u32::from_ne_bytes(bytes)))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register that died: what is on disk stays, the lock is free.
    fn die(register: Register) -> String {
        register.id().to_string()
    }

    #[test]
    fn a_closed_run_leaves_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        let (state, work) = (tmp.path().join("state"), tmp.path().join("work"));
        fs::create_dir(&work).unwrap();
        let register = Register::open(&state).unwrap();
        let dir = register.make_dir(&work).unwrap();
        fs::create_dir_all(dir.join("home/a")).unwrap();
        assert_eq!(
            clean(&state).unwrap(),
            Cleaned {
                running: 1,
                ..Cleaned::default()
            }
        );
        assert!(dir.join("home/a").exists());
        register.give_back(&dir).unwrap();
        assert_eq!(register.close().unwrap(), Vec::<PathBuf>::new());
        assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
        assert_eq!(fs::read_dir(&work).unwrap().count(), 0);
    }

    #[test]
    fn a_dead_run_is_given_back_whole() {
        let tmp = tempfile::tempdir().unwrap();
        let (state, work) = (tmp.path().join("state"), tmp.path().join("work"));
        fs::create_dir(&work).unwrap();
        let register = Register::open(&state).unwrap();
        let dir = register.make_dir(&work).unwrap();
        fs::write(dir.join("file"), "x").unwrap();
        let bare = register.make_dir(&work).unwrap();
        fs::remove_file(bare.join(MARKER)).unwrap();
        die(register);
        assert_eq!(dead_runs(&state).unwrap(), 1);
        let cleaned = clean(&state).unwrap();
        assert_eq!(cleaned.given_back.len(), 2, "{cleaned:?}");
        assert!(cleaned.left.is_empty());
        assert_eq!(fs::read_dir(&work).unwrap().count(), 0);
        assert_eq!(clean(&state).unwrap(), Cleaned::default());
    }

    #[test]
    fn what_does_not_carry_the_mark_is_not_touched() {
        let tmp = tempfile::tempdir().unwrap();
        let (state, work) = (tmp.path().join("state"), tmp.path().join("work"));
        fs::create_dir(&work).unwrap();
        let register = Register::open(&state).unwrap();
        let dir = register.make_dir(&work).unwrap();
        let linked = register.make_dir(&work).unwrap();
        let id = die(register);
        fs::write(dir.join(MARKER), "another run").unwrap();
        fs::write(dir.join("precious"), "x").unwrap();
        // A directory of someone else under the name of ours, through a symbolic link.
        let foreign = tmp.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join(MARKER), &id).unwrap();
        remove_tree(&linked).unwrap();
        std::os::unix::fs::symlink(&foreign, &linked).unwrap();
        // A forged line that names a directory that is not a run's.
        let line = format!("{{\"directory\":\"{}\"}}\n{{\"direct", foreign.display());
        let path = state.join(format!("{id}{SUFFIX}"));
        OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(line.as_bytes())
            .unwrap();
        let cleaned = clean(&state).unwrap();
        assert_eq!(cleaned.left.len(), 3, "{cleaned:?}");
        assert!(dir.join("precious").exists() && foreign.join(MARKER).exists() && path.exists());
    }
}
