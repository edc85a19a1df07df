//! Steps on subvolumes of btrfs: subvolumes, default-subvolume, read-only-subvolume, and the guards of one beside the home.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fchmod};

use super::call::{Done, Fail};
use super::state::HomeState;
use super::world::World;
use crate::graphtest::lang::At;
use crate::graphtest::step::{
    DefaultSubvolumeStep, Expect, ReadOnlySubvolumeStep, Step, SubvolumeBy, SubvolumesStep,
};
use crate::sys;
use crate::sys::fs::open_beneath;
use crate::sys::mount::MountFlags;
use crate::tree::TreePath;
use crate::tree::op::{self, DirOp, Op};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// The mode of what is made.
const MODE: u32 = 0o755;

impl World<'_> {
    /// To the model they are directories.
    pub fn subvolumes(&mut self, s: &SubvolumesStep, expect: &Expect) -> Done {
        let ops: Vec<At<Op>> = s.paths.iter().map(directory).collect();
        let made = self.inside(&s.id, expect, |world, root, _| {
            for path in &s.paths {
                let path = &path.value;
                make(root, &path.0)
                    .map_err(|e| Fail::new(format!("the subvolume {path} cannot be made: {e}")))?;
            }
            world.follow(&s.id, root, &ops, &vec![Ok(()); ops.len()])
        })?;
        match made {
            Some(()) => self.look_afresh(&s.id),
            None => Ok(()),
        }
    }

    pub fn default_subvolume(&mut self, s: &DefaultSubvolumeStep) -> Done {
        self.must_inside(&s.id, |_, root| {
            sys::btrfs::set_default(root).map_err(|e| {
                Fail::new(format!(
                    "{} cannot be made the default subvolume: {e}",
                    s.id
                ))
            })
        })
    }

    pub fn read_only_subvolume(&mut self, s: &ReadOnlySubvolumeStep) -> Done {
        self.must_inside(&s.id, |_, root| {
            sys::btrfs::set_read_only(root, true)
                .map_err(|e| Fail::new(format!("{} cannot be made read-only: {e}", s.id)))
        })
    }

    /// Somebody who has nothing to do with the driver has a subvolume of the same filesystem mounted read-only beside its home, which must
    /// be so still after the steps.
    pub fn guard_foreign_mount(&mut self, body: &[Step]) -> Done {
        let wrong = |e: io::Error| Fail::new(format!("the mount beside the home: {e}"));
        let name = format!("foreign-{}", self.scratch);
        self.scratch += 1;
        let at = self.homes().join(format!("{name}-mounted"));
        std::fs::create_dir(&at).map_err(wrong)?;
        let (by, read_only) = (SubvolumeBy::Id, MountFlags::RDONLY);
        let made = mount_new_subvolume(self.homes(), &name, by, &at, read_only).map_err(wrong)?;
        std::fs::write(made.join("kept"), b"kept").map_err(wrong)?;
        self.run(body)?;
        let kept = std::fs::read(at.join("kept")).is_ok_and(|kept| kept == b"kept");
        let written = std::fs::write(at.join("written"), b"");
        let refused = written.is_err_and(|e| e.kind() == io::ErrorKind::ReadOnlyFilesystem);
        if !kept || !refused {
            let what = "what is mounted read-only beside the home is not so any more";
            return Err(Fail::new(what));
        }
        sys::mount::umount_patiently(&at).map_err(wrong)
    }

    /// Somebody who has nothing to do with the driver has a subvolume beside its home, which must be the same after the steps.
    pub fn guard_foreign_subvolume(&mut self, body: &[Step]) -> Done {
        let wrong = |e: io::Error| Fail::new(format!("the subvolume beside the home: {e}"));
        let name = format!("foreign-{}", self.scratch);
        self.scratch += 1;
        let path = self.homes().join(&name);
        let beside = File::open(self.homes()).map_err(wrong)?;
        sys::btrfs::create_subvolume(beside.as_fd(), &name).map_err(|e| wrong(e.into()))?;
        std::fs::write(path.join("kept"), b"kept").map_err(wrong)?;
        let known = || {
            let dir = File::open(&path).map_err(wrong)?;
            sys::btrfs::info(dir.as_fd()).map_err(|e| wrong(e.into()))
        };
        let (before, held) = (known()?, HomeState::of(&path)?);
        self.run(body)?;
        if known()? != before {
            return Err(Fail::new(
                "the subvolume beside the home is another one now",
            ));
        }
        held.compare(&path)
            .map_err(|f| f.context("the subvolume beside the home"))
    }
}

/// Makes a subvolume in a directory and mounts it by itself, under its name or its number; gives its path in the directory.
pub(super) fn mount_new_subvolume(
    dir: &Path,
    name: &str,
    by: SubvolumeBy,
    at: &Path,
    flags: MountFlags,
) -> io::Result<PathBuf> {
    let dir = dir.canonicalize()?;
    sys::btrfs::create_subvolume(File::open(&dir)?.as_fd(), name)?;
    let made = dir.join(name);
    let on = sys::mount::mount_of(&dir)?;
    let option = match by {
        SubvolumeBy::Id => {
            let id = sys::btrfs::info(File::open(&made)?.as_fd())?.id;
            format!("subvolid={id}").into_bytes()
        }
        SubvolumeBy::Path => {
            let inside = made.strip_prefix(&on.path).map_err(io::Error::other)?;
            let path = on.root.join(inside);
            [b"subvol=", path.as_os_str().as_bytes()].concat()
        }
    };
    sys::mount::mount(Path::new(&on.source), at, "btrfs", flags, &option)?;
    Ok(made)
}

/// What it is to who only looks at the tree.
fn directory(path: &At<op::Path>) -> At<Op> {
    At {
        at: path.at.clone(),
        value: Op::Dir(DirOp {
            path: path.value.clone(),
            mode: Some(op::Mode(MODE)),
            owner: None,
            mtime: None,
            xattrs: op::Xattrs::default(),
            slash: false,
            fails: Vec::new(),
            may_fail: Vec::new(),
            as_owner: None,
        }),
    }
}

fn make(root: BorrowedFd<'_>, path: &TreePath) -> io::Result<()> {
    let parent = path.parent().unwrap_or_default();
    let dir = open_beneath(root, parent.as_bytes(), DIRECTORY, Mode::empty())?;
    let name = std::str::from_utf8(path.base()).map_err(io::Error::other)?;
    sys::btrfs::create_subvolume(dir.as_fd(), name)?;
    let made = open_beneath(dir.as_fd(), path.base(), DIRECTORY, Mode::empty())?;
    Ok(fchmod(&made, Mode::from_raw_mode(MODE))?)
}
