//! What the records of the filesystem tell of a layer, against a walk over all of it.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rstest::rstest;

use super::super::tests::{Lab, plain};
use super::*;
use crate::archive::testing::{open, ops, run, some_ops};
use crate::archive::{ChangesOptions, IdMaps, changes, changes_with};
use crate::graphdriver::ErrorClass;
use crate::tree::op::Op;

/// A driver on a btrfs of its own.
struct OnBtrfs {
    driver: NaiveDiff<Btrfs>,
    lab: Lab,
}

impl Drop for OnBtrfs {
    fn drop(&mut self) {
        // The loop device goes with the last descriptor.
        sys::mount::umount_detach(&self.lab.home()).unwrap();
    }
}

impl OnBtrfs {
    /// Panics, saying why, where no btrfs can be made.
    fn new(worth_searching: u64) -> Self {
        let lab = Lab::new(NAME, "/dev/shm");
        let (image, home) = (lab.dir.path().join("image"), lab.home());
        File::create(&image).unwrap().set_len(256 << 20).unwrap();
        std::fs::create_dir(&home).unwrap();
        let steps = [
            ("mkfs.btrfs", vec!["-q".into(), image.clone()]),
            (
                "mount",
                vec!["-o".into(), "loop".into(), image, home.clone()],
            ),
        ];
        for (program, args) in steps {
            let done = Command::new(program).args::<_, &PathBuf>(&args).output();
            let done = done.unwrap_or_else(|e| {
                panic!("{program}: {e}; this test needs btrfs-progs and mount")
            });
            let said = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success(), "no btrfs here: {program}: {said}");
        }
        let mut btrfs = Btrfs::open(&home, &InitOptions::default(), None).unwrap();
        btrfs.worth_searching = worth_searching;
        Self {
            driver: NaiveDiff::new(Arc::new(btrfs), IdMaps::default()),
            lab,
        }
    }

    fn create(&self, id: &str, parent: Option<&str>) {
        self.driver.create(id, parent, &plain()).unwrap();
    }

    fn edit(&self, id: &str, list: &[Op]) {
        run(&self.path(id), list);
    }

    fn path(&self, id: &str) -> PathBuf {
        self.driver.get(id, "").unwrap()
    }

    fn sync(&self) {
        sys::btrfs::sync(self.driver.driver().home.layers_dir()).unwrap();
    }

    fn touched(&self, new: &str, old: &str) -> Option<HashSet<u64>> {
        let (new, old) = (open(&self.path(new)), open(&self.path(old)));
        self.driver.touched(new.as_fd(), old.as_fd())
    }

    /// The changes by the records, which must be usable, and those by the walk over all.
    fn both_ways(&self, new: &str, old: &str) -> [Vec<String>; 2] {
        assert!(self.touched(new, old).is_some());
        let native = self.driver.changes(new, Some(old)).unwrap();
        [native, self.by_walk(new, old)]
            .map(|found| found.iter().map(ToString::to_string).collect())
    }

    fn by_walk(&self, new: &str, old: &str) -> Vec<crate::graphdriver::Change> {
        let (new, old) = (open(&self.path(new)), open(&self.path(old)));
        changes(new.as_fd(), Some(old.as_fd())).unwrap()
    }
}

const BASE: &str = r#"[
    {dir: d}, {dir: d/e}, {file: d/e/f, text: "12345", mtime: "100.25", xattrs: {user.k: v}}, {file: d/g, text: g, mtime: "100"},
    {dir: u}, {dir: u/v}, {file: u/v/w, text: w, mtime: "100"}, {hardlink: h, to: u/v/w}, {symlink: s, to: one, mtime: "100"}]"#;

