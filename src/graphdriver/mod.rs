//! The contract: what every graph driver is, says and may refuse.
//!
//! The interfaces are those of moby's `daemon/graphdriver` (1.9 to 28), in idiomatic Rust: [`ProtoDriver`] is the minimum, [`Driver`] adds
//! the differ. Requirements on them are numbered in `suites/requirements.yaml` and are stricter than any one driver.

mod capability;
mod checker;
mod driver;
mod error;
mod files;
mod image;
mod layer_id;
mod magic;
mod naive;
mod options;
mod registry;

pub use crate::archive::{IdMap, IdMaps};
pub use capability::{Capabilities, Capability};
pub use checker::{Checker, FsChecker, MountTableChecker, RefCounter, make_private};
pub use driver::{
    Change, ChangeKind, CreateOpts, DiffGetter, DiffRead, DiffStream, Driver, FileGetCloser,
    FileRun, ProtoDriver,
};
pub use error::{Error, ErrorClass, Result};
pub use files::{LayerFiles, layer_files};
pub use image::{ImageDescriptor, ImageRestorer, Recorder, Tagger};
pub use layer_id::LayerId;
pub use magic::{FsMagic, get_fs_magic};
pub(crate) use naive::delegate_proto_driver;
pub use naive::{ApplyDiff, Held, NaiveDiff, NaiveDiffWithApply};
pub use options::{parse_bool, parse_key_value, parse_size};
pub use registry::{InitFunc, InitOptions, PRIORITY, Registry, requested};
