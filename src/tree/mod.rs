//! A directory tree as a value: what a layer holds, how it is built, scanned, compared and modelled.

pub mod content;
mod entry;
pub mod op;
pub mod scan;

pub use entry::{Content, Digest, Entry, Kind, Owner, Rdev, Timestamp, Tree, TreePath};
pub use scan::{ScanOptions, scan, scan_path};
