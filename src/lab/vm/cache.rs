//! The cache: what was fetched and made once is kept in the user's cache directory.
//!
//! Every item is made under another name and renamed, with a lock held, so that an item which has its name is whole and only one
//! process makes it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::error::{Result, at, cannot};
use crate::lab::user;
use crate::sys::remove::remove_tree;

/// A directory of fetched and made things.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The user's: `$GRAPHTEST_CACHE`; else `$XDG_CACHE_HOME/graphtest` or `~/.cache/graphtest`.
    ///
    /// # Errors
    /// None of these is set.
    pub fn of_user() -> Result<Self> {
        let dir = user::named("GRAPHTEST_CACHE").or_else(|| user::dir("XDG_CACHE_HOME", ".cache"));
        let none = || {
            cannot("no cache directory: neither GRAPHTEST_CACHE, XDG_CACHE_HOME nor HOME is set")
        };
        let dir = dir.ok_or_else(none)?;
        // Programs of the guest's root are run from here by a path, in whatever directory.
        let dir = std::path::absolute(&dir).map_err(at(&dir, "make absolute"))?;
        Ok(Self { dir })
    }

    /// A cache in a directory, which need not exist.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A directory in it, made if need be.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn subdir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).map_err(at(&dir, "make the cache directory"))?;
        Ok(dir)
    }

    /// Where an item is or will be.
    pub fn path(&self, kind: &str, name: &str) -> PathBuf {
        self.dir.join(kind).join(name)
    }

    /// An item, a file or a directory; `make` makes it at the path that it is given if it is not there.
    ///
    /// # Errors
    /// Those of `make`; the cache cannot be written.
    pub fn item(
        &self,
        kind: &str,
        name: &str,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let path = self.subdir(kind)?.join(name);
        if path.exists() {
            return Ok(path);
        }
        let _lock = self.lock(&format!("{kind}-{name}"))?;
        if path.exists() {
            return Ok(path);
        }
        self.replace_locked(&path, make)?;
        Ok(path)
    }

    /// Makes an item anew, whether it is there or not.
    ///
    /// # Errors
    /// As for [`Cache::item`].
    pub fn renew(
        &self,
        kind: &str,
        name: &str,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let path = self.subdir(kind)?.join(name);
        let _lock = self.lock(&format!("{kind}-{name}"))?;
        self.replace_locked(&path, make)?;
        Ok(path)
    }

    fn replace_locked(&self, path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let mut part = path.as_os_str().to_owned();
        part.push(PART);
        let part = PathBuf::from(part);
        // Of a process that died at it: the lock is held, so nobody is.
        remove_tree(&part).map_err(at(&part, "remove"))?;
        let made = make(&part).and_then(|()| fs::rename(&part, path).map_err(at(path, "rename")));
        if made.is_err() {
            let _ = remove_tree(&part);
        }
        made
    }

    fn lock(&self, name: &str) -> Result<File> {
        let path = self.subdir("locks")?.join(name);
        let file = File::create(&path).map_err(at(&path, "make"))?;
        flock(&file, FlockOperation::LockExclusive).map_err(at(&path, "lock"))?;
        Ok(file)
    }

    /// Removes everything.
    ///
    /// # Errors
    /// What cannot be removed.
    pub fn clear(&self) -> Result<()> {
        remove_tree(&self.dir).map_err(at(&self.dir, "remove"))
    }
}

/// How items that are not whole end.
const PART: &str = ".part";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_made_once_and_whole() {
        let tmp = tempfile::tempdir().unwrap();
        let cache = Cache::at(tmp.path().join("cache"));
        let made = |text: &'static str| {
            move |path: &Path| fs::write(path, text).map_err(at(path, "write"))
        };
        let path = cache.item("things", "a", made("one")).unwrap();
        assert_eq!(cache.item("things", "a", made("two")).unwrap(), path);
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        cache.renew("things", "a", made("three")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "three");
        let failed = cache.item("things", "b", |path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("half"), "x").unwrap();
            Err(cannot("no"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "no");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        // What a process left that was killed while it made an item is in nobody's way.
        fs::create_dir(tmp.path().join("cache/things/c.part")).unwrap();
        cache.item("things", "c", made("whole")).unwrap();
        cache.clear().unwrap();
        assert!(!cache.dir().exists());
    }
}
