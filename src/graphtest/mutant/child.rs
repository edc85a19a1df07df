//! Bugs in what a fresh child shows of its parent.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, major, makedev, minor, mknodat};

use super::files::{
    Found, copy, copy_attributes, keeping_dir_time, lstat, remove_any, remove_xattr, restore_mtime,
    set_mtime, set_xattr, unshare, walk, xattrs,
};
use super::recipe::Layer;

/// The root is 0755 and root's, whatever the parent's is.
pub(super) fn root_not_inherited(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    fs::set_permissions(root, Permissions::from_mode(0o755))?;
    lchown(root, Some(0), Some(0))?;
    for (name, _) in xattrs(root)?
        .iter()
        .filter(|(n, _)| n.as_bytes().starts_with(b"user."))
    {
        remove_xattr(root, name)?;
    }
    Ok(())
}

/// The setuid, setgid and sticky bits are lost: the mode is set before the owner.
pub(super) fn special_bits_lost(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    for f in walk(root)?
        .iter()
        .filter(|f| !f.meta.is_symlink() && f.meta.mode() & 0o7000 != 0)
    {
        fs::set_permissions(&f.path, Permissions::from_mode(f.meta.mode() & 0o777))?;
    }
    Ok(())
}

/// Modes go through a umask of 022.
pub(super) fn modes_umasked(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    for f in walk(root)?
        .iter()
        .filter(|f| !f.meta.is_symlink() && f.meta.mode() & 0o022 != 0)
    {
        fs::set_permissions(&f.path, Permissions::from_mode(f.meta.mode() & 0o7755))?;
    }
    Ok(())
}

/// Owners keep 16 bits.
pub(super) fn uid_truncated(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    for f in walk(root)? {
        if f.meta.uid() > 0xffff || f.meta.gid() > 0xffff {
            lchown(
                &f.path,
                Some(f.meta.uid() & 0xffff),
                Some(f.meta.gid() & 0xffff),
            )?;
            if !f.meta.is_symlink() {
                fs::set_permissions(&f.path, Permissions::from_mode(f.meta.mode() & 0o7777))?;
            }
        }
    }
    Ok(())
}

/// Symbolic links are root's.
pub(super) fn symlink_owner_lost(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    for f in walk(root)?
        .iter()
        .filter(|f| f.meta.is_symlink() && f.meta.uid() != 0)
    {
        lchown(&f.path, Some(0), Some(0))?;
        restore_mtime(&f.path, &f.meta)?;
    }
    Ok(())
}

/// Times keep whole seconds.
pub(super) fn mtime_sec_only(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    for f in walk(root)?.iter().filter(|f| f.meta.mtime_nsec() != 0) {
        set_mtime(&f.path, f.meta.mtime(), 0)?;
    }
    Ok(())
}

/// Times before 1970 become 0.
pub(super) fn mtime_negative_zero(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    for f in walk(root)?.iter().filter(|f| f.meta.mtime() < 0) {
        set_mtime(&f.path, 0, 0)?;
    }
    Ok(())
}

/// Directories have the time of the copy, because their children were written after them.
pub(super) fn dir_mtime_now(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_err(io::Error::other)?;
    for f in walk(root)?.iter().filter(|f| f.is_dir()) {
        set_mtime(&f.path, now.as_secs() as i64, i64::from(now.subsec_nanos()))?;
    }
    Ok(())
}

/// Each name of a hard link gets a copy of its own.
pub(super) fn hardlink_copied(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    for f in walk(root)?
        .iter()
        .filter(|f| f.is_file() && f.meta.nlink() > 1)
    {
        unshare(&f.path)?;
    }
    Ok(())
}

/// Values of extended attributes end at their first NUL.
pub(super) fn xattr_cut_at_nul(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    for f in walk(root)?.iter().filter(|f| !f.meta.is_symlink()) {
        for (name, value) in xattrs(&f.path)?
            .iter()
            .filter(|(n, _)| n.as_bytes().starts_with(b"user."))
        {
            if let Some(nul) = value.iter().position(|b| *b == 0) {
                set_xattr(&f.path, name, &value[..nul])?;
            }
        }
    }
    Ok(())
}

fn drop_xattrs(root: &Path, prefix: &[u8]) -> io::Result<()> {
    for f in walk(root)?.iter().filter(|f| !f.meta.is_symlink()) {
        for (name, _) in xattrs(&f.path)?
            .iter()
            .filter(|(n, _)| n.as_bytes().starts_with(prefix))
        {
            remove_xattr(&f.path, name)?;
        }
    }
    Ok(())
}

/// `user.*` attributes are not copied.
pub(super) fn xattrs_dropped(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    drop_xattrs(root, b"user.")
}

/// File capabilities are not copied (or set before the owner, which clears them).
pub(super) fn caps_dropped(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    drop_xattrs(root, b"security.capability")
}

/// POSIX ACLs are not copied.
pub(super) fn acl_dropped(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    drop_xattrs(root, b"system.posix_acl_")
}

