//! Running one case against one target: a fresh home, the steps, and the check that nothing is left behind.

mod archives;
mod call;
mod content;
mod datasets;
mod differ;
mod export;
mod home;
mod kill;
mod layers;
mod lifecycle;
mod many;
mod overlay_of;
mod own;
mod power;
mod quota;
mod request;
mod restart;
mod select;
mod space;
mod state;
mod subvolumes;
mod tar_split;
#[cfg(test)]
mod tests;
mod world;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::event::Outcome;
use super::load;
use super::needs::{Need, NeedKind};
use super::outcome::{CaseReport, Failure, Progress};
use super::requirement::Requirement;
use super::scenario::Case;
use super::step::{Action, Step};
use super::target::Target;
use crate::lab::Place;
use crate::sys;

use call::Fail;
use own::{Own, Without};
use world::World;

/// Of which cases everything is left in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// Of none.
    #[default]
    None,
    /// Of those that fail.
    Failing,
    /// Of all.
    All,
}

impl Keep {
    fn is_for<T>(self, result: &Result<T, Fail>) -> bool {
        match self {
            Self::None => false,
            Self::Failing => result.is_err(),
            Self::All => true,
        }
    }
}

/// How cases are run.
#[derive(Clone, Debug, Default)]
pub struct RunLimits {
    /// Leave the directory of a case as it is, mounts included.
    pub keep: Keep,
    /// Where the case says which step it is at.
    pub progress: Arc<Progress>,
    /// The requirements, for the sentences of a failure.
    pub requirements: Arc<BTreeMap<String, Arc<Requirement>>>,
}

/// Runs a case against a target in a directory of its own below `place`, and removes that directory. The calling thread gets
/// a umask and a working directory of its own.
pub fn run_case(target: &dyn Target, place: &Place, case: &Case, limits: &RunLimits) -> CaseReport {
    let started = Instant::now();
    let mut report = CaseReport {
        outcome: Outcome::Pass,
        reason: None,
        failure: None,
        seconds: 0.0,
        kept: None,
        timed_out: false,
    };
    // Before anything is started: the first step may give the driver options that only one of that layout has.
    let skip = case.needs.iter().find_map(|n| {
        n.unmet_by_place(&place.facts)
            .or_else(|| n.unmet_by_layout(target.layout()))
    });
    if skip.is_some() {
        report.outcome = Outcome::Skip;
        report.reason = skip;
        return report;
    }
    let ended = sys::with_umask(0o022, || in_directory(target, place, case, limits))
        .unwrap_or_else(|e| Ended::failed(Fail::new(format!("no umask of its own: {e}"))));
    match ended.result {
        Ok(None) => {}
        Ok(Some(reason)) => {
            report.outcome = Outcome::Skip;
            report.reason = Some(reason);
        }
        Err(fail) => {
            let failure = failure(case, fail, limits);
            report.outcome = Outcome::Fail;
            report.reason = Some(failure.summary().to_string());
            report.failure = Some(failure);
        }
    }
    report.kept = ended.kept;
    report.seconds = started.elapsed().as_secs_f64();
    report
}

fn failure(case: &Case, fail: Fail, limits: &RunLimits) -> Failure {
    let (at, step) = fail
        .place
        .unwrap_or_else(|| (case.scenario.at.clone(), case.label()));
    let requirements = case.scenario.proves.iter();
    Failure {
        at,
        step,
        detail: fail.detail,
        requirements: requirements
            .filter_map(|id| limits.requirements.get(id).cloned())
            .collect(),
    }
}

/// How it went: `Ok(Some(reason))` is a skip.
struct Ended {
    result: Result<Option<String>, Fail>,
    kept: Option<PathBuf>,
}

impl Ended {
    fn failed(fail: Fail) -> Self {
        Self {
            result: Err(fail),
            kept: None,
        }
    }
}

