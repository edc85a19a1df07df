//! Subvolumes and snapshots.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::Errno;
use rustix::ioctl::{Getter, NoArg, Setter, Updater, ioctl, opcode};

use super::MAGIC;
use super::search::{DEFAULT_SUBVOLUME, ROOT_DIR, find_item};

/// `f_type` of a btrfs.
const FILESYSTEM: u32 = 0x9123_683e;

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct Named {
    fd: i64,
    name: [u8; 4088],
}

/// `struct btrfs_ioctl_vol_args_v2`, without flags.
#[repr(C)]
struct Snapshot {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

/// `struct btrfs_ioctl_timespec`.
#[repr(C)]
struct RawTime {
    secs: u64,
    nanos: u32,
    unused: u32,
}

/// `struct btrfs_ioctl_get_subvol_info_args`.
#[repr(C)]
struct RawInfo {
    id: u64,
    name: [u8; 256],
    parent_id: u64,
    dir_id: u64,
    generation: u64,
    flags: u64,
    uuid: [u8; 16],
    parent_uuid: [u8; 16],
    received_uuid: [u8; 16],
    changed: u64,
    original: u64,
    sent: u64,
    received: u64,
    changed_at: RawTime,
    made_at: RawTime,
    sent_at: RawTime,
    received_at: RawTime,
    reserved: [u64; 8],
}

/// `struct btrfs_ioctl_get_subvol_rootref_args`.
#[repr(C)]
struct RootRefs {
    from: u64,
    refs: [[u64; 2]; 255],
    count: u8,
    unused: [u8; 7],
}

/// `struct btrfs_ioctl_ino_lookup_user_args`.
#[repr(C)]
struct LookUpUser {
    dir: u64,
    tree: u64,
    name: [u8; 256],
    path: [u8; 3824],
}

const _: () = {
    assert!(size_of::<Named>() == 4096);
    assert!(size_of::<Snapshot>() == 4096);
    assert!(size_of::<RawInfo>() == 504);
    assert!(size_of::<RootRefs>() == 4096);
    assert!(size_of::<LookUpUser>() == 4096);
};

const SYNC: u32 = opcode::none(MAGIC, 8);
const SUBVOL_CREATE: u32 = opcode::write::<Named>(MAGIC, 14);
const SNAP_DESTROY: u32 = opcode::write::<Named>(MAGIC, 15);
const DEFAULT_SUBVOL: u32 = opcode::write::<u64>(MAGIC, 19);
const SNAP_CREATE_V2: u32 = opcode::write::<Snapshot>(MAGIC, 23);
const SUBVOL_GETFLAGS: u32 = opcode::read::<u64>(MAGIC, 25);
const SUBVOL_SETFLAGS: u32 = opcode::write::<u64>(MAGIC, 26);
const GET_SUBVOL_INFO: u32 = opcode::read::<RawInfo>(MAGIC, 60);
const GET_SUBVOL_ROOTREF: u32 = opcode::read_write::<RootRefs>(MAGIC, 61);
const INO_LOOKUP_USER: u32 = opcode::read_write::<LookUpUser>(MAGIC, 62);

/// What the filesystem knows about a subvolume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// The id of its tree, and the lower part of its quota group's.
    pub id: u64,
    /// Its identity, never the same for two.
    pub uuid: [u8; 16],
    /// The identity of what it is a snapshot of; zero when it is none.
    pub parent_uuid: [u8; 16],
    /// The transaction in which it was made.
    pub made_in: u64,
    /// The time of day at which it was made, in nanoseconds since 1970.
    pub made_at: u128,
}

/// A subvolume inside another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nested {
    /// The directory that holds it, relative to the outer subvolume's root; empty for the root itself.
    pub dir: Vec<u8>,
    /// Its name there.
    pub name: Vec<u8>,
}

/// A name as the kernel takes it: at most 255 bytes, no `/`, ended by NUL.
fn fixed<const N: usize>(name: &[u8]) -> Result<[u8; N], Errno> {
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
        return Err(Errno::INVAL);
    }
    if name.len() > 255 {
        return Err(Errno::NAMETOOLONG);
    }
    let mut out = [0; N];
    out[..name.len()].copy_from_slice(name);
    Ok(out)
}

fn until_nul(bytes: &[u8]) -> Vec<u8> {
    CStr::from_bytes_until_nul(bytes).map_or_else(|_| bytes.to_vec(), |s| s.to_bytes().to_vec())
}

