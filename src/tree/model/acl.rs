//! POSIX access control lists, as attributes hold them: acl(5), include/uapi/linux/posix_acl_xattr.h.

use super::inode::{Inode, Node};

/// The attribute of the list that decides about access.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute of the list that what is made inside inherits.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;

/// An access control list in the kernel's order.
pub struct Acl(Vec<(u16, u16, u32)>);

impl Acl {
    /// A list that the kernel would take; `None` for anything else.
    pub fn parse(blob: &[u8]) -> Option<Self> {
        let (head, body) = blob.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*head) != VERSION || !body.len().is_multiple_of(8) {
            return None;
        }
        let mut entries = Vec::new();
        for e in body.chunks_exact(8) {
            let tag = u16::from_le_bytes([e[0], e[1]]);
            let id = u32::from_le_bytes([e[4], e[5], e[6], e[7]]);
            let id = if matches!(tag, USER | GROUP) {
                id
            } else {
                NO_ID
            };
            entries.push((tag, u16::from_le_bytes([e[2], e[3]]), id));
        }
        let sound = entries.iter().all(|(_, perm, _)| *perm <= 7)
            && entries.is_sorted_by_key(|(tag, ..)| *tag);
        let count = |wanted: u16| entries.iter().filter(|(tag, ..)| *tag == wanted).count();
        let named = count(USER) + count(GROUP);
        let base = [USER_OBJ, GROUP_OBJ, OTHER]
            .iter()
            .all(|tag| count(*tag) == 1);
        let mask = count(MASK) == 1 || (named == 0 && count(MASK) == 0);
        let known = named + count(MASK) + 3 == entries.len();
        (sound && base && mask && known).then_some(Self(entries))
    }

    /// The attribute's value.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for (tag, perm, id) in &self.0 {
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&perm.to_le_bytes());
            out.extend_from_slice(&id.to_le_bytes());
        }
        out
    }

    /// Whether mode bits can say the same.
    pub fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    fn perm_mut(&mut self, wanted: u16) -> Option<&mut u16> {
        self.0
            .iter_mut()
            .find(|(tag, ..)| *tag == wanted)
            .map(|(_, perm, _)| perm)
    }

    /// The entry that the mode's group bits stand for: the mask, if there is one.
    fn group_class(&mut self) -> Option<&mut u16> {
        let tag = if self.0.iter().any(|(tag, ..)| *tag == MASK) {
            MASK
        } else {
            GROUP_OBJ
        };
        self.perm_mut(tag)
    }

    /// The permission bits that go with the list.
    pub fn mode(&mut self) -> u32 {
        let user = self.perm_mut(USER_OBJ).map_or(0, |p| u32::from(*p));
        let group = self.group_class().map_or(0, |p| u32::from(*p));
        let other = self.perm_mut(OTHER).map_or(0, |p| u32::from(*p));
        user << 6 | group << 3 | other
    }

    /// posix_acl_chmod(): the list follows the mode.
    pub fn chmod(&mut self, mode: u32) {
        self.combine(mode, |_, bits| bits);
    }

    /// posix_acl_create(): the list allows no more than the mode that was asked for.
    fn masked_by(&mut self, mode: u32) {
        self.combine(mode, |perm, bits| perm & bits);
    }

    fn combine(&mut self, mode: u32, join: fn(u16, u16) -> u16) {
        let bits = |shift: u32| ((mode >> shift) & 7) as u16;
        let join_into = |perm: Option<&mut u16>, bits| {
            if let Some(perm) = perm {
                *perm = join(*perm, bits);
            }
        };
        join_into(self.perm_mut(USER_OBJ), bits(6));
        join_into(self.group_class(), bits(3));
        join_into(self.perm_mut(OTHER), bits(0));
    }
}

/// What a new inode gets from its directory's default list. Symbolic links get nothing.
pub fn inherit(parent: &Inode, child: &mut Inode) {
    if matches!(child.node, Node::Symlink(_)) {
        return;
    }
    let Some(blob) = parent.xattrs.get(DEFAULT) else {
        return;
    };
    let Some(mut acl) = Acl::parse(blob) else {
        return;
    };
    acl.masked_by(child.mode);
    child.mode = child.mode & !0o777 | acl.mode();
    if !acl.is_minimal() {
        child.xattrs.insert(ACCESS.to_vec(), acl.to_bytes());
    }
    if matches!(child.node, Node::Dir { .. }) {
        child.xattrs.insert(DEFAULT.to_vec(), blob.clone());
    }
}
