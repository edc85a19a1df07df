//! What the tests of this module share: directories, operations on them, overlay mounts, operations by chance.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use rustix::fs::{Mode, OFlags};

use crate::sys;
use crate::tree::build::{Inodes, run_ops};
use crate::tree::op::Op;
use crate::tree::{Compare, ScanOptions, Tree, compare, scan};

/// A directory on the disk, in a mount namespace of the test's own.
pub fn place() -> tempfile::TempDir {
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests mount and chown; run them as root: sudo -E cargo test"
    );
    sys::ns::enter_private_mount_ns_of_test();
    tempfile::tempdir_in(".").expect("a directory")
}

pub fn ops(yaml: &str) -> Vec<Op> {
    serde_yaml::from_str(yaml).expect("operations")
}

/// Makes the directory and carries out the operations in it, which must all succeed.
pub fn build(path: &Path, list: &str) {
    std::fs::create_dir_all(path).expect("mkdir");
    let list = ops(list);
    let outcomes = run(path, &list);
    for (op, outcome) in list.iter().zip(outcomes) {
        outcome.unwrap_or_else(|e| panic!("{op:?}: {e}"));
    }
}

/// Carries out operations of which some may fail.
pub fn run(path: &Path, list: &[Op]) -> Vec<crate::tree::build::Outcome> {
    run_ops(open(path).as_fd(), list, &mut Inodes::default()).expect("run")
}

pub fn open(path: &Path) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).expect("a directory")
}

pub fn scanned(path: &Path) -> Tree {
    scan(open(path).as_fd(), &ScanOptions::default()).expect("scan")
}

/// Both directories hold the same, but for sockets, which tar does not know.
pub fn assert_same(expected: &Path, found: &Path) {
    let how = Compare {
        ignore_sockets: true,
        ..Compare::default()
    };
    let diff = compare(&scanned(expected), &scanned(found), &how);
    assert!(diff.is_empty(), "{diff}");
}

pub fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(status.expect("cp").success());
}

/// The ctime that a file made now has.
pub fn now_at(place: &Path) -> crate::tree::Timestamp {
    let path = place.join("clock");
    let file = File::create(&path).expect("create");
    let st = super::walk::stat_open(file.as_fd()).expect("statx");
    std::fs::remove_file(path).expect("remove");
    super::walk::ctime(&st)
}

/// An overlay mount over `lowers` (the nearest first), unmounted when it is dropped.
pub struct Overlay {
    pub merged: PathBuf,
    pub upper: PathBuf,
}

impl Overlay {
    pub fn new(place: &Path, name: &str, lowers: &[&Path]) -> Self {
        let [merged, upper, work] = ["merged", "upper", "work"].map(|part| {
            let path = place.join(format!("{name}-{part}"));
            std::fs::create_dir(&path).expect("mkdir");
            std::fs::canonicalize(path).expect("a path")
        });
        let lowers: Vec<String> = lowers
            .iter()
            .map(|l| {
                std::fs::canonicalize(l)
                    .expect("a path")
                    .display()
                    .to_string()
            })
            .collect();
        let data = format!(
            "lowerdir={},upperdir={},workdir={},index=off,redirect_dir=off,metacopy=off",
            lowers.join(":"),
            upper.display(),
            work.display()
        );
        let status = Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &data])
            .arg(&merged)
            .status();
        assert!(status.expect("mount").success(), "{data}");
        Self { merged, upper }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        sys::mount::umount_detach(&self.merged).expect("unmount");
    }
}

/// What aufs shows of branches (the uppermost first), made anew in `to` by its rules alone.
pub fn union(branches: &[&Path], to: &Path) {
    std::fs::create_dir_all(to).expect("mkdir");
    for branch in branches.iter().rev() {
        lay_over(branch, to, true, &mut HashMap::new());
    }
}

