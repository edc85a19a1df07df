//! Namespaces for the whole process: entered once, at the start, before any thread exists.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// Puts the calling thread (at the start of a program: the process) into a mount namespace of its own, in which nothing
/// propagates to or from the outside; what is mounted there is gone when the process ends, however it ends.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`.
pub fn enter_private_mount_ns() -> io::Result<()> {
    // SAFETY: a new mount namespace (which implies CLONE_FS) leaves memory and descriptors as they are.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    super::mount::make_private_recursive(Path::new("/"))
}

/// The same for the thread of a test, beside which others mount what they want to be free when they unmount it: copies of what loop
/// devices hold are let go of.
#[cfg(test)]
pub fn enter_private_mount_ns_of_test() {
    enter_private_mount_ns().expect("a mount namespace, as root");
    for mount in super::mount::mount_table()
        .expect("a mount table")
        .iter()
        .rev()
    {
        if mount.source.to_string_lossy().starts_with("/dev/loop") {
            // One that went with another is no error.
            let _ = super::mount::umount_detach(&mount.path);
        }
    }
}

/// Does some work in the mount namespace of another process, on a thread of its own.
///
/// # Errors
/// The process is gone, or `EPERM` without `CAP_SYS_ADMIN` and `CAP_SYS_CHROOT`.
pub fn in_mount_ns_of<T: Send>(pid: Pid, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let namespace = std::fs::File::open(format!("/proc/{}/ns/mnt", pid.as_raw_nonzero()))?;
    super::on_own_thread(|| {
        // setns(2) refuses a thread that shares its root and working directory with others.
        super::identity::unshare_fs()?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
        Ok(work())
    })?
}

/// Puts the process into a user namespace in which it is root (0:0); outside it stays the user it was. No other id is mapped,
/// and setgroups(2) is denied, which is all that an ordinary user may ask for without help (user_namespaces(7)).
///
/// # Errors
/// `EINVAL` when the process has more than one thread; `EPERM` or `ENOSPC` when the machine does not allow user namespaces.
pub fn enter_user_ns() -> io::Result<()> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    // SAFETY: a new user namespace changes the process's credentials only; the kernel refuses it to a process with threads.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }?;
    // gid_map may be written only after setgroups is denied; the file is missing before Linux 3.19.
    match std::fs::write("/proc/self/setgroups", "deny") {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1\n"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1\n"))
}

/// Whether the process runs in a user namespace other than the machine's first one, which maps all ids to themselves.
pub fn in_user_ns() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !maps_everything(&map))
}

fn maps_everything(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{mount, ptrace::in_child};

    #[test]
    fn mounts_of_a_private_namespace_stay_inside() {
        assert!(
            rustix::process::geteuid().is_root(),
            "needs root: sudo -E cargo test"
        );
        let tmp = tempfile::tempdir().expect("a directory");
        let code = in_child(|| {
            enter_private_mount_ns().expect("a mount namespace");
            mount::mount(
                Path::new("t"),
                tmp.path(),
                "tmpfs",
                mount::MountFlags::empty(),
                b"size=1m",
            )
            .expect("tmpfs");
            i32::from(!mount::is_mount_point(tmp.path()).expect("statx"))
        });
        assert_eq!(code.expect("fork"), crate::sys::ptrace::Outcome::Exited(0));
        assert!(!mount::is_mount_point(tmp.path()).expect("statx"));
    }

    #[test]
    fn an_ordinary_user_is_root_in_its_namespace() {
        let code = in_child(|| {
            if rustix::process::geteuid().is_root() {
                nix::unistd::setgroups(&[]).expect("setgroups");
                nix::unistd::setresgid(1234.into(), 1234.into(), 1234.into()).expect("setresgid");
                nix::unistd::setresuid(1234.into(), 1234.into(), 1234.into()).expect("setresuid");
                // Changing the user makes /proc/self root's; the maps could not be written.
                nix::sys::prctl::set_dumpable(true).expect("dumpable");
            }
            match enter_user_ns() {
                Ok(()) => i32::from(!rustix::process::geteuid().is_root()),
                // Machines may forbid user namespaces; then the error must say so.
                Err(e) => i32::from(!matches!(
                    e.raw_os_error(),
                    Some(nix::libc::EPERM | nix::libc::ENOSPC)
                )),
            }
        });
        assert_eq!(code.expect("fork"), crate::sys::ptrace::Outcome::Exited(0));
    }
}
