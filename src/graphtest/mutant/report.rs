//! Bugs in the lists and numbers that a driver reports.
#![allow(clippy::ptr_arg)] // All have the one signature that a recipe asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::graphdriver::{Change, ChangeKind, Result};
use crate::tree::TreePath;

use super::base::other;
use super::files::{Found, walk};
use super::recipe::Layer;
use super::stream::same_size_files;

fn path(c: &Change) -> &Path {
    Path::new(OsStr::from_bytes(c.path.as_bytes()))
}

fn by_path(found: Vec<Found>) -> BTreeMap<TreePath, Found> {
    found
        .into_iter()
        .map(|f| (TreePath(f.rel.as_os_str().as_bytes().to_vec()), f))
        .collect()
}

/// What the layer and what its parent hold.
fn both(layer: &Layer<'_>) -> Result<(BTreeMap<TreePath, Found>, BTreeMap<TreePath, Found>)> {
    let new = layer.base.with_root(layer.id, walk)?;
    let old = layer.with_parent(walk).map_err(other)?;
    Ok((by_path(new), by_path(old)))
}

/// Directories that are listed only because of what changed in them are left out.
pub(super) fn no_parents(changes: &mut Vec<Change>, layer: &Layer<'_>) -> Result<()> {
    let (new, old) = both(layer)?;
    let attributes = |f: &Found| (f.meta.mode(), f.meta.uid(), f.meta.gid());
    changes.retain(|c| match (c.kind, new.get(&c.path), old.get(&c.path)) {
        (ChangeKind::Modify, Some(n), Some(o)) => !n.is_dir() || attributes(n) != attributes(o),
        _ => true,
    });
    Ok(())
}

/// Deletions are left out.
pub(super) fn no_deletes(changes: &mut Vec<Change>, _: &Layer<'_>) -> Result<()> {
    changes.retain(|c| c.kind != ChangeKind::Delete);
    Ok(())
}

/// The children of a deleted directory are listed as deleted too.
pub(super) fn children_of_deleted_dir(changes: &mut Vec<Change>, layer: &Layer<'_>) -> Result<()> {
    let (_, old) = both(layer)?;
    let dead: Vec<TreePath> = changes
        .iter()
        .filter(|c| c.kind == ChangeKind::Delete)
        .map(|c| c.path.clone())
        .collect();
    for p in old
        .into_keys()
        .filter(|p| dead.iter().any(|d| p.is_below(d)))
    {
        changes.push(Change {
            path: p,
            kind: ChangeKind::Delete,
        });
    }
    changes.sort();
    Ok(())
}

/// A directory replaced by something else lists its old children as deleted.
pub(super) fn children_of_replaced_dir(changes: &mut Vec<Change>, layer: &Layer<'_>) -> Result<()> {
    let (new, old) = both(layer)?;
    let replaced: Vec<TreePath> = changes
        .iter()
        .filter(|c| c.kind == ChangeKind::Modify && new.get(&c.path).is_some_and(|f| !f.is_dir()))
        .map(|c| c.path.clone())
        .collect();
    for p in old
        .into_keys()
        .filter(|p| replaced.iter().any(|d| p.is_below(d)))
    {
        changes.push(Change {
            path: p,
            kind: ChangeKind::Delete,
        });
    }
    changes.sort();
    Ok(())
}

/// The root is listed as modified.
pub(super) fn root_listed(changes: &mut Vec<Change>, _: &Layer<'_>) -> Result<()> {
    changes.insert(
        0,
        Change {
            path: TreePath::root(),
            kind: ChangeKind::Modify,
        },
    );
    Ok(())
}

/// The first path is listed twice.
pub(super) fn first_twice(changes: &mut Vec<Change>, _: &Layer<'_>) -> Result<()> {
    if let Some(first) = changes.first().cloned() {
        changes.insert(0, first);
    }
    Ok(())
}

/// The list is in reverse order.
pub(super) fn unsorted(changes: &mut Vec<Change>, _: &Layer<'_>) -> Result<()> {
    changes.reverse();
    Ok(())
}

/// Modes and owners are not compared.
pub(super) fn metadata_missed(changes: &mut Vec<Change>, layer: &Layer<'_>) -> Result<()> {
    let (new, old) = both(layer)?;
    changes.retain(|c| match (c.kind, new.get(&c.path), old.get(&c.path)) {
        (ChangeKind::Modify, Some(n), Some(o)) if n.is_file() => {
            n.meta.size() != o.meta.size()
                || (n.meta.mtime(), n.meta.mtime_nsec()) != (o.meta.mtime(), o.meta.mtime_nsec())
        }
        _ => true,
    });
    Ok(())
}

/// In a large layer, files of the same size as before are left out.
pub(super) fn many_by_size(changes: &mut Vec<Change>, layer: &Layer<'_>) -> Result<()> {
    const MANY: usize = 10_000;
    let (new, old) = both(layer)?;
    changes.retain(|c| match (new.get(&c.path), old.get(&c.path)) {
        (Some(n), Some(o)) if n.is_file() && new.len() > MANY => n.meta.size() != o.meta.size(),
        _ => true,
    });
    Ok(())
}

/// Files changed without a change of size within the same second are left out.
pub(super) fn same_size_missed(changes: &mut Vec<Change>, layer: &Layer<'_>) -> Result<()> {
    let missed = same_size_files(layer)?;
    changes.retain(|c| c.kind != ChangeKind::Modify || !missed.contains(path(c)));
    Ok(())
}