fn lay_over(branch: &Path, to: &Path, root: bool, links: &mut HashMap<(u64, u64), PathBuf>) {
    let mut names: Vec<OsString> = std::fs::read_dir(branch)
        .expect("list")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    if !root && branch.join(".wh..wh..opq").exists() {
        std::fs::remove_dir_all(to).expect("remove");
        std::fs::create_dir(to).expect("mkdir");
    }
    let deleted = |name: &OsString| {
        let hidden = name.as_bytes().strip_prefix(b".wh.")?.to_vec();
        (!hidden.starts_with(b".wh.")).then(|| OsString::from_vec(hidden))
    };
    for name in names.iter().filter_map(deleted) {
        remove(&to.join(name));
    }
    for name in names.iter().filter(|n| !n.as_bytes().starts_with(b".wh.")) {
        let (from, to) = (branch.join(name), to.join(name));
        let st = std::fs::symlink_metadata(&from).expect("stat");
        if st.is_dir() {
            if !std::fs::symlink_metadata(&to).is_ok_and(|st| st.is_dir()) {
                remove(&to);
                std::fs::create_dir(&to).expect("mkdir");
            }
            lay_over(&from, &to, false, links);
            continue;
        }
        remove(&to);
        match links.entry((st.dev(), st.ino())) {
            Entry::Occupied(first) => std::fs::hard_link(first.get(), &to).expect("link"),
            Entry::Vacant(first) => {
                copy(&from, &to);
                first.insert(to);
            }
        }
    }
    copy_attributes(branch, to);
}

fn remove(path: &Path) {
    match std::fs::symlink_metadata(path) {
        Ok(st) if st.is_dir() => std::fs::remove_dir_all(path).expect("remove"),
        Ok(_) => std::fs::remove_file(path).expect("remove"),
        Err(_) => {}
    }
}

/// Gives a directory the owner, mode, attributes and times of another.
pub fn copy_attributes(from: &Path, to: &Path) {
    let st = std::fs::metadata(from).expect("stat");
    std::os::unix::fs::chown(to, Some(st.uid()), Some(st.gid())).expect("chown");
    std::fs::set_permissions(to, st.permissions()).expect("chmod");
    let (old, new) = (open(to), open(from));
    for name in sys::xattr::visible(old.as_fd(), c"").expect("list").keys() {
        let name = CString::new(name.clone()).expect("a name");
        sys::xattr::remove(old.as_fd(), c"", &name).expect("remove an attribute");
    }
    for (name, value) in sys::xattr::visible(new.as_fd(), c"").expect("list") {
        let name = CString::new(name).expect("a name");
        sys::xattr::set(old.as_fd(), c"", &name, &value).expect("set an attribute");
    }
    let times = std::fs::FileTimes::new().set_modified(st.modified().expect("a time"));
    File::open(to)
        .and_then(|f| f.set_times(times))
        .expect("set times");
}

/// Lists of operations on few names, so that they meet often; many of them fail.
pub fn some_ops() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(some_op(), 0..14)
}

fn some_op() -> impl Strategy<Value = Op> {
    let name = prop::sample::select(vec!["a", "a-b", "b", "d", "e"]);
    let path = prop::collection::vec(name, 1..4).prop_map(|parts| parts.join("/"));
    (0..18u8, path.clone(), path, 0..3u8).prop_map(|(verb, path, other, n)| {
        let text = match verb {
            0..=2 => format!("{{file: {path}, text: '{n}'}}"),
            3 => format!("{{file: {path}, text: '{n}', mtime: '100{n}.5'}}"),
            4..=6 => format!("{{dir: {path}, mode: '075{n}'}}"),
            7 => format!("{{symlink: {path}, to: '{n}', mtime: '7'}}"),
            8 => format!("{{hardlink: {path}, to: {other}}}"),
            9 => format!("{{fifo: {path}}}"),
            10 | 11 => format!("{{remove: {path}}}"),
            12 => format!("{{rename: {path}, to: {other}}}"),
            13 => format!("{{chmod: {path}, mode: '064{n}'}}"),
            14 => format!("{{chown: {path}, owner: '{n}:{n}'}}"),
            15 => format!("{{setxattr: {path}, name: user.k, value: '{n}'}}"),
            16 => format!("{{write: {path}, text: '{n}'}}"),
            _ => format!("{{touch: {path}, mtime: '100{n}.5'}}"),
        };
        serde_yaml::from_str(&text).expect("an operation")
    })
}
