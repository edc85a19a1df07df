//! Extended attributes in the form that archives hold.

use super::{IdMaps, Unmapped};
use crate::tree::Owner;

/// Rewrites a file capability of revision 3, which names the root user of a namespace, as revision 2, the one that archives hold.
pub(super) fn to_capability_v2(value: &mut Vec<u8>) {
    const REVISION_2: u8 = 2;
    const REVISION_3: u8 = 3;
    const SIZE_2: usize = 20;
    // The revision is the highest byte of the first number, which is little-endian (VFS_CAP_REVISION_MASK).
    if value.len() > SIZE_2 && value[3] == REVISION_3 {
        value[3] = REVISION_2;
        value.truncate(SIZE_2);
    }
}

/// Maps the named users and groups of a POSIX ACL in its attribute form (`linux/posix_acl_xattr.h`): a version number, then entries of
/// tag (2 bytes), permissions (2 bytes) and id (4 bytes), little-endian.
pub(super) fn map_acl(value: &mut [u8], maps: &IdMaps) -> Result<(), Unmapped> {
    const USER: u16 = 0x02;
    const GROUP: u16 = 0x08;
    // Maps take a uid and a gid together; the one that is not asked for is root's.
    let root = maps.remapped_root()?;
    let Some(entries) = value.get_mut(4..) else {
        return Ok(());
    };
    for entry in entries.chunks_exact_mut(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let mapped = match tag {
            USER => maps.to_container(Owner { uid: id, ..root })?.uid,
            GROUP => maps.to_container(Owner { gid: id, ..root })?.gid,
            _ => continue,
        };
        entry[4..8].copy_from_slice(&mapped.to_le_bytes());
    }
    Ok(())
}
