//! The command line: one file a subcommand, thin over the library.

mod baseline;
mod bisect;
mod clean;
mod doctor;
mod guest;
mod list;
mod matrix;
mod output;
mod report;
mod run;
mod select;
mod serve;
mod setup;
mod vm;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};

use crate::graphtest::run::Status;

/// Judges container graph drivers: runs scenarios of the contract against them on real filesystems.
#[derive(Debug, Parser)]
#[command(name = "graphtest", version, about, after_help = STATUSES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What the help says about exit statuses.
const STATUSES: &str = "\
Exit status:
  0    every scenario that ran passed, or failed as known
  1    a scenario failed, a known failure passed, a required one was skipped, or a known result is stale
  2    the command line or a file is wrong, or a filter selects nothing; nothing was run
  3    a cell asked for by name could not be provisioned, no scenario was executed, or the harness itself failed
  4    results are good, but something was left behind
  130  interrupted; everything provisioned was given back first";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run scenarios and judge drivers
    Run(Box<run::Args>),
    /// List what there is
    List(list::Args),
    /// Say for each driver and backing whether it can run here, if not why, and what mends it
    Doctor(doctor::Args),
    /// Give back whatever interrupted runs left: mounts and directories
    Clean,
    /// Keep a run's failures as known results, or compare two runs
    Baseline(baseline::Args),
    /// Join the JSON reports of shards, or render one in another form
    Report(report::Args),
    /// Print cells as the jobs of a CI system
    Matrix(matrix::Args),
    /// Lend a built-in driver to a daemon
    Serve(serve::Args),
    /// Guests with other kernels, by hand
    Vm(vm::Args),
    /// The first process of a guest
    #[command(hide = true)]
    Guest,
    /// A run in a guest
    #[command(hide = true)]
    GuestRun {
        /// What is to be run
        order: std::path::PathBuf,
    },
    /// A shell in a guest
    #[command(hide = true)]
    GuestShell {
        /// What is to be run first
        order: std::path::PathBuf,
    },
    /// Print the JSON Schema of the scenario language, for editors
    Schema,
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, in roff
    Man,
}

/// An error of the person who called: what was asked for makes no sense. Nothing was run.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Shorthand for an error that ends with status 2.
fn usage(message: impl Into<String>) -> anyhow::Error {
    Usage(message.into()).into()
}

/// The program: reads the arguments, does what they say, and returns the exit status.
pub fn main() -> ExitCode {
    run_args(std::env::args_os())
}

fn run_args(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    // clap prints help and usage errors itself, and exits with 0 or 2.
    let status = match dispatch(Cli::parse_from(args).command) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: {error:#}");
            if error.is::<Usage>() {
                Status::Usage
            } else {
                Status::Harness
            }
        }
    };
    ExitCode::from(status.code())
}

fn dispatch(command: Command) -> anyhow::Result<Status> {
    match command {
        Command::Run(args) => run::main(&args),
        Command::List(args) => list::main(&args),
        Command::Doctor(args) => doctor::main(&args),
        Command::Clean => clean::main(),
        Command::Baseline(args) => baseline::main(args),
        Command::Report(args) => report::main(args),
        Command::Matrix(args) => matrix::main(args),
        Command::Serve(args) => serve::main(&args),
        Command::Vm(args) => vm::main(&args),
        Command::Guest => guest::first_process(),
        Command::GuestRun { order } => guest::run(&order),
        Command::GuestShell { order } => guest::shell(&order),
        Command::Schema => {
            let schema = serde_json::to_string_pretty(&crate::graphtest::schema())?;
            print(&(schema + "\n"))
        }
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "graphtest", &mut text);
            print(&String::from_utf8_lossy(&text))
        }
        Command::Man => print(&manual()?),
    }
}

/// One page for the program and, below it, one section for each subcommand's own page.
fn manual() -> anyhow::Result<String> {
    let mut command = Cli::command();
    // Gives subcommands their full names.
    command.build();
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut text)?;
    for sub in command.get_subcommands().filter(|s| s.get_name() != "help") {
        clap_mangen::Man::new(sub.clone()).render(&mut text)?;
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Writes to standard output; a reader that went away (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<Status> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(e).context("cannot write to standard output")
        }
        _ => Ok(Status::Good),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_is_in_the_manual() {
        let manual = manual().unwrap();
        for sub in Cli::command().get_subcommands() {
            assert!(manual.contains(sub.get_name()), "{}", sub.get_name());
        }
    }
}
