//! The command line from outside: the binary is run as a person runs it, and judged by what it prints, writes, leaves and returns.
//!
//! Most tests mount, and need root: `sudo -E env PATH="$PATH" cargo test --test cli`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use rstest::rstest;
use serde_json::Value;

#[path = "cli/backings.rs"]
mod backings;
#[path = "cli/bench.rs"]
mod bench;
#[path = "cli/leaving.rs"]
mod leaving;
#[path = "cli/matrix.rs"]
mod matrix;
#[path = "cli/plugin.rs"]
mod plugin;

use bench::{BAD, Bench, ENDLESS, GOOD, Run, SKIPPED, outcomes, report, root};

#[rstest]
#[case(&["run", "--no-such"], "--no-such")]
#[case(&["no-such"], "no-such")]
#[case(&[], "Usage")]
#[case(&["run", "--jobs", "0"], "--jobs")]
#[case(&["run", "--timeout", "soon"], "expected a duration")]
#[case(&["run", "--timeout", "0s"], "more than nothing")]
#[case(&["run", "--repeat", "0"], "--repeat")]
#[case(&["run", "--shard", "3/2"], "I/N")]
#[case(&["run", "--level", "maybe"], "must, should or may")]
#[case(&["run", "--report", "pdf=x"], "junit")]
#[case(&["run", "--report", "json"], "KIND=PATH")]
#[case(&["run", "--quiet", "--verbose"], "--verbose")]
#[case(&["run", "--target", "overlay3"], "unknown target `overlay3`; known: ")]
#[case(&["run", "--kernel", "2.4"], "unknown kernel `2.4`; known: 5.10, 6.1")]
#[case(&["run", "--kernel", "/no/bzImage"], "/no/bzImage")]
#[case(&["vm", "fetch", "2.4"], "unknown kernel `2.4`")]
#[case(&["run", "--on", "floppy"], "unknown backing `floppy`; known: dir")]
#[case(&["run", "--on", "dir:"], "wants a path")]
#[case(&["run", "no-such-scenario"], "`no-such-scenario` selects no scenario")]
#[case(&["run", "a["], "not a glob")]
#[case(&["run", "--tag", "no-such-tag"], "no-such-tag")]
#[case(&["run", "--suite", "/no/such.yaml"], "/no/such.yaml")]
#[case(&["run", "--known", "/no/known.yaml"], "/no/known.yaml")]
#[case(&["run", "--require", "/no/required.txt"], "/no/required.txt")]
#[case(&["run", "--failed", "/no/report.json"], "/no/report.json")]
#[case(&["report", "render", "/no/report.json"], "/no/report.json")]
#[case(&["run", "--matrix", "/no/matrix.yaml"], "/no/matrix.yaml")]
#[case(&["run", "--matrix", "m.yaml", "--on", "dir"], "cannot be used with")]
#[case(&["matrix", "/no/matrix.yaml"], "/no/matrix.yaml")]
#[case(&["list", "spoons"], "spoons")]
fn what_makes_no_sense_is_said_and_nothing_is_run(#[case] args: &[&str], #[case] says: &str) {
    let bench = Bench::new();
    let run = bench.graphtest(args).must(2);
    assert!(run.err.contains(says), "{}", run.err);
    assert_eq!(run.out, "");
    assert_eq!((bench.left(), bench.registered()), (Vec::new(), 0));
}

#[test]
fn a_malformed_scenario_is_located_and_nothing_is_run() {
    let bench = Bench::new();
    let suite = bench.suite(&[("typo", "must", "steps:\n      - creat: a")]);
    let run = bench.graphtest(&["run", "--suite", &suite]).must(2);
    assert!(
        run.err.contains("probe.yaml:11") && run.err.contains("creat"),
        "{}",
        run.err
    );
    fs::write(&suite, "suite: [").unwrap();
    assert!(
        bench
            .graphtest(&["list", "scenarios", "--suite", &suite])
            .must(2)
            .err
            .contains("probe.yaml:")
    );
}

