//! What the drivers on an overlay share: mounting, probing, and counting who has a layer.

mod layers;
mod mount;
mod mounter;
mod probe;

pub(super) use layers::{COMMITTED, MERGED, Mounts, View, freeze, make_mount_point, thaw};
#[cfg(test)]
pub(super) use mount::MAX_LOWERS;
pub(super) use mount::OverlayMount;
pub(super) use mounter::Mounter;
pub(super) use probe::{Behaviour, Support, lay_out, or_aside};
