//! Operations on names: removing and renaming.

use rustix::io::Errno;

use super::access::{READ, SEARCH, WRITE};
use super::inode::Node;
use super::{Actor, Ino, Model, Stop};
use crate::tree::TreePath;
use crate::tree::op::RenameOp;

impl Model {
    /// A name that exists, with its directory.
    fn present(&self, path: &TreePath, who: Actor) -> Result<(Ino, Ino), Stop> {
        let dir = self.dir_of(path, who)?;
        let ino = self.lookup(dir, path.base(), who)?.ok_or(Errno::NOENT)?;
        Ok((dir, ino))
    }

    pub(super) fn unlink(&mut self, path: &TreePath, who: Actor) -> Result<(), Stop> {
        if path.is_root() {
            return Err(Errno::ISDIR.into());
        }
        let (dir, ino) = self.present(path, who)?;
        self.may_delete(dir, ino, who)?;
        if self.is_dir(ino) {
            return Err(Errno::ISDIR.into());
        }
        self.drop_name(dir, path.base());
        Ok(())
    }

    pub(super) fn rmdir(&mut self, path: &TreePath, who: Actor) -> Result<(), Stop> {
        if path.is_root() {
            return Err(Errno::BUSY.into());
        }
        let (dir, ino) = self.present(path, who)?;
        self.may_delete(dir, ino, who)?;
        match self.names_of(ino) {
            None => return Err(Errno::NOTDIR.into()),
            Some(names) if !names.is_empty() => return Err(Errno::NOTEMPTY.into()),
            Some(_) => {}
        }
        self.drop_name(dir, path.base());
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &TreePath, who: Actor) -> Result<(), Stop> {
        if path.is_root() {
            return Err(Errno::BUSY.into());
        }
        let (dir, ino) = self.present(path, who)?;
        self.remove_tree(dir, path.base(), ino, who)
    }

    /// In the order in which [`remove_all`](crate::sys::fs::remove_all) goes, which matters when it stops half-way.
    fn remove_tree(&mut self, dir: Ino, name: &[u8], ino: Ino, who: Actor) -> Result<(), Stop> {
        self.may_delete(dir, ino, who)?;
        let below = self.names_of(ino).cloned().unwrap_or_default();
        if !below.is_empty() {
            self.may(ino, READ | SEARCH, who)?;
        }
        for (child, number) in below {
            self.remove_tree(ino, &child, number, who)?;
        }
        self.drop_name(dir, name);
        Ok(())
    }

    /// The order of the checks is that of do_renameat2() and vfs_rename().
    pub(super) fn rename(&mut self, o: &RenameOp, who: Actor) -> Result<(), Stop> {
        let (from, to) = (&o.path.0, &o.to.0);
        if from.is_root() || to.is_root() {
            return Err(Errno::BUSY.into());
        }
        let old_dir = self.dir_of(from, who)?;
        let new_dir = self.dir_of(to, who)?;
        if o.noreplace && o.exchange {
            return Err(Errno::INVAL.into());
        }
        self.may(old_dir, SEARCH, who)?;
        self.may(new_dir, SEARCH, who)?;
        let old = self
            .lookup(old_dir, from.base(), who)?
            .ok_or(Errno::NOENT)?;
        let new = self.lookup(new_dir, to.base(), who)?;
        match new {
            Some(_) if o.noreplace => return Err(Errno::EXIST.into()),
            None if o.exchange => return Err(Errno::NOENT.into()),
            _ => {}
        }
        if self.is_at_or_above(old, new_dir) {
            return Err(Errno::INVAL.into());
        }
        if let Some(new) = new
            && self.is_at_or_above(new, old_dir)
        {
            return Err(if o.exchange {
                Errno::INVAL
            } else {
                Errno::NOTEMPTY
            }
            .into());
        }
        if new == Some(old) {
            return Ok(());
        }
        self.may_rename((old_dir, old), (new_dir, new), o.exchange, who)?;
        if o.exchange
            && let Some(new) = new
        {
            self.place(new, old_dir, from.base());
        } else {
            self.drop_name(new_dir, to.base());
            self.set_name(old_dir, from.base(), None);
        }
        self.place(old, new_dir, to.base());
        Ok(())
    }

    fn may_rename(
        &self,
        (old_dir, old): (Ino, Ino),
        (new_dir, new): (Ino, Option<Ino>),
        exchange: bool,
        who: Actor,
    ) -> Result<(), Stop> {
        self.may_delete(old_dir, old, who)?;
        match new {
            None => self.may(new_dir, WRITE | SEARCH, who)?,
            Some(new) => {
                self.may_delete(new_dir, new, who)?;
                match (self.is_dir(old), self.is_dir(new)) {
                    _ if exchange => {}
                    (true, false) => return Err(Errno::NOTDIR.into()),
                    (false, true) => return Err(Errno::ISDIR.into()),
                    _ => {}
                }
            }
        }
        if old_dir != new_dir {
            // `..` of a directory that moves is written to.
            for ino in [Some(old), new.filter(|_| exchange)].into_iter().flatten() {
                if self.is_dir(ino) {
                    self.may(ino, WRITE, who)?;
                }
            }
        }
        let full = |ino: Ino| self.names_of(ino).is_some_and(|names| !names.is_empty());
        if !exchange && new.is_some_and(full) {
            return Err(Errno::NOTEMPTY.into());
        }
        Ok(())
    }

    /// Puts an inode under a name, and tells a directory where it now is.
    fn place(&mut self, ino: Ino, dir: Ino, name: &[u8]) {
        self.set_name(dir, name, Some(ino));
        if self.is_dir(ino)
            && let Node::Dir { parent, .. } = &mut self.inode_mut(ino).node
        {
            *parent = dir;
        }
    }
}
