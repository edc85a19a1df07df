//! What a test of the library face leaves: nothing when it ends, and when it is killed only what `graphtest clean` gives back.
//!
//! The test runs itself as such a test, told apart by a variable in its environment.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use graphtest::drivers;
use graphtest::graphdriver::InitOptions;
use graphtest::harness::Harness;
use graphtest::lab;
use libtest_mimic::{Arguments, Failed, Trial};

/// Where the child makes its homes.
const HOMES: &str = "GRAPHTEST_TEST_HOMES";
/// Set for the child that never ends.
const ENDLESS: &str = "GRAPHTEST_TEST_ENDLESS";
const BEGUN: &str = "the driver starts";

/// The child: the test of a driver as its author writes it.
fn child(homes: &Path) -> ExitCode {
    let endless = std::env::var_os(ENDLESS).is_some();
    let factory = move |home: &Path, options: &[String]| {
        if endless {
            fs::write(home.join("file"), "x").expect("a writable home");
            println!("{BEGUN}");
            std::thread::sleep(Duration::from_secs(3600));
        }
        drivers::registry().start("vfs", home, &InitOptions::new(options))
    };
    Harness::new("vfs", factory).on(homes).run()
}

/// The child on directories of its own, with the names that it leaves in its state directory and among the homes.
struct Bench {
    tmp: tempfile::TempDir,
}

impl Bench {
    fn new() -> Result<Self, Failed> {
        let tmp = tempfile::tempdir()?;
        fs::create_dir(tmp.path().join("homes"))?;
        Ok(Self { tmp })
    }

    fn command(&self) -> Result<Command, Failed> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("vfs::lifecycle/")
            .env(HOMES, self.tmp.path().join("homes"))
            .env("GRAPHTEST_STATE", self.tmp.path().join("state"));
        Ok(command)
    }

    /// How many things are in the state directory, and how many among the homes.
    fn left(&self) -> Result<(usize, usize), Failed> {
        let count = |name| fs::read_dir(self.tmp.path().join(name)).map(Iterator::count);
        Ok((count("state")?, count("homes")?))
    }
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Result<(), Failed> {
    if found == wanted {
        return Ok(());
    }
    Err(format!("{what}: {wanted:?} expected, {found:?} found").into())
}

fn one_that_ends_leaves_nothing() -> Result<(), Failed> {
    let bench = Bench::new()?;
    let out = bench.command()?.output()?;
    let said = String::from_utf8_lossy(&out.stdout);
    if !out.status.success() || !said.contains("test result: ok") || said.contains(" 0 passed") {
        let err = String::from_utf8_lossy(&out.stderr);
        return Err(format!("{}: {said}{err}", out.status).into());
    }
    expect("left", bench.left()?, (0, 0))
}

fn one_that_is_killed_is_given_back() -> Result<(), Failed> {
    let bench = Bench::new()?;
    let mut child = bench
        .command()?
        .env(ENDLESS, "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    let begun = lines.any(|l| l.is_ok_and(|l| l == BEGUN));
    let state = bench.tmp.path().join("state");
    let meanwhile = lab::clean(&state);
    child.kill()?;
    child.wait()?;
    expect("began", begun, true)?;
    expect("still running", meanwhile?.running, 1)?;
    expect("left by the kill", bench.left()?, (1, 1))?;
    let cleaned = lab::clean(&state)?;
    expect("not given back", cleaned.left, Vec::new())?;
    expect("given back", cleaned.given_back.len(), 1)?;
    expect("left", bench.left()?, (0, 0))
}

fn main() -> ExitCode {
    if let Some(homes) = std::env::var_os(HOMES) {
        return child(Path::new(&homes));
    }
    let trials = vec![
        Trial::test("one_that_ends_leaves_nothing", one_that_ends_leaves_nothing),
        Trial::test(
            "one_that_is_killed_is_given_back",
            one_that_is_killed_is_given_back,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