/// Makes the case's directory, runs it there and removes it.
fn in_directory(target: &dyn Target, place: &Place, case: &Case, limits: &RunLimits) -> Ended {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = place.dir.join(format!("s{n}"));
    if let Err(e) = std::fs::create_dir(&dir) {
        let what = format!("no directory for the scenario: {}: {e}", dir.display());
        return Ended::failed(Fail::new(what));
    }
    // A panic is the driver's, or the harness's; either way the rest of the run goes on.
    let run = std::panic::catch_unwind(AssertUnwindSafe(|| {
        run_in(target, place, case, limits, &dir)
    }));
    let mut result = run.unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no text");
        Err(Fail::new(format!("panicked: {text}")).or_at(limits.progress.now()))
    });
    if limits.keep.is_for(&result) {
        return Ended {
            result,
            kept: Some(dir),
        };
    }
    if let Err(e) = place.delete(|| state::remove_dir(&dir)) {
        let left = Fail::new(format!("the scenario's directory cannot be removed: {e}"));
        result = result.and(Err(left));
    }
    place.forget(&dir);
    Ended { result, kept: None }
}

fn run_in(
    target: &dyn Target,
    place: &Place,
    case: &Case,
    limits: &RunLimits,
    dir: &std::path::Path,
) -> Result<Option<String>, Fail> {
    if target.elsewhere() && load::whole::kills(&case.steps) {
        let reason = "needs a driver in this process, to be killed with it";
        return Ok(Some(reason.to_string()));
    }
    if let Some(reason) = unclaimed(target, case, dir) {
        return Ok(Some(reason));
    }
    let own = match case
        .backing
        .as_ref()
        .map(|b| Own::make(place, b))
        .transpose()
    {
        Ok(own) => own,
        Err(Without::Kind(reason)) => return Ok(Some(reason)),
        Err(Without::Failed(fail)) => return Err(fail),
    };
    let result = run_on(target, place, own.as_ref(), case, limits, dir);
    match own {
        Some(own) if !limits.keep.is_for(&result) => {
            let given_back = own.give_back();
            result.and_then(|skip| given_back.map(|()| skip))
        }
        Some(own) => {
            own.keep();
            result
        }
        None => result,
    }
}

/// Why the driver does not meet the needs of a case with a backing of its own. What it does not claim on the cell's place it does not
/// claim on another of the same kind, and asking takes less time than making one.
fn unclaimed(target: &dyn Target, case: &Case, dir: &std::path::Path) -> Option<String> {
    // Facts and layouts have been looked at.
    let of_driver = |n: &Need| !matches!(n.kind, NeedKind::Fact(_) | NeedKind::Layout(_));
    if case.backing.is_none() || !case.needs.iter().any(of_driver) {
        return None;
    }
    let home = dir.join("asked");
    std::fs::create_dir(&home).ok()?;
    let driver = target.init(&home, &[]).ok()?;
    let claims = driver.capabilities();
    // A driver that cannot clean up shows that in its scenarios.
    let _ = driver.cleanup();
    let unmet = |n: &Need| n.unmet_by_driver(&claims, target.layout());
    case.needs.iter().find_map(unmet)
}

fn run_on(
    target: &dyn Target,
    place: &Place,
    own: Option<&Own>,
    case: &Case,
    limits: &RunLimits,
    dir: &std::path::Path,
) -> Result<Option<String>, Fail> {
    let mut world = World::new(target, place, &limits.progress, dir);
    if let Some(own) = own {
        world = world.on(own);
    }
    let mut steps: &[Step] = &case.steps;
    if let Some((first, rest)) = steps.split_first()
        && let Action::Home(home) = &first.action
    {
        limits.progress.set(&first.at, &first.text);
        let started = world
            .start_in(home, &first.expect)
            .map_err(|f| f.in_step(first))?;
        if !started {
            return Ok(None);
        }
        steps = rest;
    } else {
        world.start()?;
    }
    let claims = world.claims.clone();
    let unmet = |n: &Need| n.unmet_by_driver(&claims, target.layout());
    if let Some(reason) = case.needs.iter().find_map(unmet) {
        world.end()?;
        return Ok(Some(reason));
    }
    let limited;
    if let (Some(by_limit), Some(limit)) = (&case.by_limit, claims.max_depth) {
        limited = match by_limit.steps(limit) {
            Ok(steps) => steps,
            Err(e) => {
                world.end()?;
                let what = format!("with {limit}, the limit that the driver claims:");
                return Err(Fail::lines(what, e.errors.iter().map(ToString::to_string)));
            }
        };
        // The first driver has its home already.
        steps = &limited[limited.len() - steps.len()..];
    }
    let result = world.run(steps);
    if limits.keep.is_for(&result) {
        return result.map(|()| None);
    }
    let ended = world.end();
    // What went wrong first says more than what it left behind.
    result.and(ended).map(|()| None)
}
