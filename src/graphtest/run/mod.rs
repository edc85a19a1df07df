//! Running: cells are provisioned, their scenarios carried out in parallel, every result judged and told as an event, and
//! everything given back.

mod judge;
mod schedule;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub(crate) use judge::shell_words;
pub use judge::{Required, Rules};
pub use status::Status;

use super::condition::Ground;
use super::engine::{RunLimits, run_case};
use super::event::{CellEnd, CellStart, CellStatus, Event, Host, Outcome, RunStart};
use super::known::Tally;
use super::shard::Part;
use super::{Case, CaseReport, Failure, Library, Progress, Target};
use crate::graphdriver::Capability;
use crate::lab::{Backing, Place, Provisioned, Register, provision};
use crate::sys::remove::remove_tree;
use schedule::{Limits, Turn};

/// A cell to be run.
#[derive(Clone, Debug)]
pub struct Cell {
    /// What is tested.
    pub target: Arc<dyn Target>,
    /// What its homes live on.
    pub backing: Backing,
    /// What of it was asked for by name: what cannot be had then is an error, otherwise a skip.
    pub named: Named,
    /// What runs in it, in order.
    pub cases: Vec<Arc<Case>>,
    /// What of that must not be skipped.
    pub required: Arc<Required>,
}

/// What of a cell was asked for by name.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    /// The target.
    pub target: bool,
    /// The backing.
    pub backing: bool,
}

impl Named {
    /// The cell itself was.
    pub const ALL: Self = Self {
        target: true,
        backing: true,
    };
    /// Nothing was.
    pub const NOTHING: Self = Self {
        target: false,
        backing: false,
    };
}

/// Why a cell cannot run.
#[derive(Debug)]
pub enum Cannot {
    /// Its backing cannot be had.
    Backing(String),
    /// The driver says that it does not run there (one of the three not-supported errors).
    NotSupported(String),
    /// The driver fails to start, which nothing excuses.
    Broken(String),
}

impl Cannot {
    /// Whether it is an error for a cell of which this much was asked for by name. A driver was asked for on a backing only when both
    /// were: of the drivers that are tried on a backing by default, one that does not support it is skipped, and the other way round.
    fn is_error(&self, named: Named) -> bool {
        match self {
            Self::Backing(_) => named.backing,
            Self::NotSupported(_) => named.target && named.backing,
            Self::Broken(_) => true,
        }
    }
}

impl std::fmt::Display for Cannot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Backing(why) | Self::NotSupported(why) | Self::Broken(why)) = self;
        f.write_str(why)
    }
}

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
    /// Leave what failing scenarios made in place.
    pub keep: bool,
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

/// A case in a cell.
struct Job {
    cell: usize,
    /// Its place among the jobs of its cell.
    turn: usize,
    place: Arc<Place>,
    target: Arc<dyn Target>,
    case: Arc<Case>,
}

/// Runs all cells and tells `tell` everything that happens, in order. Returns whether it was interrupted: `stop` turned true.
///
/// Everything made is given back at the end, except for what [`Options::keep`] keeps and what the events say is left.
pub fn run(
    cells: &[Cell],
    options: &Options,
    register: &Register,
    stop: &dyn Fn() -> bool,
    tell: &mut dyn FnMut(&Event),
) -> bool {
    let starts: Vec<CellStart> = cells.iter().map(Cell::start).collect();
    tell(&Event::RunStarted(RunStart {
        tool: format!("graphtest {}", env!("CARGO_PKG_VERSION")),
        started: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        seed: None,
        host: host(&options.user),
        part: options.part.clone(),
        cells: starts.clone(),
    }));
    let grounds = starts.into_iter().map(|cell| Ground {
        cell,
        status: BTreeMap::new(),
    });
    let mut session = Session {
        cells,
        grounds: grounds.collect(),
        tally: Tally::new(&options.rules.known),
        options,
        register,
        tell,
        made: cells.iter().map(|_| None).collect(),
        open: vec![0; cells.len()],
        kept: BTreeSet::new(),
        left: Vec::new(),
    };
    let jobs = session.begin(stop);
    let planned: Vec<(usize, Arc<Case>)> =
        jobs.iter().map(|j| (j.cell, Arc::clone(&j.case))).collect();
    let keep = options.keep;
    let requirements = Arc::new(options.library.requirements.clone());
    let work = Arc::new(move |job: &Job, progress: &Arc<Progress>| {
        let limits = RunLimits {
            keep,
            progress: Arc::clone(progress),
            requirements: Arc::clone(&requirements),
        };
        run_case(job.target.as_ref(), &job.place, &job.case, &limits)
    });
    let limits = Limits {
        threads: options.jobs,
        timeout: options.timeout,
        stop,
    };
    schedule::run(jobs, &limits, work, |job, turn| {
        session.take(planned[job].0, &planned[job].1, turn)
    });
    for cell in 0..cells.len() {
        session.give_back(cell);
    }
    let interrupted = stop();
    let left = std::mem::take(&mut session.left);
    let whole = options.whole && !interrupted;
    let stale = session.tally.stale(&options.library, whole);
    (session.tell)(&Event::RunFinished {
        interrupted,
        left,
        stale,
    });
    interrupted
}

