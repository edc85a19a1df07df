//! What the records of two filesystems tell, against a walk over both. Here they are images of which one is a copy of the other, and what
//! differs is found by reading both; with devices of a pool it is for the scenarios, in a guest.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::Command;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rstest::rstest;

use super::super::NAME;
use super::super::filesystem::Filesystem;
use super::*;
use crate::archive::testing::{open, ops, run, some_ops};
use crate::archive::{ChangesOptions, changes, changes_with};
use crate::drivers::tests::Lab;
use crate::tree::op::Op;

/// Bytes of a block of a pool.
const BLOCK: usize = 64 << 10;

/// Two mounted filesystems.
struct Pair {
    fs: Filesystem,
    lab: Lab,
}

impl Drop for Pair {
    fn drop(&mut self) {
        for side in ["new", "old"] {
            // The loop device goes with the last descriptor.
            let _ = sys::mount::umount_detach(&self.at(side));
        }
    }
}

fn call(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).output();
    let done =
        done.unwrap_or_else(|e| panic!("{program}: {e}; this test needs mount and fsfreeze"));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(
        done.status.success(),
        "{program} {}: {said}",
        arguments.join(" ")
    );
}

impl Pair {
    /// Makes one filesystem, does something in it, and makes another as a copy of it.
    fn new(fs: Filesystem, arguments: &[&str], base: &[&[Op]]) -> Self {
        let pair = Self {
            fs,
            lab: Lab::new(NAME, "/dev/shm"),
        };
        let size = match fs {
            Filesystem::Ext4 => 48 << 20,
            Filesystem::Xfs => 300 << 20,
        };
        let [old, new] = ["old", "new"].map(|side| {
            std::fs::create_dir(pair.at(side)).unwrap();
            pair.image(side)
        });
        File::create(&old).unwrap().set_len(size).unwrap();
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        fs.make(&old, size, &arguments).unwrap();
        pair.mount("old");
        std::fs::create_dir(pair.at("old").join(ROOT)).unwrap();
        for list in base {
            run(&pair.at("old").join(ROOT), list);
        }
        pair.write_out("old");
        call(
            "cp",
            &[
                "--sparse=always",
                old.to_str().unwrap(),
                new.to_str().unwrap(),
            ],
        );
        pair.mount("new");
        pair
    }

    fn at(&self, side: &str) -> PathBuf {
        self.lab.dir.path().join(side)
    }

    fn root(&self, side: &str) -> PathBuf {
        self.at(side).join(ROOT)
    }

    fn image(&self, side: &str) -> PathBuf {
        self.lab.dir.path().join(format!("{side}.img"))
    }

    fn mount(&self, side: &str) {
        let options = match self.fs {
            Filesystem::Ext4 => "loop,strictatime",
            Filesystem::Xfs => "loop,nouuid,strictatime",
        };
        let (image, at) = (self.image(side), self.at(side));
        let [image, at] = [&image, &at].map(|path| path.to_str().unwrap());
        call("mount", &["-t", self.fs.name(), "-o", options, image, at]);
    }

    fn write_out(&self, side: &str) {
        let at = self.at(side);
        for how in ["-f", "-u"] {
            call("fsfreeze", &[how, at.to_str().unwrap()]);
        }
    }

    fn edit(&self, side: &str, list: &str) {
        for (op, done) in ops(list).iter().zip(run(&self.root(side), &ops(list))) {
            done.unwrap_or_else(|e| panic!("{op:?}: {e}"));
        }
    }

    /// What may differ by the records, without the directories above.
    fn records(&self, new: &str, old: &str) -> HashSet<u64> {
        self.write_out(new);
        self.write_out(old);
        let files = [new, old].map(|side| File::open(self.image(side)).unwrap());
        let [new, old] = files.each_ref().map(|file| {
            |at, len| {
                let mut bytes = vec![0; len];
                file.read_exact_at(&mut bytes, at).map(|()| bytes)
            }
        });
        let mut differ = Vec::new();
        let len = files[0].metadata().unwrap().len();
        for at in (0..len).step_by(BLOCK) {
            let len = BLOCK.min(usize::try_from(len - at).unwrap());
            if new(at, len).unwrap() != old(at, len).unwrap() {
                differ.push(at..at + len as u64);
            }
        }
        // A pool tells what was written, with other bytes or the same.
        let inodes = Inodes::of(&new).unwrap().expect("it is known");
        let tables = inodes.tables.iter();
        differ.extend(tables.map(|t| t.at..t.at + t.count * inodes.size as u64));
        compare_inodes(&joined(differ), [&new, &old])
            .unwrap()
            .expect("they are alike")
    }

    /// The changes by the records, and those by the walk over all.
    fn both_ways(&self, new: &str, old: &str) -> [Vec<String>; 2] {
        let mut touched = self.records(new, old);
        let [new, old] = [new, old].map(|side| open(&self.root(side)));
        assert!(add_directories_above(new.as_fd(), &mut touched).unwrap());
        let options = ChangesOptions {
            settled: None,
            touched: Some(touched),
        };
        let native = changes_with(new.as_fd(), Some(old.as_fd()), &options).unwrap();
        let walked = changes(new.as_fd(), Some(old.as_fd())).unwrap();
        [native, walked].map(|found| found.iter().map(ToString::to_string).collect())
    }

    fn inodes(&self, side: &str, names: &[&str]) -> HashSet<u64> {
        let root = self.root(side);
        let inode = |name: &&str| std::fs::symlink_metadata(root.join(name)).unwrap().ino();
        names.iter().map(inode).collect()
    }
}

/// Puts runs in order and joins those that touch.
fn joined(mut runs: Vec<std::ops::Range<u64>>) -> Runs {
    runs.sort_by_key(|run| run.start);
    runs.dedup_by(|next, last| {
        let touch = next.start <= last.end;
        if touch {
            last.end = last.end.max(next.end);
        }
        touch
    });
    Runs(runs)
}

