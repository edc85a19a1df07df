//! From what a case did to how it counts: known results, required scenarios, the `may` level.

use std::path::PathBuf;

use globset::{Glob, GlobMatcher};

use crate::graphtest::condition::Ground;
use crate::graphtest::event::{CaseResult, CellStart, Outcome};
use crate::graphtest::hint::said;
use crate::graphtest::known::{KNOWN, Known};
use crate::graphtest::{Case, CaseReport, Level, Library};

/// Scenarios that must not be skipped.
#[derive(Clone, Debug, Default)]
pub struct Required {
    /// Each with its line.
    globs: Vec<(usize, GlobMatcher)>,
}

impl Required {
    /// None may be skipped.
    ///
    /// # Errors
    /// Never: the glob is well-formed.
    pub fn all() -> Result<Self, String> {
        Self::parse("**")
    }

    /// Globs of scenario ids, one a line; `#` begins a comment.
    ///
    /// # Errors
    /// A line is not a glob, with its number.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lines = text
            .lines()
            .enumerate()
            .map(|(i, l)| (i + 1, l.split('#').next().unwrap_or("").trim()));
        let globs = lines
            .filter(|(_, glob)| !glob.is_empty())
            .map(|(i, glob)| {
                Glob::new(glob)
                    .map(|g| (i, g.compile_matcher()))
                    .map_err(|e| format!("line {i}: {e}"))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { globs })
    }

    /// Makes sure that each of them matches a scenario: one that does not would require nothing.
    ///
    /// # Errors
    /// The first that matches none, with its line.
    pub fn check(&self, library: &Library) -> Result<(), String> {
        let none = |(_, glob): &&(usize, GlobMatcher)| {
            !library.cases().any(|c| glob.is_match(&c.scenario.id.0))
        };
        match self.globs.iter().find(none) {
            Some((line, glob)) => Err(format!(
                "line {line}: `{}` matches no scenario",
                glob.glob()
            )),
            None => Ok(()),
        }
    }

    /// Both lists together.
    pub fn and(&self, other: Self) -> Self {
        let globs = self.globs.iter().cloned().chain(other.globs);
        Self {
            globs: globs.collect(),
        }
    }

    /// Whether a scenario is among them.
    pub fn has(&self, id: &str) -> bool {
        self.globs.iter().any(|(_, g)| g.is_match(id))
    }
}

/// What a result depends on beside the case itself.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// What is known to fail.
    pub known: Known,
    /// The program as the person who runs it would call it, for the command that runs one result again.
    pub program: String,
    /// Scenario files other than the built-in ones.
    pub suites: Vec<PathBuf>,
    /// The kernel, when it is not this machine's, as it was asked for.
    pub kernel: Option<String>,
}

impl Rules {
    /// Turns a case's report into its result; `required` must not be skipped there.
    pub fn judge(
        &self,
        ground: &Ground,
        required: &Required,
        case: &Case,
        report: CaseReport,
    ) -> CaseResult {
        let scenario = &case.scenario;
        let id = scenario.id.to_string();
        let (outcome, reason) = self.outcome(ground, required, case, &report);
        let mut result = CaseResult {
            requirements: scenario.proves.clone(),
            level: scenario.level.name().to_string(),
            outcome,
            reason,
            seconds: report.seconds,
            case: case.name.clone(),
            seed: None,
            replay: Some(self.replay(&ground.cell, case)),
            location: None,
            detail: Vec::new(),
            sentence: None,
            contract: Vec::new(),
            hint: None,
            kept: report.kept.map(|k| k.display().to_string()),
            timed_out: report.timed_out,
            id,
        };
        if let Some(failure) = report.failure {
            result.location = Some(failure.at.to_string());
            // The first line is the reason.
            result.detail = failure.detail.into_iter().skip(1).collect();
            result.hint = said(&scenario.hints, ground);
            result.sentence = Some(scenario.must.clone());
            let requirements = failure.requirements.iter();
            result.contract = requirements
                .map(|r| format!("{}: {}", r.id, r.text))
                .collect();
        }
        result
    }

    fn outcome(
        &self,
        ground: &Ground,
        required: &Required,
        case: &Case,
        report: &CaseReport,
    ) -> (Outcome, Option<String>) {
        let id = case.scenario.id.to_string();
        let known = self.known.reason(ground, &case.label());
        let why = match &report.failure {
            Some(failure) => Some(format!("{}: {}", failure.step, failure.summary())),
            None => report.reason.clone(),
        };
        match (report.outcome, known) {
            (Outcome::Fail, Some(known)) => (Outcome::XFail, Some(format!("{KNOWN}{known}"))),
            (Outcome::Pass, Some(known)) => (
                Outcome::XPass,
                Some(format!("passes although known to fail: {known}")),
            ),
            // Measured and shown, never counted against a driver.
            (Outcome::Fail, None) if case.scenario.level == Level::May => (
                Outcome::XFail,
                Some(format!("may, and does not: {}", why.unwrap_or_default())),
            ),
            (Outcome::Skip, _) if required.has(&id) => (
                Outcome::Fail,
                Some(format!(
                    "required here, but skipped: {}",
                    why.unwrap_or_default()
                )),
            ),
            (outcome, _) => (outcome, why),
        }
    }

