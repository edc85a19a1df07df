//! Bugs in where a home lies: what else is mounted there, of which part of which filesystem, and how names are told apart.

use crate::graphdriver::Result;
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
