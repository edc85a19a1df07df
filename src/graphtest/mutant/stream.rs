//! Bugs in the archives that a driver gives or takes.
#![allow(clippy::ptr_arg)] // All have the one signature that a recipe asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tar::EntryType;

use crate::archive;
use crate::graphdriver::{Error, Result};
use crate::tree::TreePath;

use super::base::other;
use super::files::{Found, lstat, remove_any, walk};
use super::recipe::Layer;
use super::tarball::{TarEntry, XATTR};

fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Everything in the parent; empty without one.
fn parent_walk(layer: &Layer<'_>) -> Result<Vec<Found>> {
    layer.with_parent(walk).map_err(other)
}

/// Deletions are left out.
pub(super) fn whiteout_lost(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    entries.retain(|e| e.whiteout().is_none());
    Ok(())
}

/// The whiteout prefix stands before the whole path: `.wh.a/b` for `a/.wh.b`.
pub(super) fn whiteout_prefix_on_path(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    for e in entries.iter_mut() {
        if let Some(name) = e.whiteout().map(<[u8]>::to_vec)
            && !e.dir().is_empty()
        {
            e.name = [b".wh.", e.dir(), b"/", &name].concat();
        }
    }
    Ok(())
}

/// A deleted directory gets whiteouts for its children too.
pub(super) fn children_of_deleted_dir(
    entries: &mut Vec<TarEntry>,
    layer: &Layer<'_>,
) -> Result<()> {
    let old = parent_walk(layer)?;
    let mut more = Vec::new();
    for e in entries.iter() {
        let Some(name) = e.whiteout() else { continue };
        let dead = path(e.dir()).join(OsStr::from_bytes(name));
        for f in old.iter().filter(|f| f.rel.parent() == Some(&dead)) {
            let name = [b".wh.", f.rel.file_name().unwrap_or_default().as_bytes()].concat();
            more.push(TarEntry::new(
                dead.join(OsStr::from_bytes(&name)).as_os_str().as_bytes(),
                EntryType::Regular,
            ));
        }
    }
    entries.extend(more);
    Ok(())
}

/// What hides the old content of a directory made anew is left out: opaque markers, and whiteouts inside new directories.
pub(super) fn opaque_lost(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    let dirs: BTreeSet<Vec<u8>> = entries
        .iter()
        .filter(|e| e.is_dir())
        .map(|e| e.path().to_vec())
        .collect();
    entries.retain(|e| !e.is_opaque() && (e.whiteout().is_none() || !dirs.contains(e.dir())));
    Ok(())
}

/// A directory that stands beside its opaque marker, or holds whiteouts, has the attributes of a new one.
pub(super) fn opaque_metadata_lost(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    let marked: BTreeSet<Vec<u8>> = entries
        .iter()
        .filter(|e| e.is_opaque() || e.whiteout().is_some())
        .map(|e| e.dir().to_vec())
        .collect();
    for e in entries
        .iter_mut()
        .filter(|e| e.is_dir() && marked.contains(e.path()))
    {
        (e.mode, e.uid, e.gid) = (0o755, 0, 0);
    }
    Ok(())
}

/// Every directory of the archive is marked opaque.
pub(super) fn opaque_on_all_dirs(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    let markers: Vec<TarEntry> = entries
        .iter()
        .filter(|e| e.is_dir() && !e.path().is_empty() && e.path() != b".")
        .map(|e| TarEntry::new(&[e.path(), b"/.wh..wh..opq"].concat(), EntryType::Regular))
        .collect();
    entries.extend(markers);
    Ok(())
}

/// Hard links become files of their own.
pub(super) fn hardlink_copied(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    let files: BTreeMap<Vec<u8>, TarEntry> = entries
        .iter()
        .filter(|e| e.is_file())
        .map(|e| (e.path().to_vec(), e.clone()))
        .collect();
    for e in entries.iter_mut().filter(|e| e.kind == EntryType::Link) {
        let mut target = TarEntry::new(&e.link, EntryType::Link);
        target.name = std::mem::take(&mut e.link);
        if let Some(f) = files.get(target.path()) {
            *e = TarEntry {
                name: std::mem::take(&mut e.name),
                ..f.clone()
            };
        }
    }
    Ok(())
}

