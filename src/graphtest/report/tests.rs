use std::os::unix::fs::MetadataExt;

use super::*;
use crate::graphtest::event::{
    CaseResult, CellEnd, CellStart, CellStatus, Host, Outcome, RunStart,
};
use crate::graphtest::report::text::Paint;

fn result(id: &str, level: &str, outcome: Outcome, reason: Option<&str>) -> CaseResult {
    CaseResult {
        id: id.to_string(),
        requirements: vec!["WHITEOUT-1".to_string()],
        level: level.to_string(),
        outcome,
        reason: reason.map(str::to_string),
        seconds: 0.0125,
        timed_out: false,
        case: None,
        seed: None,
        replay: Some(format!("graphtest run --target overlay2 --on tmpfs {id}")),
        location: None,
        detail: Vec::new(),
        sentence: None,
        contract: Vec::new(),
        hint: None,
        kept: None,
    }
}

fn failure() -> CaseResult {
    CaseResult {
        location: Some("suites/whiteouts.yaml:32".to_string()),
        detail: vec![
            "a <b> & \"c\": mode 0755 expected, 0700 found".to_string(),
            "d/e\u{1b}[31m: missing".to_string(),
        ],
        sentence: Some("A file removed in a layer stays away.".to_string()),
        contract: vec!["WHITEOUT-1: A file removed in a layer is gone from its mount.".to_string()],
        hint: Some("Linux 6.2 mends it".to_string()),
        kept: Some("/tmp/kept".to_string()),
        case: Some("deep #1".to_string()),
        ..result(
            "whiteouts/delete-lower-file",
            "must",
            Outcome::Fail,
            Some("tree: top: 2 differences"),
        )
    }
}

/// Every kind of result and of cell, as the events of a run.
fn events() -> Vec<Event> {
    let cell = |target: &str, backing: &str| CellStart {
        target: target.to_string(),
        backing: backing.to_string(),
        kernel: "6.1.0".to_string(),
    };
    let started = |cell, planned| Event::CellStarted {
        cell,
        filesystem: "ext4".to_string(),
        not_claimed: vec!["id-maps".to_string()],
        driver: [("Tool".to_string(), "1.9".to_string())].into(),
        planned,
    };
    let finished = |cell, status, reason: Option<&str>, left: &[&str]| Event::CellFinished {
        cell,
        end: CellEnd {
            status,
            reason: reason.map(str::to_string),
            left: left.iter().map(|l| (*l).to_string()).collect(),
            ..CellEnd::default()
        },
    };
    let case = |cell, result| Event::CaseFinished { cell, result };
    vec![
        Event::RunStarted(RunStart {
            tool: "graphtest 0.1.0".to_string(),
            started: "2026-01-02T03:04:05Z".to_string(),
            seed: Some(42),
            host: Host {
                kernel: "6.1.0".to_string(),
                arch: "x86_64".to_string(),
                cpus: 2,
                user: "root".to_string(),
            },
            part: None,
            cells: vec![
                cell("overlay2", "dir"),
                cell("vfs", "dir"),
                cell("overlay", "tmpfs"),
                cell("vfs", "dir:/no"),
            ],
        }),
        started(0, 5),
        Event::CaseStarted {
            cell: 0,
            label: "life/create".to_string(),
        },
        case(0, result("life/create", "must", Outcome::Pass, None)),
        case(0, failure()),
        case(
            0,
            result(
                "life/quota",
                "should",
                Outcome::Skip,
                Some("needs quota, which overlay2 does not claim"),
            ),
        ),
        case(
            0,
            result(
                "life/known",
                "should",
                Outcome::XFail,
                Some("known: moby#1"),
            ),
        ),
        case(
            0,
            result(
                "life/mended",
                "should",
                Outcome::XPass,
                Some("passes although known to fail: moby#2"),
            ),
        ),
        finished(
            0,
            CellStatus::Ran,
            None,
            &["/x/.graphtest-1: still mounted"],
        ),
        started(1, 1),
        case(1, result("life/create", "must", Outcome::Pass, None)),
        finished(1, CellStatus::Ran, None, &[]),
        finished(
            2,
            CellStatus::Skipped,
            Some("overlay: no overlayfs in this kernel"),
            &[],
        ),
        finished(
            3,
            CellStatus::Error,
            Some("make a directory in /no: not found"),
            &[],
        ),
        Event::RunFinished {
            interrupted: false,
            left: vec!["/x/.graphtest-1".to_string()],
            stale: vec!["known/x.yaml:3: `a/b` matches no scenario".to_string()],
        },
    ]
}

fn folded(events: &[Event]) -> Report {
    let mut report = Report::begin(&events[0]).unwrap();
    events.iter().for_each(|e| report.take(e));
    report
}

