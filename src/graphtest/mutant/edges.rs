//! Bugs that show only at an edge of the filesystem: long paths, many names, shared blocks.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::base::{Base, Bug};
use super::calls::stateless;
use super::files::{keeping_dir_time, remove_any};
use super::recipe::Layer;
use crate::graphdriver::Result;

stateless! {
    /// Whether a layer is mounted is asked by the home's path as it was given.
    SoughtUnresolved;
    /// What the mount table writes as `\040` is compared as it stands.
    NotUnescaped;
}

/// What lies deeper than this many bytes of path is lost.
const LONGEST: usize = 1000;

/// A child has nothing whose path is longer than 1000 bytes.
pub(super) fn long_paths_lost(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    cut_below(root, 0)
}

fn cut_below(dir: &Path, length: usize) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let length = length + 1 + entry.file_name().as_bytes().len();
        if length > LONGEST {
            keeping_dir_time(&entry.path(), || remove_any(&entry.path()))?;
        } else if entry.file_type()?.is_dir() {
            cut_below(&entry.path(), length)?;
        }
    }
    Ok(())
}

impl Bug for SoughtUnresolved {
    fn put(&self, b: &Base, id: &str) -> Result<()> {
        match b.home.canonicalize() {
            Ok(resolved) if resolved == b.home => b.inner.put(id),
            // Nothing of that path is in the mount table, so there is nothing to unmount.
            _ => Ok(()),
        }
    }
}

impl Bug for NotUnescaped {
    fn put(&self, b: &Base, id: &str) -> Result<()> {
        let escaped = |c: &u8| b" \t\n\\#".contains(c);
        if b.restarted && b.home.as_os_str().as_bytes().iter().any(escaped) {
            return Ok(());
        }
        b.inner.put(id)
    }
}
