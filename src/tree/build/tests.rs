//! Operations in a real directory, seen through the scanner.

use std::os::fd::{AsFd, OwnedFd};

use rstest::rstest;
use rustix::fs::{Mode, OFlags};

use super::*;
use crate::tree::{Compare, ScanOptions, Tree, compare, scan};

fn ops(yaml: &str) -> Vec<Op> {
    serde_yaml::from_str(yaml).expect("operations")
}

struct Place {
    _dir: tempfile::TempDir,
    root: OwnedFd,
}

/// A directory to work in.
fn place() -> Place {
    assert!(
        rustix::process::geteuid().is_root(),
        "needs root: sudo -E cargo test"
    );
    let dir = tempfile::tempdir().expect("a directory");
    let root = rustix::fs::open(dir.path(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .expect("open");
    Place { _dir: dir, root }
}

fn build(list: &str) -> Tree {
    let place = place();
    apply_ops(place.root.as_fd(), &ops(list), &mut Inodes::default())
        .expect("the operations succeed");
    scan(place.root.as_fd(), &ScanOptions::default()).expect("scan")
}

const EVERY_KIND: &str = r#"
- {dir: d, mode: "2750", owner: "5:6", mtime: "1000.000000001", xattrs: {user.d: x}}
- {file: d/f, text: hello, mode: "4755", owner: "7:8", mtime: "-5.5", xattrs: {user.k: '\xff', security.capability: '\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00'}}
- {file: 'odd\x0a\xff', size: 100000, seed: 7}
- {file: sparse, size: 1G, islands: [{at: 512M, text: island}]}
- {symlink: s, to: /nowhere, owner: "9:9", mtime: "77"}
- {fifo: p, mode: "0600"}
- {socket: k, mode: "0777", owner: "1:1"}
- {char: c, dev: "1:3", mode: "0666", mtime: "3"}
- {block: b, dev: "259:1048575"}
- {hardlink: h, to: d/f}
- {hardlink: sh, to: s}
"#;

#[test]
fn every_kind_is_built_as_stated() {
    let found = build(EVERY_KIND);
    let expected = Tree::from_entries(&ops(EVERY_KIND)).expect("entries");
    let diff = compare(&expected, &found, &Compare::default());
    assert!(diff.is_empty(), "{diff}");
    assert_eq!(found.entries.len(), expected.entries.len() + 1);
    assert!(
        found
            .entries
            .values()
            .all(|e| e.mode.is_some() && e.xattrs.is_some() && e.link.is_some())
    );
}

#[rstest]
#[case::text_replaces(
    "[{file: a, text: long}, {file: a, text: s}]",
    "[{file: a, text: s, mode: '0644'}]"
)]
#[case::write_in_place(
    "[{file: a, text: abcdef}, {write: a, text: XY, at: 2}]",
    "[{file: a, text: abXYef}]"
)]
#[case::append(
    "[{file: a, text: ab}, {append: a, text: c}]",
    "[{file: a, text: abc}]"
)]
#[case::truncate(
    "[{file: a, text: abc}, {truncate: a, size: 5}]",
    "[{file: a, text: 'abc\\x00\\x00'}]"
)]
#[case::remove_tree("[{dir: d}, {dir: d/e}, {file: d/e/f}, {remove: d}]", "[]")]
#[case::rename_keeps_dir_time(
    "[{dir: d, mtime: '9'}, {file: d/f}, {rename: d, to: e}]",
    "[{dir: e, mtime: '9'}, {file: e/f}]"
)]
#[case::touch_is_the_last_word(
    "[{dir: d, mtime: '9'}, {touch: d, mtime: '8'}]",
    "[{dir: d, mtime: '8'}]"
)]
#[case::exchange(
    "[{dir: d}, {file: f}, {rename: d, to: f, exchange: true}]",
    "[{dir: f}, {file: d}]"
)]
#[case::chown_recursive(
    "[{dir: d}, {symlink: d/s, to: ..}, {chown: d, owner: '4:5', recursive: true}]",
    "[{dir: d, owner: '4:5'}, {symlink: d/s, to: .., owner: '4:5'}]"
)]
#[case::another_user(
    "[{dir: d, mode: '0777'}, {file: d/f, as: '11:12'}, {file: g, fails: [EACCES], as: '11:12'}]",
    "[{dir: d}, {file: d/f, owner: '11:12', mode: '0644'}]"
)]
#[case::absolute_links_stay_inside(
    "[{dir: etc}, {symlink: l, to: /etc}, {file: l/passwd, text: mine}]",
    "[{dir: etc}, {symlink: l, to: /etc}, {file: etc/passwd, text: mine}]"
)]
#[case::open_flags(
    "[{open: f, flags: [O_WRONLY, O_CREAT, O_EXCL], text: x}, {open: f, flags: [O_RDWR, O_APPEND], text: y}]",
    "[{file: f, text: xy, mode: '0644'}]"
)]
#[case::seen_again(
    "[{file: f, text: x}, {inode: f, save: i}, {rename: f, to: g}, {inode: g, same-as: i}, {file: h}, {inode: h, differs-from: i, names: 1}, {read: g, is: x}, {list: /, are: [g, h]}]",
    "[{file: g}, {file: h}]"
)]
#[case::xattrs(
    "[{dir: d}, {setxattr: d, name: user.a, value: b}, {setxattr: d, name: user.c, value: d}, {rmxattr: d, name: user.a}]",
    "[{dir: d, xattrs: {user.c: d}}]"
)]
fn operations_do_what_they_say(#[case] list: &str, #[case] entries: &str) {
    let expected = Tree::from_entries(&ops(entries)).expect("entries");
    let diff = compare(&expected, &build(list), &Compare::default());
    assert!(diff.is_empty(), "{diff}");
}

#[rstest]
#[case(
    "{unlink: none}",
    "operation 1 (unlink: none): success expected, found: ENOENT"
)]
#[case(
    "{file: a, fails: [EROFS]}",
    "operation 1 (file: a): EROFS expected, it succeeded"
)]
#[case(
    "{rmdir: /, may-fail: [EXDEV]}",
    "operation 1 (rmdir: /): success or EXDEV expected, found: EBUSY"
)]
#[case(
    "{list: /, are: [x]}",
    "operation 1 (list: /): success expected, found: names missing: [x], unexpected: []"
)]
#[case(
    "{inode: /, same-as: i}",
    "operation 1 (inode: /): success expected, found: no inode was saved as i"
)]
#[case(
    "{open: a, flags: [O_SYNC]}",
    "operation 1 (open: a): success expected, found: unknown flag O_SYNC"
)]
fn surprises_are_told(#[case] op: &str, #[case] text: &str) {
    let place = place();
    let e = apply_ops(
        place.root.as_fd(),
        &ops(&format!("[{op}]")),
        &mut Inodes::default(),
    )
    .expect_err("a surprise");
    assert_eq!(e.to_string(), text);
}

#[test]
fn all_operations_are_tried_and_judged_later() {
    let place = place();
    let list = ops("[{unlink: a, fails: [any]}, {file: a, may-fail: [EROFS]}, {fifo: a}]");
    let outcomes = run_ops(place.root.as_fd(), &list, &mut Inodes::default()).expect("run");
    assert_eq!(
        outcomes,
        [Err(Errno::NOENT.into()), Ok(()), Err(Errno::EXIST.into())]
    );
    assert!(judge(0, &list[0], &outcomes[0]).is_ok() && judge(1, &list[1], &outcomes[1]).is_ok());
    assert!(judge(2, &list[2], &outcomes[2]).is_err());
}
