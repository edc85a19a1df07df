//! Docker's graph-driver plugin protocol, 1.9 to 27: HTTP and JSON over a socket (moby `daemon/graphdriver/proxy.go`, `pkg/plugins`).
//!
//! Every call is `POST /GraphDriver.METHOD`. [`Plugin`] is the daemon's side: it makes a [`crate::graphdriver::Driver`] of whatever
//! answers. [`Server`] is the plugin's side: it lends a driver to a daemon. HTTP itself is `ureq-proto`'s.
//!
//! The protocol says errors as text only, and paths as JSON strings. What the two sides here have to say beyond it goes into
//! members that others pass over: `Class`, the class of an error, and `PathBytes`, a path that is no UTF-8.

mod address;
mod client;
mod driver;
mod handlers;
mod http;
mod probe;
mod server;
mod session;
#[cfg(test)]
mod tests;
mod wire;

pub use address::{Address, discover};
pub use driver::{Claims, Plugin};
pub use server::{Server, Stopper};
pub use session::Start;
