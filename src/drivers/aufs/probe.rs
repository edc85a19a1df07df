//! What the kernel's aufs can do on a home: tried out, never concluded from a version number.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsopen};

use super::NAME;
use super::layout::{DIFF, MNT};
use super::mount::{MAX_BRANCHES, Union, branch, xino};
use super::pseudo_links;
use crate::archive::Form;
use crate::drivers::home::{Home, detach, open_dir};
use crate::drivers::overlayfs::{Behaviour, MERGED, Mounter, OverlayMount, lay_out, or_aside};
use crate::graphdriver::{Capability, Checker, Error, FsChecker, FsMagic, Result, get_fs_magic};
use crate::sync::lock;
use crate::sys;

/// One mount or unmount at a time, as in moby's driver: several at once have locked up kernels with aufs.
static MOUNTING: Mutex<()> = Mutex::new(());

/// Whether the kernel has aufs; asking loads the module, where there is one.
///
/// # Errors
/// [`Error::NotSupported`] with the reason.
pub(super) fn check_kernel() -> Result<()> {
    let refused = |why: &str| Err(Error::NotSupported(format!("{NAME}: {why}")));
    if sys::ns::in_user_ns() {
        return refused("it cannot be mounted in a user namespace");
    }
    let absent = "this kernel has none; it is no part of Linux, and the patch that adds it is at \
                  https://github.com/sfjro/aufs-standalone";
    match fsopen(NAME, FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(_) => Ok(()),
        Err(Errno::NODEV) => refused(absent),
        // Kernels before 5.2 have no such call; mount(2) loads the module then, or says that there is none.
        Err(Errno::NOSYS) => Ok(()),
        Err(Errno::PERM) => Err(Error::Prerequisites(format!(
            "{NAME}: only who may mount can use it"
        ))),
        Err(e) => refused(&format!("the kernel does not say whether it has it: {e}")),
    }
}

/// Whether aufs works on what the home lies on, or is to lie on.
///
/// # Errors
/// [`Error::IncompatibleFs`] for filesystems of which moby's driver knows that it does not.
pub(super) fn check_backing(home: &Path) -> Result<()> {
    let there = home.ancestors().find(|path| path.exists());
    refuse(get_fs_magic(there.unwrap_or(Path::new(".")))?)
}

fn refuse(backing: FsMagic) -> Result<()> {
    match backing {
        FsMagic::AUFS | FsMagic::BTRFS | FsMagic::ECRYPTFS => Err(Error::IncompatibleFs(format!(
            "{NAME} does not work on {backing}"
        ))),
        _ => Ok(()),
    }
}

/// What was found.
#[derive(Clone, Debug)]
pub(super) struct Support {
    backing: FsMagic,
    /// Options of every mount.
    options: Vec<&'static str>,
    /// Permissions of a directory are those of the uppermost branch alone (Linux 3.x and later with `dirperm1`).
    dirperm1: bool,
    /// Extended attributes are shown and copied up (`CONFIG_AUFS_XATTR`).
    xattrs: bool,
    behaviour: Behaviour,
}

impl Support {
    /// Mounts two branches below a third in the home, or [aside](or_aside), and works in it.
    ///
    /// # Errors
    /// One of the not-supported errors, with the reason.
    pub fn probe(home: &Home) -> Result<Self> {
        let backing = get_fs_magic(home.path())?;
        let trial = |at: &Path| Self::new(backing, true).try_out(at);
        let in_home = home.stage().and_then(|stage| trial(&stage.path()));
        or_aside(home, in_home, trial)
    }

    fn new(backing: FsMagic, dirperm1: bool) -> Self {
        let mut options = vec!["dio"];
        options.extend(dirperm1.then_some("dirperm1"));
        Self {
            backing,
            options,
            dirperm1,
            xattrs: false,
            behaviour: Behaviour::default(),
        }
    }

    fn try_out(self, at: &Path) -> Result<Self> {
        lay_out(at).map_err(|e| Error::io("set up a trial union in", at, e))?;
        let has_xattrs = mark(&at.join("l2/one")).is_ok();
        let found = match self.mount(&trial(at)) {
            Ok(()) => self,
            // Older modules do not know the option.
            Err(_) => {
                let plain = Self::new(self.backing, false);
                plain.mount(&trial(at)).map_err(|e| plain.refused(e))?;
                plain
            }
        };
        let worked = found.work_in(at, has_xattrs);
        let left = detach(&at.join(MERGED));
        let (behaviour, xattrs) = worked.map_err(|e| found.unusable(at, e))?;
        left?;
        Ok(Self {
            behaviour,
            xattrs,
            ..found
        })
    }

    fn work_in(&self, at: &Path, has_xattrs: bool) -> io::Result<(Behaviour, bool)> {
        let behaviour = Behaviour::of(at)?;
        for marker in ["l3/.wh.kept", "l3/gone/.wh..wh..opq"] {
            fs::symlink_metadata(at.join(marker))?;
        }
        let xattrs = has_xattrs && shows_mark(&at.join(MERGED).join("one"));
        Ok((behaviour, xattrs))
    }

    fn refused(&self, e: Error) -> Error {
        let why = format!("{NAME} cannot be mounted on {}: {e}", self.backing);
        match e.errno() {
            Some(Errno::NOSPC | Errno::DQUOT) => e,
            Some(Errno::PERM | Errno::ACCESS) => Error::Prerequisites(why),
            _ => Error::NotSupported(why),
        }
    }

