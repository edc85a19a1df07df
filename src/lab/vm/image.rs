//! Disk images: a guest's root, and its scratch disk.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use super::cache::Cache;
use super::error::{Result, at};
use super::fetch;
use super::kernel::Kernel;
use super::userland::Userland;
use crate::sys::remove::remove_tree;

/// Where a guest has the graphtest program once it has its root.
pub(super) const PROGRAM: &str = "/usr/bin/graphtest";

/// Directories that a guest mounts something on.
const EMPTY: &[&str] = &[
    "proc", "sys", "dev", "run", "tmp", "var", "root", "work", "mnt",
];

/// How modules are loaded. zfs would take half of a guest's memory for its cache; and near a limit it lets one write through and then waits
/// for the disk, five seconds if nothing else happens, as long as 24 times what the write takes would not fit, for pools unlike ours. Each
/// of its transactions has the disk's cache written out several times: here that is the filesystem in which the pool's file lies, on a disk
/// that ends with the guest.
const MODULES: &str = "options zfs zfs_arc_max=134217728 zfs_arc_min=33554432 zfs_txg_timeout=1 spa_asize_inflation=3 zfs_nocacheflush=1\n";

/// The image of a guest's root: the userland and the kernel's modules. Made once for each two of these.
///
/// # Errors
/// The cache cannot be written, or mke2fs fails.
pub(super) fn root(cache: &Cache, userland: &Userland, kernel: &Kernel) -> Result<PathBuf> {
    let userland = kernel.programs.as_ref().unwrap_or(userland);
    let key = format!("{RECIPE} {} {}", userland.digest, kernel.digest);
    let name = &fetch::sha256(key.as_bytes())[..32];
    let dir = cache.item("roots", name, |part| {
        fs::create_dir_all(part).map_err(at(part, "make"))?;
        let stage = part.join("stage");
        fill(&stage, userland, kernel)?;
        make(userland, &part.join(IMAGE), &stage)?;
        remove_tree(&stage).map_err(at(&stage, "remove"))
    })?;
    Ok(dir.join(IMAGE))
}

const IMAGE: &str = "root.ext4";

/// To be changed whenever the code below makes another image from the same.
const RECIPE: &str = "6";

/// Puts everything in place; files are hard links to those of the cache.
fn fill(stage: &Path, userland: &Userland, kernel: &Kernel) -> Result<()> {
    link_tree(userland.root(), stage)?;
    let modules = stage.join("usr/lib/modules").join(&kernel.release);
    for tree in &kernel.modules {
        link_tree(tree, &modules)?;
    }
    if !kernel.modules.is_empty() {
        userland.list_modules(stage, &kernel.release)?;
    }
    // The program is mounted on it.
    let to = stage.join(PROGRAM.trim_start_matches('/'));
    File::create_new(&to).map_err(at(&to, "make"))?;
    for dir in EMPTY {
        let dir = stage.join(dir);
        fs::create_dir_all(&dir).map_err(at(&dir, "make"))?;
    }
    let etc = stage.join("etc");
    fs::create_dir_all(&etc).map_err(at(&etc, "make"))?;
    for (name, text) in [
        (
            "passwd",
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        ),
        ("group", "root:x:0:\nnogroup:x:65534:\n"),
    ] {
        fs::write(etc.join(name), text).map_err(at(&etc, "write"))?;
    }
    let modprobe = etc.join("modprobe.d");
    fs::create_dir_all(&modprobe).map_err(at(&modprobe, "make"))?;
    fs::write(modprobe.join("graphtest.conf"), MODULES).map_err(at(&modprobe, "write"))?;
    let mtab = etc.join("mtab");
    match symlink("/proc/self/mounts", &mtab) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(at(&mtab, "make")(e)),
        _ => Ok(()),
    }
}

/// The same tree again, its files being hard links where that is possible; what is there is replaced.
fn link_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).map_err(at(to, "make"))?;
    for entry in fs::read_dir(from).map_err(at(from, "read"))? {
        let entry = entry.map_err(at(from, "read"))?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(at(&path, "stat"))?;
        if kind.is_dir() {
            link_tree(&path, &to)?;
            continue;
        }
        match fs::remove_file(&to) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(at(&to, "replace")(e)),
            _ => {}
        }
        if kind.is_symlink() {
            let target = fs::read_link(&path).map_err(at(&path, "read"))?;
            symlink(target, &to).map_err(at(&to, "make"))?;
        } else if fs::hard_link(&path, &to).is_err() {
            // Another filesystem, or another owner's file: proc_sys_fs(5), protected_hardlinks.
            fs::copy(&path, &to).map_err(at(&path, "copy"))?;
        }
    }
    Ok(())
}

/// Features that a kernel of 2020 does not know and newer tools turn on by themselves.
const FEATURES: &str = "^orphan_file,^metadata_csum_seed";

/// An ext4 that holds a tree and has little room beside it.
fn make(userland: &Userland, image: &Path, tree: &Path) -> Result<()> {
    let (bytes, files) = measure(tree)?;
    let kib = (bytes + bytes / 16 + files * 512 + (24 << 20)) >> 10;
    let (size, inodes) = (format!("{kib}k"), (files + 256).to_string());
    let features = format!("^has_journal,{FEATURES}");
    let words = [
        "-q", "-F", "-t", "ext4", "-m", "0", "-O", &features, "-N", &inodes, "-d",
    ];
    let mut words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
    words.extend([tree.as_os_str(), image.as_os_str(), size.as_ref()]);
    userland.run("usr/sbin/mke2fs", "mke2fs", &words)
}

/// An empty ext4 of this size, sparse.
///
/// # Errors
/// The file cannot be made, or mke2fs fails.
pub(super) fn scratch(userland: &Userland, image: &Path, size: u64) -> Result<()> {
    File::create_new(image)
        .and_then(|f| f.set_len(size))
        .map_err(at(image, "make"))?;
    let words: [&OsStr; 8] = [
        "-q".as_ref(),
        "-t".as_ref(),
        "ext4".as_ref(),
        "-O".as_ref(),
        FEATURES.as_ref(),
        "-E".as_ref(),
        "nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0".as_ref(),
        image.as_os_str(),
    ];
    userland.run("usr/sbin/mke2fs", "mke2fs", &words)
}

/// Bytes in whole blocks, and how many files and directories.
fn measure(tree: &Path) -> Result<(u64, u64)> {
    let (mut bytes, mut files) = (4096, 1);
    for entry in fs::read_dir(tree).map_err(at(tree, "read"))? {
        let path = entry.map_err(at(tree, "read"))?.path();
        let meta = fs::symlink_metadata(&path).map_err(at(&path, "stat"))?;
        if meta.is_dir() {
            let below = measure(&path)?;
            (bytes, files) = (bytes + below.0, files + below.1);
        } else {
            bytes += meta.size().div_ceil(4096) * 4096;
            files += 1;
        }
    }
    Ok((bytes, files))
}
