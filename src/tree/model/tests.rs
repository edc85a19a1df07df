//! The model against real directories: the same operations, the same errnos, the same trees.

use std::os::fd::AsFd;
use std::path::Path;

use proptest::prelude::*;
use rustix::fs::{Mode, OFlags};

use super::*;
use crate::tree::build::{Inodes, Outcome, run_ops};
use crate::tree::{Compare, ScanOptions, compare, scan};

fn ops(yaml: &str) -> Vec<Op> {
    serde_yaml::from_str(yaml).unwrap_or_else(|e| panic!("{e}: {yaml}"))
}

/// Does the operations below `place`, and gives the outcomes and the tree.
fn really(place: &Path, list: &[Op]) -> (Vec<Outcome>, Tree) {
    assert!(
        rustix::process::geteuid().is_root(),
        "needs root: sudo -E cargo test"
    );
    let dir = tempfile::tempdir_in(place).expect("a directory");
    let root = rustix::fs::open(dir.path(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .expect("open");
    rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755)).expect("chmod");
    let outcomes = run_ops(root.as_fd(), list, &mut Inodes::default()).expect("run");
    (
        outcomes,
        scan(root.as_fd(), &ScanOptions::default()).expect("scan"),
    )
}

fn check(place: &Path, list: &[Op]) -> Result<(), String> {
    let (outcomes, found) = really(place, list);
    let mut model = Model::new();
    if let Some(first) = model.follow(list, &outcomes).first() {
        return Err(format!("{first}: {:?}", list[first.index]));
    }
    let diff = compare(&model.tree(), &found, &Compare::default());
    if diff.is_empty() {
        Ok(())
    } else {
        Err(diff.to_string())
    }
}

fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(texts).prop_map(str::to_string)
}

fn path() -> impl Strategy<Value = String> {
    let name = prop_oneof![30 => one_of(&["a", "b", "c"]), 1 => Just("n".repeat(256))];
    prop_oneof![
        30 => prop::collection::vec(name, 1..4).prop_map(|names| names.join("/")),
        1 => Just("/".to_string()),
    ]
}

fn mode() -> impl Strategy<Value = String> {
    one_of(&[
        "0755", "0700", "0777", "1777", "2775", "4755", "6711", "0000", "0640", "2640", "0066",
    ])
}

fn owner() -> impl Strategy<Value = String> {
    one_of(&["0:0", "1000:1000", "1000:2000", "2000:1000"])
}

/// Attributes of a new entry, some of them.
fn attributes() -> impl Strategy<Value = String> {
    let some = |p: &'static str, s: BoxedStrategy<String>| prop_oneof![2 => Just(String::new()), 1 => s.prop_map(move |v| format!(", {p}: \"{v}\""))];
    (
        some("mode", mode().boxed()),
        some("owner", owner().boxed()),
        some("mtime", one_of(&["5.000000001", "-3"]).boxed()),
    )
        .prop_map(|(m, o, t)| m + &o + &t)
}

const ACL: &str = r"\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x07\x00\xd0\x07\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x05\x00\xff\xff\xff\xff\x20\x00\x01\x00\xff\xff\xff\xff";
const MINIMAL_ACL: &str = r"\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x04\x00\x04\x00\xff\xff\xff\xff\x20\x00\x01\x00\xff\xff\xff\xff";
const CAPABILITY: &str =
    r"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";

fn xattr() -> impl Strategy<Value = String> {
    let access = |acl: &str| format!("name: system.posix_acl_access, value: '{acl}'");
    prop_oneof![
        3 => one_of(&["name: user.k, value: v", "name: user.k, value: ''", "name: trusted.t, value: v", "name: user.l, value: w"]),
        1 => one_of(&["name: nonsense, value: v", "name: system.x, value: v", "name: '', value: v", "name: user., value: v"]),
        1 => Just(format!("name: security.capability, value: '{CAPABILITY}'")),
        1 => Just(access(ACL)),
        1 => Just(access(MINIMAL_ACL)),
        1 => Just(format!("name: system.posix_acl_default, value: '{ACL}'")),
    ]
}