    /// The command that runs just this again.
    fn replay(&self, cell: &CellStart, case: &Case) -> String {
        let mut words = vec![self.program.clone(), "run".to_string()];
        for suite in &self.suites {
            words.extend(["--suite".to_string(), suite.display().to_string()]);
        }
        if let Some(kernel) = &self.kernel {
            words.extend(["--kernel".to_string(), kernel.clone()]);
        }
        words.extend([
            "--target".to_string(),
            cell.target.clone(),
            "--on".to_string(),
            cell.backing.clone(),
        ]);
        words.push(case.label());
        shell_words(&words)
    }
}

/// Words as a POSIX shell reads them back.
pub(crate) fn shell_words(words: &[String]) -> String {
    words.iter().map(|w| quote(w)).collect::<Vec<_>>().join(" ")
}

/// A word as a POSIX shell reads it back.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rstest::rstest;

    use super::*;
    use crate::graphtest::{Failure, Location, Requirement, Scenario, ScenarioId};

    fn case(level: Level) -> Case {
        let at = Location {
            file: "suites/life.yaml".into(),
            line: 3,
        };
        Case {
            scenario: Arc::new(Scenario {
                id: ScenarioId("life/create".to_string()),
                at,
                proves: vec!["LIFE-1".to_string()],
                level,
                must: "It holds.".to_string(),
                from: Vec::new(),
                tags: Vec::new(),
                hints: Vec::new(),
                catches: Vec::new(),
            }),
            name: Some("it's".to_string()),
            needs: Vec::new(),
            catches: Vec::new(),
            backing: None,
            steps: Vec::new().into(),
            by_limit: None,
        }
    }

    fn report(outcome: Outcome) -> CaseReport {
        let at = Location {
            file: "suites/life.yaml".into(),
            line: 9,
        };
        let detail = vec!["mode".to_string(), "more".to_string()];
        let failure = Failure {
            at,
            step: "tree: a".to_string(),
            detail,
            requirements: vec![Arc::new(Requirement {
                id: "LIFE-1".to_string(),
                text: "It always holds.".to_string(),
                why: None,
                from: Vec::new(),
            })],
        };
        CaseReport {
            outcome,
            reason: (outcome == Outcome::Skip).then(|| "needs root".to_string()),
            failure: (outcome == Outcome::Fail).then_some(failure),
            seconds: 0.5,
            kept: None,
            timed_out: false,
        }
    }

    fn rules(known: &str) -> Rules {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("known.yaml");
        let text = format!("- {{scenario: {known}, reason: why, link: x}}");
        std::fs::write(&path, text).unwrap();
        Rules {
            known: Known::load(&path).unwrap(),
            program: "graphtest".to_string(),
            suites: vec!["my suite.yaml".into()],
            kernel: None,
        }
    }

    #[rstest]
    #[case(Outcome::Pass, Level::Must, "", "none", Outcome::Pass, "")]
    #[case(Outcome::Fail, Level::Must, "", "none", Outcome::Fail, "tree: a: mode")]
    #[case(
        Outcome::Fail,
        Level::Should,
        "",
        "life/*",
        Outcome::XFail,
        "known: why (x)"
    )]
    #[case(
        Outcome::Pass,
        Level::Must,
        "",
        "life/*",
        Outcome::XPass,
        "passes although known to fail: why (x)"
    )]
    #[case(Outcome::Skip, Level::Must, "", "life/*", Outcome::Skip, "needs root")]
    #[case(
        Outcome::Fail,
        Level::May,
        "",
        "none",
        Outcome::XFail,
        "may, and does not: tree: a: mode"
    )]
    #[case(
        Outcome::Skip,
        Level::Must,
        "# all\nlife/cr*",
        "none",
        Outcome::Fail,
        "required here, but skipped: needs root"
    )]
    #[case(
        Outcome::Skip,
        Level::Must,
        "tree/*",
        "none",
        Outcome::Skip,
        "needs root"
    )]
    fn results_count_as_they_should(
        #[case] found: Outcome,
        #[case] level: Level,
        #[case] required: &str,
        #[case] known: &str,
        #[case] outcome: Outcome,
        #[case] reason: &str,
    ) {
        let ground = Ground {
            cell: CellStart {
                target: "overlay2".to_string(),
                backing: "dir".to_string(),
                kernel: "6.1.0".to_string(),
            },
            status: std::collections::BTreeMap::new(),
        };
        let required = Required::parse(required).unwrap();
        let result = rules(known).judge(&ground, &required, &case(level), report(found));
        assert_eq!(
            (result.outcome, result.reason.as_deref().unwrap_or("")),
            (outcome, reason)
        );
        let again = "graphtest run --suite 'my suite.yaml' --target overlay2 --on dir 'life/create#it'\\''s'";
        assert_eq!(result.replay.as_deref(), Some(again));
        if found == Outcome::Fail {
            assert_eq!(result.location.as_deref(), Some("suites/life.yaml:9"));
            assert_eq!(
                (result.detail, result.sentence, result.contract),
                (
                    vec!["more".to_string()],
                    Some("It holds.".to_string()),
                    vec!["LIFE-1: It always holds.".to_string()]
                )
            );
        }
    }

    #[test]
    fn a_bad_line_of_required_scenarios_is_named() {
        assert!(Required::parse("ok\na[").unwrap_err().starts_with("line 2"));
        assert!(Required::all().unwrap().has("any/thing"));
    }
}
