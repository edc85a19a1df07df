//! Who may do what: mode bits, ownership, and what writing and changing owners take away.

use rustix::io::Errno;

use super::acl::{ACCESS, Acl};
use super::inode::{Inode, Node};
use super::{Actor, Ino, Model, Stop};
use crate::tree::{Owner, Timestamp};

pub const READ: u32 = 4;
pub const WRITE: u32 = 2;
pub const SEARCH: u32 = 1;

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
const CAPABILITY: &[u8] = b"security.capability";

impl Actor {
    /// Owner of the inode, or as good as one (`CAP_FOWNER`).
    pub fn owns(self, inode: &Inode) -> bool {
        self.all_powerful() || self.uid == inode.owner.uid
    }

    fn in_group(self, inode: &Inode) -> bool {
        self.capable || self.gid == inode.owner.gid
    }
}

impl Model {
    /// inode_permission(): `EACCES` when the mode forbids it.
    pub(super) fn may(&self, ino: Ino, want: u32, who: Actor) -> Result<(), Stop> {
        let inode = self.inode(ino);
        if who.all_powerful() {
            return Ok(());
        }
        let shift = if who.uid == inode.owner.uid {
            6
        } else if inode.xattrs.contains_key(ACCESS) {
            return who.doubt("an access control list decides");
        } else if who.gid == inode.owner.gid {
            3
        } else {
            0
        };
        if (inode.mode >> shift) & want == want {
            Ok(())
        } else {
            Err(Errno::ACCESS.into())
        }
    }

    /// may_delete() of Linux: the right to take a name out of a directory.
    pub(super) fn may_delete(&self, dir: Ino, child: Ino, who: Actor) -> Result<(), Stop> {
        self.may(dir, WRITE | SEARCH, who)?;
        let parent = self.inode(dir);
        let sticky = parent.mode & STICKY != 0;
        if sticky && !who.owns(self.inode(child)) && !who.owns(parent) {
            return Err(Errno::PERM.into());
        }
        Ok(())
    }

    /// `fs.protected_regular`, `fs.protected_fifos` and `fs.protected_symlinks` forbid things, to root too, in sticky
    /// directories that others may write to; whether they are on is the machine's choice.
    pub(super) fn sticky_doubt(&self, dir: Ino, child: Ino, who: Actor) -> Result<(), Stop> {
        let (parent, inode) = (self.inode(dir), self.inode(child));
        let shared = parent.mode & STICKY != 0 && parent.mode & 0o022 != 0;
        if shared && inode.owner.uid != parent.owner.uid && inode.owner.uid != who.uid {
            return who.doubt("the machine may protect sticky directories");
        }
        Ok(())
    }

    pub(super) fn chmod(&mut self, ino: Ino, mode: u32, who: Actor) -> Result<(), Stop> {
        let inode = self.inode(ino);
        if !who.owns(inode) {
            return Err(Errno::PERM.into());
        }
        let keep = if who.in_group(inode) {
            mode
        } else {
            mode & !SETGID
        };
        let inode = self.inode_mut(ino);
        inode.mode = keep;
        if let Some(blob) = inode.xattrs.get_mut(ACCESS)
            && let Some(mut acl) = Acl::parse(blob)
        {
            acl.chmod(keep);
            *blob = acl.to_bytes();
        }
        Ok(())
    }

    pub(super) fn chown(&mut self, ino: Ino, owner: Owner, who: Actor) -> Result<(), Stop> {
        let inode = self.inode(ino);
        let own = who.uid == inode.owner.uid;
        let uid_fine = own && owner.uid == inode.owner.uid;
        let gid_fine = own && (owner.gid == inode.owner.gid || owner.gid == who.gid);
        let fine = who.all_powerful() || (uid_fine && gid_fine);
        if !fine {
            return Err(Errno::PERM.into());
        }
        let drops = Self::setgid_goes(inode, who);
        let inode = self.inode_mut(ino);
        inode.owner = owner;
        // chown_common(): a new owner must not inherit a program's powers, whoever gives it away.
        if !matches!(inode.node, Node::Dir { .. }) {
            inode.xattrs.remove(CAPABILITY);
            inode.mode &= !SETUID;
            if drops {
                inode.mode &= !SETGID;
            }
        }
        Ok(())
    }

    /// setattr_should_drop_sgid() of Linux 6.2 and later.
    fn setgid_goes(inode: &Inode, who: Actor) -> bool {
        inode.mode & 0o010 != 0 || !who.in_group(inode)
    }

    pub(super) fn chown_tree(
        &mut self,
        ino: Ino,
        owner: Owner,
        recursive: bool,
        who: Actor,
    ) -> Result<(), Stop> {
        self.chown(ino, owner, who)?;
        if recursive && let Some(names) = self.names_of(ino) {
            let below: Vec<Ino> = names.values().copied().collect();
            self.may(ino, READ, who)?;
            for child in below {
                self.may(ino, SEARCH, who)?;
                self.chown_tree(child, owner, true, who)?;
            }
        }
        Ok(())
    }

    pub(super) fn touch(&mut self, ino: Ino, time: Timestamp, who: Actor) -> Result<(), Stop> {
        if !who.owns(self.inode(ino)) {
            return Err(Errno::PERM.into());
        }
        self.inode_mut(ino).mtime = Some(time);
        Ok(())
    }

    /// file_remove_privs(): what a write or a truncation takes away. File capabilities go even when root writes.
    pub(super) fn written(&mut self, ino: Ino, who: Actor) {
        let drops = Self::setgid_goes(self.inode(ino), who);
        let inode = self.inode_mut(ino);
        inode.mtime = None;
        inode.xattrs.remove(CAPABILITY);
        if !who.capable {
            inode.mode &= !SETUID;
            if drops {
                inode.mode &= !SETGID;
            }
        }
    }

    /// The inode that a user makes in a directory: setgid directories hand on their group, and themselves.
    pub(super) fn make_inode(&mut self, dir: Ino, node: Node, mode: u32, who: Actor) -> Ino {
        let parent = self.inode(dir);
        let inherits = parent.mode & SETGID != 0;
        let gid = if inherits { parent.owner.gid } else { who.gid };
        let is_dir = matches!(node, Node::Dir { .. });
        let extra = if inherits && is_dir { SETGID } else { 0 };
        let mut inode = Inode::new(node, mode, who.uid, gid);
        super::acl::inherit(parent, &mut inode);
        inode.mode |= extra;
        self.add_inode(inode)
    }
}
