//! The report as a value: what the events of a run add up to, and what `--report json` writes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::graphtest::event::{CaseResult, CellStatus, Event, Host, Outcome};
use crate::graphtest::shard::Part;

/// The version of the JSON report. Fields may be added under one version; none is renamed.
pub const VERSION: u32 = 1;

/// A whole report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// The program and its version.
    pub tool: String,
    /// When the run began, as RFC 3339.
    pub started: String,
    /// The seed of what was random; `None`: nothing was.
    pub seed: Option<u64>,
    /// The machine.
    pub host: Host,
    /// Whether the run went to its end. False in the report of a run that is going on, was interrupted or died.
    #[serde(default)]
    pub complete: bool,
    /// Which part it is, of a run that is split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// The cells, with their results.
    pub cells: Vec<Cell>,
    /// Known results that did nothing, each with its file and line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stale: Vec<String>,
    /// How many results of each kind.
    pub totals: Totals,
}

/// One cell of a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// What was tested.
    pub target: String,
    /// What its homes lived on.
    pub backing: String,
    /// The filesystem that was, by the mount table.
    #[serde(default)]
    pub filesystem: Option<String>,
    /// The kernel's release.
    pub kernel: String,
    /// Whether that is another than the host's: it ran in a guest.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guest: bool,
    /// What became of it.
    pub status: CellStatus,
    /// Why, unless it ran.
    pub reason: Option<String>,
    /// How many results were to come.
    #[serde(default)]
    pub planned: usize,
    /// Capabilities that the driver does not claim.
    #[serde(default)]
    pub not_claimed: Vec<String>,
    /// What the driver's status says, key by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub driver: BTreeMap<String, String>,
    /// What it left behind.
    #[serde(default)]
    pub left: Vec<String>,
    /// What is wrong with its filesystem now, as its checker and the kernel say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damage: Vec<String>,
    /// What could not be checked, and other trouble that the kernel told in the meantime.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The results.
    pub results: Vec<CaseResult>,
}

/// How many results of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Everything held.
    pub pass: usize,
    /// Something did not hold.
    pub fail: usize,
    /// Could not be tried.
    pub skip: usize,
    /// Failed as known.
    pub xfail: usize,
    /// Passed although known to fail.
    pub xpass: usize,
}

impl Totals {
    /// Counts one result.
    pub fn add(&mut self, outcome: Outcome) {
        *match outcome {
            Outcome::Pass => &mut self.pass,
            Outcome::Fail => &mut self.fail,
            Outcome::Skip => &mut self.skip,
            Outcome::XFail => &mut self.xfail,
            Outcome::XPass => &mut self.xpass,
        } += 1;
    }

    /// How many of one kind.
    pub fn of(&self, outcome: Outcome) -> usize {
        match outcome {
            Outcome::Pass => self.pass,
            Outcome::Fail => self.fail,
            Outcome::Skip => self.skip,
            Outcome::XFail => self.xfail,
            Outcome::XPass => self.xpass,
        }
    }

    /// How many scenarios were really carried out.
    pub fn executed(&self) -> usize {
        self.pass + self.fail + self.xfail + self.xpass
    }
}

impl Cell {
    /// The name in lists: `overlay2 on tmpfs`, and of one that ran in a guest `overlay2 on tmpfs under 6.1.0`.
    pub fn name(&self) -> String {
        let name = format!("{} on {}", self.target, self.backing);
        match self.guest {
            true => format!("{name} under {}", self.kernel),
            false => name,
        }
    }

