//! What holds for every built-in driver, through the trait, on real directories.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rstest::rstest;
use tempfile::TempDir;

use super::registry;
use crate::graphdriver::{
    Capability, ChangeKind, CreateOpts, Driver, ErrorClass, InitOptions, Result,
};
use crate::sys::ptrace::{Outcome, fork_killed_at_syscall};
use crate::tree::{Tree, TreePath, op::Op};

/// A driver on a home of its own, in a mount namespace of the test's own.
pub(super) struct Lab {
    pub dir: TempDir,
    pub name: &'static str,
}

impl Lab {
    pub fn new(name: &'static str, place: &str) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests mount and chown; run them as root: sudo -E cargo test"
        );
        crate::sys::ns::enter_private_mount_ns_of_test();
        let dir = match place {
            "" => tempfile::tempdir(),
            place => tempfile::tempdir_in(place),
        };
        Self {
            dir: dir.unwrap(),
            name,
        }
    }

    pub fn home(&self) -> PathBuf {
        self.dir.path().join(self.name)
    }

    pub fn start(&self) -> Arc<dyn Driver> {
        registry()
            .get_driver(self.name, self.dir.path(), &InitOptions::default())
            .unwrap()
    }

    /// Every path of the home, with what tells whether it was touched.
    pub fn snapshot(&self) -> Vec<(PathBuf, u32, u64, i64)> {
        let mut found = Vec::new();
        let mut dirs = vec![self.home()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir).unwrap() {
                let path = entry.unwrap().path();
                let st = fs::symlink_metadata(&path).unwrap();
                if st.is_dir() {
                    dirs.push(path.clone());
                }
                found.push((path, st.mode(), st.ino(), st.mtime_nsec()));
            }
        }
        found.sort();
        found
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = super::home::unmount_below(&self.home());
    }
}

pub(super) fn ops(yaml: &str) -> Vec<Op> {
    serde_yaml::from_str(yaml).unwrap()
}

/// Works in a layer.
pub(super) fn edit(driver: &dyn Driver, id: &str, yaml: &str) {
    let path = driver.get(id, "").unwrap();
    let root = fs::File::open(&path).unwrap();
    crate::tree::build::apply_ops(root.as_fd(), &ops(yaml), &mut Default::default()).unwrap();
    drop(root);
    driver.put(id).unwrap();
}

/// All that a layer shows.
pub(super) fn tree(driver: &dyn Driver, id: &str) -> Tree {
    let path = driver.get(id, "").unwrap();
    let tree = crate::tree::scan_path(&path, &Default::default()).unwrap();
    driver.put(id).unwrap();
    tree
}

pub(super) fn assert_same(expected: &Tree, found: &Tree) {
    let diff = crate::tree::compare(expected, found, &Default::default());
    assert!(diff.is_empty(), "{}", diff.lines().join("\n"));
}

pub(super) fn diff(driver: &dyn Driver, id: &str, parent: Option<&str>) -> Vec<u8> {
    let mut bytes = Vec::new();
    driver
        .diff(id, parent)
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

pub(super) fn changes(driver: &dyn Driver, id: &str, parent: Option<&str>) -> Vec<String> {
    driver
        .changes(id, parent)
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect()
}

pub(super) fn plain() -> CreateOpts {
    CreateOpts::default()
}

fn class<T: std::fmt::Debug>(result: Result<T>) -> ErrorClass {
    result.unwrap_err().class()
}

const BASE: &str = r#"[
    {dir: d, mode: "2755", owner: "1:2", mtime: "1000000000.5"}, {file: d/f, text: lower, mode: "4750", owner: "3:4"},
    {hardlink: d/g, to: d/f}, {symlink: s, to: d/f, mtime: "5.000000007"}, {fifo: p}, {socket: k}, {char: c, dev: "1:3"},
    {file: holes, size: 1M, mode: "0600"}, {file: gone, text: x}, {dir: sub}, {file: sub/x, text: x},
    {file: attr, text: x, xattrs: {user.a: b}}, {chmod: /, mode: "0711"}]"#;
const TOP: &str = r#"[{remove: gone}, {remove: sub}, {dir: sub}, {file: sub/y, text: y}, {append: d/f, text: "+"},
    {file: new, text: new, owner: "5:6"}, {symlink: s2, to: nowhere}, {chown: attr, owner: "7:7"}]"#;

