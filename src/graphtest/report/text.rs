//! What a person reads: one line a result, a block for each failure, and a summary.

use std::collections::{BTreeMap, BTreeSet};

use super::{Cell, Report, Totals};
use crate::graphtest::event::{CaseResult, CellStatus, Outcome};

/// How many lines the block of one failure has at most.
const MAX_LINES: usize = 20;

/// How many lines of detail a failure shows; the JSON report has all.
const MAX_DETAIL: usize = 12;

/// How many characters of such a line a failure shows; the JSON report has all.
const MAX_WIDTH: usize = 200;

/// Whether to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// ANSI colours.
    Colour,
    /// Plain text.
    Plain,
}

impl Paint {
    /// The outcome's word, five columns wide, coloured.
    fn word(self, outcome: Outcome) -> String {
        let word = format!("{:<5}", outcome.name().to_uppercase());
        let code = match outcome {
            Outcome::Pass => "32",
            Outcome::Fail | Outcome::XPass => "1;31",
            Outcome::Skip | Outcome::XFail => "33",
        };
        match self {
            Self::Plain => word,
            Self::Colour => format!("\x1b[{code}m{word}\x1b[0m"),
        }
    }

    /// A heading, in bold.
    pub fn bold(self, text: &str) -> String {
        match self {
            Self::Plain => text.to_string(),
            Self::Colour => format!("\x1b[1m{text}\x1b[0m"),
        }
    }
}

/// The line of one result: `PASS  0.012s  overlay2 on ext4  whiteouts/delete-lower-file`.
pub fn result_line(paint: Paint, cell: &str, result: &CaseResult) -> String {
    let mut line = format!(
        "{} {:.3}s  {cell}  {}",
        paint.word(result.outcome),
        result.seconds,
        result.label()
    );
    if let (Outcome::Skip | Outcome::XFail, Some(reason)) = (result.outcome, &result.reason) {
        line.push_str(&format!("  ({})", printable(reason)));
    }
    line
}

/// What is to be said about a failure, below its line: at most about twenty lines, without indentation.
pub fn failure_lines(result: &CaseResult) -> Vec<String> {
    let mut out = Vec::new();
    let reason = result.reason.as_deref().unwrap_or("no reason given");
    match &result.location {
        Some(location) => out.push(format!("at {location}: {reason}")),
        None => out.push(reason.to_string()),
    }
    out.extend(result.detail.iter().take(MAX_DETAIL).cloned());
    if result.detail.len() > MAX_DETAIL {
        out.push(format!(
            "... and {} lines more in the JSON report",
            result.detail.len() - MAX_DETAIL
        ));
    }
    // What a driver says can hold anything: line ends and terminal escapes among it.
    let mut out: Vec<String> = out.iter().map(|line| cut(printable(line))).collect();
    let mut tail = Vec::new();
    tail.extend(result.hint.iter().map(|h| format!("hint: {h}")));
    tail.extend(result.kept.iter().map(|k| format!("kept: {k}")));
    tail.extend(result.replay.iter().map(|r| format!("again: {r}")));
    let room = (MAX_LINES - 1).saturating_sub(out.len() + tail.len());
    let rules = broken_rules(result).take(room);
    out.extend(rules.chain(tail).map(|line| printable(&line)));
    out
}

/// What does not hold: the scenario's own sentence, then those of the contract that it proves.
pub(super) fn broken_rules(result: &CaseResult) -> impl Iterator<Item = String> {
    let sentence = result.sentence.as_ref();
    let own = sentence.map(|s| format!("{}: {s}", result.level));
    own.into_iter().chain(result.contract.iter().cloned())
}

/// The line, cut where it is far too long to be read.
fn cut(line: String) -> String {
    match line.char_indices().nth(MAX_WIDTH) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// The block below a failure's line.
pub fn failure_block(result: &CaseResult) -> String {
    failure_lines(result)
        .iter()
        .map(|line| format!("       {line}\n"))
        .collect()
}

/// The text in one line, control characters shown as escapes.
fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect::<Vec<_>>()
            } else {
                vec![c]
            }
        })
        .collect()
}