#[test]
fn a_good_run_prints_one_line_a_result_and_a_verdict() {
    let bench = Bench::new();
    let suite = bench.suite(&[("good", "must", GOOD), ("none", "should", SKIPPED)]);
    let json = bench.path("r.json");
    let wanted = format!("json={}", json.display());
    let args = [
        "run", "--suite", &suite, "--target", "vfs", "--on", "dir", "--report", &wanted,
    ];
    let run = bench.graphtest(&args).must(0);
    let line = run.out.lines().find(|l| l.starts_with("PASS")).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(
        (words.len(), &words[2..]),
        (6, &["vfs", "on", "dir", "probe/good"][..]),
        "{line}"
    );
    assert!(
        run.out.contains("SKIP ")
            && run
                .out
                .contains("Summary: 1 pass, 0 fail, 1 skip, 0 xfail, 0 xpass")
    );
    assert!(
        run.out
            .contains("conforms (1 must, 0 should, 0 may; 1 skipped"),
        "{}",
        run.out
    );
    assert!(
        !run.out.contains('\u{1b}') && !run.err.contains('\u{1b}'),
        "no escapes in a pipe"
    );
    assert_eq!((bench.left(), bench.registered()), (Vec::new(), 0));
    let report = report(&json);
    assert_eq!(
        (&report["version"], &report["complete"]),
        (&1.into(), &true.into())
    );
    assert_eq!(report["totals"]["skip"], 1);
    assert_eq!(report["cells"][0]["status"], "ran");
    let first = &report["cells"][0]["results"][0];
    assert_eq!(
        (&first["id"], &first["level"]),
        (&"probe/good".into(), &"must".into())
    );
}

#[test]
fn a_failure_is_located_and_its_command_fails_again() {
    let bench = Bench::new();
    let suite = bench.suite(&[("good", "must", GOOD), ("bad", "must", BAD)]);
    let json = bench.path("r.json");
    let wanted = format!("json={}", json.display());
    let args = [
        "run", "--suite", &suite, "--target", "vfs", "--on", "dir", "--quiet", "--report", &wanted,
    ];
    let run = bench.graphtest(&args).must(1);
    assert!(
        run.out.contains("FAIL") && run.out.contains("probe.yaml:"),
        "{}",
        run.out
    );
    assert!(run.out.contains("does not conform: 1 must"), "{}", run.out);
    assert!(
        !run.out.contains("PASS"),
        "quiet means failures only:\n{}",
        run.out
    );
    let again = report(&json)["cells"][0]["results"]
        .as_array()
        .unwrap()
        .iter()
        .find_map(|r| (r["outcome"] == "fail").then(|| r["replay"].as_str().unwrap().to_string()));
    let mut shell = bench.command(Path::new("sh"), &["-c", &again.unwrap()]);
    let run = Run::of(shell.output().unwrap()).must(1);
    assert!(run.out.contains("Summary: 0 pass, 1 fail"), "{}", run.out);

    let failed = json.display().to_string();
    let run = bench
        .graphtest(&["run", "--suite", &suite, "--failed", &failed])
        .must(1);
    assert!(
        run.out.contains("Summary: 0 pass, 1 fail"),
        "only what failed is run again:\n{}",
        run.out
    );
    let saved = bench
        .graphtest(&[
            "baseline",
            "save",
            &failed,
            "--link",
            "https://example.org/1",
        ])
        .must(0);
    let known = bench.path("known.yaml");
    fs::write(&known, saved.out).unwrap();
    let known = known.display().to_string();
    let args = [
        "run", "--suite", &suite, "--target", "vfs", "--on", "dir", "--known", &known,
    ];
    assert!(bench.graphtest(&args).must(0).out.contains("XFAIL"));
    bench.suite(&[("good", "must", GOOD), ("bad", "must", GOOD)]);
    assert!(
        bench.graphtest(&args).must(1).out.contains("XPASS"),
        "a known failure that passes is told"
    );
}

