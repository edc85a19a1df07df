//! The suites and the known results that are built in: one line a file.

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$((concat!("suites/", $name, ".yaml"), include_str!(concat!("../../suites/", $name, ".yaml"))),)*]
    };
}

/// The files of `suites/`: name and text. A new file is one line here.
pub(crate) const SUITES: &[(&str, &str)] = files!(
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
    "quotas",
    "paths",
    "space",
    "read-only",
    "power",
    "reflinks",
    "btrfs",
    "thin-pools",
    "aufs",
    "zfs",
    "kernels",
    "plugin",
);

/// The files of `suites/known/`, such as `"known/fuse-overlayfs"`. A new file is one line here.
pub(crate) const KNOWN: &[(&str, &str)] = files!(
    "known/devicemapper",
    "known/fuse",
    "known/fuse-overlayfs",
    "known/kernels",
    "known/zfs",
);

/// The requirements.
pub(crate) const REQUIREMENTS: (&str, &str) = (
    "suites/requirements.yaml",
    include_str!("../../suites/requirements.yaml"),
);
