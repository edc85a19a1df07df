//! What a run leaves that is interrupted, killed, or told to keep things.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rstest::rstest;

use super::bench::{Bench, GOOD, report, root};

#[test]
fn an_interrupt_gives_everything_back() {
    root();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let bench = Bench::new();
        let mut child = bench.endless("vfs");
        assert_eq!(bench.registered(), 1);
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        // The scenario never ends; it is given up after a few seconds.
        assert_eq!(child.wait().unwrap().code(), Some(130));
        bench.graphtest(&["clean"]).must(0);
        assert_eq!((bench.left(), bench.registered()), (Vec::new(), 0));
    }
}

#[rstest]
#[case("vfs")]
#[case("overlay2")]
fn what_a_killed_run_leaves_is_cleaned_and_nothing_else(#[case] target: &str) {
    root();
    let bench = Bench::new();
    // Names like those of a run, and a mount, that are not a run's.
    let foreign = bench.path("work/.graphtest-deadbeef-1");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("precious"), "x").unwrap();
    let mounted = bench.path("mounted");
    fs::create_dir(&mounted).unwrap();
    rustix::mount::mount(
        "precious",
        &mounted,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        None,
    )
    .unwrap();
    fs::write(mounted.join("precious"), "x").unwrap();

    let mut child = bench.endless(target);
    let running = bench.graphtest(&["clean"]).must(0);
    assert!(running.out.contains("1 still running"), "{}", running.out);
    assert!(
        bench.left().len() > 1,
        "the run that goes on is not touched"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(bench.left().len() > 1 && bench.registered() == 1);

    // The next run is not disturbed, and says that there is something to clean.
    let suite = bench.suite(&[("good", "must", GOOD)]);
    let next = bench
        .graphtest(&["run", "--suite", &suite, "--target", target, "--on", "dir"])
        .must(0);
    assert!(next.err.contains("graphtest clean"), "{}", next.err);
    let cleaned = bench.graphtest(&["clean"]).must(0);
    let precious = fs::read(mounted.join("precious")).unwrap();
    rustix::mount::unmount(&mounted, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(cleaned.out.contains("given back: "), "{}", cleaned.out);
    assert_eq!(
        (bench.left(), bench.registered()),
        (vec![".graphtest-deadbeef-1".to_string()], 0)
    );
    assert_eq!(
        (fs::read(foreign.join("precious")).unwrap(), precious),
        (b"x".to_vec(), b"x".to_vec())
    );
    assert_eq!(
        bench.graphtest(&["clean"]).must(0).out,
        "nothing to give back\n"
    );
}

#[test]
fn what_is_kept_can_be_looked_at_and_cleaned() {
    root();
    let bench = Bench::new();
    let steps = "steps:\n      - create: a\n      - create: b\n        parent: a\n      - get: b\n      - exists: b\n        is: false";
    let suite = bench.suite(&[("bad", "must", steps)]);
    let json = bench.path("r.json");
    let wanted = format!("json={}", json.display());
    let args = [
        "run", "--suite", &suite, "--target", "overlay2", "--on", "dir", "--keep", "--report",
        &wanted,
    ];
    let run = bench.graphtest(&args).must(1);
    assert!(run.out.contains("kept: "), "{}", run.out);
    let kept = report(&json)["cells"][0]["results"][0]["kept"]
        .as_str()
        .unwrap()
        .to_string();
    assert!(Path::new(&kept).is_dir());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(mounts.contains(&kept), "the layer is still mounted");
    bench.graphtest(&["clean"]).must(0);
    assert!(
        !fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .contains(&kept)
    );
    assert_eq!((bench.left(), bench.registered()), (Vec::new(), 0));
}
