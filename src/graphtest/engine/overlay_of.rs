//! The step overlay-of: what somebody else does with the overlay that a layer is.

use std::os::fd::AsFd;
use std::path::PathBuf;

use super::call::{Done, Fail};
use super::home::{make_dir, mount_overlay};
use super::lifecycle::open_dir;
use super::world::World;
use crate::graphtest::step::OverlayOfStep;
use crate::sys;

impl World<'_> {
    /// The directories are those that the layout of overlay2 has.
    pub fn overlay_of(&mut self, s: &OverlayOfStep) -> Done {
        let layer = self.home.join(&s.id);
        let lower = std::fs::read_to_string(layer.join("lower"))
            .map_err(|e| Fail::new(format!("the lower layers of {} are not known: {e}", s.id)))?;
        let lowers: Vec<PathBuf> = lower
            .split(':')
            .map(|short| self.home.join(short))
            .collect();
        let at = self.scratch_home();
        make_dir(&at)?;
        mount_overlay(
            &at,
            &lowers,
            &layer.join("diff"),
            &layer.join("work"),
            &s.options,
        )?;
        let wrong = |e: std::io::Error| Fail::new(format!("the overlay of {}: {e}", s.id));
        let worked = open_dir(&at)
            .map_err(|e| wrong(e.into()))
            .and_then(|root| self.work_in(&s.id, root.as_fd(), &s.ops));
        let gone = sys::mount::umount_patiently(&at).and_then(|()| std::fs::remove_dir(&at));
        worked?;
        gone.map_err(wrong)?;
        self.look_afresh(&s.id)
    }
}
