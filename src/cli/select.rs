//! From arguments to cells and cases.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use clap::Args as ClapArgs;

use super::usage;
use crate::graphtest::filter::Selection;
use crate::graphtest::report::Report;
use crate::graphtest::run::{Cell, Named};
use crate::graphtest::target::built_in;
use crate::graphtest::{Case, Level, Library, Target, load};
use crate::lab::Backing;

/// Which scenarios.
#[derive(Debug, ClapArgs)]
pub(super) struct ScenarioArgs {
    /// A part or a glob of a scenario's id, or a requirement's id
    pub(super) filter: Vec<String>,
    /// Scenario files or directories to use instead of the built-in ones; repeatable
    #[arg(long, value_name = "PATH")]
    pub(super) suite: Vec<PathBuf>,
    /// The lowest level: must, should or may [default: may, that is everything]
    #[arg(long)]
    pub(super) level: Option<Level>,
    /// Only scenarios with one of these tags
    #[arg(long, value_name = "T,...", value_delimiter = ',')]
    pub(super) tag: Vec<String>,
}

/// Which cells.
#[derive(Debug, ClapArgs)]
pub(super) struct CellArgs {
    /// What to test [default: every built-in driver that can run here]
    #[arg(long, value_name = "T,...", value_delimiter = ',')]
    pub(super) target: Vec<String>,
    /// What the drivers' homes live on [default: the current directory, and a tmpfs]
    #[arg(long, value_name = "BACKING,...", value_delimiter = ',')]
    pub(super) on: Vec<Backing>,
}

/// The I-th of N parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shard {
    index: usize,
    of: usize,
}

impl FromStr for Shard {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let parsed = s
            .split_once('/')
            .and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parsed {
            Some((index, of)) if (1..=of).contains(&index) => Ok(Self { index, of }),
            _ => Err("expected I/N, two numbers with 1 <= I <= N".to_string()),
        }
    }
}

/// The built-in suites, or those of files.
pub(super) fn library(suites: &[PathBuf]) -> anyhow::Result<Library> {
    let loaded = if suites.is_empty() {
        load::builtin()
    } else {
        load::load_files(suites)
    };
    loaded.map_err(|e| usage(e.to_string()))
}

/// The selected cases; none is an error.
pub(super) fn cases(
    library: &Library,
    args: &ScenarioArgs,
    shard: Option<Shard>,
) -> anyhow::Result<Vec<Arc<Case>>> {
    let selection = Selection {
        filters: args.filter.clone(),
        level: args.level,
        tags: args.tag.clone(),
    };
    let mut cases = selection.select(library).map_err(usage)?;
    if let Some(Shard { index, of }) = shard {
        cases = cases
            .into_iter()
            .enumerate()
            .filter(|(i, _)| i % of == index - 1)
            .map(|(_, c)| c)
            .collect();
        if cases.is_empty() {
            return Err(usage(format!("part {index} of {of} has no scenario")));
        }
    }
    Ok(cases)
}

/// The targets of these names, or all that are built in.
pub(super) fn targets(names: &[String]) -> anyhow::Result<Vec<Arc<dyn Target>>> {
    let all = built_in();
    let mut found = Vec::new();
    for name in names.iter().collect::<BTreeSet<_>>() {
        let Some(target) = all.iter().find(|t| t.name() == name) else {
            let known: Vec<&str> = all.iter().map(|t| t.name()).collect();
            return Err(usage(format!(
                "unknown target `{name}`; known: {}",
                known.join(", ")
            )));
        };
        found.push(Arc::clone(target));
    }
    Ok(if names.is_empty() { all } else { found })
}

/// Every target on every backing; after an earlier run, only cells and cases that failed in it.
pub(super) fn cells(
    args: &CellArgs,
    cases: &[Arc<Case>],
    failed: Option<&Report>,
) -> anyhow::Result<Vec<Cell>> {
    let mut backings = if args.on.is_empty() {
        Backing::defaults()
    } else {
        args.on.clone()
    };
    if let (true, Some(report)) = (args.on.is_empty(), failed) {
        let names: BTreeSet<&str> = report.cells.iter().map(|c| c.backing.as_str()).collect();
        backings = names
            .into_iter()
            .map(Backing::from_str)
            .collect::<Result<_, _>>()
            .map_err(usage)?;
    }
    let mut cells = Vec::new();
    for target in targets(&args.target)? {
        for (i, backing) in backings.iter().enumerate() {
            if backings[..i].contains(backing) {
                continue;
            }
            let cases = match failed {
                None => cases.to_vec(),
                Some(report) => failed_in(report, target.name(), &backing.to_string(), cases),
            };
            if failed.is_none() || !cases.is_empty() {
                let target = Arc::clone(&target);
                let named = Named {
                    target: !args.target.is_empty(),
                    backing: !args.on.is_empty(),
                };
                cells.push(Cell {
                    target,
                    backing: backing.clone(),
                    named,
                    cases,
                });
            }
        }
    }
    if cells.is_empty() {
        return Err(usage(
            "nothing is selected: no selected scenario failed in the earlier run",
        ));
    }
    Ok(cells)
}

fn failed_in(report: &Report, target: &str, backing: &str, cases: &[Arc<Case>]) -> Vec<Arc<Case>> {
    let bad: BTreeSet<String> = report
        .results()
        .filter(|(cell, r)| cell.target == target && cell.backing == backing && r.outcome.is_bad())
        .map(|(_, r)| r.label())
        .collect();
    cases
        .iter()
        .filter(|c| bad.contains(&c.label()))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("1/1", Some((1, 1)))]
    #[case("2/3", Some((2, 3)))]
    #[case("0/3", None)]
    #[case("4/3", None)]
    #[case("1/0", None)]
    #[case("1", None)]
    #[case("a/b", None)]
    fn shards_are_counted_from_one(#[case] text: &str, #[case] expected: Option<(usize, usize)>) {
        assert_eq!(
            text.parse::<Shard>().ok().map(|s| (s.index, s.of)),
            expected
        );
    }
}
