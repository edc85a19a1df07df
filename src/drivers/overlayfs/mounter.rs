//! What shows the layers of an overlay: the kernel's own filesystem, or a program.

use std::fmt;
use std::path::{Path, PathBuf};

use super::layers::MERGED;
use super::mount::{MAX_LOWERS, OverlayMount};
use super::probe::Support;
use crate::archive::Form;
use crate::drivers::home::detach;
use crate::graphdriver::{Capability, Error, Result};
use crate::sys;

/// moby's limit of lower directories, used where the kernel takes no more than a page of options.
const PAGE_LOWERS: usize = 128;

/// Mounts overlays and takes them away.
pub(in crate::drivers) trait Mounter: fmt::Debug + Send + Sync {
    /// Options that every mount gets.
    fn options(&self) -> &[&'static str] {
        &[]
    }

    /// Where a layer is mounted, relative to the home: two names, of which one is its id.
    fn mount_point(&self, id: &str) -> PathBuf {
        Path::new(id).join(MERGED)
    }

    /// Mounts it.
    fn mount(&self, overlay: &OverlayMount<'_>) -> Result<()>;

    /// Whether something is mounted at `merged` and answers.
    fn serves(&self, merged: &Path) -> bool {
        sys::mount::is_mount_point(merged).unwrap_or(false)
    }

    /// Takes away what is mounted at `merged`; that nothing is mounted there is success.
    fn unmount(&self, merged: &Path) -> Result<()> {
        detach(merged)
    }

    /// Sees to it that what was written below `merged` so far, where the layer is mounted, is in its upper directory.
    fn settle(&self, _merged: &Path) -> Result<()> {
        Ok(())
    }

    /// The most lower directories of one mount.
    fn max_lowers(&self) -> usize;

    /// Whether so many names of such length can be handed over.
    fn takes(&self, overlay: &OverlayMount<'_>) -> bool;

    /// Whether paths of layers must not hold the characters that ids may; the short names of overlay2 are to be used then.
    fn wants_short_names(&self) -> bool {
        false
    }

    /// How deletions stand in an upper directory; `None` when the directory does not tell all that its layer changed.
    fn upper_form(&self) -> Option<Form>;

    /// What a driver on it may claim, whatever its layout.
    fn claims(&self) -> Vec<Capability>;

    /// Lines of the status.
    fn status(&self) -> Vec<(String, String)>;
}

impl Mounter for Support {
    fn options(&self) -> &[&'static str] {
        &self.options
    }

    fn mount(&self, overlay: &OverlayMount<'_>) -> Result<()> {
        overlay
            .mount(self.lowerdir_plus)
            .map_err(|e| Error::io("mount", overlay.home.join(&overlay.target), e))
    }

    fn max_lowers(&self) -> usize {
        if self.lowerdir_plus {
            MAX_LOWERS
        } else {
            PAGE_LOWERS
        }
    }

    fn takes(&self, overlay: &OverlayMount<'_>) -> bool {
        self.lowerdir_plus || overlay.fits_in_a_page()
    }

    fn upper_form(&self) -> Option<Form> {
        let form = if self.user_xattr {
            Form::OverlayUser
        } else {
            Form::Overlay
        };
        self.native_diff.then_some(form)
    }

    fn claims(&self) -> Vec<Capability> {
        self.behaviour.claims()
    }

    fn status(&self) -> Vec<(String, String)> {
        [
            ("Backing Filesystem", self.backing.to_string()),
            ("Supports d_type", true.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }
}
