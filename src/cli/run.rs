//! `graphtest run`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args as ClapArgs;

use super::output::{Output, Volume, When};
use super::select::{self, CellArgs, ScenarioArgs};
use super::{setup, usage, vm};
use crate::graphtest::event::Event;
use crate::graphtest::known::Known;
use crate::graphtest::report::{Report, Wanted};
use crate::graphtest::run::{Cell, Options, Required, Rules, Status, run};
use crate::graphtest::shard::Shard;
use crate::graphtest::{Keep, Library, guest, load};
use crate::sys::cpus;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    scenarios: ScenarioArgs,
    #[command(flatten)]
    cells: CellArgs,
    /// Run the cells in guests with these kernels: names as `list kernels` has them, or paths of kernel images [default: those
    /// of the matrix file, or none]
    #[arg(
        long,
        value_name = "K,...",
        value_delimiter = ',',
        conflicts_with = "keep"
    )]
    kernel: Vec<String>,
    #[command(flatten)]
    guests: vm::HowArgs,
    /// How many scenarios run at a time [default: four per processor, since they wait for disks]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// The time limit of one scenario [default: 3m; in a guest, which may be emulated, 15m]
    #[arg(long, value_name = "DUR", value_parser = parse_timeout)]
    timeout: Option<Duration>,
    /// How often each scenario is run
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Stop at the first failure
    #[arg(long)]
    fail_fast: bool,
    /// Run only the I-th of N parts, counted from 1: of several cells some, of one cell some of its scenarios
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Run only what failed in an earlier run
    #[arg(long, value_name = "RESULTS.json")]
    failed: Option<PathBuf>,
    /// Known results to use instead of the built-in ones: a file, or a directory of *.yaml files
    #[arg(long, value_name = "PATH")]
    known: Option<PathBuf>,
    /// Scenarios that must not be skipped: a file of globs, one a line, or `all`
    #[arg(long, value_name = "PATH|all")]
    require: Option<PathBuf>,
    /// Write a report: json, junit, tap, html or text; repeatable
    #[arg(long, value_name = "KIND=PATH")]
    report: Vec<Wanted>,
    /// Leave what failing scenarios made in place, and say where; `clean` gives it back
    #[arg(long)]
    keep: bool,
    /// Print only failures and the summary
    #[arg(long, short, conflicts_with = "verbose")]
    quiet: bool,
    /// Print also when cells and scenarios begin
    #[arg(long, short)]
    verbose: bool,
    /// Colour the output
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN")]
    color: When,
    /// Show a progress bar
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN")]
    progress: When,
}

pub(super) fn parse_timeout(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(d) if !d.is_zero() => Ok(d),
        Ok(_) => Err("must be more than nothing".to_string()),
        Err(e) => Err(format!("{e}; expected a duration such as 90s or 5m")),
    }
}

