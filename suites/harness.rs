//! Every scenario over the clean built-in drivers, where none may fail.

use std::process::ExitCode;

use graphtest::graphtest::target::built_in;
use graphtest::harness::Harness;

fn main() -> ExitCode {
    Harness::of(built_in()).on_tmpfs().run()
}
