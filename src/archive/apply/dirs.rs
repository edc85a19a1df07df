//! Open directories of the layer, so that entries of one directory cost one lookup together.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::fs::{Mode, OFlags, open_beneath};
use crate::sys::xattr;
use crate::tree::TreePath;

/// How many directories are held open at once.
const MAX_OPEN: usize = 16;

/// How a directory is opened: for reading, because attributes cannot be set through `O_PATH`.
const FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW);

/// A directory held open.
#[derive(Debug)]
pub(super) struct Held {
    path: TreePath,
    fd: OwnedFd,
    /// It has a default ACL, which the kernel gives to whatever is made in it.
    pub hands_down_acl: bool,
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The directory last used and some of those above it.
#[derive(Debug)]
pub(super) struct Dirs {
    root: Held,
    /// Each below the one before.
    chain: Vec<Held>,
}

impl Dirs {
    pub fn new(root: BorrowedFd<'_>) -> io::Result<Self> {
        let fd = open_beneath(root, b"", FLAGS, Mode::empty())?;
        let root = hold(TreePath::root(), fd);
        let chain = Vec::new();
        Ok(Self { root, chain })
    }

    /// The directory at `path`, which must have no symbolic link in it.
    pub fn get(&mut self, path: &TreePath) -> io::Result<&Held> {
        while self
            .chain
            .last()
            .is_some_and(|held| held.path != *path && !path.is_below(&held.path))
        {
            self.chain.pop();
        }
        if self.nearest().path != *path {
            let above = self.nearest();
            let skip = if above.path.is_root() {
                0
            } else {
                above.path.0.len() + 1
            };
            let fd = open_beneath(above.as_fd(), &path.0[skip..], FLAGS, Mode::empty())?;
            self.push(hold(path.clone(), fd));
        }
        Ok(self.nearest())
    }

    /// Takes over a directory that was just opened.
    pub fn adopt(&mut self, path: TreePath, fd: OwnedFd) {
        self.forget(&path);
        while self
            .chain
            .last()
            .is_some_and(|held| !path.is_below(&held.path))
        {
            self.chain.pop();
        }
        self.push(hold(path, fd));
    }

    /// `path` is about to be removed or was replaced.
    pub fn forget(&mut self, path: &TreePath) {
        self.chain
            .retain(|held| held.path != *path && !held.path.is_below(path));
    }

    /// A descriptor of its own on a directory, for when two are needed at once.
    pub fn open(&mut self, path: &TreePath) -> io::Result<OwnedFd> {
        self.get(path)?.fd.try_clone()
    }

    fn nearest(&self) -> &Held {
        self.chain.last().unwrap_or(&self.root)
    }

    fn push(&mut self, held: Held) {
        if self.chain.len() == MAX_OPEN {
            self.chain.remove(0);
        }
        self.chain.push(held);
    }
}

fn hold(path: TreePath, fd: OwnedFd) -> Held {
    let acl = xattr::get(fd.as_fd(), c"", c"system.posix_acl_default");
    let hands_down_acl = matches!(acl, Ok(Some(_)));
    Held {
        path,
        fd,
        hands_down_acl,
    }
}
