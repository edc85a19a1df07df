//! Bugs in how overlays are read.
#![allow(clippy::ptr_arg)] // All have the one signature that a recipe asks for.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::graphdriver::Result;

use super::base::other;
use super::base::{Base, Bug};
use super::calls::stateless;
use super::files::{lstat, walk, xattrs};
use super::recipe::Layer;
use super::tarball::TarEntry;

stateless! {
    /// The status says the opposite of how diffs are made.
    NativeDiffMisread;
}

impl Bug for NativeDiffMisread {
    fn status(&self, b: &Base) -> Vec<(String, String)> {
        let mut status = b.inner.status();
        for (_, value) in status
            .iter_mut()
            .filter(|(key, _)| key == "Native Overlay Diff")
        {
            *value = (value != "true").to_string();
        }
        status
    }
}

/// The upper directory is all that is looked at: a directory that has its content from elsewhere has none.
pub(super) fn redirects_not_followed(entries: &mut Vec<TarEntry>, layer: &Layer<'_>) -> Result<()> {
    let upper = layer.base.home.join(layer.id).join("diff");
    if lstat(&upper).is_none() {
        return Ok(());
    }
    let redirected = |path: &Path| {
        let all = xattrs(path).unwrap_or_default();
        all.iter()
            .any(|(name, _)| name.as_bytes() == b"trusted.overlay.redirect")
    };
    let found = walk(&upper).map_err(other)?;
    let moved: Vec<&Path> = found
        .iter()
        .filter(|f| f.is_dir() && redirected(&f.path))
        .map(|f| f.rel.as_path())
        .collect();
    entries.retain(|e| {
        let path = Path::new(OsStr::from_bytes(e.path()));
        let below = moved
            .iter()
            .any(|dir| path != *dir && path.starts_with(dir));
        !below || lstat(&upper.join(path)).is_some()
    });
    Ok(())
}
