//! Joining reports, without counting anything twice and without passing a part off as the whole.

use std::collections::{BTreeMap, BTreeSet};

use super::{Cell, Report};
use crate::graphtest::event::{CaseResult, CellStatus};

/// A report with the name that messages give it.
type Named = (String, Report);

/// What makes a cell one: target, backing, kernel.
type Key<'a> = (&'a str, &'a str, &'a str);

fn key(cell: &Cell) -> Key<'_> {
    (&cell.target, &cell.backing, &cell.kernel)
}

impl Report {
    /// Joins the reports of the parts of a run, or of runs with different cells, each given with its name: cells of one target, backing
    /// and kernel become one. The host and the time are those of the first.
    ///
    /// # Errors
    /// There is none, or one is of another version; a result is in two of them; a part of a run is missing, or did not run all it was to.
    pub fn merge(reports: impl IntoIterator<Item = Named>) -> Result<Self, String> {
        let mut reports: Vec<Named> = reports.into_iter().collect();
        let version = reports.first().ok_or("no report to merge")?.1.version;
        if let Some((name, other)) = reports.iter().find(|(_, r)| r.version != version) {
            let other = other.version;
            return Err(format!(
                "{name}: reports of version {version} and {other} cannot be merged"
            ));
        }
        whole(&reports)?;
        once(&reports)?;
        let mut rest = reports.split_off(1).into_iter();
        let (_, mut all) = reports.remove(0);
        for (_, report) in rest.by_ref() {
            all.complete &= report.complete;
            all.stale.extend(report.stale);
            let results = report.cells.iter().flat_map(|c| &c.results);
            results.for_each(|r| all.totals.add(r.outcome));
            for cell in report.cells {
                all.take_cell(cell);
            }
        }
        all.stale.sort();
        all.stale.dedup();
        // The parts are a whole now.
        all.part = None;
        for cell in &mut all.cells {
            cell.results.sort_by_cached_key(CaseResult::label);
        }
        Ok(all)
    }

    fn take_cell(&mut self, cell: Cell) {
        match self.cells.iter_mut().find(|c| key(c) == key(&cell)) {
            None => self.cells.push(cell),
            Some(into) => {
                // An error outweighs having run, and that a skip.
                let weight = |s: CellStatus| match s {
                    CellStatus::Skipped => 0,
                    CellStatus::Ran => 1,
                    CellStatus::Error => 2,
                };
                if weight(cell.status) > weight(into.status) {
                    into.status = cell.status;
                    into.reason = cell.reason;
                }
                into.planned += cell.planned;
                into.left.extend(cell.left);
                into.damage.extend(cell.damage);
                into.notes.extend(cell.notes);
                into.results.extend(cell.results);
            }
        }
    }
}

/// Every run of which there is a part is there with all its parts, each of them run to its end.
fn whole(reports: &[Named]) -> Result<(), String> {
    let mut runs: BTreeMap<(&str, &str, usize), Vec<&Named>> = BTreeMap::new();
    for named in reports {
        let (_, report) = named;
        if let Some(part) = &report.part {
            let run = (report.host.kernel.as_str(), part.plan.as_str(), part.of);
            runs.entry(run).or_default().push(named);
        }
    }
    for ((.., of), parts) in runs {
        let mut seen: BTreeMap<usize, &str> = BTreeMap::new();
        for (name, report) in &parts {
            let index = report.part.as_ref().map_or(0, |p| p.index);
            if let Some(first) = seen.insert(index, name) {
                return Err(format!(
                    "an overlap: {first} and {name} are both part {index} of {of}"
                ));
            }
            ended(name, report)?;
        }
        if let Some(missing) = (1..=of).find(|i| !seen.contains_key(i)) {
            let with: Vec<&str> = seen.into_values().collect();
            let with = with.join(", ");
            return Err(format!(
                "a hole: part {missing} of {of} is missing (of the run that {with} is of)"
            ));
        }
        let cells: BTreeSet<Key<'_>> = parts
            .iter()
            .flat_map(|(_, r)| r.cells.iter().map(key))
            .collect();
        let planned = parts[0].1.part.as_ref().map_or(0, |p| p.cells);
        if cells.len() != planned {
            let found = cells.len();
            return Err(format!(
                "a hole: the run has {planned} cells, its {of} parts together {found}"
            ));
        }
    }
    Ok(())
}

/// The part was run to its end.
fn ended(name: &str, report: &Report) -> Result<(), String> {
    if !report.complete {
        return Err(format!("a hole: {name}: the run did not go to its end"));
    }
    let short = |c: &&Cell| c.status == CellStatus::Ran && c.results.len() < c.planned;
    match report.cells.iter().find(short) {
        Some(cell) => Err(format!(
            "a hole: {name}: {} has {} of {} results",
            cell.name(),
            cell.results.len(),
            cell.planned
        )),
        None => Ok(()),
    }
}

