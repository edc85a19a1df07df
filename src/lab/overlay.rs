//! Mounting an overlay over a directory, by the kernel or by a program.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::program::Program;
use crate::sys::mount::{MountFlags, escape_overlay_path, is_mount_point, mount};
use crate::sys::ns::in_user_ns;
use crate::sys::spawn::note_work;

/// How long the program may take until the mount is there.
const PATIENCE: Duration = Duration::from_secs(10);

/// Mounts an overlay at `on` whose layers are in `under`. Returns the program that serves it, when one does. What it says is kept in
/// `base`.
///
/// # Errors
/// The errno of mount(2), or what the program says.
pub(super) fn mount_over(
    under: &Path,
    on: &Path,
    program: Option<Program>,
    base: &Path,
) -> io::Result<Option<Child>> {
    let mut options = Vec::new();
    for (key, dir) in [
        ("lowerdir", "lower"),
        ("upperdir", "upper"),
        ("workdir", "work"),
    ] {
        let dir = under.join(dir);
        fs::create_dir(&dir)?;
        let comma = if options.is_empty() { "" } else { "," };
        options.extend(format!("{comma}{key}=").into_bytes());
        options.extend(escape_overlay_path(&dir));
    }
    let Some(program) = program else {
        if in_user_ns() {
            options.extend(b",userxattr");
        }
        let source = Path::new("graphtest");
        return mount(source, on, "overlay", MountFlags::empty(), &options)
            .map(|()| None)
            .map_err(|e| io::Error::new(e.kind(), format!("mount of an overlay: {e}")));
    };
    use std::os::unix::ffi::OsStringExt;
    // With a write-back cache, its default, the kernel tells of times and of room what the program does not know: a file made and written
    // in one tick of the clock gets another mtime once it is forgotten, and what finds no room when it is written back can be lost
    // in silence. No driver can do anything about either, and both come by chance.
    options.extend(b",writeback=0");
    let said = base.join("said");
    let mut daemon = Command::new(program.find()?)
        .args(["-f", "-o"])
        .arg(std::ffi::OsString::from_vec(options))
        .arg(on)
        // An interrupt at the terminal is for the run, which takes the mount away when nothing uses it any more.
        .process_group(0)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&said)?)
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", program.name)))?;
    note_work(daemon.id(), on);
    let until = Instant::now() + PATIENCE;
    let mounted = loop {
        match (is_mount_point(on), daemon.try_wait()?) {
            (Ok(true), None) => break true,
            (_, Some(_)) => break false,
            _ if Instant::now() > until => break false,
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    if mounted {
        return Ok(Some(daemon));
    }
    // It may have ended by itself.
    let _ = daemon.kill();
    let status = daemon.wait()?;
    let said = fs::read_to_string(&said).unwrap_or_default();
    let why = format!("{}: {status}: {}", program.name, said.trim());
    Err(io::Error::other(why))
}

/// Waits for a program whose mount was taken away.
///
/// # Errors
/// It did not end, and was killed.
pub(super) fn wait_for(mut daemon: Child, until: Instant) -> Result<(), String> {
    loop {
        match daemon.try_wait() {
            Ok(Some(_)) => return Ok(()),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(1)),
            Ok(None) => break,
            Err(e) => return Err(format!("wait for process {}: {e}", daemon.id())),
        }
    }
    let ended = daemon.kill().and_then(|()| daemon.wait());
    Err(format!(
        "process {} still served what was unmounted, and was killed{}",
        daemon.id(),
        ended.err().map(|e| format!(": {e}")).unwrap_or_default()
    ))
}
