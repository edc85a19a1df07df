//! Removing what stood in the layer, and what became of the sizes.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Stat, statat, unlinkat};
use rustix::io::Errno;

use super::fault::{On, Outcome};
use super::{Applier, c_name};
use crate::sys::fs::for_each_name;
use crate::tree::TreePath;

/// What a removal spares.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Spare {
    /// Nothing.
    Nothing,
    /// What this archive made.
    Made,
}

/// A directory being emptied.
struct Level {
    path: TreePath,
    names: Vec<std::ffi::CString>,
}

impl Applier<'_> {
    /// Removes whatever stands at `path`, with all below it; says what it was.
    pub(super) fn clear(&mut self, path: &TreePath) -> Outcome<Option<Stat>> {
        let Some(st) = self.stat(path)? else {
            return Ok(None);
        };
        if FileType::from_raw_mode(st.st_mode) == FileType::Directory {
            self.empty(path, Spare::Nothing)?;
            self.remove_empty_dir(path)?;
        } else {
            self.unlink(path, &st)?;
        }
        Ok(Some(st))
    }

    /// Removes one name that is not a directory.
    pub(super) fn unlink(&mut self, path: &TreePath, st: &Stat) -> Outcome {
        let base = c_name(path);
        let dir = self.holder(path)?.as_fd();
        unlinkat(dir, &base, AtFlags::empty()).on("remove", path)?;
        self.forget_file(path, st);
        Ok(())
    }

    /// Removes all that the directory `top` holds but what is spared, without recursion: the depth of a tree is not ours to trust.
    pub(super) fn empty(&mut self, top: &TreePath, spare: Spare) -> Outcome {
        let mut levels = vec![self.level(top.clone())?];
        while let Some(level) = levels.last_mut() {
            if let Some(name) = level.names.pop() {
                let child = level.path.join(name.as_bytes());
                let dir = self.holder(&child)?.as_fd();
                let st = match statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(st) => st,
                    Err(Errno::NOENT) => continue,
                    Err(e) => return Err(e).on("examine", &child),
                };
                if FileType::from_raw_mode(st.st_mode) == FileType::Directory {
                    levels.push(self.level(child)?);
                } else if spare == Spare::Nothing || !self.was_made(&child) {
                    self.unlink(&child, &st)?;
                }
                continue;
            }
            let done = levels.pop().map(|level| level.path).unwrap_or_default();
            if levels.is_empty() || (spare == Spare::Made && self.was_made(&done)) {
                continue;
            }
            if !self.remove_empty_dir(&done)? {
                self.reset_directory(&done)?;
            }
        }
        Ok(())
    }

    fn level(&mut self, path: TreePath) -> Outcome<Level> {
        let mut names = Vec::new();
        let dir = self.dirs.get(&path).on("open", &path)?;
        for_each_name(dir.as_fd(), |name, _| {
            names.push(name.to_owned());
            Ok(())
        })
        .on("list", &path)?;
        Ok(Level { path, names })
    }

    /// False when it is not empty.
    pub(super) fn remove_empty_dir(&mut self, path: &TreePath) -> Outcome<bool> {
        let base = c_name(path);
        let dir = self.holder(path)?.as_fd();
        match unlinkat(dir, &base, AtFlags::REMOVEDIR) {
            Ok(()) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(false),
            Err(e) => return Err(e).on("remove", path),
        }
        self.dirs.forget(path);
        self.times.remove(path);
        let key = self.key(path);
        self.made.remove(&key);
        self.opaque.remove(&key);
        Ok(true)
    }

    /// Takes a removed file out of the books.
    fn forget_file(&mut self, path: &TreePath, st: &Stat) {
        if !self.made.remove(&self.key(path)) || st.st_size == 0 {
            return;
        }
        let inode = (st.st_dev, st.st_ino);
        let gone = match self.links.get_mut(&inode) {
            Some(names) => {
                *names -= 1;
                *names == 0
            }
            None => true,
        };
        if gone {
            self.links.remove(&inode);
            self.applied.size -= u64::try_from(st.st_size).unwrap_or(0);
        }
    }
}
