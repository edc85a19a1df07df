//! `fuse-overlayfs`: the layers of [`super::overlay2`], shown by the program of that name instead of the kernel.
//!
//! The layout is that of moby's driver, which is overlay2's. What differs from moby's, for the caller's sake, beside what differs in
//! [`super::overlay2`]:
//!
//! - The driver makes the mount and hands it to the program, so a mount is there or not whenever either of them dies, and
//!   device nodes in it work. An unmount waits for the end of the process that served it, so that the filesystem below is free then.
//! - A mount whose process was killed is made anew by the next `get`.
//! - Paths are handed over relative to the home and by short names, so that no character of the home or of an id means anything.
//! - `storageOpt size` is kept where the filesystem below has project quotas.

mod process;
mod program;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use super::home::Home;
use super::overlay2::{self, Kind};
use crate::graphdriver::{Driver, Error, InitOptions, Result};
use program::Program;

/// The registered name, and the program's.
pub const NAME: &str = "fuse-overlayfs";

/// Starts the driver, which has no options (moby's ignores them).
///
/// # Errors
/// Any option; one of the not-supported errors when the program is missing, or shows no layers here.
pub fn init(home: &Path, init: &InitOptions) -> Result<Arc<dyn Driver>> {
    if let Some(option) = init.options.first() {
        return Err(Error::InvalidOption {
            key: option.clone(),
            why: format!("{NAME} takes no options"),
        });
    }
    let version = program::version()?;
    let home = Home::open_with(home, overlay2::KEPT, &init.id_maps)?;
    let kind = Kind {
        name: NAME,
        size: None,
        status: vec![(NAME.to_owned(), version)],
        mounter: Arc::new(Program::probe(&home)?),
    };
    overlay2::start(home, kind, init)
}