/// Times of files are not compared.
pub(super) fn touch_missed(changes: &mut Vec<Change>, layer: &Layer<'_>) -> Result<()> {
    let (new, old) = both(layer)?;
    let attributes = |f: &Found| (f.meta.mode(), f.meta.uid(), f.meta.gid(), f.meta.size());
    changes.retain(|c| match (c.kind, new.get(&c.path), old.get(&c.path)) {
        (ChangeKind::Modify, Some(n), Some(o)) if n.is_file() => attributes(n) != attributes(o),
        _ => true,
    });
    Ok(())
}

/// Times of directories are compared.
pub(super) fn dir_touch_reported(changes: &mut Vec<Change>, layer: &Layer<'_>) -> Result<()> {
    let (new, old) = both(layer)?;
    let listed: BTreeSet<TreePath> = changes.iter().map(|c| c.path.clone()).collect();
    for (p, n) in new
        .iter()
        .filter(|(p, n)| n.is_dir() && !listed.contains(p))
    {
        let time = |f: &Found| (f.meta.mtime(), f.meta.mtime_nsec());
        if old.get(p).is_some_and(|o| o.is_dir() && time(o) != time(n)) {
            changes.push(Change {
                path: p.clone(),
                kind: ChangeKind::Modify,
            });
        }
    }
    changes.sort();
    Ok(())
}

/// Devices, pipes and sockets are left out.
pub(super) fn special_files_missed(changes: &mut Vec<Change>, layer: &Layer<'_>) -> Result<()> {
    let (new, _) = both(layer)?;
    changes.retain(|c| {
        new.get(&c.path).is_none_or(|f| {
            let t = f.meta.file_type();
            !(t.is_fifo() || t.is_socket() || t.is_block_device() || t.is_char_device())
        })
    });
    Ok(())
}

/// Without a parent everything is listed as modified.
pub(super) fn no_parent_modifies(changes: &mut Vec<Change>, layer: &Layer<'_>) -> Result<()> {
    if layer.parent.is_none() {
        changes.iter_mut().for_each(|c| c.kind = ChangeKind::Modify);
    }
    Ok(())
}

/// Extended attributes are not compared.
pub(super) fn xattrs_missed(changes: &mut Vec<Change>, layer: &Layer<'_>) -> Result<()> {
    let (new, old) = both(layer)?;
    let stat = |f: &Found| {
        let m = &f.meta;
        (
            m.mode(),
            m.uid(),
            m.gid(),
            m.size(),
            m.mtime(),
            m.mtime_nsec(),
        )
    };
    changes.retain(|c| match (c.kind, new.get(&c.path), old.get(&c.path)) {
        (ChangeKind::Modify, Some(n), Some(o)) if n.is_file() => stat(n) != stat(o),
        _ => true,
    });
    Ok(())
}

/// A symbolic link that points elsewhere is not noticed.
pub(super) fn symlinks_missed(changes: &mut Vec<Change>, layer: &Layer<'_>) -> Result<()> {
    let (new, old) = both(layer)?;
    changes.retain(|c| match (c.kind, new.get(&c.path), old.get(&c.path)) {
        (ChangeKind::Modify, Some(n), Some(o)) => !(n.meta.is_symlink() && o.meta.is_symlink()),
        _ => true,
    });
    Ok(())
}

// Sizes.

/// Every name of a hard link is counted.
pub(super) fn hardlinks_doubled(size: u64, layer: &Layer<'_>) -> Result<u64> {
    let (new, _) = both(layer)?;
    let mut first = BTreeSet::new();
    let more: u64 = new
        .values()
        .filter(|f| f.is_file() && !first.insert(f.inode()))
        .map(|f| f.meta.size())
        .sum();
    Ok(size + more)
}

/// Whole blocks are counted.
pub(super) fn whole_blocks(size: u64, _: &Layer<'_>) -> Result<u64> {
    Ok(size.next_multiple_of(4096))
}

/// Allocated blocks are counted, not the apparent size.
pub(super) fn allocated_blocks(_: u64, layer: &Layer<'_>) -> Result<u64> {
    let (new, old) = both(layer)?;
    Ok(new
        .iter()
        .filter(|(p, f)| !f.is_dir() && !old.contains_key(p))
        .map(|(_, f)| f.meta.blocks() * 512)
        .sum())
}

/// What the parent holds is counted too.
pub(super) fn parent_counted(size: u64, layer: &Layer<'_>) -> Result<u64> {
    let (_, old) = both(layer)?;
    Ok(size
        + old
            .values()
            .filter(|f| f.is_file())
            .map(|f| f.meta.size())
            .sum::<u64>())
}

/// Every directory counts 4096 bytes.
pub(super) fn dirs_counted(size: u64, layer: &Layer<'_>) -> Result<u64> {
    let (new, old) = both(layer)?;
    Ok(size
        + 4096
            * new
                .iter()
                .filter(|(p, f)| f.is_dir() && !old.contains_key(p))
                .count() as u64)
}

/// Deleted files are counted.
pub(super) fn deletes_counted(size: u64, layer: &Layer<'_>) -> Result<u64> {
    let (new, old) = both(layer)?;
    Ok(size
        + old
            .iter()
            .filter(|(p, f)| f.is_file() && !new.contains_key(p))
            .map(|(_, f)| f.meta.size())
            .sum::<u64>())
}

/// Of a changed file only what it grew by is counted.
pub(super) fn growth_counted(size: u64, layer: &Layer<'_>) -> Result<u64> {
    let (new, old) = both(layer)?;
    let changes = layer.base.inner.changes(layer.id, layer.parent)?;
    let kept: u64 = changes
        .iter()
        .filter(|c| c.kind == ChangeKind::Modify)
        .filter_map(|c| Some((new.get(&c.path)?, old.get(&c.path)?)))
        .filter(|(n, o)| n.is_file() && o.is_file())
        .map(|(n, o)| n.meta.size().min(o.meta.size()))
        .sum();
    Ok(size.saturating_sub(kept))
}
