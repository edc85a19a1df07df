//! What the layers below show together.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Statx};

use crate::archive::form::{Form, Seen};
use crate::archive::walk::{Names, file_type, open_dir};
use crate::tree::TreePath;

/// The layers below, the nearest first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lowers<'a> {
    pub form: Form,
    pub roots: &'a [BorrowedFd<'a>],
}

impl Lowers<'_> {
    /// The entry that shows at `path` (not the root), with the number of the layer that has it.
    pub fn look(&self, path: &TreePath) -> rustix::io::Result<Option<(usize, Statx)>> {
        for (number, root) in self.roots.iter().enumerate() {
            match self.look_in(*root, path)? {
                Found::Entry(st) => return Ok(Some((number, st))),
                Found::Hidden => return Ok(None),
                Found::Nothing => {}
            }
        }
        Ok(None)
    }

    fn look_in(&self, root: BorrowedFd<'_>, path: &TreePath) -> rustix::io::Result<Found> {
        let mut dir = open_dir(root, &TreePath::root())?;
        let (mut at, mut hides) = (TreePath::root(), false);
        loop {
            let rest = &path.0[at.0.len()..];
            let rest = rest.strip_prefix(b"/").unwrap_or(rest);
            let part = rest.split(|b| *b == b'/').next().unwrap_or_default();
            let name = CString::new(part).map_err(|_| rustix::io::Errno::INVAL)?;
            let marked = self.form.has_marked_whiteouts(dir.as_fd())?;
            let st = match self.form.look(dir.as_fd(), &name, marked)? {
                Seen::Entry(st) => st,
                Seen::Whiteout => return Ok(Found::Hidden),
                Seen::Nothing if hides => return Ok(Found::Hidden),
                Seen::Nothing => return Ok(Found::Nothing),
            };
            at = at.join(part);
            if at == *path {
                return Ok(Found::Entry(st));
            }
            if file_type(&st) != FileType::Directory {
                return Ok(Found::Hidden);
            }
            dir = open_dir(dir.as_fd(), &TreePath(part.to_vec()))?;
            hides = hides || self.form.is_opaque(dir.as_fd())?;
        }
    }

    /// The names that show in the root.
    pub fn root_names(&self) -> rustix::io::Result<Vec<Vec<u8>>> {
        let (mut known, mut shown) = (BTreeSet::new(), Vec::new());
        for root in self.roots {
            let dir = open_dir(*root, &TreePath::root())?;
            let names = Names::read(dir.as_fd())?;
            for index in 0..names.len() {
                let Some((name, deleted)) = self.form.listed(names.name(index)) else {
                    continue;
                };
                if !known.insert(name.to_vec()) || deleted {
                    continue;
                }
                let path = TreePath(name.to_vec());
                if self.look(&path)?.is_some() {
                    shown.push(path.0);
                }
            }
        }
        Ok(shown)
    }
}

#[allow(clippy::large_enum_variant)] // One lives at a time, on the stack.
enum Found {
    Entry(Statx),
    /// Deleted here, so that layers further down do not matter.
    Hidden,
    Nothing,
}
