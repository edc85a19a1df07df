//! Guests from outside: what is said when they cannot be had, and, where there are an emulator and a mirror, guests themselves.
//!
//! Those that start guests are not run by default: `cargo test --test vm -- --ignored`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::BufRead;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rstest::rstest;
use serde_json::Value;

/// graphtest with a state and a cache of its own in `dir`.
fn graphtest(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graphtest"));
    command
        .env("GRAPHTEST_STATE", dir.join("state"))
        .env("GRAPHTEST_CACHE", dir.join("cache"))
        .env_remove("GRAPHTEST_ACCEL")
        .current_dir(dir);
    command
}

/// Runs it; it must end with this status.
fn must(status: i32, command: &mut Command) -> (String, String) {
    let Output {
        status: found,
        stdout,
        stderr,
    } = command.output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&stdout).into_owned(),
        String::from_utf8_lossy(&stderr).into_owned(),
    );
    assert_eq!(found.code(), Some(status), "{out}\n{err}");
    (out, err)
}

/// The one line of an error, without what is only noted.
fn error_of(err: &str) -> &str {
    let lines: Vec<&str> = err.lines().filter(|l| !l.starts_with("note: ")).collect();
    assert_eq!(lines.len(), 1, "one clear line: {err}");
    lines[0]
}

/// Files in a directory and below; none if there is no such directory.
fn files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|e| e.unwrap().path());
    let mut all = Vec::new();
    for path in entries {
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.push(path.display().to_string());
        }
    }
    all
}

#[test]
fn without_an_emulator_it_is_said_what_to_install() {
    let tmp = tempfile::tempdir().unwrap();
    let run = ["run", "--kernel", "6.1", "--target", "vfs", "whiteouts"];
    let (out, err) = must(3, graphtest(tmp.path()).env("PATH", tmp.path()).args(run));
    assert_eq!(out, "");
    assert!(
        error_of(&err).contains("Debian's package is qemu-system-x86"),
        "{err}"
    );
    assert_eq!(files(tmp.path()), Vec::<String>::new());
}

#[test]
fn without_the_mirror_it_is_said_which() {
    let tmp = tempfile::tempdir().unwrap();
    let fetch = ["vm", "fetch", "6.1", "--mirror", "file:/no/such/mirror"];
    let (_, err) = must(3, graphtest(tmp.path()).args(fetch));
    assert!(error_of(&err).contains("/no/such/mirror/dists/"), "{err}");
    // An address at which nothing can listen.
    let fetch = [
        "vm",
        "fetch",
        "6.1",
        "--mirror",
        "http://127.0.0.1:9/debian",
    ];
    let (_, err) = must(3, graphtest(tmp.path()).args(fetch));
    assert!(
        error_of(&err).contains("http://127.0.0.1:9/debian/dists/"),
        "{err}"
    );
    assert_eq!(files(&tmp.path().join("state")), Vec::<String>::new());
}

