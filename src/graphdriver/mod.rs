//! The contract: what every graph driver is, says and may refuse.
//!
//! The interfaces are those of moby's `daemon/graphdriver` (1.9 to 28), in idiomatic Rust: [`ProtoDriver`] is the minimum, [`Driver`] adds
//! the differ. Requirements on them are numbered in `suites/requirements.yaml` and are stricter than any one driver.

mod capability;
mod driver;
mod error;

pub use capability::{Capabilities, Capability};
pub use driver::{
    Change, ChangeKind, CreateOpts, DiffGetter, DiffStream, Driver, FileGetCloser, ProtoDriver,
};
pub use error::{Error, ErrorClass, Result};