#[rstest]
#[case::ext4(Filesystem::Ext4, &[])]
#[case::ext4_of_large_blocks(Filesystem::Ext4, &["-b", "4096"])]
#[case::ext4_of_small_inodes(Filesystem::Ext4, &["-I", "128"])]
#[case::ext4_of_old(Filesystem::Ext4, &["-O", "^64bit,^metadata_csum,^flex_bg,^extents,^has_journal"])]
#[case::ext4_with_data_in_inodes(Filesystem::Ext4, &["-O", "inline_data"])]
#[case::xfs(Filesystem::Xfs, &[])]
#[case::xfs_of_large_inodes(Filesystem::Xfs, &["-i", "size=1024,sparse=0"])]
#[case::xfs_of_small_blocks(Filesystem::Xfs, &["-i", "size=512", "-b", "size=1024"])]
fn the_records_and_the_walk_agree(#[case] fs: Filesystem, #[case] arguments: &[&str]) {
    let history = || prop::collection::vec((any::<bool>(), some_ops(), some_ops()), 1..4);
    let strategy = (some_ops(), some_ops(), history());
    let mut runner = TestRunner::new(Config {
        cases: 12,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(&strategy, |(first, more, history)| {
        let pair = Pair::new(fs, arguments, &[&first, &more]);
        for (old_first, one, other) in history {
            let sides = if old_first {
                ["old", "new"]
            } else {
                ["new", "old"]
            };
            for (side, list) in sides.into_iter().zip([&one, &other]) {
                run(&pair.root(side), list);
            }
            for (new, old) in [("new", "old"), ("old", "new")] {
                let [native, walked] = pair.both_ways(new, old);
                prop_assert_eq!(native, walked);
            }
        }
        Ok(())
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
}

const BASE: &str = "[{dir: d}, {dir: d/e}, {file: d/e/f, text: one}, {file: d/g, text: g}, {dir: u}, {file: u/w, text: w},
    {hardlink: h, to: u/w}]";

#[rstest]
#[case::ext4(Filesystem::Ext4)]
#[case::xfs(Filesystem::Xfs)]
fn only_what_was_touched_is_found(#[case] fs: Filesystem) {
    let pair = Pair::new(fs, &[], &[&ops(BASE)]);
    assert_eq!(pair.records("new", "old"), HashSet::new());

    // Reading everything sets all times of access.
    assert_eq!(pair.both_ways("new", "old"), [vec![], Vec::<String>::new()]);
    for name in ["d/e/f", "d/g", "u/w"] {
        std::fs::read(pair.root("new").join(name)).unwrap();
    }
    let read = |side| {
        let st = std::fs::metadata(pair.root(side).join("d/g")).unwrap();
        (st.atime(), st.atime_nsec())
    };
    assert_ne!(read("new"), read("old"), "times of access are kept here");
    assert_eq!(pair.records("new", "old"), HashSet::new());

    pair.edit("new", "[{chmod: d/e/f, mode: '0600'}]");
    let expected = pair.inodes("new", &["d/e/f"]);
    assert_eq!(pair.records("new", "old"), expected);
    pair.edit("old", "[{write: h, text: x}]");
    let mut expected = pair.inodes("new", &["d/e/f", "u/w"]);
    assert_eq!(pair.records("new", "old"), expected);
    pair.edit("new", "[{file: u/n, text: n}]");
    expected.extend(pair.inodes("new", &["u", "u/n"]));
    let found = pair.records("new", "old");
    assert!(found.is_superset(&expected), "{found:?}, {expected:?}");
    // Directories whose content lies beside what changed may be among them.
    assert!(found.is_disjoint(&pair.inodes("new", &["d/g"])));
    let [native, walked] = pair.both_ways("new", "old");
    assert_eq!(native, walked);
    assert_eq!(
        native,
        [
            "C /d", "C /d/e", "C /d/e/f", "C /h", "C /u", "A /u/n", "C /u/w"
        ]
    );
}

#[rstest]
#[case::descriptors_elsewhere(Filesystem::Ext4, &["-O", "meta_bg"])]
#[case::another_version(Filesystem::Xfs, &["-m", "crc=0", "-i", "size=256"])]
fn what_is_not_known_is_not_told(#[case] fs: Filesystem, #[case] arguments: &[&str]) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (path, size) = (dir.path().join("image"), 300 << 20);
    let image = File::create_new(&path).unwrap();
    image.set_len(size).unwrap();
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    if let Err(e) = fs.make(&path, size, &arguments) {
        // mkfs.xfs is about to forget its old version.
        assert!(e.to_string().contains("crc"), "{e}");
        return;
    }
    let image = File::open(&path).unwrap();
    let read = |at, len| {
        let mut bytes = vec![0; len];
        image.read_exact_at(&mut bytes, at).map(|()| bytes)
    };
    assert!(Inodes::of(&read).unwrap().is_none());
    let nothing = |_, len| Ok(vec![0; len]);
    assert!(Inodes::of(&nothing).unwrap().is_none());
}

#[test]
fn parts_of_runs_are_found() {
    let runs = joined(vec![30..40, 10..20, 20..22, 50..60]);
    assert_eq!(runs, Runs(vec![10..22, 30..40, 50..60]));
    let within = |part| runs.within(part).collect::<Vec<_>>();
    assert_eq!(within(0..100), runs.0);
    assert_eq!(within(0..10), []);
    assert_eq!(within(22..30), []);
    assert_eq!(within(15..35), [15..22, 30..35]);
    assert_eq!(within(33..36), vec![33..36, 50..60][..1]);
    assert_eq!(within(60..70), []);
}
