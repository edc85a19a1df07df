//! What the kernel's overlay filesystem can do on a home: tried out, never concluded from a version number.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::mount::OverlayMount;
use crate::drivers::home::{Home, detach};
use crate::graphdriver::{Capability, Error, FsMagic, Result, get_fs_magic};
use crate::sys::{self, mount::MountFlags};

/// What was found.
#[derive(Clone, Debug)]
pub(in crate::drivers) struct Support {
    /// The filesystem below.
    pub backing: FsMagic,
    /// Options that every mount gets.
    pub options: Vec<&'static str>,
    /// Control attributes are `user.overlay.*`.
    pub user_xattr: bool,
    /// Lower directories can be given one by one, so that their number is not limited by a page of text.
    pub lowerdir_plus: bool,
    /// An upper directory holds all that its layer changed: no redirects, no data left below, opaque marks only where they belong.
    pub native_diff: bool,
    /// Whether a change of attributes leaves the data below (`metacopy`).
    pub metacopy: bool,
    /// What it does as seen from above.
    pub behaviour: Behaviour,
}

impl Support {
    /// Mounts an overlay of two lower directories in the home, or [aside](or_aside), and works in it.
    ///
    /// # Errors
    /// One of the not-supported errors, with the reason.
    pub fn probe(home: &Home) -> Result<Self> {
        let backing = get_fs_magic(home.path())?;
        or_aside(home, Self::probe_in(home), |at| {
            Probe::new(home.path(), at, backing).run()
        })
    }

    fn probe_in(home: &Home) -> Result<Self> {
        let backing = get_fs_magic(home.path())?;
        let stage = home.stage()?;
        let at = stage.path();
        let outcome = Probe::new(home.path(), &at, backing).run();
        let left = detach(&at.join("merged"));
        drop(stage);
        outcome.and_then(|support| left.map(|()| support))
    }

    fn attribute(&self, name: &str) -> String {
        attribute(self.user_xattr, name)
    }
}

/// What a trial in the home found, or the same trial on a tmpfs over the home, in a mount namespace that ends with it. A home that has
/// been used and has no room for a trial, or is on a disk that has become read-only, is spared: a tmpfs shows what is needed of the
/// kernel. Whoever wants to make room by removing layers needs a driver.
///
/// # Errors
/// The first failure.
pub(in crate::drivers) fn or_aside<T: Send>(
    home: &Home,
    found: Result<T>,
    trial: impl Fn(&Path) -> Result<T> + Sync,
) -> Result<T> {
    match found {
        Err(e)
            if (e.is_no_room() || e.errno() == Some(Errno::ROFS))
                && !home.layers(|_| false)?.is_empty() =>
        {
            aside(home, trial).map_err(|_| e)
        }
        found => found,
    }
}

fn aside<T: Send>(home: &Home, trial: impl Fn(&Path) -> Result<T> + Sync) -> Result<T> {
    let path = home.path();
    let at = path.join("trial");
    let failed = |e: io::Error| Error::io("mount a tmpfs for a trial over", path, e);
    let work = || {
        sys::ns::enter_private_mount_ns()
            .and_then(|()| {
                let none = MountFlags::empty();
                sys::mount::mount(Path::new("trial"), path, "tmpfs", none, b"")
            })
            .and_then(|()| fs::create_dir(&at))
            .map_err(failed)?;
        trial(&at)
    };
    sys::on_own_thread(work).map_err(failed)?
}

struct Probe<'a> {
    home: &'a Path,
    at: &'a Path,
    backing: FsMagic,
    lowers: [PathBuf; 2],
}

impl<'a> Probe<'a> {
    fn new(home: &'a Path, at: &'a Path, backing: FsMagic) -> Self {
        Self {
            home,
            at,
            backing,
            lowers: ["l2".into(), "l1".into()],
        }
    }

    fn run(&self) -> Result<Support> {
        lay_out(self.at).map_err(|e| Error::io("set up a trial overlay in", self.at, e))?;
        if !self
            .tells_types()
            .map_err(|e| Error::io("read", self.at, e))?
        {
            return Err(Error::IncompatibleFs(format!(
                "{} on {} does not tell the types of directory entries (d_type); make it anew with ftype=1 (xfs) or filetype (ext)",
                self.backing,
                self.home.display()
            )));
        }
        let user_xattr = sys::ns::in_user_ns();
        self.mark_opaque(user_xattr)?;
        let mut support = self.mount(user_xattr)?;
        self.work_in_it(&mut support)
            .map_err(|e| match Errno::from_io_error(&e) {
                Some(e @ (Errno::NOSPC | Errno::DQUOT)) => self.no_room(e),
                // The directory below can be written to, so it is only for want of room for the work directory.
                Some(Errno::ROFS) => self.no_room(Errno::NOSPC),
                _ => Error::IncompatibleFs(format!(
                    "an overlay on {} ({}) mounts but does not work: {e}",
                    self.home.display(),
                    self.backing
                )),
            })?;
        Ok(support)
    }

