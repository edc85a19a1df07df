//! `graphtest serve`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args as ClapArgs;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::usage;
use crate::drivers::registry;
use crate::graphtest::run::Status;
use crate::remote::plugin::Server;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The built-in driver to lend
    #[arg(long, value_name = "D")]
    driver: String,
    /// The directory of its state: the homes that daemons ask for must be it or be below it
    #[arg(long, value_name = "DIR")]
    home: PathBuf,
    /// The socket to listen on, as a Docker graph-driver plugin; daemons look for NAME.sock in /run/docker/plugins
    #[arg(long, value_name = "SOCK")]
    plugin: PathBuf,
}

/// Serves until a signal ends it, which is how servers end: nothing is left mounted, and the status is that of a good run.
pub(super) fn main(args: &Args) -> anyhow::Result<Status> {
    if !registry().names().any(|name| name == args.driver) {
        let known: Vec<&str> = registry().names().collect();
        return Err(usage(format!(
            "unknown driver `{}`; known: {}",
            args.driver,
            known.join(", ")
        )));
    }
    super::setup::raise_open_files();
    let driver = args.driver.clone();
    let start = move |home: &std::path::Path, init: &_| registry().start(&driver, home, init);
    let server = Server::bind(&args.plugin, &args.home, start)?;
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        let stopper = server.stopper().context("cannot handle signals")?;
        signal_hook::low_level::pipe::register(signal, stopper.into_socket())
            .context("cannot handle signals")?;
    }
    eprintln!(
        "{} serves {} in {}",
        args.plugin.display(),
        args.driver,
        args.home.display()
    );
    server.run()?;
    Ok(Status::Good)
}
