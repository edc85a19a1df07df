//! A plain directory.

use super::{Kind, Recipe};

pub(in crate::lab) const DIR: Kind = Kind {
    name: "dir",
    about: "the filesystem of the current directory, or of an existing one with dir:PATH; nothing is mounted",
    recipe: Recipe::Dir,
};
