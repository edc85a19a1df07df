//! `graphtest report merge|render`.

use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, Subcommand};

use super::{print, usage};
use crate::graphtest::report::{Kind, Report};
use crate::graphtest::run::Status;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join the JSON reports of a run's parts, or of runs with different cells; refuse results that two have and what none has
    Merge {
        /// The reports
        #[arg(required = true)]
        reports: Vec<PathBuf>,
    },
    /// Render a JSON report in another form
    Render {
        /// The report
        report: PathBuf,
        /// json, junit, tap, html or text
        #[arg(long, default_value = "text")]
        format: Kind,
    },
}

/// Reads a JSON report; what is wrong with it is the caller's error.
pub(super) fn read(path: &Path) -> anyhow::Result<Report> {
    let text =
        std::fs::read_to_string(path).map_err(|e| usage(format!("{}: {e}", path.display())))?;
    Report::from_json(&text).map_err(|e| usage(format!("{}: not a report: {e}", path.display())))
}

pub(super) fn main(args: Args) -> anyhow::Result<Status> {
    match args.command {
        Command::Merge { reports } => {
            let reports = reports
                .iter()
                .map(|p| Ok((p.display().to_string(), read(p)?)))
                .collect::<anyhow::Result<Vec<_>>>()?;
            print(&Kind::Json.render(&Report::merge(reports).map_err(usage)?))
        }
        Command::Render { report, format } => print(&format.render(&read(&report)?)),
    }
}
