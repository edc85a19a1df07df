//! A directory tree as a value: what a layer holds, how it is built, scanned, compared and modelled.

mod entry;
pub mod op;

pub use entry::{Content, Digest, Entry, Kind, Owner, Rdev, Timestamp, Tree, TreePath};
