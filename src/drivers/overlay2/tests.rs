//! What is overlay2's own: its files, mounts, counts and limits.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rstest::rstest;

use super::super::overlayfs::MAX_LOWERS;
use super::super::tests::{Lab, assert_same, changes, diff, edit, plain, tree};
use super::*;
use crate::graphdriver::ErrorClass;
use crate::sys::mount::{is_mount_point, mount_table, mounts_below};

fn lab() -> Lab {
    Lab::new(NAME, "/dev/shm")
}

fn chain(driver: &dyn Driver, length: u32) {
    for i in 0..length {
        let parent = i.checked_sub(1).map(|i| format!("l{i}"));
        driver
            .create(&format!("l{i}"), parent.as_deref(), &plain())
            .unwrap();
        edit(
            driver,
            &format!("l{i}"),
            &format!("[{{file: f{i}, text: '{i}'}}, {{file: same, text: '{i}'}}]"),
        );
    }
}

fn class<T: std::fmt::Debug>(result: Result<T>) -> ErrorClass {
    result.unwrap_err().class()
}

fn read_only(path: &Path) -> bool {
    fs::write(path.join("probe"), "")
        .is_err_and(|e| e.raw_os_error() == Some(Errno::ROFS.raw_os_error()))
}

#[test]
fn the_layout_is_dockerds() {
    let lab = lab();
    let driver = lab.start();
    chain(&*driver, 3);
    let text = |file: &str| fs::read_to_string(lab.home().join(file)).unwrap();
    let shorts: Vec<String> = (0..3).map(|i| text(&format!("l{i}/link"))).collect();
    for (i, short) in shorts.iter().enumerate() {
        assert_eq!(short.len(), 26);
        let target = fs::read_link(lab.home().join("l").join(short)).unwrap();
        assert_eq!(target, PathBuf::from(format!("../l{i}/diff")));
    }
    assert_eq!(text("l2/lower"), format!("l/{}:l/{}", shorts[1], shorts[0]));
    assert_eq!(text("l1/lower"), format!("l/{}", shorts[0]));
    let names = |dir: &str| {
        let mut names: Vec<String> = fs::read_dir(lab.home().join(dir))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("l0"), ["committed", "diff", "link", "merged"]);
    let whole = ["diff", "link", "lower", "merged", "work"];
    assert_eq!(names("l1"), [&["committed"], &whole[..]].concat());
    assert_eq!(names("l2"), whole);
    assert_eq!(fs::metadata(lab.home()).unwrap().mode() & 0o7777, 0o710);

    let path = driver.get("l2", "").unwrap();
    assert_eq!(path, lab.home().canonicalize().unwrap().join("l2/merged"));
    let mount = mount_table()
        .unwrap()
        .into_iter()
        .find(|m| m.path == path)
        .unwrap();
    assert_eq!(mount.fs_type, "overlay");
    let data = driver.metadata("l2").unwrap().unwrap();
    assert_eq!(
        data.keys().collect::<Vec<_>>(),
        ["LowerDir", "MergedDir", "UpperDir", "WorkDir"]
    );
    assert!(
        data.values()
            .flat_map(|v| v.split(':'))
            .all(|path| Path::new(path).is_dir()),
        "{data:?}"
    );
    driver.put("l2").unwrap();
    assert_eq!(names("l2"), whole);
    let says = |id: &str, key: &str| driver.metadata(id).unwrap().unwrap().contains_key(key);
    assert!(!says("l2", "MergedDir") && !says("l0", "LowerDir"));
}

/// moby's driver removes it when it unmounts.
#[test]
fn a_layer_without_a_mount_point_gets_one() {
    let lab = lab();
    let driver = lab.start();
    chain(&*driver, 2);
    let merged = lab.home().join("l1/merged");
    fs::remove_dir(&merged).unwrap();
    assert!(driver.get("l1", "").unwrap().join("f0").exists());
    driver.put("l1").unwrap();
    assert!(merged.is_dir());
}

#[test]
fn copies_of_a_mount_in_other_namespaces_go_with_it() {
    let lab = lab();
    let driver = lab.start();
    chain(&*driver, 2);
    let path = driver.get("l1", "").unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let (put, is_put) = std::sync::mpsc::channel();
    let here = |path: &Path| mount_table().unwrap().iter().any(|m| m.path == *path);
    let elsewhere = std::thread::spawn({
        let path = path.clone();
        move || {
            crate::sys::ns::enter_private_mount_ns_of_test();
            tell.send(here(&path)).unwrap();
            is_put.recv().unwrap();
            here(&path)
        }
    });
    assert!(told.recv().unwrap());
    driver.put("l1").unwrap();
    put.send(()).unwrap();
    assert!(!elsewhere.join().unwrap());
    assert!(path.is_dir());
}