/// How many of each: `112 pass, 1 fail, 3 skip, 0 xfail, 0 xpass`.
pub fn counts(totals: &Totals) -> String {
    Outcome::ALL
        .iter()
        .map(|o| format!("{} {o}", totals.of(*o)))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The summary: the counts, skips grouped by reason, cells that were skipped or could not be judged, a verdict for each cell.
pub fn summary(paint: Paint, report: &Report) -> String {
    let mut lines = vec![String::new()];
    lines.push(paint.bold(&format!("Summary: {}", counts(&report.totals))));
    for (cell, result) in report.results().filter(|(_, r)| r.outcome.is_bad()) {
        let word = paint.word(result.outcome);
        lines.push(format!("  {word}  {}  {}", cell.name(), result.label()));
    }
    for (title, outcome) in [
        ("Skipped", Outcome::Skip),
        ("Failed as known", Outcome::XFail),
    ] {
        section(&mut lines, paint, title, by_reason(report, outcome));
    }
    type Lines = fn(&Cell) -> &[String];
    let of_cells: [(_, Lines); 3] = [
        ("Left behind (graphtest clean gives it back)", |c| &c.left),
        ("Damaged", |c| &c.damage),
        ("Notes", |c| &c.notes),
    ];
    for (title, what) in of_cells {
        let each = report.cells.iter();
        let each = each.flat_map(|c| what(c).iter().map(move |w| (c, w)));
        let each = each.map(|(cell, what)| format!("  {}: {}", cell.name(), printable(what)));
        section(&mut lines, paint, title, each.collect());
    }
    let stale = report.stale.iter().map(|s| format!("  {}", printable(s)));
    section(&mut lines, paint, "Stale known results", stale.collect());
    lines.push(paint.bold("Verdict:"));
    lines.extend(verdicts(&report.cells));
    section(&mut lines, paint, "By kernel", by_kernel(report));
    lines.extend(report.seed.map(|seed| format!("Seed: {seed}")));
    if !report.complete {
        lines.push(paint.bold("The run did not go to its end."));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// A table of all cells, a row for each target on each backing and a column for each kernel; empty unless there are several kernels.
fn by_kernel(report: &Report) -> Vec<String> {
    let mut kernels: Vec<&str> = Vec::new();
    let mut rows: Vec<(&str, &str)> = Vec::new();
    for cell in &report.cells {
        let row = (cell.target.as_str(), cell.backing.as_str());
        if !rows.contains(&row) {
            rows.push(row);
        }
        if !kernels.contains(&cell.kernel.as_str()) {
            kernels.push(&cell.kernel);
        }
    }
    if kernels.len() < 2 {
        return Vec::new();
    }
    let mut table = vec![vec![String::new()]];
    table[0].extend(kernels.iter().map(|k| short_release(k).to_string()));
    for (target, backing) in rows {
        let mut line = vec![format!("{target} on {backing}")];
        line.extend(kernels.iter().map(|kernel| {
            let mut cells = report.cells.iter();
            let here = cells.find(|c| {
                (c.target.as_str(), c.backing.as_str(), c.kernel.as_str())
                    == (target, backing, kernel)
            });
            here.map_or("-".to_string(), Cell::verdict_in_short)
        }));
        table.push(line);
    }
    aligned(&table)
}

/// A release without what distributions add: `6.1.0-56-cloud-amd64` is `6.1.0-56`.
fn short_release(release: &str) -> &str {
    let numbers = |c: char| c.is_ascii_digit() || c == '.' || c == '-';
    let end = release.find(|c| !numbers(c)).unwrap_or(release.len());
    match release[..end].trim_end_matches('-') {
        "" => release,
        short => short,
    }
}

/// Columns of one width each, two spaces apart.
fn aligned(table: &[Vec<String>]) -> Vec<String> {
    let columns = table.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = table.iter().filter_map(|line| line.get(column));
        cells.map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |cells: &Vec<String>| {
        let padded = cells.iter().zip(&widths).map(|(c, w)| format!("  {c:<w$}"));
        padded.collect::<String>().trim_end().to_string()
    };
    table.iter().map(line).collect()
}

/// Lines below a title; without lines there is no title.
fn section(out: &mut Vec<String>, paint: Paint, title: &str, lines: Vec<String>) {
    if !lines.is_empty() {
        out.push(paint.bold(&format!("{title}:")));
    }
    out.extend(lines);
}

/// How often each reason was given for an outcome.
fn by_reason(report: &Report, outcome: Outcome) -> Vec<String> {
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, result) in report.results().filter(|(_, r)| r.outcome == outcome) {
        let reason = result.reason.as_deref().unwrap_or("no reason given");
        *reasons.entry(reason).or_default() += 1;
    }
    reasons
        .into_iter()
        .map(|(reason, count)| format!("  {count:>4}  {}", printable(reason)))
        .collect()
}

/// A line for each cell. What a verdict says in more lines (a guest's console) stands below the first that says it.
fn verdicts(cells: &[Cell]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut said = BTreeSet::new();
    for cell in cells {
        let on = match &cell.filesystem {
            Some(filesystem) if *filesystem != cell.backing => format!(" ({filesystem})"),
            _ => String::new(),
        };
        let verdict = cell.verdict();
        let (first, more) = verdict.split_once('\n').unwrap_or((&verdict, ""));
        lines.push(format!("  {}{on}: {}", cell.name(), printable(first)));
        if said.insert(more.to_string()) {
            lines.extend(more.lines().map(|l| format!("    {}", printable(l.trim()))));
        }
    }
    lines
}

/// The line that begins a run.
pub fn heading(report: &Report) -> String {
    let host = &report.host;
    let seed = report
        .seed
        .map(|s| format!(", seed {s}"))
        .unwrap_or_default();
    format!(
        "{}: kernel {} ({}), {} cpus, as {}{seed}\n",
        report.tool, host.kernel, host.arch, host.cpus, host.user
    )
}

/// A whole report as `run` would have printed it, without colour.
pub(super) fn render(report: &Report) -> String {
    let mut out = heading(report);
    for cell in &report.cells {
        if cell.status != CellStatus::Ran {
            continue;
        }
        for result in &cell.results {
            out.push_str(&result_line(Paint::Plain, &cell.name(), result));
            out.push('\n');
            if result.outcome.is_bad() {
                out.push_str(&failure_block(result));
            }
        }
    }
    out.push_str(&summary(Paint::Plain, report));
    out
}
