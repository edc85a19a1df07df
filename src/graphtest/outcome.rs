//! What came of a case.

use crate::sync::lock;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::event::Outcome;
use super::requirement::Requirement;
use super::scenario::{Case, Location};

/// What did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The step, or the operation in it.
    pub at: Location,
    /// Its verb and subject, such as `tree: top`.
    pub step: String,
    /// Expected and found, a dozen lines at most.
    pub detail: Vec<String>,
    /// The requirements that the scenario proves.
    pub requirements: Vec<Arc<Requirement>>,
}

impl Failure {
    /// The first line of the detail: the reason in one line.
    pub fn summary(&self) -> &str {
        self.detail.first().map_or("failed", String::as_str)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.step)?;
        for line in &self.detail {
            write!(f, "\n    {line}")?;
        }
        for r in &self.requirements {
            write!(f, "\n  {}: {}", r.id, r.text)?;
        }
        Ok(())
    }
}

/// What came of one case.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseReport {
    /// How it ended: pass, fail or skip; what is known to fail is for the caller to know.
    pub outcome: Outcome,
    /// Why, in one line; `None` for a pass.
    pub reason: Option<String>,
    /// What did not hold, for a fail.
    pub failure: Option<Failure>,
    /// How long it took, cleaning up included, in seconds.
    pub seconds: f64,
    /// What was kept for a look: the scenario's directory.
    pub kept: Option<PathBuf>,
    /// It went on beyond its time limit, and was left to itself.
    pub timed_out: bool,
}

impl CaseReport {
    /// A failure that the engine could not report itself.
    pub(crate) fn broken(case: &Case, why: String) -> Self {
        Self {
            outcome: Outcome::Fail,
            reason: Some(why.clone()),
            failure: Some(Failure {
                at: case.scenario.at.clone(),
                step: case.label(),
                detail: vec![why],
                requirements: Vec::new(),
            }),
            seconds: 0.0,
            kept: None,
            timed_out: false,
        }
    }
}

/// Where a case is, for whoever watches its time and may call it off.
#[derive(Debug, Default)]
pub struct Progress {
    now: Mutex<Option<(Location, String)>>,
    called_off: AtomicBool,
    cut_short: AtomicBool,
}

impl Progress {
    /// The step being carried out.
    pub fn now(&self) -> Option<(Location, String)> {
        lock(&self.now).clone()
    }

    /// Notes the step being carried out.
    pub fn set(&self, at: &Location, step: &str) {
        let mut now = lock(&self.now);
        *now = Some((at.clone(), step.to_string()));
    }

    /// Has the case end before its next step.
    pub fn call_off(&self) {
        self.called_off.store(true, Ordering::Relaxed);
    }

    /// Whether the case is to end now, without its next step; then it has no result.
    pub fn is_called_off(&self) -> bool {
        let off = self.called_off.load(Ordering::Relaxed);
        if off {
            self.cut_short.store(true, Ordering::Relaxed);
        }
        off
    }

    /// Whether the case ended for no other reason than that it was called off.
    pub fn was_cut_short(&self) -> bool {
        self.cut_short.load(Ordering::Relaxed)
    }
}
