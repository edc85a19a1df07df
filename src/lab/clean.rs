//! Giving back: one directory of a run, and all that dead runs left.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};

use super::leftover;
use super::made::{MARKER, Record, SUFFIX};
use super::pool;
use crate::sys::mount::umount_below;
use crate::sys::remove::remove_tree;

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
        match give_back(id, &dir, Owner::Dead) {
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

/// Whether the run that a directory belongs to is still going.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// It gives back what it made itself, having stopped its own programs.
    Alive,
    /// It was killed.
    Dead,
}

/// Gives back one directory of run `id` after checking that it is its own; false when there is none.
pub(super) fn give_back(id: &str, dir: &Path, owner: Owner) -> Result<bool, String> {
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
    if owner == Owner::Dead {
        leftover::stop_programs(dir)?;
        leftover::unmount_elsewhere(dir)?;
    }
    umount_below(dir).map_err(|e| fail("take mounts away", &e))?;
    pool::free_pools(dir)?;
    // Without its image a loop device could not be told from a foreign one any more.
    leftover::free_loops(dir)?;
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::lab::Register;

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
