//! The built-in drivers.

pub mod btrfs;
pub(crate) mod copy;
pub mod fuse_overlayfs;
mod home;
pub mod overlay;
pub mod overlay2;
mod overlayfs;
mod quota;
#[cfg(test)]
mod selection_tests;
#[cfg(test)]
mod tests;
pub mod vfs;

use std::sync::LazyLock;

use crate::graphdriver::{InitFunc, Registry};

/// Every built-in driver: one line each.
const BUILT_IN: &[(&str, InitFunc)] = &[
    (btrfs::NAME, btrfs::init),
    (fuse_overlayfs::NAME, fuse_overlayfs::init),
    (overlay::NAME, overlay::init),
    (overlay2::NAME, overlay2::init),
    (vfs::NAME, vfs::init),
];

/// The registry of the built-in drivers. Clone it to add some.
pub fn registry() -> &'static Registry {
    static REGISTRY: LazyLock<Registry> = LazyLock::new(|| {
        let mut registry = Registry::new();
        for (name, init) in BUILT_IN {
            // Names in a constant list that are not unique would be a bug that the test below finds.
            let _ = registry.register(name, init);
        }
        registry
    });
    &REGISTRY
}
