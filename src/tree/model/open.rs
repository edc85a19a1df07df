//! Operations that open a file.

use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::access::{READ, SEARCH, WRITE};
use super::inode::Node;
use super::resolve::{Follow, Found, checked};
use super::{Actor, Ino, Model, Stop};
use crate::tree::TreePath;
use crate::tree::build::{CREATE_MODE_FILE, open_flags};
use crate::tree::data::Data;
use crate::tree::op::OpenOp;

/// How a file is to be opened; always without waiting for a FIFO's other end.
#[derive(Clone, Copy, Default)]
pub struct Wanted {
    pub read: bool,
    pub write: bool,
    /// Create it with this mode when it is not there.
    pub create: Option<u32>,
    pub exclusive: bool,
    pub truncate: bool,
    pub directory: bool,
    pub no_follow: bool,
}

/// Files beyond this size do not fit on every filesystem.
const LARGEST_EVERYWHERE: u64 = 1 << 41;

/// Stops at sizes that only some filesystems take.
pub fn beyond_doubt(size: u64, who: Actor) -> Result<(), Stop> {
    if size > LARGEST_EVERYWHERE {
        who.doubt("filesystems differ in the largest file")
    } else {
        Ok(())
    }
}

impl Model {
    /// open(2): gives the inode, which for anything but an [`Wanted::create`]d file stood there before. The order of the
    /// checks is that of do_open() and may_open().
    pub(super) fn open(
        &mut self,
        path: &TreePath,
        wanted: Wanted,
        who: Actor,
    ) -> Result<Ino, Stop> {
        checked(path)?;
        if wanted.create.is_some() && wanted.directory {
            who.doubt("kernels differ in O_CREAT with O_DIRECTORY")?;
        }
        let follow = match wanted.create {
            _ if wanted.no_follow => Follow::No,
            Some(_) if wanted.exclusive => Follow::No,
            Some(_) => Follow::ToCreate,
            None => Follow::Yes,
        };
        let Found { dir, name, ino } = self.walk(path.as_bytes(), follow, who)?;
        let Some(ino) = ino else {
            let mode = wanted.create.ok_or(Errno::NOENT)?;
            self.may(dir, WRITE | SEARCH, who)?;
            let ino = self.make_inode(dir, Node::File(Arc::new(Data::default())), mode, who);
            self.set_name(dir, &name, Some(ino));
            return Ok(ino);
        };
        let is_dir = self.is_dir(ino);
        if wanted.create.is_some() {
            if wanted.exclusive {
                return Err(Errno::EXIST.into());
            }
            if is_dir {
                return Err(Errno::ISDIR.into());
            }
            self.sticky_doubt(dir, ino, who)?;
        }
        if wanted.directory && !is_dir {
            return Err(Errno::NOTDIR.into());
        }
        let mut access = if wanted.read { READ } else { 0 };
        if wanted.write || wanted.truncate {
            access |= WRITE;
        }
        match self.inode(ino).node {
            Node::Symlink(_) => return Err(Errno::LOOP.into()),
            Node::Dir { .. } if access & WRITE != 0 => return Err(Errno::ISDIR.into()),
            Node::Char(_) | Node::Block(_) => who.doubt("a device's driver decides")?,
            _ => {}
        }
        self.may(ino, access, who)?;
        match self.inode(ino).node {
            Node::Socket => return Err(Errno::NXIO.into()),
            Node::Fifo if wanted.write && !wanted.read => return Err(Errno::NXIO.into()),
            Node::File(_) if wanted.truncate => {
                self.written(ino, who);
                self.inode_mut(ino).node = Node::File(Arc::new(Data::default()));
            }
            _ => {}
        }
        Ok(ino)
    }

    /// Writes at an offset, or at the end.
    pub(super) fn write(
        &mut self,
        path: &TreePath,
        at: Option<u64>,
        text: &[u8],
        who: Actor,
    ) -> Result<(), Stop> {
        let ino = self.open(
            path,
            Wanted {
                write: true,
                ..Wanted::default()
            },
            who,
        )?;
        self.write_open(ino, at, text, who)
    }

    fn write_open(
        &mut self,
        ino: Ino,
        at: Option<u64>,
        text: &[u8],
        who: Actor,
    ) -> Result<(), Stop> {
        // A write of nothing is no write.
        if text.is_empty() {
            return Ok(());
        }
        let Node::File(data) = &self.inode(ino).node else {
            // What goes through a FIFO is lost, but its time moves.
            self.inode_mut(ino).mtime = None;
            return Ok(());
        };
        let at = at.unwrap_or(data.size());
        if i64::try_from(at).is_err() {
            return Err(Errno::INVAL.into());
        }
        beyond_doubt(at.saturating_add(text.len() as u64), who)?;
        self.written(ino, who);
        if let Node::File(data) = &mut self.inode_mut(ino).node {
            Arc::make_mut(data).write(at, text);
        }
        Ok(())
    }

    pub(super) fn truncate(&mut self, path: &TreePath, size: u64, who: Actor) -> Result<(), Stop> {
        let ino = self.existing(path, who)?;
        if i64::try_from(size).is_err() {
            return Err(Errno::INVAL.into());
        }
        match self.inode(ino).node {
            Node::Dir { .. } => return Err(Errno::ISDIR.into()),
            Node::File(_) => {}
            _ => return Err(Errno::INVAL.into()),
        }
        self.may(ino, WRITE, who)?;
        beyond_doubt(size, who)?;
        self.written(ino, who);
        if let Node::File(data) = &mut self.inode_mut(ino).node {
            Arc::make_mut(data).set_len(size);
        }
        Ok(())
    }

    pub(super) fn open_op(&mut self, o: &OpenOp, who: Actor) -> Result<(), Stop> {
        // An unknown flag is told when the list is carried out.
        let flags = open_flags(&o.flags).map_err(|_| Errno::INVAL)?;
        let rw = flags.contains(OFlags::RDWR);
        let write = rw || flags.contains(OFlags::WRONLY);
        let wanted = Wanted {
            read: rw || !write,
            write,
            create: flags.contains(OFlags::CREATE).then_some(CREATE_MODE_FILE),
            exclusive: flags.contains(OFlags::EXCL),
            truncate: flags.contains(OFlags::TRUNC),
            directory: flags.contains(OFlags::DIRECTORY),
            // A name with a slash at its end stands for what the link leads to.
            no_follow: flags.contains(OFlags::NOFOLLOW) && !o.slash,
        };
        let ino = self.open(&o.path.0, wanted, who)?;
        match &o.text {
            Some(text) if !text.0.is_empty() && !write => Err(Errno::BADF.into()),
            Some(text) => {
                let at = if flags.contains(OFlags::APPEND) {
                    None
                } else {
                    Some(0)
                };
                self.write_open(ino, at, &text.0, who)
            }
            None => Ok(()),
        }
    }

    /// Only the errno is foretold: what is read is judged where it is read.
    pub(super) fn read(&mut self, path: &TreePath, who: Actor) -> Result<(), Stop> {
        let ino = self.open(
            path,
            Wanted {
                read: true,
                ..Wanted::default()
            },
            who,
        )?;
        match self.inode(ino).node {
            Node::Dir { .. } => Err(Errno::ISDIR.into()),
            // pread(2) wants a file that has offsets.
            Node::Fifo => Err(Errno::SPIPE.into()),
            _ => Ok(()),
        }
    }

    pub(super) fn list(&mut self, path: &TreePath, who: Actor) -> Result<(), Stop> {
        self.open(
            path,
            Wanted {
                read: true,
                directory: true,
                ..Wanted::default()
            },
            who,
        )
        .map(drop)
    }
}