#[test]
fn what_is_for_another_layout_is_skipped_before_its_options_are_given() {
    let bench = Bench::new();
    let options = "needs: ['layout:overlay2']\n    steps: [{home: home, opts: [overlay2.size=1M]}, {create: a}]";
    let suite = bench.suite(&[("good", "must", GOOD), ("options", "must", options)]);
    let vfs = ["run", "--suite", &suite, "--target", "vfs", "--on", "dir"];
    let out = bench.graphtest(&vfs).must(0).out;
    assert!(
        out.contains("needs the on-disk layout of overlay2"),
        "{out}"
    );
}

#[test]
fn levels_and_requirements_decide_what_counts() {
    let bench = Bench::new();
    let suite = bench.suite(&[("bad", "may", BAD), ("none", "must", SKIPPED)]);
    let vfs = ["run", "--suite", &suite, "--target", "vfs", "--on", "dir"];
    assert!(
        bench.graphtest(&vfs).must(0).out.contains("XFAIL"),
        "a may never counts against a driver"
    );
    let required = bench.path("required.txt");
    fs::write(&required, "# these\nprobe/no*\n").unwrap();
    let required = required.display().to_string();
    let run = bench
        .graphtest(&[&vfs[..], &["--require", &required]].concat())
        .must(1);
    assert!(
        run.out.contains("required here, but skipped"),
        "{}",
        run.out
    );
    bench
        .graphtest(&[&vfs[..], &["--level", "must"]].concat())
        .must(3);
}

#[test]
fn a_cell_that_cannot_be_had_is_an_error_only_when_asked_for() {
    root();
    let bench = Bench::new();
    let suite = bench.suite(&[("good", "must", GOOD)]);
    let run = bench
        .graphtest(&[
            "run",
            "--suite",
            &suite,
            "--target",
            "vfs",
            "--on",
            "dir:/proc",
        ])
        .must(3);
    assert!(
        run.out
            .contains("could not be judged: make a directory in /proc"),
        "{}",
        run.out
    );
    let mut command = bench.command(
        Path::new(env!("CARGO_BIN_EXE_graphtest")),
        &["run", "--suite", &suite],
    );
    let run = Run::of(command.current_dir("/proc").output().unwrap()).must(0);
    assert!(
        run.out
            .contains("vfs on dir: skipped: make a directory in /proc"),
        "{}",
        run.out
    );
    assert!(run.out.contains("vfs on tmpfs: conforms"), "{}", run.out);
}

#[test]
fn a_driver_that_a_backing_does_not_suit_is_an_error_only_when_both_are_named() {
    root();
    // A thread of its own for its mount namespace, which the runs inherit.
    let judged = std::thread::spawn(|| {
        graphtest::sys::ns::enter_private_mount_ns().unwrap();
        let bench = Bench::new();
        let suite = bench.suite(&[("good", "must", GOOD)]);
        let [lower, upper, work, merged] = ["lower", "upper", "workdir", "merged"].map(|name| {
            fs::create_dir(bench.path(name)).unwrap();
            bench.path(name)
        });
        let mut data = Vec::new();
        for (key, path) in [
            ("lowerdir=", &lower),
            (",upperdir=", &upper),
            (",workdir=", &work),
        ] {
            data.extend_from_slice(key.as_bytes());
            data.extend_from_slice(&graphtest::sys::mount::escape_overlay_path(path));
        }
        let flags = graphtest::sys::mount::MountFlags::empty();
        graphtest::sys::mount::mount(Path::new("overlay"), &merged, "overlay", flags, &data)
            .unwrap();
        let on = format!("dir:{}", merged.display());
        let run = bench
            .graphtest(&["run", "--suite", &suite, "--on", &on])
            .must(0);
        assert!(
            run.out.contains("overlay2 on dir") && run.out.contains(": skipped: "),
            "{}",
            run.out
        );
        assert!(run.out.contains("(overlay): conforms"), "{}", run.out);
        bench
            .graphtest(&[
                "run", "--suite", &suite, "--on", &on, "--target", "overlay2",
            ])
            .must(3);
        graphtest::sys::mount::umount(&merged).unwrap();
    });
    judged.join().unwrap();
}

