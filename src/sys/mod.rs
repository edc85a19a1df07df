//! Kernel interfaces, one file each. The only module that may use `unsafe`.

pub mod btrfs;
pub mod copy;
mod cpus;
pub mod direct;
pub mod dm;
pub mod errno;
pub mod fiemap;
pub mod fs;
pub mod fsctl;
pub mod identity;
pub mod kmsg;
pub mod kvm;
pub mod loopdev;
pub mod memory;
pub mod mount;
pub mod ns;
mod nvlist;
pub mod program;
pub mod ptrace;
pub mod quota;
pub mod remove;
pub mod spawn;
mod thread;
pub mod xattr;
pub mod zfs;

pub use cpus::cpus;
pub use identity::{act_as, unshare_fs, with_umask};
pub use thread::on_own_thread;