    /// The results of this cell, counted.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.results.iter().for_each(|r| totals.add(r.outcome));
        totals
    }

    /// How many results of a level have an outcome that `which` picks.
    fn count(&self, level: &str, which: impl Fn(Outcome) -> bool) -> usize {
        self.results
            .iter()
            .filter(|r| r.level == level && which(r.outcome))
            .count()
    }

    /// How many bad results there are of each level that counts, where there are any: `2 must`.
    fn bad_by_level(&self) -> Vec<String> {
        ["must", "should"]
            .into_iter()
            .map(|level| (level, self.count(level, Outcome::is_bad)))
            .filter(|(_, n)| *n > 0)
            .map(|(level, n)| format!("{n} {level}"))
            .collect()
    }

    /// The verdict in a word or two, for a table: `conforms`, `2 must`, `damaged`, `skipped`, `error`.
    pub fn verdict_in_short(&self) -> String {
        let mut bad = self.bad_by_level();
        if !self.damage.is_empty() {
            bad.push("damaged".to_string());
        }
        match self.status {
            CellStatus::Skipped => "skipped".to_string(),
            CellStatus::Error => "error".to_string(),
            CellStatus::Ran if !bad.is_empty() => bad.join(", "),
            CellStatus::Ran if self.totals().executed() == 0 => "not judged".to_string(),
            CellStatus::Ran => "conforms".to_string(),
        }
    }

    /// The verdict, one sentence without the cell's name: `conforms (112 must, 31 should, 4 may; not claimed: id-maps)`.
    pub fn verdict(&self) -> String {
        match self.status {
            CellStatus::Skipped => {
                return format!(
                    "skipped: {}",
                    self.reason.as_deref().unwrap_or("no reason given")
                );
            }
            CellStatus::Error => {
                return format!(
                    "could not be judged: {}",
                    self.reason.as_deref().unwrap_or("no reason given")
                );
            }
            CellStatus::Ran => {}
        }
        let mut bad = self.bad_by_level();
        if !self.damage.is_empty() {
            bad.push("its filesystem is damaged".to_string());
        }
        let totals = self.totals();
        if !bad.is_empty() {
            return format!("does not conform: {}", bad.join(", "));
        }
        if totals.executed() == 0 {
            return "not judged: no scenario was executed".to_string();
        }
        let held = |o| o == Outcome::Pass;
        let mut inside = vec![format!(
            "{} must, {} should, {} may",
            self.count("must", held),
            self.count("should", held),
            self.count("may", held)
        )];
        if totals.xfail > 0 {
            inside.push(format!("{} failed as known", totals.xfail));
        }
        if totals.skip > 0 {
            inside.push(format!("{} skipped", totals.skip));
        }
        if !self.not_claimed.is_empty() {
            inside.push(format!("not claimed: {}", self.not_claimed.join(", ")));
        }
        let word = if self.results.len() < self.planned {
            "conforms so far"
        } else {
            "conforms"
        };
        format!("{word} ({})", inside.join("; "))
    }
}

impl Report {
    /// The report of a run of which only the first event is known; `None` when `event` is not one.
    pub fn begin(event: &Event) -> Option<Self> {
        let Event::RunStarted(start) = event else {
            return None;
        };
        let cells = start.cells.iter().map(|c| Cell {
            target: c.target.clone(),
            backing: c.backing.clone(),
            filesystem: None,
            kernel: c.kernel.clone(),
            guest: c.kernel != start.host.kernel,
            status: CellStatus::Error,
            reason: Some("the run ended before this cell".to_string()),
            planned: 0,
            not_claimed: Vec::new(),
            driver: BTreeMap::new(),
            left: Vec::new(),
            damage: Vec::new(),
            notes: Vec::new(),
            results: Vec::new(),
        });
        Some(Self {
            version: VERSION,
            tool: start.tool.clone(),
            started: start.started.clone(),
            seed: start.seed,
            host: start.host.clone(),
            complete: false,
            part: start.part.clone(),
            cells: cells.collect(),
            stale: Vec::new(),
            totals: Totals::default(),
        })
    }

    /// Takes one more event in. Events on cells that the report does not have change nothing.
    pub fn take(&mut self, event: &Event) {
        match event {
            Event::RunStarted(_) | Event::CaseStarted { .. } => {}
            Event::CellStarted {
                cell,
                filesystem,
                not_claimed,
                driver,
                planned,
            } => {
                if let Some(cell) = self.cells.get_mut(*cell) {
                    cell.status = CellStatus::Ran;
                    cell.reason = None;
                    cell.filesystem = Some(filesystem.clone());
                    cell.not_claimed.clone_from(not_claimed);
                    cell.driver.clone_from(driver);
                    cell.planned = *planned;
                }
            }
            Event::CaseFinished { cell, result } => {
                if let Some(cell) = self.cells.get_mut(*cell) {
                    self.totals.add(result.outcome);
                    cell.results.push(result.clone());
                }
            }
            Event::CellFinished { cell, end } => {
                if let Some(cell) = self.cells.get_mut(*cell) {
                    cell.status = end.status;
                    cell.reason.clone_from(&end.reason);
                    cell.left.clone_from(&end.left);
                    cell.damage.clone_from(&end.damage);
                    cell.notes.clone_from(&end.notes);
                    // Results come in as scenarios end; a report that can be compared with another has them in one order.
                    cell.results.sort_by_cached_key(CaseResult::label);
                }
            }
            Event::RunFinished {
                interrupted, stale, ..
            } => {
                self.complete = !interrupted;
                self.stale.clone_from(stale);
            }
        }
    }

    /// Reads a report back.
    ///
    /// # Errors
    /// It is not JSON of this shape, or of a version that is not known.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let report: Self = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if report.version == VERSION {
            Ok(report)
        } else {
            Err(format!(
                "a report of version {}; known is version {VERSION}",
                report.version
            ))
        }
    }

    /// Every result with its cell.
    pub fn results(&self) -> impl Iterator<Item = (&Cell, &CaseResult)> {
        self.cells
            .iter()
            .flat_map(|c| c.results.iter().map(move |r| (c, r)))
    }
}
