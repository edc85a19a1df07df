//! One scenario under one kernel, several times.

use super::bisect::Verdict;
use super::host::{Plan, run};
use super::{Texts, bisect::Pair};
use crate::graphtest::event::{CaseResult, Event, Outcome};
use crate::graphtest::run::{Cell, Options};
use crate::lab::Register;
use crate::lab::vm::{Kernel, Lab};

/// What is tried under each kernel.
#[derive(Debug)]
pub struct Trial<'a> {
    /// The target on its backing, with one case.
    pub cell: &'a Cell,
    /// Files that guests do not have.
    pub texts: &'a Texts,
    /// How to run; `repeat` says how often.
    pub options: &'a Options,
}

/// What came of it under one kernel.
#[derive(Clone, Debug)]
pub struct Tried {
    /// In short.
    pub verdict: Verdict,
    /// The first result that was no pass.
    pub result: Option<CaseResult>,
}

impl Trial<'_> {
    /// Runs the case under a kernel. Where it passes only sometimes, it is run twice as often once more, so that the counts say something.
    pub fn judge(
        &self,
        lab: &Lab,
        kernel: &Kernel,
        register: &Register,
        stop: &dyn Fn() -> bool,
        note: &dyn Fn(&str),
    ) -> Tried {
        let mut results = Vec::new();
        let mut why = None;
        let mut options = self.options.clone();
        for _ in 0..2 {
            let plan = Plan {
                lab,
                kernels: std::slice::from_ref(kernel),
                missing: &[],
                cells: std::slice::from_ref(self.cell),
                texts: self.texts,
                options: &options,
            };
            run(&plan, register, stop, note, &mut |event| match event {
                Event::CaseFinished { result, .. } => results.push(result.clone()),
                Event::CellFinished { end, .. } => why = why.take().or(end.reason.clone()),
                _ => {}
            });
            let passed = results.iter().filter(|r| r.outcome == Outcome::Pass);
            if [0, results.len()].contains(&passed.count()) {
                break;
            }
            options.repeat = self.options.repeat * 2;
        }
        tried(results, why)
    }
}

fn tried(results: Vec<CaseResult>, why: Option<String>) -> Tried {
    let of = results.len();
    let mut others = results.into_iter().filter(|r| r.outcome != Outcome::Pass);
    let result = others.next();
    let verdict = match &result {
        _ if of == 0 => Verdict::Untestable(why.unwrap_or_else(|| "it did not run".to_string())),
        None => Verdict::Good(of),
        Some(first) => {
            let reason = first.reason.as_deref().unwrap_or("no reason");
            let skipped = match first.outcome {
                Outcome::Skip => "skipped: ",
                _ => "",
            };
            Verdict::Bad {
                times: 1 + others.count(),
                of,
                why: format!("{skipped}{reason}"),
            }
        }
    };
    Tried { verdict, result }
}

/// What a search found, for a mail.
#[derive(Debug)]
pub struct Finding<'a> {
    /// The scenario, on its cell.
    pub cell: &'a Cell,
    /// The kernels from the good end to the bad one: how it was asked for, its release if it could be had, and what came of it if it was
    /// asked.
    pub tried: &'a [(String, Option<String>, Option<Tried>)],
    /// Between which it is.
    pub pair: Pair,
    /// What lies beside the report: name and what it is.
    pub files: &'a [(String, String)],
    /// The command that runs the scenario under the first bad kernel.
    pub again: &'a str,
}

impl std::fmt::Display for Finding<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |i: usize| {
            let (name, release, _) = &self.tried[i];
            release.clone().unwrap_or_else(|| name.clone())
        };
        let label = self.cell.cases.first().map(|c| c.label());
        let label = label.unwrap_or_default();
        writeln!(f, "{label} on {}", self.cell.name())?;
        if let Some(case) = self.cell.cases.first() {
            writeln!(
                f,
                "{}: {}",
                case.scenario.level.name(),
                case.scenario.must.trim()
            )?;
        }
        writeln!(f, "\nlast good: {}", name(self.pair.good))?;
        writeln!(f, "first bad: {}", name(self.pair.bad))?;
        let between = self.pair.bad - self.pair.good - 1;
        if between > 0 {
            writeln!(f, "between them: {between} that cannot be judged")?;
        }
        writeln!(f, "\nWhat was tried:")?;
        for (i, (_, _, tried)) in self.tried.iter().enumerate() {
            let said = match tried {
                Some(tried) => tried.verdict.to_string().replace('\n', "\n    "),
                None => "not asked".to_string(),
            };
            writeln!(f, "  {}: {said}", name(i))?;
        }
        let bad = self.tried[self.pair.bad].2.as_ref();
        if let Some(result) = bad.and_then(|t| t.result.as_ref()) {
            writeln!(f, "\nUnder {}:", name(self.pair.bad))?;
            if let Some(location) = &result.location {
                writeln!(f, "  at {location}")?;
            }
            for line in result.reason.iter().chain(&result.detail) {
                writeln!(f, "  {line}")?;
            }
            for line in &result.contract {
                writeln!(f, "  {line}")?;
            }
        }
        writeln!(f, "\nBeside this:")?;
        for (name, about) in self.files {
            writeln!(f, "  {name}: {about}")?;
        }
        writeln!(f, "\nAgain: {}", self.again)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn result(outcome: &str) -> CaseResult {
        serde_json::from_value(json!({
            "id": "a/b", "requirements": [], "level": "must", "outcome": outcome, "reason": "why", "seconds": 0.1, "case": null,
            "seed": null, "replay": null,
        }))
        .unwrap()
    }

    #[rstest]
    #[case(&["pass", "pass"], "good: passed 2 of 2 times")]
    #[case(&["fail", "fail"], "bad: did not pass 2 of 2 times: why")]
    #[case(&["pass", "fail", "pass"], "bad: did not pass 1 of 3 times: why")]
    #[case(&["skip"], "bad: did not pass 1 of 1 times: skipped: why")]
    #[case(&[], "cannot be judged: no kernel")]
    fn results_become_a_verdict(#[case] outcomes: &[&str], #[case] said: &str) {
        let results: Vec<_> = outcomes.iter().map(|o| result(o)).collect();
        let whole = tried(results, Some("no kernel".to_string()));
        assert_eq!(whole.verdict.to_string(), said);
        let all_pass = outcomes.iter().all(|o| *o == "pass");
        assert_eq!(whole.result.is_none(), all_pass);
    }
}
