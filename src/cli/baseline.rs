//! `graphtest baseline save|diff`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

use super::report::read;
use super::{print, usage};
use crate::graphtest::event::{CaseResult, Outcome};
use crate::graphtest::known::{Entry, told_apart};
use crate::graphtest::report::{Cell, Report};
use crate::graphtest::run::Status;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the failures of a run as known results, for `run --known`
    Save {
        /// The run's JSON report
        report: PathBuf,
        /// Where the failures are recorded, such as an issue
        #[arg(long)]
        link: String,
    },
    /// Two runs side by side: new, fixed, still failing, not run; status 1 when something is new
    Diff {
        /// The earlier run's JSON report
        before: PathBuf,
        /// The later run's
        after: PathBuf,
    },
}

pub(super) fn main(args: Args) -> anyhow::Result<Status> {
    match args.command {
        Command::Save { report, link } if link.trim().is_empty() => Err(usage(format!(
            "{}: --link must name where the failures are recorded",
            report.display()
        ))),
        Command::Save { report, link } => print(&save(&read(&report)?, &link)?),
        Command::Diff { before, after } => {
            let (text, status) = diff(&read(&before)?, &read(&after)?);
            print(&text)?;
            Ok(status)
        }
    }
}

/// The failures as known results, each for the very target and backing it was seen on.
fn save(report: &Report, link: &str) -> anyhow::Result<String> {
    let entry = |(cell, result): (&Cell, &CaseResult)| {
        let why = result.reason.as_deref().unwrap_or("failed");
        let (reason, link) = match result.outcome {
            Outcome::Fail => (why, link),
            // What was known stays known: the file is used instead of the one that says so now.
            Outcome::XFail => told_apart(why)?,
            _ => return None,
        };
        Some(Entry {
            scenario: globset::escape(&result.label()),
            targets: vec![globset::escape(&cell.target)],
            backings: vec![globset::escape(&cell.backing)],
            reason: reason.to_string(),
            link: link.to_string(),
            ..Entry::default()
        })
    };
    let mut entries: Vec<Entry> = report.results().filter_map(entry).collect();
    // A repeated scenario may have failed more than once.
    entries.dedup_by(|a, b| {
        (&a.scenario, &a.targets, &a.backings) == (&b.scenario, &b.targets, &b.backings)
    });
    Ok(serde_yaml::to_string(&entries)?)
}

/// What a result is known by in two reports.
type Key = (String, String, String);

/// The worst outcome of each result, should it have been repeated.
fn outcomes(report: &Report) -> BTreeMap<Key, Outcome> {
    let mut all = BTreeMap::new();
    for (cell, result) in report.results() {
        let worst = all
            .entry((cell.target.clone(), cell.backing.clone(), result.label()))
            .or_insert(result.outcome);
        if result.outcome.is_bad() {
            *worst = result.outcome;
        }
    }
    all
}

