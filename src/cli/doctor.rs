//! `graphtest doctor`.

use std::path::Path;
use std::time::Instant;

use clap::Args as ClapArgs;

use super::select::{CellArgs, cells, library};
use super::{print, setup};
use crate::graphtest::run::{Status, kernel, prepare};
use crate::lab::{Backing, Fact, Facts, GivenBack, Register, provision};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    cells: CellArgs,
}

pub(super) fn main(args: &Args) -> anyhow::Result<Status> {
    let cells = cells(&args.cells, &library(&[])?, &[], None)?;
    let register = setup::register()?;
    let (user, note) = setup::namespaces(false);
    let mut text = format!("kernel {}, as {user}\n", kernel());
    if let Some(note) = note {
        text += &format!("note: {note}\n");
    }
    let mut any = false;
    let mut told = Vec::new();
    for cell in &cells {
        let name = format!("{} on {}", cell.target.name(), cell.backing);
        match prepare(cell, &register) {
            Ok((made, started)) => {
                any = true;
                let claims = if started.not_claimed.is_empty() {
                    String::new()
                } else {
                    format!("; not claimed: {}", started.not_claimed.join(", "))
                };
                text += &format!("yes  {name} ({}){claims}\n", made.filesystem);
                let place = (
                    cell.backing.to_string(),
                    made.filesystem.clone(),
                    made.place.facts.clone(),
                );
                if !told.contains(&place) {
                    told.push(place);
                }
                text += &what_came_of(&made.give_back(&register));
            }
            Err(why) => {
                let why = why.to_string();
                text += &format!("no   {name}: {why}\n");
                text += &how_to_mend(&cell.backing, &why);
            }
        }
    }
    if args.cells.on.is_empty() {
        text += &backings(&register);
    }
    for (backing, filesystem, facts) in &told {
        text += &facts_of(backing, filesystem, facts);
    }
    text += &super::vm::doctor()?;
    let left = register.close()?;
    print(&text)?;
    Ok(match (any, left.is_empty()) {
        (false, _) => Status::Harness,
        (true, false) => Status::Left,
        (true, true) => Status::Good,
    })
}

/// Makes every kind of backing once.
fn backings(register: &Register) -> String {
    let mut text = String::new();
    for backing in Backing::all().into_iter().filter(Backing::is_made) {
        let begun = Instant::now();
        match provision(&backing, register) {
            Ok(made) => {
                let took = begun.elapsed().as_millis();
                text += &format!("yes  {backing} ({}), ready in {took} ms\n", made.filesystem);
                text += &what_came_of(&made.give_back(register));
            }
            Err(e) => {
                let why = e.to_string();
                text += &format!("no   {backing}: {why}\n");
                text += &how_to_mend(&backing, &why);
            }
        }
    }
    text
}

fn what_came_of(given: &GivenBack) -> String {
    let told = [
        ("left behind", &given.left),
        ("damaged", &given.damage),
        ("note", &given.notes),
    ];
    let lines = |(what, lines): (&str, &Vec<String>)| -> String {
        let line = |line: &String| format!("     {what}: {line}\n");
        lines.iter().map(line).collect()
    };
    told.into_iter().map(lines).collect()
}

fn how_to_mend(backing: &Backing, why: &str) -> String {
    let mend = backing.mend(why).or_else(|| mend(why));
    mend.map(|mend| format!("     mend: {mend}\n"))
        .unwrap_or_default()
}

fn facts_of(backing: &str, filesystem: &str, facts: &Facts) -> String {
    let has: Vec<&str> = Fact::ALL
        .iter()
        .filter(|f| facts.has(**f))
        .map(|f| f.name())
        .collect();
    let mut text = format!("{backing} ({filesystem}) has: {}\n", has.join(", "));
    for fact in Fact::ALL {
        if let Some(why) = facts.why_not(*fact) {
            text += &format!("     not {fact}: {why}\n");
        }
    }
    text
}

/// The command that mends what is in the way, where one is known.
fn mend(why: &str) -> Option<String> {
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has_overlay = filesystems
        .lines()
        .any(|l| l.split_whitespace().last() == Some("overlay"));
    if why.contains("overlay") && !has_overlay {
        let module = Path::new("/lib/modules").join(kernel());
        return Some(if module.exists() {
            "modprobe overlay".to_string()
        } else {
            "a kernel with CONFIG_OVERLAY_FS; this one has neither overlayfs nor modules"
                .to_string()
        });
    }
    let denied = [
        "Operation not permitted",
        "Permission denied",
        "not run as root",
    ]
    .iter()
    .any(|e| why.contains(e));
    if denied && !rustix::process::geteuid().is_root() {
        return Some(
            "run as root, or allow user namespaces: sysctl kernel.unprivileged_userns_clone=1"
                .to_string(),
        );
    }
    let unwritable = why.starts_with("make a directory in");
    unwritable
        .then(|| "run in a directory that can be written, or name one: --on dir:PATH".to_string())
}
