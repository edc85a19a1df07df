//! What a machine and a filesystem can do: tried out, never assumed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev, mknodat, utimensat,
};
use rustix::fs::{chownat, ioctl_ficlone, lgetxattr, lsetxattr};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Gid, Uid};

use crate::graphdriver::{FsMagic, get_fs_magic};
use crate::named::named;
use crate::sys::fs::for_each_name;
use crate::sys::fsctl::ignore_case;
use crate::sys::ns::enter_private_mount_ns;
use crate::sys::on_own_thread;
use crate::sys::ptrace::fork_killed_at_syscall;
use crate::sys::quota::Projects;

named! {
    /// One fact about the machine or a place, as scenarios name it after `needs:`.
    Fact, "fact" {
        /// The process is root of the machine, not of a user namespace.
        Root = "root";
        /// Files can be given to any owner.
        Owners = "owners";
        /// Device nodes can be made.
        Mknod = "mknod";
        /// Extended attributes `user.*` are kept.
        XattrUser = "xattr-user";
        /// Extended attributes `trusted.*` are kept.
        XattrTrusted = "xattr-trusted";
        /// `security.capability` is kept.
        XattrSecurity = "xattr-security";
        /// POSIX access lists are kept.
        Acl = "acl";
        /// Holes in files take no space and are found with SEEK_HOLE.
        Sparse = "sparse";
        /// Times are kept to the nanosecond.
        Nanoseconds = "nanoseconds";
        /// An overlay whose upper directory lies here can be mounted.
        Overlayfs = "overlayfs";
        /// A process may trace its own children.
        Ptrace = "ptrace";
        /// Files can share their blocks (FICLONE).
        Reflink = "reflink";
        /// A directory can be made to ignore case.
        Casefold = "casefold";
        /// Projects can have a limit of space, which is kept.
        ProjectQuota = "project-quota";
        /// Directories tell the types of their entries (d_type).
        DType = "d-type";
        /// A scenario can have a filesystem of the place's kind for itself.
        OwnBacking = "own-backing";
        /// The power of a filesystem that a scenario has for itself can be cut.
        PowerCut = "power-cut";
        /// A filesystem that a scenario has for itself can be given a limit of inodes.
        InodeLimit = "inode-limit";
    }
}

/// The facts of one place: those that hold, and for each other one why it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    missing: BTreeMap<Fact, String>,
    /// The step in which modification times are kept, in nanoseconds: 1, 1000 or 1000000000.
    pub time_step_nanos: u32,
}

impl Facts {
    /// Tries everything out in a scratch directory below `dir`, which is removed again.
    ///
    /// # Errors
    /// Nothing can be made in `dir`.
    pub fn probe(dir: &Path) -> io::Result<Self> {
        let scratch = tempfile::Builder::new()
            .prefix(".graphtest-probe-")
            .tempdir_in(dir)?;
        let at = scratch.path();
        fs::set_permissions(at, fs::Permissions::from_mode(0o755))?;
        let time_step_nanos = time_step(at)?;
        let mut missing = BTreeMap::new();
        for &fact in Fact::ALL {
            if let Err(why) = try_out(fact, at, time_step_nanos) {
                missing.insert(fact, why);
            }
        }
        Ok(Self {
            missing,
            time_step_nanos,
        })
    }

    /// Whether it holds.
    pub fn has(&self, fact: Fact) -> bool {
        !self.missing.contains_key(&fact)
    }

    /// States that a fact holds that cannot be tried out in a directory.
    pub(super) fn add(&mut self, fact: Fact) {
        self.missing.remove(&fact);
    }

    /// Why it does not hold; `None` when it does.
    pub fn why_not(&self, fact: Fact) -> Option<&str> {
        self.missing.get(&fact).map(String::as_str)
    }
}

