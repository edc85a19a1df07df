//! Project quotas: the project id of an inode (`FS_IOC_FSGETXATTR`) and limits on a project's space, by quotactl_fd(2) or, on
//! kernels before 5.14, by quotactl(2) with a block device node.
//!
//! The commands are those of XFS (`Q_XGETQUOTA` and its like, `linux/dqblk_xfs.h`), which the kernel carries out on every
//! filesystem with quotas, ext4 and f2fs too.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::libc;
use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use rustix::ioctl::{Getter, Setter, ioctl, opcode};

/// `struct fsxattr` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

const FSGETXATTR: rustix::ioctl::Opcode = opcode::read::<FsXattr>(b'X', 31);
const FSSETXATTR: rustix::ioctl::Opcode = opcode::write::<FsXattr>(b'X', 32);
const PROJINHERIT: u32 = 0x200;

/// The project of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Project {
    /// Its id; 0 is that of inodes to which nobody gave one.
    pub id: u32,
    /// Of a directory: whether what is made in it belongs to the project too.
    pub inherited: bool,
}

fn fsxattr(file: BorrowedFd<'_>) -> Result<FsXattr, Errno> {
    // SAFETY: FSGETXATTR is _IOR('X', 31, struct fsxattr), and the type has that layout.
    unsafe { ioctl(file, Getter::<FSGETXATTR, FsXattr>::new()) }
}

/// The project of an open file or directory.
///
/// # Errors
/// `ENOTTY` or `EOPNOTSUPP` where the filesystem has no projects.
pub fn project(file: BorrowedFd<'_>) -> Result<Project, Errno> {
    let found = fsxattr(file)?;
    Ok(Project {
        id: found.projid,
        inherited: found.xflags & PROJINHERIT != 0,
    })
}

/// Puts a directory into a project; with an id that is not 0, what is made in it from now on belongs to it too.
///
/// # Errors
/// `EOPNOTSUPP` where the filesystem keeps no project ids (ext4 without its `project` feature), `EPERM` or `EINVAL` in a user namespace.
pub fn set_project(dir: BorrowedFd<'_>, id: u32) -> Result<(), Errno> {
    let mut wanted = fsxattr(dir)?;
    wanted.projid = id;
    if id == 0 {
        wanted.xflags &= !PROJINHERIT;
    } else {
        wanted.xflags |= PROJINHERIT;
    }
    // SAFETY: FSSETXATTR is _IOW('X', 32, struct fsxattr), and the type has that layout.
    unsafe { ioctl(dir, Setter::<FSSETXATTR, FsXattr>::new(wanted)) }
}

/// `struct fs_disk_quota` of `linux/dqblk_xfs.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct DiskQuota {
    version: i8,
    flags: i8,
    fieldmask: u16,
    id: u32,
    blk_hardlimit: u64,
    blk_softlimit: u64,
    ino_hardlimit: u64,
    ino_softlimit: u64,
    bcount: u64,
    icount: u64,
    itimer: i32,
    btimer: i32,
    iwarns: u16,
    bwarns: u16,
    timers_high: [i8; 4],
    rtb_hardlimit: u64,
    rtb_softlimit: u64,
    rtbcount: u64,
    rtbtimer: i32,
    rtbwarns: u16,
    padding: [u8; 10],
}

const _: () = assert!(size_of::<DiskQuota>() == 112);

/// `struct fs_quota_stat`; only the flags are looked at.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct QuotaStat {
    version: i8,
    flags: u16,
    pad: i8,
    rest: [u64; 9],
}

const _: () = assert!(size_of::<QuotaStat>() == 80);

const PRJQUOTA: u32 = 2;
const Q_XGETQUOTA: u32 = command(3);
const Q_XSETQLIM: u32 = command(4);
const Q_XGETQSTAT: u32 = command(5);
const Q_XGETNEXTQUOTA: u32 = command(9);
const PROJECT_ACCOUNTED: u16 = 1 << 4;
const PROJECT_ENFORCED: u16 = 1 << 5;
/// The limits of `fieldmask` that count blocks, soft and hard.
const BLOCK_LIMITS: u16 = 1 << 2 | 1 << 3;
/// `blk_*` and `bcount` count these.
const BASIC_BLOCK: u64 = 512;

/// `QCMD(XQM_CMD(n), PRJQUOTA)`.
const fn command(n: u32) -> u32 {
    (((b'X' as u32) << 8) + n) << 8 | PRJQUOTA
}

/// What a filesystem does about projects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// It counts what each project has.
    pub accounted: bool,
    /// It refuses what goes beyond a limit.
    pub enforced: bool,
}

/// What is on record for one project.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The project.
    pub id: u32,
    /// The most bytes it may have; 0: no limit.
    pub limit: u64,
    /// The bytes it has on the disk, or that are reserved for it.
    pub bytes: u64,
    /// How many inodes it has.
    pub inodes: u64,
}

/// The project quotas of one filesystem.
#[derive(Debug)]
pub struct Projects {
    via: Via,
}

#[derive(Debug)]
enum Via {
    /// Any directory on the filesystem.
    Directory(OwnedFd),
    /// A node of its block device.
    Node(PathBuf),
}

/// Whether the kernel has quotactl_fd(2). An errno of the call itself does not tell: a filesystem without quotas says ENOSYS too.
fn has_quotactl_fd() -> bool {
    // SAFETY: no descriptor has this number, so nothing is looked at beyond it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            -1,
            Q_XGETQSTAT,
            0,
            std::ptr::null_mut::<u8>(),
        )
    };
    result == -1 && io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