    /// A full disk says nothing about what the filesystem can do.
    fn no_room(&self, e: Errno) -> Error {
        Error::io("work in a trial overlay in", self.at, e)
    }

    fn tells_types(&self) -> io::Result<bool> {
        let dir = rustix::fs::open(self.at, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        let mut told = true;
        sys::fs::for_each_name(std::os::fd::AsFd::as_fd(&dir), |_, kind| {
            told &= kind != FileType::Unknown;
            Ok(())
        })?;
        Ok(told)
    }

    fn mark_opaque(&self, user_xattr: bool) -> Result<()> {
        let dir = self.at.join("l2/d");
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&dir, attribute(user_xattr, "opaque"), b"y", flags).map_err(|e| {
            let (backing, home) = (self.backing, self.home.display());
            let why =
                format!("{backing} on {home} does not keep the attributes of an overlay: {e}");
            match e {
                Errno::NOSPC | Errno::DQUOT => self.no_room(e),
                Errno::PERM => Error::Prerequisites(why),
                _ => Error::IncompatibleFs(why),
            }
        })
    }

    fn mount(&self, user_xattr: bool) -> Result<Support> {
        let mut options = Vec::new();
        // With an index, an upper directory cannot be mounted again after its lower ones were put together anew.
        if Path::new("/sys/module/overlay/parameters/index").exists() {
            options.push("index=off");
        }
        if user_xattr {
            options.push("userxattr");
        }
        // Unmounting flushes the whole filesystem below, unless what was written may be lost, as here (Linux 5.10).
        let mut trial = options.clone();
        trial.push("volatile");
        if self.overlay(&trial).mount(false).is_err() {
            let mounted = self.overlay(&options).mount(false);
            mounted.map_err(|e| self.refused(&e))?;
        }
        // Without an upper directory, which is in use now.
        let mut below = self.overlay(&options);
        below.upper = None;
        let lowerdir_plus = below.lowerdir_plus_works();
        Ok(Support {
            backing: self.backing,
            options,
            user_xattr,
            lowerdir_plus,
            native_diff: false,
            metacopy: false,
            behaviour: Behaviour::default(),
        })
    }

    fn refused(&self, e: &io::Error) -> Error {
        let mut what = format!(
            "an overlay cannot be mounted on {} ({}): {e}",
            self.home.display(),
            self.backing
        );
        if self.can_ignore_case() {
            what +=
                "; where directories can be made to ignore case, kernels before 6.18 mount none";
        }
        let stacked = [
            FsMagic::OVERLAY,
            FsMagic::AUFS,
            FsMagic::ECRYPTFS,
            FsMagic::ZFS,
            FsMagic::NFS,
        ];
        match Errno::from_io_error(e) {
            Some(e @ (Errno::NOSPC | Errno::DQUOT)) => self.no_room(e),
            Some(Errno::PERM | Errno::ACCESS) => Error::Prerequisites(what),
            Some(Errno::INVAL) if stacked.contains(&self.backing) => Error::IncompatibleFs(what),
            _ => Error::NotSupported(what),
        }
    }

    /// Whether directories here can be made to ignore case (ext4 with `-O casefold`).
    fn can_ignore_case(&self) -> bool {
        let dir = self.at.join("case");
        let made = fs::create_dir(&dir).and_then(|()| fs::File::open(&dir));
        made.and_then(|dir| sys::fsctl::ignore_case(&dir, true))
            .is_ok()
    }

    fn overlay<'o>(&'o self, options: &'o [&'static str]) -> OverlayMount<'o> {
        OverlayMount {
            home: self.at,
            lowers: &self.lowers,
            upper: Some(("l3".into(), "work".into())),
            target: "merged".into(),
            options,
            label: "",
        }
    }

    fn work_in_it(&self, support: &mut Support) -> io::Result<()> {
        let merged = |name: &str| self.at.join("merged").join(name);
        let upper = |name: &str| self.at.join("l3").join(name);

        support.behaviour = Behaviour::of(self.at)?;
        let whiteout = fs::symlink_metadata(upper("kept"))?;
        if !whiteout.file_type().is_char_device() || whiteout.rdev() != 0 {
            return Err(io::Error::other("a removed file leaves no whiteout"));
        }
        fs::set_permissions(merged("two"), fs::Permissions::from_mode(0o600))?;
        support.metacopy = has_attribute(&upper("two"), &support.attribute("metacopy"))?;

        // Kernels before 4.8 mark a copied-up directory opaque when the one below is; torvalds/linux 97c684cc9110.
        fs::write(merged("d/f"), "")?;
        let opaque = has_attribute(&upper("d"), &support.attribute("opaque"))?;
        let redirected = support.behaviour.dir_rename
            && has_attribute(&upper("d2"), &support.attribute("redirect"))?;
        support.native_diff = !opaque && !redirected && !support.metacopy;
        Ok(())
    }
}

