//! A directory tree as a value: what a layer holds, how it is built, scanned, compared and modelled.

pub mod build;
pub mod compare;
pub mod content;
pub mod data;
mod entry;
pub mod model;
pub mod op;
mod pattern;
pub mod scan;

pub use compare::{Compare, TimeResolution, TreeDiff, compare};
pub use entry::{Content, Digest, Entry, Kind, Owner, Rdev, Timestamp, Tree, TreePath};
pub use model::{Model, Prediction};
pub use scan::{ScanOptions, scan, scan_path};
