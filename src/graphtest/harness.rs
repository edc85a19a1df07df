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

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use super::engine::{RunLimits, run_case};
use super::event::Outcome;
use super::load::{self, Library, LoadError};
use super::requirement::Requirement;
use super::scenario::{Case, Level};
use super::target::{Factory, Target};
use crate::graphdriver::{self, Driver};
use crate::lab::{Backing, Place, Provisioned, Register, provision};
use crate::sys;

/// Runs scenarios as trials.
#[derive(Debug)]
pub struct Harness {
    targets: Vec<Arc<dyn Target>>,
    dir: PathBuf,
    tmpfs: bool,
    suites: Vec<PathBuf>,
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
            suites: Vec::new(),
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

    /// These files or directories of suites instead of the built-in ones; may be called again.
    pub fn suite(mut self, path: impl Into<PathBuf>) -> Self {
        self.suites.push(path.into());
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
        let homes = Homes::make(&self.dir, self.tmpfs)?;
        let trials = trials(&self.targets, homes.place(), &library);
        let conclusion = libtest_mimic::run(arguments, trials);
        homes.close()?;
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

/// A directory for homes, written down before it is made and given back in the end. What a killed process leaves of it,
/// `graphtest clean` gives back.
#[derive(Debug)]
pub struct Homes {
    register: Register,
    provisioned: Provisioned,
}

impl Homes {
    /// Makes a directory below `parent` and probes it; with `tmpfs`, one on a tmpfs of its own, where one can be mounted.
    ///
    /// To be called while the process has one thread: it enters namespaces, of mounts as root, of users and mounts as an
    /// ordinary user. Where there are none, that is said on standard error.
    ///
    /// # Errors
    /// Nothing can be made there, or the state directory cannot be written.
    pub fn make(parent: &Path, tmpfs: bool) -> Result<Self, String> {
        // Before the namespaces, in which an ordinary user seems to be root.
        let register = Register::begin().map_err(|e| e.to_string())?;
        if let Err(why) = isolate() {
            eprintln!("note: {why}; what needs mounts is ignored");
        }
        let dir = Backing::Dir(Some(parent.to_path_buf()));
        let on_tmpfs = tmpfs
            .then(|| provision(&Backing::Tmpfs, &register).ok())
            .flatten();
        let provisioned = match on_tmpfs {
            Some(made) => Ok(made),
            None => provision(&dir, &register),
        };
        match provisioned {
            Ok(provisioned) => Ok(Self {
                register,
                provisioned,
            }),
            Err(e) => {
                // The error of making it says more than that of the register.
                let _ = register.close();
                Err(format!("no homes: {e}"))
            }
        }
    }

    /// The directory and what it can do.
    pub fn place(&self) -> &Place {
        &self.provisioned.place
    }

    /// Unmounts and removes it.
    ///
    /// # Errors
    /// What is left behind.
    pub fn close(self) -> Result<(), String> {
        self.provisioned.give_back(&self.register)?;
        self.register.close().map(|_| ()).map_err(|e| e.to_string())
    }
}

/// Namespaces of its own for a process with one thread: mounts as root, users and mounts as an ordinary user.
fn isolate() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        sys::ns::enter_user_ns().map_err(|e| format!("no user namespace: {e}"))?;
    }
    sys::ns::enter_private_mount_ns().map_err(|e| format!("no mount namespace of its own: {e}"))
}

/// Every case on every target as a trial, named `TARGET::SUITE/SCENARIO#ROW`.
pub fn trials(targets: &[Arc<dyn Target>], place: &Place, library: &Library) -> Vec<Trial> {
    let requirements = Arc::new(library.requirements.clone());
    let mut trials = Vec::new();
    for target in targets {
        let cannot = why_not(&**target, place).map(Arc::new);
        for case in library.cases() {
            let (target, place, case) = (target.clone(), place.clone(), case.clone());
            let (cannot, requirements) = (cannot.clone(), requirements.clone());
            let name = format!("{}::{}", target.name(), case.label());
            let kind = place.backing.clone();
            let run = move || match cannot {
                Some(why) => Ok(Completion::ignored_with(why)),
                None => trial(&*target, &place, &case, requirements),
            };
            trials.push(Trial::ignorable_test(name, run).with_kind(kind));
        }
    }
    trials
}

/// Why a target cannot run at a place at all; `None` when it can.
pub fn why_not(target: &dyn Target, place: &Place) -> Option<String> {
    let home = match tempfile::Builder::new()
        .prefix("probe-")
        .tempdir_in(&place.dir)
    {
        Ok(home) => home,
        Err(e) => return Some(format!("no home can be made: {e}")),
    };
    let cannot = match target.init(home.path(), &[]) {
        Ok(driver) => {
            // Whatever it says, the probe is over; a driver that cannot clean up shows that in its scenarios.
            let _ = driver.cleanup();
            None
        }
        // Any other error is the driver's own, and a failure of every scenario.
        Err(e) if e.is_driver_not_supported() => Some(e.to_string()),
        Err(_) => None,
    };
    drop(home);
    cannot
}

fn trial(
    target: &dyn Target,
    place: &Place,
    case: &Case,
    requirements: Arc<BTreeMap<String, Arc<Requirement>>>,
) -> Result<Completion, Failed> {
    let limits = RunLimits {
        requirements,
        ..RunLimits::default()
    };
    let report = run_case(target, place, case, &limits);
    let reason = report.reason.unwrap_or_default();
    match (report.outcome, report.failure) {
        (Outcome::Skip, _) => Ok(Completion::ignored_with(reason)),
        (Outcome::Fail, _) if case.scenario.level == Level::May => Ok(Completion::ignored_with(
            format!("may, and does not: {reason}"),
        )),
        (Outcome::Fail, Some(failure)) => Err(failure.to_string().into()),
        (Outcome::Fail, None) => Err(reason.into()),
        _ => Ok(Completion::Completed),
    }
}
