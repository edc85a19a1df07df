//! The scripts that known results link to: each must show its defect, with nothing of this project.
//!
//! A trial is one script of `fixtures/known`. It runs in an empty directory and ends with 0 when the defect is there, with 77 when that
//! cannot be tried here.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use graphtest::graphtest::known::Known;
use graphtest::sys::ns::enter_private_mount_ns;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// What a script ends with that cannot be tried here, as scripts under automake do.
const CANNOT: i32 = 77;

fn shows(script: &str) -> Result<Completion, Failed> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let mut command = Command::new("sh");
    command.arg(&path).current_dir(dir.path());
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("sh: {e}"))?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_string();
    match output.status.code() {
        Some(0) => Ok(Completion::Completed),
        Some(CANNOT) => Ok(Completion::ignored_with(said)),
        _ => {
            let wrong = String::from_utf8_lossy(&output.stderr);
            Err(format!("{}: {said}\n{wrong}", output.status).into())
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let known = match Known::builtin() {
        Ok(known) => known,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::from(3);
        }
    };
    // Whatever a script leaves mounted ends with this process; where there is no such namespace the scripts say that they need root.
    let _ = enter_private_mount_ns();
    let scripts: BTreeSet<String> = known
        .links()
        .filter(|link| link.ends_with(".sh"))
        .map(str::to_string)
        .collect();
    let trials = scripts.into_iter().map(|script| {
        let name = script.clone();
        Trial::ignorable_test(name, move || shows(&script))
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
