//! Devices of device-mapper that stand on files in a directory: a pool of thin devices on loop devices, and what is on the pool. They
//! outlive the process that made them, and keep the files' filesystem busy.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::sys::dm::Control;
use crate::sys::loopdev;
use crate::sys::mount::{mount_table, umount_detach};

/// How long a device may take to lose its last user.
const PATIENCE: Duration = Duration::from_secs(5);

/// Takes away the devices that stand on files at or below `dir`, with what is mounted from them in this mount namespace.
///
/// # Errors
/// A device that is still in use after some seconds; the message names it.
pub(crate) fn take_down(dir: &Path) -> io::Result<()> {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    take_down_those(&|file| file.starts_with(&dir))
}

/// The same for the directory of a run that has died: from outside its mount namespace the way there may be missing from the paths that
/// the kernel shows; the directory's name is enough, as no other run has it.
pub(super) fn take_down_of_run(dir: &Path) -> io::Result<()> {
    let Some(name) = dir.file_name() else {
        return Ok(());
    };
    take_down_those(&|file| file.components().any(|c| c == Component::Normal(name)))
}

/// Takes away the devices of whose files, or the home that their name tells, this is true.
fn take_down_those(is_ours: &dyn Fn(&Path) -> bool) -> io::Result<()> {
    let mapped = mapped_devices();
    if mapped.is_empty() {
        return Ok(());
    }
    let attached = loopdev::attached()?;
    let on_our_files = |device: &str| {
        listed(device, "slaves").iter().any(|slave| {
            let number = slave.strip_prefix("loop").and_then(|n| n.parse().ok());
            let file = attached.iter().find(|(n, _)| Some(*n) == number);
            file.is_some_and(|(_, file)| is_ours(file))
        })
    };
    let of_our_home = |device: &str| {
        let uuid = told(device, "dm/uuid").unwrap_or_default();
        let home = uuid.split_once('@').map(|(_, home)| PathBuf::from(home));
        home.is_some_and(|home| is_ours(&home))
    };
    let ours = mapped
        .iter()
        .filter(|device| on_our_files(device) || of_our_home(device));
    let ours: Vec<&String> = ours.collect();
    if ours.is_empty() {
        return Ok(());
    }
    let control = Control::open(&std::env::temp_dir())?;
    ours.into_iter()
        .try_for_each(|device| take_away(&control, device, Instant::now() + PATIENCE))
}

/// Removes a device, those on it first.
fn take_away(control: &Control, device: &str, until: Instant) -> io::Result<()> {
    for holder in listed(device, "holders") {
        take_away(control, &holder, until)?;
    }
    let Some(name) = told(device, "dm/name") else {
        return Ok(());
    };
    let named = |e: io::Error| io::Error::new(e.kind(), format!("/dev/mapper/{name}: {e}"));
    loop {
        unmount_all(device).map_err(named)?;
        // A filesystem that was frozen when its maker was killed goes only once it may go on.
        if let Ok(Some(info)) = control.info(&name)
            && info.suspended
        {
            control.resume(&name).map_err(|e| named(e.into()))?;
        }
        match control.remove(&name, false) {
            Ok(_) | Err(Errno::NXIO) => return Ok(()),
            Err(Errno::BUSY) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(e) => return Err(named(e.into())),
        }
    }
}

/// Detaches every mount of a device.
fn unmount_all(device: &str) -> io::Result<()> {
    let Some(number) = told(device, "dev") else {
        return Ok(());
    };
    for mount in mount_table()?.into_iter().rev() {
        let (major, minor) = mount.device;
        if format!("{major}:{minor}") == number {
            match umount_detach(&mount.path) {
                Err(e) if Errno::from_io_error(&e) != Some(Errno::INVAL) => return Err(e),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The kernel's names of all devices of device-mapper.
fn mapped_devices() -> Vec<String> {
    let names = names_in(Path::new("/sys/block"));
    names.into_iter().filter(|n| n.starts_with("dm-")).collect()
}

/// What `/sys/block` says of a device's neighbours: `holders` or `slaves`.
fn listed(device: &str, which: &str) -> Vec<String> {
    names_in(&Path::new("/sys/block").join(device).join(which))
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.file_name().into_string().ok())
        .collect()
}

/// A line that `/sys/block` says of a device.
fn told(device: &str, what: &str) -> Option<String> {
    let text = fs::read(Path::new("/sys/block").join(device).join(what)).ok()?;
    let text = OsStr::from_bytes(text.trim_ascii_end());
    Some(text.to_string_lossy().into_owned())
}
