//! Every scenario over the clean built-in drivers, where none may fail.

use std::process::ExitCode;

use graphtest::graphtest::target::built_in;
use graphtest::harness::{Harness, made_backings};

fn main() -> ExitCode {
    Harness::of(built_in())
        .on_tmpfs()
        .also_on(made_backings())
        .run()
}