#[rstest]
fn a_life(
    #[values("vfs", "overlay2", "overlay")] name: &'static str,
    #[values("", "/dev/shm")] place: &str,
) {
    let lab = Lab::new(name, place);
    let driver = lab.start();
    assert_eq!(driver.name(), name);
    driver.create("base", None, &plain()).unwrap();
    let path = driver.get("base", "").unwrap();
    let st = fs::metadata(&path).unwrap();
    assert!(path.is_absolute());
    assert_eq!((st.mode() & 0o7777, st.uid(), st.gid()), (0o755, 0, 0));
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    driver.put("base").unwrap();
    edit(&*driver, "base", BASE);
    let base = tree(&*driver, "base");
    driver
        .create_read_write("top", Some("base"), &plain())
        .unwrap();
    assert_same(&base, &tree(&*driver, "top"));
    edit(&*driver, "top", TOP);
    assert_same(&base, &tree(&*driver, "base"));
    let top = tree(&*driver, "top");

    let again = lab.start();
    assert_same(&top, &tree(&*again, "top"));
    again.remove("top").unwrap();
    assert!(!again.exists("top") && !driver.exists("top"));
    driver.remove("top").unwrap();
    driver.remove("base").unwrap();
    driver.cleanup().unwrap();
    driver.cleanup().unwrap();
    assert_eq!(crate::sys::mount::mounts_below(&lab.home()).unwrap(), []);
    let files = lab.snapshot();
    assert!(
        files
            .iter()
            .all(|(path, ..)| path == &lab.home().join("dir") || path == &lab.home().join("l")),
        "{files:?}"
    );
}

