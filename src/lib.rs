//! graphtest: the conformance suite and test harness for container *graph drivers*, the layered-storage drivers under Docker,
//! Podman and containerd.
//!
//! Modules import downwards only:
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`graphtest`] | the framework: scenario language, loading, selection, running, mutants, events, reports |
//! | [`lab`] | where a driver's home can live, and how it is given back |
//! | `remote` | drivers in other processes, and lending the built-in ones (with the feature `plugin`) |
//! | [`drivers`] | the built-in drivers |
//! | [`graphdriver`] | the contract: traits, errors, capabilities, registry, naive diff |
//! | [`archive`] | layers as tar: changes, whiteouts, write, apply, size, tar-split |
//! | [`tree`] | a directory tree as a value: scan, compare, build, the in-memory model |
//! | [`sys`] | kernel interfaces; the only module with `unsafe` |

pub mod archive;
#[cfg(feature = "cli")]
pub mod cli;
pub mod drivers;
pub mod graphdriver;
pub mod graphtest;
pub mod lab;
mod named;
#[cfg(feature = "plugin")]
pub mod remote;
mod sync;
pub mod sys;
pub mod tree;

pub use graphtest::harness;
