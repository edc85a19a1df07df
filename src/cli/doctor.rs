//! `graphtest doctor`.

use std::path::Path;

use clap::Args as ClapArgs;

use super::select::{CellArgs, cells, library};
use super::{print, setup};
use crate::graphtest::run::{Status, kernel, prepare};
use crate::lab::{Fact, Facts};

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
                let given = made.give_back(&register);
                for left in &given.left {
                    text += &format!("     left behind: {left}\n");
                }
                for damage in &given.damage {
                    text += &format!("     damaged: {damage}\n");
                }
                for note in &given.notes {
                    text += &format!("     note: {note}\n");
                }
            }
            Err(why) => {
                text += &format!("no   {name}: {why}\n");
                if let Some(mend) = mend(&why.to_string()) {
                    text += &format!("     mend: {mend}\n");
                }
            }
        }
    }
    for (backing, filesystem, facts) in &told {
        text += &facts_of(backing, filesystem, facts);
    }
    let left = register.close()?;
    print(&text)?;
    Ok(match (any, left.is_empty()) {
        (false, _) => Status::Harness,
        (true, false) => Status::Left,
        (true, true) => Status::Good,
    })
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
