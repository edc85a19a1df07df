//! Deletions, carried out or kept as the form keeps them.

use std::os::fd::AsFd;

use rustix::fs::{FileType, Mode, mknodat};
use rustix::io::Errno;

use super::fault::{On, Outcome, refused};
use super::remove::Spare;
use super::{Applier, Missing, c_name};
use crate::archive::Form;
use crate::archive::names::{OPAQUE_MARKER, WHITEOUT_PREFIX};
use crate::sys::xattr;
use crate::tree::TreePath;

/// What this archive had put where a deletion acts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    File,
    Dir,
}

/// The file by which aufs says that `path` is deleted.
pub(super) fn marker_of(path: &TreePath) -> TreePath {
    let dir = path.parent().unwrap_or_default();
    dir.join(&[WHITEOUT_PREFIX, path.base()].concat())
}

impl Applier<'_> {
    /// `name` was deleted from the layers below.
    pub(super) fn whiteout(&mut self, name: &TreePath) -> Outcome {
        let dir = name.parent().unwrap_or_default();
        // Where nothing shows there is nothing to delete: a deletion makes no directories that are not there anyway.
        let missing = match self.options.form {
            Form::Plain => Missing::Leave,
            _ => Missing::MakeIfShown,
        };
        let Some(dir) = self.directory(&dir, missing)? else {
            return Ok(());
        };
        let path = dir.join(name.base());
        // A second whiteout of the same name finds nothing that the first has left.
        if !self.hidden.insert(self.key(&path)) {
            return Ok(());
        }
        match (self.remove_old(&path)?, self.options.form) {
            (_, Form::Plain) | (Left::File, _) => Ok(()),
            (Left::Dir, _) => self.mark_opaque(&path),
            (Left::Nothing, form) if self.shows_below(&path)? => match form {
                Form::Aufs => self.aufs_marker(&path, WHITEOUT_PREFIX, path.base()),
                _ => self.overlay_whiteout(&path),
            },
            (Left::Nothing, _) => Ok(()),
        }
    }

    /// All that the layers below have in `name` was deleted.
    pub(super) fn opaque(&mut self, name: &TreePath) -> Outcome {
        let Some(dir) = self.directory(name, Missing::Make)? else {
            return Ok(());
        };
        if self.opaque.contains(&self.key(&dir)) {
            return Ok(());
        }
        if dir.is_root() && self.options.form != Form::Plain {
            return self.opaque_root();
        }
        self.empty(&dir, Spare::Made)?;
        self.mark_opaque(&dir)
    }

    /// overlayfs and aufs always merge the root, so everything that shows there is deleted one by one.
    fn opaque_root(&mut self) -> Outcome {
        let Some(lowers) = self.lowers else {
            return refused("the root cannot be opaque where the layers below are not known");
        };
        let root = TreePath::root();
        let names = lowers.root_names().on("list", &root)?;
        self.empty(&root, Spare::Made)?;
        for name in names {
            self.whiteout(&TreePath(name))?;
        }
        // Only now: under an opaque directory no whiteout is kept.
        self.opaque.insert(self.key(&root));
        Ok(())
    }

    /// Removes what stood at `path` before this archive.
    fn remove_old(&mut self, path: &TreePath) -> Outcome<Left> {
        let Some(st) = self.stat(path)? else {
            return Ok(Left::Nothing);
        };
        let made = self.was_made(path);
        if FileType::from_raw_mode(st.st_mode) != FileType::Directory {
            if made {
                return Ok(Left::File);
            }
            self.unlink(path, &st)?;
            return Ok(Left::Nothing);
        }
        self.empty(path, Spare::Made)?;
        if made {
            return Ok(Left::Dir);
        }
        if self.remove_empty_dir(path)? {
            return Ok(Left::Nothing);
        }
        self.reset_directory(path)?;
        Ok(Left::Dir)
    }

    /// From now on nothing of the layers below shows in the directory `path`.
    pub(super) fn mark_opaque(&mut self, path: &TreePath) -> Outcome {
        self.opaque.insert(self.key(path));
        let name = match self.options.form {
            Form::Plain => return Ok(()),
            Form::Aufs => return self.aufs_marker(&path.join(b"x"), OPAQUE_MARKER, b""),
            Form::Overlay => c"trusted.overlay.opaque",
            Form::OverlayUser => c"user.overlay.opaque",
        };
        let dir = self.dirs.get(path).on("open", path)?;
        xattr::set(dir.as_fd(), c"", name, b"y").on("make opaque", path)
    }

    /// Whether the layers below may show something at `path`, which the layer itself does not have.
    fn shows_below(&mut self, path: &TreePath) -> Outcome<bool> {
        // overlayfs would list the device in an opaque directory.
        if self.is_covered(path)? {
            return Ok(false);
        }
        match self.lowers {
            Some(lowers) => Ok(lowers.look(path).on("look up below", path)?.is_some()),
            None => Ok(true),
        }
    }

    fn overlay_whiteout(&mut self, path: &TreePath) -> Outcome {
        let base = c_name(path);
        let dir = self.holder(path)?.as_fd();
        mknodat(dir, &base, FileType::CharacterDevice, Mode::empty(), 0).on("make whiteout", path)
    }

    /// An empty file in the directory of `beside`.
    fn aufs_marker(&mut self, beside: &TreePath, prefix: &[u8], rest: &[u8]) -> Outcome {
        let path = beside
            .parent()
            .unwrap_or_default()
            .join(&[prefix, rest].concat());
        let base = c_name(&path);
        let dir = self.holder(&path)?.as_fd();
        match mknodat(dir, &base, FileType::RegularFile, Mode::from(0o444), 0) {
            Err(Errno::EXIST) => Ok(()),
            other => other.on("make whiteout", &path),
        }
    }

    /// Before `path` is made: takes back the file that says it is deleted. True when there was one.
    pub(super) fn unhide(&mut self, path: &TreePath) -> Outcome<bool> {
        if self.options.form != Form::Aufs {
            return Ok(false);
        }
        let marker = marker_of(path);
        match self.stat(&marker) {
            Ok(Some(st)) => self.unlink(&marker, &st).map(|()| true),
            Ok(None) => Ok(false),
            // The marker's name is too long to exist.
            Err(_) => Ok(false),
        }
    }
}