fn open_flags() -> impl Strategy<Value = String> {
    let access = one_of(&["O_RDONLY", "O_WRONLY", "O_RDWR"]);
    let more = prop::sample::subsequence(
        vec![
            "O_CREAT",
            "O_EXCL",
            "O_TRUNC",
            "O_APPEND",
            "O_DIRECTORY",
            "O_NOFOLLOW",
        ],
        0..4,
    );
    (access, more).prop_map(|(access, more)| [vec![access.as_str()], more].concat().join(", "))
}

const STARTS: &[&str] = &[
    "- {dir: a, mode: \"0777\"}\n- {dir: a/b, mode: \"2777\", owner: \"1000:2000\"}\n- {file: a/b/c, text: x, mode: \"6755\", owner: \"1000:1000\"}\n- {hardlink: c, to: a/b/c}\n- {chmod: /, mode: \"1777\"}\n",
    "- {dir: a, mode: \"1777\", owner: \"2000:1000\"}\n- {file: a/a, text: x, owner: \"1000:1000\"}\n- {dir: a/b}\n- {symlink: b, to: a/b}\n- {dir: a/b/c, mode: \"0700\", owner: \"2000:1000\"}\n- {symlink: c, to: b/../a}\n",
];

/// One operation as YAML, without its end.
fn verb() -> impl Strategy<Value = String> {
    let target = one_of(&[
        "a", "/b", "../a", "a/b", "c/../b", "/", "..", ".", "none", "a/",
    ]);
    prop_oneof![
        4 => (path(), attributes(), one_of(&["text: hello", "text: ''", "size: 5000, seed: 3", "size: 9000, islands: [{at: 5000, text: i}]"]))
            .prop_map(|(p, a, c)| format!("file: {p}, {c}{a}")),
        4 => (path(), attributes()).prop_map(|(p, a)| format!("dir: {p}{a}")),
        2 => (path(), target).prop_map(|(p, t)| format!("symlink: {p}, to: {t}")),
        2 => (path(), path()).prop_map(|(p, t)| format!("hardlink: {p}, to: {t}")),
        1 => (path(), attributes()).prop_map(|(p, a)| format!("fifo: {p}{a}")),
        1 => path().prop_map(|p| format!("socket: {p}")),
        1 => (path(), attributes()).prop_map(|(p, a)| format!("char: {p}, dev: \"250:3\"{a}")),
        1 => path().prop_map(|p| format!("block: {p}, dev: \"250:3\"")),
        1 => path().prop_map(|p| format!("remove: {p}")),
        1 => path().prop_map(|p| format!("unlink: {p}")),
        1 => path().prop_map(|p| format!("rmdir: {p}")),
        4 => (path(), path(), one_of(&["", "", ", noreplace: true", ", exchange: true", ", noreplace: true, exchange: true"]))
            .prop_map(|(p, t, f)| format!("rename: {p}, to: {t}{f}")),
        2 => (path(), mode()).prop_map(|(p, m)| format!("chmod: {p}, mode: \"{m}\"")),
        2 => (path(), owner(), any::<bool>()).prop_map(|(p, o, r)| format!("chown: {p}, owner: \"{o}\", recursive: {r}")),
        1 => path().prop_map(|p| format!("touch: {p}, mtime: \"7.5\"")),
        1 => (path(), 0u32..9000).prop_map(|(p, at)| format!("write: {p}, text: written, at: {at}")),
        1 => path().prop_map(|p| format!("append: {p}, text: more")),
        1 => (path(), 0u32..9000).prop_map(|(p, size)| format!("truncate: {p}, size: {size}")),
        2 => (path(), xattr()).prop_map(|(p, x)| format!("setxattr: {p}, {x}")),
        1 => (path(), one_of(&["user.k", "trusted.t", "nonsense", "security.capability"]))
            .prop_map(|(p, n)| format!("rmxattr: {p}, name: {n}")),
        2 => (path(), open_flags(), one_of(&["", ", text: opened"])).prop_map(|(p, f, t)| format!("open: {p}, flags: [{f}]{t}")),
        1 => path().prop_map(|p| format!("read: {p}, is: hello")),
        1 => path().prop_map(|p| format!("list: {p}, are: [a]")),
        1 => path().prop_map(|p| format!("inode: {p}, save: i")),
    ]
}

