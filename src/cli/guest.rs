//! The commands that are run in guests only, by graphtest itself, and what they are told.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::setup;
use crate::graphtest::event::Event;
use crate::graphtest::guest::{backing, carry_out};
use crate::graphtest::known::Known;
use crate::graphtest::report::text::{self, Paint};
use crate::graphtest::run::{Options, Rules, Status};
use crate::graphtest::{Keep, Library};
use crate::lab::provision;
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
    let user = prepare(false);
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

/// Carries out the order in a file, leaves everything in place, and opens a shell there.
pub(super) fn shell(order: &Path) -> anyhow::Result<Status> {
    let text = std::fs::read_to_string(order).with_context(|| order.display().to_string())?;
    let register = Arc::new(setup::register()?);
    let user = prepare(true);
    let (mut kept, mut why) = (None, None);
    let carried = carry_out(&text, user, &register, &mut |event| match event {
        Event::CaseFinished { result, .. } => {
            println!("{}", text::result_line(Paint::Plain, "here", result));
            if result.outcome.is_bad() {
                print!("{}", text::failure_block(result));
            }
            kept = kept.take().or(result.kept.clone().map(PathBuf::from));
        }
        Event::CellFinished { end, .. } => why = why.take().or(end.reason.clone()),
        _ => {}
    });
    carried.map_err(anyhow::Error::msg)?;
    let backing = backing(&text).map_err(anyhow::Error::msg)?;
    let made;
    let dir = match (&kept, why) {
        (Some(dir), _) => dir,
        (None, Some(why)) => anyhow::bail!("{why}"),
        (None, None) => {
            made = provision(&backing, &register).with_context(|| backing.to_string())?;
            &made.place.dir
        }
    };
    println!(
        "{backing} is mounted here: {}; Ctrl-D ends the guest",
        dir.display()
    );
    let status = Command::new("/bin/busybox")
        .arg("sh")
        .current_dir(dir)
        .status()
        .context("/bin/busybox")?;
    match status.success() {
        true => Ok(Status::Good),
        false => Ok(Status::Failed),
    }
}

/// Namespaces and limits; returns whose rights the process has.
fn prepare(keep: bool) -> String {
    let (user, note) = setup::namespaces(keep);
    if let Some(note) = note {
        eprintln!("note: {note}");
    }
    setup::raise_open_files();
    user
}

/// How one scenario is run in guests: by itself, so often, and whatever is known to fail.
pub(super) fn options(
    suites: Vec<PathBuf>,
    library: Library,
    repeat: usize,
    keep: Keep,
) -> Options {
    Options {
        jobs: 1,
        timeout: TIMEOUT,
        repeat,
        fail_fast: false,
        keep,
        user: "root of a guest".to_string(),
        rules: Rules {
            known: Known::default(),
            program: "graphtest".to_string(),
            suites,
            kernel: None,
        },
        library: Arc::new(library),
        whole: false,
        part: None,
    }
}

/// The time limit of one scenario in a guest, which may be emulated.
pub(super) const TIMEOUT: Duration = Duration::from_secs(15 * 60);