#[test]
fn shards_and_repeats_add_up() {
    let bench = Bench::new();
    let scenarios: Vec<(String, &str)> = (0..5)
        .map(|i| (format!("s{i}"), if i == 3 { BAD } else { GOOD }))
        .collect();
    let scenarios: Vec<(&str, &str, &str)> = scenarios
        .iter()
        .map(|(id, rest)| (id.as_str(), "must", *rest))
        .collect();
    let suite = bench.suite(&scenarios);
    let mut parts = Vec::new();
    for part in ["1/2", "2/2", "1/1"] {
        let path = bench.path(&format!("{}.json", part.replace('/', "-")));
        let wanted = format!("json={}", path.display());
        let args = [
            "run", "--suite", &suite, "--target", "vfs", "--on", "dir", "--shard", part,
            "--report", &wanted,
        ];
        assert!([0, 1].contains(&bench.graphtest(&args).status));
        parts.push(path.display().to_string());
    }
    let merged = bench
        .graphtest(&["report", "merge", &parts[0], &parts[1]])
        .must(0);
    let merged: Value = serde_json::from_str(&merged.out).unwrap();
    let whole = report(Path::new(&parts[2]));
    assert_eq!(outcomes(&merged), outcomes(&whole));
    assert_eq!(outcomes(&whole).len(), 5);
    let args = [
        "run", "--suite", &suite, "--target", "vfs", "--on", "dir", "--repeat", "3", "s1",
    ];
    assert!(
        bench
            .graphtest(&args)
            .must(0)
            .out
            .contains("Summary: 3 pass")
    );
    let args = [
        "run",
        "--suite",
        &suite,
        "--target",
        "vfs",
        "--on",
        "dir",
        "--fail-fast",
        "--jobs",
        "1",
    ];
    assert!(
        bench
            .graphtest(&args)
            .must(1)
            .out
            .contains("Summary: 3 pass, 1 fail")
    );
    for format in ["junit", "tap", "html", "text", "json"] {
        assert!(
            bench
                .graphtest(&["report", "render", &parts[2], "--format", format])
                .must(0)
                .out
                .contains("probe/s3")
        );
    }
    assert!(
        bench
            .graphtest(&["baseline", "diff", &parts[2], &parts[2]])
            .must(0)
            .out
            .contains("still failing: 1")
    );
}

#[test]
fn a_scenario_past_its_time_fails_where_it_is() {
    let bench = Bench::new();
    let suite = bench.suite(&[("endless", "must", ENDLESS), ("good", "must", GOOD)]);
    let args = [
        "run",
        "--suite",
        &suite,
        "--target",
        "vfs",
        "--on",
        "dir",
        "--jobs",
        "1",
        "--timeout",
        "300ms",
    ];
    let run = bench.graphtest(&args).must(1);
    assert!(run.out.contains("timed out after 300ms"), "{}", run.out);
    assert!(
        run.out.contains("at ") && run.out.contains("probe.yaml:"),
        "{}",
        run.out
    );
    assert!(
        run.out.contains("PASS"),
        "the next scenario runs:\n{}",
        run.out
    );
}