#[test]
fn what_somebody_wrote_into_a_mount_point_stays() {
    let lab = lab();
    let driver = lab.start();
    chain(&*driver, 2);
    let merged = lab.home().join("l1/merged");
    fs::write(merged.join("theirs"), "").unwrap();
    driver.get("l1", "").unwrap();
    driver.put("l1").unwrap();
    assert!(merged.join("theirs").exists());
    let left = |name: &str| name.starts_with('.');
    let names = fs::read_dir(lab.home()).unwrap();
    assert!(
        !names
            .map(|e| e.unwrap().file_name())
            .any(|n| left(n.to_str().unwrap()))
    );
}

/// 40 layers fit in a page with absolute paths, 100 with relative ones, 200 and 501 only one by one.
#[rstest]
#[case(40, "")]
#[case(100, "x")]
#[case(200, "x")]
#[case(501, "")]
fn chains(#[case] length: u32, #[case] long: &str) {
    let mut lab = lab();
    if !long.is_empty() {
        let deep: PathBuf = (0..6).map(|_| long.repeat(200)).collect();
        fs::create_dir_all(lab.dir.path().join(&deep)).unwrap();
        lab.dir = tempfile::tempdir_in(lab.dir.path().join(&deep)).unwrap();
    }
    let driver = lab.start();
    let top = length - 1;
    if driver
        .capabilities()
        .max_depth
        .is_some_and(|most| most < length)
    {
        for i in 0..length {
            let parent = i.checked_sub(1).map(|i| format!("l{i}"));
            if let Err(e) = driver.create(&format!("l{i}"), parent.as_deref(), &plain()) {
                assert_eq!(e.class(), ErrorClass::TooDeep);
                return;
            }
        }
        panic!("a chain beyond the claimed depth was made");
    }
    for i in 0..length {
        let parent = i.checked_sub(1).map(|i| format!("l{i}"));
        driver
            .create(&format!("l{i}"), parent.as_deref(), &plain())
            .unwrap();
        let diff = lab.home().join(format!("l{i}/diff"));
        fs::write(diff.join("same"), i.to_string()).unwrap();
        fs::write(diff.join(format!("f{i}")), i.to_string()).unwrap();
    }
    for layer in [top, top - 1] {
        let path = driver.get(&format!("l{layer}"), "").unwrap();
        assert_eq!(
            fs::read_to_string(path.join("same")).unwrap(),
            layer.to_string()
        );
        assert!(
            (0..=layer)
                .all(|i| fs::read_to_string(path.join(format!("f{i}"))).unwrap() == i.to_string())
        );
        assert_eq!(fs::read_dir(&path).unwrap().count(), layer as usize + 2);
        assert_eq!(read_only(&path), layer != top);
        driver.put(&format!("l{layer}")).unwrap();
    }
    if length == MAX_LOWERS as u32 + 1 {
        let error = driver
            .create("deeper", Some(&format!("l{top}")), &plain())
            .unwrap_err();
        assert!(
            matches!(
                error,
                Error::TooDeep {
                    depth: 502,
                    limit: 501,
                    ..
                }
            ),
            "{error}"
        );
        assert!(!driver.exists("deeper"));
    }
    assert_eq!(mounts_below(&lab.home()).unwrap(), []);
}

/// Kernels from 6.8 on take lower directories one by one; that the probe finds it out is not left to chance.
#[test]
fn the_claimed_depth_is_the_kernels() {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    let depth = lab().start().capabilities().max_depth.unwrap();
    match version {
        (6, 8..) | (7.., _) => assert_eq!(depth, 501),
        (..=5, _) | (6, ..=4) => assert_eq!(depth, 129),
        _ => assert!([129, 501].contains(&depth)),
    }
}

#[test]
fn ids_of_255_bytes_beyond_a_page() {
    let lab = lab();
    let driver = lab.start();
    if driver
        .capabilities()
        .max_depth
        .is_some_and(|most| most < 160)
    {
        return assert_eq!(driver.capabilities().max_depth, Some(129));
    }
    chain(&*driver, 140);
    let id = "i,:".repeat(85);
    driver.create(&id, Some("l139"), &plain()).unwrap();
    edit(&*driver, &id, "[{file: mine, text: x}]");
    assert!(lab.home().join(&id).join("diff/mine").exists());
    assert_eq!(changes(&*driver, &id, Some("l139")), ["A /mine"]);
}

