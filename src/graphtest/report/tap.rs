//! The Test Anything Protocol, version 14 (<https://testanything.org/tap-version-14-specification.html>).

use std::fmt::Write;

use super::Report;
use crate::graphtest::event::{CaseResult, CellStatus, Outcome};

/// Renders a report. The plan comes last, which the protocol allows and a report of an unfinished run needs.
pub(super) fn render(report: &Report) -> String {
    let mut out = String::from("TAP version 14\n");
    let mut number = 0;
    let mut point = |out: &mut String, ok: bool, name: &str, directive: &str| {
        number += 1;
        let word = if ok { "ok" } else { "not ok" };
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{word} {number} - {}{directive}", escape(name));
    };
    for cell in &report.cells {
        let reason = cell.reason.as_deref().unwrap_or("no reason given");
        match cell.status {
            CellStatus::Ran => {}
            CellStatus::Skipped => point(&mut out, true, &cell.name(), &directive("SKIP", reason)),
            CellStatus::Error => {
                point(&mut out, false, &cell.name(), "");
                block(&mut out, &[("message", reason)], &[]);
            }
        }
        for result in &cell.results {
            let name = format!("{}: {}", cell.name(), result.label());
            let reason = result.reason.as_deref().unwrap_or_default();
            match result.outcome {
                Outcome::Pass => point(&mut out, true, &name, ""),
                Outcome::Skip => point(&mut out, true, &name, &directive("SKIP", reason)),
                Outcome::XFail => point(&mut out, false, &name, &directive("TODO", reason)),
                Outcome::Fail | Outcome::XPass => {
                    point(&mut out, false, &name, "");
                    diagnose(&mut out, result);
                }
            }
        }
        for (what, lines) in [
            ("gives back what it made", &cell.left),
            ("leaves its filesystem whole", &cell.damage),
        ] {
            if !lines.is_empty() {
                let name = format!("{}: {what}", cell.name());
                point(&mut out, false, &name, "");
                block(&mut out, &[], lines);
            }
        }
    }
    for stale in &report.stale {
        point(&mut out, false, &format!("known results: {stale}"), "");
    }
    let _ = writeln!(out, "1..{number}");
    if !report.complete {
        out.push_str("Bail out! The run did not go to its end.\n");
    }
    out
}

fn diagnose(out: &mut String, result: &CaseResult) {
    let mut fields = vec![
        ("severity", result.level.as_str()),
        ("outcome", result.outcome.name()),
    ];
    fields.extend(result.reason.as_deref().map(|r| ("message", r)));
    fields.extend(result.location.as_deref().map(|l| ("at", l)));
    fields.extend(result.hint.as_deref().map(|h| ("hint", h)));
    fields.extend(result.kept.as_deref().map(|k| ("kept", k)));
    fields.extend(result.replay.as_deref().map(|r| ("again", r)));
    let mut detail = result.detail.clone();
    detail.extend(super::text::broken_rules(result));
    block(out, &fields, &detail);
}

/// A YAML block; every value is a JSON string, which YAML reads.
fn block(out: &mut String, fields: &[(&str, &str)], detail: &[String]) {
    let quoted = |s: &str| serde_json::Value::from(s).to_string();
    out.push_str("  ---\n");
    for (key, value) in fields {
        let _ = writeln!(out, "  {key}: {}", quoted(value));
    }
    if !detail.is_empty() {
        out.push_str("  detail:\n");
        for line in detail {
            let _ = writeln!(out, "    - {}", quoted(line));
        }
    }
    out.push_str("  ...\n");
}

fn directive(word: &str, reason: &str) -> String {
    format!(" # {word} {}", one_line(reason))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `#` begins a directive and `\` an escape.
fn escape(text: &str) -> String {
    one_line(text).replace('\\', "\\\\").replace('#', "\\#")
}
