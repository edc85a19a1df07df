//! Properties: whatever happens to a store, every layer holds what a model says, its changes and its size are those of the model,
//! and its diff makes it anew.
//!
//! Histories are made by chance, told as scenarios and run by the engine. One that fails is shrunk and left as a scenario file.
//! `PROPTEST_CASES` says how many are tried on each driver, `PROPTEST_RNG_SEED` which, `GRAPHTEST_COUNTEREXAMPLES` where files go.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use graphtest::graphtest::known::Known;
use graphtest::graphtest::mutant::{self, MutatedTarget};
use graphtest::graphtest::needs::Need;
use graphtest::graphtest::target::built_in;
use graphtest::graphtest::{Case, CaseReport, Outcome, RunLimits, Target, load, run_case};
use graphtest::harness::{Homes, made_backings};
use graphtest::lab::{Fact, Place};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};

#[path = "properties/history.rs"]
mod history;
#[path = "properties/story.rs"]
mod story;

use story::Abilities;

/// How many histories a driver is tried with, unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 48;

/// Bugs that the property must find; the last one is what every scenario file names under `catches:`.
const MUTANTS: &[&str] = &[
    "whiteout-lost",
    "opaque-lost",
    "hardlink-copied",
    "xattrs-dropped",
    "diff-top-layer-only",
    NAMED,
];

/// Seen in whatever layer is scanned.
const NAMED: &str = "root-mode-0700";

/// How many histories a mutant is hunted with on each driver, and from which seed: the same in every run, so that the proof holds or
/// does not.
const HUNT: Plan = Plan {
    cases: 160,
    seed: 1,
    shrinks: 200,
};

/// What is tried.
#[derive(Clone, Copy, Debug)]
struct Plan {
    cases: u32,
    seed: u64,
    shrinks: u32,
}

impl Plan {
    /// What the environment asks for.
    fn asked() -> Self {
        let config = Config::default();
        let cases = match std::env::var_os("PROPTEST_CASES") {
            Some(_) => config.cases,
            None => CASES,
        };
        let seed = match config.rng_seed {
            RngSeed::Fixed(seed) => seed,
            RngSeed::Random => by_chance(),
        };
        Self {
            cases,
            seed,
            shrinks: 2000,
        }
    }
}

/// A number that nobody chose.
fn by_chance() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one("seed")
}

/// A history that a driver does not stand, the shortest that was found.
struct Counterexample {
    scenario: String,
    why: String,
}

/// Tries histories on a target until one fails.
fn search(
    target: &dyn Target,
    place: &Place,
    plan: Plan,
) -> Result<Option<Counterexample>, String> {
    let has = |fact| place.facts.has(fact);
    let abilities = Abilities {
        owners: has(Fact::Owners),
        mknod: has(Fact::Mknod),
        xattrs: [Fact::XattrUser, Fact::XattrSecurity, Fact::Acl]
            .into_iter()
            .all(has),
    };
    let text = |history: &[history::Event]| {
        scenario(target.name(), plan.seed, &story::tell(history, abilities))
    };
    let mut runner = TestRunner::new(Config {
        cases: plan.cases,
        rng_seed: RngSeed::Fixed(plan.seed),
        max_shrink_iters: plan.shrinks,
        failure_persistence: None,
        ..Config::default()
    });
    let tried = runner.run(&history::history(), |history| {
        let text = text(&history);
        let library = load::from_texts([("history.yaml".to_string(), text.clone())])
            .unwrap_or_else(|e| panic!("what is told must be a scenario: {e}\n{text}"));
        for case in library.cases() {
            let report = run(target, place, case);
            if report.outcome == Outcome::Fail {
                return Err(TestCaseError::fail(why(report)));
            }
        }
        Ok(())
    });
    match tried {
        Ok(()) => Ok(None),
        Err(TestError::Fail(reason, history)) => Ok(Some(Counterexample {
            scenario: text(&history),
            why: reason.message().to_string(),
        })),
        Err(TestError::Abort(reason)) => Err(format!("the search ended early: {reason}")),
    }
}

fn run(target: &dyn Target, place: &Place, case: &Case) -> CaseReport {
    run_case(target, place, case, &RunLimits::default())
}

fn why(report: CaseReport) -> String {
    let failure = report.failure.map(|f| f.to_string());
    failure.or(report.reason).unwrap_or_default()
}

/// Steps as a file of the scenario language.
fn scenario(target: &str, seed: u64, steps: &str) -> String {
    let id = target.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    format!(
        "suite: counterexample\n\
         about: A history found by chance, from seed {seed} on {target}.\n\
         scenarios:\n\
         \x20 - id: {id}-{seed}\n\
         \x20   proves: [CHAIN-3, CHANGES-1, DIFF-1, SIZE-1]\n\
         \x20   level: must\n\
         \x20   must: Every layer holds what its history makes, and so do its changes, its size and its diff.\n\
         \x20   from: [suites/properties.rs]\n\
         \x20   catches: [{NAMED}]\n\
         \x20   steps:\n\
         {steps}"
    )
}

