//! What the tests of the command line stand on: a directory to run in, suites to run, and what a run came to.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// A directory to run in, with a state directory of its own, so that tests do not see each other.
pub(crate) struct Bench {
    pub(crate) tmp: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        fs::set_permissions(tmp.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(tmp.path().join("work")).unwrap();
        Self { tmp }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    pub(crate) fn command(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).current_dir(self.path("work"));
        command
            .env("GRAPHTEST_STATE", self.path("state"))
            .env_remove("NO_COLOR");
        command
    }

    pub(crate) fn graphtest(&self, args: &[&str]) -> Run {
        Run::of(
            self.command(Path::new(env!("CARGO_BIN_EXE_graphtest")), args)
                .output()
                .unwrap(),
        )
    }

    /// A suite with these scenarios, given as `(id, level, the rest)`; returns its path.
    pub(crate) fn suite(&self, scenarios: &[(&str, &str, &str)]) -> String {
        let first = |what: &str| {
            let list: Value =
                serde_json::from_str(&self.graphtest(&["list", what, "--format", "json"]).out)
                    .unwrap();
            list[0]["name"].as_str().unwrap().to_string()
        };
        let (requirement, mutant) = (first("requirements"), first("mutants"));
        let mut text =
            "suite: probe\nabout: For the tests of the command line.\nscenarios:\n".to_string();
        for (id, level, rest) in scenarios {
            text += &format!(
                "  - id: {id}\n    proves: [{requirement}]\n    level: {level}\n    must: It is as the test wants it.\n    \
                 from: [test]\n    catches: [{mutant}]\n    {rest}\n"
            );
        }
        let path = self.path("probe.yaml");
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Starts a run that does not end by itself, and waits until it is in the middle of a scenario.
    pub(crate) fn endless(&self, target: &str) -> Child {
        let suite = self.suite(&[("endless", "must", ENDLESS)]);
        let args = [
            "run",
            "--suite",
            &suite,
            "--target",
            target,
            "--on",
            "dir,tmpfs",
            "--verbose",
            "--timeout",
            "1h",
        ];
        let mut command = self.command(Path::new(env!("CARGO_BIN_EXE_graphtest")), &args);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(
            lines.any(|l| l.unwrap().starts_with("begin ")),
            "the run ended before it began a scenario"
        );
        // Dropping the reader closes the pipe: the run must not care.
        child
    }

    /// What is in the working directory.
    pub(crate) fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("work")).unwrap();
        entries
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect()
    }

    pub(crate) fn registered(&self) -> usize {
        fs::read_dir(self.path("state")).map_or(0, Iterator::count)
    }
}

pub(crate) const GOOD: &str = "steps: [{create: a}, {exists: a}]";
pub(crate) const BAD: &str = "steps:\n      - create: a\n      - exists: a\n        is: false";
pub(crate) const SKIPPED: &str = "needs: [quota, not-quota]\n    steps: [{create: a}]";
pub(crate) const ENDLESS: &str = "steps:\n      - repeat: 100000\n        do: [{create: a}, {in: a, do: [{file: f, text: x}]}, {remove: a}]";

pub(crate) struct Run {
    pub(crate) status: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Run {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            status: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Checks the status; shows everything when it is another.
    pub(crate) fn must(self, status: i32) -> Self {
        assert_eq!(
            self.status, status,
            "\n--- standard output\n{}\n--- standard error\n{}",
            self.out, self.err
        );
        self
    }
}

pub(crate) fn root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "needs root: sudo -E env PATH=\"$PATH\" cargo test --test cli"
    );
}

pub(crate) fn report(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// `(label, outcome)` of every result, sorted.
pub(crate) fn outcomes(report: &Value) -> Vec<(String, String)> {
    let cells = report["cells"].as_array().unwrap();
    let results = cells.iter().flat_map(|c| c["results"].as_array().unwrap());
    let mut all: Vec<_> = results
        .map(|r| {
            (
                r["id"].as_str().unwrap().to_string(),
                r["outcome"].as_str().unwrap().to_string(),
            )
        })
        .collect();
    all.sort();
    all
}