/// A run that is going on.
struct Session<'a> {
    cells: &'a [Cell],
    grounds: Vec<Ground>,
    tally: Tally<'a>,
    options: &'a Options,
    register: &'a Register,
    tell: &'a mut dyn FnMut(&Event),
    /// What was made for each cell and is not yet given back.
    made: Vec<Option<Provisioned>>,
    /// How many results of each cell are to come.
    open: Vec<usize>,
    /// Cells in which something is kept.
    kept: BTreeSet<usize>,
    left: Vec<String>,
}

impl Session<'_> {
    /// Makes every cell ready, and lists what there is to do.
    fn begin(&mut self, stop: &dyn Fn() -> bool) -> Vec<Job> {
        let mut jobs = Vec::new();
        for (i, cell) in self.cells.iter().enumerate() {
            if stop() {
                break;
            }
            let (provisioned, started) = match prepare(cell, self.register) {
                Ok(ready) => ready,
                Err(cannot) => {
                    let status = if cannot.is_error(cell.named) {
                        CellStatus::Error
                    } else {
                        CellStatus::Skipped
                    };
                    let end = CellEnd {
                        status,
                        reason: Some(cannot.to_string()),
                        left: Vec::new(),
                    };
                    (self.tell)(&Event::CellFinished { cell: i, end });
                    continue;
                }
            };
            let filesystem = provisioned.filesystem.clone();
            self.open[i] = cell.cases.len() * self.options.repeat;
            (self.tell)(&Event::CellStarted {
                cell: i,
                filesystem,
                not_claimed: started.not_claimed,
                driver: started.status.clone(),
                planned: self.open[i],
            });
            self.grounds[i].status = started.status;
            let place = Arc::new(provisioned.place.clone());
            self.made[i] = Some(provisioned);
            jobs.extend(
                (0..self.options.repeat)
                    .flat_map(|_| &cell.cases)
                    .enumerate()
                    .map(|(turn, case)| Job {
                        cell: i,
                        turn,
                        place: Arc::clone(&place),
                        target: Arc::clone(&cell.target),
                        case: Arc::clone(case),
                    }),
            );
        }
        // Cells take turns: those that wait for a disk and those that do not fill each other's gaps.
        jobs.sort_by_key(|job: &Job| job.turn);
        jobs
    }

    /// Takes in what happened to a case; false when nothing more is to be begun.
    fn take(&mut self, cell: usize, case: &Case, turn: Turn<CaseReport>) -> bool {
        let timeout = self.options.timeout;
        let report = match turn {
            Turn::Started => {
                (self.tell)(&Event::CaseStarted {
                    cell,
                    label: case.label(),
                });
                return true;
            }
            Turn::Abandoned => return true,
            Turn::Ended(report) => report,
            Turn::Panicked(message) => broken(
                case,
                format!("the harness panicked: {message}"),
                Duration::ZERO,
            ),
            Turn::TimedOut(progress) => {
                let within = humantime::format_duration(timeout);
                let mut report = broken(case, format!("timed out after {within}"), timeout);
                if let (Some(failure), Some((at, step))) = (&mut report.failure, progress.now()) {
                    (failure.at, failure.step) = (at, step);
                }
                report
            }
        };
        if report.kept.is_some() {
            self.kept.insert(cell);
        }
        let result = self.options.rules.judge(
            &self.grounds[cell],
            &self.cells[cell].required,
            case,
            report,
        );
        self.tally
            .add(&self.grounds[cell], &result.label(), result.outcome);
        let go_on = !(self.options.fail_fast && result.outcome.is_bad());
        (self.tell)(&Event::CaseFinished { cell, result });
        self.open[cell] -= 1;
        if self.open[cell] == 0 {
            self.give_back(cell);
        }
        go_on
    }

    /// Gives back what was made for a cell, once.
    fn give_back(&mut self, cell: usize) {
        let Some(made) = self.made[cell].take() else {
            return;
        };
        let mut end = CellEnd {
            status: CellStatus::Ran,
            reason: None,
            left: Vec::new(),
        };
        if !self.kept.contains(&cell) {
            let given = made.give_back(self.register);
            end.left.extend(given.left);
            if !given.damage.is_empty() {
                end.status = CellStatus::Error;
                end.reason = Some(format!("damaged: {}", given.damage.join("; ")));
            }
        }
        self.left.extend(end.left.iter().cloned());
        (self.tell)(&Event::CellFinished { cell, end });
    }
}

