//! How far the cells of one kernel are, over all of its guests.

use std::collections::BTreeMap;

use crate::graphtest::event::{CellEnd, CellStatus, Event};
use crate::graphtest::run::Cell;

/// How far a cell is.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) begun: bool,
    pub(super) ended: bool,
    /// What its driver said of itself.
    pub(super) driver: BTreeMap<String, String>,
    /// How often each case has ended.
    done: BTreeMap<String, usize>,
    /// How many runs of each case go on in the guest that runs.
    running: BTreeMap<String, usize>,
    /// What was running when a guest broke: to be run alone, in this order.
    pub(super) suspects: Vec<String>,
    /// What is not run any more.
    pub(super) given_up: Vec<String>,
    /// How many guests broke while it was made ready or given back.
    pub(super) broke: usize,
    /// What its guests said of it when they gave it back.
    pub(super) end: CellEnd,
    /// The guest that runs has begun it, and has not ended it.
    pub(super) open: bool,
}

impl State {
    /// Whether a case is to be run in the next guest.
    pub(super) fn is_open(&self, label: &str, repeat: usize) -> bool {
        !self.given_up.iter().any(|l| l == label)
            && self.done.get(label).is_none_or(|n| *n < repeat)
    }

    /// Whether nothing of it is left to be run.
    pub(super) fn is_done(&self, cell: &Cell, repeat: usize) -> bool {
        let mut labels = cell.cases.iter().map(|c| c.label());
        labels.all(|label| !self.is_open(&label, repeat))
    }

    /// What runs in the guest that runs.
    pub(super) fn running(&self) -> Vec<String> {
        let busy = self.running.iter().filter(|(_, n)| **n > 0);
        busy.map(|(label, _)| label.clone()).collect()
    }

    /// It is not run any more.
    pub(super) fn give_up(&mut self, label: &str) {
        self.given_up.push(label.to_string());
        self.suspects.retain(|l| l != label);
    }

    /// The guest that ran is gone.
    pub(super) fn gone(&mut self) {
        self.running.clear();
        self.open = false;
    }
}

/// What is to become of an event of a guest.
#[derive(Debug, PartialEq)]
pub(super) enum Taken {
    /// It is told on, as this event of the whole run.
    Tell(Event),
    /// A case went on beyond its time limit; whatever it holds it may hold for ever.
    Stuck(Event),
    /// The guest is done with a cell.
    CellGone(usize),
    /// It is of no concern.
    Nothing,
}

/// Takes in what a guest tells about the cells that it was given: `given` are their numbers among those of the kernel, `first` is the
/// number of the kernel's first cell in the whole run.
pub(super) fn take(states: &mut [State], first: usize, given: &[usize], event: &Event) -> Taken {
    let mut event = event.clone();
    let (Event::CellStarted { cell, .. }
    | Event::CaseStarted { cell, .. }
    | Event::CaseFinished { cell, .. }
    | Event::CellFinished { cell, .. }) = &mut event
    else {
        return Taken::Nothing;
    };
    let Some(index) = given.get(*cell).copied() else {
        return Taken::Nothing;
    };
    *cell = first + index;
    let state = &mut states[index];
    match &event {
        Event::CellStarted { driver, .. } => {
            state.open = true;
            // A second guest takes a cell up where the first left it.
            if std::mem::replace(&mut state.begun, true) {
                return Taken::Nothing;
            }
            state.driver.clone_from(driver);
        }
        Event::CaseStarted { label, .. } => {
            *state.running.entry(label.clone()).or_default() += 1;
        }
        Event::CaseFinished { result, .. } => {
            let label = result.label();
            if let Some(n) = state.running.get_mut(&label) {
                *n = n.saturating_sub(1);
            }
            state.suspects.retain(|l| *l != label);
            *state.done.entry(label).or_default() += 1;
            if result.timed_out {
                return Taken::Stuck(event);
            }
        }
        Event::CellFinished { end, .. } => {
            state.open = false;
            merge(&mut state.end, end);
            return Taken::CellGone(index);
        }
        _ => {}
    }
    Taken::Tell(event)
}

