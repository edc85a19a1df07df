use std::path::Path;

use rstest::rstest;

use super::*;
use crate::graphdriver::Error;
use crate::graphtest::load::{self, Library};
use crate::graphtest::mutant::{self, MutatedTarget};
use crate::graphtest::target::{Factory, built_in};

fn library(steps: &str) -> Library {
    let head = "\
suite: s
about: x
scenarios:
- id: a
  proves: [LIFE-1]
  level: must
  must: x
  catches: [whiteout-lost]
";
    load::from_texts([("s.yaml".to_string(), format!("{head}{steps}"))])
        .unwrap_or_else(|e| panic!("{e}"))
}

fn vfs() -> Arc<dyn Target> {
    let mut all = built_in().into_iter();
    all.find(|t| t.name() == "vfs").expect("vfs is built in")
}

/// Runs the one case of a scenario and looks that nothing is left.
fn run(target: &dyn Target, steps: &str) -> CaseReport {
    let library = library(steps);
    let tmp = tempfile::tempdir().expect("a directory");
    let place = Place::probe(tmp.path(), "dir").expect("a place");
    let limits = RunLimits {
        requirements: Arc::new(library.requirements.clone()),
        ..RunLimits::default()
    };
    let case = library.cases().next().expect("a case").clone();
    let report = std::thread::scope(|s| {
        let run = || run_case(target, &place, &case, &limits);
        s.spawn(run).join().expect("no panic")
    });
    let left: Vec<_> = std::fs::read_dir(tmp.path()).expect("list").collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    report
}

fn passes(steps: &str) {
    let report = run(&*vfs(), steps);
    let failure = report.failure.map(|f| f.to_string()).unwrap_or_default();
    assert_eq!(report.outcome, Outcome::Pass, "{failure}");
}

fn fails(target: &dyn Target, steps: &str) -> String {
    let report = run(target, steps);
    assert_eq!(report.outcome, Outcome::Fail);
    assert_eq!(report.kept, None);
    let failure = report.failure.expect("a failure says what failed");
    assert_eq!(report.reason.as_deref(), Some(failure.summary()));
    failure.to_string()
}