/// Whether an open directory is the root of a subvolume. Inode 256 alone says nothing: other filesystems have one, too.
///
/// # Errors
/// Those of fstat(2) and fstatfs(2).
pub fn is_subvolume(dir: BorrowedFd<'_>) -> Result<bool, Errno> {
    let st = rustix::fs::fstat(dir)?;
    if st.st_ino != ROOT_DIR || !rustix::fs::FileType::from_raw_mode(st.st_mode).is_dir() {
        return Ok(false);
    }
    // The field is signed and wider than 32 bits on most architectures; the magic is its low half.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let on = rustix::fs::fstatfs(dir)?.f_type as u32;
    Ok(on == FILESYSTEM)
}

/// Makes an empty subvolume in an open directory. Its mode is 0777 less the umask.
///
/// # Errors
/// `EEXIST`, `ENOTTY` on another filesystem, and those of mkdir(2).
pub fn create_subvolume(dir: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let args = Named {
        fd: 0,
        name: fixed(name.as_bytes())?,
    };
    // SAFETY: the ioctl reads the structure that its number says, and nothing else.
    unsafe { ioctl(dir, Setter::<SUBVOL_CREATE, Named>::new(args)) }
}

/// Makes a writable snapshot of the subvolume `source` in an open directory of the same filesystem. Subvolumes nested in it appear
/// as empty directories.
///
/// # Errors
/// `EEXIST`, `EXDEV` on another filesystem, `EINVAL` when `source` is no subvolume, and those of mkdir(2).
pub fn snapshot(dir: BorrowedFd<'_>, name: &[u8], source: BorrowedFd<'_>) -> Result<(), Errno> {
    let args = Snapshot {
        fd: i64::from(source.as_raw_fd()),
        transid: 0,
        flags: 0,
        unused: [0; 4],
        name: fixed(name)?,
    };
    // SAFETY: the ioctl reads the structure that its number says; the descriptor in it is open for as long as the call lasts.
    unsafe { ioctl(dir, Setter::<SNAP_CREATE_V2, Snapshot>::new(args)) }
}

/// Deletes the subvolume `name` of an open directory with all that is in it; what is mounted inside is detached. Its space comes
/// back later, in the background.
///
/// # Errors
/// `ENOTEMPTY` when it holds other subvolumes, `EINVAL` when it is no subvolume, `EPERM` without the right, and for the filesystem's
/// default subvolume; `ENOENT`.
pub fn destroy(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let args = Named {
        fd: 0,
        name: fixed(name)?,
    };
    // SAFETY: the ioctl reads the structure that its number says, and nothing else.
    unsafe { ioctl(dir, Setter::<SNAP_DESTROY, Named>::new(args)) }
}

/// What the filesystem knows about the subvolume that `fd` lies in (kernel 4.18).
///
/// # Errors
/// `ENOTTY` on another filesystem or an older kernel.
pub fn info(fd: BorrowedFd<'_>) -> Result<Info, Errno> {
    // SAFETY: the ioctl fills the structure that its number says.
    let raw: RawInfo = unsafe { ioctl(fd, Getter::<GET_SUBVOL_INFO, RawInfo>::new()) }?;
    Ok(Info {
        id: raw.id,
        uuid: raw.uuid,
        parent_uuid: raw.parent_uuid,
        made_in: raw.original,
        made_at: u128::from(raw.made_at.secs) * 1_000_000_000 + u128::from(raw.made_at.nanos),
    })
}

/// The subvolumes that lie directly in this one, however deep in its directories (kernel 4.18). `root` is its root directory.
///
/// # Errors
/// `ENOTTY` on another filesystem or an older kernel, `ENAMETOOLONG` for one below a path of more than about 3800 bytes.
pub fn nested(root: BorrowedFd<'_>) -> io::Result<Vec<Nested>> {
    let mut found = Vec::new();
    let mut refs = Box::new(RootRefs {
        from: 0,
        refs: [[0; 2]; 255],
        count: 0,
        unused: [0; 7],
    });
    loop {
        // SAFETY: the ioctl reads and fills the structure that its number says.
        let done = unsafe {
            ioctl(
                root,
                Updater::<GET_SUBVOL_ROOTREF, RootRefs>::new(&mut refs),
            )
        };
        // EOVERFLOW: there are more than fit; `from` says where to go on.
        let more = match done {
            Ok(()) => false,
            Err(Errno::OVERFLOW) => true,
            Err(e) => return Err(e.into()),
        };
        for [tree, dir] in refs.refs.iter().take(usize::from(refs.count)) {
            match look_up(root, *tree, *dir) {
                Ok(nested) => found.push(nested),
                // Deleted meanwhile.
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e.into()),
            }
        }
        if !more {
            return Ok(found);
        }
    }
}