#[rstest]
fn a_round_trip(
    #[values("vfs", "overlay2", "overlay")] name: &'static str,
    #[values("", "/dev/shm")] place: &str,
) {
    let lab = Lab::new(name, place);
    let driver = lab.start();
    driver.create("base", None, &plain()).unwrap();
    edit(
        &*driver,
        "base",
        &BASE
            .replace("{socket: k}, ", "")
            .replace(r#", {chmod: /, mode: "0711"}"#, ""),
    );
    driver.create("top", Some("base"), &plain()).unwrap();
    edit(&*driver, "top", TOP);
    assert_eq!(
        changes(&*driver, "top", Some("base")),
        [
            "C /attr", "C /d", "C /d/f", "C /d/g", "D /gone", "A /new", "A /s2", "C /sub",
            "D /sub/x", "A /sub/y"
        ]
        .iter()
        // Copying one of two linked names up splits them.
        .filter(|c| **c != "C /d/g" || driver.capabilities().has(Capability::HardlinkCopyUp))
        .map(ToString::to_string)
        .collect::<Vec<_>>()
    );
    assert!(
        driver
            .changes("base", None)
            .unwrap()
            .iter()
            .all(|c| c.kind == ChangeKind::Add)
    );
    let (lower, upper) = (
        diff(&*driver, "base", None),
        diff(&*driver, "top", Some("base")),
    );
    assert_eq!(upper, diff(&*driver, "top", Some("base")));
    driver.create("base2", None, &plain()).unwrap();
    let size = driver.apply_diff("base2", None, &mut &lower[..]).unwrap();
    assert_eq!(size, driver.diff_size("base2", None).unwrap());
    assert_eq!(size, driver.diff_size("base", None).unwrap());
    driver.create("top2", Some("base2"), &plain()).unwrap();
    let size = driver
        .apply_diff("top2", Some("base2"), &mut &upper[..])
        .unwrap();
    assert_eq!(size, driver.diff_size("top", Some("base")).unwrap());
    // A layer's root is not in its archive.
    let inside = |id: &str| {
        let mut tree = tree(&*driver, id);
        tree.entries.remove(&TreePath::root());
        tree
    };
    assert_same(&inside("base"), &inside("base2"));
    assert_same(&inside("top"), &inside("top2"));
    assert_eq!(upper, diff(&*driver, "top2", Some("base2")));
    // Against something that is not its parent, and against nothing.
    assert_eq!(changes(&*driver, "top2", Some("top")), [""; 0]);
    assert_eq!(diff(&*driver, "top2", None), diff(&*driver, "top", None));
}

#[rstest]
fn what_fails_changes_nothing(#[values("vfs", "overlay2", "overlay")] name: &'static str) {
    let lab = Lab::new(name, "");
    let driver = lab.start();
    driver.create("a", None, &plain()).unwrap();
    edit(&*driver, "a", "[{file: f, text: x}]");
    driver.create("b", Some("a"), &plain()).unwrap();
    let before = lab.snapshot();
    let size = |text: &str| CreateOpts {
        storage_opt: [("Size".to_owned(), text.to_owned())].into(),
        ..plain()
    };
    let other = CreateOpts {
        storage_opt: [("colour".to_owned(), "red".to_owned())].into(),
        ..plain()
    };
    assert_eq!(
        class(driver.create("a", None, &plain())),
        ErrorClass::Exists
    );
    assert_eq!(
        class(driver.create("b", Some("a"), &plain())),
        ErrorClass::Exists
    );
    assert_eq!(
        class(driver.create("a", Some("none"), &plain())),
        ErrorClass::Exists
    );
    assert_eq!(
        class(driver.create("c", Some("none"), &plain())),
        ErrorClass::NotFound
    );
    assert_eq!(
        class(driver.create("c", Some("c"), &plain())),
        ErrorClass::NotFound
    );
    assert_eq!(
        class(driver.create("c", None, &size("1G"))),
        ErrorClass::InvalidOption
    );
    assert_eq!(
        class(driver.create("c", None, &other)),
        ErrorClass::InvalidOption
    );
    assert_eq!(
        class(driver.create_read_write("c", None, &size("much"))),
        ErrorClass::InvalidOption
    );
    assert_eq!(
        class(driver.create_read_write("c", None, &size("1G"))),
        ErrorClass::NotSupported
    );
    for id in [
        "",
        ".",
        "..",
        "a/b",
        "../a",
        "/",
        "a\n",
        &"x".repeat(256),
        ".new-1",
        ".rm-1",
    ] {
        assert_eq!(
            class(driver.create(id, None, &plain())),
            ErrorClass::InvalidId,
            "{id:?}"
        );
        assert_eq!(
            class(driver.create("c", Some(id), &plain())),
            ErrorClass::InvalidId,
            "{id:?}"
        );
        assert_eq!(class(driver.get(id, "")), ErrorClass::InvalidId, "{id:?}");
        assert_eq!(class(driver.remove(id)), ErrorClass::InvalidId, "{id:?}");
        assert!(!driver.exists(id), "{id:?}");
    }
    for result in [
        driver.get("none", "").map(drop),
        driver.metadata("none").map(drop),
        driver.diff_size("none", None).map(drop),
    ] {
        assert_eq!(class(result), ErrorClass::NotFound);
    }
    driver.put("none").unwrap();
    driver.put("b").unwrap();
    driver.remove("none").unwrap();
    assert!(!driver.exists("none") && !driver.exists("c"));
    assert_eq!(lab.snapshot(), before);
}

#[rstest]
#[case("vfs", "nonsense=1")]
#[case("vfs", "nonsense")]
#[case("vfs", "size=lots")]
#[case("overlay2", "overlay2.nonsense=1")]
#[case("overlay2", "overlay2.override_kernel_check=perhaps")]
fn options_that_are_not(#[case] name: &'static str, #[case] option: &str) {
    let lab = Lab::new(name, "");
    let result = registry().get_driver(name, lab.dir.path(), &InitOptions::new([option]));
    assert_eq!(class(result), ErrorClass::InvalidOption);
    assert!(!lab.home().exists());
}

#[rstest]
fn homes_with_special_names(
    #[values("vfs", "overlay2", "overlay")] name: &'static str,
    #[values("a b", "a:b", "a,b", "a\\b", "a\"b", "a\nb", "ü", "a%s", "-o")] place: &str,
) {
    let mut lab = Lab::new(name, "");
    let inside = lab.dir.path().join(place);
    fs::create_dir(&inside).unwrap();
    let link = lab.dir.path().join("link");
    std::os::unix::fs::symlink(&inside, &link).unwrap();
    let driver = registry()
        .get_driver(name, &link, &InitOptions::default())
        .unwrap();
    let ids = ["x:y,z\\ \"w\"", "ü", "a%20b@#"];
    for (i, id) in ids.iter().enumerate() {
        driver
            .create(id, i.checked_sub(1).map(|i| ids[i]), &plain())
            .unwrap();
        edit(&*driver, id, &format!("[{{file: f{i}, text: x}}]"));
    }
    let path = driver.get(ids[2], "").unwrap();
    assert!(path.starts_with(inside.canonicalize().unwrap()), "{path:?}");
    assert!((0..3).all(|i| path.join(format!("f{i}")).exists()));
    driver.put(ids[2]).unwrap();
    driver.cleanup().unwrap();
    assert_eq!(crate::sys::mount::mounts_below(lab.dir.path()).unwrap(), []);
    for id in ids.iter().rev() {
        driver.remove(id).unwrap();
    }
    lab.name = "link";
}

#[rstest]
fn many_at_once(#[values("vfs", "overlay2", "overlay")] name: &'static str) {
    let lab = Lab::new(name, "/dev/shm");
    let driver = lab.start();
    driver.create("base", None, &plain()).unwrap();
    edit(&*driver, "base", "[{dir: d}, {file: d/f, text: x}]");
    let made: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|t| {
                let driver = &driver;
                scope.spawn(move || {
                    let won = driver.create("same", Some("base"), &plain()).is_ok();
                    for i in 0..10 {
                        let id = format!("{t}-{i}");
                        driver.create(&id, Some("base"), &plain()).unwrap();
                        for _ in 0..2 {
                            let path = driver.get("same", "").unwrap();
                            fs::write(path.join(&id), "x").unwrap();
                            driver.put("same").unwrap();
                        }
                        assert_eq!(
                            fs::read(driver.get(&id, "").unwrap().join("d/f")).unwrap(),
                            b"x"
                        );
                        driver.put(&id).unwrap();
                        driver.remove(&id).unwrap();
                    }
                    usize::from(won)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(made, 1);
    let path = driver.get("same", "").unwrap();
    assert_eq!(fs::read_dir(&path).unwrap().count(), 81);
    driver.put("same").unwrap();
    assert_eq!(crate::sys::mount::mounts_below(&lab.home()).unwrap(), []);
}

/// Whatever system call a process is killed at, a new driver finds the layer whole or gone, and the work can be done.
#[rstest]
fn killed_anywhere(#[values("vfs", "overlay2", "overlay")] name: &'static str) {
    let lab = Lab::new(name, "/dev/shm");
    let driver = lab.start();
    driver.create("base", None, &plain()).unwrap();
    edit(
        &*driver,
        "base",
        "[{dir: d}, {file: d/f, text: x}, {hardlink: d/g, to: d/f}]",
    );
    let base = tree(&*driver, "base");
    drop(driver);
    let mut kills = 0;
    for remove in [false, true] {
        for n in 1.. {
            let driver = lab.start();
            driver.remove("top").unwrap();
            if remove {
                driver.create("top", Some("base"), &plain()).unwrap();
            }
            let outcome = fork_killed_at_syscall(n, || {
                let done = if remove {
                    driver.remove("top")
                } else {
                    driver.create("top", Some("base"), &plain())
                };
                i32::from(done.is_err())
            });
            if outcome.unwrap() == Outcome::Exited(0) {
                break;
            }
            kills += 1;
            let next = lab.start();
            assert_same(&base, &tree(&*next, "base"));
            if next.exists("top") {
                assert_same(&base, &tree(&*next, "top"));
                next.remove("top").unwrap();
            }
            next.create("top", Some("base"), &plain()).unwrap();
            assert_same(&base, &tree(&*next, "top"));
            next.remove("top").unwrap();
            let left: Vec<PathBuf> = fs::read_dir(lab.home())
                .unwrap()
                .map(|e| e.unwrap().path())
                .collect();
            assert!(
                !left
                    .iter()
                    .any(|p| p.file_name().unwrap().to_string_lossy().starts_with('.')),
                "{left:?}"
            );
        }
    }
    assert!(kills > 20, "only {kills} system calls were found");
}

#[test]
fn a_copy_keeps_everything_and_shares_nothing() {
    let lab = Lab::new("vfs", "");
    let driver = lab.start();
    driver.create("base", None, &plain()).unwrap();
    edit(&*driver, "base", BASE);
    driver.create("top", Some("base"), &plain()).unwrap();
    let at = |id: &str, name: &str| {
        fs::symlink_metadata(lab.home().join("dir").join(id).join(name)).unwrap()
    };
    assert!(at("top", "k").file_type().is_socket());
    assert_eq!(at("top", "d/f").ino(), at("top", "d/g").ino());
    assert_ne!(at("top", "d/f").ino(), at("base", "d/f").ino());
    assert_eq!(
        (at("top", "s").mtime(), at("top", "s").mtime_nsec()),
        (5, 7)
    );
    assert!(at("top", "holes").blocks() <= at("base", "holes").blocks());
    assert_eq!(at("top", "d/f").permissions().mode() & 0o7777, 0o4750);
}

#[test]
fn a_leftover_in_use_is_left_alone() {
    let lab = Lab::new("vfs", "");
    drop(lab.start());
    let dir = lab.home().join("dir");
    for name in [".new-dead", ".rm-dead", ".new-busy", "kept"] {
        fs::create_dir_all(dir.join(name).join("x")).unwrap();
    }
    let busy = fs::File::open(dir.join(".new-busy")).unwrap();
    rustix::fs::flock(&busy, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let driver = lab.start();
    let exists = |name: &str| Path::new(&dir).join(name).exists();
    assert!(
        !exists(".new-dead") && !exists(".rm-dead") && exists(".new-busy") && driver.exists("kept")
    );
}

#[test]
fn every_driver_is_registered_once() {
    assert_eq!(registry().names().count(), super::BUILT_IN.len());
}
