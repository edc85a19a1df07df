//! Layers as tar: changes, whiteouts, writing, applying, sizes, tar-split.

mod above;
mod apply;
mod change;
mod changes;
mod compare;
mod error;
pub mod fixtures;
mod form;
mod header;
mod id_map;
pub mod manifest;
mod model_changes;
mod names;
mod pax;
pub mod read;
mod size;
pub mod split;
#[cfg(test)]
pub(crate) mod testing;
mod walk;
mod write;
mod xattrs;

pub(crate) use above::add_directories_above;
pub use apply::{Applied, ApplyOptions, apply, apply_layer};
pub use change::{Change, ChangeKind};
pub use changes::{ChangesOptions, changes, changes_with, layer_changes};
pub use error::Error;
pub use form::Form;
pub(crate) use header::checksum_holds;
pub use header::{EntryHeader, EntryKind, Extent};
pub use id_map::{IdMap, IdMaps, Unmapped};
pub use model_changes::model_changes;
pub use size::{diff_size, layer_size, layer_size_in};
pub use write::{FileRun, LayerStream, WriteOptions};
