//! Drivers in other processes: being their client, and lending them ours.

pub mod plugin;
