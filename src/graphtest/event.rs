//! What happens in a run, as it happens. Everything a person or a machine gets to see is made from these.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::shard::Part;
use crate::named::named;

named! {
    /// How one result counts; the order is that in which they are counted.
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    Outcome, "outcome" {
        /// Everything held.
        Pass = "pass";
        /// Something did not hold.
        Fail = "fail";
        /// It could not be tried; the reason says what was missing.
        Skip = "skip";
        /// It failed as known, or it is a `may` that does not hold.
        XFail = "xfail";
        /// It passed although it is known to fail.
        XPass = "xpass";
    }
}

impl Outcome {
    /// Whether it counts against the driver.
    pub fn is_bad(self) -> bool {
        matches!(self, Self::Fail | Self::XPass)
    }
}

/// The machine a run was on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The kernel's release, as `uname -r`.
    pub kernel: String,
    /// The machine's architecture, as `uname -m`.
    pub arch: String,
    /// How many processors the run could use.
    pub cpus: usize,
    /// Whose rights it had: `root`, `root of a user namespace`, `ordinary user`.
    #[serde(default)]
    pub user: String,
}

/// Everything known when a run begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStart {
    /// The program and its version.
    pub tool: String,
    /// When, as RFC 3339.
    pub started: String,
    /// The seed of what is random in the run; `None`: nothing was.
    pub seed: Option<u64>,
    /// The machine.
    pub host: Host,
    /// Which part it is, of a run that is split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// The cells, in order; later events name them by their index.
    pub cells: Vec<CellStart>,
}

/// A cell: one target on one backing under one kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellStart {
    /// What is tested.
    pub target: String,
    /// What its homes live on.
    pub backing: String,
    /// The kernel's release.
    pub kernel: String,
}

impl fmt::Display for CellStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.target, self.backing)
    }
}

/// What became of a cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CellStatus {
    /// Its scenarios were run.
    #[default]
    Ran,
    /// It cannot run here and was not asked for by name.
    Skipped,
    /// It was asked for by name and could not be provisioned, or the harness failed in it.
    Error,
}

/// One result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseResult {
    /// The scenario, `suite/name`.
    pub id: String,
    /// The requirements it proves.
    pub requirements: Vec<String>,
    /// `must`, `should` or `may`.
    pub level: String,
    /// How it counts.
    pub outcome: Outcome,
    /// Why, for every outcome but pass.
    pub reason: Option<String>,
    /// How long it took.
    pub seconds: f64,
    /// The row of a scenario with cases.
    pub case: Option<String>,
    /// The seed, where it depends on one.
    pub seed: Option<u64>,
    /// The command that runs just this again.
    pub replay: Option<String>,
    /// Of a failure: the step, as `file:line`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// Of a failure: what was done, what was expected and what was found, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub detail: Vec<String>,
    /// Of a failure: what the scenario says must, should or may hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentence: Option<String>,
    /// Of a failure: the sentences of the contract that the scenario proves, as `ID: sentence`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contract: Vec<String>,
    /// Of a failure: what may be the matter, as the scenario says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Of a failure with `--keep`: where everything was left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
    /// It went on beyond its time limit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
}

impl CaseResult {
    /// `suite/name`, with `#row` for a row.
    pub fn label(&self) -> String {
        match &self.case {
            Some(row) => format!("{}#{row}", self.id),
            None => self.id.clone(),
        }
    }
}

/// How a cell ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellEnd {
    /// What became of it.
    pub status: CellStatus,
    /// Why, unless it ran.
    pub reason: Option<String>,
    /// What it left behind.
    pub left: Vec<String>,
    /// What is wrong with its filesystem now, as its checker and the kernel say.
    #[serde(default)]
    pub damage: Vec<String>,
    /// What could not be checked, and other trouble that the kernel told in the meantime.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// One event of a run. `cell` is an index into [`RunStart::cells`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The run begins.
    RunStarted(RunStart),
    /// A cell is ready to run.
    CellStarted {
        /// Which.
        cell: usize,
        /// The filesystem its homes are on.
        filesystem: String,
        /// Capabilities that its driver does not claim.
        not_claimed: Vec<String>,
        /// What its driver's status says, key by key.
        #[serde(default)]
        driver: BTreeMap<String, String>,
        /// How many results it will have.
        planned: usize,
    },
    /// A scenario begins.
    CaseStarted {
        /// Where.
        cell: usize,
        /// Which, `suite/name#row`.
        label: String,
    },
    /// A scenario ended.
    CaseFinished {
        /// Where.
        cell: usize,
        /// Its result.
        result: CaseResult,
    },
    /// A cell ended; it has been given back, except for what `left` says.
    CellFinished {
        /// Which.
        cell: usize,
        /// How.
        end: CellEnd,
    },
    /// The run ended. Not sent when the process dies.
    RunFinished {
        /// By a signal.
        interrupted: bool,
        /// What is left behind, over all cells.
        left: Vec<String>,
        /// Known results that did nothing, each with its file and line.
        #[serde(default)]
        stale: Vec<String>,
    },
}