fn look_up(root: BorrowedFd<'_>, tree: u64, dir: u64) -> Result<Nested, Errno> {
    let mut args = Box::new(LookUpUser {
        dir,
        tree,
        name: [0; 256],
        path: [0; 3824],
    });
    // SAFETY: the ioctl reads and fills the structure that its number says.
    unsafe { ioctl(root, Updater::<INO_LOOKUP_USER, LookUpUser>::new(&mut args)) }?;
    let mut dir = until_nul(&args.path);
    if dir.last() == Some(&b'/') {
        dir.pop();
    }
    Ok(Nested {
        dir,
        name: until_nul(&args.name),
    })
}

/// `BTRFS_SUBVOL_RDONLY` of linux/btrfs.h.
const READ_ONLY: u64 = 2;

/// Whether the subvolume whose root is `root` is read-only, however it is mounted.
///
/// # Errors
/// `EINVAL` when it is no subvolume, `ENOTTY` on another filesystem.
pub fn is_read_only(root: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(flags(root)? & READ_ONLY != 0)
}

fn flags(root: BorrowedFd<'_>) -> Result<u64, Errno> {
    // SAFETY: the ioctl writes a number.
    unsafe { ioctl(root, Getter::<SUBVOL_GETFLAGS, u64>::new()) }
}

/// Makes the subvolume whose root is `root` read-only, as those that were received are, or writable; that it is so already is success.
///
/// # Errors
/// `EPERM` for who does not own it, `EROFS`, `EINVAL` when it is no subvolume, `ENOTTY` on another filesystem.
pub fn set_read_only(root: BorrowedFd<'_>, read_only: bool) -> Result<(), Errno> {
    let flags = flags(root)?;
    let wanted = if read_only {
        flags | READ_ONLY
    } else {
        flags & !READ_ONLY
    };
    if wanted == flags {
        return Ok(());
    }
    // SAFETY: the ioctl reads the number that it is given, and nothing else.
    unsafe { ioctl(root, Setter::<SUBVOL_SETFLAGS, u64>::new(wanted)) }
}

/// Writes out everything that is dirty and ends the running transaction, so that the trees are what the files are.
///
/// # Errors
/// `ENOTTY` on another filesystem, and those of a failed write.
pub fn sync(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the ioctl takes no argument.
    unsafe { ioctl(fd, NoArg::<SYNC>::new()) }
}

/// Whether this subvolume is the one that is mounted when none is named.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN.
pub fn is_default(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let id = info(fd)?.id;
    // A directory item whose key says which subvolume is meant.
    let item = find_item(fd.as_fd(), DEFAULT_SUBVOLUME)?;
    Ok(item.is_some_and(|item| item.get(..8) == Some(&id.to_le_bytes()[..])))
}

/// From now on the subvolume that `fd` lies in is mounted when none is named.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `EROFS`, `ENOTTY` on another filesystem.
pub fn set_default(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let id = info(fd)?.id;
    // SAFETY: the ioctl reads the number that it is given, and nothing else.
    unsafe { ioctl(fd, Setter::<DEFAULT_SUBVOL, u64>::new(id)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_the_kernel_sees_them() {
        assert_eq!(
            fixed::<300>(b"ab").map(|n| n[..3].to_vec()),
            Ok(b"ab\0".to_vec())
        );
        assert_eq!(fixed::<300>(&[b'x'; 255]).map(|n| n[255]), Ok(0));
        assert_eq!(fixed::<300>(&[b'x'; 256]), Err(Errno::NAMETOOLONG));
        for bad in [&b""[..], b"a/b", b"a\0b"] {
            assert_eq!(fixed::<300>(bad), Err(Errno::INVAL));
        }
    }

    #[test]
    fn other_filesystems_have_no_subvolumes() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        assert_eq!(is_subvolume(fd.as_fd()), Ok(false));
        assert_eq!(create_subvolume(fd.as_fd(), "s"), Err(Errno::NOTTY));
        assert_eq!(info(fd.as_fd()), Err(Errno::NOTTY));
        assert_eq!(set_default(fd.as_fd()), Err(Errno::NOTTY));
        assert!(nested(fd.as_fd()).is_err());
    }
}
