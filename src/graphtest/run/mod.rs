//! Running: cells are provisioned when their turn comes, their scenarios carried out in parallel, every result judged and told as an
//! event, and everything given back.

mod cell;
mod judge;
mod schedule;
mod session;
mod status;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use cell::{Cannot, Cell, Named, Started, prepare};
#[cfg(feature = "vm")]
pub(crate) use judge::quote;
#[cfg(feature = "cli")]
pub(crate) use judge::shell_words;
pub use judge::{Required, Rules};
pub use status::Status;

use super::Library;
use super::engine::{Keep, RunLimits, run_case};
use super::event::{CellStart, Event, Host, RunStart};
use super::shard::Part;
use crate::lab::Register;
use crate::sys::cpus;
use schedule::Limits;
use session::{Done, Job, Session, Task};

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many scenarios at a time.
    pub jobs: usize,
    /// For one scenario.
    pub timeout: Duration,
    /// How often each scenario is run.
    pub repeat: usize,
    /// Stop at the first result that counts against a driver.
    pub fail_fast: bool,
    /// Of which scenarios what they made is left in place.
    pub keep: Keep,
    /// Whose rights the run has, for the report.
    pub user: String,
    /// How results are judged.
    pub rules: Rules,
    /// What the cases are from: the contract for the sentences that failures show, all scenarios for known results that match none.
    pub library: Arc<Library>,
    /// Whether the run has everything that known results can apply to on this machine, so that one which does nothing is stale.
    pub whole: bool,
    /// Which part of a run that is split these cells are.
    pub part: Option<Part>,
}

/// Runs all cells and tells `tell` everything that happens, in order. Returns whether it was interrupted: `stop` turned true.
///
/// Everything made is given back at the end, except for what [`Options::keep`] keeps and what the events say is left.
pub fn run(
    cells: &[Cell],
    options: &Options,
    register: &Arc<Register>,
    stop: &dyn Fn() -> bool,
    tell: &mut dyn FnMut(&Event),
) -> bool {
    let starts = cells.iter().map(Cell::start).collect();
    tell(&Event::RunStarted(start(options, starts)));
    let mut session = Session::new(cells, options, tell);
    let keep = options.keep;
    let requirements = Arc::new(options.library.requirements.clone());
    let for_work = Arc::clone(register);
    let limits = Limits {
        threads: options.jobs,
        stop,
    };
    schedule::run(
        &mut session,
        &limits,
        Arc::new(move |job: &Job, progress| match &job.task {
            Task::Prepare(cell) => Done::Ready(prepare(cell, &for_work).map(Box::new)),
            Task::Run {
                place,
                target,
                case,
            } => {
                let limits = RunLimits {
                    keep,
                    progress: Arc::clone(progress),
                    requirements: Arc::clone(&requirements),
                };
                Done::Ran(run_case(target.as_ref(), place, case, &limits))
            }
            Task::GiveBack(made) => Done::GivenBack(
                session::take(made)
                    .map(|made| made.give_back(&for_work))
                    .unwrap_or_default(),
            ),
        }),
    );
    session.finish(register, stop())
}

/// What is known when a run of these cells begins.
pub(super) fn start(options: &Options, cells: Vec<CellStart>) -> RunStart {
    RunStart {
        tool: format!("graphtest {}", env!("CARGO_PKG_VERSION")),
        started: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        seed: None,
        host: host(&options.user),
        part: options.part.clone(),
        cells,
    }
}

/// The running kernel's release.
pub fn kernel() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

fn host(user: &str) -> Host {
    let arch = rustix::system::uname()
        .machine()
        .to_string_lossy()
        .into_owned();
    Host {
        kernel: kernel(),
        arch,
        cpus: cpus(),
        user: user.to_string(),
    }
}
