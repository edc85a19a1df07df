//! Whether a path is mounted, and how often it is in use.

use crate::sync::lock;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use super::{FsMagic, get_fs_magic};
use crate::sys::mount;

/// Tells whether a path is mounted.
pub trait Checker: Send + Sync + fmt::Debug {
    /// Whether it is; an error is a no.
    fn is_mounted(&self, path: &Path) -> bool;
}

/// By the filesystem's magic number, and by the path being the root of a mount (moby looks at the number alone, which is wrong
/// for a home that lies itself on that filesystem).
#[derive(Clone, Copy, Debug)]
pub struct FsChecker(pub FsMagic);

impl Checker for FsChecker {
    fn is_mounted(&self, path: &Path) -> bool {
        get_fs_magic(path).is_ok_and(|magic| magic == self.0) && MountTableChecker.is_mounted(path)
    }
}

/// By the kernel's mount table, whatever the filesystem.
#[derive(Clone, Copy, Debug)]
pub struct MountTableChecker;

impl Checker for MountTableChecker {
    fn is_mounted(&self, path: &Path) -> bool {
        mount::is_mount_point(path).unwrap_or(false)
    }
}

/// Makes `path` a mount point (binding it on itself if it is none) whose mounts do not propagate.
///
/// # Errors
/// The kernel refuses, for example for want of privilege.
pub fn make_private(path: &Path) -> super::Result<()> {
    let failed = |op| move |e| super::Error::io(op, path, e);
    if !mount::is_mount_point(path).map_err(failed("look at"))? {
        mount::bind(path, path).map_err(failed("bind on itself"))?;
    }
    mount::make_private(path).map_err(failed("make private"))
}

/// Counts the uses of mounts by their mount point, as moby's `RefCounter`.
///
/// When an entry is first touched and the path is found mounted, a use by an earlier process is assumed and counts: its mount
/// stays until somebody puts once more than was got here.
#[derive(Debug)]
pub struct RefCounter<C> {
    checker: C,
    counts: Mutex<HashMap<PathBuf, i64>>,
}

impl<C: Checker> RefCounter<C> {
    /// No uses yet.
    pub fn new(checker: C) -> Self {
        Self {
            checker,
            counts: Mutex::new(HashMap::new()),
        }
    }

    /// Adds a use and returns how many there are now; more than 1 means that the path is mounted already.
    pub fn increment(&self, path: &Path) -> i64 {
        self.change(path, 1)
    }

    /// Takes a use away and returns how many there are now; 0 or less means that the path is to be unmounted. An entry that
    /// falls to 0 is forgotten, so a put too many does not skew later counts.
    pub fn decrement(&self, path: &Path) -> i64 {
        self.change(path, -1)
    }

    /// Forgets a path whose mount was taken away whatever the count.
    pub fn forget(&self, path: &Path) {
        self.lock().remove(path);
    }

    /// The uses counted now, without touching the entry.
    pub fn count(&self, path: &Path) -> i64 {
        self.lock().get(path).copied().unwrap_or(0)
    }

    fn change(&self, path: &Path, by: i64) -> i64 {
        let mut counts = self.lock();
        let entry = counts.entry(path.to_owned());
        let before = match &entry {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(_) => i64::from(self.checker.is_mounted(path)),
        };
        let now = before + by;
        if now > 0 {
            entry.insert_entry(now);
        } else if let Entry::Occupied(known) = entry {
            known.remove();
        }
        now
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, i64>> {
        lock(&self.counts)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[derive(Debug)]
    struct Always(bool);

    impl Checker for Always {
        fn is_mounted(&self, _: &Path) -> bool {
            self.0
        }
    }

    #[rstest]
    #[case(false, &[(1, 1), (1, 2), (-1, 1), (-1, 0), (1, 1)])]
    #[case(false, &[(-1, -1), (-1, -1), (1, 1), (-1, 0)])]
    #[case(true, &[(1, 2), (-1, 1), (-1, 0)])]
    #[case(true, &[(-1, 0)])]
    fn counting(#[case] mounted: bool, #[case] steps: &[(i64, i64)]) {
        let counter = RefCounter::new(Always(mounted));
        for (step, (by, now)) in steps.iter().enumerate() {
            assert_eq!(counter.change(Path::new("/m"), *by), *now, "step {step}");
        }
    }

    #[test]
    fn a_forgotten_path_starts_anew() {
        let counter = RefCounter::new(Always(false));
        counter.increment(Path::new("/m"));
        counter.increment(Path::new("/m"));
        counter.forget(Path::new("/m"));
        assert_eq!(counter.count(Path::new("/m")), 0);
        assert_eq!(counter.increment(Path::new("/m")), 1);
    }

    #[test]
    fn the_checkers_look_at_the_mount_point() {
        let (proc, below) = (Path::new("/proc"), Path::new("/proc/self"));
        let magic = get_fs_magic(proc).unwrap();
        assert!(MountTableChecker.is_mounted(proc) && FsChecker(magic).is_mounted(proc));
        assert!(!MountTableChecker.is_mounted(below) && !FsChecker(magic).is_mounted(below));
        assert!(!FsChecker(FsMagic::OVERLAY).is_mounted(proc));
        assert!(!MountTableChecker.is_mounted(Path::new("/nonexistent")));
    }

    #[test]
    fn a_directory_is_made_a_private_mount_once() {
        assert!(
            rustix::process::geteuid().is_root(),
            "mounts; run it as root: sudo -E cargo test"
        );
        crate::sys::ns::enter_private_mount_ns_of_test();
        let dir = tempfile::tempdir().unwrap();
        make_private(dir.path()).unwrap();
        make_private(dir.path()).unwrap();
        let mounts = mount::mounts_below(dir.path()).unwrap();
        assert_eq!((mounts.len(), mounts[0].propagation.as_str()), (1, ""));
        mount::umount_detach(dir.path()).unwrap();
        assert!(make_private(&dir.path().join("none")).is_err());
    }
}
