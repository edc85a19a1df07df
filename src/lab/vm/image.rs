//! Disk images: a guest's root, and its scratch disk.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::cache::Cache;
use super::error::{Result, at};
use super::fetch;
use super::kernel::Kernel;
use super::userland::Userland;
use crate::sys::remove::remove_tree;

/// Where a guest has the graphtest program.
pub(super) const PROGRAM: &str = "/usr/bin/graphtest";

/// Directories that a guest mounts something on.
const EMPTY: &[&str] = &[
    "proc", "sys", "dev", "run", "tmp", "var", "root", "work", "mnt",
];

/// The image of a guest's root: the userland, the kernel's modules, and the program. Made once for each three of these.
///
/// # Errors
/// The cache cannot be written, or mke2fs fails.
pub fn root(
    cache: &Cache,
    userland: &Userland,
    kernel: &Kernel,
    program: &Path,
) -> Result<PathBuf> {
    let meta = fs::metadata(program).map_err(at(program, "stat"))?;
    let key = format!(
        "{RECIPE} {} {} {} {} {} {}",
        userland.digest,
        kernel.digest,
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
    );
    // One image for each kernel and path of a program; a newer program's takes its place.
    let path = program.as_os_str().as_encoded_bytes();
    let name = format!("{}-{}", kernel.digest, &fetch::sha256(path)[..12]);
    let image = cache.path("roots", &name);
    let made_for = |image: &Path| fs::read(image.join("key")).is_ok_and(|k| k == key.as_bytes());
    if !made_for(&image) {
        cache.renew("roots", &name, |part| {
            // Another process may have made it while this one waited for the lock.
            if made_for(&image) {
                return fs::rename(&image, part).map_err(at(part, "rename"));
            }
            fs::create_dir_all(part).map_err(at(part, "make"))?;
            let stage = part.join("stage");
            fill(&stage, userland, kernel, program)?;
            let made = make(userland, &part.join("root.ext4"), &stage);
            remove_tree(&stage).map_err(at(&stage, "remove"))?;
            made?;
            remove_tree(&image).map_err(at(&image, "remove"))?;
            fs::write(part.join("key"), &key).map_err(at(part, "write"))
        })?;
    }
    Ok(image.join("root.ext4"))
}

/// To be changed whenever the code below makes another image from the same.
const RECIPE: &str = "2";

/// Puts everything in place; files are hard links to those of the cache.
fn fill(stage: &Path, userland: &Userland, kernel: &Kernel, program: &Path) -> Result<()> {
    link_tree(userland.root(), stage)?;
    if let Some(modules) = &kernel.modules {
        let modules = modules.join("usr/lib/modules");
        link_tree(&modules, &stage.join("usr/lib/modules"))?;
    }
    let to = stage.join(PROGRAM.trim_start_matches('/'));
    fs::copy(program, &to).map_err(at(&to, "copy the program"))?;
    fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).map_err(at(&to, "chmod"))?;
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
    let mtab = etc.join("mtab");
    match symlink("/proc/self/mounts", &mtab) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(at(&mtab, "make")(e)),
        _ => Ok(()),
    }
}

/// The same tree again, its files being hard links.
fn link_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).map_err(at(to, "make"))?;
    for entry in fs::read_dir(from).map_err(at(from, "read"))? {
        let entry = entry.map_err(at(from, "read"))?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(at(&path, "stat"))?;
        if kind.is_dir() {
            link_tree(&path, &to)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).map_err(at(&path, "read"))?;
            symlink(target, &to).map_err(at(&to, "make"))?;
        } else {
            fs::hard_link(&path, &to).map_err(at(&to, "link"))?;
        }
    }
    Ok(())
}

/// Features that a kernel of 2020 does not know and newer tools turn on by themselves.
const FEATURES: &str = "^orphan_file,^metadata_csum_seed";

/// Where the partition with the root begins, in bytes.
const OFFSET: u64 = 1 << 20;
/// What a disk is known by whose root is to be found, whatever order disks are found in: `PARTUUID` is this and the partition's number.
pub(super) const DISK: u32 = 0x6772_6170;

/// A disk with one partition, an ext4 that holds a tree and has little room beside it.
fn make(userland: &Userland, image: &Path, tree: &Path) -> Result<()> {
    let (bytes, files) = measure(tree)?;
    let kib = (bytes + bytes / 16 + files * 512 + (24 << 20)) >> 10;
    let (size, inodes) = (format!("{kib}k"), (files + 256).to_string());
    let features = format!("^has_journal,{FEATURES}");
    let offset = format!("offset={OFFSET}");
    let file = File::create_new(image).map_err(at(image, "make"))?;
    file.set_len(OFFSET + (kib << 10))
        .and_then(|()| file.write_all_at(&partition_table(kib * 2), 0))
        .map_err(at(image, "write"))?;
    let words = [
        "-q", "-F", "-t", "ext4", "-m", "0", "-O", &features, "-N", &inodes, "-E", &offset, "-d",
    ];
    let mut words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
    words.extend([tree.as_os_str(), image.as_os_str(), size.as_ref()]);
    userland.run("usr/sbin/mke2fs", "mke2fs", &words)
}

/// A master boot record with one partition of this many sectors.
fn partition_table(sectors: u64) -> [u8; 512] {
    let mut table = [0; 512];
    table[440..444].copy_from_slice(&DISK.to_le_bytes());
    // Linux; the addresses by cylinder are those of a disk too large for them.
    table[446..454].copy_from_slice(&[0, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff]);
    table[454..458].copy_from_slice(&((OFFSET / 512) as u32).to_le_bytes());
    let sectors = u32::try_from(sectors).unwrap_or(u32::MAX);
    table[458..462].copy_from_slice(&sectors.to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    table
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
