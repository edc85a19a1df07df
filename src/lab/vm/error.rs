//! What can go wrong before a guest runs.

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// What was asked for makes no sense: no such kernel.
    #[error("{0}")]
    Unknown(String),
    /// It cannot be had here and now.
    #[error("{0}")]
    Cannot(String),
}

/// What most functions of this module return.
pub type Result<T> = std::result::Result<T, VmError>;

/// Shorthand for [`VmError::Cannot`].
pub(super) fn cannot(why: impl Into<String>) -> VmError {
    VmError::Cannot(why.into())
}

/// Turns the error of a call on a path into a [`VmError`]: `PATH: WHAT: errno`.
pub(super) fn at<E: std::fmt::Display>(
    path: &std::path::Path,
    what: &str,
) -> impl FnOnce(E) -> VmError {
    let path = path.display().to_string();
    move |e| cannot(format!("{path}: {what}: {e}"))
}
