//! Layers as tar: changes, whiteouts, writing, applying, sizes, tar-split.

mod change;
mod error;
mod id_map;

pub use change::{Change, ChangeKind};
pub use error::Error;
pub use id_map::{IdMap, IdMaps, Unmapped};
