//! Bugs in where a home lies: what else is mounted there, of which part of which filesystem, and how names are told apart.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use crate::graphdriver::Result;
use crate::sys::fsctl::{ignore_case, ignores_case};
use crate::sys::mount::umount_detach;

use super::base::{Base, Bug};
use super::calls::stateless;

stateless! {
    /// Cleanup unmounts the home itself.
    CleanupUnmountsHome;
}

impl Bug for CleanupUnmountsHome {
    fn cleanup(&self, b: &Base) -> Result<()> {
        b.inner.cleanup()?;
        // Where nothing is mounted on it there is nothing to do wrong.
        let _ = umount_detach(&b.home);
        Ok(())
    }
}

/// What [`heeding_case`] makes.
pub(super) const HEEDING: &str = "heeding-case";

/// A directory in the home that heeds case; the home itself where it does.
pub(super) fn heeding_case(home: &Path) -> io::Result<Cow<'_, Path>> {
    if !ignores_case(File::open(home)?.as_fd()) {
        return Ok(home.into());
    }
    let place = home.join(HEEDING);
    match fs::create_dir(&place) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.and_then(|()| ignore_case(&File::open(&place)?, false))?,
    }
    Ok(place.into())
}