/// A hard link to a file of the parent is exported under the new name alone, as a file.
pub(super) fn hardlink_new_name_only(entries: &mut Vec<TarEntry>, layer: &Layer<'_>) -> Result<()> {
    hardlink_copied(entries, layer)?;
    let old: BTreeSet<Vec<u8>> = parent_walk(layer)?
        .iter()
        .map(|f| f.rel.as_os_str().as_bytes().to_vec())
        .collect();
    let mut seen: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    for e in entries
        .iter()
        .filter(|e| e.is_file() && e.whiteout().is_none() && !e.is_opaque())
    {
        *seen.entry(e.data.clone()).or_default() += 1;
    }
    entries.retain(|e| {
        !(e.is_file() && seen.get(&e.data).is_some_and(|n| *n > 1) && old.contains(e.path()))
    });
    Ok(())
}

/// Fails when the layer holds a socket.
pub(super) fn socket_aborts_diff(_: &mut Vec<TarEntry>, layer: &Layer<'_>) -> Result<()> {
    let sockets = layer.base.with_root(layer.id, |r| {
        Ok(walk(r)?.iter().any(|f| f.meta.file_type().is_socket()))
    })?;
    if sockets {
        Err(other("archive/tar: sockets not supported"))
    } else {
        Ok(())
    }
}

/// A socket is exported as an empty file.
pub(super) fn socket_as_file(entries: &mut Vec<TarEntry>, layer: &Layer<'_>) -> Result<()> {
    let found = layer.base.with_root(layer.id, walk)?;
    for f in found.iter().filter(|f| f.meta.file_type().is_socket()) {
        entries.push(TarEntry::new(
            f.rel.as_os_str().as_bytes(),
            EntryType::Regular,
        ));
    }
    Ok(())
}

/// Devices and pipes are left out.
pub(super) fn special_files_lost(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    entries.retain(|e| !matches!(e.kind, EntryType::Char | EntryType::Block | EntryType::Fifo));
    Ok(())
}

/// Minor device numbers keep 8 bits.
pub(super) fn device_minor_cut(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    for e in entries.iter_mut() {
        e.dev.1 &= 0xff;
        for (key, value) in &mut e.pax {
            if key == "SCHILY.devminor" {
                *value = e.dev.1.to_string().into_bytes();
            }
        }
    }
    Ok(())
}

fn drop_xattrs(entries: &mut [TarEntry], prefix: &str) {
    let prefix = format!("{XATTR}{prefix}");
    for e in entries {
        e.pax.retain(|k, _| !k.starts_with(&prefix));
    }
}

/// `user.*` attributes are left out.
pub(super) fn xattrs_lost(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    drop_xattrs(entries, "user.");
    Ok(())
}

/// File capabilities are left out.
pub(super) fn caps_lost(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    drop_xattrs(entries, "security.capability");
    Ok(())
}

/// POSIX ACLs are left out.
pub(super) fn acl_lost(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    drop_xattrs(entries, "system.posix_acl_");
    Ok(())
}

/// Overlayfs' own attributes are exported.
pub(super) fn overlay_xattr_exported(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    for e in entries.iter_mut().filter(|e| e.is_dir() || e.is_file()) {
        e.pax.insert(
            format!("{XATTR}trusted.overlay.origin"),
            b"\0\xfb\x21".to_vec(),
        );
    }
    Ok(())
}

/// Values of extended attributes end at their first NUL.
pub(super) fn xattr_cut_at_nul(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    for e in entries.iter_mut() {
        for (key, value) in e.pax.iter_mut().filter(|(k, _)| k.starts_with(XATTR)) {
            if key.contains("user.") {
                value.truncate(value.iter().position(|b| *b == 0).unwrap_or(value.len()));
            }
        }
    }
    Ok(())
}

/// Names that are not UTF-8 get replacement characters.
pub(super) fn name_not_utf8_replaced(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    for e in entries.iter_mut() {
        e.name = String::from_utf8_lossy(&e.name).into_owned().into_bytes();
        e.link = String::from_utf8_lossy(&e.link).into_owned().into_bytes();
    }
    Ok(())
}

/// Names are cut to the 100 bytes of an old header.
pub(super) fn name_cut_at_100(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    for e in entries.iter_mut() {
        e.name.truncate(100);
    }
    Ok(())
}

/// Owners keep the 21 bits of an old header.
pub(super) fn uid_truncated(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    for e in entries.iter_mut() {
        (e.uid, e.gid) = (e.uid & 0o7_777_777, e.gid & 0o7_777_777);
    }
    Ok(())
}

/// Times keep whole seconds.
pub(super) fn mtime_sec_only(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    for e in entries.iter_mut() {
        if let Some(text) = e.pax.get_mut("mtime") {
            text.truncate(text.iter().position(|b| *b == b'.').unwrap_or(text.len()));
        }
    }
    Ok(())
}

/// Permission bits lose setuid, setgid and sticky.
pub(super) fn special_bits_lost(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    entries.iter_mut().for_each(|e| e.mode &= 0o777);
    Ok(())
}

