//! The suites that are built in: one line a file.

/// The files of `suites/`: name and text. A new file is one line here.
pub(crate) const SUITES: &[(&str, &str)] = &[];

/// The requirements.
pub(crate) const REQUIREMENTS: (&str, &str) = ("suites/requirements.yaml", "requirements: []\n");
