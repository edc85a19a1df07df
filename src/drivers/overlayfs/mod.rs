//! What the two drivers on the kernel's overlay filesystem share: mounting, probing, and counting who has a layer.

mod layers;
mod mount;
mod probe;

pub(super) use layers::{COMMITTED, MERGED, Mounts, View, freeze, thaw};
pub(super) use mount::{MAX_LOWERS, OverlayMount};
pub(super) use probe::Support;