#[test]
fn an_ordinary_user_runs_what_can_be_run() {
    root();
    let bench = Bench::new();
    // The target directory may be one that only root can enter.
    let program = bench.path("graphtest");
    fs::copy(env!("CARGO_BIN_EXE_graphtest"), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let suite = bench.suite(&[
        ("good", "must", GOOD),
        ("rooted", "must", "needs: [root]\n    steps: [{create: a}]"),
    ]);
    let json = bench.path("user/r.json");
    for dir in ["work", "state", "user"] {
        let dir = bench.path(dir);
        fs::create_dir_all(&dir).unwrap();
        std::os::unix::fs::chown(&dir, Some(12345), Some(12345)).unwrap();
    }
    let wanted = format!("json={}", json.display());
    let mut command = bench.command(&program, &["run", "--suite", &suite, "--report", &wanted]);
    let run = Run::of(command.uid(12345).gid(12345).output().unwrap()).must(0);
    assert!(
        run.out.contains("vfs on dir") && run.out.contains(": conforms (1 must"),
        "{}",
        run.out
    );
    assert!(run.out.contains("needs root: "), "{}", run.out);
    let user = report(&json)["host"]["user"].as_str().unwrap().to_string();
    assert!(
        ["root of a user namespace", "ordinary user"].contains(&user.as_str()),
        "{user}"
    );
    assert_eq!((bench.left(), bench.registered()), (Vec::new(), 0));
}

#[test]
fn a_report_to_standard_output_is_written_once() {
    let bench = Bench::new();
    let suite = bench.suite(&[("good", "must", GOOD), ("better", "must", GOOD)]);
    let args = ["run", "--suite", &suite, "--target", "vfs", "--on", "dir"];
    let args = [&args[..], &["--quiet", "--report", "tap=/dev/stdout"]].concat();
    let run = bench.graphtest(&args).must(0);
    assert_eq!(run.out.matches("TAP version 14").count(), 1, "{}", run.out);
    // As a file: what the run itself prints stays, and the name is still the link that it was.
    let out = bench.path("out");
    let mut command = bench.command(Path::new(env!("CARGO_BIN_EXE_graphtest")), &args);
    let file = fs::File::create(&out).unwrap();
    assert!(command.stdout(file).status().unwrap().success());
    let text = fs::read_to_string(&out).unwrap();
    assert_eq!(text.matches("TAP version 14").count(), 1, "{text}");
    assert!(text.contains("Summary: 2 pass"), "{text}");
    assert!(fs::symlink_metadata("/dev/stdout").unwrap().is_symlink());
}

#[test]
fn a_report_that_cannot_be_written_is_status_3() {
    let bench = Bench::new();
    let suite = bench.suite(&[("good", "must", GOOD)]);
    let args = [
        "run",
        "--suite",
        &suite,
        "--target",
        "vfs",
        "--on",
        "dir",
        "--report",
        "json=/no/such/r.json",
    ];
    assert!(
        bench
            .graphtest(&args)
            .must(3)
            .err
            .contains("/no/such/r.json")
    );
}

#[test]
fn what_there_is_can_be_asked_for() {
    let bench = Bench::new();
    for what in [
        "drivers",
        "backings",
        "scenarios",
        "requirements",
        "capabilities",
        "mutants",
    ] {
        let text = bench.graphtest(&["list", what]).must(0).out;
        let json: Value = serde_json::from_str(
            &bench
                .graphtest(&["list", what, "--format", "json"])
                .must(0)
                .out,
        )
        .unwrap();
        assert_eq!(
            json.as_array().unwrap().len(),
            text.lines().count(),
            "{what}"
        );
        assert!(!text.is_empty(), "{what}");
    }
    let schema: Value = serde_json::from_str(&bench.graphtest(&["schema"]).must(0).out).unwrap();
    assert!(schema["$schema"].is_string());
    assert!(
        bench
            .graphtest(&["completions", "bash"])
            .must(0)
            .out
            .contains("_graphtest")
    );
    assert!(bench.graphtest(&["man"]).must(0).out.contains(".TH"));
    let doctor = bench.graphtest(&["doctor"]).must(0).out;
    assert!(
        doctor.contains("yes  vfs on dir") && doctor.contains(" has: "),
        "{doctor}"
    );
    assert_eq!((bench.left(), bench.registered()), (Vec::new(), 0));
}