/// A fetch of the kernel 6.1 from a mirror in `dir` with this list of digests, and a gpgv that ends with this status, whatever is
/// installed here.
fn fetch_from(dir: &Path, list: &str, gpgv: i32) -> Command {
    let at = dir.join("debian/dists/bookworm");
    fs::create_dir_all(&at).unwrap();
    fs::write(at.join("InRelease"), list).unwrap();
    let bin = dir.join("bin");
    fs::create_dir(&bin).unwrap();
    let text = format!("#!/bin/sh\nexec >&2\ncat >/dev/null\necho no good\nexit {gpgv}\n");
    fs::write(bin.join("gpgv"), text).unwrap();
    fs::set_permissions(bin.join("gpgv"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::join_paths([bin.as_path(), Path::new("/usr/bin"), Path::new("/bin")]);
    let mut fetch = graphtest(dir);
    fetch
        .args(["vm", "fetch", "6.1", "--mirror"])
        .arg(format!("file:{}", dir.join("debian").display()))
        .env("PATH", path.unwrap());
    fetch
}

#[test]
fn what_is_not_as_its_digest_says_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let list = format!(
        "SHA256:\n {} 5 main/binary-amd64/Packages.xz\n",
        "0".repeat(64)
    );
    let index = tmp.path().join("debian/dists/bookworm/main/binary-amd64");
    fs::create_dir_all(&index).unwrap();
    fs::write(index.join("Packages.xz"), "12345").unwrap();
    let (_, err) = must(3, &mut fetch_from(tmp.path(), &list, 0));
    assert!(error_of(&err).contains("not what its index says"), "{err}");
    assert_eq!(
        files(&tmp.path().join("cache/indexes")),
        Vec::<String>::new()
    );
}

#[test]
fn what_makes_no_sense_is_said_before_anything_is_done() {
    let tmp = tempfile::tempdir().unwrap();
    fs::write(tmp.path().join("junk"), "no kernel").unwrap();
    let mut image = vec![0; 0x1000];
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x20e..0x210].copy_from_slice(&0x300u16.to_le_bytes());
    image[0x500..0x505].copy_from_slice(b"6.9.1");
    fs::write(tmp.path().join("bzImage"), &image).unwrap();
    for (words, said) in [
        (
            "run --kernel 2.4 whiteouts",
            "unknown kernel `2.4`; known: 5.10, 6.1",
        ),
        ("run --kernel ./none whiteouts", "./none: No such file"),
        ("run --kernel ./junk whiteouts", "junk: not a kernel image"),
        (
            "run --kernel 6.1 --modules . whiteouts",
            "--modules is for a kernel that is given by its path",
        ),
        (
            "run --kernel ./bzImage --modules . whiteouts",
            "expected them in lib/modules/6.9.1",
        ),
        ("vm run 2.4 -- true", "unknown kernel `2.4`"),
        ("vm shell 6.1 --on ext5", "unknown backing `ext5`"),
        ("vm shell 6.1 --target none", "unknown target `none`"),
        ("vm shell 6.1 whiteouts", " scenarios, such as whiteouts/"),
        (
            "vm bisect --good 6.1 --bad 6.1 delete-lower-file",
            "the same",
        ),
        (
            "vm bisect --good 6.1 --bad 2.4 delete-lower-file",
            "unknown kernel `2.4`",
        ),
        (
            "vm bisect --good 6.1 --bad 6.12 whiteouts",
            " scenarios, such as whiteouts/",
        ),
        (
            "vm bisect --good 6.1 --bad 6.12 --output . delete-lower-file",
            "already there",
        ),
    ] {
        let (_, err) = must(2, graphtest(tmp.path()).args(words.split(' ')));
        assert!(err.contains(said), "{words}: {err}");
        assert!(!tmp.path().join("cache").exists(), "{words}");
    }
    assert_eq!(files(tmp.path()).len(), 2);
}

#[test]
fn a_full_disk_is_said_in_one_line_and_nothing_is_left_on_it() {
    let tmp = tempfile::tempdir().unwrap();
    let index = tmp.path().join("debian/dists/bookworm/main/binary-amd64");
    fs::create_dir_all(&index).unwrap();
    fs::write(index.join("Packages.xz"), vec![b'x'; 1 << 20]).unwrap();
    let list = format!(
        "SHA256:\n {} {} main/binary-amd64/Packages.xz\n",
        "0".repeat(64),
        1 << 20
    );
    let fetch = fetch_from(tmp.path(), &list, 0);
    let cache = tmp.path().join("cache");
    fs::create_dir(&cache).unwrap();
    // A cache on a filesystem of its own, in namespaces of its own: needs no root, and is gone with the process.
    let mut small = Command::new("unshare");
    small
        .args(["--map-root-user", "--mount", "sh", "-c"])
        .arg("mount -t tmpfs -o size=256k none cache && \"$@\"; s=$?; find cache -type f -size +0; exit $s")
        .arg("sh")
        .arg(fetch.get_program())
        .args(fetch.get_args())
        .current_dir(tmp.path());
    for (key, value) in fetch.get_envs() {
        match value {
            Some(value) => small.env(key, value),
            None => small.env_remove(key),
        };
    }
    let (out, err) = must(3, &mut small);
    assert!(error_of(&err).contains("No space left on device"), "{err}");
    assert_eq!(out, "", "left on the disk");
}