#[rstest]
#[case::nothing("[]", "[]", &[])]
#[case::content("[{write: d/e/f, text: longer}]", "[]", &["C /d", "C /d/e", "C /d/e/f"])]
#[case::same_size_and_time("[{write: d/e/f, text: '54321'}, {touch: d/e/f, mtime: '100.25'}]", "[]", &["C /d", "C /d/e", "C /d/e/f"])]
#[case::through_another_name("[{write: h, text: x}]", "[]", &["C /h", "C /u", "C /u/v", "C /u/v/w"])]
#[case::attribute("[{setxattr: d/e/f, name: user.k, value: w}]", "[]", &["C /d", "C /d/e", "C /d/e/f"])]
#[case::attribute_gone("[{rmxattr: d/e/f, name: user.k}]", "[]", &["C /d", "C /d/e", "C /d/e/f"])]
#[case::mode_of_a_directory("[{chmod: u/v, mode: '0700'}]", "[]", &["C /u", "C /u/v"])]
#[case::removed("[{remove: u}]", "[]", &["D /u"])]
#[case::deep_removal("[{unlink: u/v/w}]", "[]", &["C /u", "C /u/v", "D /u/v/w"])]
#[case::added("[{file: u/v/x, text: x}]", "[]", &["C /u", "C /u/v", "A /u/v/x"])]
#[case::a_further_name("[{hardlink: u/l, to: d/g}]", "[]", &["C /u", "A /u/l"])]
#[case::moved("[{rename: d/e, to: u/e}]", "[]", &["C /d", "D /d/e", "C /u", "A /u/e", "A /u/e/f"])]
#[case::changed_and_moved("[{write: d/g, text: x}, {rename: d/g, to: g}]", "[]", &["C /d", "D /d/g", "A /g"])]
#[case::moved_and_back("[{rename: u, to: x}, {rename: x, to: u}]", "[]", &[])]
#[case::in_the_parent("[]", "[{write: d/e/f, text: longer}]", &["C /d", "C /d/e", "C /d/e/f"])]
#[case::removed_from_the_parent("[]", "[{remove: u}]", &["A /u", "A /u/v", "A /u/v/w"])]
#[case::added_to_the_parent("[]", "[{file: u/x, text: x}]", &["C /u", "D /u/x"])]
#[case::the_same_in_both("[{write: d/g, text: x}, {touch: d/g, mtime: '7'}]", "[{write: d/g, text: x}, {touch: d/g, mtime: '7'}]", &[])]
#[case::a_number_in_both("[{file: n, text: x, mtime: '7'}]", "[{file: n, text: longer, mtime: '7'}]", &["C /n"])]
#[case::made_anew("[{remove: u}, {dir: u}, {dir: u/v}, {file: u/v/w, text: x, mtime: '100'}]", "[]", &["C /u", "C /u/v", "C /u/v/w"])]
fn by_the_records(
    #[case] child: &str,
    #[case] parent: &str,
    #[case] expected: &[&str],
    #[values(false, true)] settled: bool,
) {
    let lab = OnBtrfs::new(0);
    lab.create("base", None);
    lab.edit("base", &ops(BASE));
    if settled {
        lab.sync();
    }
    lab.create("top", Some("base"));
    lab.edit("top", &ops(child));
    lab.edit("base", &ops(parent));
    let mut expected = expected.to_vec();
    expected.sort_unstable_by_key(|line| line.split_at(2).1);
    for found in lab.both_ways("top", "base") {
        assert_eq!(found, expected);
    }
}

