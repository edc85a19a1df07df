//! The kinds of place there are, and making one for a cell.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::{Place, Register};
use crate::sys::mount::{MountFlags, mount, mounts_below};

/// What a driver's home lives on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A directory on whatever filesystem it is on; `None`: the current directory.
    Dir(Option<PathBuf>),
    /// A tmpfs, mounted for the cell.
    Tmpfs,
}

impl Backing {
    /// The backings a run uses when none is named.
    pub const DEFAULT: &'static [Self] = &[Self::Dir(None), Self::Tmpfs];

    /// Every kind with one sentence about it, for lists.
    pub const KINDS: &'static [(&'static str, &'static str)] = &[
        (
            "dir",
            "the filesystem of the current directory; nothing is mounted",
        ),
        (
            "dir:PATH",
            "the filesystem of an existing directory; nothing is mounted",
        ),
        (
            "tmpfs",
            "a tmpfs mounted for the cell; needs root or a user namespace",
        ),
    ];
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(None) => f.write_str("dir"),
            Self::Dir(Some(path)) => write!(f, "dir:{}", path.display()),
            Self::Tmpfs => f.write_str("tmpfs"),
        }
    }
}

impl FromStr for Backing {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "dir" => Ok(Self::Dir(None)),
            "tmpfs" => Ok(Self::Tmpfs),
            _ => match s.strip_prefix("dir:") {
                Some("") => Err("`dir:` wants a path".to_string()),
                Some(path) => Ok(Self::Dir(Some(PathBuf::from(path)))),
                None => {
                    let known: Vec<_> = Self::KINDS.iter().map(|(name, _)| *name).collect();
                    Err(format!(
                        "unknown backing `{s}`; known: {}",
                        known.join(", ")
                    ))
                }
            },
        }
    }
}

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
    /// The directory made for it, which the register knows.
    made: PathBuf,
}

impl Provisioned {
    /// Unmounts and removes all of it, and checks that nothing is left.
    ///
    /// # Errors
    /// What is left behind, in words.
    pub fn give_back(self, register: &Register) -> Result<(), String> {
        // The thread of a scenario that was given up may still be making files; it ends when its home is gone.
        let mut tries = 0;
        while let Err(why) = register.give_back(&self.made) {
            tries += 1;
            if tries == TRIES {
                return Err(why);
            }
            std::thread::sleep(PAUSE);
        }
        let left = mounts_below(&self.made)
            .map_err(|e| format!("{}: list mounts: {e}", self.made.display()))?;
        match left.first() {
            Some(mount) => Err(format!("{}: still mounted", mount.path.display())),
            None => Ok(()),
        }
    }
}

/// Makes a place: a marked directory of the run on the backing, probed.
///
/// # Errors
/// Which step failed, with its path and errno.
pub fn provision(backing: &Backing, register: &Register) -> io::Result<Provisioned> {
    let parent = match backing {
        Backing::Dir(Some(path)) => path.clone(),
        Backing::Dir(None) => std::env::current_dir()?,
        Backing::Tmpfs => std::env::temp_dir(),
    };
    let said = |what: &str, e: io::Error| {
        io::Error::new(e.kind(), format!("{what} {}: {e}", parent.display()))
    };
    let made = register
        .make_dir(&parent)
        .map_err(|e| said("make a directory in", e))?;
    let result = (|| {
        let on = made.join("on");
        std::fs::create_dir(&on)?;
        if *backing == Backing::Tmpfs {
            mount(
                Path::new("graphtest"),
                &on,
                "tmpfs",
                MountFlags::empty(),
                b"mode=0755",
            )
            .map_err(|e| said("mount a tmpfs below", e))?;
        }
        let place = Place::probe(&on, backing.to_string()).map_err(|e| said("write in", e))?;
        let filesystem = filesystem_of(&place.dir);
        Ok(Provisioned {
            place,
            filesystem,
            made: made.clone(),
        })
    })();
    if result.is_err() {
        // Whatever cannot be given back now stays registered for `clean`.
        let _ = register.give_back(&made);
    }
    result
}

/// The filesystem type of the mount that holds `dir`, from the mount table.
fn filesystem_of(dir: &Path) -> String {
    let mounts = mounts_below(Path::new("/")).unwrap_or_default();
    let holds = mounts
        .iter()
        .enumerate()
        .filter(|(_, m)| dir.starts_with(&m.path));
    // The longest path holds it; of several mounted on each other, the last.
    let best = holds.max_by_key(|(i, m)| (m.path.as_os_str().len(), *i));
    best.map_or_else(|| "unknown".to_string(), |(_, m)| m.fs_type.clone())
}
