//! Backings as a whole: made, used, looked at, given back.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Backing, Fact, Fresh, Journal, Provisioned, Register, clean, provision};
use crate::sys::loopdev;

fn root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "run as root: sudo -E env PATH=\"$PATH\" cargo test"
    );
}

/// A register in a directory of the test's own. A test that fails leaves nothing on the machine either.
struct Bench {
    tmp: tempfile::TempDir,
    register: Option<Register>,
}

impl Bench {
    fn new() -> Self {
        root();
        let tmp = tempfile::tempdir().unwrap();
        let register = Some(Register::open(&tmp.path().join("state")).unwrap());
        Self { tmp, register }
    }

    fn register(&self) -> &Register {
        self.register.as_ref().unwrap()
    }

    fn provision(&self, name: &str) -> Provisioned {
        provision(&name.parse::<Backing>().unwrap(), self.register()).unwrap()
    }

    fn end(mut self) {
        let register = self.register.take().unwrap();
        let id = register.id().to_string();
        assert_eq!(register.close().unwrap(), Vec::<PathBuf>::new());
        let loops = loopdev::attached().unwrap();
        let of_it = |p: &Path| p.to_string_lossy().contains(&id);
        assert!(!loops.iter().any(|(_, p)| of_it(p)), "{loops:?}");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(self.register.take());
        let _ = clean(&self.tmp.path().join("state"));
    }
}

#[test]
fn every_filesystem_is_made_used_checked_and_given_back() {
    let bench = Bench::new();
    for backing in Backing::all().into_iter().filter(Backing::is_made) {
        let name = backing.to_string();
        let made = match provision(&backing, bench.register()) {
            Ok(made) => made,
            // Kernels lack what these need, and the error must say so.
            Err(e) if name.starts_with("zfs") => {
                let whys = ["zpool is not installed", "no zfs in this kernel"];
                assert!(whys.iter().any(|why| e.to_string().contains(why)), "{e}");
                continue;
            }
            Err(e) => {
                let may = ["+pquota", "+casefold", "+noftype", "+squota"];
                assert!(may.iter().any(|m| name.ends_with(m)), "{name}: {e}");
                assert!(
                    e.to_string().contains("mount of") || name == "btrfs+squota",
                    "{name}: {e}"
                );
                continue;
            }
        };
        let plain = name.split('+').next().unwrap();
        let filesystem = if plain == "fuse" {
            "fuse.fuse-overlayfs"
        } else {
            plain
        };
        assert_eq!(made.filesystem, filesystem);
        assert_eq!(made.place.backing, name);
        assert!(made.place.facts.has(Fact::OwnBacking));
        fs::write(made.place.dir.join("file"), vec![7; 1 << 20]).unwrap();
        let given = made.give_back(bench.register());
        assert!(
            given.left.is_empty() && given.damage.is_empty(),
            "{name}: {given:?}"
        );
        let unchecked = name == "btrfs+squota";
        assert!(given.notes.is_empty() || unchecked, "{name}: {given:?}");
    }
    bench.end();
}

#[test]
fn a_fresh_one_can_be_filled_and_the_cell_goes_on() {
    let bench = Bench::new();
    for name in [
        "tmpfs",
        "ext4",
        "xfs",
        "btrfs",
        "btrfs+two",
        "overlay",
        "fuse",
    ] {
        let made = bench.provision(name);
        let wanted = Fresh {
            size: Some(64 << 20),
            inodes: None,
        };
        let own = made.place.fresh(&wanted).unwrap();
        assert_ne!(own.place.dir, made.place.dir);
        let file = fs::File::create(own.place.dir.join("big")).unwrap();
        let full = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 2 << 30);
        assert!(full.is_err(), "{name}: {full:?}");
        drop(file);
        fs::write(made.place.dir.join("file"), "x").unwrap();
        own.remount(true).unwrap();
        let e = fs::write(own.place.dir.join("other"), "x").unwrap_err();
        assert_eq!(e.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        own.remount(false).unwrap();
        fs::write(own.place.dir.join("other"), "x").unwrap_or_else(|e| {
            assert_eq!(e.kind(), std::io::ErrorKind::StorageFull);
        });
        assert_eq!(own.give_back(), super::GivenBack::default(), "{name}");
        // One that is dropped goes too, and one that is kept goes with the cell.
        drop(made.place.fresh(&wanted).unwrap());
        made.place.fresh(&wanted).unwrap().keep();
        assert_eq!(
            made.give_back(bench.register()),
            super::GivenBack::default(),
            "{name}"
        );
    }
    bench.end();
}

#[test]
fn inodes_are_limited_where_there_is_a_limit() {
    let bench = Bench::new();
    let wanted = Fresh {
        size: Some(300 << 20),
        inodes: Some(2000),
    };
    for (name, most) in [("tmpfs", 2000), ("ext4", 2600), ("xfs", 6500)] {
        let made = bench.provision(name);
        let own = made.place.fresh(&wanted).unwrap();
        let mut count = 0;
        while fs::create_dir(own.place.dir.join(count.to_string())).is_ok() {
            count += 1;
            assert!(count <= most, "{name}: no end");
        }
        assert!(count > 1000, "{name}: {count}");
        assert_eq!(own.give_back(), super::GivenBack::default(), "{name}");
        let _ = made.give_back(bench.register());
    }
    let made = bench.provision("btrfs");
    let why = made.place.fresh(&wanted).unwrap_err();
    assert_eq!(why.kind(), std::io::ErrorKind::Unsupported, "{why}");
    let _ = made.give_back(bench.register());
    bench.end();
}

#[test]
fn a_cut_of_power_keeps_what_was_synced() {
    let bench = Bench::new();
    for name in ["ext4", "xfs", "btrfs", "btrfs+two"] {
        let made = bench.provision(name);
        assert!(made.place.facts.has(Fact::PowerCut));
        let wanted = Fresh {
            size: None,
            inodes: None,
        };
        let own = made.place.fresh(&wanted).unwrap();
        let at = |file: &str| own.place.dir.join(file);
        fs::write(at("synced"), "kept").unwrap();
        rustix::fs::syncfs(fs::File::open(&own.place.dir).unwrap()).unwrap();
        fs::write(at("lost"), "not kept").unwrap();
        let held = fs::File::open(at("synced")).unwrap();
        own.cut_power(Journal::Lost, || drop(held)).unwrap();
        assert_eq!(fs::read(at("synced")).unwrap(), b"kept");
        assert!(!at("lost").exists(), "{name}");
        fs::write(at("named"), vec![7; 100_000]).unwrap();
        own.cut_power(Journal::Flushed, || ()).unwrap();
        assert!(at("named").exists(), "{name}");
        assert_ne!(fs::read(at("named")).unwrap(), vec![7; 100_000], "{name}");
        assert_eq!(own.give_back(), super::GivenBack::default(), "{name}");
        let given = made.give_back(bench.register());
        assert_eq!(given, super::GivenBack::default(), "{name}");
    }
    let made = bench.provision("tmpfs");
    let wanted = Fresh {
        size: None,
        inodes: None,
    };
    let e = made
        .place
        .fresh(&wanted)
        .unwrap()
        .cut_power(Journal::Lost, || ());
    assert_eq!(e.unwrap_err().kind(), std::io::ErrorKind::Unsupported);
    let _ = made.give_back(bench.register());
    bench.end();
}
