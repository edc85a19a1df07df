//! The names of places: what a driver's home can live on, as a value.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::kinds::{ALL, DIR, Kind, Recipe, TMPFS};

/// What a driver's home lives on: a kind by its name, and the directory of a `dir:PATH`.
#[derive(Clone, Debug)]
pub struct Backing {
    pub(super) kind: &'static Kind,
    pub(super) path: Option<PathBuf>,
}

impl Backing {
    /// A directory on whatever filesystem it is on; `None`: the current directory.
    pub fn dir(path: Option<PathBuf>) -> Self {
        Self { kind: &DIR, path }
    }

    /// A tmpfs, mounted for the cell.
    pub fn tmpfs() -> Self {
        Self {
            kind: &TMPFS,
            path: None,
        }
    }

    /// The backings a run uses when none is named: a directory and a tmpfs; for what must lie on a certain filesystem, the first that is
    /// made with it.
    pub fn defaults(filesystem: Option<&str>) -> Vec<Self> {
        let mut made = Self::all().into_iter().filter(Self::is_made);
        match filesystem.and_then(|fs| made.find(|backing| backing.kind.filesystem() == fs)) {
            Some(backing) => vec![backing],
            None => vec![Self::dir(None), Self::tmpfs()],
        }
    }

    /// One of every kind, in the order of lists.
    pub fn all() -> Vec<Self> {
        let of = |kind: &&'static Kind| Self { kind, path: None };
        ALL.iter().map(of).collect()
    }

    /// One sentence about its kind, for lists.
    pub fn about(&self) -> &'static str {
        self.kind.about
    }

    /// What has to be installed for it and is not: the program, and Debian's package of it.
    pub fn not_installed(&self) -> Option<String> {
        self.kind.program()?.find().err().map(|e| e.to_string())
    }

    /// The command, or the kernel, with which it can be had here, when [`provision`](super::provision) said why it cannot.
    pub fn mend(&self, why: &str) -> Option<String> {
        if let Some(program) = self.kind.program().filter(|p| p.find().is_err()) {
            return Some(format!("apt-get install {}", program.package));
        }
        let modules = Path::new("/lib/modules").join(kernel_release()).exists();
        if why.contains("/dev/loop-control") && !Path::new("/dev/loop-control").exists() {
            return Some(if modules {
                "modprobe loop".to_string()
            } else {
                "a kernel with CONFIG_BLK_DEV_LOOP".to_string()
            });
        }
        let Recipe::Image(image) = &self.kind.recipe else {
            return None;
        };
        let mut options = options_named(self.about());
        if why.contains("mount of") && !is_known(image.fs_type) {
            if modules {
                return Some(format!("modprobe {}", image.fs_type));
            }
            options.insert(0, format!("CONFIG_{}_FS", image.fs_type.to_uppercase()));
        }
        let wanted = why.contains("mount of") && !options.is_empty();
        wanted.then(|| format!("a kernel with {}", options.join(" and ")))
    }

    /// Whether it is made for the cell: all but a directory.
    pub fn is_made(&self) -> bool {
        !matches!(self.kind.recipe, Recipe::Dir)
    }
}

fn kernel_release() -> String {
    let uname = rustix::system::uname();
    uname.release().to_string_lossy().into_owned()
}

/// Whether the kernel has that filesystem, now.
fn is_known(fs_type: &str) -> bool {
    std::fs::read_to_string("/proc/filesystems").is_ok_and(|known| {
        known
            .lines()
            .any(|line| line.split_whitespace().next_back() == Some(fs_type))
    })
}

/// The kernel's options that a text names.
fn options_named(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("CONFIG_"))
        .map(str::to_string)
        .collect()
}

impl PartialEq for Backing {
    fn eq(&self, other: &Self) -> bool {
        (self.kind.name, &self.path) == (other.kind.name, &other.path)
    }
}

impl Eq for Backing {}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            None => f.write_str(self.kind.name),
            Some(path) => write!(f, "{}:{}", self.kind.name, path.display()),
        }
    }
}

impl FromStr for Backing {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        if let Some(kind) = ALL.iter().find(|k| k.name == s) {
            return Ok(Self { kind, path: None });
        }
        match s.strip_prefix("dir:") {
            Some("") => Err("`dir:` wants a path".to_string()),
            Some(path) => Ok(Self::dir(Some(PathBuf::from(path)))),
            None => {
                let known: Vec<_> = ALL.iter().map(|k| k.name).collect();
                Err(format!(
                    "unknown backing `{s}`; known: dir:PATH, {}",
                    known.join(", ")
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_backing_is_found_by_its_name_and_by_no_other() {
        let all = Backing::all();
        for (i, backing) in all.iter().enumerate() {
            assert_eq!(backing.to_string().parse::<Backing>().as_ref(), Ok(backing));
            assert!(!all[..i].contains(backing), "{backing} twice");
            assert!(!backing.about().is_empty());
        }
        let quota: Backing = "ext4+pquota".parse().unwrap();
        let kernel = quota.mend("mount of ext4+pquota: Invalid argument");
        assert!(quota.not_installed().is_some() || kernel.unwrap().contains("CONFIG_QFMT_V2"));
        assert_eq!(Backing::tmpfs().mend("mount a tmpfs: EPERM"), None);
        let path = "dir:/some/where".parse::<Backing>().unwrap();
        assert_eq!(path.to_string(), "dir:/some/where");
        assert_ne!(path, Backing::dir(None));
        for wrong in ["dir:", "ext5", "ext4+", "tmpfs:/x"] {
            assert!(wrong.parse::<Backing>().is_err(), "{wrong}");
        }
    }
}