/// What several guests say of one cell when they are done with it.
fn merge(all: &mut CellEnd, end: &CellEnd) {
    if end.status != CellStatus::Ran {
        all.status = end.status;
        all.reason.clone_from(&end.reason);
    }
    all.left.extend(end.left.iter().cloned());
    all.damage.extend(end.damage.iter().cloned());
    for note in &end.notes {
        if !all.notes.contains(note) {
            all.notes.push(note.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::graphtest::event::CaseResult;

    fn result(id: &str, timed_out: bool) -> CaseResult {
        let text = json!({
            "id": id, "requirements": [], "level": "must", "outcome": "fail", "reason": null, "seconds": 0.1, "case": null,
            "seed": null, "replay": null, "timed_out": timed_out,
        });
        serde_json::from_value(text).unwrap()
    }

    fn began(label: &str) -> Event {
        let label = label.to_string();
        Event::CaseStarted { cell: 0, label }
    }

    fn ended(id: &str, timed_out: bool) -> Event {
        let result = result(id, timed_out);
        Event::CaseFinished { cell: 0, result }
    }

    #[test]
    fn events_of_a_guest_become_those_of_the_run() {
        let mut states = vec![State::default(), State::default()];
        // The guest was given the second of two cells, of the second of two kernels.
        let mut send = |event: &Event| take(&mut states, 2, &[1], event);
        let begun = Event::CellStarted {
            cell: 0,
            filesystem: "ext4".to_string(),
            not_claimed: Vec::new(),
            driver: BTreeMap::from([("Version".to_string(), "1".to_string())]),
            planned: 2,
        };
        assert!(matches!(
            send(&begun),
            Taken::Tell(Event::CellStarted { cell: 3, .. })
        ));
        // Of another guest.
        assert_eq!(send(&begun), Taken::Nothing);
        for label in ["a/b", "a/c"] {
            assert!(matches!(
                send(&began(label)),
                Taken::Tell(Event::CaseStarted { cell: 3, .. })
            ));
        }
        assert!(matches!(
            send(&ended("a/b", false)),
            Taken::Tell(Event::CaseFinished { cell: 3, .. })
        ));
        // An event on a cell that it was not given.
        let label = "a/d".to_string();
        let other = Event::CaseStarted { cell: 7, label };
        assert_eq!(send(&other), Taken::Nothing);
        let state = &states[1];
        assert!(!states[0].begun && state.begun && state.driver["Version"] == "1");
        assert!(!state.is_open("a/b", 1) && state.is_open("a/b", 2));
        assert_eq!(state.running(), ["a/c"]);
    }

    #[test]
    fn what_is_stuck_is_no_longer_a_suspect_and_is_told() {
        let mut states = vec![State::default()];
        states[0].suspects = vec!["a/b".to_string(), "a/c".to_string()];
        take(&mut states, 0, &[0], &began("a/b"));
        let taken = take(&mut states, 0, &[0], &ended("a/b", true));
        assert!(matches!(taken, Taken::Stuck(_)), "{taken:?}");
        assert_eq!(states[0].suspects, ["a/c"]);
        assert!(!states[0].is_open("a/b", 1));
    }

    #[test]
    fn what_several_guests_say_of_a_cell_is_kept() {
        let mut states = vec![State::default()];
        for (left, note) in [("one", "same"), ("two", "same")] {
            let end = CellEnd {
                left: vec![left.to_string()],
                notes: vec![note.to_string()],
                ..CellEnd::default()
            };
            let event = Event::CellFinished { cell: 0, end };
            assert_eq!(take(&mut states, 0, &[0], &event), Taken::CellGone(0));
        }
        let end = &states[0].end;
        assert_eq!((end.left.len(), end.notes.len()), (2, 1));
        assert_eq!(end.status, CellStatus::Ran);
        let end = CellEnd {
            status: CellStatus::Skipped,
            reason: Some("no".to_string()),
            ..CellEnd::default()
        };
        take(&mut states, 0, &[0], &Event::CellFinished { cell: 0, end });
        assert_eq!(states[0].end.reason.as_deref(), Some("no"));
    }

    #[test]
    fn what_is_given_up_is_not_run_again() {
        let mut state = State {
            suspects: vec!["a/b".to_string()],
            ..State::default()
        };
        assert!(state.is_open("a/b", 1));
        state.give_up("a/b");
        assert!(!state.is_open("a/b", 1) && state.suspects.is_empty());
    }
}