/// Runs one probe; the error says what was tried and what came of it.
fn try_out(fact: Fact, at: &Path, time_step_nanos: u32) -> Result<(), String> {
    match fact {
        Fact::Root => real_root(),
        Fact::Owners => {
            let file = made(at, "owner")?;
            chownat(
                CWD,
                &file,
                Some(Uid::from_raw(12345)),
                Some(Gid::from_raw(54321)),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .map_err(|e| format!("chown to 12345:54321: {e}"))
        }
        Fact::Mknod => mknodat(
            CWD,
            at.join("null"),
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o600),
            makedev(1, 3),
        )
        .map_err(|e| format!("mknod of a character device: {e}")),
        Fact::XattrUser => {
            keeps_xattr(at, "user.graphtest", b"1").map_err(|why| match get_fs_magic(at) {
                Ok(FsMagic::TMPFS) => format!("{why}; a tmpfs keeps them since Linux 6.6"),
                _ => why,
            })
        }
        Fact::XattrTrusted => keeps_xattr(at, "trusted.graphtest", b"1"),
        // Revision 2 of vfs_cap_data, cap_net_raw permitted and effective.
        Fact::XattrSecurity => keeps_xattr(
            at,
            "security.capability",
            &[
                1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
        ),
        Fact::Acl => keeps_xattr(
            at,
            "system.posix_acl_access",
            &acl_with_a_user(rustix::process::geteuid().as_raw()),
        ),
        Fact::Sparse => sparse(at),
        Fact::Nanoseconds if time_step_nanos == 1 => Ok(()),
        Fact::Nanoseconds => Err(format!("times are kept in steps of {time_step_nanos} ns")),
        Fact::Overlayfs => overlay(at),
        Fact::Ptrace => ptrace(),
        Fact::Reflink => reflink(at),
        Fact::Casefold => casefold(at),
        Fact::ProjectQuota => project_quota(at),
        Fact::DType => d_type(at),
        // Whoever makes the place knows better.
        Fact::OwnBacking => Err("no filesystem is made here".to_string()),
        Fact::PowerCut => Err("nothing made here outlives it".to_string()),
        Fact::InodeLimit => Err("nothing made here has such a limit".to_string()),
    }
}

fn made(at: &Path, name: &str) -> Result<std::path::PathBuf, String> {
    let path = at.join(name);
    File::create(&path).map_err(|e| format!("create: {e}"))?;
    Ok(path)
}

fn real_root() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("not run as root".to_string());
    }
    let map =
        fs::read_to_string("/proc/self/uid_map").map_err(|e| format!("/proc/self/uid_map: {e}"))?;
    if map.split_whitespace().eq(["0", "0", "4294967295"]) {
        Ok(())
    } else {
        Err("root only of a user namespace".to_string())
    }
}

fn keeps_xattr(at: &Path, name: &str, value: &[u8]) -> Result<(), String> {
    let file = made(at, name)?;
    lsetxattr(&file, name, value, XattrFlags::empty())
        .map_err(|e| format!("setxattr {name}: {e}"))?;
    let mut found = vec![0; value.len() + 1];
    let len = lgetxattr(&file, name, found.as_mut_slice())
        .map_err(|e| format!("getxattr {name}: {e}"))?;
    if &found[..len] == value {
        Ok(())
    } else {
        Err(format!("{name} reads back changed"))
    }
}

/// An access list in the kernel's xattr form (version 2) that a mode cannot express: it names a user. The user must be mapped
/// where this runs, so it is the caller.
fn acl_with_a_user(uid: u32) -> Vec<u8> {
    const NO_ID: u32 = u32::MAX;
    let mut out = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [
        (1u16, 6u16, NO_ID),
        (2, 4, uid),
        (4, 4, NO_ID),
        (0x10, 4, NO_ID),
        (0x20, 4, NO_ID),
    ] {
        out.extend(tag.to_le_bytes());
        out.extend(perm.to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    out
}

fn sparse(at: &Path) -> Result<(), String> {
    const SIZE: u64 = 4 << 20;
    let path = at.join("sparse");
    let mut file = File::create_new(&path).map_err(|e| e.to_string())?;
    file.write_all(b"data").map_err(|e| e.to_string())?;
    file.set_len(SIZE).map_err(|e| e.to_string())?;
    file.sync_all().map_err(|e| e.to_string())?;
    let blocks = file.metadata().map_err(|e| e.to_string())?.blocks();
    let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0))
        .map_err(|e| format!("SEEK_HOLE: {e}"))?;
    if blocks * 512 >= SIZE {
        return Err(format!("a hole of {SIZE} bytes takes {blocks} blocks"));
    }
    if hole >= SIZE {
        Err("SEEK_HOLE does not find the hole".to_string())
    } else {
        Ok(())
    }
}

