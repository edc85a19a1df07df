//! Overlays: homes on a filesystem that is itself put together, by the kernel or by a program.

use super::{Kind, Program, Recipe};

pub(super) const OVERLAY: Kind = Kind {
    name: "overlay",
    about: "an overlay mount of the kernel over a tmpfs",
    recipe: Recipe::Overlay(None),
};

pub(super) const FUSE: Kind = Kind {
    name: "fuse",
    about: "a FUSE filesystem: a mount of fuse-overlayfs over a tmpfs",
    recipe: Recipe::Overlay(Some(Program::new("fuse-overlayfs", "fuse-overlayfs"))),
};
