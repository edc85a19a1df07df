//! What a driver can, found out by what it does.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::graphdriver::{Capability, CreateOpts, Error, ProtoDriver, Result};
use crate::sys::mount::is_mount_point;

const BELOW: &str = "probe-below";
const ABOVE: &str = "probe-above";

/// The capabilities that a driver shows on an empty home, with two layers, which are taken away again. Not all of them can be seen:
/// what is not is for a person to claim.
///
/// # Errors
/// It cannot make layers, or they cannot be written to: then it has shown nothing.
pub(super) fn shown(driver: &dyn ProtoDriver) -> Result<BTreeSet<Capability>> {
    let opts = CreateOpts::default();
    let mut seen = BTreeSet::new();
    driver.create_read_write(BELOW, None, &opts)?;
    inside(driver, BELOW, fill)?;
    driver.create_read_write(ABOVE, Some(BELOW), &opts)?;
    inside(driver, ABOVE, |root| in_child(root, &mut seen))?;
    let frozen = inside(driver, BELOW, |root| {
        let written = File::create(root.join("late"));
        Ok(written.is_err_and(|e| e.kind() == io::ErrorKind::ReadOnlyFilesystem))
    })?;
    if frozen {
        seen.insert(Capability::FrozenParent);
    }
    match driver.remove(BELOW) {
        Err(_) => {
            seen.insert(Capability::RefusesParentRemoval);
        }
        Ok(()) => {
            let kept = inside(driver, ABOVE, |root| fs::read(root.join("kept")));
            if kept.is_ok_and(|text| text == b"x") {
                seen.insert(Capability::IndependentChildren);
            }
        }
    }
    driver.remove(ABOVE)?;
    driver.remove(BELOW)?;
    Ok(seen)
}

/// Does something in a layer.
fn inside<T>(
    driver: &dyn ProtoDriver,
    id: &str,
    work: impl FnOnce(&Path) -> io::Result<T>,
) -> Result<T> {
    let root = driver.get(id, "")?;
    let done = work(&root).map_err(|e| Error::io("try out", &root, e));
    driver.put(id)?;
    done
}

fn fill(root: &Path) -> io::Result<()> {
    for name in ["kept", "changed", "one"] {
        fs::write(root.join(name), b"x")?;
    }
    fs::hard_link(root.join("one"), root.join("two"))?;
    for dir in ["touched", "moved"] {
        fs::create_dir(root.join(dir))?;
        fs::write(root.join(dir).join("file"), b"x")?;
    }
    // The path of a socket is short by nature; one that cannot be made is one that is not seen.
    let _ = UnixListener::bind(root.join("socket"));
    Ok(())
}

fn in_child(root: &Path, seen: &mut BTreeSet<Capability>) -> io::Result<()> {
    let mut see = |what: Capability, is: bool| {
        if is {
            seen.insert(what);
        }
    };
    let append = |name: &str| -> io::Result<()> {
        let mut file = OpenOptions::new().append(true).open(root.join(name))?;
        file.write_all(b"y")
    };
    let look = |name: &str| fs::symlink_metadata(root.join(name));
    see(Capability::Mounts, is_mount_point(root)?);
    let socket = look("socket").is_ok_and(|m| m.file_type().is_socket());
    see(Capability::Sockets, socket);
    let before = look("changed")?;
    append("changed")?;
    let after = look("changed")?;
    let inode = |m: &fs::Metadata| (m.dev(), m.ino());
    see(Capability::StableInode, inode(&before) == inode(&after));
    let before = look("touched")?;
    append("touched/file")?;
    let after = look("touched")?;
    let time = |m: &fs::Metadata| (m.mtime(), m.mtime_nsec());
    see(Capability::DirTimes, time(&before) == time(&after));
    append("one")?;
    see(
        Capability::HardlinkCopyUp,
        fs::read(root.join("two"))? == b"xy",
    );
    let renamed = fs::rename(root.join("moved"), root.join("away"));
    see(Capability::DirRename, renamed.is_ok());
    Ok(())
}