/// Leaves the counterexample as a file of its own.
fn write(found: &Counterexample, dir: &Path, target: &str, seed: u64) -> Result<PathBuf, String> {
    let path = dir.join(format!("counterexample-{target}-{seed}.yaml"));
    let written =
        std::fs::create_dir_all(dir).and_then(|()| std::fs::write(&path, &found.scenario));
    match written {
        Ok(()) => Ok(path),
        Err(e) => Err(format!("{} cannot be written: {e}", path.display())),
    }
}

/// No history fails on a good driver.
fn holds(target: &dyn Target, homes: &Homes, plan: Plan) -> Result<Completion, Failed> {
    let place = match homes.place_for(target, &[]) {
        Ok(place) => place,
        Err(cannot) => return Ok(Completion::ignored_with(cannot)),
    };
    let Some(found) = search(target, place, plan)? else {
        return Ok(Completion::Completed);
    };
    let dir = std::env::var_os("GRAPHTEST_COUNTEREXAMPLES").map(PathBuf::from);
    let dir = dir.unwrap_or_else(std::env::temp_dir);
    let (name, Plan { cases, seed, .. }) = (target.name(), plan);
    let file = write(&found, &dir, name, seed)?;
    Err(format!(
        "{}\nthe steps are in {file}; run them again:\n    graphtest run --suite {file} --target {name} --on {backing}\n\
         and the search:\n    PROPTEST_RNG_SEED={seed} PROPTEST_CASES={cases} cargo test --test properties -- {name}::histories",
        found.why,
        file = file.display(),
        backing = place.backing,
    )
    .into())
}

/// A history is found that fails on the mutant; its file fails there too, and passes on the driver without the bug.
fn finds(mutant: &str, targets: &[Arc<dyn Target>], homes: &Homes) -> Result<Completion, Failed> {
    let known = mutant::find(mutant).ok_or_else(|| format!("no mutant {mutant}"))?;
    let needs: Vec<Need> = match mutant {
        "xattrs-dropped" => vec!["xattr-user".parse()?],
        _ => Vec::new(),
    };
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let mut ran = 0;
    for target in targets {
        let Ok(place) = homes.place_for(&**target, &needs) else {
            continue;
        };
        ran += 1;
        let mutated = MutatedTarget::new(target.clone(), known);
        let Some(found) = search(&mutated, place, HUNT)? else {
            continue;
        };
        let file = write(&found, dir.path(), mutated.name(), HUNT.seed)?;
        let library = load::load_files(std::slice::from_ref(&file)).map_err(|e| e.to_string())?;
        let case = library.cases().next().ok_or("a file without a case")?;
        let again = run(&mutated, place, case);
        if again.outcome != Outcome::Fail {
            return Err(format!("passes when run again:\n{}", found.scenario).into());
        }
        let good = run(&**target, place, case);
        if good.outcome != Outcome::Pass {
            let why = why(good);
            return Err(format!("fails without the bug too: {why}\n{}", found.scenario).into());
        }
        return Ok(Completion::Completed);
    }
    if ran == 0 {
        return Ok(Completion::ignored_with("no built-in driver can run here"));
    }
    Err(format!(
        "{} histories passed on each of {ran} broken drivers: {}",
        HUNT.cases, known.about
    )
    .into())
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let homes = match Homes::make(&std::env::temp_dir(), true) {
        Ok(homes) => Arc::new(homes.also_on(made_backings())),
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::from(3);
        }
    };
    let plan = Plan::asked();
    if !arguments.list {
        println!(
            "{} histories for each driver, PROPTEST_RNG_SEED={}",
            plan.cases, plan.seed
        );
    }
    let known = match Known::builtin() {
        Ok(known) => known,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::from(3);
        }
    };
    // What is known of a driver would be found by chance in every run.
    let (sound, defective): (Vec<_>, Vec<_>) = built_in()
        .into_iter()
        .partition(|t| !known.concern(t.name()));
    let targets = sound;
    let mut trials = Vec::new();
    for target in &targets {
        let (target, homes) = (target.clone(), homes.clone());
        let name = format!("{}::histories", target.name());
        trials.push(Trial::ignorable_test(name, move || {
            holds(&*target, &homes, plan)
        }));
    }
    for target in defective {
        let why = format!("{} has known defects", target.name());
        let name = format!("{}::histories", target.name());
        let ignored = move || Ok(Completion::ignored_with(why));
        trials.push(Trial::ignorable_test(name, ignored));
    }
    for mutant in MUTANTS {
        let (targets, homes) = (targets.clone(), homes.clone());
        let name = format!("{mutant}::is-found");
        trials.push(Trial::ignorable_test(name, move || {
            finds(mutant, &targets, &homes)
        }));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let closed = Arc::into_inner(homes).map_or(Err("still in use".to_string()), Homes::close);
    if let Err(e) = closed {
        eprintln!("{e}");
        return ExitCode::from(3);
    }
    conclusion.exit_code()
}