#[rstest]
#[case::lifecycle(
    "  - create: b\n  - get: b\n    times: 2\n  - put: b\n  - exists: b\n  - create: b\n    fails: exists\n\
     \x20 - remove: b\n  - exists: b\n    is: false\n  - get: b\n    fails: not-found\n    says: b\n"
)]
#[case::content(
    "  - create: b\n  - in: b\n    do: [{file: f, text: x, mode: '0640'}, {dir: d}, {file: d/g, text: y}, {unlink: nope, fails: [ENOENT]}]\n\
     \x20 - create: t\n    parent: b\n  - in: t\n    do: [{remove: d}, {append: f, text: z}]\n    same-as-plain: true\n\
     \x20 - tree: t\n    is: [{file: f, text: xz, mode: '0640'}]\n  - changes: t\n    are: [C /f, D /d]\n  - changes: t\n\
     \x20 - size: t\n  - size: t\n    is: 2\n  - diff: t\n    is: [f, .wh.d]\n    stable: true\n    entries: [{file: f, text: xz, mode: '0640'}]\n\
     \x20 - round-trip: t\n    twice: true\n  - plain: all\n  - same-tree: b\n    as: b\n"
)]
#[case::times_after_a_plain_look(
    "  - create: b\n  - in: b\n    do: [{file: f, text: x}]\n    same-as-plain: true\n  - create: t\n    parent: b\n\
     \x20 - in: t\n    do: [{file: g}]\n  - changes: t\n"
)]
#[case::sockets(
    "  - create: b\n  - in: b\n    do: [{dir: d}, {file: d/f}, {file: f}]\n  - create: t\n    parent: b\n\
     \x20 - in: t\n    do: [{socket: d/s}, {unlink: f}, {socket: f}]\n  - round-trip: t\n"
)]
#[case::archives(
    "  - archive: good\n    entries: [{file: f, text: x}, {dir: d}, {symlink: l, to: f}]\n  - create: b\n  - tar-split: b\n    from: good\n\
     \x20 - tree: b\n    is: [{file: f, text: x}, {dir: d}, {symlink: l, to: f}]\n  - create: c\n  - apply: c\n    from: good\n    chunk: 7\n    size: diff-size\n\
     \x20 - archive: bad\n    raw: garbage\n  - create: e\n  - apply: e\n    from: bad\n    fails: archive\n  - diff: c\n    save: s\n\
     \x20 - create: f\n  - apply: f\n    from: s\n  - same-tree: f\n    as: c\n    ignore: [dir-mtime]\n  - in: f\n    do: [{append: f, text: y}, {read: f, is: xy}]\n"
)]
#[case::many(
    "  - chain: l\n    length: 4\n    each: [{file: 'm${i}', text: '${i}'}]\n  - tree: l4\n    holds: [{file: m1, text: '1'}, {file: m4}]\n    lacks: [m5]\n\
     \x20 - repeat: 3\n    do: [{create: 'r${i}', parent: l2}, {remove: 'r${i}'}]\n  - parallel: 3\n    times: 2\n    do:\n    - {create: 'p${thread}-${i}', parent: l4}\n\
     \x20   - {in: 'p${thread}-${i}', do: [{file: own, text: '${thread}'}]}\n    - {create: same, may-fail: exists}\n  - plain: all\n"
)]
#[case::restarts(
    "  - create: b\n  - in: b\n    do: [{file: f, text: x}]\n  - restart: killed\n  - plain: all\n  - restart: clean\n    home: moved\n  - plain: all\n\
     \x20 - cleanup: driver\n    times: 2\n  - guard: home\n    do: [{get: b}, {put: b}]\n  - init: driver\n    opts: [nonsense=1]\n    fails: any\n  - plain: all\n"
)]
#[case::crashes(
    "  - create: b\n  - in: b\n    do: [{file: f, text: x}]\n  - kill-at-each-syscall: [{create: t, parent: b}]\n    then: [{in: t, do: [{file: g}]}]\n  - tree: t\n"
)]
#[case::homes("  - home: 'a b,c'\n  - create: b\n")]
#[case::selection(
    "  - select: ''\n    prior: [btrfs, zfs/]\n    chooses: btrfs\n  - select: ''\n    env: vfs\n    chooses: vfs\n\
     \x20 - select: ''\n    prior: [btrfs, zfs]\n    fails: conflict\n  - select: ''\n    broken: {overlay2: not-supported}\n    chooses: fuse-overlayfs\n"
)]
fn what_vfs_does_right_passes(#[case] steps: &str) {
    passes(&format!("  steps:\n{steps}"));
}

