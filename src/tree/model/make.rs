//! Operations that make something.

use std::sync::Arc;

use rustix::io::Errno;

use super::access::{SEARCH, WRITE};
use super::inode::Node;
use super::open::{Wanted, beyond_doubt};
use super::{Actor, Ino, Model, Stop};
use crate::sys::fs::PATH_MAX;
use crate::tree::build::{CREATE_MODE_DIR, CREATE_MODE_FILE};
use crate::tree::data::Data;
use crate::tree::op::{DirOp, FileOp, Mode, OwnerText, SymlinkOp, Time, Xattrs};
use crate::tree::{Rdev, TreePath};

/// The attributes that most making operations may set: mode, owner, modification time.
pub type Attributes<'a> = (&'a Option<Mode>, &'a Option<OwnerText>, &'a Option<Time>);

impl Model {
    pub(super) fn file(&mut self, o: &FileOp, who: Actor) -> Result<(), Stop> {
        self.xattrs_doubt(&o.xattrs, who)?;
        beyond_doubt(o.size.as_ref().map_or(0, |s| s.0), who)?;
        let create = o.mode.as_ref().map_or(CREATE_MODE_FILE, |m| m.0) & 0o777;
        let wanted = Wanted {
            write: true,
            create: Some(create),
            truncate: true,
            ..Wanted::default()
        };
        let ino = self.open(&o.path.0, wanted, who)?;
        let data = Data::of_op(o);
        if data.size() > 0 {
            self.written(ino, who);
        }
        self.inode_mut(ino).node = Node::File(Arc::new(data));
        self.attributes(ino, (&o.mode, &o.owner, &None), who)?;
        self.set_xattrs(ino, &o.xattrs, who)?;
        self.attributes(ino, (&None, &None, &o.mtime), who)
    }

    fn attributes(
        &mut self,
        ino: Ino,
        (mode, owner, mtime): Attributes<'_>,
        who: Actor,
    ) -> Result<(), Stop> {
        if let Some(owner) = owner {
            self.chown(ino, owner.0, who)?;
        }
        if let Some(mode) = mode {
            self.chmod(ino, mode.0, who)?;
        }
        if let Some(time) = mtime {
            self.touch(ino, time.0, who)?;
        }
        Ok(())
    }

    fn set_xattrs(&mut self, ino: Ino, xattrs: &Xattrs, who: Actor) -> Result<(), Stop> {
        xattrs
            .iter()
            .try_for_each(|(name, value)| self.set_xattr(ino, name, &value.0, who))
    }

    /// The directory for a new name, which must not exist.
    fn vacant(&self, path: &TreePath, who: Actor) -> Result<Ino, Stop> {
        if path.is_root() {
            return Err(Errno::EXIST.into());
        }
        let dir = self.dir_of(path, who)?;
        match self.lookup(dir, path.base(), who)? {
            Some(_) => Err(Errno::EXIST.into()),
            None => self.may(dir, WRITE | SEARCH, who).map(|()| dir),
        }
    }

    fn make(&mut self, dir: Ino, path: &TreePath, node: Node, mode: u32, who: Actor) -> Ino {
        let ino = self.make_inode(dir, node, mode, who);
        self.set_name(dir, path.base(), Some(ino));
        ino
    }

    pub(super) fn dir(&mut self, o: &DirOp, who: Actor) -> Result<(), Stop> {
        self.xattrs_doubt(&o.xattrs, who)?;
        let dir = self.vacant(&o.path.0, who)?;
        let create = o.mode.as_ref().map_or(CREATE_MODE_DIR, |m| m.0) & 0o777;
        let node = Node::Dir {
            names: Default::default(),
            parent: dir,
        };
        let ino = self.make(dir, &o.path.0, node, create, who);
        self.attributes(ino, (&o.mode, &o.owner, &None), who)?;
        self.set_xattrs(ino, &o.xattrs, who)
    }

