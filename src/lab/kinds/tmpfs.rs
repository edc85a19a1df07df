//! A filesystem in memory.

use super::{Kind, Recipe};

pub(in crate::lab) const TMPFS: Kind = Kind {
    name: "tmpfs",
    about: "a tmpfs mounted for the cell; needs root or a user namespace",
    recipe: Recipe::Tmpfs,
};