/// Sets a time of 123456789 nanoseconds and looks at what is left of it.
fn time_step(at: &Path) -> io::Result<u32> {
    let path = at.join("time");
    File::create(&path)?;
    let time = Timespec {
        tv_sec: 1_000_000_000,
        tv_nsec: 123_456_789,
    };
    utimensat(
        CWD,
        &path,
        &Timestamps {
            last_access: time,
            last_modification: time,
        },
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    Ok(match fs::symlink_metadata(&path)?.mtime_nsec() {
        123_456_789 => 1,
        123_456_000 => 1_000,
        _ => 1_000_000_000,
    })
}

fn reflink(at: &Path) -> Result<(), String> {
    let (from, to) = (at.join("reflink-from"), at.join("reflink-to"));
    fs::write(&from, vec![7; 65536]).map_err(|e| e.to_string())?;
    let from = File::open(&from).map_err(|e| e.to_string())?;
    let to = File::create_new(&to).map_err(|e| e.to_string())?;
    ioctl_ficlone(&to, &from).map_err(|e| format!("FICLONE: {e}"))
}

fn casefold(at: &Path) -> Result<(), String> {
    let dir = at.join("casefold");
    fs::create_dir(&dir).map_err(|e| e.to_string())?;
    let open = File::open(&dir).map_err(|e| e.to_string())?;
    ignore_case(&open, true).map_err(|e| format!("chattr +F: {e}"))?;
    made(&dir, "Name")?;
    match fs::symlink_metadata(dir.join("nAME")) {
        Ok(_) => Ok(()),
        Err(e) => Err(format!(
            "another case of a name in a chattr +F directory: {e}"
        )),
    }
}

fn project_quota(at: &Path) -> Result<(), String> {
    let dir = File::open(at).map_err(|e| e.to_string())?;
    let projects = Projects::of(dir.as_fd(), &at.join("quota-device"))
        .map_err(|e| format!("a device node for quotactl: {e}"))?;
    match projects.state() {
        Ok(state) if state.accounted && state.enforced => Ok(()),
        Ok(_) => {
            Err("project quotas are off; they are turned on by the mount option pquota".to_string())
        }
        Err(e) => Err(format!("quotactl of projects: {e}")),
    }
}

fn d_type(at: &Path) -> Result<(), String> {
    let dir = at.join("d-type");
    fs::create_dir(&dir).map_err(|e| e.to_string())?;
    made(&dir, "file")?;
    let open = File::open(&dir).map_err(|e| e.to_string())?;
    let mut found = None;
    for_each_name(open.as_fd(), |_, kind| {
        found = Some(kind);
        Ok(())
    })
    .map_err(|e| format!("getdents64: {e}"))?;
    match found {
        Some(FileType::RegularFile) => Ok(()),
        other => Err(format!("the type of a file in its directory is {other:?}")),
    }
}

/// Mounts an overlay with the upper directory here. A thread of its own with a mount namespace of its own does it, so nothing can be
/// left behind, whatever happens to the process.
fn overlay(at: &Path) -> Result<(), String> {
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(at.join(name)).map_err(|e| e.to_string())?;
    }
    let tried = on_own_thread(|| {
        enter_private_mount_ns().map_err(|e| format!("unshare of the mount namespace: {e}"))?;
        // Relative names keep commas, colons and backslashes of the path out of the options.
        std::env::set_current_dir(at).map_err(|e| e.to_string())?;
        let options = match real_root() {
            Ok(()) => c"lowerdir=lower,upperdir=upper,workdir=work",
            Err(_) => c"lowerdir=lower,upperdir=upper,workdir=work,userxattr",
        };
        mount("overlay", "merged", "overlay", MountFlags::empty(), options)
            .map_err(|e| format!("mount of an overlay: {e}"))?;
        File::create("merged/written").map_err(|e| format!("write in an overlay: {e}"))?;
        Ok(())
    });
    tried.map_err(|e| e.to_string())?
}

fn ptrace() -> Result<(), String> {
    // A child that does nothing, traced to its end or killed at its first call: both show that tracing works.
    fork_killed_at_syscall(1, || 0)
        .map(|_| ())
        .map_err(|e| format!("trace of a child: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tmpfs_and_the_working_directory_are_probed_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        let facts = Facts::probe(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(facts.has(Fact::Nanoseconds), facts.time_step_nanos == 1);
        for &fact in Fact::ALL {
            assert_eq!(facts.has(fact), facts.why_not(fact).is_none(), "{fact}");
            assert_eq!(fact.name().parse::<Fact>().unwrap(), fact);
            assert!(!fact.about().is_empty());
        }
        assert_eq!(facts.has(Fact::Root), real_root().is_ok());
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_an_error() {
        assert!(Facts::probe(Path::new("/proc")).is_err());
        assert!("no-such-fact".parse::<Fact>().is_err());
    }
}
