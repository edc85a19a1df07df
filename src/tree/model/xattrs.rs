//! Extended attributes: xattr(7), and xattr_permission() of Linux.

use rustix::io::Errno;

use super::access::WRITE;
use super::acl::{ACCESS, Acl, DEFAULT};
use super::inode::Node;
use super::{Actor, Ino, Model, Stop};
use crate::sys::xattr::is_internal;
use crate::tree::build::{XATTR_NAME_MAX, XATTR_SIZE_MAX};
use crate::tree::op::Xattrs;

const CAPABILITY: &str = "security.capability";
/// Names and values of one inode that fit on every filesystem: ext4 may have as little as one block of 1024 bytes.
const ROOM_EVERYWHERE: usize = 900;

/// Attributes that other parts of the kernel act on.
fn is_special(name: &str) -> bool {
    is_internal(name.as_bytes())
        || [
            "security.ima",
            "security.evm",
            "security.SMACK",
            "security.apparmor",
        ]
        .iter()
        .any(|p| name.starts_with(p))
}

/// The form of a file capability that is read back as it was written: revision 2.
fn is_plain_capability(value: &[u8]) -> bool {
    value.len() == 20 && value[1..4] == [0, 0, 2] && value[0] <= 1
}

impl Model {
    /// Stops where setting these attributes cannot be foretold, before anything is made.
    pub(super) fn xattrs_doubt(&self, xattrs: &Xattrs, who: Actor) -> Result<(), Stop> {
        let size = xattrs
            .iter()
            .map(|(name, value)| name.len() + value.0.len() + 16)
            .sum();
        room(size, who)?;
        xattrs
            .iter()
            .try_for_each(|(name, value)| value_doubt(name, &value.0, who))
    }

    pub(super) fn set_xattr(
        &mut self,
        ino: Ino,
        name: &str,
        value: &[u8],
        who: Actor,
    ) -> Result<(), Stop> {
        checked(name, value)?;
        let key = name.as_bytes();
        if key == ACCESS || key == DEFAULT {
            return self.set_acl(ino, key, value, who);
        }
        self.may_change_xattr(ino, name, who)?;
        value_doubt(name, value, who)?;
        if is_special(name) {
            return Ok(());
        }
        let inode = self.inode(ino);
        if name == CAPABILITY && !matches!(inode.node, Node::File(_)) {
            who.doubt("a capability on what is no file")?;
        }
        let others = inode
            .xattrs
            .iter()
            .filter(|(k, _)| *k != key)
            .map(|(k, v)| k.len() + v.len() + 16);
        room(others.sum::<usize>() + key.len() + value.len() + 16, who)?;
        self.inode_mut(ino)
            .xattrs
            .insert(key.to_vec(), value.to_vec());
        Ok(())
    }

    pub(super) fn remove_xattr(&mut self, ino: Ino, name: &str, who: Actor) -> Result<(), Stop> {
        let key = name.as_bytes();
        if key == ACCESS || key == DEFAULT {
            return self.remove_acl(ino, key, who);
        }
        self.may_change_xattr(ino, name, who)?;
        if is_special(name) {
            return who.doubt("the attribute is not a layer's");
        }
        if self.inode(ino).xattrs.contains_key(key) {
            self.inode_mut(ino).xattrs.remove(key);
            return Ok(());
        }
        Err(Errno::NODATA.into())
    }

    fn may_change_xattr(&self, ino: Ino, name: &str, who: Actor) -> Result<(), Stop> {
        let inode = self.inode(ino);
        let (space, rest) = name.split_once('.').unwrap_or((name, ""));
        match space {
            "trusted" | "security" if !who.all_powerful() => return Err(Errno::PERM.into()),
            "trusted" | "security" => {}
            "system" => return Err(Errno::OPNOTSUPP.into()),
            "user" => {
                let sticky_dir = match inode.node {
                    Node::File(_) => false,
                    Node::Dir { .. } => inode.mode & 0o1000 != 0,
                    _ => return Err(Errno::PERM.into()),
                };
                if sticky_dir && !who.owns(inode) {
                    return Err(Errno::PERM.into());
                }
                self.may(ino, WRITE, who)?;
            }
            _ => {
                self.may(ino, WRITE, who)?;
                return Err(Errno::OPNOTSUPP.into());
            }
        }
        if rest.is_empty() {
            who.doubt("an attribute without a name")
        } else {
            Ok(())
        }
    }

    fn set_acl(&mut self, ino: Ino, key: &[u8], value: &[u8], who: Actor) -> Result<(), Stop> {
        let inode = self.inode(ino);
        if matches!(inode.node, Node::Symlink(_)) {
            return Err(Errno::OPNOTSUPP.into());
        }
        let Some(mut acl) = Acl::parse(value) else {
            return who.doubt("an access control list that the kernel may refuse");
        };
        if key == DEFAULT && !matches!(inode.node, Node::Dir { .. }) {
            return Err(Errno::ACCESS.into());
        }
        if !who.owns(inode) {
            return Err(Errno::PERM.into());
        }
        let in_group = who.capable || who.gid == inode.owner.gid;
        let inode = self.inode_mut(ino);
        if key == DEFAULT {
            inode.xattrs.insert(DEFAULT.to_vec(), acl.to_bytes());
            return Ok(());
        }
        inode.mode = inode.mode & !0o777 | acl.mode();
        if !in_group {
            inode.mode &= !0o2000;
        }
        if acl.is_minimal() {
            inode.xattrs.remove(ACCESS);
        } else {
            inode.xattrs.insert(ACCESS.to_vec(), acl.to_bytes());
        }
        Ok(())
    }

    fn remove_acl(&mut self, ino: Ino, key: &[u8], who: Actor) -> Result<(), Stop> {
        let inode = self.inode(ino);
        if !inode.xattrs.contains_key(key) {
            return who.doubt("removing an access control list that is not there");
        }
        if !who.owns(inode) {
            return Err(Errno::PERM.into());
        }
        if inode.mode & 0o2000 != 0 && !who.capable && who.gid != inode.owner.gid {
            who.doubt("filesystems differ in whether setgid goes with an access control list")?;
        }
        self.inode_mut(ino).xattrs.remove(key);
        Ok(())
    }
}

/// What the kernel looks at before anything else.
pub fn checked(name: &str, value: &[u8]) -> Result<(), Stop> {
    if name.is_empty() || name.len() > XATTR_NAME_MAX {
        return Err(Errno::RANGE.into());
    }
    if value.len() > XATTR_SIZE_MAX {
        Err(Errno::TOOBIG.into())
    } else {
        Ok(())
    }
}

fn room(size: usize, who: Actor) -> Result<(), Stop> {
    if size > ROOM_EVERYWHERE {
        who.doubt("filesystems differ in the room for attributes")
    } else {
        Ok(())
    }
}

fn value_doubt(name: &str, value: &[u8], who: Actor) -> Result<(), Stop> {
    let key = name.as_bytes();
    let doubtful = match name {
        CAPABILITY => !is_plain_capability(value),
        _ if key == ACCESS || key == DEFAULT => Acl::parse(value).is_none(),
        _ => is_special(name),
    };
    if doubtful {
        who.doubt("the kernel acts on this attribute")
    } else {
        Ok(())
    }
}
