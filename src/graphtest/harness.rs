//! The library face: every scenario as a trial of `cargo test`, for the author of a driver.
//!
//! In `Cargo.toml` of the driver's crate:
//!
//! ```toml
//! [dev-dependencies]
//! graphtest = { version = "0.1", default-features = false }
//!
//! [[test]]
//! name = "graph-driver"
//! harness = false
//! ```
//!
//! and in `tests/graph-driver.rs`, here with the built-in vfs in the place of a driver of one's own:
//!
//! ```
//! use graphtest::{drivers, graphdriver::InitOptions, harness::Harness};
//!
//! fn main() -> std::process::ExitCode {
//!     Harness::new("vfs", |home, options| drivers::registry().start("vfs", home, &InitOptions::new(options))).run()
//! }
//! ```
//!
//! The factory starts a driver on a home, an existing directory, with options `key=value`. What the driver claims with
//! [`capabilities`](crate::graphdriver::ProtoDriver::capabilities) decides which scenarios run; the others are ignored, with the reason.
//! The arguments are those of `cargo test`: filters, `--list`, `--test-threads`. What is made is written down in the
//! [state directory](crate::lab::state_dir) before it is made, so that `graphtest clean` gives back what a killed test leaves.

mod homes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use super::engine::{RunLimits, run_case};
use super::event::Outcome;
use super::known::Known;
use super::load::{self, Library, LoadError};
use super::requirement::Requirement;
use super::scenario::{Case, Level};
use super::target::{Factory, Target};
use crate::graphdriver::{self, Driver};
use crate::lab::Backing;

pub use homes::{Homes, made_backings, why_not};

/// Runs scenarios as trials.
#[derive(Debug)]
pub struct Harness {
    targets: Vec<Arc<dyn Target>>,
    dir: PathBuf,
    tmpfs: bool,
    also_on: Vec<Backing>,
    suites: Vec<PathBuf>,
    known: Known,
}

impl Harness {
    /// Tests the drivers that a factory makes.
    pub fn new(
        name: impl Into<String>,
        factory: impl Fn(&Path, &[String]) -> graphdriver::Result<Arc<dyn Driver>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self::of([Arc::new(Factory::new(name, factory)) as Arc<dyn Target>])
    }

    /// Tests several targets.
    pub fn of(targets: impl IntoIterator<Item = Arc<dyn Target>>) -> Self {
        Self {
            targets: targets.into_iter().collect(),
            dir: std::env::temp_dir(),
            tmpfs: false,
            also_on: Vec::new(),
            suites: Vec::new(),
            known: Known::default(),
        }
    }

    /// Homes are made below this directory; left out: the temporary directory.
    pub fn on(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = dir.into();
        self
    }

    /// Homes are made on a tmpfs of their own, mounted below the temporary directory, where one can be mounted.
    pub fn on_tmpfs(mut self) -> Self {
        self.tmpfs = true;
        self
    }

    /// What the first place does not have (a fact that a scenario needs, or a filesystem that the driver needs) is looked for on
    /// these backings, in this order. Each is made when the first scenario asks for it.
    pub fn also_on(mut self, backings: impl IntoIterator<Item = Backing>) -> Self {
        self.also_on.extend(backings);
        self
    }

    /// These files or directories of suites instead of the built-in ones; may be called again.
    pub fn suite(mut self, path: impl Into<PathBuf>) -> Self {
        self.suites.push(path.into());
        self
    }

    /// Results that are known: a scenario that fails as known is ignored with the reason, and one that passes although it is known to fail
    /// fails.
    pub fn known(mut self, known: Known) -> Self {
        self.known = known;
        self
    }

    /// Runs the trials that the command line selects and says how they went. To be called first thing in `main`: as root the
    /// process gets a mount namespace of its own, as an ordinary user a user namespace too, and that is possible only while
    /// there is one thread.
    pub fn run(self) -> ExitCode {
        let arguments = Arguments::from_args();
        match self.prepared(&arguments) {
            Ok(code) => code,
            Err(e) => {
                eprintln!("{e}");
                ExitCode::from(3)
            }
        }
    }

    fn prepared(self, arguments: &Arguments) -> Result<ExitCode, String> {
        let library = self.library().map_err(|e| e.to_string())?;
        let homes = Arc::new(Homes::make(&self.dir, self.tmpfs)?.also_on(self.also_on));
        let trials = trials(&self.targets, &homes, &library, &self.known);
        let conclusion = libtest_mimic::run(arguments, trials);
        Arc::into_inner(homes)
            .ok_or("the homes are still in use")?
            .close()?;
        Ok(conclusion.exit_code())
    }

    fn library(&self) -> Result<Library, LoadError> {
        if self.suites.is_empty() {
            load::builtin()
        } else {
            load::load_files(&self.suites)
        }
    }
}

/// Every case on every target as a trial, named `TARGET::SUITE/SCENARIO#ROW`.
pub fn trials(
    targets: &[Arc<dyn Target>],
    homes: &Arc<Homes>,
    library: &Library,
    known: &Known,
) -> Vec<Trial> {
    let known = Arc::new(known.clone());
    let requirements = Arc::new(library.requirements.clone());
    let mut trials = Vec::new();
    for target in targets {
        for case in library.cases() {
            let (target, homes, case) = (target.clone(), homes.clone(), case.clone());
            let (requirements, known) = (requirements.clone(), known.clone());
            let name = format!("{}::{}", target.name(), case.label());
            let run = move || trial(&*target, &homes, &case, requirements, &known);
            trials.push(Trial::ignorable_test(name, run));
        }
    }
    trials
}

fn trial(
    target: &dyn Target,
    homes: &Homes,
    case: &Case,
    requirements: Arc<BTreeMap<String, Arc<Requirement>>>,
    known: &Known,
) -> Result<Completion, Failed> {
    let place = match homes.place_for(target, &case.needs) {
        Ok(place) => place,
        Err(why) => return Ok(Completion::ignored_with(why)),
    };
    let limits = RunLimits {
        requirements,
        ..RunLimits::default()
    };
    let report = run_case(target, place, case, &limits);
    let reason = report.reason.unwrap_or_default();
    let expected = homes.known(known, target, place, case);
    match (report.outcome, report.failure) {
        (Outcome::Skip, _) => Ok(Completion::ignored_with(reason)),
        (Outcome::Fail, _) if expected.is_some() => Ok(Completion::ignored_with(format!(
            "known: {}",
            expected.unwrap_or_default()
        ))),
        (Outcome::Pass, _) if expected.is_some() => Err(format!(
            "passes, although it is known to fail: {}",
            expected.unwrap_or_default()
        )
        .into()),
        (Outcome::Fail, _) if case.scenario.level == Level::May => Ok(Completion::ignored_with(
            format!("may, and does not: {reason}"),
        )),
        (Outcome::Fail, failure) => {
            let what = failure.map_or(reason, |f| f.to_string());
            Err(format!("on {}: {what}", place.backing).into())
        }
        _ => Ok(Completion::Completed),
    }
}
