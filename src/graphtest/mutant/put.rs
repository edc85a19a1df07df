//! Bugs that show in a layer once it is given back: work done under a mount that does not last as it was done.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use super::files::{Found, copy, keeping_dir_time, lstat, remove_any, set_mtime, unshare, walk};
use super::recipe::Layer;

/// Regular files of the layer that the parent has too, with the parent's metadata.
fn shared_files(root: &Path, layer: &Layer<'_>) -> io::Result<Vec<(Found, fs::Metadata)>> {
    layer.with_parent(|parent| {
        Ok(walk(root)?
            .into_iter()
            .filter(Found::is_file)
            .filter_map(|f| {
                lstat(&parent.join(&f.rel))
                    .filter(fs::Metadata::is_file)
                    .map(|m| (f, m))
            })
            .collect())
    })
}

fn same_content(a: &Path, b: &Path) -> io::Result<bool> {
    Ok(fs::read(a)? == fs::read(b)?)
}

/// A change of mode or owner sets the modification time to now: the copy-up does not keep it.
pub(super) fn chmod_resets_mtime(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    for (f, old) in shared_files(root, layer)? {
        if (f.meta.mode(), f.meta.uid(), f.meta.gid()) != (old.mode(), old.uid(), old.gid())
            && f.meta.mtime() == old.mtime()
        {
            set_mtime(&f.path, old.mtime() + 3600, 0)?;
        }
    }
    Ok(())
}

/// What was appended to a file of the parent is lost.
pub(super) fn append_lost(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    for (f, old) in shared_files(root, layer)? {
        if f.meta.size() > old.size() {
            OpenOptions::new()
                .write(true)
                .open(&f.path)?
                .set_len(old.size())?;
        }
    }
    Ok(())
}

/// A file truncated or written in place has its old content again.
pub(super) fn write_lost(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    layer.with_parent(|parent| {
        for f in walk(root)?.iter().filter(|f| f.is_file()) {
            let old = parent.join(&f.rel);
            if lstat(&old).is_some_and(|m| m.is_file() && m.size() >= f.meta.size())
                && !same_content(&old, &f.path)?
            {
                let bytes = fs::read(&old)?;
                fs::write(&f.path, bytes)?;
            }
        }
        Ok(())
    })
}

/// After a rename the source is there again.
pub(super) fn rename_leaves_source(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    layer.with_parent(|parent| {
        let new: BTreeSet<Vec<u8>> = walk(root)?
            .iter()
            .filter(|f| f.is_file() && lstat(&parent.join(&f.rel)).is_none())
            .map(|f| fs::read(&f.path))
            .collect::<io::Result<_>>()?;
        for f in walk(parent)?.iter().filter(|f| f.is_file()) {
            let here = root.join(&f.rel);
            if lstat(&here).is_none()
                && here.parent().is_some_and(Path::is_dir)
                && new.contains(&fs::read(&f.path)?)
            {
                copy(&f.path, &here)?;
            }
        }
        Ok(())
    })
}

/// A directory removed or renamed is there again, empty.
pub(super) fn removed_dir_reappears(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    layer.with_parent(|parent| {
        for f in walk(parent)?.iter().filter(|f| f.is_dir()) {
            let here = root.join(&f.rel);
            if lstat(&here).is_none() && here.parent().is_some_and(Path::is_dir) {
                fs::create_dir(&here)?;
            }
        }
        Ok(())
    })
}

/// Old content shows in a directory that was removed and made anew.
pub(super) fn recreated_dir_not_opaque(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    layer.with_parent(|parent| {
        for f in walk(parent)? {
            let here = root.join(&f.rel);
            let recreated = |dir: &Path, old: &Path| match (lstat(dir), lstat(old)) {
                (Some(new), Some(old)) => {
                    new.is_dir() && (new.mode(), new.uid()) != (old.mode(), old.uid())
                }
                _ => false,
            };
            if let (Some(dir), Some(old)) = (here.parent(), f.path.parent())
                && lstat(&here).is_none()
                && recreated(dir, old)
            {
                copy(&f.path, &here)?;
            }
        }
        Ok(())
    })
}

/// A file gets a new inode when it is first written.
pub(super) fn inode_changes(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    for (f, old) in shared_files(root, layer)? {
        if f.meta.mtime_nsec() != old.mtime_nsec()
            || f.meta.mtime() != old.mtime()
            || f.meta.mode() != old.mode()
        {
            unshare(&f.path)?;
        }
    }
    Ok(())
}

/// Writing to one of two hard links empties the other name.
pub(super) fn hardlink_partner_emptied(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    layer.with_parent(|parent| {
        let old = walk(parent)?;
        let linked = old.iter().filter(|f| f.is_file() && f.meta.nlink() > 1);
        let touched: Vec<_> = linked
            .clone()
            .filter(|f| {
                lstat(&root.join(&f.rel)).is_some()
                    && !same_content(&f.path, &root.join(&f.rel)).unwrap_or(true)
            })
            .collect();
        for f in &touched {
            for g in old
                .iter()
                .filter(|g| g.inode() == f.inode() && g.rel != f.rel)
            {
                let partner = root.join(&g.rel);
                if lstat(&partner).is_some() {
                    unshare(&partner)?;
                    OpenOptions::new().write(true).open(&partner)?.set_len(0)?;
                }
            }
        }
        Ok(())
    })
}

/// Removing one of two hard links removes both.
pub(super) fn hardlink_removal_takes_all(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    layer.with_parent(|parent| {
        let old = walk(parent)?;
        for f in old
            .iter()
            .filter(|f| f.is_file() && f.meta.nlink() > 1 && lstat(&root.join(&f.rel)).is_none())
        {
            for g in old.iter().filter(|g| g.inode() == f.inode()) {
                let here = root.join(&g.rel);
                if lstat(&here).is_some() {
                    keeping_dir_time(&here, || fs::remove_file(&here))?;
                }
            }
        }
        Ok(())
    })
}

/// Replacing one kind of file by another leaves the old one.
pub(super) fn replaced_type_reverts(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    layer.with_parent(|parent| {
        for f in walk(parent)? {
            let here = root.join(&f.rel);
            if lstat(&here).is_some_and(|m| m.file_type() != f.meta.file_type()) {
                copy(&f.path, &here)?;
            }
        }
        Ok(())
    })
}

/// A symbolic link made in the layer loses `.`, `..` and doubled slashes of its target.
pub(super) fn symlink_target_cleaned(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    for f in walk(root)?.iter().filter(|f| f.meta.is_symlink()) {
        let target = fs::read_link(&f.path)?;
        let clean: std::path::PathBuf = target
            .components()
            .filter(|c| {
                !matches!(
                    c,
                    std::path::Component::ParentDir | std::path::Component::CurDir
                )
            })
            .collect();
        if clean.as_os_str() != target.as_os_str() && !clean.as_os_str().is_empty() {
            keeping_dir_time(&f.path, || {
                remove_any(&f.path)?;
                symlink(&clean, &f.path)
            })?;
        }
    }
    Ok(())
}

/// New files and directories in a setgid directory do not get its group.
pub(super) fn setgid_not_inherited(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    layer.with_parent(|parent| {
        for f in walk(root)?
            .iter()
            .filter(|f| lstat(&parent.join(&f.rel)).is_none())
        {
            std::os::unix::fs::lchown(&f.path, None, Some(0))?;
        }
        Ok(())
    })
}
