//! Backings from outside: what is missing is said, and a run that is killed on them leaves what `graphtest clean` gives back.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use graphtest::sys::loopdev;

use super::bench::{Bench, GOOD, Run, root};

const BINARY: &str = env!("CARGO_BIN_EXE_graphtest");

/// The file of a program that is installed.
fn file_of(program: &str) -> PathBuf {
    let dirs = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    let found = dirs
        .iter()
        .map(|d| Path::new(d).join(program))
        .find(|f| f.exists());
    found
        .unwrap_or_else(|| panic!("{program} is not installed"))
        .canonicalize()
        .unwrap()
}

/// A run where the program does not seem to be installed: in a mount namespace in which something else is at its place.
fn without(bench: &Bench, program: &str, args: &[&str]) -> Run {
    let hide = "mount --bind /dev/null \"$0\" && exec \"$@\"";
    let file = file_of(program);
    let file = file.to_str().unwrap();
    let mut all = vec!["-m", "sh", "-c", hide, file, BINARY];
    all.extend(args);
    Run::of(bench.command(Path::new("unshare"), &all).output().unwrap())
}

#[test]
fn a_missing_program_is_told_with_its_package() {
    root();
    for (backing, program, package) in [
        ("btrfs", "mkfs.btrfs", "btrfs-progs"),
        ("xfs", "mkfs.xfs", "xfsprogs"),
        ("fuse", "fuse-overlayfs", "fuse-overlayfs"),
    ] {
        let bench = Bench::new();
        let suite = bench.suite(&[("good", "must", GOOD)]);
        let words = format!("{program} is not installed; Debian's package is {package}");
        let args = ["run", "--suite", &suite, "--target", "vfs", "--on", backing];
        let run = without(&bench, program, &args).must(3);
        assert!(run.out.contains(&words), "{}", run.out);
        let run = without(&bench, program, &["list", "backings"]).must(0);
        assert!(run.out.contains(&words), "{}", run.out);
        let args = ["doctor", "--target", "vfs", "--on", backing];
        let run = without(&bench, program, &args).must(3);
        let mend = format!("mend: apt-get install {package}");
        assert!(
            run.out.contains(&words) && run.out.contains(&mend),
            "{}",
            run.out
        );
        assert_eq!(bench.registered(), 0);
    }
}

#[test]
fn an_overlay_is_refused_where_directories_tell_no_types() {
    root();
    let bench = Bench::new();
    let suite = bench.suite(&[("good", "must", GOOD)]);
    for target in ["overlay", "overlay2"] {
        let on = ["--target", target, "--on", "ext4+nofiletype"];
        let args = [&["run", "--suite", suite.as_str()][..], &on].concat();
        let run = bench.graphtest(&args).must(3);
        let words = "does not tell the types of directory entries (d_type); make it anew with";
        assert!(run.out.contains(words), "{}", run.out);
    }
}

#[test]
fn a_missing_checker_is_said_and_no_failure() {
    root();
    let bench = Bench::new();
    let args = ["doctor", "--target", "vfs", "--on", "xfs"];
    let run = without(&bench, "xfs_repair", &args).must(0);
    let words = "not checked for damage: xfs_repair is not installed; Debian's package is xfsprogs";
    assert!(run.out.contains(words), "{}", run.out);
}

/// Programs of btrfs look at every loop device, and fail when one goes in that moment.
#[test]
fn programs_are_run_again_where_a_device_of_others_went() {
    root();
    for (name, disturbed, status) in [
        ("mkfs.btrfs", 1, 0),
        ("mkfs.btrfs", 99, 3),
        ("btrfs", 1, 0),
        ("btrfs", 99, 1),
    ] {
        let real = file_of(name);
        let bench = Bench::new();
        let suite = bench.suite(&[("good", "must", GOOD)]);
        let programs = bench.path("programs");
        fs::create_dir(&programs).unwrap();
        let script = format!(
            "#!/bin/sh\n\
             echo >> \"$0.runs\"\n\
             if [ $(wc -l < \"$0.runs\") -gt {disturbed} ]; then exec {} \"$@\"; fi\n\
             echo 'ERROR: cannot check mount status: No such device or address' >&2\n\
             exit 1\n",
            real.display()
        );
        let program = programs.join(name);
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let path = std::env::var("PATH").unwrap();
        let args = ["run", "--suite", &suite, "--target", "vfs", "--on", "btrfs"];
        let mut command = bench.command(Path::new(BINARY), &args);
        command.env("PATH", format!("{}:{path}", programs.display()));
        let run = Run::of(command.output().unwrap()).must(status);
        let told = run.out.contains("cannot check mount status");
        assert_eq!(told, status != 0, "{}", run.out);
        assert_eq!(bench.registered(), 0);
    }
}

#[test]
fn a_run_killed_on_made_backings_is_given_back() {
    root();
    let bench = Bench::new();
    let made = bench.path("made");
    fs::create_dir(&made).unwrap();
    let args = [
        "run",
        "--target",
        "vfs,overlay2",
        "--on",
        "ext4,xfs,btrfs",
        "lifecycle/",
    ];
    let below = |path: &Path| path.starts_with(bench.tmp.path());
    let mut seen = 0;
    for round in 0..16u64 {
        let mut command = bench.command(Path::new(BINARY), &args);
        command
            .env("TMPDIR", &made)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        // From the first millisecond to the middle of the scenarios; every other time not before there is something to leave, however
        // slow the machine is.
        while round % 2 == 1 && bench.registered() == 0 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(3 + round * round * 8));
        child.kill().unwrap();
        child.wait().unwrap();
        seen += usize::from(fs::read_dir(&made).unwrap().next().is_some());
        // A program that was about to be started holds the lock of its run until it is.
        for _ in 0..200 {
            let out = bench.graphtest(&["clean"]).must(0).out;
            if !out.contains("still running") {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(bench.registered(), 0, "round {round}");
        assert_eq!(fs::read_dir(&made).unwrap().count(), 0, "round {round}");
        let loops: Vec<_> = loopdev::attached().unwrap();
        assert!(!loops.iter().any(|(_, file)| below(file)), "{loops:?}");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(
            !mounts.contains(bench.tmp.path().to_str().unwrap()),
            "{mounts}"
        );
        let programs = Command::new("ps").args(["-eo", "args"]).output().unwrap();
        let programs = String::from_utf8_lossy(&programs.stdout).into_owned();
        assert!(!programs.contains(made.to_str().unwrap()), "{programs}");
    }
    assert!(
        seen > 3,
        "nothing was ever left: killed too early or too late"
    );
}