#[test]
fn reports_look_as_they_are_kept_in_fixtures() {
    let report = folded(&events());
    insta::with_settings!({
        snapshot_path => "../../../fixtures/reports",
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, {
        for kind in [Kind::Json, Kind::Junit, Kind::Tap, Kind::Html, Kind::Text] {
            insta::assert_snapshot!(kind.to_string(), kind.render(&report));
        }
    });
}

#[test]
fn json_is_read_back_as_it_was_and_other_versions_are_refused() {
    let report = folded(&events());
    let json = Kind::Json.render(&report);
    assert_eq!(Report::from_json(&json).unwrap(), report);
    let later = json.replacen("\"version\": 1", "\"version\": 2", 1);
    assert!(Report::from_json(&later).unwrap_err().contains("version 2"));
    assert!(Report::from_json("{").is_err());
}

#[test]
fn a_crash_at_any_event_leaves_a_valid_report_of_all_cells() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.json");
    let mut file = File::new(format!("json={}", path.display()).parse().unwrap());
    let events = events();
    let mut report = Report::begin(&events[0]).unwrap();
    for event in &events {
        report.take(event);
        file.update(&report, event).unwrap();
        let found = Report::from_json(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(found.cells.len(), 4);
        assert_eq!(found.complete, matches!(event, Event::RunFinished { .. }));
    }
    assert_eq!(
        Report::from_json(&std::fs::read_to_string(&path).unwrap()).unwrap(),
        report
    );
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        1,
        "temporary files are gone"
    );
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
}

#[test]
fn a_report_that_cannot_be_written_names_its_file() {
    let events = events();
    let mut file = File::new("tap=/no/such/dir/r.tap".parse().unwrap());
    let error = file.update(&folded(&events), &events[0]).unwrap_err();
    assert!(error.to_string().contains("/no/such/dir/r.tap"), "{error}");
    assert!("tap".parse::<Wanted>().is_err());
    assert!("pdf=x".parse::<Wanted>().unwrap_err().contains("junit"));
}

#[test]
fn the_block_of_a_failure_is_short_however_long_the_difference() {
    let mut long = failure();
    long.detail = (0..500).map(|i| format!("path{i}: missing")).collect();
    long.contract = (0..50).map(|i| format!("LIFE-{i}: a sentence")).collect();
    let block = text::failure_block(&long);
    assert!(block.lines().count() <= 20, "{block}");
    assert!(block.contains("488 lines more"));
    assert!(
        block
            .lines()
            .last()
            .unwrap()
            .contains("again: graphtest run")
    );
    assert!(
        !text::failure_block(&failure()).contains('\u{1b}'),
        "a driver's text cannot write escapes to the terminal"
    );
}

#[test]
fn long_lines_are_cut_in_text_and_whole_in_json() {
    let mut long = failure();
    let end = "the end";
    long.detail = vec![format!("{}{end}", "é".repeat(500))];
    long.kept = Some("k".repeat(300));
    let lines = text::failure_lines(&long);
    let cut = lines.iter().find(|l| l.starts_with('é')).unwrap();
    assert_eq!(cut.chars().count(), 201);
    assert!(cut.ends_with('…'), "{cut}");
    assert!(
        lines.contains(&format!("kept: {}", "k".repeat(300))),
        "a path that is cut is of no use"
    );
    let whole = serde_json::to_string(&long).unwrap();
    assert!(whole.contains(end), "{whole}");
}

#[test]
fn the_verdict_counts_what_held() {
    let report = folded(&events());
    let verdicts: Vec<_> = report.cells.iter().map(Cell::verdict).collect();
    assert_eq!(verdicts[0], "does not conform: 1 must, 1 should");
    assert_eq!(
        verdicts[1],
        "conforms (1 must, 0 should, 0 may; not claimed: id-maps)"
    );
    assert_eq!(verdicts[2], "skipped: overlay: no overlayfs in this kernel");
    assert_eq!(
        verdicts[3],
        "could not be judged: make a directory in /no: not found"
    );
}

#[test]
fn a_console_stands_once_below_the_verdicts_that_it_explains() {
    let mut report = folded(&events());
    for cell in &mut report.cells[1..] {
        cell.status = CellStatus::Error;
        cell.reason = Some("the guest died:\n  panic\n  by \u{1b}[1m".to_string());
    }
    let summary = text::summary(text::Paint::Plain, &report);
    let (_, verdicts) = summary.split_once("Verdict:\n").unwrap();
    let lines: Vec<_> = verdicts.lines().skip(1).take(5).collect();
    assert_eq!(
        lines,
        [
            "  vfs on dir (ext4): could not be judged: the guest died:",
            "    panic",
            "    by \\u{1b}[1m",
            "  overlay on tmpfs: could not be judged: the guest died:",
            "  vfs on dir:/no: could not be judged: the guest died:",
        ]
    );
}

#[test]
fn several_kernels_end_with_a_table() {
    let of = |kernel: &str| {
        let mut events = events();
        if let Event::RunStarted(start) = &mut events[0] {
            start
                .cells
                .iter_mut()
                .for_each(|c| c.kernel = kernel.into());
        }
        folded(&events)
    };
    let one = of("6.1.0-56-cloud-amd64");
    assert!(!text::summary(Paint::Plain, &one).contains("By kernel"));
    let mut both = of("5.10.0-46-cloud-amd64");
    both.cells.truncate(2);
    both.cells.extend(one.cells);
    let said = text::summary(Paint::Plain, &both);
    let (_, table) = said.split_once("By kernel:\n").unwrap();
    let lines: Vec<&str> = table.lines().take(5).collect();
    let expected = [
        "                    5.10.0-46         6.1.0-56",
        "  overlay2 on dir   1 must, 1 should  1 must, 1 should",
        "  vfs on dir        conforms          conforms",
        "  overlay on tmpfs  -                 skipped",
        "  vfs on dir:/no    -                 error",
    ];
    assert_eq!(lines, expected, "{said}");
}