#[test]
fn a_mirror_that_is_not_debians_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let mut fetch = fetch_from(
        tmp.path(),
        "SHA256:\n 00 1 main/binary-amd64/Packages.xz\n",
        1,
    );
    let (_, err) = must(3, &mut fetch);
    let keyring = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg").exists();
    if keyring {
        assert!(
            error_of(&err).ends_with("wrong signature: no good"),
            "{err}"
        );
    } else {
        assert!(err.contains("signature not checked"), "{err}");
    }
    assert_eq!(files(&tmp.path().join("cache")), Vec::<String>::new());
}

#[test]
fn kernels_are_listed() {
    let tmp = tempfile::tempdir().unwrap();
    let (out, _) = must(
        0,
        graphtest(tmp.path()).args(["list", "kernels", "--format", "json"]),
    );
    let kernels: Value = serde_json::from_str(&out).unwrap();
    let names: Vec<_> = kernels
        .as_array()
        .unwrap()
        .iter()
        .map(|k| &k["name"])
        .collect();
    assert!(names.contains(&&Value::from("6.1")), "{names:?}");
    assert!(kernels[0]["fetched"].is_null());
}

/// graphtest with a state of its own and the cache of whoever runs the test, which has the kernel or gets it.
fn with_users_cache(dir: &Path) -> Command {
    let mut command = graphtest(dir);
    command.env_remove("GRAPHTEST_CACHE");
    if let Some(cache) = std::env::var_os("GRAPHTEST_CACHE") {
        command.env("GRAPHTEST_CACHE", cache);
    }
    command
}