/// Fills the directories of a trial overlay: `l1` is the lowest, `l2` lies on it, `l3` is the upper directory.
pub(in crate::drivers) fn lay_out(at: &Path) -> io::Result<()> {
    for dir in [
        "l1/d", "l1/d1", "l1/e", "l1/gone", "l2/d", "l3", "work", "merged",
    ] {
        fs::create_dir_all(at.join(dir))?;
    }
    for file in ["l1/f", "l1/e/f", "l1/kept", "l1/gone/x", "l2/one"] {
        fs::write(at.join(file), file)?;
    }
    fs::hard_link(at.join("l2/one"), at.join("l2/two"))
}

/// What differs between overlays, seen from above.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::drivers) struct Behaviour {
    /// A directory from below can be renamed.
    pub dir_rename: bool,
    /// Hard links from below stay together when one is written to.
    pub hard_links: bool,
    /// An inode number survives the first write.
    pub stable_inode: bool,
    /// A directory keeps its time when a file in it is first written to.
    pub dir_times: bool,
}

impl Behaviour {
    /// Works in a trial overlay (see [`lay_out`]) that is mounted in `merged`.
    ///
    /// # Errors
    /// Something that every overlay must be able to do fails.
    pub fn of(at: &Path) -> io::Result<Self> {
        let merged = |name: &str| at.join("merged").join(name);
        // moby#45890: filesystems on which the mount works and removing does not.
        fs::remove_file(merged("kept"))?;
        if fs::symlink_metadata(merged("kept")).is_ok() {
            return Err(io::Error::other("a removed file is still there"));
        }
        fs::remove_dir_all(merged("gone"))?;
        fs::create_dir(merged("gone"))?;
        if fs::read_dir(merged("gone"))?.next().is_some() {
            return Err(io::Error::other(
                "a directory made anew shows what was removed",
            ));
        }

        let before = fs::metadata(merged("f"))?;
        fs::write(merged("f"), "written")?;
        let after = fs::metadata(merged("f"))?;
        let old = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        fs::File::open(merged("e"))?.set_times(old)?;
        fs::write(merged("e/f"), "written")?;
        fs::write(merged("one"), "written")?;
        let dir_rename = match fs::rename(merged("d1"), merged("d2")) {
            Ok(()) => true,
            Err(e) if Errno::from_io_error(&e) == Some(Errno::XDEV) => false,
            Err(e) => return Err(e),
        };
        Ok(Self {
            dir_rename,
            hard_links: fs::read(merged("two"))? == b"written",
            stable_inode: (before.dev(), before.ino()) == (after.dev(), after.ino()),
            // Seen from above it may come out of a cache.
            dir_times: fs::metadata(at.join("l3/e"))?.mtime() == 0,
        })
    }

    /// What a driver on an overlay may claim, whatever its layout.
    pub fn claims(self) -> Vec<Capability> {
        let always = [
            Capability::CopiesUp,
            Capability::IdMaps,
            Capability::Mounts,
            Capability::HomeHoldsAll,
            Capability::FrozenParent,
            Capability::RefusesParentRemoval,
            Capability::Sockets,
        ];
        let probed = [
            (self.dir_rename, Capability::DirRename),
            (self.hard_links, Capability::HardlinkCopyUp),
            (self.stable_inode, Capability::StableInode),
            (self.dir_times, Capability::DirTimes),
        ];
        let probed = probed
            .into_iter()
            .filter_map(|(works, claim)| works.then_some(claim));
        probed.chain(always).collect()
    }
}

/// The attribute by which the kernel marks an entry.
fn attribute(user_xattr: bool, name: &str) -> String {
    let class = if user_xattr { "user" } else { "trusted" };
    format!("{class}.overlay.{name}")
}

fn has_attribute(path: &Path, name: &str) -> io::Result<bool> {
    match rustix::fs::lgetxattr(path, name, &mut [0u8; 256][..]) {
        Ok(_) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
