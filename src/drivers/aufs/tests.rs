//! What is aufs' own: its files, lists of parents, and what is found in the branches, on any kernel. Where layers must be seen, a
//! stand-in for the kernel's filesystem shows copies made by its rules.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rstest::rstest;

use super::super::overlayfs::OverlayMount;
use super::super::registry;
use super::super::tests::{Lab, assert_same, changes, diff, ops, plain, tree};
use super::layout::{LAYERS, PSEUDO_LINKS};
use super::mount::MAX_BRANCHES;
use super::*;
use crate::archive::testing::{Overlay, copy, open, place, run, scanned, some_ops, union};
use crate::archive::{self, ApplyOptions, Form, LayerStream, WriteOptions};
use crate::graphdriver::ErrorClass;
use crate::sys::mount::{MountFlags, is_mount_point, mounts_below};
use crate::sys::ptrace::{Outcome, fork_killed_at_syscall};

/// Shows a union as a copy in a tmpfs, which nobody can write to.
#[derive(Debug)]
struct Copies;

impl Mounter for Copies {
    fn mount_point(&self, id: &str) -> PathBuf {
        Path::new(MNT).join(id)
    }
    fn mount(&self, overlay: &OverlayMount<'_>) -> Result<()> {
        let target = overlay.home.join(&overlay.target);
        let upper = overlay.upper.as_ref().map(|(upper, _)| upper);
        let paths: Vec<PathBuf> = upper
            .into_iter()
            .chain(overlay.lowers)
            .map(|branch| overlay.home.join(branch))
            .collect();
        let branches: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        let none = MountFlags::empty();
        crate::sys::mount::mount(Path::new("copies"), &target, "tmpfs", none, b"")
            .map_err(|e| Error::io("mount", &target, e))?;
        union(&branches, &target);
        crate::sys::mount::remount_bind_read_only(&target)
            .map_err(|e| Error::io("mount", &target, e))
    }
    fn max_lowers(&self) -> usize {
        MAX_BRANCHES - 1
    }
    fn takes(&self, _: &OverlayMount<'_>) -> bool {
        true
    }
    fn upper_form(&self) -> Option<Form> {
        Some(Form::Aufs)
    }
    fn claims(&self) -> Vec<Capability> {
        Vec::new()
    }
    fn status(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// Shows nothing: what needs a mount fails.
#[derive(Debug)]
struct Nothing;

impl Mounter for Nothing {
    fn mount_point(&self, id: &str) -> PathBuf {
        Copies.mount_point(id)
    }
    fn mount(&self, _: &OverlayMount<'_>) -> Result<()> {
        Err(Error::Other("no mount here".to_owned()))
    }
    fn max_lowers(&self) -> usize {
        Copies.max_lowers()
    }
    fn takes(&self, _: &OverlayMount<'_>) -> bool {
        true
    }
    fn upper_form(&self) -> Option<Form> {
        Copies.upper_form()
    }
    fn claims(&self) -> Vec<Capability> {
        Vec::new()
    }
    fn status(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

fn start_with(home: &Path, mounter: impl Mounter + 'static) -> Arc<dyn Driver> {
    let init = InitOptions::default();
    let home = Home::open(home, DIFF, &init.id_maps).unwrap();
    start(home, Arc::new(mounter), &init).unwrap()
}

fn lab() -> Lab {
    Lab::new(NAME, "/dev/shm")
}

fn class<T: std::fmt::Debug>(result: Result<T>) -> ErrorClass {
    result.unwrap_err().class()
}

/// Carries out operations in a layer's branch, as if it were the layer.
fn fill(lab: &Lab, id: &str, yaml: &str) {
    let yaml = ops(yaml);
    for outcome in run(&lab.home().join(DIFF).join(id), &yaml) {
        outcome.unwrap();
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn chain(driver: &dyn Driver, length: usize) {
    for i in 0..length {
        let parent = i.checked_sub(1).map(|i| format!("l{i}"));
        driver
            .create(&format!("l{i}"), parent.as_deref(), &plain())
            .unwrap();
    }
}

/// Where the kernel has no aufs, that is said before anything is made; where it has, the driver runs.
#[test]
fn a_kernel_without_aufs_is_told() {
    let lab = lab();
    let started = registry().get_driver(NAME, lab.dir.path(), &InitOptions::default());
    match probe::check_kernel() {
        Ok(()) => assert_eq!(started.unwrap().name(), NAME),
        Err(e) => {
            let told = started.unwrap_err();
            assert!(matches!(told, Error::NotSupported(_)), "{told}");
            assert_eq!(told.to_string(), e.to_string());
            assert!(told.to_string().contains("aufs"), "{told}");
            assert!(!lab.home().exists());
        }
    }
}

#[test]
fn there_are_no_options() {
    let lab = lab();
    let options = InitOptions::new(["aufs.mountopt=x"]);
    let refused = registry().get_driver(NAME, lab.dir.path(), &options);
    assert_eq!(class(refused), ErrorClass::InvalidOption);
    assert!(!lab.home().exists());
}

#[test]
fn the_layout_is_dockerds() {
    let lab = lab();
    let driver = start_with(&lab.home(), Copies);
    chain(&*driver, 3);
    let list = |id: &str| fs::read_to_string(lab.home().join(LAYERS).join(id)).unwrap();
    assert_eq!(
        [list("l0"), list("l1"), list("l2")],
        ["", "l0\n", "l1\nl0\n"]
    );
    for dir in [DIFF, LAYERS, MNT] {
        assert_eq!(names(&lab.home().join(dir)), ["l0", "l1", "l2"]);
        let mode = fs::metadata(lab.home().join(dir)).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o710, "{dir}");
    }
    assert_eq!(names(&lab.home()), [DIFF, LAYERS, MNT]);
    let home = lab.home().canonicalize().unwrap();
    assert_eq!(driver.get("l2", "").unwrap(), home.join("mnt/l2"));
    let data = driver.metadata("l2").unwrap().unwrap();
    let shown = |path: &str| home.join(path).display().to_string();
    let expected = [
        (
            "LowerDir",
            format!("{}:{}", shown("diff/l1"), shown("diff/l0")),
        ),
        ("MergedDir", shown("mnt/l2")),
        ("UpperDir", shown("diff/l2")),
    ];
    let expected: BTreeMap<String, String> =
        expected.map(|(key, value)| (key.to_owned(), value)).into();
    assert_eq!(data, expected);
    driver.put("l2").unwrap();
    // dockerd mounts without making the mount point.
    assert_eq!(names(&lab.home().join(MNT)), ["l0", "l1", "l2"]);
    assert_eq!(mounts_below(&lab.home()).unwrap(), []);
    driver.remove("l2").unwrap();
    for dir in [DIFF, LAYERS, MNT] {
        assert_eq!(names(&lab.home().join(dir)), ["l0", "l1"]);
    }
}

#[test]
fn a_home_of_dockerds_is_taken_over() {
    let lab = lab();
    drop(start_with(&lab.home(), Copies));
    for (id, list) in [("base", ""), ("mid", "base\n"), ("top", "mid\nbase\n")] {
        for dir in [DIFF, MNT] {
            fs::create_dir(lab.home().join(dir).join(id)).unwrap();
        }
        fs::write(lab.home().join(LAYERS).join(id), list).unwrap();
    }
    for left in ["diff/gone-removing", "mnt/gone-removing"] {
        fs::create_dir(lab.home().join(left)).unwrap();
    }
    fill(&lab, "base", "[{file: f, text: old}, {file: g, text: g}]");
    fill(&lab, "mid", "[{file: f, text: new}]");
    fill(&lab, "top", "[{file: .wh.g, text: ''}]");
    let driver = start_with(&lab.home(), Copies);
    let path = driver.get("top", "").unwrap();
    assert_eq!(names(&path), ["f"]);
    assert_eq!(fs::read_to_string(path.join("f")).unwrap(), "new");
    driver.put("top").unwrap();
    assert_eq!(changes(&*driver, "top", Some("mid")), ["D /g"]);
    assert_eq!(changes(&*driver, "mid", Some("base")), ["C /f"]);
    assert_eq!(names(&lab.home().join(DIFF)), ["base", "mid", "top"]);
    assert_eq!(names(&lab.home().join(MNT)), ["base", "mid", "top"]);
    assert_eq!(
        class(driver.create("x-removing", None, &plain())),
        ErrorClass::InvalidId
    );
}

#[test]
fn a_call_that_fails_changes_nothing() {
    let lab = lab();
    let driver = start_with(&lab.home(), Copies);
    chain(&*driver, 2);
    let before = lab.snapshot();
    assert_eq!(
        class(driver.create("l1", None, &plain())),
        ErrorClass::Exists
    );
    assert_eq!(
        class(driver.create("x", Some("none"), &plain())),
        ErrorClass::NotFound
    );
    assert_eq!(class(driver.remove("l0")), ErrorClass::InUse);
    assert_eq!(class(driver.get("none", "")), ErrorClass::NotFound);
    let mut sized = plain();
    sized.storage_opt.insert("size".to_owned(), "1G".to_owned());
    assert_eq!(
        class(driver.create_read_write("x", None, &sized)),
        ErrorClass::NotSupported
    );
    let mut stream: &[u8] = b"";
    assert_eq!(
        class(driver.apply_diff("l0", None, &mut stream)),
        ErrorClass::InUse
    );
    driver.remove("none").unwrap();
    assert_eq!(lab.snapshot(), before);
}

#[test]
fn a_mount_that_fails_is_no_use() {
    let lab = lab();
    let driver = start_with(&lab.home(), Nothing);
    chain(&*driver, 2);
    for _ in 0..2 {
        assert_eq!(class(driver.get("l1", "")), ErrorClass::Other);
    }
    drop(driver);
    let driver = start_with(&lab.home(), Copies);
    let path = driver.get("l1", "").unwrap();
    driver.get("l1", "").unwrap();
    driver.put("l1").unwrap();
    assert!(is_mount_point(&path).unwrap());
    driver.put("l1").unwrap();
    assert!(!is_mount_point(&path).unwrap());
}

#[test]
fn a_layer_with_children_is_shown_read_only() {
    let lab = lab();
    let driver = start_with(&lab.home(), Copies);
    driver.create("base", None, &plain()).unwrap();
    let own = driver.get("base", "").unwrap();
    assert_eq!(own, lab.home().canonicalize().unwrap().join("diff/base"));
    fs::write(own.join("f"), "f").unwrap();
    driver.put("base").unwrap();
    driver.create("top", Some("base"), &plain()).unwrap();
    let shown = driver.get("base", "").unwrap();
    assert_eq!(shown, lab.home().canonicalize().unwrap().join("mnt/base"));
    assert_eq!(fs::read_to_string(shown.join("f")).unwrap(), "f");
    assert!(fs::write(shown.join("f"), "x").is_err());
    driver.remove("top").unwrap();
    // Who has it has it read-only until it is put.
    assert_eq!(driver.get("base", "").unwrap(), shown);
    driver.put("base").unwrap();
    driver.put("base").unwrap();
    assert_eq!(driver.get("base", "").unwrap(), own);
    driver.put("base").unwrap();
}

#[test]
fn chains_end_at_the_limit_of_aufs() {
    let lab = lab();
    let driver = start_with(&lab.home(), Copies);
    chain(&*driver, MAX_BRANCHES);
    for i in 0..MAX_BRANCHES {
        fill(
            &lab,
            &format!("l{i}"),
            &format!("[{{file: f{i}, text: '{i}'}}, {{file: same, text: '{i}'}}]"),
        );
    }
    let top = format!("l{}", MAX_BRANCHES - 1);
    let path = driver.get(&top, "").unwrap();
    assert_eq!(names(&path).len(), MAX_BRANCHES + 1);
    assert_eq!(fs::read_to_string(path.join("same")).unwrap(), "126");
    driver.put(&top).unwrap();
    assert_eq!(
        changes(&*driver, &top, Some("l125")),
        ["A /f126", "C /same"]
    );
    let error = driver.create("deeper", Some(&top), &plain()).unwrap_err();
    let (told, limit) = (error.to_string(), driver.capabilities().max_depth);
    assert!(
        matches!(
            error,
            Error::TooDeep {
                depth: 128,
                limit: 127,
                ..
            }
        ),
        "{told}"
    );
    assert_eq!(limit, Some(127));
}

#[rstest]
#[case::lost(None)]
#[case::cut(Some("bas"))]
#[case::elsewhere(Some("../../etc\n"))]
#[case::itself(Some("top\n"))]
#[case::binary(Some("\u{1}\n"))]
fn damaged_lists_are_told(#[case] list: Option<&str>) {
    let lab = lab();
    let driver = start_with(&lab.home(), Copies);
    driver.create("base", None, &plain()).unwrap();
    driver.create("top", Some("base"), &plain()).unwrap();
    let path = lab.home().join(LAYERS).join("top");
    match list {
        Some(text) => fs::write(path, text).unwrap(),
        None => fs::remove_file(path).unwrap(),
    }
    assert!(driver.exists("top"));
    assert_eq!(class(driver.get("top", "")), ErrorClass::Damaged);
    assert_eq!(
        class(driver.changes("top", Some("base"))),
        ErrorClass::Damaged
    );
    assert_eq!(
        class(driver.create("x", Some("top"), &plain())),
        ErrorClass::Damaged
    );
    assert!(driver.diff("top", Some("base")).is_err());
    drop(driver);
    let driver = start_with(&lab.home(), Copies);
    assert!(driver.exists("top"), "a damaged layer is not deleted");
    driver.remove("top").unwrap();
    driver.create("top", Some("base"), &plain()).unwrap();
}

#[test]
fn ids_with_every_character() {
    let lab = lab();
    let driver = start_with(&lab.home(), Copies);
    let ids = ["a:b", "a,b=rw", " x ", "-x", "...", "ü", &"y".repeat(255)];
    for (i, id) in ids.iter().enumerate() {
        let parent = i.checked_sub(1).map(|i| ids[i]);
        driver.create(id, parent, &plain()).unwrap();
        fill(&lab, id, &format!("[{{file: f{i}, text: x}}]"));
    }
    let path = driver.get(ids[6], "").unwrap();
    assert_eq!(names(&path).len(), ids.len());
    driver.put(ids[6]).unwrap();
    assert_eq!(changes(&*driver, ids[6], Some(ids[5])), ["A /f6"]);
    for id in ids.iter().rev() {
        driver.remove(id).unwrap();
    }
    for dir in [DIFF, LAYERS, MNT] {
        assert_eq!(names(&lab.home().join(dir)), [""; 0]);
    }
}

/// A home on a mount, cleaned up while layers are held: nothing is left mounted, and what lies there stays.
#[test]
fn cleanup_takes_all_mounts() {
    let lab = lab();
    let driver = start_with(&lab.home(), Copies);
    chain(&*driver, 3);
    for id in ["l0", "l1", "l2"] {
        driver.get(id, "").unwrap();
    }
    assert_eq!(mounts_below(&lab.home()).unwrap().len(), 3);
    driver.cleanup().unwrap();
    driver.cleanup().unwrap();
    assert_eq!(mounts_below(&lab.home()).unwrap(), []);
    assert_eq!(names(&lab.home().join(MNT)), ["l0", "l1", "l2"]);
    let path = driver.get("l2", "").unwrap();
    driver.remove("l2").unwrap();
    assert!(!path.exists() && !driver.exists("l2"));
}

/// Killed at any system call, a layer is there whole or not at all, and the next start leaves nothing of it.
#[rstest]
#[case::made(false)]
#[case::removed(true)]
fn killed_at_any_moment(#[case] remove: bool) {
    let lab = lab();
    let driver = start_with(&lab.home(), Copies);
    driver.create("base", None, &plain()).unwrap();
    fill(
        &lab,
        "base",
        "[{dir: d, mode: '0700'}, {file: d/f, text: x}]",
    );
    let base = tree(&*driver, "base");
    drop(driver);
    let mut kills = 0;
    for n in 1.. {
        let driver = start_with(&lab.home(), Copies);
        driver.remove("top").unwrap();
        if remove {
            driver.create("top", Some("base"), &plain()).unwrap();
        }
        let outcome = fork_killed_at_syscall(n, || {
            let done = match remove {
                true => driver.remove("top"),
                false => driver.create("top", Some("base"), &plain()),
            };
            i32::from(done.is_err())
        });
        if outcome.unwrap() == Outcome::Exited(0) {
            break;
        }
        kills += 1;
        let next = start_with(&lab.home(), Copies);
        let there = next.exists("top");
        for dir in [DIFF, LAYERS, MNT] {
            let mut expected = vec!["base"];
            expected.extend(there.then_some("top"));
            assert_eq!(names(&lab.home().join(dir)), expected, "{dir} at {n}");
        }
        if there {
            assert_same(&base, &tree(&*next, "top"));
            next.remove("top").unwrap();
        }
        next.create("top", Some("base"), &plain()).unwrap();
        assert_same(&base, &tree(&*next, "top"));
    }
    assert!(kills > 5, "only {kills} system calls were found");
}

#[test]
fn two_processes_make_one_layer_once() {
    let lab = lab();
    let drivers: Vec<_> = (0..2).map(|_| start_with(&lab.home(), Copies)).collect();
    for round in 0..20 {
        let id = format!("l{round}");
        let made = std::thread::scope(|scope| {
            let make = |driver: &Arc<dyn Driver>| {
                let (driver, id) = (Arc::clone(driver), id.clone());
                scope.spawn(move || driver.create(&id, None, &plain()).is_ok())
            };
            let threads: Vec<_> = drivers.iter().map(make).collect();
            let outcomes = threads.into_iter().map(|thread| thread.join().unwrap());
            outcomes.filter(|made| *made).count()
        });
        assert_eq!(made, 1);
        assert!(drivers.iter().all(|d| d.exists(&id)));
    }
}

/// Names of a file that was written to through one of them, as aufs leaves them in a branch.
#[test]
fn pseudo_links_are_visited_and_cleared() {
    let dir = place();
    let [branch, mount] = ["branch", "mount"].map(|name| dir.path().join(name));
    crate::archive::testing::build(
        &mount,
        "[{dir: d}, {dir: d/e}, {file: a, text: a}, {hardlink: d/e/b, to: a}, {symlink: s, to: a}, {hardlink: d/s, to: s}, {file: other, text: o}]",
    );
    fs::create_dir_all(branch.join(PSEUDO_LINKS)).unwrap();
    let (own, root) = (open(&branch), open(&mount));
    assert!(!pseudo_links::any(own.as_fd()).unwrap());
    assert_eq!(pseudo_links::flush(root.as_fd(), own.as_fd()).unwrap(), 0);
    let ino = |name: &str| fs::symlink_metadata(mount.join(name)).unwrap().ino();
    for (name, inode) in [("a", 4711), ("s", 4712)] {
        let kept = format!("{}.{inode}", ino(name));
        fs::write(branch.join(PSEUDO_LINKS).join(kept), "").unwrap();
    }
    let changed = |name: &str| {
        let st = fs::symlink_metadata(mount.join(name)).unwrap();
        (st.ctime(), st.ctime_nsec())
    };
    let before = ["a", "s", "other"].map(changed);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(pseudo_links::any(own.as_fd()).unwrap());
    assert_eq!(pseudo_links::flush(root.as_fd(), own.as_fd()).unwrap(), 4);
    let after = ["a", "s", "other"].map(changed);
    assert!(after[0] > before[0] && after[1] > before[1] && after[2] == before[2]);
    pseudo_links::clear(own.as_fd()).unwrap();
    assert!(!pseudo_links::any(own.as_fd()).unwrap());
    // A branch that aufs never wrote to has no such directory.
    fs::remove_dir(branch.join(PSEUDO_LINKS)).unwrap();
    assert!(!pseudo_links::any(own.as_fd()).unwrap());
    pseudo_links::clear(own.as_fd()).unwrap();
}

/// While names are still to be flushed the branch does not tell all; the mount does.
#[test]
fn pending_pseudo_links_are_asked_of_the_mount() {
    let lab = lab();
    let driver = start_with(&lab.home(), Copies);
    driver.create("base", None, &plain()).unwrap();
    fill(&lab, "base", "[{file: a, text: old}, {hardlink: b, to: a}]");
    driver.create("top", Some("base"), &plain()).unwrap();
    fill(&lab, "top", "[{file: b, text: new}]");
    let path = driver.get("top", "").unwrap();
    // aufs would show the new content by both names.
    crate::sys::mount::umount_detach(&path).unwrap();
    let none = MountFlags::empty();
    crate::sys::mount::mount(Path::new("copies"), &path, "tmpfs", none, b"").unwrap();
    crate::archive::testing::build(&path, "[{file: a, text: new}, {hardlink: b, to: a}]");
    assert_eq!(changes(&*driver, "top", Some("base")), ["C /b"]);
    let kept = lab.home().join(DIFF).join("top").join(PSEUDO_LINKS);
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join("1.2"), "").unwrap();
    assert_eq!(changes(&*driver, "top", Some("base")), ["C /a", "C /b"]);
    driver.put("top").unwrap();
}

/// A copy of an upper directory of overlayfs, as a branch of aufs would hold the same.
fn as_branch(upper: &Path, branch: &Path, noise: bool) {
    fs::remove_dir(branch).unwrap();
    copy(upper, branch);
    let base = branch.join(".wh..wh.aufs");
    fs::write(&base, "").unwrap();
    convert(branch, &base);
    if noise {
        for dir in [PSEUDO_LINKS, ".wh..wh.orph"] {
            fs::create_dir(branch.join(dir)).unwrap();
        }
        fs::write(branch.join(".wh..wh.orph/4f2a"), vec![7; 5000]).unwrap();
        if let Some(file) = some_file(branch) {
            fs::hard_link(file, branch.join(PSEUDO_LINKS).join("77.78")).unwrap();
        }
    } else {
        fs::remove_file(base).unwrap();
    }
    crate::archive::testing::copy_attributes(upper, branch);
    strip(branch, "");
}

fn some_file(dir: &Path) -> Option<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    paths.retain(|p| !p.file_name().unwrap().to_string_lossy().starts_with(".wh."));
    paths.sort();
    paths
        .iter()
        .find_map(|path| match fs::symlink_metadata(path).unwrap() {
            st if st.is_dir() => some_file(path),
            st if st.is_file() => Some(path.clone()),
            _ => None,
        })
}

/// Takes overlayfs' marks away from an entry (`""`: the directory itself); says whether it was opaque.
fn strip(dir: &Path, name: &str) -> bool {
    let (fd, name) = (open(dir), std::ffi::CString::new(name).unwrap());
    let mut opaque = false;
    for key in crate::sys::xattr::list(fd.as_fd(), &name).unwrap() {
        if key.to_bytes().starts_with(b"trusted.overlay.") {
            let value = crate::sys::xattr::get(fd.as_fd(), &name, &key).unwrap();
            opaque |= key.to_bytes().ends_with(b".opaque") && value.as_deref() == Some(b"y");
            crate::sys::xattr::remove(fd.as_fd(), &name, &key).unwrap();
        }
    }
    opaque
}

fn convert(dir: &Path, base: &Path) {
    let modified = fs::metadata(dir).unwrap().modified().unwrap();
    let opaque = strip(dir, "");
    for entry in fs::read_dir(dir).unwrap().map(|e| e.unwrap()) {
        let (path, st) = (entry.path(), entry.metadata().unwrap());
        let name = entry.file_name().into_string().unwrap();
        if st.is_dir() {
            convert(&path, base);
        } else if st.file_type().is_char_device() && st.rdev() == 0 {
            fs::remove_file(&path).unwrap();
            fs::hard_link(base, dir.join(format!(".wh.{name}"))).unwrap();
        } else {
            strip(dir, &name);
        }
    }
    if opaque {
        fs::hard_link(base, dir.join(".wh..wh..opq")).unwrap();
    }
    let times = fs::FileTimes::new().set_modified(modified);
    fs::File::open(dir).unwrap().set_times(times).unwrap();
}

/// Three layers made in overlays by the kernel, and a home whose branches hold the same.
///
/// Fields drop in order: the mounts before the directory that they are in.
struct Twins {
    child: Overlay,
    parent: Overlay,
    bottom: PathBuf,
    dir: tempfile::TempDir,
}

impl Twins {
    fn new(lists: [&[crate::tree::op::Op]; 3], noise: bool) -> Self {
        let dir = place();
        let bottom = dir.path().join("bottom");
        fs::create_dir(&bottom).unwrap();
        run(&bottom, lists[0]);
        let parent = Overlay::new(dir.path(), "middle", &[&bottom]);
        run(&parent.merged, lists[1]);
        // Two inodes changed within one tick of the kernel's clock cannot be told apart by their times.
        std::thread::sleep(std::time::Duration::from_millis(11));
        let child = Overlay::new(dir.path(), "top", &[&parent.upper, &bottom]);
        run(&child.merged, lists[2]);

        let twins = Self {
            dir,
            bottom,
            parent,
            child,
        };
        let driver = twins.start(Nothing);
        for (id, below, upper) in [
            ("base", None, &twins.bottom),
            ("middle", Some("base"), &twins.parent.upper),
            ("top", Some("middle"), &twins.child.upper),
        ] {
            driver.create(id, below, &plain()).unwrap();
            as_branch(upper, &twins.branch(id), noise && below.is_some());
        }
        twins
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    fn branch(&self, id: &str) -> PathBuf {
        self.home().join(DIFF).join(id)
    }

    fn start(&self, mounter: impl Mounter + 'static) -> Arc<dyn Driver> {
        start_with(&self.home(), mounter)
    }

    /// What the overlays show, by the names of the layers.
    fn seen(&self) -> [(&'static str, &'static str, &Path, &Path); 2] {
        let [merged, parent] = [&self.child.merged, &self.parent.merged];
        [
            ("top", "middle", merged, parent),
            ("middle", "base", parent, &self.bottom),
        ]
    }
}

fn read_all(mut stream: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

fn same(expected: &Path, found: &Path) -> Result<(), TestCaseError> {
    let how = crate::tree::Compare {
        ignore_sockets: true,
        ..Default::default()
    };
    let diff = crate::tree::compare(&scanned(expected), &scanned(found), &how);
    prop_assert!(diff.is_empty(), "{diff}");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// What is found in the branches alone is what comparing whole trees finds that the kernel's overlay filesystem shows: the changes, the
    /// archive to the byte, and the size. No mount is needed for it.
    #[test]
    fn branches_tell_what_whole_trees_tell(base in some_ops(), middle in some_ops(), top in some_ops(), noise: bool) {
        let twins = Twins::new([&base, &middle, &top], noise);
        let driver = twins.start(Nothing);
        for (id, below, new, old) in twins.seen() {
            let (new, old) = (open(new), open(old));
            let naive = archive::changes(new.as_fd(), Some(old.as_fd())).unwrap();
            prop_assert_eq!(&driver.changes(id, Some(below)).unwrap(), &naive);
            let size = archive::diff_size(new.as_fd(), &naive).unwrap();
            prop_assert_eq!(driver.diff_size(id, Some(below)).unwrap(), size);
            let stream = LayerStream::from_changes(new.as_fd(), naive, WriteOptions::default()).unwrap();
            prop_assert!(diff(&*driver, id, Some(below)) == read_all(stream), "{}: another archive", id);
        }
    }

    /// An archive applied to a branch is what it is applied through an overlay: the layer shows the same tree, and has the same size and
    /// changes. So does what is shown of the branches that the first one came from.
    #[test]
    fn archives_applied_to_branches(base in some_ops(), middle in some_ops(), top in some_ops(), noise: bool) {
        let twins = Twins::new([&base, &middle, &top], noise);
        let driver = twins.start(Copies);
        let view = driver.get("top", "").unwrap();
        same(&twins.child.merged, &view)?;
        driver.put("top").unwrap();

        let stream = diff(&*driver, "top", Some("middle"));
        let lowers = [twins.parent.upper.as_path(), twins.bottom.as_path()];
        let applied = Overlay::new(twins.dir.path(), "applied", &lowers);
        archive::apply(open(&applied.merged).as_fd(), &mut &stream[..], &ApplyOptions::default()).unwrap();
        driver.create("copy", Some("middle"), &plain()).unwrap();
        let size = driver.apply_diff("copy", Some("middle"), &mut &stream[..]).unwrap();
        prop_assert_eq!(size, archive::layer_size(open(&applied.upper).as_fd()).unwrap());
        let view = driver.get("copy", "").unwrap();
        let how = crate::tree::Compare { ignore_dir_mtime: true, ignore_sockets: true, ..Default::default() };
        let differ = crate::tree::compare(&scanned(&applied.merged), &scanned(&view), &how);
        prop_assert!(differ.is_empty(), "{differ}");
        driver.put("copy").unwrap();
        let of = |id: &str| -> Vec<String> {
            // Archives hold no sockets.
            let found = driver.changes(id, Some("middle")).unwrap();
            found.iter().map(ToString::to_string).collect()
        };
        prop_assert_eq!(of("copy"), of("top"));
    }
}