#[test]
fn gets_and_puts_are_counted() {
    let lab = lab();
    let driver = lab.start();
    chain(&*driver, 2);
    driver.put("l1").unwrap();
    let path = driver.get("l1", "").unwrap();
    assert_eq!(driver.get("l1", "").unwrap(), path);
    driver.put("l1").unwrap();
    assert!(is_mount_point(&path).unwrap());

    // A second driver, as after a restart: the mount of the first counts as a use.
    let next = lab.start();
    assert_eq!(next.get("l1", "").unwrap(), path);
    next.put("l1").unwrap();
    assert!(is_mount_point(&path).unwrap());
    next.put("l1").unwrap();
    assert!(!is_mount_point(&path).unwrap());
    next.put("l1").unwrap();

    // The first finds its mount gone and mounts again.
    assert_eq!(driver.get("l1", "").unwrap(), path);
    assert!(is_mount_point(&path).unwrap() && path.join("f0").exists());
    driver.remove("l1").unwrap();
    driver.create("l1", Some("l0"), &plain()).unwrap();
    let path = driver.get("l1", "").unwrap();
    assert!(path.join("f0").exists() && !path.join("f1").exists());
    driver.put("l1").unwrap();
    assert_eq!(mounts_below(&lab.home()).unwrap(), []);

    driver.remove("l1").unwrap();
    let base = driver.get("l0", "").unwrap();
    driver.cleanup().unwrap();
    driver.put("l0").unwrap();
    assert!(base.exists());
}

#[test]
fn a_layer_with_children_is_frozen_until_the_last_is_gone() {
    let lab = lab();
    let driver = lab.start();
    chain(&*driver, 3);
    for id in ["l0", "l1"] {
        let path = driver.get(id, "").unwrap();
        assert!(read_only(&path), "{id}");
        driver.put(id).unwrap();
        assert_eq!(class(driver.remove(id)), ErrorClass::InUse);
        let archive = diff(&*driver, "l0", None);
        assert_eq!(
            class(driver.apply_diff(id, None, &mut &archive[..])),
            ErrorClass::InUse
        );
    }
    assert_eq!(driver.diff_size("l1", Some("l0")).unwrap(), 2);
    driver.remove("l2").unwrap();
    edit(&*driver, "l1", "[{file: again, text: x}]");
    driver.remove("l1").unwrap();
    edit(&*driver, "l0", "[{file: again, text: x}]");
    driver.remove("l0").unwrap();
    assert_eq!(fs::read_dir(lab.home().join("l")).unwrap().count(), 0);
}

#[test]
fn who_has_a_layer_before_its_first_child_keeps_it() {
    let lab = lab();
    let driver = lab.start();
    chain(&*driver, 1);
    let path = driver.get("l0", "").unwrap();
    driver.create("child", Some("l0"), &plain()).unwrap();
    assert_eq!(driver.get("l0", "").unwrap(), path);
    driver.put("l0").unwrap();
    driver.put("l0").unwrap();
    let frozen = driver.get("l0", "").unwrap();
    assert!(is_mount_point(&frozen).unwrap() && read_only(&frozen));
    driver.put("l0").unwrap();
    assert!(!is_mount_point(&frozen).unwrap() && path.exists());
}

#[rstest]
#[case("link", "")]
#[case("link", "..")]
#[case("link", "../../../etc")]
#[case("link", "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEF")]
#[case("lower", "")]
#[case("lower", "l/")]
#[case("lower", "l/..:l/../l0")]
#[case("lower", "l/ABCDEFGHIJKLMNOPQRSTUVWXYZ")]
#[case("lower", "/etc")]
fn damaged_files_are_told_and_hurt_nobody_else(#[case] file: &str, #[case] text: &str) {
    let lab = lab();
    let driver = lab.start();
    chain(&*driver, 2);
    driver.create("other", Some("l0"), &plain()).unwrap();
    let other = tree(&*driver, "other");
    fs::write(lab.home().join("l1").join(file), text).unwrap();
    for driver in [&driver, &lab.start()] {
        for result in [
            driver.get("l1", "").map(drop),
            driver.create("c", Some("l1"), &plain()),
            driver.diff_size("l1", Some("l0")).map(drop),
        ] {
            let error = result.unwrap_err();
            assert!(
                matches!(&error, Error::Damaged { id, .. } if id == "l1"),
                "{error}"
            );
        }
        assert!(driver.exists("l1") && !driver.exists("c"));
        assert_eq!(mounts_below(&lab.home()).unwrap(), []);
    }
    driver.remove("l1").unwrap();
    assert_same(&other, &tree(&*driver, "other"));
    assert_eq!(fs::read_dir(lab.home().join("l")).unwrap().count(), 2);
    assert!(lab.home().join("l0/diff/f0").exists());
}

#[test]
fn a_lost_lower_file_is_not_an_empty_parent() {
    let lab = lab();
    let driver = lab.start();
    chain(&*driver, 2);
    fs::remove_file(lab.home().join("l1/lower")).unwrap();
    assert_eq!(class(driver.get("l1", "")), ErrorClass::Damaged);
}

