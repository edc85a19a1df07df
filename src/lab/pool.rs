//! Pools of zfs in files: made, mounted, looked at, and given back.
//!
//! A pool is known as a run's own by two marks: its name is made of that of the run's directory, and its file lies in there. Nothing
//! without both is touched.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::damage::Damage;
use super::kinds::{Pool, ZFS, ZPOOL};
use super::program::last_lines;
use crate::sys::mount::{MountFlags, mount};
use crate::sys::zfs::Zfs;

/// The property of a dataset that says which home it was made for.
const HOME: &str = "graphtest:home";

/// How long the last users of a pool may take after everything on it was unmounted.
const PATIENCE: Duration = Duration::from_secs(5);

/// The name of a pool that is made in a directory: that of the run's directory and the way from there.
pub(super) fn name_in(base: &Path) -> String {
    let parts = base.iter().map(OsStr::to_string_lossy);
    let own = parts.skip_while(|part| !part.starts_with(".graphtest-"));
    let name = own.collect::<Vec<_>>().join("-");
    name.trim_start_matches('.').to_string()
}

/// Makes a pool in a file and mounts its first dataset.
///
/// # Errors
/// No kernel with zfs, what the program says, or the errno of mount(2).
pub(super) fn make(pool: &Pool, name: &str, image: &Path, on: &Path) -> io::Result<()> {
    Zfs::open().map_err(|e| io::Error::new(e.kind(), format!("no zfs in this kernel: {e}")))?;
    let mut arguments: Vec<&OsStr> = ["create", "-f", "-o", "cachefile=none", "-o", "ashift=12"]
        .map(OsStr::new)
        .to_vec();
    for property in PROPERTIES.iter().chain(pool.properties) {
        arguments.extend([OsStr::new("-O"), OsStr::new(property)]);
    }
    arguments.extend([OsStr::new(name), image.as_os_str()]);
    ZPOOL.run(arguments)?;
    show(name, on)
}

/// What every pool is made with: its datasets are mounted where we say, and keep all that files can have.
const PROPERTIES: &[&str] = &["mountpoint=legacy", "xattr=sa", "acltype=posixacl"];

fn show(name: &str, on: &Path) -> io::Result<()> {
    mount(Path::new(name), on, "zfs", MountFlags::empty(), b"")
        .map_err(|e| io::Error::new(e.kind(), format!("mount of zfs {name}: {e}")))
}

/// Takes a pool whose file lies in a directory up again and mounts it.
///
/// # Errors
/// What the program says, or the errno of mount(2).
pub(super) fn take_up(name: &str, base: &Path, on: &Path) -> io::Result<()> {
    let words = ["import", "-f", "-N", "-o", "cachefile=none", "-d"].map(OsStr::new);
    ZPOOL.run(
        words
            .into_iter()
            .chain([base.as_os_str(), OsStr::new(name)]),
    )?;
    show(name, on)
}

/// Makes the datasets of a pool read-only, or writable again, but for what says otherwise itself.
///
/// # Errors
/// What the program says.
pub(super) fn set_read_only(name: &str, read_only: bool) -> io::Result<()> {
    let value = if read_only {
        "readonly=on"
    } else {
        "readonly=off"
    };
    ZFS.run(["set", value, name])
}

