//! The suites that are built in: one line a file.

macro_rules! suites {
    ($($name:literal),* $(,)?) => {
        &[$((concat!("suites/", $name, ".yaml"), include_str!(concat!("../../suites/", $name, ".yaml"))),)*]
    };
}

/// The files of `suites/`: name and text. A new file is one line here.
pub(crate) const SUITES: &[(&str, &str)] = suites!(
    "lifecycle",
    "chains",
    "whiteouts",
    "copy-up",
    "files",
    "diff",
    "changes",
    "sizes",
    "mounts",
    "limits",
    "recovery",
    "selection",
    "views",
);

/// The requirements.
pub(crate) const REQUIREMENTS: (&str, &str) = (
    "suites/requirements.yaml",
    include_str!("../../suites/requirements.yaml"),
);