    pub(super) fn symlink(&mut self, o: &SymlinkOp, who: Actor) -> Result<(), Stop> {
        // The longest target that every filesystem takes is XFS's.
        const LONGEST_EVERYWHERE: usize = 1023;
        if o.path.0.is_root() {
            return Err(Errno::EXIST.into());
        }
        let dir = self.dir_of(&o.path.0, who)?;
        let target = &o.to.0;
        // The kernel reads the target before it looks at the name.
        match target.len() {
            0 => return Err(Errno::NOENT.into()),
            PATH_MAX.. => return Err(Errno::NAMETOOLONG.into()),
            _ if target.contains(&0) => return Err(Errno::INVAL.into()),
            _ => {}
        }
        if self.lookup(dir, o.path.0.base(), who)?.is_some() {
            return Err(Errno::EXIST.into());
        }
        self.may(dir, WRITE | SEARCH, who)?;
        if target.len() > LONGEST_EVERYWHERE {
            who.doubt("filesystems differ in the longest target of a symbolic link")?;
        }
        let ino = self.make(dir, &o.path.0, Node::Symlink(target.clone()), 0o777, who);
        self.attributes(ino, (&None, &o.owner, &o.mtime), who)
    }

    pub(super) fn special(
        &mut self,
        path: &TreePath,
        node: Node,
        how: Attributes<'_>,
        who: Actor,
    ) -> Result<(), Stop> {
        let dir = self.vacant(path, who)?;
        let whiteout = Rdev { major: 0, minor: 0 };
        match node {
            Node::Char(dev) if dev == whiteout => {
                who.doubt("a character device 0:0 is a whiteout to overlayfs")?
            }
            Node::Char(_) | Node::Block(_) if !who.all_powerful() => return Err(Errno::PERM.into()),
            _ => {}
        }
        let create = how.0.as_ref().map_or(CREATE_MODE_FILE, |m| m.0) & 0o777;
        let ino = self.make(dir, path, node, create, who);
        self.attributes(ino, how, who)
    }

    /// A file with the content of another one.
    pub(super) fn clone_file(
        &mut self,
        from: &TreePath,
        new: &TreePath,
        who: Actor,
    ) -> Result<(), Stop> {
        let read = Wanted {
            read: true,
            ..Wanted::default()
        };
        let from = self.open(from, read, who)?;
        let Node::File(data) = &self.inode(from).node else {
            return Err(Errno::INVAL.into());
        };
        let data = data.clone();
        who.doubt("not every filesystem shares blocks")?;
        let dir = self.vacant(new, who)?;
        self.make(dir, new, Node::File(data), CREATE_MODE_FILE, who);
        Ok(())
    }

    /// A file that has no name until its content is there.
    pub(super) fn unnamed(&mut self, new: &TreePath, text: &[u8], who: Actor) -> Result<(), Stop> {
        who.doubt("not every filesystem makes files without names")?;
        let dir = self.vacant(new, who)?;
        let mut data = Data::default();
        data.write(0, text);
        self.make(dir, new, Node::File(Arc::new(data)), CREATE_MODE_FILE, who);
        Ok(())
    }

    pub(super) fn hardlink(
        &mut self,
        existing: &TreePath,
        new: &TreePath,
        who: Actor,
    ) -> Result<(), Stop> {
        let old_dir = self.dir_of(existing, who)?;
        if new.is_root() {
            return Err(Errno::EXIST.into());
        }
        let new_dir = self.dir_of(new, who)?;
        let ino = self
            .lookup(old_dir, existing.base(), who)?
            .ok_or(Errno::NOENT)?;
        if self.lookup(new_dir, new.base(), who)?.is_some() {
            return Err(Errno::EXIST.into());
        }
        if !who.owns(self.inode(ino)) {
            who.doubt("the machine may protect hard links")?;
        }
        self.may(new_dir, WRITE | SEARCH, who)?;
        if self.is_dir(ino) {
            return Err(Errno::PERM.into());
        }
        self.inode_mut(ino).names += 1;
        self.set_name(new_dir, new.base(), Some(ino));
        Ok(())
    }
}
