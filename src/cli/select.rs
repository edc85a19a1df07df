//! From arguments to cells and cases.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args as ClapArgs;

use super::usage;
use crate::graphdriver::Capability;
use crate::graphtest::filter::Selection;
use crate::graphtest::matrix::Matrix;
use crate::graphtest::report::Report;
use crate::graphtest::run::{Cell, Named};
use crate::graphtest::target::{self, built_in};
use crate::graphtest::{Case, Level, Library, PluginTarget, Target, load};
use crate::lab::Backing;
use crate::remote::plugin::{Claims, Plugin, discover};

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
#[derive(Debug, Default, ClapArgs)]
pub(super) struct CellArgs {
    /// What to test: built-in drivers, or plugin:SOCK or plugin:NAME for a Docker graph-driver plugin [default: every built-in driver
    /// that can run here]
    #[arg(long, value_name = "T,...", value_delimiter = ',')]
    pub(super) target: Vec<String>,
    #[command(flatten)]
    pub(super) plugins: PluginArgs,
    /// What the drivers' homes live on [default: the current directory, and a tmpfs; for a driver that needs a certain
    /// filesystem, the first that is made with it]
    #[arg(long, value_name = "BACKING,...", value_delimiter = ',')]
    pub(super) on: Vec<Backing>,
    /// The cells of a file, such as ci/host.yaml; each counts as asked for by name, but for those that are optional
    #[arg(long, value_name = "FILE", conflicts_with_all = ["target", "on"])]
    pub(super) matrix: Option<PathBuf>,
}

/// What the names of plugins begin with.
const PLUGIN: &str = "plugin:";

/// What is known of plugins.
#[derive(Debug, Default, ClapArgs)]
pub(super) struct PluginArgs {
    /// What the plugins can beyond what they show: capabilities, or max-depth=N for the most layers of a chain
    #[arg(long, value_name = "CAP,...", value_delimiter = ',')]
    claim: Vec<Claim>,
    /// The built-in driver whose files the plugins' homes hold, for the scenarios that damage files
    #[arg(long, value_name = "D")]
    layout: Option<String>,
    /// The time limit of one call of a plugin; of an archive, each piece [default: 1m]
    #[arg(long, value_name = "DUR", value_parser = super::run::parse_timeout)]
    call_timeout: Option<Duration>,
}

/// One claim.
#[derive(Clone, Debug)]
enum Claim {
    Can(Capability),
    MaxDepth(u32),
}

impl FromStr for Claim {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("max-depth=") {
            Some(depth) => match depth.parse() {
                Ok(depth @ 1..) => Ok(Self::MaxDepth(depth)),
                _ => Err(format!("expected max-depth=N, found `{text}`")),
            },
            None => text.parse().map(Self::Can),
        }
    }
}

