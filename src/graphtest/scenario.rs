//! Scenarios as values.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::hint::Hint;
use super::load::ByLimit;
use super::needs::Need;
use super::step::Step;

/// A place in a scenario file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The file as it was named.
    pub file: Arc<str>,
    /// The line, counted from 1.
    pub line: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// How binding a scenario is; the order is that of weight, `May` the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Measured and shown, never counted against a driver.
    May,
    /// What a careful driver does.
    Should,
    /// Without it data is lost, mixed up or leaked, or callers break.
    Must,
}

impl Level {
    /// Every level, the weightiest first.
    pub const ALL: &'static [Self] = &[Self::Must, Self::Should, Self::May];

    /// The name in scenario files and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Must => "must",
            Self::Should => "should",
            Self::May => "may",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Level {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .iter()
            .copied()
            .find(|l| l.name() == s)
            .ok_or_else(|| format!("expected must, should or may, found `{s}`"))
    }
}

/// The name of a scenario: `suite/name`, stable for ever.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScenarioId(pub String);

impl fmt::Display for ScenarioId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a scenario is about; what it does stands in its [`Case`]s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// `suite/name`.
    pub id: ScenarioId,
    /// Where it begins.
    pub at: Location,
    /// The requirements it proves, at least one.
    pub proves: Vec<String>,
    /// How binding it is.
    pub level: Level,
    /// One sentence: what must (should, may) hold.
    pub must: String,
    /// Where the rule or the bug comes from.
    pub from: Vec<String>,
    /// Tags to select by.
    pub tags: Vec<String>,
    /// What may be the matter when it fails.
    pub hints: Vec<Hint>,
    /// The mutants that every case, or with several cases at least one, must fail on.
    pub catches: Vec<String>,
}

/// The filesystem of its own that a scenario asks for: of the kind that the cell's homes lie on, so that filling it or cutting its
/// power disturbs nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnBacking {
    /// Its size in bytes; the least that the filesystem can have, when that is more. `None`: as the lab likes it.
    pub size: Option<u64>,
    /// How many files it can hold; `None`: as the filesystem likes it.
    pub inodes: Option<u64>,
}

/// One run of a scenario: the scenario itself, or one row of its `cases:`.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// What it is a case of.
    pub scenario: Arc<Scenario>,
    /// The row's name, when the scenario has rows.
    pub name: Option<String>,
    /// What driver and backing must have, the scenario's and the row's.
    pub needs: Vec<Need>,
    /// The mutants that this very row must fail on (in addition to what [`Scenario::catches`] asks for).
    pub catches: Vec<String>,
    /// The filesystem of its own that it runs on; `None`: the cell's.
    pub backing: Option<OwnBacking>,
    /// What is done, in order; where `by_limit` is set, what it would be with some limit.
    pub steps: Arc<[Step]>,
    /// The steps of a case that needs `depth-limit`, which depend on the limit that the driver claims.
    pub by_limit: Option<Arc<ByLimit>>,
}

impl Case {
    /// `suite/name`, with `#row` for a row: unique within a run.
    pub fn label(&self) -> String {
        match &self.name {
            Some(row) => format!("{}#{row}", self.scenario.id),
            None => self.scenario.id.to_string(),
        }
    }
}

/// A suite: the scenarios of one file.
#[derive(Clone, Debug, PartialEq)]
pub struct Suite {
    /// The file, as it was named.
    pub file: Arc<str>,
    /// The first half of its scenarios' ids.
    pub name: String,
    /// What its scenarios have in common.
    pub about: String,
    /// Its scenarios, in the order of the file.
    pub scenarios: Vec<Arc<Scenario>>,
    /// What runs: every case of every scenario, in the order of the file.
    pub cases: Vec<Arc<Case>>,
}
