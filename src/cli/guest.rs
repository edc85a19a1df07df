//! The two commands that are run in guests only, by graphtest itself.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use super::setup;
use crate::graphtest::guest::carry_out;
use crate::graphtest::run::Status;
use crate::lab::vm::init;

/// The first process of a guest.
pub(super) fn first_process() -> anyhow::Result<Status> {
    init::main()?;
    Ok(Status::Good)
}

/// Carries out the order in a file; events go to standard output, a line of JSON each.
pub(super) fn run(order: &Path) -> anyhow::Result<Status> {
    let text = std::fs::read_to_string(order).with_context(|| order.display().to_string())?;
    let register = Arc::new(setup::register()?);
    let (user, note) = setup::namespaces(false);
    if let Some(note) = note {
        eprintln!("note: {note}");
    }
    setup::raise_open_files();
    let mut broken = None;
    let mut out = std::io::stdout().lock();
    let carried = carry_out(&text, user, &register, &mut |event| {
        let line = serde_json::to_string(event).map_err(std::io::Error::from);
        let written = line.and_then(|l| writeln!(out, "{l}").and_then(|()| out.flush()));
        broken = broken.take().or(written.err());
    });
    carried.map_err(anyhow::Error::msg)?;
    register.close()?;
    match broken {
        Some(e) => Err(e).context("cannot tell the host"),
        None => Ok(Status::Good),
    }
}
