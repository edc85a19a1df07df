//! The program as what mounts overlays: found, tried out, and used.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::NAME;
use super::process::{answers, await_end, serve};
use crate::archive::Form;
use crate::drivers::home::{Home, detach};
use crate::drivers::overlayfs::{Behaviour, MERGED, Mounter, OverlayMount, lay_out, or_aside};
use crate::graphdriver::{Capability, Error, FsMagic, Result, get_fs_magic};
use crate::sys;

/// moby's limit of lower directories. The program has none of its own, but opens every one of them.
const MAX_LOWERS: usize = 128;

/// Bytes; more than the program needs for what it makes at its start.
const ROOM: usize = 64 << 10;

/// The version of the program on the `PATH`, as it tells it.
///
/// # Errors
/// [`Error::NotSupported`] when there is none, or it does not run.
pub(super) fn version() -> Result<String> {
    let program = sys::program::Program::new(NAME, NAME);
    program
        .version()
        .map_err(|e| Error::NotSupported(format!("the program {e}")))
}

/// The program, and what it does on a home.
#[derive(Debug)]
pub(super) struct Program {
    backing: FsMagic,
    behaviour: Behaviour,
}

impl Program {
    /// Mounts an overlay of two lower directories in the home, or [aside](or_aside), and works in it.
    ///
    /// # Errors
    /// One of the not-supported errors, with the reason.
    pub fn probe(home: &Home) -> Result<Self> {
        let program = Self {
            backing: get_fs_magic(home.path())?,
            behaviour: Behaviour::default(),
        };
        let trial = |at: &Path| {
            let outcome = program.try_out(at);
            let left = program.unmount(&at.join(MERGED));
            outcome.and_then(|behaviour| left.map(|()| behaviour))
        };
        let in_home = home.stage().and_then(|stage| trial(&stage.path()));
        let behaviour = or_aside(home, in_home, trial)?;
        Ok(Self {
            behaviour,
            ..program
        })
    }

    fn try_out(&self, at: &Path) -> Result<Behaviour> {
        lay_out(at).map_err(|e| Error::io("set up a trial overlay in", at, e))?;
        self.mount_trial(at)?;
        let mut behaviour = Behaviour::of(at).map_err(|e| match Errno::from_io_error(&e) {
            // A full disk says nothing about what the program can do.
            Some(Errno::NOSPC | Errno::DQUOT) => Error::io("work in a trial overlay in", at, e),
            _ => {
                let backing = self.backing;
                let (at, why) = (at.display(), "mounts but does not work");
                Error::IncompatibleFs(format!("{NAME} on {at} ({backing}) {why}: {e}"))
            }
        })?;
        // While it is mounted the program knows which names were links; on the disk they part.
        let merged = at.join(MERGED);
        self.unmount(&merged)?;
        self.mount_trial(at)?;
        behaviour.hard_links &= std::fs::read(merged.join("two")).is_ok_and(|d| d == b"written");
        Ok(behaviour)
    }

    fn mount_trial(&self, at: &Path) -> Result<()> {
        let lowers = ["l2", "l1"].map(PathBuf::from);
        let mounted = self.mount(&OverlayMount {
            home: at,
            lowers: &lowers,
            upper: Some(("l3".into(), "work".into())),
            target: MERGED.into(),
            options: &[],
            label: "",
        });
        // The program tells its errors in words; whether there is room is asked again.
        mounted.map_err(|e| match std::fs::write(at.join("room"), [1; ROOM]) {
            Err(full) if full.kind() == io::ErrorKind::StorageFull => {
                Error::io("mount a trial overlay in", at, full)
            }
            _ => self.refused(e),
        })
    }

    fn refused(&self, e: Error) -> Error {
        let why = format!("{NAME} cannot be mounted on {}: {e}", self.backing);
        match &e {
            Error::Io { source, .. } => match Errno::from_io_error(source) {
                Some(Errno::PERM | Errno::ACCESS) => Error::Prerequisites(why),
                _ => Error::NotSupported(why),
            },
            _ => Error::NotSupported(why),
        }
    }
}

impl Mounter for Program {
    fn mount(&self, overlay: &OverlayMount<'_>) -> Result<()> {
        let target = overlay.home.join(&overlay.target);
        // What is left of a mount whose process died.
        while sys::mount::is_mount_point(&target).unwrap_or(false) {
            detach(&target)?;
        }
        serve(overlay, &target)
    }

    fn serves(&self, merged: &Path) -> bool {
        sys::mount::is_mount_point(merged).unwrap_or(false) && answers(merged)
    }

    fn unmount(&self, merged: &Path) -> Result<()> {
        match sys::mount::umount(merged).map_err(|e| Errno::from_io_error(&e).ok_or(e)) {
            Ok(()) => {}
            Err(Ok(Errno::BUSY)) => {
                // Somebody has a file open: it is gone from here now, and its process ends when that is closed.
                self.settle(merged)?;
                return detach(merged);
            }
            Err(Ok(Errno::INVAL | Errno::NOENT)) => {}
            Err(Ok(e)) => return Err(Error::io("unmount", merged, e)),
            Err(Err(e)) => return Err(Error::io("unmount", merged, e)),
        }
        await_end(merged);
        Ok(())
    }

    fn settle(&self, merged: &Path) -> Result<()> {
        if !self.serves(merged) {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(merged, flags, Mode::empty());
        root.and_then(rustix::fs::syncfs)
            .map_err(|e| Error::io("flush", merged, e))
    }

    fn max_lowers(&self) -> usize {
        MAX_LOWERS
    }

    fn takes(&self, _overlay: &OverlayMount<'_>) -> bool {
        true
    }

    fn wants_short_names(&self) -> bool {
        true
    }

    // Beside what the kernel writes there are marks of the program's own, which differ from version to version.
    fn upper_form(&self) -> Option<Form> {
        None
    }

    fn claims(&self) -> Vec<Capability> {
        self.behaviour.claims()
    }

    fn status(&self) -> Vec<(String, String)> {
        vec![("Backing Filesystem".to_owned(), self.backing.to_string())]
    }
}
