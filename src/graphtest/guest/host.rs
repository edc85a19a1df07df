//! The host's side: guests are started, their events become those of one run, and a guest that breaks costs as little as can be.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::state::{State, Taken, take};
use super::{CellOrder, Order, Texts};
use crate::graphtest::CaseReport;
use crate::graphtest::condition::Ground;
use crate::graphtest::event::{CellEnd, CellStart, CellStatus, Event};
use crate::graphtest::known::Tally;
use crate::graphtest::run::{Cell, Named, Options, Rules, start};
use crate::lab::Register;
use crate::lab::vm::{Broken, End, JOB_DIR, Job, Kernel, Lab, PROGRAM, Said};

/// What is run in guests.
#[derive(Debug)]
pub struct Plan<'a> {
    /// What guests are started with.
    pub lab: &'a Lab,
    /// The kernels, one guest after the other.
    pub kernels: &'a [Kernel],
    /// Kernels that cannot be had, by name, each with the reason: their cells are told to have ended so.
    pub missing: &'a [(String, String)],
    /// The cells, each run under every kernel.
    pub cells: &'a [Cell],
    /// Files that guests do not have.
    pub texts: &'a Texts,
    /// How to run.
    pub options: &'a Options,
}

/// The file in a guest that holds its order.
const ORDER: &str = "order.json";

/// Runs all cells under all kernels, and tells `tell` everything that happens, in order. Returns whether it was interrupted: `stop` turned
/// true. `note` is told what is of no concern to a report.
pub fn run(
    plan: &Plan<'_>,
    register: &Register,
    stop: &dyn Fn() -> bool,
    note: &dyn Fn(&str),
    tell: &mut dyn FnMut(&Event),
) -> bool {
    let names = plan.kernels.iter().map(|kernel| &kernel.release);
    let names = names.chain(plan.missing.iter().map(|(name, _)| name));
    let starts = names.flat_map(|kernel| {
        plan.cells.iter().map(|cell| CellStart {
            target: cell.target.name().to_string(),
            backing: cell.backing.to_string(),
            kernel: kernel.clone(),
        })
    });
    tell(&Event::RunStarted(start(plan.options, starts.collect())));
    let mut left = Vec::new();
    let mut failed = false;
    for (i, kernel) in plan.kernels.iter().enumerate() {
        if stop() || failed && plan.options.fail_fast {
            break;
        }
        let mut session = Session {
            plan,
            kernel,
            first: i * plan.cells.len(),
            states: plan.cells.iter().map(|_| State::default()).collect(),
            gone: 0,
            rules: Rules {
                kernel: Some(kernel.name.clone()),
                ..plan.options.rules.clone()
            },
            left: &mut left,
            failed: &mut failed,
            tell,
        };
        session.run(register, stop, note);
    }
    let first = plan.kernels.len() * plan.cells.len();
    without_kernel(plan.cells, first, plan.missing, tell);
    let interrupted = stop();
    let stale = Tally::new(&plan.options.rules.known).stale(&plan.options.library, false);
    tell(&Event::RunFinished {
        interrupted,
        left,
        stale,
    });
    interrupted
}

/// Tells the end of the cells whose kernels cannot be had; `first` is the number of the first of them.
fn without_kernel(
    cells: &[Cell],
    first: usize,
    missing: &[(String, String)],
    tell: &mut dyn FnMut(&Event),
) {
    let each = missing
        .iter()
        .flat_map(|(_, why)| cells.iter().map(move |cell| (cell, why)));
    for (i, (cell, why)) in each.enumerate() {
        let optional = cell.named == Named::NOTHING;
        let status = match optional {
            true => CellStatus::Skipped,
            false => CellStatus::Error,
        };
        let end = CellEnd {
            status,
            reason: Some(why.clone()),
            ..CellEnd::default()
        };
        tell(&Event::CellFinished {
            cell: first + i,
            end,
        });
    }
}

