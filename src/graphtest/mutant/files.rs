//! Small file work for mutants: walking a layer's root and copying between layers. Nothing here needs to be safe against
//! hostile trees: mutants only ever see what scenarios made.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT, XattrFlags};

/// One thing found in a layer, not following symbolic links.
#[derive(Debug)]
pub(super) struct Found {
    /// Where it is.
    pub(super) path: PathBuf,
    /// Its path below the root.
    pub(super) rel: PathBuf,
    pub(super) meta: Metadata,
}

impl Found {
    pub(super) fn is_dir(&self) -> bool {
        self.meta.is_dir()
    }
    pub(super) fn is_file(&self) -> bool {
        self.meta.is_file()
    }
    /// Identity of the inode.
    pub(super) fn inode(&self) -> (u64, u64) {
        (self.meta.dev(), self.meta.ino())
    }
}

/// Everything below `root`, parents before children, by name; the root itself is left out.
pub(super) fn walk(root: &Path) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    walk_below(root, Path::new(""), &mut found)?;
    Ok(found)
}

fn walk_below(dir: &Path, rel: &Path, found: &mut Vec<Found>) -> io::Result<()> {
    let mut names: Vec<OsString> = fs::read_dir(dir)?
        .map(|e| Ok(e?.file_name()))
        .collect::<io::Result<_>>()?;
    names.sort();
    for name in names {
        let path = dir.join(&name);
        let meta = fs::symlink_metadata(&path)?;
        let rel = rel.join(&name);
        let is_dir = meta.is_dir();
        found.push(Found {
            path: path.clone(),
            rel: rel.clone(),
            meta,
        });
        if is_dir {
            walk_below(&path, &rel, found)?;
        }
    }
    Ok(())
}

/// The metadata of a path itself, `None` when there is nothing.
pub(super) fn lstat(path: &Path) -> Option<Metadata> {
    fs::symlink_metadata(path).ok()
}

/// Sets the modification time, of a symbolic link itself.
pub(super) fn set_mtime(path: &Path, secs: i64, nanos: i64) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: secs,
            tv_nsec: nanos,
        },
    };
    Ok(rustix::fs::utimensat(
        CWD,
        path,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// Gives a path the modification time of `meta`.
pub(super) fn restore_mtime(path: &Path, meta: &Metadata) -> io::Result<()> {
    set_mtime(path, meta.mtime(), meta.mtime_nsec())
}

/// Does something in the directory that holds `path`, and gives the directory its time back.
pub(super) fn keeping_dir_time<T>(path: &Path, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let dir = path.parent().unwrap_or(path);
    let meta = fs::metadata(dir)?;
    let done = f();
    restore_mtime(dir, &meta)?;
    done
}

/// The extended attributes of a path itself.
pub(super) fn xattrs(path: &Path) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    let mut names = vec![0; 64 << 10];
    let n = rustix::fs::llistxattr(path, names.as_mut_slice())?;
    let mut out = Vec::new();
    for name in names[..n].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let n = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), value.as_mut_slice())?;
        value.truncate(n);
        out.push((OsString::from_vec(name.to_vec()), value));
    }
    Ok(out)
}

/// Sets one extended attribute of a path itself.
pub(super) fn set_xattr(path: &Path, name: &OsStr, value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::lsetxattr(
        path,
        name,
        value,
        XattrFlags::empty(),
    )?)
}

/// Removes one extended attribute of a path itself.
pub(super) fn remove_xattr(path: &Path, name: &OsStr) -> io::Result<()> {
    Ok(rustix::fs::lremovexattr(path, name)?)
}

/// Removes whatever is at `path`; nothing there is fine.
pub(super) fn remove_any(path: &Path) -> io::Result<()> {
    match lstat(path) {
        None => Ok(()),
        Some(m) if m.is_dir() => fs::remove_dir_all(path),
        Some(_) => fs::remove_file(path),
    }
}

/// Copies a file, a directory with all below, or a symbolic link over whatever is at `to`, with owner, mode, times and extended
/// attributes; other kinds are left out.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let Some(meta) = lstat(from) else {
        return Ok(());
    };
    keeping_dir_time(to, || {
        remove_any(to)?;
        if meta.is_dir() {
            fs::create_dir(to)?;
            for entry in fs::read_dir(from)? {
                let name = entry?.file_name();
                copy(&from.join(&name), &to.join(&name))?;
            }
        } else if meta.is_file() {
            fs::copy(from, to)?;
        } else if meta.is_symlink() {
            symlink(fs::read_link(from)?, to)?;
        } else {
            return Ok(());
        }
        copy_attributes(from, &meta, to)
    })
}

/// Gives `to` the owner, mode, extended attributes and modification time of `from`.
pub(super) fn copy_attributes(from: &Path, meta: &Metadata, to: &Path) -> io::Result<()> {
    lchown(to, Some(meta.uid()), Some(meta.gid()))?;
    if !meta.is_symlink() {
        fs::set_permissions(to, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
        for (name, value) in xattrs(from)? {
            if !name.as_bytes().starts_with(b"trusted.overlay.")
                && !name.as_bytes().starts_with(b"user.overlay.")
            {
                set_xattr(to, &name, &value)?;
            }
        }
    }
    restore_mtime(to, meta)
}

/// Replaces a regular file by an equal one with an inode of its own.
pub(super) fn unshare(path: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    keeping_dir_time(path, || {
        let mut temp = path.as_os_str().to_owned();
        temp.push(".mutant");
        let temp = PathBuf::from(temp);
        fs::copy(path, &temp)?;
        copy_attributes(path, &meta, &temp)?;
        fs::rename(&temp, path)
    })
}
