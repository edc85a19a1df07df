//! Running cells in guests with other kernels. The host picks what is to be run and sends it as an [`Order`]; the guest, which has the
//! same program, carries it out as any run and sends its events back.

mod bisect;
mod by_hand;
mod host;
mod inside;
mod state;
mod trial;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use bisect::{NoPair, Pair, Verdict, bisect};
pub use by_hand::script;
pub use host::{Plan, run};
pub use inside::{backing, carry_out};
pub use trial::{Finding, Trial, Tried};

use super::Keep;
use super::run::{Cell, Options};

/// What a guest is to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The cells, in order.
    cells: Vec<CellOrder>,
    /// How many scenarios at a time.
    jobs: usize,
    /// For one scenario.
    timeout: Duration,
    /// How often each.
    repeat: usize,
    /// Stop at the first result that counts against a driver.
    fail_fast: bool,
    /// Of which scenarios what they made is left in place.
    keep: Keep,
    /// As [`super::run::Rules::program`].
    program: String,
    /// As [`super::run::Rules::suites`].
    suites: Vec<PathBuf>,
    /// As [`super::run::Rules::kernel`].
    kernel: String,
    /// Files that the guest does not have.
    texts: Texts,
}

/// Files with their names and what is in them; `None`: the built-in ones.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Texts {
    /// Scenario files.
    pub suites: Option<Vec<(String, String)>>,
    /// Known results.
    pub known: Option<Vec<(String, String)>>,
}

/// A cell of an order.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct CellOrder {
    target: String,
    backing: String,
    named: (bool, bool),
    /// The cases, as `suite/name#row`.
    cases: Vec<String>,
    /// The scenarios that must not be skipped.
    required: Vec<String>,
}

impl CellOrder {
    /// What is still to be done of a cell.
    fn new(cell: &Cell, is_open: impl Fn(&str) -> bool) -> Self {
        let ids = cell.cases.iter().map(|c| c.scenario.id.to_string());
        let mut required: Vec<String> = ids.filter(|id| cell.required.has(id)).collect();
        required.dedup();
        let cases = cell.cases.iter().map(|c| c.label());
        Self {
            target: cell.target.name().to_string(),
            backing: cell.backing.to_string(),
            named: (cell.named.target, cell.named.backing),
            cases: cases.filter(|c| is_open(c)).collect(),
            required,
        }
    }
}

impl Order {
    fn new(cells: Vec<CellOrder>, options: &Options, kernel: &str, texts: &Texts) -> Self {
        Self {
            cells,
            jobs: options.jobs,
            timeout: options.timeout,
            repeat: options.repeat,
            fail_fast: options.fail_fast,
            keep: options.keep,
            program: options.rules.program.clone(),
            suites: options.rules.suites.clone(),
            kernel: kernel.to_string(),
            texts: texts.clone(),
        }
    }
}

/// The order to run a cell, as a guest reads it.
///
/// # Errors
/// Never: everything in it has a form in JSON.
pub fn order(
    cell: &Cell,
    options: &Options,
    kernel: &str,
    texts: &Texts,
) -> serde_json::Result<String> {
    let cells = vec![CellOrder::new(cell, |_| true)];
    serde_json::to_string(&Order::new(cells, options, kernel, texts))
}
