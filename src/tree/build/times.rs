//! Directory times that wait for the end of a list of operations.

use crate::tree::op::Op;
use crate::tree::{Timestamp, TreePath};

/// Modification times to be set after the last operation, so that what is made inside does not move them. Follows the directories
/// when they are renamed, and forgets those that are removed.
#[derive(Clone, Debug, Default)]
pub struct DirTimes(pub Vec<(TreePath, Timestamp)>);

impl DirTimes {
    /// Takes note of an operation that succeeded.
    pub fn follow(&mut self, op: &Op) {
        match op {
            Op::Dir(o) => {
                if let Some(time) = &o.mtime {
                    self.0.push((o.path.0.clone(), time.0));
                }
            }
            // A later touch is the last word.
            Op::Touch(o) => self.0.retain(|(path, _)| *path != o.path.0),
            Op::Remove(_) | Op::Rmdir(_) => self.forget(op.path()),
            Op::Rename(o) if o.path != o.to => {
                let (from, to) = (&o.path.0, &o.to.0);
                if !o.exchange {
                    self.forget(to);
                }
                for (path, _) in &mut self.0 {
                    if let Some(moved) = rebased(path, from, to) {
                        *path = moved;
                    } else if o.exchange
                        && let Some(moved) = rebased(path, to, from)
                    {
                        *path = moved;
                    }
                }
            }
            _ => {}
        }
    }

    fn forget(&mut self, gone: &TreePath) {
        self.0
            .retain(|(path, _)| path != gone && !path.is_below(gone));
    }
}

/// `path` with its leading `from` replaced; `None` when it is not at or below `from`.
fn rebased(path: &TreePath, from: &TreePath, to: &TreePath) -> Option<TreePath> {
    if path != from && !path.is_below(from) {
        return None;
    }
    let mut bytes = to.0.clone();
    bytes.extend_from_slice(&path.0[from.0.len()..]);
    Some(TreePath(bytes))
}
