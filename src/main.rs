//! The `graphtest` command.
fn main() {}