impl Projects {
    /// Those of the filesystem that a directory lies on. On a kernel without quotactl_fd(2) a device node is made at `node`.
    ///
    /// # Errors
    /// The node cannot be made.
    pub fn of(dir: BorrowedFd<'_>, node: &Path) -> io::Result<Self> {
        if has_quotactl_fd() {
            let dir = dir.try_clone_to_owned()?;
            return Ok(Self {
                via: Via::Directory(dir),
            });
        }
        Self::through(dir, node)
    }

    /// The same by a device node, on every kernel.
    fn through(dir: BorrowedFd<'_>, node: &Path) -> io::Result<Self> {
        let device = rustix::fs::fstat(dir)?.st_dev;
        // One of an earlier boot may be another disk's.
        match rustix::fs::unlink(node) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, node, FileType::BlockDevice, mode, device)?;
        Ok(Self {
            via: Via::Node(node.to_owned()),
        })
    }

    /// `quotactl` with a structure of the caller's.
    ///
    /// # Safety
    /// `data` must be what the command reads and writes.
    unsafe fn call<T>(&self, command: u32, id: u32, data: &mut T) -> Result<(), Errno> {
        let data: *mut T = data;
        let result = match &self.via {
            // SAFETY: the descriptor lives as long as self; `data` is the caller's word.
            Via::Directory(dir) => unsafe {
                libc::syscall(libc::SYS_quotactl_fd, dir.as_raw_fd(), command, id, data)
            },
            Via::Node(node) => {
                let node = rustix::path::Arg::into_c_str(node.as_path())?;
                // SAFETY: the path is NUL-terminated and lives until after the call; `data` is the caller's word.
                unsafe { libc::syscall(libc::SYS_quotactl, command, node.as_ptr(), id, data) }
            }
        };
        if result == 0 {
            return Ok(());
        }
        Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
    }

    /// Whether projects are counted and limits kept.
    ///
    /// # Errors
    /// `ENOSYS` where quotas are off or the filesystem knows none; none of it needs a privilege.
    pub fn state(&self) -> Result<State, Errno> {
        let mut found = QuotaStat {
            version: 1,
            ..QuotaStat::default()
        };
        // SAFETY: Q_XGETQSTAT writes a struct fs_quota_stat.
        unsafe { self.call(Q_XGETQSTAT, 0, &mut found)? };
        Ok(State {
            accounted: found.flags & PROJECT_ACCOUNTED != 0,
            enforced: found.flags & PROJECT_ENFORCED != 0,
        })
    }

    /// What is on record for a project; one that nothing is known of has neither a limit nor anything else.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_ADMIN on the machine.
    pub fn record(&self, id: u32) -> Result<Record, Errno> {
        let none = Record {
            id,
            limit: 0,
            bytes: 0,
            inodes: 0,
        };
        Ok(self.read(Q_XGETQUOTA, id)?.unwrap_or(none))
    }

    /// The first project from `id` on of which something is known; `None` after the last.
    ///
    /// # Errors
    /// As [`Projects::record`].
    pub fn next_record(&self, id: u32) -> Result<Option<Record>, Errno> {
        self.read(Q_XGETNEXTQUOTA, id)
    }

    fn read(&self, command: u32, id: u32) -> Result<Option<Record>, Errno> {
        let mut found = DiskQuota {
            version: 1,
            ..DiskQuota::default()
        };
        // SAFETY: both commands that come here write a struct fs_disk_quota.
        match unsafe { self.call(command, id, &mut found) } {
            Ok(()) => Ok(Some(Record {
                id: found.id,
                limit: found.blk_hardlimit.saturating_mul(BASIC_BLOCK),
                bytes: found.bcount.saturating_mul(BASIC_BLOCK),
                inodes: found.icount,
            })),
            // XFS has none for an id that was never used, ext4 none behind the last.
            Err(Errno::NOENT | Errno::SRCH) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Limits a project to so many bytes, rounded down to 512; 0 lifts the limit.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_ADMIN on the machine.
    pub fn set_limit(&self, id: u32, bytes: u64) -> Result<(), Errno> {
        // Less than one block would be 0, which is no limit at all.
        let blocks = (bytes / BASIC_BLOCK).max(u64::from(bytes > 0));
        let mut wanted = DiskQuota {
            version: 1,
            flags: 2,
            fieldmask: BLOCK_LIMITS,
            id,
            blk_hardlimit: blocks,
            blk_softlimit: 0,
            ..DiskQuota::default()
        };
        // SAFETY: Q_XSETQLIM reads a struct fs_disk_quota.
        unsafe { self.call(Q_XSETQLIM, id, &mut wanted) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_knows_no_projects_says_so() {
        let proc = std::fs::File::open("/proc").expect("/proc is mounted");
        let e = project(proc.as_fd()).expect_err("procfs has no projects");
        assert!(matches!(e, Errno::NOTTY | Errno::OPNOTSUPP), "{e}");
        if has_quotactl_fd() {
            let projects = Projects::of(proc.as_fd(), Path::new("/nonexistent")).expect("no node");
            let e = projects.state().expect_err("procfs has no quotas");
            assert!(matches!(e, Errno::NOSYS | Errno::NOTBLK), "{e}");
        }
    }

    #[test]
    fn commands_are_those_of_the_header() {
        assert_eq!(Q_XGETQSTAT, 0x0058_0502);
        assert_eq!(FSGETXATTR, 0x801c_581f);
        assert_eq!(FSSETXATTR, 0x401c_5820);
    }
}
