//! The built-in drivers.
