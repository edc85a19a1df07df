//! The names of places: what a driver's home can live on, as a value.

use std::fmt;
use std::path::PathBuf;
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

    /// The backings a run uses when none is named.
    pub fn defaults() -> Vec<Self> {
        vec![Self::dir(None), Self::tmpfs()]
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

    /// Whether it is made for the cell: all but a directory.
    pub fn is_made(&self) -> bool {
        !matches!(self.kind.recipe, Recipe::Dir)
    }
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
        let path = "dir:/some/where".parse::<Backing>().unwrap();
        assert_eq!(path.to_string(), "dir:/some/where");
        assert_ne!(path, Backing::dir(None));
        for wrong in ["dir:", "ext5", "ext4+", "tmpfs:/x"] {
            assert!(wrong.parse::<Backing>().is_err(), "{wrong}");
        }
    }
}
