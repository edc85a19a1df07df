//! The register of made things: what a run makes is written down, safely, before it is made, so that [`clean`](super::clean()) can give
//! it back when the run was killed.
//!
//! Each run has one file in the state directory and holds a lock on it for as long as it lives. Each directory it makes has
//! the run's id in its name and a marker file inside; nothing without both is ever touched.

use super::user;
use crate::sync::lock;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::clean::{Owner, give_back};
use crate::tree::op::Bytes;

/// The file inside a made directory that holds the run's id.
pub(super) const MARKER: &str = ".graphtest-mark";
/// How the files in the state directory end.
pub(super) const SUFFIX: &str = ".jsonl";

/// One line of a run's file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Record {
    /// A directory is about to be made, with everything below it.
    Directory(Bytes),
}

/// The state directory: `$GRAPHTEST_STATE`; else, as root, `/var/lib/graphtest`; else `$XDG_STATE_HOME/graphtest` or
/// `~/.local/state/graphtest`.
///
/// # Errors
/// None of these is set.
pub fn state_dir() -> io::Result<PathBuf> {
    if let Some(dir) = user::named("GRAPHTEST_STATE") {
        return Ok(dir);
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/graphtest"));
    }
    user::dir("XDG_STATE_HOME", ".local/state")
        .ok_or_else(|| io::Error::other("neither GRAPHTEST_STATE, XDG_STATE_HOME nor HOME is set"))
}

/// What this run has made. Dropping it leaves everything to [`clean`](super::clean()); [`Register::close`] ends it.
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
        give_back(&self.id, dir, Owner::Alive).map(|_| ())
    }

    /// Ends the run. Directories that still exist are listed and stay registered for [`clean`](super::clean()); if there are none, the run's
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

fn random_id() -> io::Result<String> {
    let mut bytes = [0; 4];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:08x}", u32::from_ne_bytes(bytes)))
}
