//! A run that is going on: which cell is at what, what is to be done next, and what comes of it.
//!
//! A few cells are open at a time and take turns, so that those that wait for a disk and those that do not fill each other's gaps. When
//! all of a cell's cases have begun, the next one is made ready, so that nothing waits for the last and longest; when they have ended, it is
//! given back. Making ready and giving back are jobs as cases are.

use crate::sync::lock;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::schedule::{Feed, Turn};
use super::{Cannot, Cell, Options, Started};
use crate::graphtest::condition::Ground;
use crate::graphtest::event::{CellEnd, CellStatus, Event};
use crate::graphtest::known::Tally;
use crate::graphtest::{Case, CaseReport, Target};
use crate::lab::{GivenBack, Place, Provisioned, Register};

/// How long making a cell ready or giving it back may take at least, whatever the limit of a scenario is.
const CELL_TIMEOUT: Duration = Duration::from_secs(180);

/// Something to be done in a cell.
#[derive(Debug)]
pub(super) struct Job {
    cell: usize,
    pub(super) task: Task,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Task {
    /// Make the cell ready.
    Prepare(Cell),
    /// Carry out a case.
    Run {
        place: Arc<Place>,
        target: Arc<dyn Target>,
        case: Arc<Case>,
    },
    /// Give back what was made for the cell.
    GiveBack(Box<Mutex<Option<Provisioned>>>),
}

/// What came of it.
pub(super) enum Done {
    Ready(Result<Box<(Provisioned, Started)>, Cannot>),
    Ran(CaseReport),
    GivenBack(GivenBack),
}

/// Takes out what is to be given back.
pub(super) fn take(made: &Mutex<Option<Provisioned>>) -> Option<Provisioned> {
    lock(made).take()
}

/// A cell that was made ready.
struct Open {
    made: Provisioned,
    place: Arc<Place>,
    /// What has not begun yet.
    queue: VecDeque<Arc<Case>>,
    /// How many cases have begun.
    begun: usize,
    /// How many of them have not ended.
    running: usize,
    /// Something in it is kept.
    kept: bool,
}

/// What a cell is at.
enum State {
    Waiting,
    Preparing,
    Open(Box<Open>),
    GivingBack,
    Ended,
}

/// A run that is going on.
pub(super) struct Session<'a> {
    cells: &'a [Cell],
    states: Vec<State>,
    grounds: Vec<Ground>,
    tally: Tally<'a>,
    options: &'a Options,
    tell: &'a mut dyn FnMut(&Event),
    /// Nothing more is to be begun.
    closed: bool,
    left: Vec<String>,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        cells: &'a [Cell],
        options: &'a Options,
        tell: &'a mut dyn FnMut(&Event),
    ) -> Self {
        let grounds = cells.iter().map(|cell| Ground {
            cell: cell.start(),
            status: BTreeMap::new(),
        });
        Self {
            cells,
            states: cells.iter().map(|_| State::Waiting).collect(),
            grounds: grounds.collect(),
            tally: Tally::new(&options.rules.known),
            options,
            tell,
            closed: false,
            left: Vec::new(),
        }
    }

    /// Gives back what is still there after an interrupt, and tells the end. Returns whether it was interrupted.
    pub(super) fn finish(mut self, register: &Register, interrupted: bool) -> bool {
        for cell in 0..self.cells.len() {
            if let Some((made, kept)) = self.close(cell) {
                let given = if kept {
                    GivenBack::default()
                } else {
                    made.give_back(register)
                };
                self.ended(cell, given);
            }
        }
        let whole = self.options.whole && !interrupted;
        let stale = self.tally.stale(&self.options.library, whole);
        (self.tell)(&Event::RunFinished {
            interrupted,
            left: std::mem::take(&mut self.left),
            stale,
        });
        interrupted
    }

    /// How many cells may be open that still have cases to begin.
    fn at_a_time(&self) -> usize {
        1 + self.options.jobs / 4
    }

    /// A cell that is done, to be given back; what is kept is not.
    fn done_cell(&mut self) -> Option<Job> {
        let closed = self.closed;
        let done = |state: &State| match state {
            State::Open(open) => open.running == 0 && (closed || open.queue.is_empty()),
            _ => false,
        };
        let cell = self.states.iter().position(done)?;
        let (made, kept) = self.close(cell)?;
        if kept {
            self.ended(cell, GivenBack::default());
            return self.done_cell();
        }
        Some(Job {
            cell,
            task: Task::GiveBack(Box::new(Mutex::new(Some(made)))),
        })
    }

    /// Takes what was made out of an open cell, and whether it is kept.
    fn close(&mut self, cell: usize) -> Option<(Provisioned, bool)> {
        match std::mem::replace(&mut self.states[cell], State::GivingBack) {
            State::Open(open) => Some((open.made, open.kept)),
            other => {
                self.states[cell] = other;
                None
            }
        }
    }

    /// The next cell to be made ready, unless there are enough.
    fn next_cell(&mut self) -> Option<Job> {
        let busy = |state: &&State| match state {
            State::Preparing => true,
            State::Open(open) => !open.queue.is_empty(),
            _ => false,
        };
        if self.closed || self.states.iter().filter(busy).count() >= self.at_a_time() {
            return None;
        }
        let waits = |state: &State| matches!(state, State::Waiting);
        let mut cells = self.states.iter().enumerate();
        let (cell, _) = cells.find(|(cell, state)| waits(state) && !self.is_taken(*cell))?;
        self.states[cell] = State::Preparing;
        Some(Job {
            cell,
            task: Task::Prepare(self.cells[cell].clone()),
        })
    }

    /// Whether a cell has to wait for another one with the same process.
    fn is_taken(&self, cell: usize) -> bool {
        let target = &self.cells[cell].target;
        let others = self.cells.iter().zip(&self.states).enumerate();
        target.elsewhere()
            && others
                .filter(|(i, (other, _))| *i != cell && other.target.name() == target.name())
                .any(|(_, (_, state))| !matches!(state, State::Waiting | State::Ended))
    }

    /// The next case, of the open cell that has begun the fewest.
    fn next_case(&mut self) -> Option<Job> {
        if self.closed {
            return None;
        }
        let open = self.states.iter_mut().enumerate();
        let open = open.filter_map(|(i, state)| match state {
            State::Open(open)
                if !open.queue.is_empty()
                    && (open.running == 0 || !self.cells[i].target.elsewhere()) =>
            {
                Some((i, open))
            }
            _ => None,
        });
        let (cell, open) = open.min_by_key(|(_, open)| open.begun)?;
        let case = open.queue.pop_front()?;
        open.begun += 1;
        open.running += 1;
        let place = Arc::clone(&open.place);
        (self.tell)(&Event::CaseStarted {
            cell,
            label: case.label(),
        });
        Some(Job {
            cell,
            task: Task::Run {
                place,
                target: Arc::clone(&self.cells[cell].target),
                case,
            },
        })
    }

    /// A cell is ready, or cannot run.
    fn prepared(&mut self, cell: usize, ready: Result<Box<(Provisioned, Started)>, Cannot>) {
        let this = &self.cells[cell];
        let (made, started) = match ready {
            Ok(ready) => *ready,
            Err(cannot) => {
                self.states[cell] = State::Ended;
                let status = if cannot.is_error(this.named) {
                    CellStatus::Error
                } else {
                    CellStatus::Skipped
                };
                let end = CellEnd {
                    status,
                    reason: Some(cannot.to_string()),
                    ..CellEnd::default()
                };
                (self.tell)(&Event::CellFinished { cell, end });
                return;
            }
        };
        let each = (0..self.options.repeat).flat_map(|_| &this.cases);
        let queue: VecDeque<_> = each.cloned().collect();
        (self.tell)(&Event::CellStarted {
            cell,
            filesystem: made.filesystem.clone(),
            not_claimed: started.not_claimed,
            driver: started.status.clone(),
            planned: queue.len(),
        });
        self.grounds[cell].status = started.status;
        self.states[cell] = State::Open(Box::new(Open {
            place: Arc::new(made.place.clone()),
            made,
            queue,
            begun: 0,
            running: 0,
            kept: false,
        }));
    }

    /// A case ended.
    fn ran(&mut self, cell: usize, case: &Case, report: CaseReport) {
        if let State::Open(open) = &mut self.states[cell] {
            open.running -= 1;
            open.kept |= report.kept.is_some();
        }
        let required = &self.cells[cell].required;
        let ground = &self.grounds[cell];
        let result = self.options.rules.judge(ground, required, case, report);
        self.tally.add(ground, &result.label(), result.outcome);
        self.closed |= self.options.fail_fast && result.outcome.is_bad();
        (self.tell)(&Event::CaseFinished { cell, result });
    }

    /// A cell was given back.
    fn ended(&mut self, cell: usize, given: GivenBack) {
        self.states[cell] = State::Ended;
        self.left.extend(given.left.iter().cloned());
        let end = CellEnd {
            status: CellStatus::Ran,
            reason: None,
            left: given.left,
            damage: given.damage,
            notes: given.notes,
        };
        (self.tell)(&Event::CellFinished { cell, end });
    }

    /// A job did not come to its end.
    fn gave_up(&mut self, job: &Job, why: String, failure: impl FnOnce(&mut CaseReport)) {
        match &job.task {
            Task::Prepare(_) => self.prepared(
                job.cell,
                Err(Cannot::Broken(format!("making it ready: {why}"))),
            ),
            Task::Run { case, .. } => {
                let mut report = CaseReport::broken(case, why);
                failure(&mut report);
                self.ran(job.cell, case, report);
            }
            Task::GiveBack(_) => {
                let left = vec![format!("giving it back: {why}")];
                let given = GivenBack {
                    left,
                    ..GivenBack::default()
                };
                self.ended(job.cell, given);
            }
        }
    }
}