impl PluginArgs {
    /// The plugin of an address or a name.
    fn target(&self, name: &str, place: &str) -> anyhow::Result<Arc<dyn Target>> {
        let address = discover(place).map_err(usage)?;
        let mut claims = Claims {
            probe: true,
            ..Claims::default()
        };
        for claim in &self.claim {
            match claim {
                Claim::Can(what) => {
                    claims.claims.insert(*what);
                }
                Claim::MaxDepth(depth) => claims.max_depth = Some(*depth),
            }
        }
        let limit = self.call_timeout.unwrap_or(Duration::from_secs(60));
        let plugin = Plugin::new(address, limit, claims);
        Ok(Arc::new(PluginTarget::new(
            name,
            plugin,
            self.layout.clone(),
        )))
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
pub(super) fn cases(library: &Library, args: &ScenarioArgs) -> anyhow::Result<Vec<Arc<Case>>> {
    let selection = Selection {
        filters: args.filter.clone(),
        level: args.level,
        tags: args.tag.clone(),
    };
    selection.select(library).map_err(usage)
}

/// The one case that a text names: by its whole label, or as a filter that selects no other.
pub(super) fn case(library: &Library, name: &str) -> anyhow::Result<Arc<Case>> {
    let args = ScenarioArgs {
        filter: vec![name.to_string()],
        suite: Vec::new(),
        level: None,
        tag: Vec::new(),
    };
    let cases = cases(library, &args)?;
    let exactly = cases.iter().find(|c| c.label() == name);
    match (exactly, &cases[..]) {
        (Some(case), _) | (None, [case]) => Ok(Arc::clone(case)),
        (None, _) => {
            let some: Vec<String> = cases.iter().take(3).map(|c| c.label()).collect();
            Err(usage(format!(
                "`{name}` is {} scenarios, such as {}; name one",
                cases.len(),
                some.join(", ")
            )))
        }
    }
}

/// The built-in targets of these names, or all of them.
pub(super) fn targets(names: &[String]) -> anyhow::Result<Vec<Arc<dyn Target>>> {
    let all = built_in();
    let mut found = Vec::new();
    for name in names.iter().collect::<BTreeSet<_>>() {
        let Some(target) = target::find(name) else {
            let known: Vec<&str> = all.iter().map(|t| t.name()).collect();
            return Err(usage(format!(
                "unknown target `{name}`; known: {}, plugin:SOCK, plugin:NAME",
                known.join(", ")
            )));
        };
        found.push(target);
    }
    Ok(if names.is_empty() { all } else { found })
}

/// The targets of cells: plugins, too.
fn targets_of(args: &CellArgs) -> anyhow::Result<Vec<Arc<dyn Target>>> {
    let (plugins, built_in): (BTreeSet<&String>, BTreeSet<&String>) = args
        .target
        .iter()
        .partition(|name| name.starts_with(PLUGIN));
    let known = &args.plugins;
    if plugins.is_empty() && (!known.claim.is_empty() || known.layout.is_some()) {
        return Err(usage(
            "--claim and --layout are for plugins; none is named by --target",
        ));
    }
    let mut found = Vec::new();
    if plugins.is_empty() || !built_in.is_empty() {
        let names: Vec<String> = built_in.into_iter().cloned().collect();
        found = targets(&names)?;
    }
    for name in plugins {
        found.push(known.target(name, &name[PLUGIN.len()..])?);
    }
    Ok(found)
}

/// The cells of the matrix, or every target on every backing; after an earlier run, only cells and cases that failed in it.
pub(super) fn cells(
    args: &CellArgs,
    library: &Library,
    cases: &[Arc<Case>],
    failed: Option<&Report>,
) -> anyhow::Result<Vec<Cell>> {
    let mut cells = match &args.matrix {
        Some(file) => of_matrix(file, library)?,
        None => of_names(args, failed)?,
    };
    for cell in &mut cells {
        cell.cases = match failed {
            None => cases.to_vec(),
            Some(report) => failed_in(report, cell, cases),
        };
    }
    cells.retain(|cell| failed.is_none() || !cell.cases.is_empty());
    if cells.is_empty() {
        return Err(usage(
            "nothing is selected: no selected scenario failed in the earlier run",
        ));
    }
    Ok(cells)
}

/// The kernels that the matrix file names.
pub(super) fn kernels(args: &CellArgs, library: &Library) -> anyhow::Result<Vec<String>> {
    match &args.matrix {
        Some(file) => Ok(Matrix::load(file, library).map_err(usage)?.kernels),
        None => Ok(Vec::new()),
    }
}

fn of_matrix(file: &Path, library: &Library) -> anyhow::Result<Vec<Cell>> {
    let matrix = Matrix::load(file, library).map_err(usage)?;
    let cells = matrix.cells.into_iter().map(|cell| Cell {
        target: cell.target,
        backing: cell.backing,
        named: if cell.optional {
            Named::NOTHING
        } else {
            Named::ALL
        },
        cases: Vec::new(),
        required: Arc::new(cell.required),
    });
    Ok(cells.collect())
}

fn of_names(args: &CellArgs, failed: Option<&Report>) -> anyhow::Result<Vec<Cell>> {
    // After an earlier run, where it ran.
    let earlier = failed.map(|report| {
        let names: BTreeSet<&str> = report.cells.iter().map(|c| c.backing.as_str()).collect();
        names.into_iter().map(Backing::from_str).collect()
    });
    let earlier: Option<Vec<Backing>> = earlier.transpose().map_err(usage)?;
    let named = Named {
        target: !args.target.is_empty(),
        backing: !args.on.is_empty(),
    };
    let mut cells = Vec::new();
    for target in targets_of(args)? {
        let backings = match (&earlier, args.on.is_empty()) {
            (_, false) => args.on.clone(),
            (Some(earlier), true) => earlier.clone(),
            (None, true) => Backing::defaults(target.filesystem()),
        };
        for (i, backing) in backings.iter().enumerate() {
            if backings[..i].contains(backing) {
                continue;
            }
            cells.push(Cell {
                target: Arc::clone(&target),
                backing: backing.clone(),
                named,
                cases: Vec::new(),
                required: Arc::default(),
            });
        }
    }
    Ok(cells)
}

fn failed_in(report: &Report, cell: &Cell, cases: &[Arc<Case>]) -> Vec<Arc<Case>> {
    let name = cell.name();
    let bad: BTreeSet<String> = report
        .results()
        .filter(|(cell, r)| cell.name() == name && r.outcome.is_bad())
        .map(|(_, r)| r.label())
        .collect();
    cases
        .iter()
        .filter(|c| bad.contains(&c.label()))
        .cloned()
        .collect()
}