fn diff(before: &Report, after: &Report) -> (String, Status) {
    let (old, new) = (outcomes(before), outcomes(after));
    let ran = |o: &Outcome| *o != Outcome::Skip;
    let mut groups: [(&str, Vec<&Key>); 4] = [
        ("new", Vec::new()),
        ("fixed", Vec::new()),
        ("still failing", Vec::new()),
        ("not run", Vec::new()),
    ];
    for (key, now) in &new {
        let was = old.get(key);
        let group = match (was.is_some_and(|w| w.is_bad()), now.is_bad()) {
            (false, true) => 0,
            (true, true) => 2,
            (true, false) if ran(now) => 1,
            _ if was.is_some_and(ran) && !ran(now) => 3,
            _ => continue,
        };
        groups[group].1.push(key);
    }
    groups[3].1.extend(
        old.iter()
            .filter(|(key, was)| ran(was) && !new.contains_key(*key))
            .map(|(key, _)| key),
    );
    let mut text = String::new();
    for (name, keys) in &groups {
        text.push_str(&format!("{name}: {}\n", keys.len()));
        for (target, backing, label) in keys {
            text.push_str(&format!("  {target} on {backing}  {label}\n"));
        }
    }
    let status = if groups[0].1.is_empty() {
        Status::Good
    } else {
        Status::Failed
    };
    (text, status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graphtest::condition::Ground;
    use crate::graphtest::event::{CellStart, CellStatus};
    use crate::graphtest::report::{Totals, VERSION};

    fn report(results: &[(&str, Outcome)]) -> Report {
        let one = |(id, outcome): &(&str, Outcome)| {
            let reason = if *id == "a/old" {
                "known: old (L)"
            } else {
                "x"
            };
            let value = serde_json::json!({
                "id": id, "requirements": [], "level": "must", "outcome": outcome, "reason": reason,
                "seconds": 0.1, "case": null, "seed": null, "replay": null,
            });
            serde_json::from_value(value).unwrap()
        };
        let host = serde_json::json!({"kernel": "6.1.0", "arch": "x86_64", "cpus": 2});
        Report {
            version: VERSION,
            tool: String::new(),
            started: String::new(),
            seed: None,
            host: serde_json::from_value(host).unwrap(),
            complete: true,
            part: None,
            stale: Vec::new(),
            cells: vec![Cell {
                target: "vfs".to_string(),
                backing: "dir:/x[1]".to_string(),
                filesystem: None,
                guest: false,
                kernel: "6.1.0".to_string(),
                status: CellStatus::Ran,
                reason: None,
                planned: results.len(),
                not_claimed: Vec::new(),
                driver: BTreeMap::new(),
                left: Vec::new(),
                damage: Vec::new(),
                notes: Vec::new(),
                results: results.iter().map(one).collect(),
            }],
            totals: Totals::default(),
        }
    }

    #[test]
    fn a_diff_tells_new_fixed_still_failing_and_not_run_apart() {
        use Outcome::{Fail, Pass, Skip};
        let before = report(&[
            ("a/new", Pass),
            ("a/fixed", Fail),
            ("a/still", Fail),
            ("a/gone", Pass),
            ("a/skipped", Fail),
            ("a/ok", Pass),
        ]);
        let after = report(&[
            ("a/new", Fail),
            ("a/fixed", Pass),
            ("a/still", Fail),
            ("a/skipped", Skip),
            ("a/ok", Pass),
            ("a/added", Pass),
        ]);
        let (text, status) = diff(&before, &after);
        let on = "  vfs on dir:/x[1]  a/";
        let expected = format!(
            "new: 1\n{on}new\nfixed: 1\n{on}fixed\nstill failing: 1\n{on}still\nnot run: 2\n{on}skipped\n{on}gone\n"
        );
        assert_eq!((text, status), (expected, Status::Failed));
        assert_eq!(diff(&before, &before).1, Status::Good);
    }

    #[test]
    fn saved_failures_are_known_where_they_were_seen_and_nowhere_else() {
        let text = save(
            &report(&[
                ("a/b", Outcome::Fail),
                ("a/c", Outcome::Pass),
                ("a/may", Outcome::XFail),
                ("a/old", Outcome::XFail),
            ]),
            "https://example.org/1",
        )
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("known.yaml");
        std::fs::write(&path, text).unwrap();
        let known = crate::graphtest::known::Known::load(&path).unwrap();
        let mut ground = Ground {
            cell: CellStart {
                target: "vfs".to_string(),
                backing: "dir:/x[1]".to_string(),
                kernel: "6.1.0".to_string(),
            },
            status: BTreeMap::new(),
        };
        let reason = |ground: &Ground, label| known.reason(ground, label);
        let (new, old) = ("x (https://example.org/1)", "old (L)");
        assert_eq!(reason(&ground, "a/b").as_deref(), Some(new));
        assert_eq!(reason(&ground, "a/old").as_deref(), Some(old));
        assert_eq!(reason(&ground, "a/c"), None);
        assert_eq!(reason(&ground, "a/may"), None);
        ground.cell.backing = "dir:/x1".to_string();
        assert_eq!(reason(&ground, "a/b"), None);
    }
}