#[test]
fn links_are_mended_at_the_start() {
    let lab = lab();
    let driver = lab.start();
    chain(&*driver, 3);
    let before = tree(&*driver, "l2");
    let links = lab.home().join("l");
    for link in fs::read_dir(&links).unwrap() {
        fs::remove_file(link.unwrap().path()).unwrap();
    }
    assert_eq!(class(driver.get("l2", "")), ErrorClass::Damaged);
    // One that leaked, one that leads out, and something that is not ours.
    symlink("../gone/diff", links.join("A".repeat(26))).unwrap();
    symlink("/etc", links.join("B".repeat(26))).unwrap();
    fs::write(links.join("README"), "x").unwrap();
    let driver = lab.start();
    assert_same(&before, &tree(&*driver, "l2"));
    let exists = |name: &str| fs::symlink_metadata(links.join(name)).is_ok();
    assert!(!exists(&"A".repeat(26)) && exists(&"B".repeat(26)) && exists("README"));
}

#[test]
fn reserved_names_are_no_layers() {
    let lab = lab();
    let driver = lab.start();
    assert!(!driver.exists("l"));
    assert_eq!(
        class(driver.create("l", None, &plain())),
        ErrorClass::InvalidId
    );
    assert_eq!(class(driver.remove("l")), ErrorClass::InvalidId);
    assert!(lab.home().join("l").exists());
}

#[test]
fn archives_see_what_lies_below() {
    let lab = lab();
    let driver = lab.start();
    driver.create("base", None, &plain()).unwrap();
    edit(
        &*driver,
        "base",
        "[{dir: d, mode: '2700', owner: '3:4'}, {file: d/f, text: x}, {dir: usr}, {dir: usr/lib}, {symlink: lib, to: usr/lib}]",
    );
    driver.create("top", Some("base"), &plain()).unwrap();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(1);
    for name in ["d/new", "lib/new"] {
        archive.append_data(&mut header, name, &b"n"[..]).unwrap();
    }
    header.set_size(0);
    header.set_entry_type(tar::EntryType::Link);
    archive.append_link(&mut header, "linked", "d/f").unwrap();
    let archive = archive.into_inner().unwrap();
    assert_eq!(
        driver
            .apply_diff("top", Some("base"), &mut &archive[..])
            .unwrap(),
        3
    );
    let path = driver.get("top", "").unwrap();
    let d = fs::metadata(path.join("d")).unwrap();
    assert_eq!((d.mode() & 0o7777, d.uid(), d.gid()), (0o2700, 3, 4));
    assert_eq!(fs::read(path.join("usr/lib/new")).unwrap(), b"n");
    assert_eq!(fs::read(path.join("linked")).unwrap(), b"x");
    driver.put("top").unwrap();

    let getter = driver.diff_getter().unwrap().diff_getter("top").unwrap();
    let mut text = String::new();
    getter
        .get(b"./d/new")
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "n");
    for name in ["d", "none", "../base/diff/d/f", "lib/../../base/link", ""] {
        assert!(getter.get(name.as_bytes()).is_err(), "{name}");
    }
}

#[test]
fn what_was_copied_up_and_not_changed_is_no_change() {
    let lab = lab();
    let driver = lab.start();
    chain(&*driver, 2);
    let path = driver.get("l1", "").unwrap();
    drop(
        fs::OpenOptions::new()
            .append(true)
            .open(path.join("f0"))
            .unwrap(),
    );
    driver.put("l1").unwrap();
    assert!(lab.home().join("l1/diff/f0").exists());
    assert_eq!(changes(&*driver, "l1", Some("l0")), ["A /f1", "C /same"]);
    assert_eq!(driver.diff_size("l1", Some("l0")).unwrap(), 2);
}

#[test]
fn status_says_what_was_probed() {
    let lab = lab();
    let driver = lab.start();
    let status = driver.status();
    let keys: Vec<&str> = status.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "Backing Filesystem",
            "Supports d_type",
            "Using metacopy",
            "Native Overlay Diff",
            "userxattr"
        ]
    );
    assert_eq!(status[0].1, "tmpfs");
    assert_eq!(
        status[3].1 == "true",
        driver.capabilities().has(Capability::NativeDiff)
    );
    assert_eq!(status, driver.status());
}

#[test]
fn a_home_on_an_overlay_is_refused_with_nothing_left() {
    let mut outer = lab();
    let driver = outer.start();
    chain(&*driver, 2);
    let path = driver.get("l1", "").unwrap();
    let error = super::super::registry()
        .get_driver(NAME, &path, &InitOptions::default())
        .map(drop)
        .unwrap_err();
    assert!(error.is_driver_not_supported(), "{error}");
    assert_eq!(mounts_below(&path).unwrap().len(), 1);
    driver.put("l1").unwrap();
    outer.name = NAME;
}
