//! Every scenario over the clean built-in drivers, where none may fail that is not known to.

use std::process::ExitCode;

use graphtest::graphtest::known::Known;
use graphtest::graphtest::target::built_in;
use graphtest::harness::{Harness, made_backings};

fn main() -> ExitCode {
    let known = match Known::builtin() {
        Ok(known) => known,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::from(3);
        }
    };
    Harness::of(built_in())
        .known(known)
        .on_tmpfs()
        .also_on(made_backings())
        .run()
}
