//! Changes of real trees.

use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use proptest::prelude::*;
use rstest::rstest;

use crate::archive::testing::{Overlay, build, copy, now_at, open, place, run, scanned, some_ops};
use crate::archive::{
    Change, ChangesOptions, Error, Form, changes, changes_with, layer_changes, model_changes,
};

fn shown(changes: &[Change]) -> Vec<String> {
    changes.iter().map(ToString::to_string).collect()
}

fn compared(new: &Path, old: &Path) -> Vec<String> {
    let found = changes(open(new).as_fd(), Some(open(old).as_fd())).expect("compare");
    shown(&found)
}

const BASE: &str = r#"
- {dir: d, mode: "0755", mtime: "50"}
- {dir: d/e, mtime: "50"}
- {file: d/e/f, text: "12345", mtime: "100.25", xattrs: {user.k: v}}
- {file: d-x, text: "x", mtime: "100"}
- {file: g, text: "g", mtime: "100"}
- {hardlink: h, to: g}
- {symlink: s, to: one, mtime: "100"}
- {dir: empty, mtime: "50"}
- {char: c, dev: "1:3", mtime: "100"}
"#;

#[rstest]
#[case::nothing("[]", &[])]
#[case::a_file("[{file: d/e/new, text: n}]", &["C /d", "C /d/e", "A /d/e/new"])]
#[case::a_tree("[{dir: n}, {dir: n/n}, {file: n/n/n, text: n}]", &["A /n", "A /n/n", "A /n/n/n"])]
#[case::content("[{file: g, text: longer}]", &["C /g", "C /h"])]
#[case::same_size_and_time("[{write: d/e/f, text: '54321'}, {touch: d/e/f, mtime: '100.25'}]", &["C /d", "C /d/e", "C /d/e/f"])]
#[case::rewritten_as_it_was("[{write: d/e/f, text: '12345'}, {touch: d/e/f, mtime: '100.25'}]", &[])]
#[case::fraction_of_time("[{touch: d/e/f, mtime: '100.250000001'}]", &["C /d", "C /d/e", "C /d/e/f"])]
#[case::mode("[{chmod: d-x, mode: '4755'}]", &["C /d-x"])]
#[case::owner("[{chown: s, owner: '1:2'}]", &["C /s"])]
#[case::attribute("[{setxattr: d/e/f, name: user.k, value: w}]", &["C /d", "C /d/e", "C /d/e/f"])]
#[case::attribute_gone("[{rmxattr: d/e/f, name: user.k}]", &["C /d", "C /d/e", "C /d/e/f"])]
#[case::attribute_of_a_directory("[{setxattr: empty, name: user.k, value: w}]", &["C /empty"])]
#[case::link_target("[{remove: s}, {symlink: s, to: two, mtime: '100'}]", &["C /s"])]
#[case::device("[{remove: c}, {char: c, dev: '1:5', mtime: '100'}]", &["C /c"])]
#[case::one_of_two_names("[{unlink: h}]", &["D /h"])]
#[case::a_further_name("[{hardlink: i, to: g}]", &["A /i"])]
#[case::a_whole_directory("[{remove: d}]", &["D /d"])]
#[case::inside_a_directory("[{remove: d/e}]", &["C /d", "D /d/e"])]
#[case::directory_to_file("[{remove: d}, {file: d, text: x}]", &["C /d"])]
#[case::file_to_directory("[{remove: g}, {dir: g}, {file: g/x, text: x}]", &["C /g", "A /g/x"])]
#[case::made_anew("[{remove: d}, {dir: d, mode: '0755'}, {file: d/n, text: n}]", &["C /d", "D /d/e", "A /d/n"])]
#[case::renamed("[{rename: d-x, to: y}]", &["D /d-x", "A /y"])]
#[case::directory_time("[{touch: d, mtime: '9'}]", &[])]
fn of_a_copy(#[case] edit: &str, #[case] expected: &[&str]) {
    let place = place();
    let (old, new) = (place.path().join("old"), place.path().join("new"));
    build(&old, BASE);
    copy(&old, &new);
    // Later than the copy by more than a tick of the clock that ctimes are taken from.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let settled = Some(now_at(place.path()));
    build(&new, edit);
    // The root itself is never a change.
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o711)).unwrap();
    assert_eq!(compared(&new, &old), expected);
    let options = ChangesOptions {
        settled,
        touched: None,
    };
    let quick = changes_with(open(&new).as_fd(), Some(open(&old).as_fd()), &options);
    assert_eq!(shown(&quick.expect("compare")), expected);
    assert_eq!(
        shown(&model_changes(&scanned(&new), &scanned(&old))),
        expected
    );
}