/// Directories without an entry below them are left out.
pub(super) fn empty_dirs_lost(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    let parents: BTreeSet<Vec<u8>> = entries.iter().map(|e| e.dir().to_vec()).collect();
    entries.retain(|e| !e.is_dir() || parents.contains(e.path()));
    Ok(())
}

/// The last bytes of every file are lost.
pub(super) fn last_byte_lost(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    for e in entries.iter_mut().filter(|e| e.is_file()) {
        e.data.pop();
    }
    Ok(())
}

/// Trailing zeros of files are lost.
pub(super) fn sparse_end_lost(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    for e in entries.iter_mut().filter(|e| e.is_file()) {
        e.data
            .truncate(e.data.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1));
    }
    Ok(())
}

/// Directories that hold a change but are unchanged themselves are left out.
pub(super) fn parents_left_out(entries: &mut Vec<TarEntry>, layer: &Layer<'_>) -> Result<()> {
    let old: BTreeSet<PathBuf> = parent_walk(layer)?
        .into_iter()
        .filter(Found::is_dir)
        .map(|f| f.rel)
        .collect();
    entries.retain(|e| !(e.is_dir() && old.contains(path(e.path()))));
    Ok(())
}

/// Directories that the parent has too stand in the archive as root's, mode 0700.
pub(super) fn parents_root_0700(entries: &mut Vec<TarEntry>, layer: &Layer<'_>) -> Result<()> {
    let old: BTreeSet<PathBuf> = parent_walk(layer)?
        .into_iter()
        .filter(Found::is_dir)
        .map(|f| f.rel)
        .collect();
    for e in entries
        .iter_mut()
        .filter(|e| e.is_dir() && old.contains(path(e.path())))
    {
        (e.mode, e.uid, e.gid) = (0o700, 0, 0);
    }
    Ok(())
}

/// Even an empty diff holds an entry for the root.
pub(super) fn root_entry_always(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    let mut root = TarEntry::new(b"./", EntryType::Directory);
    root.mode = 0o755;
    entries.insert(0, root);
    Ok(())
}

/// Regular files changed without a change of size within the same second are left out.
pub(super) fn same_size_missed(entries: &mut Vec<TarEntry>, layer: &Layer<'_>) -> Result<()> {
    let missed = same_size_files(layer)?;
    entries.retain(|e| !missed.contains(path(e.path())));
    Ok(())
}

/// Regular files that have the size and the second of modification that they have in the parent.
pub(super) fn same_size_files(layer: &Layer<'_>) -> Result<BTreeSet<PathBuf>> {
    let old: BTreeMap<PathBuf, (u64, i64)> = parent_walk(layer)?
        .into_iter()
        .filter(Found::is_file)
        .map(|f| (f.rel, (f.meta.size(), f.meta.mtime())))
        .collect();
    let new = layer.base.with_root(layer.id, walk)?;
    Ok(new
        .into_iter()
        .filter(|f| f.is_file() && old.get(&f.rel) == Some(&(f.meta.size(), f.meta.mtime())))
        .map(|f| f.rel)
        .collect())
}

/// What replaces another kind of file is left out.
pub(super) fn replaced_types_lost(entries: &mut Vec<TarEntry>, layer: &Layer<'_>) -> Result<()> {
    let old: BTreeMap<PathBuf, Found> = parent_walk(layer)?
        .into_iter()
        .map(|f| (f.rel.clone(), f))
        .collect();
    entries.retain(|e| match old.get(path(e.path())) {
        Some(f) if e.kind != EntryType::Link => {
            f.is_dir() == e.is_dir() && f.meta.is_symlink() == (e.kind == EntryType::Symlink)
        }
        _ => true,
    });
    Ok(())
}

// Bugs on the way in.

/// Whiteouts of names that do not exist fail.
pub(super) fn whiteout_of_missing_fails(
    entries: &mut Vec<TarEntry>,
    layer: &Layer<'_>,
) -> Result<()> {
    layer.base.with_root(layer.id, |root| {
        for e in entries.iter() {
            if let Some(name) = e.whiteout()
                && lstat(&root.join(path(e.dir())).join(OsStr::from_bytes(name))).is_none()
            {
                return Err(io::Error::other("whiteout of a name that does not exist"));
            }
        }
        Ok(())
    })
}