/// A trailing hole is cut off.
pub(super) fn sparse_end_lost(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    for f in walk(root)?
        .iter()
        .filter(|f| f.is_file() && f.meta.size() > 0)
    {
        let file = OpenOptions::new().read(true).write(true).open(&f.path)?;
        let mut end = f.meta.size();
        let mut block = [0; 4096];
        while end > 0 {
            let from = (end - 1) & !4095;
            let n = (end - from) as usize;
            file.read_exact_at(&mut block[..n], from)?;
            if block[..n].iter().any(|b| *b != 0) {
                break;
            }
            end = from;
        }
        if end < f.meta.size() {
            file.set_len(end)?;
            restore_mtime(&f.path, &f.meta)?;
        }
    }
    Ok(())
}

/// Holes become zeros that take space.
pub(super) fn sparse_filled(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    let is_sparse = |f: &&Found| f.is_file() && f.meta.blocks() * 512 < f.meta.size();
    for f in walk(root)?.iter().filter(is_sparse) {
        let file = OpenOptions::new().write(true).open(&f.path)?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, f.meta.size())?;
        restore_mtime(&f.path, &f.meta)?;
    }
    Ok(())
}

/// The last data before a hole is lost.
pub(super) fn sparse_edge_lost(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    for f in walk(root)?
        .iter()
        .filter(|f| f.is_file() && f.meta.size() > 1 << 16)
    {
        let file = OpenOptions::new().read(true).write(true).open(&f.path)?;
        let mut block = vec![0; 4096];
        for from in (0..f.meta.size() - 4096).step_by(4096) {
            file.read_exact_at(&mut block, from)?;
            let last = block.iter().rposition(|b| *b != 0);
            if let Some(last) = last.filter(|l| *l < 4095) {
                file.write_at(&[0], from + last as u64)?;
            }
        }
        restore_mtime(&f.path, &f.meta)?;
    }
    Ok(())
}

/// Symbolic links to files become copies of them.
pub(super) fn symlink_followed(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    for f in walk(root)?.iter().filter(|f| f.meta.is_symlink()) {
        let target = fs::read_link(&f.path)?;
        let inside = match target.strip_prefix("/") {
            Ok(t) => root.join(t),
            Err(_) => f.path.with_file_name(target),
        };
        if lstat(&inside).is_some_and(|m| m.is_file()) {
            copy(&inside, &f.path)?;
        }
    }
    Ok(())
}

/// Special files other than symbolic links are left out.
pub(super) fn special_files_lost(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    for f in walk(root)? {
        let t = f.meta.file_type();
        if t.is_fifo() || t.is_char_device() || t.is_block_device() {
            keeping_dir_time(&f.path, || fs::remove_file(&f.path))?;
        }
    }
    Ok(())
}

/// Minor device numbers keep 8 bits.
pub(super) fn device_minor_cut(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    for f in walk(root)? {
        let t = f.meta.file_type();
        let kind = if t.is_char_device() {
            FileType::CharacterDevice
        } else if t.is_block_device() {
            FileType::BlockDevice
        } else {
            continue;
        };
        let dev = f.meta.rdev();
        keeping_dir_time(&f.path, || {
            fs::remove_file(&f.path)?;
            let mode = Mode::from_raw_mode(f.meta.mode() & 0o7777);
            mknodat(
                CWD,
                &f.path,
                kind,
                mode,
                makedev(major(dev), minor(dev) & 0xff),
            )?;
            copy_attributes(&f.path, &f.meta, &f.path)
        })?;
    }
    Ok(())
}

/// Of two names that differ in case only one is left.
pub(super) fn case_folded(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    let mut seen: BTreeMap<Vec<u8>, PathBuf> = BTreeMap::new();
    for f in walk(root)? {
        let folded = f.rel.as_os_str().as_bytes().to_ascii_lowercase();
        if seen.insert(folded, f.rel.clone()).is_some() {
            keeping_dir_time(&f.path, || remove_any(&f.path))?;
        }
    }
    Ok(())
}

/// Names that are not UTF-8 get replacement characters.
pub(super) fn name_not_utf8_replaced(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    // The deepest first: what is above is copied with what it then holds, since not every driver can rename directories.
    for f in walk(root)?.iter().rev() {
        if let Some(name) = f.path.file_name().filter(|n| n.to_str().is_none()) {
            copy(
                &f.path,
                &f.path.with_file_name(name.to_string_lossy().as_ref()),
            )?;
            keeping_dir_time(&f.path, || remove_any(&f.path))?;
        }
    }
    Ok(())
}

/// Names longer than 250 bytes are left out.
pub(super) fn long_names_lost(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    let too_long = |f: &&Found| f.path.file_name().is_some_and(|n| n.len() > 250);
    for f in walk(root)?.iter().rev().filter(too_long) {
        keeping_dir_time(&f.path, || remove_any(&f.path))?;
    }
    Ok(())
}

/// Fails when the parent holds a socket.
pub(super) fn socket_fails_child(_: &Path, layer: &Layer<'_>) -> io::Result<()> {
    let sockets =
        layer.with_parent(|p| Ok(walk(p)?.iter().any(|f| f.meta.file_type().is_socket())))?;
    if sockets {
        Err(io::Error::other("cannot copy a socket"))
    } else {
        Ok(())
    }
}

