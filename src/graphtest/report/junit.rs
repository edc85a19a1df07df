//! JUnit XML: a test suite for each cell, a test case for each result, skips with their reasons.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Report as Xml, TestCase, TestCaseStatus, TestSuite};

use super::{Cell, Report};
use crate::graphtest::event::{CaseResult, CellStatus, Outcome};

/// Renders a report.
pub(super) fn render(report: &Report) -> String {
    let mut xml = Xml::new("graphtest");
    xml.set_time(Duration::from_secs_f64(
        report.results().map(|(_, r)| r.seconds.max(0.0)).sum(),
    ));
    for cell in &report.cells {
        xml.add_test_suite(suite(report, cell));
    }
    if !report.stale.is_empty() {
        let mut suite = TestSuite::new("known results");
        suite.add_test_cases(report.stale.iter().map(|line| {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message("stale");
            TestCase::new(line.as_str(), status)
        }));
        xml.add_test_suite(suite);
    }
    // Serializing plain text cannot fail; quick-junit drops what XML cannot hold.
    xml.to_string()
        .unwrap_or_else(|e| format!("<!-- {e} -->\n"))
}

fn suite(report: &Report, cell: &Cell) -> TestSuite {
    let mut suite = TestSuite::new(cell.name());
    suite.add_property(("kernel", cell.kernel.as_str()));
    suite.add_property(("started", report.started.as_str()));
    suite.add_property(("verdict", cell.verdict().as_str()));
    if let Some(filesystem) = &cell.filesystem {
        suite.add_property(("filesystem", filesystem.as_str()));
    }
    suite.set_time(Duration::from_secs_f64(
        cell.results.iter().map(|r| r.seconds.max(0.0)).sum(),
    ));
    let reason = cell.reason.as_deref().unwrap_or("no reason given");
    match cell.status {
        CellStatus::Ran => {}
        CellStatus::Skipped => {
            suite.add_test_case(cell_case(cell, TestCaseStatus::skipped(), reason));
        }
        CellStatus::Error => {
            suite.add_test_case(cell_case(
                cell,
                TestCaseStatus::non_success(NonSuccessKind::Error),
                reason,
            ));
        }
    }
    for (kind, what, lines) in [
        (NonSuccessKind::Error, "left behind", &cell.left),
        (NonSuccessKind::Failure, "damaged", &cell.damage),
    ] {
        if !lines.is_empty() {
            let status = TestCaseStatus::non_success(kind);
            let message = format!("{what}: {}", lines.join("; "));
            suite.add_test_case(cell_case(cell, status, &message));
        }
    }
    suite.add_test_cases(cell.results.iter().map(|r| case(cell, r)));
    suite
}

/// A case that stands for the cell itself.
fn cell_case(cell: &Cell, mut status: TestCaseStatus, message: &str) -> TestCase {
    status.set_message(message);
    let mut case = TestCase::new("(the cell)", status);
    case.set_classname(cell.name());
    case
}

fn case(cell: &Cell, result: &CaseResult) -> TestCase {
    let reason = result.reason.as_deref().unwrap_or_default();
    let status = match result.outcome {
        Outcome::Pass => TestCaseStatus::success(),
        Outcome::Skip => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(reason);
            status
        }
        Outcome::XFail => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(format!("failed as known: {reason}"));
            status
        }
        Outcome::Fail | Outcome::XPass => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_type(result.outcome.name());
            status.set_message(reason);
            status.set_description(super::text::failure_lines(result).join("\n"));
            status
        }
    };
    let mut case = TestCase::new(result.label(), status);
    case.set_classname(cell.name());
    case.set_time(Duration::from_secs_f64(result.seconds.max(0.0)));
    case.add_property(("level", result.level.as_str()));
    case.add_property(("requirements", result.requirements.join(" ").as_str()));
    case
}
