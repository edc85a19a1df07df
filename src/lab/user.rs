//! The directories of the user that things are kept in, as the XDG base directory specification has them.

use std::path::PathBuf;

/// A path that a variable of the environment names; an empty one names none.
pub(super) fn named(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable)
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
}

/// graphtest's part of a directory that `variable` names, or else of `below` in the home directory.
pub(super) fn dir(variable: &str, below: &str) -> Option<PathBuf> {
    named(variable)
        .or_else(|| named("HOME").map(|home| home.join(below)))
        .map(|dir| dir.join("graphtest"))
}
