//! The built-in drivers.

pub mod aufs;
pub mod btrfs;
pub(crate) mod copy;
pub mod devicemapper;
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
pub mod zfs;

use std::sync::LazyLock;

use crate::graphdriver::{InitFunc, Registry};

/// Every built-in driver: one line each, with the filesystem that its homes must lie on, where it must be a certain one.
const BUILT_IN: &[(&str, InitFunc, Option<&str>)] = &[
    (aufs::NAME, aufs::init, None),
    (btrfs::NAME, btrfs::init, Some("btrfs")),
    (devicemapper::NAME, devicemapper::init, None),
    (fuse_overlayfs::NAME, fuse_overlayfs::init, None),
    (overlay::NAME, overlay::init, None),
    (overlay2::NAME, overlay2::init, None),
    (vfs::NAME, vfs::init, None),
    (zfs::NAME, zfs::init, Some("zfs")),
];

/// The registry of the built-in drivers. Clone it to add some.
pub fn registry() -> &'static Registry {
    static REGISTRY: LazyLock<Registry> = LazyLock::new(|| {
        let mut registry = Registry::new();
        for (name, init, _) in BUILT_IN {
            // Names in a constant list that are not unique would be a bug that the test below finds.
            let _ = registry.register(name, init);
        }
        registry
    });
    &REGISTRY
}

/// The filesystem, as statfs(2) and mount(8) call it, that the homes of a built-in driver must lie on; `None`: it need not be a certain one.
pub fn filesystem(name: &str) -> Option<&'static str> {
    let entry = BUILT_IN.iter().find(|(known, ..)| *known == name);
    entry.and_then(|(.., filesystem)| *filesystem)
}
