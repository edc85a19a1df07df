//! The guest's side: an order becomes a run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{CellOrder, Order};
use crate::graphtest::event::Event;
use crate::graphtest::known::Known;
use crate::graphtest::run::{Cell, Named, Options, Required, Rules, run};
use crate::graphtest::target;
use crate::graphtest::{Case, Library, load};
use crate::lab::{Backing, Register};

/// Carries an order out, and tells `tell` all that happens.
///
/// # Errors
/// The order is not one of this version of the program.
pub fn carry_out(
    order: &str,
    user: String,
    register: &Arc<Register>,
    tell: &mut dyn FnMut(&Event),
) -> Result<(), String> {
    let order: Order = serde_json::from_str(order).map_err(|e| format!("the order: {e}"))?;
    let library = match &order.texts.suites {
        None => load::builtin_only(&suites(&order)),
        Some(texts) => load::from_texts(texts.clone()),
    };
    let library = library.map_err(|e| e.to_string())?;
    let known = match &order.texts.known {
        None if order.texts.suites.is_some() => Known::default(),
        None => Known::builtin()?,
        Some(texts) => Known::from_texts(texts.clone())?,
    };
    let cells = cells(&order.cells, &library)?;
    let options = Options {
        jobs: order.jobs,
        timeout: order.timeout,
        repeat: order.repeat,
        fail_fast: order.fail_fast,
        keep: order.keep,
        user,
        rules: Rules {
            known,
            program: order.program,
            suites: order.suites,
            kernel: Some(order.kernel),
        },
        library: Arc::new(library),
        whole: false,
        part: None,
    };
    run(&cells, &options, register, &|| false, tell);
    Ok(())
}

/// The backing of an order's first cell.
///
/// # Errors
/// The order is not one of this version of the program, or has no cell.
pub fn backing(order: &str) -> Result<Backing, String> {
    let order: Order = serde_json::from_str(order).map_err(|e| format!("the order: {e}"))?;
    let first = order.cells.first().ok_or("the order: no cell")?;
    first.backing.parse()
}

/// The names of the suites that are asked for: where a processor is emulated, reading all of them takes longer than many a scenario.
fn suites(order: &Order) -> BTreeSet<&str> {
    let labels = order.cells.iter().flat_map(|c| &c.cases);
    labels.filter_map(|l| l.split('/').next()).collect()
}

fn cells(orders: &[CellOrder], library: &Library) -> Result<Vec<Cell>, String> {
    let cases: BTreeMap<String, &Arc<Case>> = library.cases().map(|c| (c.label(), c)).collect();
    let cell = |order: &CellOrder| {
        let target = target::find(&order.target);
        let mine = order.cases.iter().map(|label| {
            let case = cases.get(label).copied().map(Arc::clone);
            case.ok_or_else(|| format!("no scenario {label}"))
        });
        Ok(Cell {
            target: target.ok_or_else(|| format!("no target {}", order.target))?,
            backing: order.backing.parse()?,
            named: Named {
                target: order.named.0,
                backing: order.named.1,
            },
            cases: mine.collect::<Result<_, String>>()?,
            required: Arc::new(Required::parse(&order.required.join("\n"))?),
        })
    };
    orders.iter().map(cell).collect()
}
