//! Kernel interfaces, one file each. The only module that may use `unsafe`.

pub mod remove;