/// Reads all of a pool, says what is damaged, and lets go of it. Nothing may be mounted.
///
/// # Errors
/// What still uses it.
pub(super) fn let_go(name: &str, damage: &mut Damage) -> Result<(), String> {
    if !is_there(name) {
        return Ok(());
    }
    damage.add(scrub(name));
    let until = Instant::now() + PATIENCE;
    loop {
        match ZPOOL.run(["export", name]) {
            Ok(()) => return Ok(()),
            Err(e) if Instant::now() > until => return Err(e.to_string()),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn is_there(name: &str) -> bool {
    Zfs::open().is_ok_and(|zfs| zfs.has(name).unwrap_or(false))
}

fn scrub(name: &str) -> Damage {
    let mut found = Damage::default();
    if let Err(e) = ZPOOL.run(["scrub", "-w", name]) {
        found.notes.push(format!("not checked for damage: {e}"));
        return found;
    }
    match ZPOOL.output(["status", "-v", "-p", name]) {
        Ok(out) if out.status.success() => {
            let said = String::from_utf8_lossy(&out.stdout);
            found.damage.extend(complaints(&said));
        }
        Ok(out) => found.notes.push(format!(
            "not checked for damage: {}",
            last_lines(&out, 2).join("; ")
        )),
        Err(e) => found.notes.push(format!("not checked for damage: {e}")),
    }
    found
}

/// What `zpool status` says that is not as it should be.
fn complaints(said: &str) -> Vec<String> {
    let lines: Vec<&str> = said.lines().map(str::trim).collect();
    let well = |line: &&&str| {
        let bad_device = line
            .split_once(' ')
            .is_some_and(|(_, rest)| counts(rest).is_some_and(|errors| errors > 0));
        line.starts_with("status:")
            || bad_device
            || line.starts_with("errors:") && **line != "errors: No known data errors"
            || line.starts_with("scan:") && !line.contains("with 0 errors")
    };
    let bad = lines.iter().filter(well);
    bad.map(|line| format!("zpool status: {line}")).collect()
}

/// The errors of a device in `STATE READ WRITE CKSUM`.
fn counts(rest: &str) -> Option<u64> {
    let words: Vec<&str> = rest.split_whitespace().collect();
    let [_, read, write, sum, ..] = words[..] else {
        return None;
    };
    let numbers = [read, write, sum].map(|n| n.parse::<u64>().ok());
    numbers.into_iter().sum()
}

/// Destroys what drivers have made in a pool for homes in a directory that is gone.
pub(super) fn forget_homes(pool: &str, dir: &Path) {
    let columns = format!("name,{HOME}");
    let words = [
        "list",
        "-H",
        "-d",
        "1",
        "-t",
        "filesystem",
        "-o",
        &columns,
        pool,
    ];
    let Ok(out) = ZFS.output(words) else {
        return;
    };
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        if let Some((name, home)) = line.split_once('\t')
            && Path::new(home).starts_with(dir)
        {
            // What is still in use goes with the pool, which then says so.
            let _ = ZFS.run(["destroy", "-R", name]);
        }
    }
}

/// Destroys the pools whose files are in a run's directory; nothing is mounted there any more.
///
/// # Errors
/// What still uses one.
pub(super) fn free_pools(dir: &Path) -> Result<(), String> {
    if Zfs::open().is_err() || ZPOOL.find().is_err() {
        return Ok(());
    }
    let out = ZPOOL
        .output(["list", "-v", "-H", "-P"])
        .map_err(|e| e.to_string())?;
    let prefix = name_in(dir);
    let listed = String::from_utf8_lossy(&out.stdout).into_owned();
    for (name, files) in pools(&listed) {
        let named = name == prefix || name.starts_with(&format!("{prefix}-"));
        let inside = |file: &PathBuf| file.starts_with(dir);
        if named && !files.is_empty() && files.iter().all(inside) {
            ZPOOL
                .run(["destroy", "-f", &name])
                .map_err(|e| format!("pool {name}: {e}"))?;
        }
    }
    Ok(())
}

/// The pools of `zpool list -vHP` with their files and devices.
fn pools(listed: &str) -> Vec<(String, Vec<PathBuf>)> {
    let mut all: Vec<(String, Vec<PathBuf>)> = Vec::new();
    for line in listed.lines() {
        let inner = line.starts_with(char::is_whitespace);
        let word = line.split('\t').find(|w| !w.trim().is_empty());
        match (inner, word.map(str::trim), all.last_mut()) {
            (false, Some(name), _) => all.push((name.to_string(), Vec::new())),
            (true, Some(file), Some((_, files))) if file.starts_with('/') => {
                files.push(PathBuf::from(OsStr::from_bytes(file.as_bytes())));
            }
            _ => {}
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_has_the_name_of_its_directory() {
        let base = Path::new("/tmp/.graphtest-0123abcd-7");
        assert_eq!(name_in(base), "graphtest-0123abcd-7");
        assert_eq!(name_in(&base.join("own/3")), "graphtest-0123abcd-7-own-3");
    }

    #[test]
    fn pools_are_listed_with_their_files() {
        let listed = "graphtest-0-1\t4G\t1M\t4G\t-\t-\t0%\t0%\t1.00x\tONLINE\t-\n\
                      \t/tmp/.graphtest-0-1/image0\t4G\t1M\t4G\t-\t-\t0%\t0.0%\t-\tONLINE\n\
                      tank\t9G\t1M\t9G\t-\t-\t0%\t0%\t1.00x\tONLINE\t-\n\
                      \tmirror-0\t9G\t1M\t9G\t-\t-\t0%\t0.0%\t-\tONLINE\n\
                      \t/dev/sda1\t-\t-\t-\t-\t-\t-\t-\t-\tONLINE\n";
        let found = pools(listed);
        assert_eq!(found[0].0, "graphtest-0-1");
        assert_eq!(found[0].1, [Path::new("/tmp/.graphtest-0-1/image0")]);
        assert_eq!(found[1], ("tank".to_string(), vec!["/dev/sda1".into()]));
    }

    #[test]
    fn damage_is_told_from_health() {
        let well = "  pool: p\n state: ONLINE\n  scan: scrub repaired 0B in 00:00:00 with 0 errors on Sun\nconfig:\n\n\
                    \tNAME        STATE     READ WRITE CKSUM\n\tp           ONLINE       0     0     0\n\
                    \t  /tmp/x    ONLINE       0     0     0\n\nerrors: No known data errors\n";
        assert_eq!(complaints(well), Vec::<String>::new());
        let bad = well
            .replace(
                "0     0     0\n\nerrors: No known data errors",
                "0     0     4\n\nerrors: List of errors",
            )
            .replace(
                " state: ONLINE",
                " state: ONLINE\nstatus: One or more devices has experienced an error",
            );
        let found = complaints(&bad);
        assert_eq!(found.len(), 3, "{found:?}");
    }
}
