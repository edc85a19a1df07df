//! Layers as tar: changes, whiteouts, writing, applying, sizes, tar-split.

mod change;
mod error;

pub use change::{Change, ChangeKind};
pub use error::Error;