/// What is known not to have changed is not read.
#[test]
fn a_settled_copy_is_not_compared_by_content() {
    let place = place();
    let (old, new) = (place.path().join("old"), place.path().join("new"));
    build(&old, "[{file: f, text: one, mtime: '5'}]");
    build(&new, "[{file: f, text: two, mtime: '5'}]");
    std::thread::sleep(std::time::Duration::from_millis(20));
    let settled = Some(now_at(place.path()));
    let of = |options| changes_with(open(&new).as_fd(), Some(open(&old).as_fd()), &options);
    let knowing = ChangesOptions {
        settled,
        touched: None,
    };
    assert_eq!(shown(&of(knowing).unwrap()), [""; 0]);
    assert_eq!(shown(&of(ChangesOptions::default()).unwrap()), ["C /f"]);
}

#[test]
fn without_a_parent_all_is_added_in_path_order() {
    let place = place();
    let new = place.path().join("new");
    build(&new, BASE);
    let found = changes(open(&new).as_fd(), None).unwrap();
    let expected = [
        "A /c", "A /d", "A /d-x", "A /d/e", "A /d/e/f", "A /empty", "A /g", "A /h", "A /s",
    ];
    assert_eq!(shown(&found), expected);
}

/// More entries than one task takes, on both sides.
#[test]
fn of_a_large_directory() {
    let place = place();
    let (old, new) = (place.path().join("old"), place.path().join("new"));
    for (root, from) in [(&old, 0), (&new, 10)] {
        std::fs::create_dir(root).unwrap();
        for n in from..from + 6000 {
            std::fs::write(root.join(format!("f{n:05}")), "").unwrap();
            std::fs::File::open(root.join(format!("f{n:05}")))
                .and_then(|f| f.set_modified(std::time::SystemTime::UNIX_EPOCH))
                .unwrap();
        }
    }
    std::fs::write(new.join("f03000"), "changed").unwrap();
    let mut expected: Vec<String> = (0..10).map(|n| format!("D /f{n:05}")).collect();
    expected.push("C /f03000".into());
    expected.extend((6000..6010).map(|n| format!("A /f{n:05}")));
    assert_eq!(compared(&new, &old), expected);
}

/// Deeper than one path the kernel takes, and than the descriptors a process may have.
#[test]
fn of_a_deep_tree() {
    let place = place();
    let (old, new) = (place.path().join("old"), place.path().join("new"));
    for root in [&old, &new] {
        std::fs::create_dir(root).unwrap();
        let mut at = open(root);
        for _ in 0..1500 {
            rustix::fs::mkdirat(&at, "deep", rustix::fs::Mode::RWXU).unwrap();
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
            at = rustix::fs::openat(&at, "deep", flags, rustix::fs::Mode::empty()).unwrap();
        }
        if root == &new {
            rustix::fs::mkdirat(&at, "last", rustix::fs::Mode::RWXU).unwrap();
        }
    }
    let found = changes(open(&new).as_fd(), Some(open(&old).as_fd())).unwrap();
    assert_eq!(found.len(), 1501);
    assert!(found[1500].to_string().ends_with("/deep/last"));
}

#[rstest]
#[case::renamed_in_place("trusted.overlay.redirect", "d", "d")]
#[case::copied_up_without_content("trusted.overlay.metacopy", "f", "f")]
fn content_that_lies_elsewhere_is_refused(
    #[case] attribute: &str,
    #[case] on: &str,
    #[case] named: &str,
) {
    let place = place();
    let (lower, upper) = (place.path().join("lower"), place.path().join("upper"));
    build(&lower, "[{dir: d}, {file: f, text: x}]");
    build(&upper, "[{dir: d}, {file: f, text: x}]");
    build(
        &upper,
        &format!("[{{setxattr: {on}, name: {attribute}, value: x}}]"),
    );
    let (lower, upper) = (open(&lower), open(&upper));
    match layer_changes(upper.as_fd(), &[lower.as_fd()], Form::Overlay) {
        Err(Error::Refused { name, .. }) => assert_eq!(name.as_bytes(), named.as_bytes()),
        other => panic!("{other:?}"),
    }
}

