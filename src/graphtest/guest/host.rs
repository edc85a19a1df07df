//! The host's side: guests are started, their events become those of one run, and a guest that breaks costs as little as can be.

use std::collections::BTreeMap;

use super::{CellOrder, Order, Texts};
use crate::graphtest::event::{CellEnd, CellStart, CellStatus, Event};
use crate::graphtest::known::Tally;
use crate::graphtest::run::{Cell, Options, start};
use crate::lab::Register;
use crate::lab::vm::{End, JOB_DIR, Job, Kernel, Lab, PROGRAM, Said};

/// What is run in guests.
#[derive(Debug)]
pub struct Plan<'a> {
    /// What guests are started with.
    pub lab: &'a Lab,
    /// The kernels, one guest after the other.
    pub kernels: &'a [Kernel],
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
    let starts = plan.kernels.iter().flat_map(|kernel| {
        plan.cells.iter().map(|cell| CellStart {
            target: cell.target.name().to_string(),
            backing: cell.backing.to_string(),
            kernel: kernel.release.clone(),
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
            left: &mut left,
            failed: &mut failed,
            tell,
        };
        session.run(register, stop, note);
    }
    let interrupted = stop();
    let stale = Tally::new(&plan.options.rules.known).stale(&plan.options.library, false);
    tell(&Event::RunFinished {
        interrupted,
        left,
        stale,
    });
    interrupted
}

/// How far a cell is.
#[derive(Clone, Debug, Default)]
struct State {
    begun: bool,
    ended: bool,
    /// How often each case has ended.
    done: BTreeMap<String, usize>,
    /// How many runs of each case go on.
    running: BTreeMap<String, usize>,
    /// How many guests broke while it ran.
    broke: usize,
}

/// The guests of one kernel.
struct Session<'a> {
    plan: &'a Plan<'a>,
    kernel: &'a Kernel,
    /// The number of the first cell in the events of the whole run.
    first: usize,
    states: Vec<State>,
    left: &'a mut Vec<String>,
    failed: &'a mut bool,
    tell: &'a mut dyn FnMut(&Event),
}

/// How often a cell may break a guest, or a guest fail to come up, before it is given up.
const TRIES: usize = 2;