impl Feed<Job, Done> for Session<'_> {
    fn next(&mut self) -> Option<Job> {
        let job = self.done_cell().or_else(|| self.next_cell());
        job.or_else(|| self.next_case())
    }

    fn limit(&self, job: &Job) -> Duration {
        match job.task {
            Task::Run { .. } => self.options.timeout,
            _ => self.options.timeout.max(CELL_TIMEOUT),
        }
    }

    fn ended(&mut self, job: &Job, turn: Turn<Done>) {
        match turn {
            Turn::Ended(Done::Ready(ready)) => self.prepared(job.cell, ready),
            Turn::Ended(Done::GivenBack(given)) => self.ended(job.cell, given),
            Turn::Ended(Done::Ran(report)) => {
                if let Task::Run { case, .. } = &job.task {
                    self.ran(job.cell, case, report);
                }
            }
            Turn::Panicked(message) => {
                self.gave_up(job, format!("the harness panicked: {message}"), |_| {});
            }
            Turn::TimedOut(progress) => {
                let limit = self.limit(job);
                let why = format!("timed out after {}", humantime::format_duration(limit));
                self.gave_up(job, why, |report| {
                    report.seconds = limit.as_secs_f64();
                    report.timed_out = true;
                    if let (Some(failure), Some((at, step))) = (&mut report.failure, progress.now())
                    {
                        (failure.at, failure.step) = (at, step);
                    }
                });
            }
            // An interrupted scenario has no result; what was made is given back at the end.
            Turn::Abandoned if matches!(job.task, Task::Run { .. }) => {}
            Turn::Abandoned => self.gave_up(job, "interrupted".to_string(), |_| {}),
        }
    }
}
