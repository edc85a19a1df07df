//! Carrying out operations in a real directory, and judging what came of them.
//!
//! Paths are resolved as if the layer's root were `/`: symbolic links on the way are followed but never lead outside. The
//! umask is 0 while operations run.

mod blocks;
mod steps;
#[cfg(test)]
mod tests;
mod times;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::TreePath;
use super::op::Op;
use crate::sys;
use crate::sys::errno;

pub(super) use steps::{
    CREATE_MODE_DIR, CREATE_MODE_FILE, MAX_NAMED_PATH, XATTR_NAME_MAX, XATTR_SIZE_MAX, open_flags,
};
pub(super) use times::DirTimes;

/// Why an operation did not do what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The kernel refused it.
    Errno(Errno),
    /// It was carried out, and what was read is not what was stated.
    Mismatch(String),
    /// It makes no sense: an unknown flag, an inode that was never saved.
    Invalid(String),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(errno) => Self::Errno(errno),
            None => Self::Invalid(error.to_string()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errno(e) => f.write_str(&errno::name(*e)),
            Self::Mismatch(what) | Self::Invalid(what) => f.write_str(what),
        }
    }
}

/// What came of one operation.
pub type Outcome = Result<(), Failure>;

/// The inodes that a scenario's `inode` operations remember, by name.
#[derive(Clone, Debug, Default)]
pub struct Inodes(pub(super) HashMap<String, InodeId>);

/// What identifies an inode: the device's major and minor number, and `st_ino`.
pub(super) type InodeId = (u32, u32, u64);

/// An operation that came out otherwise than it states.
#[derive(Clone, Debug, thiserror::Error)]
#[error("operation {} ({verb}: {path}): {expected} expected, {found}", index + 1)]
pub struct OpError {
    /// Its place in the list, from 0.
    pub index: usize,
    /// Its verb.
    pub verb: &'static str,
    /// Its path.
    pub path: TreePath,
    /// What it states.
    pub expected: String,
    /// What came of it.
    pub found: String,
}

/// Carries out one operation below `root` and judges nothing. The modification time of a `dir` is not set here, see [`run_ops`].
pub fn run_op(root: BorrowedFd<'_>, op: &Op, inodes: &mut Inodes) -> Outcome {
    sys::with_umask(0, || as_stated(root, op, inodes))?
}

fn as_stated(root: BorrowedFd<'_>, op: &Op, inodes: &mut Inodes) -> Outcome {
    match op.as_owner() {
        Some(owner) => {
            sys::act_as(owner.uid, owner.gid, || steps::run(root, op, inodes)).map_err(|e| {
                Failure::Invalid(format!("cannot act as {}:{}: {e}", owner.uid, owner.gid))
            })?
        }
        None => steps::run(root, op, inodes),
    }
}

/// Carries out all operations below `root`, also after one has failed, then sets the modification times of the directories made.
/// Judges nothing: the outcomes come in the order of the operations.
///
/// # Errors
/// When the calling thread cannot have a umask of its own, or a directory's time cannot be set.
pub fn run_ops(root: BorrowedFd<'_>, ops: &[Op], inodes: &mut Inodes) -> io::Result<Vec<Outcome>> {
    let mut times = DirTimes::default();
    let outcomes = sys::with_umask(0, || {
        let run = |op| {
            let outcome = as_stated(root, op, inodes);
            if outcome.is_ok() {
                times.follow(op);
            }
            outcome
        };
        ops.iter().map(run).collect()
    })?;
    steps::set_dir_times(root, &times)?;
    Ok(outcomes)
}

/// Carries out operations below `root` until one comes out otherwise than it states (`fails:`, `may-fail:`), then sets the
/// modification times of the directories made.
///
/// # Errors
/// The first operation that came out otherwise.
pub fn apply_ops(
    root: BorrowedFd<'_>,
    ops: &[Op],
    inodes: &mut Inodes,
) -> Result<Vec<Outcome>, OpError> {
    let mut times = DirTimes::default();
    let applied = sys::with_umask(0, || {
        let mut outcomes = Vec::with_capacity(ops.len());
        for (index, op) in ops.iter().enumerate() {
            let outcome = as_stated(root, op, inodes);
            judge(index, op, &outcome)?;
            if outcome.is_ok() {
                times.follow(op);
            }
            outcomes.push(outcome);
        }
        Ok(outcomes)
    });
    let harness = |what: &str, e: io::Error| OpError {
        index: ops.len().saturating_sub(1),
        verb: "list",
        path: TreePath::root(),
        expected: what.to_string(),
        found: e.to_string(),
    };
    let outcomes = applied.map_err(|e| harness("a umask of 0", e))??;
    steps::set_dir_times(root, &times).map_err(|e| harness("directory times set at the end", e))?;
    Ok(outcomes)
}

/// Whether an operation came out as it states.
///
/// # Errors
/// What was expected and what was found.
pub fn judge(index: usize, op: &Op, outcome: &Outcome) -> Result<(), OpError> {
    let named = |names: &[String], e: Errno| {
        names
            .iter()
            .any(|n| n == "any" || errno::from_name(n) == Some(e))
    };
    let as_stated = match outcome {
        Ok(()) => op.fails().is_empty(),
        Err(Failure::Errno(e)) => {
            named(op.fails(), *e) || (op.fails().is_empty() && named(op.may_fail(), *e))
        }
        Err(Failure::Mismatch(_) | Failure::Invalid(_)) => false,
    };
    if as_stated {
        return Ok(());
    }
    let expected = match (op.fails(), op.may_fail(), outcome) {
        // The text says both sides.
        (_, _, Err(Failure::Mismatch(_) | Failure::Invalid(_))) | ([], [], _) => {
            "success".to_string()
        }
        ([], may, _) => format!("success or {}", may.join(" or ")),
        (fails, _, _) => fails.join(" or "),
    };
    let found = match outcome {
        Ok(()) => "it succeeded".to_string(),
        Err(failure) => format!("found: {failure}"),
    };
    Err(OpError {
        index,
        verb: op.verb(),
        path: op.path().clone(),
        expected,
        found,
    })
}
