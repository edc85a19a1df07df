//! One HTML file without scripts: the verdicts, a table of scenarios and cells, and every result that is not a pass.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Report, text};
use crate::graphtest::event::Outcome;

const STYLE: &str = "body{font:14px/1.4 system-ui,sans-serif;margin:2em;max-width:80em}\
table{border-collapse:collapse}th,td{border:1px solid #ccc;padding:.15em .5em;text-align:left}\
td.pass{background:#dfd}td.fail,td.xpass{background:#fbb}td.skip{background:#eee}td.xfail{background:#fec}\
pre{background:#f6f6f6;padding:.5em;overflow:auto}";

/// Renders a report.
pub(super) fn render(report: &Report) -> String {
    let mut out = String::new();
    let host = &report.host;
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>graphtest</title><style>{STYLE}</style></head><body>\n\
         <h1>graphtest</h1>\n<p>{}, {}, kernel {} ({}, {} cpus){}</p>\n<p>{}</p>\n<ul>\n",
        escape(&report.tool),
        escape(&report.started),
        escape(&host.kernel),
        escape(&host.arch),
        host.cpus,
        if report.complete {
            ""
        } else {
            ", <b>not run to its end</b>"
        },
        escape(&text::counts(&report.totals)),
    );
    for cell in &report.cells {
        let _ = writeln!(
            out,
            "<li><b>{}</b>: {}</li>",
            escape(&cell.name()),
            escape(&cell.verdict())
        );
    }
    for stale in &report.stale {
        let _ = writeln!(out, "<li><b>stale known result</b>: {}</li>", escape(stale));
    }
    out.push_str("</ul>\n");
    table(report, &mut out);
    failures(report, &mut out);
    out.push_str("</body></html>\n");
    out
}

fn table(report: &Report, out: &mut String) {
    let mut rows: BTreeMap<String, Vec<Option<(Outcome, &str)>>> = BTreeMap::new();
    for (i, cell) in report.cells.iter().enumerate() {
        for result in &cell.results {
            let row = rows
                .entry(result.label())
                .or_insert_with(|| vec![None; report.cells.len()]);
            row[i] = Some((result.outcome, result.reason.as_deref().unwrap_or_default()));
        }
    }
    out.push_str("<table>\n<tr><th>scenario</th>");
    for cell in &report.cells {
        let _ = write!(out, "<th>{}</th>", escape(&cell.name()));
    }
    out.push_str("</tr>\n");
    for (label, cells) in rows {
        let _ = write!(out, "<tr><td>{}</td>", escape(&label));
        for cell in cells {
            let _ = match cell {
                None => write!(out, "<td></td>"),
                Some((o, why)) => {
                    write!(out, "<td class=\"{o}\" title=\"{}\">{o}</td>", escape(why))
                }
            };
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table>\n");
}

fn failures(report: &Report, out: &mut String) {
    for (cell, result) in report.results().filter(|(_, r)| r.outcome.is_bad()) {
        let title = format!("{} {}: {}", result.outcome, cell.name(), result.label());
        let body = text::failure_lines(result).join("\n");
        let _ = writeln!(
            out,
            "<h2>{}</h2>\n<pre>{}</pre>",
            escape(&title),
            escape(&body)
        );
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