#[rstest]
#[case::tree(
    "  - in: b\n    do: [{file: f, text: xy, mode: '0600'}]\n  - tree: b\n    is: [{file: f, text: xz}, {dir: d}]\n",
    "s.yaml:13: tree: b\n    the tree of b is another:\n      d: missing (directory)\n      f: content \"xz\" expected, \"xy\" found\n"
)]
#[case::operation(
    "  - in: b\n    do:\n    - {file: f}\n    - {unlink: nope}\n",
    "s.yaml:14: unlink: nope\n    expected success, found: ENOENT\n"
)]
#[case::changes(
    "  - in: b\n    do: [{file: f}]\n  - changes: b\n    are: [A /g]\n",
    "s.yaml:13: changes: b\n    the changes of b against nothing are others:\n      missing:    A /g\n      unexpected: A /f\n"
)]
#[case::success(
    "  - create: c\n    fails: [exists, in-use]\n",
    "s.yaml:11: create: c\n    create c: expected an error (exists or in-use), it succeeded\n"
)]
#[case::class(
    "  - get: nope\n    fails: in-use\n",
    "s.yaml:11: get: nope\n    get nope: expected an error (in-use), found: layer nope does not exist (not-found)\n"
)]
#[case::size(
    "  - size: b\n    is: 5\n",
    "s.yaml:11: size: b\n    size b: expected 5, found 0\n"
)]
#[case::threads(
    "  - parallel: 2\n    do:\n    - {exists: 'n${thread}'}\n",
    "s.yaml:13: exists: n1\n    in thread 1: exists n1: expected true, found false\n"
)]
#[case::guard(
    "  - guard: home\n    do:\n    - {create: c}\n",
    "s.yaml:11: guard: home\n    the driver's home is not as it was before:\n"
)]
fn what_does_not_hold_is_told(#[case] steps: &str, #[case] text: &str) {
    let said = fails(&*vfs(), &format!("  steps:\n  - create: b\n{steps}"));
    // Directory and operation words of the tree diff belong to the tree's own tests.
    let said = said.replace("missing (dir)", "missing (directory)");
    assert!(said.starts_with(text), "{said}");
    assert!(said.contains("\n  LIFE-1: "), "{said}");
}

#[test]
fn a_failed_call_that_leaves_something_is_told() {
    let mutant = mutant::find("create-leaves-pieces").expect("a mutant");
    let target = MutatedTarget::new(vfs(), mutant);
    let said = fails(
        &target,
        "  steps:\n  - create: c\n    parent: nope\n    fails: any\n",
    );
    assert!(
        said.contains("create c on nope failed, as stated, but did harm"),
        "{said}"
    );
}

#[test]
fn a_call_that_is_lost_after_a_kill_is_told() {
    let mutant = mutant::find("create-not-atomic").expect("a mutant");
    let target = MutatedTarget::new(vfs(), mutant);
    let steps = "  steps:\n  - create: b\n  - in: b\n    do: [{file: f, text: x}, {dir: d}]\n  - kill-at-each-syscall: [{create: t, parent: b}]\n";
    let said = fails(&target, steps);
    assert!(said.contains("killed at its system call"), "{said}");
}

#[rstest]
#[case("  needs: [quota]\n", "needs quota, which is not claimed")]
#[case("  needs: ['layout:btrfs']\n", "needs the on-disk layout of btrfs")]
fn what_is_not_there_is_skipped(#[case] needs: &str, #[case] reason: &str) {
    let report = run(&*vfs(), &format!("{needs}  steps:\n  - create: b\n"));
    assert_eq!(report.outcome, Outcome::Skip);
    assert_eq!(report.reason.as_deref(), Some(reason));
}

#[test]
fn a_driver_that_does_not_start_or_panics_fails_the_case() {
    let refuses = Factory::new("refuses", |_: &Path, _: &[String]| {
        Err(Error::Other("no disk today".to_string()))
    });
    let said = fails(&refuses, "  steps:\n  - create: b\n");
    assert!(
        said.contains("init: expected success, found: no disk today (other)"),
        "{said}"
    );
    let panics = Factory::new("panics", |_: &Path, _: &[String]| panic!("on purpose"));
    let said = fails(&panics, "  steps:\n  - create: b\n");
    assert!(said.contains("panicked: on purpose"), "{said}");
}

#[test]
fn a_failing_case_is_kept_when_asked() {
    let library = library("  steps:\n  - exists: b\n");
    let tmp = tempfile::tempdir().expect("a directory");
    let place = Place::probe(tmp.path(), "dir").expect("a place");
    let limits = RunLimits {
        keep: Keep::Failing,
        ..RunLimits::default()
    };
    let case = library.cases().next().expect("a case").clone();
    let report = std::thread::scope(|s| {
        let run = || run_case(&*vfs(), &place, &case, &limits);
        s.spawn(run).join().expect("no panic")
    });
    let kept = report.kept.expect("kept");
    assert!(kept.join("home").is_dir());
}
