//! Devices of device-mapper that stand on files in a directory: a pool of thin devices on loop devices, and what is on the pool. They
//! outlive the process that made them, and keep the files' filesystem busy.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::sys::dm::{self, Control, Info};
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
    if !dm::is_there() {
        return Ok(());
    }
    let control = Control::open(&std::env::temp_dir())?;
    let names = control.devices()?;
    if names.is_empty() {
        return Ok(());
    }
    let attached = loopdev::attached()?;
    let on_our_files = |device: &Path| {
        names_in(&device.join("slaves")).iter().any(|slave| {
            let number = slave.strip_prefix("loop").and_then(|n| n.parse().ok());
            let file = attached.iter().find(|(n, _)| Some(*n) == number);
            file.is_some_and(|(_, file)| is_ours(file))
        })
    };
    let of_our_home = |name: &str| {
        let uuid = control.uuid(name).unwrap_or_default();
        let home = uuid.split_once('@').map(|(_, home)| PathBuf::from(home));
        home.is_some_and(|home| is_ours(&home))
    };
    for name in &names {
        let Some(info) = control.info(name)? else {
            continue;
        };
        // A device whose maker was killed before it gave it a table is not in /sys.
        if of_our_home(name) || on_our_files(&in_sys(&info)) {
            take_away(&control, name, Instant::now() + PATIENCE)?;
        }
    }
    Ok(())
}

/// What `/sys` has on a device.
fn in_sys(info: &Info) -> PathBuf {
    let (major, minor) = info.number;
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

/// Removes a device, those on it first.
fn take_away(control: &Control, name: &str, until: Instant) -> io::Result<()> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("/dev/mapper/{name}: {e}"));
    loop {
        let Some(info) = control.info(name)? else {
            return Ok(());
        };
        for holder in names_in(&in_sys(&info).join("holders")) {
            let told = fs::read_to_string(format!("/sys/block/{holder}/dm/name"));
            if let Ok(above) = told {
                take_away(control, above.trim_end(), until)?;
            }
        }
        unmount_all(&info).map_err(named)?;
        if info.suspended {
            // A filesystem that was frozen when its maker was killed goes only once it may go on. A device without a table cannot.
            let _ = control.resume(name);
        }
        match control.remove(name, false) {
            Ok(_) | Err(Errno::NXIO) => return Ok(()),
            Err(Errno::BUSY) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(e) => return Err(named(e.into())),
        }
    }
}

/// Detaches every mount of a device.
fn unmount_all(info: &Info) -> io::Result<()> {
    for mount in mount_table()?.into_iter().rev() {
        if mount.device != info.number {
            continue;
        }
        match umount_detach(&mount.path) {
            Err(e) if Errno::from_io_error(&e) != Some(Errno::INVAL) => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.file_name().into_string().ok())
        .collect()
}