    fn unusable(&self, at: &Path, e: io::Error) -> Error {
        match Errno::from_io_error(&e) {
            // A full disk says nothing about what aufs can do.
            Some(Errno::NOSPC | Errno::DQUOT) => Error::io("work in a trial union in", at, e),
            _ => Error::IncompatibleFs(format!(
                "{NAME} on {} mounts but does not work: {e}",
                self.backing
            )),
        }
    }
}

fn trial(at: &Path) -> OverlayMount<'_> {
    static LOWERS: std::sync::LazyLock<[PathBuf; 2]> =
        std::sync::LazyLock::new(|| ["l2", "l1"].map(PathBuf::from));
    OverlayMount {
        home: at,
        lowers: &*LOWERS,
        upper: Some(("l3".into(), PathBuf::new())),
        target: MERGED.into(),
        options: &[],
        label: "",
    }
}

const MARK: &str = "trusted.graphtest";

fn mark(path: &Path) -> rustix::io::Result<()> {
    rustix::fs::lsetxattr(path, MARK, b"1", rustix::fs::XattrFlags::empty())
}

fn shows_mark(path: &Path) -> bool {
    rustix::fs::lgetxattr(path, MARK, &mut [0u8; 8][..]).is_ok()
}

impl Mounter for Support {
    fn mount_point(&self, id: &str) -> PathBuf {
        Path::new(MNT).join(id)
    }

    fn mount(&self, overlay: &OverlayMount<'_>) -> Result<()> {
        let target = overlay.home.join(&overlay.target);
        let failed = |e: io::Error| Error::io("mount", &target, e);
        let upper = overlay.upper.as_ref().map(|(upper, _)| upper);
        if let Some(upper) = upper {
            let own = open_dir(rustix::fs::CWD, overlay.home.join(upper));
            // Left by an unmount that could not wait; nothing of this layer is mounted now.
            pseudo_links::clear(own.map_err(|e| failed(e.into()))?.as_fd())?;
        }
        let mut held = Vec::new();
        let branches: Vec<Vec<u8>> = upper
            .into_iter()
            .chain(overlay.lowers)
            .map(|path| branch(&overlay.home.join(path), &mut held))
            .collect::<io::Result<_>>()
            .map_err(failed)?;
        let union = Union {
            branches: &branches,
            writable: upper.is_some(),
            options: &self.options,
            label: overlay.label,
            xino: &xino(),
        };
        let _one_at_a_time = lock(&MOUNTING);
        union.mount(&target).map_err(failed)
    }

    fn serves(&self, merged: &Path) -> bool {
        sys::mount::is_mount_point(merged).unwrap_or(false)
    }

    fn unmount(&self, merged: &Path) -> Result<()> {
        if FsChecker(FsMagic::AUFS).is_mounted(merged)
            && let Some(branch) = branch_of(merged)
        {
            let open = |path: &Path| {
                open_dir(rustix::fs::CWD, path).map_err(|e| Error::io("open", path, e))
            };
            pseudo_links::flush(open(merged)?.as_fd(), open(&branch)?.as_fd())?;
        }
        let _one_at_a_time = lock(&MOUNTING);
        detach(merged)
    }

    fn max_lowers(&self) -> usize {
        MAX_BRANCHES - 1
    }

    fn takes(&self, _overlay: &OverlayMount<'_>) -> bool {
        true
    }

    fn upper_form(&self) -> Option<Form> {
        Some(Form::Aufs)
    }

    fn claims(&self) -> Vec<Capability> {
        self.behaviour.claims()
    }

    fn status(&self) -> Vec<(String, String)> {
        [
            ("Backing Filesystem", self.backing.to_string()),
            ("Dirperm1 Supported", self.dirperm1.to_string()),
            ("Extended Attributes", self.xattrs.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }
}

/// The branch that a mount writes to: `<home>/diff/<id>` for `<home>/mnt/<id>`.
fn branch_of(merged: &Path) -> Option<PathBuf> {
    let (id, home) = (merged.file_name()?, merged.parent()?.parent()?);
    Some(home.join(DIFF).join(id))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::graphdriver::ErrorClass;

    #[rstest]
    #[case(FsMagic::BTRFS, false)]
    #[case(FsMagic::AUFS, false)]
    #[case(FsMagic::ECRYPTFS, false)]
    #[case(FsMagic::EXTFS, true)]
    #[case(FsMagic::XFS, true)]
    #[case(FsMagic::TMPFS, true)]
    fn filesystems_below(#[case] backing: FsMagic, #[case] works: bool) {
        match refuse(backing) {
            Ok(()) => assert!(works),
            Err(e) => {
                assert!(!works && e.class() == ErrorClass::NotSupported);
                assert!(e.to_string().contains(backing.name()), "{e}");
            }
        }
    }

    #[test]
    fn a_home_that_is_not_there_yet_lies_on_what_is_above() {
        let dir = tempfile::tempdir().unwrap();
        check_backing(&dir.path().join("not/there/yet")).unwrap();
    }

    #[test]
    fn the_branch_beside_a_mount_point() {
        let branch = branch_of(Path::new("/home/mnt/a b"));
        assert_eq!(branch, Some(PathBuf::from("/home/diff/a b")));
    }
}
