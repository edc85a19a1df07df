//! Who the calling thread is to the filesystem: its user, its capabilities, its umask and working directory.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;

use nix::libc;
use rustix::fs::Mode;
use rustix::process::{Gid, getgroups};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, capabilities, set_capabilities, set_thread_groups,
};

thread_local! {
    static PRIVATE_FS: Cell<bool> = const { Cell::new(false) };
}

/// Gives the calling thread a umask and a working directory of its own (`unshare(CLONE_FS)`). Threads that it starts later
/// share them with it.
///
/// # Errors
/// `ENOMEM`.
pub fn unshare_fs() -> io::Result<()> {
    // SAFETY: CLONE_FS only splits umask, root and working directory from those of the other threads; no descriptor or memory is affected.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    PRIVATE_FS.set(true);
    Ok(())
}

/// Runs `work` under a umask, which no other thread sees, then puts the old one back. The calling thread is given a umask of
/// its own first, see [`unshare_fs`].
///
/// # Errors
/// Those of [`unshare_fs`].
pub fn with_umask<T>(umask: u32, work: impl FnOnce() -> T) -> io::Result<T> {
    struct Restore(Mode);
    impl Drop for Restore {
        fn drop(&mut self) {
            rustix::process::umask(self.0);
        }
    }
    if !PRIVATE_FS.get() {
        unshare_fs()?;
    }
    let _restore = Restore(rustix::process::umask(Mode::from_raw_mode(umask)));
    Ok(work())
}

/// Puts the thread's identity back, also when the work panics.
struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<Gid>,
    caps: CapabilitySets,
}

impl Drop for Identity {
    fn drop(&mut self) {
        let restored = set_capabilities(None, self.caps)
            .and_then(|()| set_fs_id(self.uid, self.gid))
            .and_then(|()| set_thread_groups(&self.groups))
            // setfsuid changes the effective set by the way.
            .and_then(|()| set_capabilities(None, self.caps));
        if let Err(e) = restored {
            // Going on as somebody else would make every later result wrong.
            eprintln!("cannot become the first user again: {e}");
            std::process::abort();
        }
    }
}

/// The kernel gives no error for these two, so the value is read back.
fn set_fs_id(uid: u32, gid: u32) -> rustix::io::Result<()> {
    // SAFETY: setfsuid and setfsgid change only the calling thread's credentials and touch no memory.
    let (found_gid, found_uid) = unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        (libc::setfsgid(u32::MAX), libc::setfsuid(u32::MAX))
    };
    if found_uid as u32 == uid && found_gid as u32 == gid {
        Ok(())
    } else {
        Err(rustix::io::Errno::INVAL)
    }
}

/// Runs `work` on the calling thread as user `uid` and group `gid`, without supplementary groups and without any effective
/// capability, as far as the filesystem is concerned (`setfsuid`, `setfsgid`). Other threads keep who they are.
///
/// # Errors
/// `EPERM` without `CAP_SETUID` and `CAP_SETGID`, `EINVAL` for ids that are not mapped in this user namespace.
pub fn act_as<T>(uid: u32, gid: u32, work: impl FnOnce() -> T) -> io::Result<T> {
    let caps = capabilities(None)?;
    let mine = rustix::process::geteuid().as_raw();
    let my_group = rustix::process::getegid().as_raw();
    let _restore = Identity {
        uid: mine,
        gid: my_group,
        groups: getgroups()?,
        caps,
    };
    // In a user namespace of an ordinary user setgroups is denied; there the groups stay as they are, and are not mapped.
    match set_thread_groups(&[]) {
        Err(rustix::io::Errno::PERM)
            if (uid, gid) == (mine, my_group) || caps.effective.contains(CapabilitySet::SETGID) => {
        }
        other => other?,
    }
    set_fs_id(uid, gid)?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::empty(),
            ..caps
        },
    )?;
    Ok(work())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn another_user_owns_what_it_makes_and_is_stopped_by_modes() {
        assert!(
            rustix::process::geteuid().is_root(),
            "needs root: sudo -E cargo test"
        );
        let tmp = tempfile::tempdir().expect("a directory");
        let open = tmp.path().join("open");
        std::fs::create_dir(&open).expect("mkdir");
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).expect("chmod");
        std::fs::set_permissions(tmp.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
        let (made, denied) = act_as(1234, 567, || {
            (
                std::fs::write(open.join("f"), ""),
                std::fs::write(tmp.path().join("g"), ""),
            )
        })
        .expect("become another user");
        made.expect("an open directory");
        assert_eq!(
            denied.expect_err("a closed directory").raw_os_error(),
            Some(libc::EACCES)
        );
        let st = std::fs::metadata(open.join("f")).expect("stat");
        assert_eq!((st.uid(), st.gid()), (1234, 567));
        std::fs::write(tmp.path().join("g"), "").expect("root again");
    }

    #[test]
    fn a_umask_is_seen_by_one_thread_and_given_back() {
        let before = with_umask(0o022, || ())
            .map(|()| rustix::process::umask(Mode::from_raw_mode(0o027)))
            .expect("unshare");
        with_umask(0, || {
            let other = std::thread::spawn(|| with_umask(0o077, || ()).expect("unshare"));
            other.join().expect("the other thread");
            assert_eq!(rustix::process::umask(Mode::empty()).as_raw_mode(), 0);
        })
        .expect("unshare");
        assert_eq!(rustix::process::umask(before).as_raw_mode(), 0o027);
    }
}