impl Session<'_> {
    fn run(&mut self, register: &Register, stop: &dyn Fn() -> bool, note: &dyn Fn(&str)) {
        let mut never_up = 0;
        loop {
            let open: Vec<usize> = (0..self.states.len())
                .filter(|i| !self.states[*i].ended)
                .collect();
            if open.is_empty() || stop() || *self.failed && self.plan.options.fail_fast {
                return;
            }
            let why = match self.guest(&open, register, stop, note) {
                Ok(Gone::Well) => return,
                Ok(Gone::Broken { greeted, why }) if greeted => {
                    self.blame(&open, &why, note);
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
            for cell in open {
                self.give_up(cell, why.clone());
            }
        }
    }

    /// Runs what is open in one guest.
    fn guest(
        &mut self,
        open: &[usize],
        register: &Register,
        stop: &dyn Fn() -> bool,
        note: &dyn Fn(&str),
    ) -> Result<Gone, String> {
        let plan = self.plan;
        let cells = open.iter().map(|i| {
            let done = &self.states[*i].done;
            let is_open = |label: &str| done.get(label).is_none_or(|n| *n < plan.options.repeat);
            CellOrder::new(&plan.cells[*i], is_open)
        });
        let order = Order::new(cells.collect(), plan.options, &self.kernel.name, plan.texts);
        let order = serde_json::to_string(&order).map_err(|e| format!("the order: {e}"))?;
        let words = [PROGRAM, "guest-run", &format!("{JOB_DIR}/{ORDER}")];
        let job = Job {
            argv: words.map(str::to_string).to_vec(),
            files: BTreeMap::from([(ORDER.to_string(), order)]),
            interactive: false,
        };
        let (mut line, mut errors) = (Vec::new(), Vec::new());
        let mut broken = None;
        let mut on = |said: Said<'_>| match said {
            Said::Up(after) => note(&format!(
                "kernel {}: a guest is up after {:.1} s",
                self.kernel.release,
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
                        Ok(event) => take(
                            &mut self.states,
                            self.first,
                            open,
                            &event,
                            self.left,
                            self.failed,
                            self.tell,
                        ),
                        Err(e) => broken = Some(format!("an event of the guest: {e}")),
                    }
                    line.clear();
                }
            }
        };
        let end = plan.lab.run(self.kernel, &job, register, stop, &mut on);
        let end = end.map_err(|e| e.to_string())?;
        let whole = open.iter().all(|i| self.states[*i].ended);
        Ok(match end {
            End::Stopped => Gone::Well,
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

    /// A guest broke while it ran: those cells are to blame of which a scenario was going on; one that has broken enough is given up.
    fn blame(&mut self, open: &[usize], why: &str, note: &dyn Fn(&str)) {
        let busy = |i: &usize| self.states[*i].running.values().any(|n| *n > 0);
        let mut guilty: Vec<usize> = open.iter().copied().filter(busy).collect();
        if guilty.is_empty() {
            guilty = open.to_vec();
        }
        note(&format!("kernel {}: {why}", self.kernel.release));
        for cell in guilty {
            let state = &mut self.states[cell];
            state.broke += 1;
            let running = std::mem::take(&mut state.running);
            if state.broke < TRIES {
                continue;
            }
            let running = running.into_iter().filter(|(_, n)| *n > 0);
            let running: Vec<String> = running.map(|(label, _)| label).collect();
            let what = match running.is_empty() {
                true => String::new(),
                false => format!(" while these were running: {}", running.join(", ")),
            };
            self.give_up(cell, format!("{TRIES} guests broke{what}: {why}"));
        }
        self.states.iter_mut().for_each(|s| s.running.clear());
    }

    fn give_up(&mut self, cell: usize, why: String) {
        self.states[cell].ended = true;
        let end = CellEnd {
            status: CellStatus::Error,
            reason: Some(why),
            ..CellEnd::default()
        };
        let cell = self.first + cell;
        (self.tell)(&Event::CellFinished { cell, end });
    }
}

/// How a guest went.
enum Gone {
    Well,
    Broken { greeted: bool, why: String },
}

/// Takes in what a guest tells about the cells that it was given, and tells it on as an event of the whole run.
fn take(
    states: &mut [State],
    first: usize,
    open: &[usize],
    event: &Event,
    left: &mut Vec<String>,
    failed: &mut bool,
    tell: &mut dyn FnMut(&Event),
) {
    let mut event = event.clone();
    let (Event::CellStarted { cell, .. }
    | Event::CaseStarted { cell, .. }
    | Event::CaseFinished { cell, .. }
    | Event::CellFinished { cell, .. }) = &mut event
    else {
        return;
    };
    let Some(index) = open.get(*cell).copied() else {
        return;
    };
    *cell = first + index;
    let state = &mut states[index];
    match &event {
        // A second guest takes a cell up where the first left it.
        Event::CellStarted { .. } if state.begun => return,
        Event::CellStarted { .. } => state.begun = true,
        Event::CaseStarted { label, .. } => {
            *state.running.entry(label.clone()).or_default() += 1;
        }
        Event::CaseFinished { result, .. } => {
            let label = result.label();
            if let Some(n) = state.running.get_mut(&label) {
                *n = n.saturating_sub(1);
            }
            *state.done.entry(label).or_default() += 1;
            *failed |= result.outcome.is_bad();
        }
        Event::CellFinished { end, .. } => {
            state.ended = true;
            left.extend(end.left.iter().cloned());
        }
        _ => {}
    }
    tell(&event);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graphtest::event::{CaseResult, Outcome};

    fn result(id: &str) -> CaseResult {
        let text = serde_json::json!({
            "id": id, "requirements": [], "level": "must", "outcome": Outcome::Fail, "reason": null, "seconds": 0.1, "case": null,
            "seed": null, "replay": null,
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn events_of_a_guest_become_those_of_the_run() {
        let mut states = vec![State::default(), State::default()];
        let (mut left, mut failed, mut told) = (Vec::new(), false, Vec::new());
        // The guest was given the second of two cells, of the second of two kernels.
        let mut send = |event: Event| {
            let tell = &mut |e: &Event| told.push(e.clone());
            take(&mut states, 2, &[1], &event, &mut left, &mut failed, tell);
        };
        let begun = Event::CellStarted {
            cell: 0,
            filesystem: "ext4".to_string(),
            not_claimed: Vec::new(),
            driver: BTreeMap::new(),
            planned: 2,
        };
        send(begun.clone());
        send(begun);
        for label in ["a/b", "a/c"] {
            let label = label.to_string();
            send(Event::CaseStarted { cell: 0, label });
        }
        send(Event::CaseFinished {
            cell: 0,
            result: result("a/b"),
        });
        // An event on a cell that it was not given.
        send(Event::CaseStarted {
            cell: 7,
            label: "a/d".to_string(),
        });
        let cells: Vec<usize> = told
            .iter()
            .filter_map(|e| match e {
                Event::CellStarted { cell, .. }
                | Event::CaseStarted { cell, .. }
                | Event::CaseFinished { cell, .. } => Some(*cell),
                _ => None,
            })
            .collect();
        assert_eq!(cells, [3, 3, 3, 3]);
        assert!(failed && !states[0].begun);
        assert_eq!(states[1].done["a/b"], 1);
        assert_eq!((states[1].running["a/b"], states[1].running["a/c"]), (0, 1));
    }
}