/// Whatever happened in parent, child and grandchild, at whatever moment it was written out.
#[test]
fn the_records_and_the_walk_agree() {
    let lab = OnBtrfs::new(0);
    let count = std::cell::Cell::new(0);
    let history = || prop::collection::vec((any::<bool>(), some_ops(), some_ops()), 1..4);
    let strategy = (some_ops(), some_ops(), any::<bool>(), history());
    let mut runner = TestRunner::new(Config {
        cases: 96,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(&strategy, |(first, more, settled, history)| {
        count.set(count.get() + 1);
        let [base, top] = ["base", "top"].map(|name| format!("{name}{}", count.get()));
        lab.create(&base, None);
        lab.edit(&base, &first);
        lab.edit(&base, &more);
        if settled {
            lab.sync();
        }
        lab.create(&top, Some(&base));
        for (parent_first, one, other) in history {
            let (first, second) = if parent_first {
                (&base, &top)
            } else {
                (&top, &base)
            };
            lab.edit(first, &one);
            lab.edit(second, &other);
            for (new, old) in [(&top, &base), (&base, &top)] {
                let [native, walked] = lab.both_ways(new, old);
                prop_assert_eq!(native, walked);
            }
        }
        for id in [&top, &base] {
            lab.driver.remove(id).unwrap();
        }
        Ok(())
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn only_what_was_touched_is_looked_at() {
    let lab = OnBtrfs::new(0);
    lab.create("base", None);
    lab.edit("base", &ops(BASE));
    lab.sync();
    lab.create("top", Some("base"));
    lab.edit("top", &ops("[{chmod: d/e/f, mode: '0600'}]"));
    let inode = |name: &str| {
        let st = rustix::fs::lstat(lab.path("top").join(name));
        st.unwrap().st_ino
    };
    let touched = lab.touched("top", "base").unwrap();
    assert_eq!(touched, HashSet::from(["", "d", "d/e", "d/e/f"].map(inode)));

    // What is said to be the same is not walked, even if it is not.
    let (new, old) = (open(&lab.path("top")), open(&lab.path("base")));
    let options = ChangesOptions {
        settled: None,
        touched: Some(HashSet::from([inode("")])),
    };
    let found = changes_with(new.as_fd(), Some(old.as_fd()), &options).unwrap();
    assert_eq!(found, []);
}

/// Reading sets times of access, also in the directories that a walk reads.
#[test]
fn what_was_only_read_is_not_looked_at() {
    let lab = OnBtrfs::new(0);
    lab.create("base", None);
    lab.edit("base", &ops(BASE));
    // A change right before the snapshot could hide one right after it.
    std::thread::sleep(std::time::Duration::from_millis(200));
    lab.create("top", Some("base"));
    let stat = |id: &str, name: &str| rustix::fs::lstat(lab.path(id).join(name)).unwrap();
    let read_at = |id: &str| {
        let st = stat(id, "d");
        (st.st_atime, st.st_atime_nsec)
    };
    let before = ["top", "base"].map(read_at);
    assert_eq!(lab.by_walk("top", "base"), []);
    let after = ["top", "base"].map(read_at);
    assert!(
        before[0] != after[0] && before[1] != after[1],
        "the walk sets times of access here, without which this test tells nothing"
    );
    let inode = |name: &str| stat("top", name).st_ino;
    // The root was renamed when the layer was complete.
    assert_eq!(lab.touched("top", "base"), Some([inode("")].into()));
    lab.edit(
        "top",
        &ops("[{write: d/g, text: x}, {touch: d/g, mtime: '100'}]"),
    );
    let expected = HashSet::from(["", "d", "d/g"].map(inode));
    assert_eq!(lab.touched("top", "base"), Some(expected));
    let [native, walked] = lab.both_ways("top", "base");
    assert_eq!(native, ["C /d", "C /d/g"]);
    assert_eq!(native, walked);
}

/// Where the records of the two subvolumes do not tell all, the walk does.
#[test]
fn what_the_records_do_not_tell_is_walked() {
    let lab = OnBtrfs::new(0);
    let untold = |new: &str, old: &str| {
        assert_eq!(lab.touched(new, old), None);
        let found = lab.driver.changes(new, Some(old)).unwrap();
        assert_eq!(found, lab.by_walk(new, old));
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    lab.create("base", None);
    lab.edit("base", &ops(BASE));
    lab.create("top", Some("base"));
    lab.create("above", Some("top"));
    lab.edit("above", &ops("[{write: d/g, text: x}]"));
    assert_eq!(untold("above", "base"), ["C /d", "C /d/g"]);

    // Made anew under its id: the same names and inode numbers, but no relation.
    lab.driver.remove("base").unwrap();
    lab.create("base", None);
    lab.edit("base", &ops(BASE));
    lab.edit("base", &ops("[{write: d/g, text: y}]"));
    assert_eq!(untold("top", "base"), ["C /d", "C /d/g"]);

    // A subvolume inside keeps records of its own.
    assert!(lab.touched("above", "top").is_some());
    let above = open(&lab.path("above"));
    sys::btrfs::create_subvolume(above.as_fd(), "nested").unwrap();
    assert_eq!(untold("above", "top"), ["C /d", "C /d/g", "A /nested"]);

    // What is mounted inside is no part of the layer.
    lab.create("mounted", Some("top"));
    assert!(lab.touched("mounted", "top").is_some());
    let dir = lab.path("mounted").join("u/v");
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "none"])
        .arg(&dir)
        .status();
    assert!(status.unwrap().success());
    assert_eq!(untold("mounted", "top"), ["C /u", "C /u/v"]);
    sys::mount::umount_detach(&dir).unwrap();

    let missing = lab.driver.changes("top", Some("missing")).unwrap_err();
    assert_eq!(missing.class(), ErrorClass::NotFound);
}

#[test]
fn a_small_tree_is_not_worth_a_sync() {
    let lab = OnBtrfs::new(100);
    lab.create("base", None);
    let files = |range: std::ops::Range<usize>| {
        let list: Vec<String> = range.map(|i| format!("{{file: f{i}}}")).collect();
        ops(&format!("[{}]", list.join(", ")))
    };
    lab.edit("base", &files(0..90));
    lab.create("top", Some("base"));
    assert_eq!(lab.touched("top", "base"), None);
    lab.edit("top", &files(90..110));
    assert!(lab.touched("top", "base").is_some());
}