impl Cell {
    /// The name in lists: `overlay2 on tmpfs`.
    pub fn name(&self) -> String {
        format!("{} on {}", self.target.name(), self.backing)
    }

    fn start(&self) -> CellStart {
        CellStart {
            target: self.target.name().to_string(),
            backing: self.backing.to_string(),
            kernel: kernel(),
        }
    }
}

/// The running kernel's release.
pub fn kernel() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

/// How many processors this process may use.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
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

/// What a driver says when it is started.
#[derive(Clone, Debug)]
pub struct Started {
    /// Capabilities that it does not claim.
    pub not_claimed: Vec<String>,
    /// Its status, key by key.
    pub status: BTreeMap<String, String>,
}

/// Makes a cell's place and starts its driver once.
///
/// # Errors
/// Why the cell cannot run here.
pub fn prepare(cell: &Cell, register: &Register) -> Result<(Provisioned, Started), Cannot> {
    let provisioned =
        provision(&cell.backing, register).map_err(|e| Cannot::Backing(e.to_string()))?;
    match start_once(cell.target.as_ref(), &provisioned.place.dir) {
        Ok(started) => Ok((provisioned, started)),
        Err(cannot) => match provisioned.give_back(register).left.first() {
            None => Err(cannot),
            Some(left) => Err(Cannot::Broken(format!("{cannot}; left behind: {left}"))),
        },
    }
}

/// Starts the driver on a home of its own, asks for its claims and its status, and takes the home away again.
fn start_once(target: &dyn Target, dir: &Path) -> Result<Started, Cannot> {
    let home = dir.join("start");
    std::fs::create_dir(&home).map_err(|e| Cannot::Broken(format!("{}: {e}", home.display())))?;
    let said = target
        .init(&home, &[])
        .and_then(|driver| {
            let said = (driver.capabilities(), driver.status());
            driver.cleanup().map(|()| said)
        })
        .map_err(|e| match e.is_driver_not_supported() {
            true => Cannot::NotSupported(e.to_string()),
            false => Cannot::Broken(e.to_string()),
        });
    let removed =
        remove_tree(&home).map_err(|e| Cannot::Broken(format!("{}: remove: {e}", home.display())));
    let (claims, status) = said?;
    removed?;
    let missing = Capability::ALL.iter().filter(|c| !claims.has(**c));
    Ok(Started {
        not_claimed: missing.map(|c| c.name().to_string()).collect(),
        status: status.into_iter().collect(),
    })
}

/// A failure that the engine could not report itself.
fn broken(case: &Case, why: String, after: Duration) -> CaseReport {
    CaseReport {
        outcome: Outcome::Fail,
        reason: Some(why.clone()),
        failure: Some(Failure {
            at: case.scenario.at.clone(),
            step: case.label(),
            detail: vec![why],
            requirements: Vec::new(),
        }),
        seconds: after.as_secs_f64(),
        kept: None,
    }
}