fn list(len: usize) -> impl Strategy<Value = String> {
    let actor = prop_oneof![
        5 => Just(String::new()),
        1 => owner().prop_map(|o| format!(", as: \"{o}\"")),
    ];
    // As root only: tmpfs takes setgid away from a file whose group the owner is not in, ext4 does not.
    let no_acl =
        path().prop_map(|p| format!("- {{rmxattr: {p}, name: system.posix_acl_access}}\n"));
    let op = prop_oneof![
        60 => (verb(), actor).prop_map(|(v, a)| format!("- {{{v}{a}}}\n")),
        1 => no_acl,
    ];
    // Half of the lists start where there is something to act on.
    let start = prop_oneof![Just(String::new()), one_of(STARTS)];
    let ops = prop::collection::vec(op, 1..len).prop_map(|ops| ops.concat());
    (start, ops).prop_map(|(start, ops)| start + &ops)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn the_model_is_what_the_kernel_does(list in list(40)) {
        let list = ops(&list);
        for place in [&std::env::temp_dir(), Path::new("/dev/shm")] {
            let told = |e| TestCaseError::fail(format!("in {}: {e}", place.display()));
            check(place, &list).map_err(told)?;
        }
    }
}

/// What the scenario allows to fail is taken as it happened; what nobody allowed is told.
#[test]
fn reality_is_followed() {
    use rustix::io::Errno;
    let list =
        ops("[{dir: a}, {dir: b}, {rename: a, to: c, may-fail: [EXDEV]}, {rename: b, to: d}]");
    let xdev = || Err(Errno::XDEV.into());
    let mut model = Model::new();
    let told = model.follow(&list, &[Ok(()), Ok(()), xdev(), xdev()]);
    let told: Vec<String> = told.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["operation 4: success expected, found: EXDEV"]);
    let names: Vec<String> = model
        .tree()
        .entries
        .keys()
        .map(ToString::to_string)
        .collect();
    assert_eq!(names, ["/", "a", "b"]);
}

#[test]
fn what_depends_on_the_filesystem_is_not_predicted() {
    let list = ops(&format!(
        "[{{file: f}}, {{setxattr: f, name: user.big, value: {}}}, {{char: c, dev: '0:0'}}, {{truncate: f, size: 4T}}]",
        "v".repeat(2000)
    ));
    let mut model = Model::new();
    let doubts = |p: &Prediction| matches!(p, Prediction::Unpredicted(_));
    let predictions = model.apply(&list);
    assert_eq!(predictions[0], Prediction::Done);
    assert!(predictions[1..].iter().all(doubts), "{predictions:?}");
    assert_eq!(
        model.tree().entries.len(),
        2,
        "what is in doubt changes nothing"
    );
    assert!(
        model
            .follow(&list[1..], &[Ok(()), Ok(()), Ok(())])
            .is_empty()
    );
    let tree = model.tree();
    let file = &tree.entries[&crate::tree::TreePath(b"f".to_vec())];
    assert!(matches!(&file.kind, crate::tree::Kind::File(Some(c)) if c.size == 4 << 40));
    assert_eq!(tree.entries.len(), 3);
}

#[test]
fn times_are_learnt_and_then_kept() {
    let list = ops("[{dir: d, mtime: '5'}, {file: d/f, text: x}]");
    let (outcomes, found) = really(&std::env::temp_dir(), &list);
    let mut model = Model::new();
    model.follow(&list, &outcomes);
    assert_eq!(
        model
            .tree()
            .entries
            .values()
            .filter(|e| e.mtime.is_none())
            .count(),
        2
    );
    model.learn_times(&found);
    let diff = compare(&model.tree(), &found, &Compare::default());
    assert!(diff.is_empty(), "{diff}");
    assert!(model.tree().entries.values().all(|e| e.mtime.is_some()));
    model.apply(&ops("[{append: d/f, text: y}]"));
    assert_eq!(
        model
            .tree()
            .entries
            .values()
            .filter(|e| e.mtime.is_none())
            .count(),
        1
    );
}