#[test]
#[ignore = "needs qemu-system-x86_64, and a mirror of Debian or what was fetched from one"]
fn scenarios_run_in_a_guest() {
    let tmp = tempfile::tempdir().unwrap();
    let report = tmp.path().join("r.json");
    let mut run = with_users_cache(tmp.path());
    run.args([
        "run",
        "--kernel",
        "6.1",
        "--target",
        "vfs,overlay2",
        "--on",
        "dir,tmpfs",
        "delete-lower-file",
    ]);
    run.arg("--report")
        .arg(format!("json={}", report.display()));
    let (out, _) = must(0, &mut run);
    let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    assert_eq!(report["complete"], true);
    let cells = report["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 4);
    for cell in cells {
        assert!(
            cell["kernel"].as_str().unwrap().starts_with("6.1."),
            "{cell}"
        );
        assert_eq!(cell["status"], "ran");
        let again = cell["results"][0]["replay"].as_str().unwrap();
        assert!(again.contains("--kernel 6.1"), "{again}");
    }
    assert!(out.contains("vfs on tmpfs under 6.1."), "{out}");
    assert_eq!(files(&tmp.path().join("state")), Vec::<String>::new());
}

/// Where the cache of whoever runs the test is.
fn users_cache() -> PathBuf {
    let named = std::env::var_os("GRAPHTEST_CACHE").map(PathBuf::from);
    named.unwrap_or_else(|| std::env::home_dir().unwrap().join(".cache/graphtest"))
}

#[test]
#[ignore = "needs qemu-system-x86_64, and a mirror of Debian or what was fetched from one"]
fn a_kernel_without_the_module_of_a_driver_is_told() {
    let tmp = tempfile::tempdir().unwrap();
    let run = "vm run 6.1 -- /bin/busybox true";
    must(0, with_users_cache(tmp.path()).args(run.split(' ')));
    let lookup = fs::read(users_cache().join("lookups/6.1")).unwrap();
    let lookup: Value = serde_json::from_slice(&lookup).unwrap();
    let digest = lookup["digest"].as_str().unwrap();
    // Given by its path it has no modules.
    let image = users_cache().join("kernels").join(digest).join("vmlinuz");
    let mut run = with_users_cache(tmp.path());
    run.arg("run").arg("--kernel").arg(&image);
    let words = "--target vfs,overlay2 --on tmpfs --report json=r.json delete-lower-file";
    must(3, run.args(words.split(' ')));
    let report = fs::read(tmp.path().join("r.json")).unwrap();
    let report: Value = serde_json::from_slice(&report).unwrap();
    let cells = report["cells"].as_array().unwrap();
    let of = |target: &str| cells.iter().find(|c| c["target"] == target).unwrap();
    assert_eq!(of("vfs")["results"][0]["outcome"], "pass", "{report:#}");
    assert_eq!(of("overlay2")["status"], "error");
    let why = of("overlay2")["reason"].as_str().unwrap();
    assert!(
        why.contains("an overlay cannot be mounted") && why.contains("No such device"),
        "{why}"
    );
    assert_eq!(why.lines().count(), 1, "{why}");
    assert_eq!(files(&tmp.path().join("state")), Vec::<String>::new());
}

#[test]
#[ignore = "needs qemu-system-x86_64, and a mirror of Debian or what was fetched from one"]
fn a_kernel_that_cannot_be_had_costs_only_its_cells() {
    let tmp = tempfile::tempdir().unwrap();
    let run = "vm run 6.1 -- /bin/busybox true";
    must(0, with_users_cache(tmp.path()).args(run.split(' ')));
    // All that the cache has of 6.1, and a mirror that has nothing.
    let of_user = users_cache();
    let cache = tmp.path().join("cache");
    fs::create_dir_all(cache.join("lookups")).unwrap();
    for dir in ["kernels", "roots", "userlands"] {
        std::os::unix::fs::symlink(of_user.join(dir), cache.join(dir)).unwrap();
    }
    for entry in fs::read_dir(of_user.join("lookups")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if name == "6.1" || name.as_encoded_bytes().starts_with(b"guest-") {
            fs::copy(entry.path(), cache.join("lookups").join(name)).unwrap();
        }
    }
    let words = "run --kernel 7.3,6.1 --mirror file:/no/such/mirror --target vfs --on tmpfs --report json=r.json delete-lower-file";
    let (out, _) = must(3, graphtest(tmp.path()).args(words.split(' ')));
    let report = fs::read(tmp.path().join("r.json")).unwrap();
    let report: Value = serde_json::from_slice(&report).unwrap();
    let cells = report["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 2, "{report:#}");
    assert_eq!(cells[0]["results"][0]["outcome"], "pass");
    assert_eq!(cells[1]["kernel"], "7.3");
    assert_eq!(cells[1]["status"], "error");
    let why = cells[1]["reason"].as_str().unwrap();
    assert!(why.contains("/no/such/mirror/dists/"), "{why}");
    assert!(out.contains("By kernel:"), "{out}");
}

#[test]
#[ignore = "needs qemu-system-x86_64, and a mirror of Debian or what was fetched from one"]
fn a_command_runs_in_a_guest_and_its_status_counts() {
    let tmp = tempfile::tempdir().unwrap();
    let vm = |words: &[&str]| {
        let mut run = with_users_cache(tmp.path());
        run.args(["vm", "run", "6.1", "--", "/bin/busybox"])
            .args(words);
        run
    };
    let (out, _) = must(0, &mut vm(&["uname", "-r"]));
    assert!(out.starts_with("6.1."), "{out}");
    must(1, &mut vm(&["false"]));
}

#[test]
#[ignore = "needs qemu-system-x86_64, and a mirror of Debian or what was fetched from one"]
fn a_kernel_that_panics_is_told_with_its_last_words() {
    let tmp = tempfile::tempdir().unwrap();
    let mut run = with_users_cache(tmp.path());
    run.args([
        "vm",
        "run",
        "6.1",
        "--",
        "/bin/busybox",
        "sh",
        "-c",
        "echo c > /proc/sysrq-trigger; sleep 60",
    ]);
    let (_, err) = must(3, &mut run);
    assert!(
        err.contains("the guest died while it ran") && err.contains("Kernel panic"),
        "{err}"
    );
    assert_eq!(files(&tmp.path().join("state")), Vec::<String>::new());
}

/// The emulator of the guest that a process has started.
fn emulator_of(pid: u32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    // Not the one that is only asked for its version.
    let is = |pid: &&str| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(b"qemu-system") && line.windows(7).any(|w| w == b"-kernel")
    };
    let children = children.unwrap_or_default();
    children.split_whitespace().find(is)?.parse().ok()
}

/// One scenario that goes on for hours, between two that do not.
const LONG: &str = "
suite: guests
about: What becomes of the others when a guest is killed.
scenarios:
  - {id: before, proves: [LIFE-1], level: must, must: It runs., from: [here], catches: [whiteout-lost], steps: [{create: a}]}
  - id: long
    proves: [LIFE-1]
    level: must
    must: It runs for hours.
    from: [here]
    catches: [whiteout-lost]
    steps: [{repeat: 100000, do: [{create: '${i}'}, {remove: '${i}'}]}]
  - {id: after, proves: [LIFE-1], level: must, must: It runs., from: [here], catches: [whiteout-lost], steps: [{create: a}]}
";

#[test]
#[ignore = "needs qemu-system-x86_64, and a mirror of Debian or what was fetched from one"]
fn a_guest_that_is_killed_costs_only_what_ran_in_it() {
    let tmp = tempfile::tempdir().unwrap();
    fs::write(tmp.path().join("guests.yaml"), LONG).unwrap();
    let words = "run --kernel 6.1 --target vfs --on tmpfs --jobs 1 --suite guests.yaml --verbose --report json=r.json";
    let mut run = with_users_cache(tmp.path())
        .args(words.split(' '))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut kills = 0;
    let lines = std::io::BufReader::new(run.stdout.take().unwrap()).lines();
    for line in lines.map_while(Result::ok) {
        if line.starts_with("begin") && line.contains("guests/long") {
            let emulator = rustix::process::Pid::from_raw(emulator_of(run.id()).unwrap()).unwrap();
            kills += usize::from(
                rustix::process::kill_process(emulator, rustix::process::Signal::KILL).is_ok(),
            );
        }
    }
    assert_eq!(run.wait().unwrap().code(), Some(3));
    assert_eq!(kills, 2, "once with others, once alone");
    let report: Value =
        serde_json::from_slice(&fs::read(tmp.path().join("r.json")).unwrap()).unwrap();
    assert_eq!(report["complete"], true);
    for cell in report["cells"].as_array().unwrap() {
        let reason = cell["reason"].as_str().unwrap();
        assert_eq!(cell["status"], "error");
        assert!(
            reason.starts_with("guests/long broke two guests: the guest died while it ran"),
            "{reason}"
        );
        let mut results: Vec<(&str, &str)> = cell["results"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| (r["id"].as_str().unwrap(), r["outcome"].as_str().unwrap()))
            .collect();
        results.sort_unstable();
        let expected = [
            ("guests/after", "pass"),
            ("guests/before", "pass"),
            ("guests/long", "fail"),
        ];
        assert_eq!(results, expected, "{report:#}");
    }
    assert_eq!(files(&tmp.path().join("state")), Vec::<String>::new());
}

#[test]
#[ignore = "needs qemu-system-x86_64, and a mirror of Debian or what was fetched from one"]
fn a_killed_run_leaves_no_guest_and_clean_gives_its_files_back() {
    let tmp = tempfile::tempdir().unwrap();
    let mut run = with_users_cache(tmp.path());
    let mut run = run
        .args(["vm", "run", "6.1", "--", "/bin/busybox", "sleep", "600"])
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let found = loop {
        if let Some(pid) = emulator_of(run.id()) {
            break pid;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "no guest was started"
        );
        std::thread::sleep(Duration::from_millis(50));
    };
    run.kill().unwrap();
    run.wait().unwrap();
    let begun = Instant::now();
    let gone = || {
        let stat = fs::read_to_string(format!("/proc/{found}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    while !gone() {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "the guest lives on"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let (out, _) = must(0, with_users_cache(tmp.path()).arg("clean"));
    assert!(out.contains("given back: "), "{out}");
    let dir = out
        .lines()
        .find_map(|l| l.strip_prefix("given back: "))
        .unwrap();
    assert!(!Path::new(dir).exists());
    assert_eq!(files(&tmp.path().join("state")), Vec::<String>::new());
}

/// Settings of the overlay module are the whole machine's, so this takes one.
#[test]
#[ignore = "needs qemu-system-x86_64, and a mirror of Debian or what was fetched from one"]
fn diffs_are_made_as_the_settings_of_the_kernel_allow() {
    let tmp = tempfile::tempdir().unwrap();
    let with_redirects = |target: &str, status: i32| {
        let script = format!(
            "/bin/busybox modprobe overlay && echo Y >/sys/module/overlay/parameters/redirect_dir \
             && graphtest run --target {target} --on tmpfs diff/native-diff-told diff/redirected-directory"
        );
        let mut run = with_users_cache(tmp.path());
        run.args([
            "vm",
            "run",
            "6.1",
            "--",
            "/bin/busybox",
            "sh",
            "-c",
            &script,
        ]);
        must(status, &mut run).0
    };
    let told = |out: &str, what: &str| {
        let mut lines = out.lines().filter(|line| line.starts_with(what));
        lines.any(|line| line.contains("diff/native-diff-told#compared"))
    };
    let good = with_redirects("overlay2", 0);
    assert!(told(&good, "PASS"), "{good}");
    let bad = with_redirects("overlay2+native-diff-misread", 1);
    assert!(told(&bad, "FAIL"), "{bad}");
}

/// Runs scenarios whose ids begin so on a driver in a guest, where they must pass, and what is to catch a bug on the driver with that bug, where
/// it must not: those of what not every kernel has, which `cargo test --test mutants` skips there. The modules of zfs are built first, where
/// they never were: about five minutes.
#[rstest]
#[case::of_thin_pools("thin-pools/", "devicemapper", "ext4")]
#[case::of_datasets("zfs/", "zfs", "zfs")]
#[case::of_limits_of_mounted_layers("quotas/start-with-live-mounts", "overlay2", "xfs+pquota")]
#[case::of_case("paths/home-ignores-case", "vfs", "ext4+casefold")]
#[ignore = "needs qemu-system-x86_64, and a mirror of Debian or what was fetched from one"]
fn bugs_are_found(#[case] scenarios: &str, #[case] driver: &str, #[case] backing: &str) {
    let tmp = tempfile::tempdir().unwrap();
    // The id and the outcome of each row that is run.
    let outcomes = |target: &str, filters: &[String]| -> Vec<(String, String)> {
        let report = tmp.path().join("r.json");
        let mut run = with_users_cache(tmp.path());
        run.args([
            "run", "--kernel", "6.1", "--on", backing, "--target", target,
        ])
        .args(filters)
        .arg("--report")
        .arg(format!("json={}", report.display()));
        must(i32::from(target != driver), &mut run);
        let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
        let cells = report["cells"].as_array().unwrap().iter();
        let results = cells.flat_map(|c| c["results"].as_array().unwrap());
        let word = |r: &Value, key: &str| r[key].as_str().unwrap().to_string();
        results
            .map(|r| (word(r, "id"), word(r, "outcome")))
            .collect()
    };
    let good = outcomes(driver, &[scenarios.to_string()]);
    assert!(
        !good.is_empty() && good.iter().all(|(_, outcome)| outcome == "pass"),
        "{good:?}"
    );
    let library = graphtest::graphtest::load::builtin().unwrap();
    let mut catches: BTreeMap<&String, BTreeSet<String>> = BTreeMap::new();
    for case in library.cases() {
        let id = case.scenario.id.to_string();
        if id.starts_with(scenarios) {
            for mutant in case.scenario.catches.iter().chain(&case.catches) {
                catches.entry(mutant).or_default().insert(id.clone());
            }
        }
    }
    for (mutant, ids) in catches {
        let ids: Vec<String> = ids.into_iter().collect();
        let found = outcomes(&format!("{driver}+{mutant}"), &ids);
        for id in &ids {
            assert!(
                found
                    .iter()
                    .any(|(i, outcome)| i == id && outcome == "fail"),
                "{id} does not find {mutant}: {found:?}"
            );
        }
    }
}