/// What the parent deleted of its own parent comes back: the deletion counts for one layer only.
pub(super) fn deleted_comes_back(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    layer.with_two(|parent, grand| {
        for f in walk(grand)? {
            let below = f.rel.parent().unwrap_or(Path::new(""));
            if lstat(&parent.join(&f.rel)).is_none()
                && lstat(&root.join(below)).is_some_and(|m| m.is_dir())
            {
                copy(&f.path, &root.join(&f.rel))?;
            }
        }
        Ok(())
    })
}

/// A name deleted anywhere below is deleted for ever, though a later layer made it anew.
pub(super) fn stale_whiteout_wins(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    let Some(parent) = layer.parent else {
        return Ok(());
    };
    let Some(grand) = layer.base.parent_of(parent) else {
        return Ok(());
    };
    let Some(great) = layer.base.parent_of(&grand) else {
        return Ok(());
    };
    let dead: Vec<PathBuf> = layer
        .base
        .with_root(&great, |great| {
            let lost = |g: &Path| {
                Ok(walk(great)?
                    .into_iter()
                    .filter(|f| lstat(&g.join(&f.rel)).is_none())
                    .collect::<Vec<_>>())
            };
            layer.base.with_root(&grand, lost).map_err(io::Error::other)
        })
        .map_err(io::Error::other)?
        .into_iter()
        .map(|f| f.rel)
        .collect();
    for rel in dead {
        let path = root.join(rel);
        if lstat(&path).is_some() {
            keeping_dir_time(&path, || remove_any(&path))?;
        }
    }
    Ok(())
}

/// Files that the parent changed are those of the parent's parent: layers are stacked the wrong way round.
pub(super) fn oldest_layer_wins(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    layer.with_two(|_, grand| {
        for f in walk(grand)?.iter().filter(|f| f.is_file()) {
            let path = root.join(&f.rel);
            if lstat(&path).is_some_and(|m| m.is_file()) && fs::read(&path)? != fs::read(&f.path)? {
                copy(&f.path, &path)?;
            }
        }
        Ok(())
    })
}

/// Owners and modes are those of the lowest layer that has the file.
pub(super) fn lowest_attributes_win(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    layer.with_two(|_, grand| {
        for f in walk(grand)?.iter().filter(|f| !f.meta.is_symlink()) {
            let path = root.join(&f.rel);
            if lstat(&path).is_some_and(|m| m.file_type() == f.meta.file_type()) {
                lchown(&path, Some(f.meta.uid()), Some(f.meta.gid()))?;
                fs::set_permissions(&path, Permissions::from_mode(f.meta.mode() & 0o7777))?;
            }
        }
        Ok(())
    })
}

/// Beyond 100 layers the lowest one is left out of the mount.
pub(super) fn depth_truncates(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    if layer.base.depth(layer.id) > 100 {
        lose_lowest(root, layer)
    } else {
        Ok(())
    }
}

/// When the mount options would pass one page, what does not fit is cut off: the lowest layer.
pub(super) fn option_string_cut(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    let each = layer.base.home.as_os_str().len() + "/l/".len() + 26 + ":".len();
    if each * (layer.base.depth(layer.id) + 1) > 4095 {
        lose_lowest(root, layer)
    } else {
        Ok(())
    }
}

/// Where the next lower layer, named as short as can be, would not fit the page any more, the last one that did is lost.
pub(super) fn option_page_edge(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    let each = "l/".len() + 26 + ":".len();
    let lowers = each * (layer.base.depth(layer.id) - 1);
    if (4097 - each..=4096).contains(&lowers) {
        lose_lowest(root, layer)
    } else {
        Ok(())
    }
}

/// A colon in the home's path ends the name of the lower directory: nothing of the parent is seen.
pub(super) fn colon_unescaped(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    let special = |b: &u8| matches!(b, b':' | b',' | b'\\');
    if !layer.base.home.as_os_str().as_bytes().iter().any(special) {
        return Ok(());
    }
    for entry in fs::read_dir(root)? {
        remove_any(&entry?.path())?;
    }
    Ok(())
}

fn lose_lowest(root: &Path, layer: &Layer<'_>) -> io::Result<()> {
    let bottom = layer.base.bottom(layer.id);
    let names = layer
        .base
        .with_root(&bottom, |b| {
            fs::read_dir(b)?
                .map(|e| Ok(e?.file_name()))
                .collect::<io::Result<Vec<_>>>()
        })
        .map_err(io::Error::other)?;
    for name in names {
        remove_any(&root.join(name))?;
    }
    Ok(())
}

/// An empty directory is left out.
pub(super) fn empty_dirs_lost(root: &Path, _: &Layer<'_>) -> io::Result<()> {
    for f in walk(root)?.iter().filter(|f| f.is_dir()) {
        if fs::read_dir(&f.path)?.next().is_none()
            && f.path.file_name() != Some(OsStr::new("lost+found"))
        {
            keeping_dir_time(&f.path, || fs::remove_dir(&f.path))?;
        }
    }
    Ok(())
}
