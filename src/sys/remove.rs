//! Removing a tree by file descriptors: no symbolic link is followed and no mount is entered.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags, chmodat, fchmod, openat, openat2, renameat,
    unlinkat,
};
use rustix::io::Errno;

/// How many directories are held open at once; deeper ones are first moved up to the top of the tree.
const MAX_OPEN: usize = 64;

/// Removes `name` in `dir` with all that is below it; that it does not exist is success. Directories that their owner made
/// unreadable are opened up first. What can be removed is removed even when something else cannot.
///
/// # Errors
/// The first failure; `EXDEV` when a filesystem is mounted below, which is left alone.
pub fn remove_tree_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let name = CString::new(name.as_bytes())?;
    match unlinkat(dir, &name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // EPERM: what POSIX says of a directory; EBUSY: a mount point, refused below.
        Err(Errno::ISDIR | Errno::PERM | Errno::BUSY) => {}
        Err(e) => return Err(e.into()),
    }
    let top = open_dir(dir, &name)?;
    let mut removal = Removal {
        top: top.as_fd(),
        moved: 0,
        first_error: None,
    };
    removal.empty(top.as_fd(), 0);
    // Each pass may have moved deep directories up; it ends because every pass removes or moves at least one level.
    let mut seen = 0;
    while removal.moved > seen && removal.first_error.is_none() {
        seen = removal.moved;
        removal.empty(top.as_fd(), 0);
    }
    match removal.first_error {
        Some(e) => Err(e.into()),
        None => Ok(unlinkat(dir, &name, AtFlags::REMOVEDIR)?),
    }
}

/// The same by path; the path's own directories may be reached through symbolic links, its last component is not followed.
///
/// # Errors
/// As [`remove_tree_at`]; `EINVAL` when the path names no entry of a directory (`/`, `..`).
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL.into());
    };
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(CWD, parent, flags, Mode::empty()) {
        Ok(dir) => remove_tree_at(dir.as_fd(), name),
        Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

struct Removal<'a> {
    top: BorrowedFd<'a>,
    moved: u64,
    first_error: Option<Errno>,
}

impl Removal<'_> {
    fn note(&mut self, result: Result<(), Errno>) {
        if let Err(e) = result {
            self.first_error.get_or_insert(e);
        }
    }

    fn empty(&mut self, dir: BorrowedFd<'_>, depth: usize) {
        match names(dir) {
            Ok(names) => {
                for name in names {
                    let done = self.remove(dir, &name, depth);
                    self.note(done);
                }
            }
            Err(e) => self.note(Err(e)),
        }
    }

    fn remove(&mut self, dir: BorrowedFd<'_>, name: &CString, depth: usize) -> Result<(), Errno> {
        let mut result = unlinkat(dir, name, AtFlags::empty());
        if result == Err(Errno::ACCESS) {
            fchmod(dir, Mode::RWXU)?;
            result = unlinkat(dir, name, AtFlags::empty());
        }
        match result {
            Err(Errno::ISDIR | Errno::PERM | Errno::BUSY) => {}
            Err(Errno::NOENT) => return Ok(()),
            other => return other,
        }
        if depth >= MAX_OPEN {
            // Opening refuses mount points and opens up what is unreadable; moving a directory needs both.
            drop(open_dir(dir, name)?);
            self.moved += 1;
            return renameat(
                dir,
                name,
                self.top,
                format!(".graphtest-moved-{}", self.moved),
            );
        }
        let sub = open_dir(dir, name)?;
        let moved = self.moved;
        self.empty(sub.as_fd(), depth + 1);
        drop(sub);
        match unlinkat(dir, name, AtFlags::REMOVEDIR) {
            // Something below could not be removed, and is noted already.
            Err(Errno::NOTEMPTY) if self.first_error.is_some() || self.moved > moved => Ok(()),
            other => other,
        }
    }
}

fn names(dir: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_owned();
        if name.as_bytes() != b"." && name.as_bytes() != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

fn open_dir(dir: BorrowedFd<'_>, name: &CString) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match openat2(dir, name, flags, Mode::empty(), resolve) {
        Err(Errno::ACCESS) => {
            // Not a symbolic link: `unlinkat` would have removed one.
            chmodat(dir, name, Mode::RWXU, AtFlags::empty())?;
            openat2(dir, name, flags, Mode::empty(), resolve)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn removes_links_but_never_what_they_name() {
        let dir = tempfile::tempdir().unwrap();
        let (keep, tree) = (dir.path().join("keep"), dir.path().join("tree"));
        fs::create_dir_all(keep.join("d")).unwrap();
        fs::write(keep.join("d/f"), "x").unwrap();
        fs::create_dir_all(tree.join("sub")).unwrap();
        std::os::unix::fs::symlink(&keep, tree.join("sub/out")).unwrap();
        fs::set_permissions(tree.join("sub"), fs::Permissions::from_mode(0o0)).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read(keep.join("d/f")).unwrap(), b"x");
        std::os::unix::fs::symlink(&keep, &tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(fs::symlink_metadata(&tree).is_err());
        assert!(keep.join("d/f").exists());
        remove_tree(&tree).unwrap();
        remove_tree(&dir.path().join("no/such")).unwrap();
        assert!(remove_tree(Path::new("/")).is_err());
    }

    #[test]
    fn a_tree_deeper_than_the_open_files_limit_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut at = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&at, "e", Mode::RWXU).unwrap();
            at = openat(&at, "d", OFlags::PATH, Mode::empty()).unwrap();
        }
        remove_tree(&dir.path().join("d")).unwrap();
        assert!(!dir.path().join("d").exists());
    }
}
