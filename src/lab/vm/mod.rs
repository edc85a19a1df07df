//! Guests with kernels other than this machine's: packaged kernels, a root made from packages, an emulator; no root needed and
//! nothing installed but the emulator.
//!
//! A guest runs one [`Job`] and says over a serial line what comes of it; [`Lab::run`] starts it, listens, and ends it.

mod cache;
mod deb;
mod emulator;
mod error;
mod fetch;
mod guest;
mod image;
mod index;
pub mod init;
mod initrd;
mod kernel;
mod mirror;
mod program;
mod recipe;
mod userland;
mod version;
mod wire;
mod zfs;

pub use cache::Cache;
pub use emulator::{Accel, Emulator};
pub use error::VmError;
pub use guest::{Broken, Deadlines, End, Lab, Said};
pub use kernel::Kernel;
pub use mirror::Mirrors;
pub use program::Program;
pub use recipe::{KernelEntry, kernel, kernels, kernels_between};
pub use userland::Userland;
pub use wire::{JOB_DIR, Job};

/// Where a guest has the graphtest program.
pub const PROGRAM: &str = image::PROGRAM;
