//! The directories above inodes of which nothing is known but their numbers.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::Error;
use super::walk::{self, errno};
use crate::sys;
use crate::tree::TreePath;

/// A directory to be read.
struct Task {
    path: TreePath,
    inode: u64,
}

/// What one worker found.
#[derive(Default)]
struct Found {
    /// Directories, and that in which each is.
    parents: Vec<(u64, u64)>,
    /// Directories that hold a name of one of the inodes.
    above: Vec<u64>,
    /// A directory does not tell the types of what is in it.
    untold: bool,
}

/// Adds to numbers of inodes those of all directories below `root`, and of the root, that are above one of their names. False when the
/// filesystem's directories do not tell which of their entries are directories themselves.
///
/// Nothing is asked of an entry but what its directory says, so nothing may be mounted below the root. Times of access stay as they are,
/// where that is this user's to decide: what is to be found by what was written is not to be written to.
///
/// # Errors
/// A directory cannot be read.
pub(crate) fn add_directories_above(
    root: BorrowedFd<'_>,
    inodes: &mut HashSet<u64>,
) -> Result<bool, Error> {
    let st = walk::stat_open(root).map_err(|e| Error::io("look at", &TreePath::root(), e))?;
    let first = Task {
        path: TreePath::root(),
        inode: st.stx_ino,
    };
    let wanted = &*inodes;
    let found = walk::in_parallel(first, |task, more, found: &mut Found| {
        read(root, &task, wanted, more, found).map_err(|e| Error::io("read", &task.path, e))
    })?;
    if found.iter().any(|f| f.untold) {
        return Ok(false);
    }
    let parents = found.iter().flat_map(|f| f.parents.iter().copied());
    let parents: HashMap<u64, u64> = parents.collect();
    for &direct in found.iter().flat_map(|f| &f.above) {
        let mut next = Some(direct);
        // One that is among them already needs no more steps: either they were made from it, or it was given, and what holds it was
        // found to be above it.
        while let Some(dir) = next.filter(|dir| inodes.insert(*dir)) {
            next = parents.get(&dir).copied();
        }
    }
    Ok(true)
}

fn read(
    root: BorrowedFd<'_>,
    task: &Task,
    wanted: &HashSet<u64>,
    more: &mut Vec<Task>,
    found: &mut Found,
) -> rustix::io::Result<()> {
    let opened = match walk::open_dir_with(root, &task.path, OFlags::NOATIME) {
        Err(Errno::PERM) => walk::open_dir(root, &task.path),
        other => other,
    };
    let dir = match opened {
        Err(e) if walk::is_gone(e) && !task.path.is_root() => return Ok(()),
        other => other?,
    };
    let mut above = false;
    sys::fs::for_each_entry(dir.as_fd(), |name, kind, inode| {
        above |= wanted.contains(&inode);
        match kind {
            FileType::Directory => {
                found.parents.push((inode, task.inode));
                more.push(Task {
                    path: task.path.join(name.to_bytes()),
                    inode,
                });
            }
            FileType::Unknown => found.untold = true,
            _ => {}
        }
        Ok(())
    })
    .map_err(|e| errno(&e))?;
    if above {
        found.above.push(task.inode);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::testing::{build, open};

    #[test]
    fn directories_above_every_name_are_found() {
        let tmp = tempfile::tempdir().expect("a directory");
        build(
            &tmp.path().join("t"),
            "[{dir: a}, {dir: a/b}, {dir: a/b/c}, {file: a/b/c/f}, {dir: x}, {dir: x/y}, {hardlink: x/y/l, to: a/b/c/f},
              {dir: a/n}, {file: a/n/g}, {dir: z}, {dir: z/empty}]",
        );
        let root = tmp.path().join("t");
        let inode = |name: &str| {
            let st = rustix::fs::lstat(root.join(name));
            st.expect("it is there").st_ino
        };
        let above = |names: &[&str]| {
            let mut inodes: HashSet<u64> = names.iter().map(|n| inode(n)).collect();
            let told = add_directories_above(open(&root).as_fd(), &mut inodes);
            assert!(told.expect("it can be read"), "the types are told here");
            inodes
        };
        let set = |names: &[&str]| -> HashSet<u64> { names.iter().map(|n| inode(n)).collect() };
        assert_eq!(above(&[]), set(&[]));
        assert_eq!(
            above(&["a/b/c/f"]),
            set(&["a/b/c/f", "a/b/c", "a/b", "a", "x/y", "x", ""])
        );
        assert_eq!(above(&["z/empty"]), set(&["z/empty", "z", ""]));
        // Those that were given have others above them, too, in whatever order they are met.
        assert_eq!(
            above(&["a/b/c", "a/b/c/f", "x"]),
            set(&["a/b/c/f", "a/b/c", "a/b", "a", "x/y", "x", ""])
        );
        assert_eq!(above(&[""]), set(&[""]));
    }
}