/// The guests of one kernel.
struct Session<'a> {
    plan: &'a Plan<'a>,
    kernel: &'a Kernel,
    /// The number of the first cell in the events of the whole run.
    first: usize,
    states: Vec<State>,
    /// How many cells the guest that runs has ended.
    gone: usize,
    /// How results are judged that no guest lives to tell.
    rules: Rules,
    left: &'a mut Vec<String>,
    failed: &'a mut bool,
    tell: &'a mut dyn FnMut(&Event),
}

/// How often a guest may fail to come up, or a cell break one while nothing of it runs, before it is given up.
const TRIES: usize = 2;

/// What a guest is given.
struct Given {
    /// The cells.
    cells: Vec<usize>,
    /// Only what was running when another guest broke, one after the other.
    alone: bool,
}

/// How a guest went.
enum Gone {
    Well,
    /// It was ended since something in it was stuck: the events that say so, and its console.
    Stuck(Vec<Event>, Vec<String>),
    Broken {
        greeted: bool,
        why: String,
    },
}

impl Session<'_> {
    fn run(&mut self, register: &Register, stop: &dyn Fn() -> bool, note: &dyn Fn(&str)) {
        let mut never_up = 0;
        while let Some(given) = self.next() {
            if stop() {
                return;
            }
            let gone = self.guest(&given, register, stop, note);
            let why = match gone {
                Ok(Gone::Well) if stop() => return,
                Ok(Gone::Well) => continue,
                Ok(Gone::Stuck(events, console)) => {
                    self.stuck(&given, events, &console, note);
                    continue;
                }
                Ok(Gone::Broken { greeted, why }) if greeted => {
                    never_up = 0;
                    self.blame(&given, &why, note);
                    continue;
                }
                Ok(Gone::Broken { why, .. }) => {
                    never_up += 1;
                    if never_up < TRIES {
                        note(&format!(
                            "kernel {}: {why}\ntrying once more",
                            self.kernel.name
                        ));
                        continue;
                    }
                    why
                }
                Err(e) => e,
            };
            for cell in 0..self.states.len() {
                self.give_up(cell, why.clone());
            }
        }
    }

    /// What the next guest is given; `None`: nothing is left to be run.
    fn next(&mut self) -> Option<Given> {
        let options = self.plan.options;
        if *self.failed && options.fail_fast {
            return None;
        }
        for cell in 0..self.states.len() {
            let state = &self.states[cell];
            if state.begun && state.is_done(&self.plan.cells[cell], options.repeat) {
                self.finish(cell);
            }
        }
        let open = |alone: bool| {
            let states = self.states.iter().enumerate();
            let open = states.filter(|(_, s)| !(s.ended || alone && s.suspects.is_empty()));
            let cells = open.map(|(i, _)| i).collect::<Vec<_>>();
            (!cells.is_empty()).then_some(Given { cells, alone })
        };
        open(true).or_else(|| open(false))
    }

    /// Runs what it is given in one guest.
    fn guest(
        &mut self,
        given: &Given,
        register: &Register,
        stop: &dyn Fn() -> bool,
        note: &dyn Fn(&str),
    ) -> Result<Gone, String> {
        let job = self.job(given)?;
        self.gone = 0;
        let (mut line, mut errors) = (Vec::new(), Vec::new());
        let mut broken = None;
        let stuck = RefCell::new(Vec::new());
        let (plan, kernel) = (self.plan, self.kernel);
        let mut on = |said: Said<'_>| match said {
            Said::Up(after) => note(&format!(
                "kernel {}: a guest is up after {:.1} s",
                kernel.release,
                after.as_secs_f64()
            )),
            Said::Err(bytes) => errors.extend_from_slice(bytes),
            Said::Out(bytes) => {
                for byte in bytes {
                    if *byte != b'\n' {
                        line.push(*byte);
                        continue;
                    }
                    match serde_json::from_slice(&line) {
                        Ok(event) => stuck.borrow_mut().extend(self.heard(given, &event)),
                        Err(e) => broken = Some(format!("an event of the guest: {e}")),
                    }
                    line.clear();
                }
            }
        };
        let enough = || stop() || !stuck.borrow().is_empty();
        let end = plan.lab.run(kernel, &job, register, &enough, &mut on);
        let end = end.map_err(|e| e.to_string())?;
        let stuck = stuck.into_inner();
        let closed = *self.failed && plan.options.fail_fast;
        let whole = closed || self.gone == given.cells.len();
        if !stuck.is_empty() {
            let console = match end {
                End::Stopped(console) | End::Broken(Broken { console, .. }) => console,
                End::Done(_) => Vec::new(),
            };
            return Ok(Gone::Stuck(stuck, console));
        }
        Ok(match end {
            End::Stopped(_) => Gone::Well,
            End::Broken(broken) => Gone::Broken {
                greeted: broken.greeted,
                why: broken.to_string(),
            },
            End::Done(0) if whole && broken.is_none() => Gone::Well,
            End::Done(status) => {
                let said = String::from_utf8_lossy(&errors);
                let lines: Vec<&str> = said.lines().collect();
                let last = lines[lines.len().saturating_sub(6)..].join("\n    ");
                let why = broken.unwrap_or_else(|| {
                    format!("graphtest in the guest ended with status {status}:\n    {last}")
                });
                Gone::Broken { greeted: true, why }
            }
        })
    }

    /// The order of a guest.
    fn job(&self, given: &Given) -> Result<Job, String> {
        let plan = self.plan;
        let repeat = plan.options.repeat;
        let cells = given.cells.iter().map(|i| {
            let state = &self.states[*i];
            let mine = |label: &str| match given.alone {
                true => state.suspects.iter().any(|l| l == label),
                false => state.is_open(label, repeat),
            };
            CellOrder::new(&plan.cells[*i], mine)
        });
        let mut order = Order::new(cells.collect(), plan.options, &self.kernel.name, plan.texts);
        if given.alone {
            order.jobs = 1;
        }
        let order = serde_json::to_string(&order).map_err(|e| format!("the order: {e}"))?;
        let words = [PROGRAM, "guest-run", &format!("{JOB_DIR}/{ORDER}")];
        Ok(Job {
            argv: words.map(str::to_string).to_vec(),
            files: BTreeMap::from([(ORDER.to_string(), order)]),
            interactive: false,
        })
    }

    /// Takes in an event of a guest; returns it when it says that something is stuck.
    fn heard(&mut self, given: &Given, event: &Event) -> Option<Event> {
        match take(&mut self.states, self.first, &given.cells, event) {
            Taken::Tell(event) => self.told(&event),
            Taken::Stuck(event) => return Some(event),
            Taken::CellGone(cell) => {
                self.gone += 1;
                let state = &self.states[cell];
                let options = self.plan.options;
                if state.end.status != CellStatus::Ran
                    || state.is_done(&self.plan.cells[cell], options.repeat)
                    || *self.failed && options.fail_fast
                {
                    self.finish(cell);
                }
            }
            Taken::Nothing => {}
        }
        None
    }

    fn told(&mut self, event: &Event) {
        if let Event::CaseFinished { result, .. } = event {
            *self.failed |= result.outcome.is_bad();
        }
        (self.tell)(event);
    }

    /// A guest was ended since something in it was stuck: that is told with what the console said, and all else goes on in another guest.
    fn stuck(
        &mut self,
        given: &Given,
        events: Vec<Event>,
        console: &[String],
        note: &dyn Fn(&str),
    ) {
        for mut event in events {
            if let Event::CaseFinished { result, .. } = &mut event {
                note(&format!(
                    "kernel {}: {} ran out of time; going on in another guest",
                    self.kernel.release,
                    result.label()
                ));
                let lines = console.iter().map(|line| format!("    {line}"));
                if !console.is_empty() {
                    result.detail.push("the guest's console:".to_string());
                }
                result.detail.extend(lines);
            }
            self.told(&event);
        }
        given.cells.iter().for_each(|i| self.states[*i].gone());
    }

    /// A guest broke. What was running in it is run again, one after the other; what breaks a guest in which nothing else runs has done it. When nothing was
    /// running, the cells that were being made ready or given back are to blame.
    fn blame(&mut self, given: &Given, why: &str, note: &dyn Fn(&str)) {
        let release = &self.kernel.release;
        let running = given
            .cells
            .iter()
            .map(|i| (*i, self.states[*i].running()))
            .filter(|(_, labels)| !labels.is_empty());
        let running: Vec<(usize, Vec<String>)> = running.collect();
        let open: Vec<usize> = (given.cells.iter().copied())
            .filter(|i| self.states[*i].open)
            .collect();
        given.cells.iter().for_each(|i| self.states[*i].gone());
        if running.is_empty() {
            note(&format!("kernel {release}: {why}\ntrying once more"));
            let waiting = given.cells.iter().find(|i| !self.states[**i].ended);
            let guilty = match open.is_empty() {
                true => waiting.into_iter().copied().collect(),
                false => open,
            };
            for cell in guilty {
                self.states[cell].broke += 1;
                if self.states[cell].broke >= TRIES {
                    let what = "guests broke while it was made ready or given back";
                    self.give_up(cell, format!("{TRIES} {what}: {why}"));
                }
            }
            return;
        }
        let names: Vec<&str> = running
            .iter()
            .flat_map(|(_, l)| l)
            .map(String::as_str)
            .collect();
        let names = names.join(", ");
        if given.alone {
            note(&format!("kernel {release}: {names} broke another guest"));
            for (cell, labels) in running {
                for label in labels {
                    self.guilty(cell, &label, why);
                }
            }
            return;
        }
        note(&format!(
            "kernel {release}: {why}\nwhat was running is run alone now: {names}"
        ));
        for (cell, labels) in running {
            let state = &mut self.states[cell];
            let new = labels
                .into_iter()
                .filter(|l| !state.suspects.contains(l))
                .collect::<Vec<_>>();
            state.suspects.extend(new);
        }
    }

    /// A case broke a guest each time that it ran: that is its result.
    fn guilty(&mut self, cell: usize, label: &str, why: &str) {
        self.states[cell].give_up(label);
        let of = &self.plan.cells[cell];
        let Some(case) = of.cases.iter().find(|c| c.label() == label) else {
            return;
        };
        let ground = Ground {
            cell: CellStart {
                target: of.target.name().to_string(),
                backing: of.backing.to_string(),
                kernel: self.kernel.release.clone(),
            },
            status: self.states[cell].driver.clone(),
        };
        let mut lines = why.lines().map(str::to_string);
        let first = lines.next().unwrap_or_default();
        let mut report = CaseReport::broken(case, format!("broke two guests: {first}"));
        if let Some(failure) = &mut report.failure {
            failure.detail.extend(lines);
        }
        let result = self.rules.judge(&ground, &of.required, case, report);
        if result.outcome.is_bad() {
            let end = &mut self.states[cell].end;
            let so_far = end.reason.take().map(|r| r + "\n").unwrap_or_default();
            end.status = CellStatus::Error;
            end.reason = Some(format!("{so_far}{label} broke two guests: {why}"));
        }
        let cell = self.first + cell;
        self.told(&Event::CaseFinished { cell, result });
    }

    /// Ends a cell of which no result comes any more.
    fn give_up(&mut self, cell: usize, why: String) {
        let end = &mut self.states[cell].end;
        end.status = CellStatus::Error;
        end.reason = Some(why);
        self.finish(cell);
    }

    /// Tells the end of a cell.
    fn finish(&mut self, cell: usize) {
        let state = &mut self.states[cell];
        if std::mem::replace(&mut state.ended, true) {
            return;
        }
        let end = std::mem::take(&mut state.end);
        self.left.extend(end.left.iter().cloned());
        let cell = self.first + cell;
        self.told(&Event::CellFinished { cell, end });
    }
}