/// A whiteout of a symbolic link removes what it points to as well.
pub(super) fn whiteout_follows_symlink(
    entries: &mut Vec<TarEntry>,
    layer: &Layer<'_>,
) -> Result<()> {
    layer.base.with_root(layer.id, |root| {
        for e in entries.iter() {
            let Some(name) = e.whiteout() else { continue };
            let link = root.join(path(e.dir())).join(OsStr::from_bytes(name));
            if lstat(&link).is_some_and(|m| m.is_symlink()) {
                remove_any(&link.with_file_name(fs::read_link(&link)?))?;
            }
        }
        Ok(())
    })
}

/// Entries named `.wh.`, `.wh..` and `.wh...` are passed over.
pub(super) fn bare_whiteout_ignored(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    entries.retain(|e| !matches!(e.base(), b".wh." | b".wh.." | b".wh..."));
    Ok(())
}

/// Of two entries of one name the first one stands.
pub(super) fn first_entry_wins(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    let mut seen = BTreeSet::new();
    entries.retain(|e| seen.insert(e.path().to_vec()));
    Ok(())
}

/// A directory of the archive replaces the one that is there, with all it holds.
pub(super) fn dir_replaces_dir(entries: &mut Vec<TarEntry>, layer: &Layer<'_>) -> Result<()> {
    layer.base.with_root(layer.id, |root| {
        for e in entries
            .iter()
            .filter(|e| e.is_dir() && !e.path().is_empty() && e.path() != b".")
        {
            if let Ok(dir) = fs::read_dir(root.join(path(e.path()))) {
                for old in dir {
                    remove_any(&old?.path())?;
                }
            }
        }
        Ok(())
    })
}

/// What the layer holds is wiped before the archive is applied.
pub(super) fn apply_wipes(_: &mut Vec<TarEntry>, layer: &Layer<'_>) -> Result<()> {
    layer.base.with_root(layer.id, |root| {
        for old in fs::read_dir(root)? {
            remove_any(&old?.path())?;
        }
        Ok(())
    })
}

/// A global PAX header is an error.
pub(super) fn global_header_fails(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    match entries.iter().find(|e| e.kind == EntryType::XGlobalHeader) {
        Some(e) => Err(Error::Archive(archive::Error::Refused {
            name: TreePath(e.name.clone()),
            why: "unhandled tar header type g".into(),
        })),
        None => Ok(()),
    }
}

/// A global PAX header becomes a file of its name.
pub(super) fn global_header_as_file(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    for e in entries
        .iter_mut()
        .filter(|e| e.kind == EntryType::XGlobalHeader)
    {
        e.kind = EntryType::Regular;
    }
    Ok(())
}

/// A name that leaves the layer is taken by its last component.
pub(super) fn dotdot_accepted(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    for e in entries
        .iter_mut()
        .filter(|e| e.name.split(|b| *b == b'/').any(|c| c == b".."))
    {
        e.name = e.base().to_vec();
    }
    Ok(())
}

/// Owners keep 32 bits.
pub(super) fn owner_wraps(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    for e in entries.iter_mut() {
        (e.uid, e.gid) = (e.uid & 0xffff_ffff, e.gid & 0xffff_ffff);
    }
    Ok(())
}

/// Entries of a kind that is not known are passed over.
pub(super) fn unknown_types_ignored(entries: &mut Vec<TarEntry>, _: &Layer<'_>) -> Result<()> {
    let known = |k: EntryType| matches!(k.as_byte(), 0 | b'0'..=b'7' | b'x' | b'g');
    entries.retain(|e| known(e.kind));
    Ok(())
}

// Bugs that follow an apply.

/// Directories that the archive did not name have mode 0700.
pub(super) fn missing_parents_0700(root: &Path, entries: &[TarEntry]) -> io::Result<()> {
    let named: BTreeSet<&[u8]> = entries.iter().map(TarEntry::path).collect();
    for f in walk(root)?
        .iter()
        .filter(|f| f.is_dir() && !named.contains(f.rel.as_os_str().as_bytes()))
    {
        fs::set_permissions(&f.path, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Whiteouts are written into the layer as files as well.
pub(super) fn whiteout_literal(root: &Path, entries: &[TarEntry]) -> io::Result<()> {
    for e in entries
        .iter()
        .filter(|e| e.whiteout().is_some() || e.is_opaque())
    {
        let file = root.join(path(e.path()));
        if file.parent().is_some_and(Path::is_dir) {
            fs::write(file, b"")?;
        }
    }
    Ok(())
}

/// Directories keep the time at which their children were written.
pub(super) fn dir_mtime_lost(root: &Path, _: &[TarEntry]) -> io::Result<()> {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_err(io::Error::other)?;
    for f in walk(root)?.iter().filter(|f| f.is_dir()) {
        super::files::set_mtime(&f.path, now.as_secs() as i64, i64::from(now.subsec_nanos()))?;
    }
    Ok(())
}
