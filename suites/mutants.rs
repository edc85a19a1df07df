//! The suite tested: every scenario must fail on each mutant that it names, over at least one built-in driver on which it runs.
//!
//! A driver on which a scenario is known to fail without a bug shows nothing by failing, and is left out there.
//!
//! A trial is one scenario, or one row that names mutants of its own, with one mutant: `MUTANT::SUITE/SCENARIO#ROW`.

use std::process::ExitCode;
use std::sync::Arc;

use graphtest::graphdriver::Capability;
use graphtest::graphtest::engine::{RunLimits, run_case};
use graphtest::graphtest::event::Outcome;
use graphtest::graphtest::known::Known;
use graphtest::graphtest::load;
use graphtest::graphtest::mutant::{self, MutatedTarget};
use graphtest::graphtest::needs::NeedKind;
use graphtest::graphtest::target::{Target, built_in};
use graphtest::graphtest::{Case, Library};
use graphtest::harness::{Homes, made_backings};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// A mutant, and the cases of which at least one must fail on it.
struct Hunt {
    mutant: &'static mutant::Mutant,
    label: String,
    cases: Vec<Arc<Case>>,
}

fn hunts(library: &Library) -> Vec<Hunt> {
    let named = |name: &String| mutant::find(name).expect("the loader knows all mutants");
    let mut hunts = Vec::new();
    for scenario in library.suites.iter().flat_map(|s| &s.scenarios) {
        let cases: Vec<Arc<Case>> = library
            .cases()
            .filter(|c| c.scenario.id == scenario.id)
            .cloned()
            .collect();
        for name in &scenario.catches {
            let label = scenario.id.to_string();
            hunts.push(Hunt {
                mutant: named(name),
                label,
                cases: cases.clone(),
            });
        }
        for case in &cases {
            for name in &case.catches {
                hunts.push(Hunt {
                    mutant: named(name),
                    label: case.label(),
                    cases: vec![case.clone()],
                });
            }
        }
    }
    hunts
}

/// Runs the cases on the mutant over each driver until one fails.
fn hunt(
    hunt: &Hunt,
    targets: &[Arc<dyn Target>],
    homes: &Homes,
    known: &Known,
) -> Result<Completion, Failed> {
    let (mut ran, mut skipped) = (0, None);
    for target in targets {
        let mutated = MutatedTarget::new(target.clone(), hunt.mutant);
        for case in &hunt.cases {
            // What is served with a bug is a plugin; the driver below it is none.
            let mut needs = case.needs.clone();
            if hunt.mutant.wire().is_some() {
                needs.retain(|n| n.kind != NeedKind::Capability(Capability::Plugin));
            }
            let place = match homes.place_for(&**target, &needs) {
                Ok(place) => place,
                Err(why) => {
                    skipped = Some(why);
                    continue;
                }
            };
            if let Some(why) = homes.known(known, &**target, place, case) {
                skipped = Some(why);
                continue;
            }
            let report = run_case(&mutated, place, case, &RunLimits::default());
            match report.outcome {
                Outcome::Fail => return Ok(Completion::Completed),
                Outcome::Skip => skipped = report.reason,
                _ => ran += 1,
            }
        }
    }
    if ran == 0 {
        let why = skipped.unwrap_or_else(|| "no built-in driver can run here".to_string());
        return Ok(Completion::ignored_with(why));
    }
    Err(format!(
        "{ran} runs passed on a driver that is broken: {}",
        hunt.mutant.about
    )
    .into())
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let library = match load::builtin() {
        Ok(library) => library,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::from(3);
        }
    };
    let homes = match Homes::make(&std::env::temp_dir(), true) {
        Ok(homes) => Arc::new(homes.also_on(made_backings())),
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::from(3);
        }
    };
    let known = match Known::builtin() {
        Ok(known) => Arc::new(known),
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::from(3);
        }
    };
    let targets = built_in();
    let trials = hunts(&library).into_iter().map(|h| {
        let (targets, homes, known) = (targets.clone(), homes.clone(), known.clone());
        let name = format!("{}::{}", h.mutant.name, h.label);
        Trial::ignorable_test(name, move || hunt(&h, &targets, &homes, &known))
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    let closed = Arc::into_inner(homes).map_or(Err("still in use".to_string()), Homes::close);
    if let Err(e) = closed {
        eprintln!("{e}");
        return ExitCode::from(3);
    }
    conclusion.exit_code()
}
