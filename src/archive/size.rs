//! Sizes of layers: apparent sizes of everything but directories, every inode once.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Statx};
use rustix::io::Errno;

use super::walk::{self, Dirs, InodeKey, file_type, inode};
use super::{Change, ChangeKind, Error, Form};
use crate::tree::TreePath;

/// The size in bytes of what was added and modified below `root`. What is no longer there counts nothing. After moby's `ChangesSize`.
///
/// # Errors
/// A directory of `root` cannot be read.
pub fn diff_size(root: BorrowedFd<'_>, changes: &[Change]) -> Result<u64, Error> {
    let mut dirs = Dirs::new(root).map_err(|e| Error::io("open", &TreePath::root(), e))?;
    let mut sum = Sum::default();
    for change in changes.iter().filter(|c| c.kind != ChangeKind::Delete) {
        let st = dirs.stat_if_there(&change.path);
        if let Some(st) = st.map_err(|e| Error::io("stat", &change.path, e))? {
            sum.add(&st);
        }
    }
    Ok(sum.bytes + sum.shared_bytes())
}

/// The size in bytes of all that lies below `root`. After moby's `directory.Size`.
///
/// # Errors
/// A directory cannot be read.
pub fn layer_size(root: BorrowedFd<'_>) -> Result<u64, Error> {
    layer_size_in(root, Form::Plain)
}

/// As [`layer_size`], of a layer's own directory, without what its driver keeps there for itself.
///
/// # Errors
/// As [`layer_size`].
pub fn layer_size_in(root: BorrowedFd<'_>, form: Form) -> Result<u64, Error> {
    let sums = walk::in_parallel(TreePath::root(), |dir: TreePath, more, sum: &mut Sum| {
        let fail = |e: Errno| Error::io("read", &dir, e);
        let Some((fd, names)) = walk::list_dir(root, &dir).map_err(fail)? else {
            return Ok(());
        };
        for i in 0..names.len() {
            if !matches!(form.listed(names.name(i)), Some((_, false))) {
                continue;
            }
            let Some(st) = walk::stat_if_there(fd.as_fd(), names.c_name(i)).map_err(fail)? else {
                continue;
            };
            sum.add(&st);
            if file_type(&st) == FileType::Directory {
                more.push(dir.join(names.name(i)));
            }
        }
        Ok(())
    })?;
    let all = sums.into_iter().reduce(|mut all, one| {
        all.bytes += one.bytes;
        all.shared.extend(one.shared);
        all
    });
    Ok(all.map_or(0, |all| all.bytes + all.shared_bytes()))
}

#[derive(Default)]
struct Sum {
    /// Of inodes with one name.
    bytes: u64,
    /// Inodes with several names, and their sizes.
    shared: HashSet<(InodeKey, u64)>,
}

impl Sum {
    fn add(&mut self, st: &Statx) {
        if file_type(st) == FileType::Directory || st.stx_size == 0 {
            return;
        }
        if st.stx_nlink > 1 {
            self.shared.insert((inode(st), st.stx_size));
        } else {
            self.bytes += st.stx_size;
        }
    }

    fn shared_bytes(&self) -> u64 {
        self.shared.iter().map(|(_, size)| size).sum()
    }
}
