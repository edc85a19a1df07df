//! What differs between a layer and its parent.

use std::fmt;

use crate::tree::TreePath;

/// The kind of a change; the numbers are those of the graph-driver plugin protocol (`Changes[].Kind`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChangeKind {
    /// Present in both, and different.
    Modify = 0,
    /// Present only in the layer.
    Add = 1,
    /// Present only in the parent.
    Delete = 2,
}

/// One changed path. Printed as moby prints it: `C /a`, `A /a`, `D /a`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Change {
    /// The path inside the layer, never the root.
    pub path: TreePath,
    /// What happened to it.
    pub kind: ChangeKind,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.kind {
            ChangeKind::Modify => 'C',
            ChangeKind::Add => 'A',
            ChangeKind::Delete => 'D',
        };
        write!(f, "{letter} /{}", self.path)
    }
}