pub(super) fn main(args: &Args) -> anyhow::Result<Status> {
    // Everything that can be wrong with what was asked for comes first: then nothing was run.
    let failed = args
        .failed
        .as_deref()
        .map(super::report::read)
        .transpose()?;
    let rules = rules(args)?;
    let library = select::library(&args.scenarios.suite)?;
    let cells = cells(args, &library, failed.as_ref())?;
    let texts = texts(args)?;
    let kernels = match args.kernel.is_empty() {
        true => select::kernels(&args.cells, &library)?,
        false => args.kernel.clone(),
    };
    if args.keep && !kernels.is_empty() {
        return Err(usage("--keep: nothing outlives a guest"));
    }
    let elsewhere = cells.iter().any(|cell| cell.target.elsewhere());
    if elsewhere && !kernels.is_empty() {
        return Err(usage(
            "a plugin runs on this machine, not in a guest: --kernel is not for it",
        ));
    }
    let guests = match kernels.is_empty() {
        true => None,
        false => Some(vm::prepare(
            &args.guests,
            &kernels,
            // A matrix names its optional cells, too.
            cells
                .iter()
                .any(|cell| vm::of_zfs(cell, args.cells.matrix.is_some())),
        )?),
    };
    let register = Arc::new(setup::register()?);
    // Guests have mounts and owners of their own; making them needs no rights.
    let user = match guests {
        Some(_) => "root of a guest".to_string(),
        None => {
            // Another process sees only what is mounted where it is.
            let (user, note) = setup::namespaces(args.keep || elsewhere);
            if let Some(note) = note {
                eprintln!("note: {note}");
            }
            user
        }
    };
    setup::raise_open_files();
    let stop = setup::interrupts()?;
    let (cells, part) = match args.shard.map(|shard| shard.take(cells.clone())) {
        None => (cells, None),
        Some(Ok((cells, part))) => (cells, Some(part)),
        Some(Err(few)) => {
            register.close()?;
            return Err(usage(few));
        }
    };
    let options = Options {
        // A guest has two processors.
        jobs: match (args.jobs, &guests) {
            (Some(jobs), _) => jobs.into(),
            (None, Some(_)) => 4,
            (None, None) => 4 * cpus(),
        },
        timeout: args.timeout.unwrap_or(match &guests {
            Some(_) => super::guest::TIMEOUT,
            None => Duration::from_secs(3 * 60),
        }),
        repeat: args.repeat as usize,
        fail_fast: args.fail_fast,
        keep: match args.keep {
            true => Keep::Failing,
            false => Keep::None,
        },
        user,
        rules,
        library: Arc::new(library),
        whole: args.cells.matrix.is_some() && args.has_everything(),
        part,
    };
    let volume = match (args.quiet, args.verbose) {
        (true, _) => Volume::Quiet,
        (_, true) => Volume::Verbose,
        _ => Volume::Normal,
    };
    let mut output = Output::new(&args.report, args.color, args.progress, volume);
    let stopped = || setup::interrupted(&stop);
    let mut tell = |event: &Event| output.tell(event);
    let interrupted = match &guests {
        None => run(&cells, &options, &register, &stopped, &mut tell),
        Some((lab, kernels)) => {
            let plan = guest::Plan {
                lab,
                kernels: &kernels.found,
                missing: &kernels.missing,
                cells: &cells,
                texts: &texts,
                options: &options,
            };
            let note = |text: &str| eprintln!("note: {text}");
            guest::run(&plan, &register, &stopped, &note, &mut tell)
        }
    };
    let Some((report, written)) = output.finish() else {
        anyhow::bail!("the run never began");
    };
    let left = register.close()?;
    let kept = report.results().any(|(_, r)| r.kept.is_some());
    if kept && !left.is_empty() {
        eprintln!("note: `graphtest clean` gives back what was kept");
    }
    match Status::of(&report, interrupted) {
        Status::Good | Status::Left if !written => Ok(Status::Harness),
        status => Ok(status),
    }
}

impl Args {
    /// Whether nothing takes scenarios or cells out.
    fn has_everything(&self) -> bool {
        let scenarios = &self.scenarios;
        scenarios.filter.is_empty()
            && scenarios.tag.is_empty()
            && scenarios.level.is_none()
            && self.shard.is_none()
            && self.failed.is_none()
            && !self.fail_fast
    }
}

/// The cells to run, with what must not be skipped in them.
fn cells(args: &Args, library: &Library, failed: Option<&Report>) -> anyhow::Result<Vec<Cell>> {
    let required = required(args, library)?;
    let cases = select::cases(library, &args.scenarios)?;
    let mut cells = select::cells(&args.cells, library, &cases, failed)?;
    for cell in &mut cells {
        cell.required = Arc::new(cell.required.and(required.clone()));
    }
    Ok(cells)
}

/// What `--require` names.
fn required(args: &Args, library: &Library) -> anyhow::Result<Required> {
    match args.require.as_deref() {
        None => Ok(Required::default()),
        Some(path) if path.as_os_str() == "all" => Required::all().map_err(usage),
        Some(path) => {
            let said = |e: &dyn std::fmt::Display| usage(format!("{}: {e}", path.display()));
            let text = std::fs::read_to_string(path).map_err(|e| said(&e))?;
            let required = Required::parse(&text).map_err(|e| said(&e))?;
            required.check(library).map_err(|e| said(&e))?;
            Ok(required)
        }
    }
}

fn rules(args: &Args) -> anyhow::Result<Rules> {
    let known = match args.known.as_deref() {
        Some(path) => Known::load(path),
        // The built-in lines are about the built-in scenarios.
        None if args.scenarios.suite.is_empty() => Known::builtin(),
        None => Ok(Known::default()),
    };
    let known = known.map_err(usage)?;
    let program = std::env::args()
        .next()
        .unwrap_or_else(|| "graphtest".to_string());
    Ok(Rules {
        known,
        program,
        suites: args.scenarios.suite.clone(),
        kernel: None,
    })
}

/// The files that a guest does not have.
fn texts(args: &Args) -> anyhow::Result<guest::Texts> {
    let suites = &args.scenarios.suite;
    let suites = (!suites.is_empty()).then(|| load::texts(suites));
    let known = args.known.as_deref().map(Known::texts);
    Ok(guest::Texts {
        suites: suites.transpose().map_err(|e| usage(e.to_string()))?,
        known: known.transpose().map_err(usage)?,
    })
}