/// No result is in two reports.
fn once(reports: &[Named]) -> Result<(), String> {
    let mut seen: BTreeMap<(Key<'_>, String), &str> = BTreeMap::new();
    for (name, report) in reports {
        for (cell, result) in report.results() {
            let label = result.label();
            match seen.insert((key(cell), label.clone()), name) {
                // A run that repeats has a result more than once.
                Some(first) if first != name => {
                    return Err(format!(
                        "an overlap: {first} and {name} both have {} on {}: {label}",
                        cell.target, cell.backing
                    ));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    /// A complete report of part `index` of 2 with these cells, each with the labels of its results.
    fn part(index: usize, cells: &[(&str, &[&str])]) -> Value {
        let result = |id: &&str| {
            json!({"id": id, "requirements": [], "level": "must", "outcome": "pass", "reason": null, "seconds": 0.1,
            "case": null, "seed": null, "replay": null})
        };
        let cell = |(target, ids): &(&str, &[&str])| {
            json!({"target": target, "backing": "dir", "kernel": "6.1.0", "status": "ran",
            "reason": null, "planned": ids.len(), "results": ids.iter().map(result).collect::<Vec<_>>()})
        };
        json!({
            "version": 1, "tool": "graphtest", "started": "", "seed": null, "complete": true,
            "host": {"kernel": "6.1.0", "arch": "x86_64", "cpus": 1},
            "part": {"index": index, "of": 2, "cells": 2, "plan": "p"},
            "totals": {"pass": cells.iter().map(|c| c.1.len()).sum::<usize>(), "fail": 0, "skip": 0, "xfail": 0, "xpass": 0},
            "cells": cells.iter().map(cell).collect::<Vec<_>>(),
        })
    }

    fn one() -> Value {
        part(1, &[("vfs", &["a/b", "a/c"])])
    }

    fn two() -> Value {
        part(2, &[("overlay", &["a/b"])])
    }

    fn merged(reports: &[Value]) -> Result<Report, String> {
        let read = |(i, r): (usize, &Value)| {
            let report = Report::from_json(&r.to_string()).unwrap();
            (format!("{}.json", i + 1), report)
        };
        Report::merge(reports.iter().enumerate().map(read))
    }

    #[test]
    fn all_parts_make_the_whole() {
        let report = merged(&[two(), one()]).unwrap();
        let cells: Vec<_> = report
            .cells
            .iter()
            .map(|c| (c.target.as_str(), c.results.len()))
            .collect();
        assert_eq!(cells, [("overlay", 1), ("vfs", 2)]);
        assert_eq!((report.totals.pass, report.part), (3, None));
        assert!(report.complete);
    }

    #[test]
    fn a_cell_that_was_split_by_its_scenarios_becomes_one() {
        let mut parts = [
            part(1, &[("vfs", &["a/c"])]),
            part(2, &[("vfs", &["a/b", "a/d"])]),
        ];
        for part in &mut parts {
            part["part"]["cells"] = json!(1);
        }
        let report = merged(&parts).unwrap();
        assert_eq!((report.cells.len(), report.cells[0].planned), (1, 3));
        let ids: Vec<_> = report.results().map(|(_, r)| r.id.as_str()).collect();
        assert_eq!(ids, ["a/b", "a/c", "a/d"]);
    }

    #[rstest]
    #[case::alone(&[one()], ("/version", json!(1)), "a hole: part 2 of 2 is missing (of the run that 1.json is of)")]
    #[case::twice(&[one(), two(), two()], ("/version", json!(1)), "an overlap: 2.json and 3.json are both part 2 of 2")]
    #[case::another_run(&[one(), two()], ("/part/plan", json!("q")), "a hole: part 1 of 2 is missing")]
    #[case::another_kernel(&[one(), two()], ("/host/kernel", json!("5.4")), "a hole: part 2 of 2 is missing")]
    #[case::interrupted(&[one(), two()], ("/complete", json!(false)), "a hole: 1.json: the run did not go to its end")]
    #[case::cut_short(&[one(), two()], ("/cells/0/planned", json!(3)), "a hole: 1.json: vfs on dir has 2 of 3 results")]
    #[case::cell_lost(&[one(), two()], ("/cells", json!([])), "a hole: the run has 2 cells, its 2 parts together 1")]
    #[case::same_result(&[one(), part(2, &[("overlay", &[]), ("vfs", &["a/c"])])], ("/version", json!(1)),
        "an overlap: 1.json and 2.json both have vfs on dir: a/c")]
    #[case::no_parts(&[one(), one()], ("/part", Value::Null), "a hole: part 2 of 2 is missing")]
    fn what_is_not_whole_or_is_there_twice_is_refused(
        #[case] reports: &[Value],
        #[case] (place, value): (&str, Value),
        #[case] says: &str,
    ) {
        let mut reports = reports.to_vec();
        *reports[0].pointer_mut(place).unwrap() = value;
        let error = merged(&reports).unwrap_err();
        assert!(error.starts_with(says), "{error}");
    }

    #[test]
    fn runs_that_were_not_split_are_joined_when_they_share_nothing() {
        let whole = |mut report: Value| {
            report["part"] = Value::Null;
            report
        };
        assert_eq!(
            merged(&[whole(one()), whole(two())]).unwrap().cells.len(),
            2
        );
        let error = merged(&[whole(one()), whole(one())]).unwrap_err();
        assert!(error.starts_with("an overlap: "), "{error}");
        assert!(merged(&[]).is_err());
    }
}
