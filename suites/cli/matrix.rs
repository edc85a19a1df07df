//! Matrix files, and known results of a matrix's cells.

use std::fs;

use serde_json::Value;

use super::bench::{BAD, Bench, GOOD, SKIPPED, root};

/// A matrix file with these cells; returns its path.
fn matrix(bench: &Bench, cells: &str) -> String {
    let path = bench.path("matrix.yaml");
    fs::write(&path, format!("matrix: m\nabout: x\ncells:\n{cells}\n")).unwrap();
    path.display().to_string()
}

#[test]
fn a_matrix_names_its_cells_and_what_they_must_not_skip() {
    root();
    let bench = Bench::new();
    let suite = bench.suite(&[("good", "must", GOOD), ("none", "must", SKIPPED)]);
    let run = |cells: &str| {
        let file = matrix(&bench, cells);
        bench.graphtest(&["run", "--suite", &suite, "--matrix", &file])
    };
    let good = run("- {targets: [vfs, overlay2], on: [tmpfs]}").must(0);
    assert!(good.out.contains("Summary: 2 pass"), "{}", good.out);
    // An optional cell that cannot be had is skipped, any other is an error that says which and why.
    let no = "dir:/proc";
    let skipped = run(&format!(
        "- {{targets: vfs, on: tmpfs}}\n- {{targets: vfs, on: '{no}', optional: true}}"
    ));
    let skipped = skipped.must(0);
    let why = "make a directory in /proc";
    assert!(
        skipped
            .out
            .contains(&format!("vfs on {no}: skipped: {why}")),
        "{}",
        skipped.out
    );
    let missing = run(&format!("- {{targets: vfs, on: [tmpfs, '{no}']}}")).must(3);
    assert!(
        missing
            .out
            .contains(&format!("vfs on {no}: could not be judged: {why}")),
        "{}",
        missing.out
    );
    let required = run("- {targets: vfs, on: tmpfs, require: [probe/none]}").must(1);
    assert!(
        required.out.contains("required here, but skipped"),
        "{}",
        required.out
    );
    let wrong = run("- {targets: vfs, on: tmpfs, jobs: 3}").must(2);
    assert!(wrong.err.contains("matrix.yaml:4: "), "{}", wrong.err);
    assert_eq!((bench.left(), bench.registered()), (Vec::new(), 0));
}

#[test]
fn the_jobs_of_a_matrix_are_its_cells_once_each() {
    root();
    let bench = Bench::new();
    let suite = bench.suite(&[("good", "must", GOOD)]);
    let file = matrix(
        &bench,
        "- {targets: [vfs, overlay, overlay2], on: [tmpfs, dir]}",
    );
    let jobs = bench
        .graphtest(&["matrix", &file, "--format", "github", "--shards", "4"])
        .must(0);
    assert_eq!(jobs.out.lines().count(), 1);
    let jobs: Value = serde_json::from_str(&jobs.out).unwrap();
    let mut parts = Vec::new();
    for (i, job) in jobs["include"].as_array().unwrap().iter().enumerate() {
        let report = bench.path(&format!("{i}.json")).display().to_string();
        let wanted = format!("json={report}");
        let words = job["args"].as_str().unwrap().split(' ');
        let mut args = vec!["run", "--suite", &suite, "--report", &wanted];
        args.extend(words);
        bench.graphtest(&args).must(0);
        parts.push(report);
    }
    assert_eq!(parts.len(), 4);
    let merge = |parts: &[String]| {
        let words = parts.iter().map(String::as_str);
        let args: Vec<&str> = ["report", "merge"].into_iter().chain(words).collect();
        bench.graphtest(&args)
    };
    let merged: Value = serde_json::from_str(&merge(&parts).must(0).out).unwrap();
    assert_eq!(merged["totals"]["pass"], 6);
    assert!(merge(&parts[1..]).must(2).err.contains("a hole: part "));
    let twice = [&parts[..], &parts[..1]].concat();
    assert!(merge(&twice).must(2).err.contains("an overlap: "));
    let each = bench.graphtest(&["matrix", &file]).must(0);
    let each: Value = serde_json::from_str(&each.out).unwrap();
    assert_eq!(each.as_array().unwrap().len(), 6);
    let many = ["matrix", &file, "--shards", "7"];
    assert!(bench.graphtest(&many).must(2).err.contains("only 6 cells"));
}

#[test]
fn known_results_that_do_nothing_fail_the_run() {
    let bench = Bench::new();
    let suite = bench.suite(&[("bad", "must", BAD)]);
    let known = bench.path("known.yaml").display().to_string();
    let line = |scenario: &str, more: &str| {
        format!("- {{scenario: {scenario}, reason: x, link: L{more}}}\n")
    };
    let run = |text: String| {
        fs::write(&known, text).unwrap();
        bench.graphtest(&[
            "run", "--suite", &suite, "--target", "vfs", "--on", "dir", "--known", &known,
        ])
    };
    let fixed = run(line("probe/bad", ", fixed: Linux 9")).must(0);
    assert!(
        fixed.out.contains("known: x (L; mended by Linux 9)"),
        "{}",
        fixed.out
    );
    run(line("probe/bad", ", kernels: '<2'")).must(1);
    run(line("probe/bad", ", status: {Backing Filesystem: '=none'}")).must(1);
    let stale = run(line("probe/bad", "") + &line("probe/gone", "")).must(1);
    assert!(
        stale.out.contains("Stale known results:")
            && stale
                .out
                .contains("known.yaml:2: `probe/gone` matches no scenario"),
        "{}",
        stale.out
    );
}