/// The same edit as an AUFS branch keeps it, with what AUFS keeps for itself.
#[rstest]
#[case::deleted("[{file: .wh.g, text: ''}, {dir: d}, {file: d/.wh.e, text: ''}]", &["C /d", "D /d/e", "D /g"])]
#[case::deleted_twice("[{file: .wh.gone, text: ''}]", &[])]
#[case::opaque("[{dir: d}, {file: d/.wh..wh..opq, text: ''}, {file: d/n, text: n}]", &["C /d", "D /d/e", "A /d/n"])]
#[case::its_own("[{file: .wh..wh.aufs, text: ''}, {dir: .wh..wh.plnk}, {dir: .wh..wh.orph}]", &[])]
#[case::made_again("[{file: .wh.g, text: ''}, {file: g, text: new}]", &["C /g"])]
fn of_an_aufs_branch(#[case] branch: &str, #[case] expected: &[&str]) {
    let place = place();
    let (lower, upper) = (place.path().join("lower"), place.path().join("upper"));
    build(&lower, BASE);
    build(&upper, branch);
    let (lower, upper) = (open(&lower), open(&upper));
    let found = layer_changes(upper.as_fd(), &[lower.as_fd()], Form::Aufs).unwrap();
    assert_eq!(shown(&found), expected);
}

/// A deletion in a middle branch hides what lies below it.
#[test]
fn a_middle_aufs_branch_hides() {
    let place = place();
    let [bottom, middle, top] = ["bottom", "middle", "top"].map(|n| place.path().join(n));
    build(&bottom, BASE);
    build(
        &middle,
        "[{file: .wh.g, text: ''}, {dir: d}, {file: d/.wh..wh..opq, text: ''}, {file: d/m, text: m}]",
    );
    build(
        &top,
        "[{file: g, text: g, mtime: '100'}, {file: .wh.h, text: ''}, {dir: d}, {file: d/.wh.e, text: ''}, {file: d/.wh.m, text: ''}]",
    );
    let [bottom, middle, top] = [bottom, middle, top].map(|p| open(&p));
    let lowers = [middle.as_fd(), bottom.as_fd()];
    let found = layer_changes(top.as_fd(), &lowers, Form::Aufs).unwrap();
    assert_eq!(shown(&found), ["C /d", "D /d/m", "A /g", "D /h"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Two overlay layers, edited through their mounts: the walk of the upper directory alone, the walk of both mounted trees and
    /// the model agree, and so does a copy that was edited in the same way with its copy.
    #[test]
    fn three_ways_to_find_them_agree(base in some_ops(), middle in some_ops(), top in some_ops()) {
        let place = place();
        let bottom = place.path().join("bottom");
        std::fs::create_dir(&bottom).unwrap();
        run(&bottom, &base);
        // The middle layer is filled through a mount of its own, and seen below the top one.
        let parent = Overlay::new(place.path(), "middle", &[&bottom]);
        run(&parent.merged, &middle);
        tick();
        let child = Overlay::new(place.path(), "top", &[&parent.upper, &bottom]);
        run(&child.merged, &top);
        let whole = compared(&child.merged, &parent.merged);
        let (upper, lowers) = (open(&child.upper), [open(&parent.upper), open(&bottom)]);
        let native = layer_changes(upper.as_fd(), &[lowers[0].as_fd(), lowers[1].as_fd()], Form::Overlay);
        prop_assert_eq!(&shown(&native.unwrap()), &whole);
        let modelled = model_changes(&scanned(&child.merged), &scanned(&parent.merged));
        prop_assert_eq!(&shown(&modelled), &whole);
    }
}

/// Two inodes born and changed within one tick of the kernel's clock cannot be told apart by their times.
fn tick() {
    std::thread::sleep(std::time::Duration::from_millis(11));
}
