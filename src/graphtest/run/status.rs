//! Exit statuses: how a run ended, in one number.

use crate::graphtest::event::CellStatus;
use crate::graphtest::report::Report;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Every scenario that ran passed, or failed as known.
    Good = 0,
    /// A scenario failed, a known failure passed, a required one was skipped, or a known result is stale.
    Failed = 1,
    /// The command line or a file is wrong, or a filter selects nothing; nothing was run.
    Usage = 2,
    /// A cell asked for by name could not be provisioned, no scenario was executed, or the harness itself failed.
    Harness = 3,
    /// Results are good, but something was left behind.
    Left = 4,
    /// Interrupted; everything provisioned was given back first.
    Interrupted = 130,
}

impl Status {
    /// The number.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The status of a run. An interrupt outweighs everything, then what keeps the results from being whole, then failures, then
    /// leftovers.
    pub fn of(report: &Report, interrupted: bool) -> Self {
        let totals = report.totals;
        if interrupted {
            Self::Interrupted
        } else if totals.executed() == 0
            || report.cells.iter().any(|c| c.status == CellStatus::Error)
        {
            Self::Harness
        } else if totals.fail + totals.xpass > 0
            || !report.stale.is_empty()
            || report.cells.iter().any(|c| !c.damage.is_empty())
        {
            Self::Failed
        } else if report.cells.iter().any(|c| !c.left.is_empty()) {
            Self::Left
        } else {
            Self::Good
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case(json!({"pass": 1}), "ran", json!([]), false, Status::Good)]
    #[case(json!({"pass": 1, "skip": 3}), "ran", json!([]), false, Status::Good)]
    #[case(json!({"xfail": 1}), "skipped", json!([]), false, Status::Good)]
    #[case(json!({"pass": 5, "fail": 1}), "ran", json!([]), false, Status::Failed)]
    #[case(json!({"pass": 5, "xpass": 1}), "ran", json!(["x"]), false, Status::Failed)]
    #[case(json!({"skip": 5}), "ran", json!([]), false, Status::Harness)]
    #[case(json!({}), "skipped", json!([]), false, Status::Harness)]
    #[case(json!({"pass": 5, "fail": 1}), "error", json!([]), false, Status::Harness)]
    #[case(json!({"pass": 1}), "ran", json!(["/x: still mounted"]), false, Status::Left)]
    #[case(json!({"pass": 1, "fail": 1}), "error", json!([]), true, Status::Interrupted)]
    fn runs_end_as_the_help_says(
        #[case] counts: serde_json::Value,
        #[case] cell: &str,
        #[case] left: serde_json::Value,
        #[case] interrupted: bool,
        #[case] expected: Status,
    ) {
        let mut totals = json!({"pass": 0, "fail": 0, "skip": 0, "xfail": 0, "xpass": 0});
        for (key, count) in counts.as_object().unwrap() {
            totals[key] = count.clone();
        }
        let report = json!({
            "version": 1, "tool": "graphtest", "started": "", "seed": null, "totals": totals,
            "host": {"kernel": "6.1.0", "arch": "x86_64", "cpus": 1},
            "cells": [{"target": "vfs", "backing": "dir", "kernel": "6.1.0", "status": cell, "reason": null, "left": left, "results": []}],
        });
        let report = Report::from_json(&report.to_string()).unwrap();
        assert_eq!(Status::of(&report, interrupted), expected);
    }
}
