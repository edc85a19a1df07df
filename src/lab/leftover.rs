//! What a dead run can leave beside files: programs, mounts in namespaces of theirs, loop devices.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{devices, kinds};
use crate::sys::loopdev;
use crate::sys::mount::{mount_table, umount_below, umount_detach};
use crate::sys::ns::{enter_private_mount_ns, in_mount_ns_of};

/// How long a killed program, or a loop device that nobody uses any more, may take to go.
const PATIENCE: Duration = Duration::from_secs(5);
/// Programs that drivers run, beside those that make backings and look at them.
const OF_DRIVERS: &[&str] = &["fuse-overlayfs"];

/// Puts the process, as long as it has one thread, into a mount namespace of its own, and lets go there of what other runs have
/// mounted: a copy of a mount keeps it alive after they have given it back.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`.
pub fn enter_mount_namespace() -> std::io::Result<()> {
    enter_private_mount_ns()?;
    let here = std::env::current_dir().unwrap_or_default();
    for mount in mount_table()?.into_iter().rev() {
        if !here.starts_with(&mount.path) && mount.path.iter().any(|c| is_run_dir(c.as_bytes())) {
            // One that went with another is no error, and any other only keeps what it kept.
            let _ = umount_detach(&mount.path);
        }
    }
    Ok(())
}

/// Whether a name is one that a run gives to what it makes: `.graphtest-`, eight digits, `-`, a number.
fn is_run_dir(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(b".graphtest-") else {
        return false;
    };
    let (id, number) = rest.split_at(rest.len().min(8));
    id.len() == 8
        && id.iter().all(u8::is_ascii_hexdigit)
        && number
            .strip_prefix(b"-")
            .is_some_and(|n| !n.is_empty() && n.iter().all(u8::is_ascii_digit))
}

/// Kills the programs of a dead run that serve or make something in `dir`, and waits for their end.
pub(super) fn stop_programs(dir: &Path) -> Result<(), String> {
    let until = Instant::now() + PATIENCE;
    let mut killed = Vec::new();
    for pid in processes() {
        // Held before it is looked at, so that the number is not another process's when it is killed.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        if is_helper(pid) && works_in(pid, dir) {
            match pidfd_send_signal(&process, Signal::KILL) {
                Ok(()) => killed.push((pid, process)),
                Err(Errno::SRCH) => {}
                Err(e) => return Err(format!("kill process {}: {e}", pid.as_raw_nonzero())),
            }
        }
    }
    for (pid, process) in killed {
        if !ended(&process, until) {
            return Err(format!("process {} does not end", pid.as_raw_nonzero()));
        }
    }
    Ok(())
}

fn processes() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
        .collect()
}

fn proc_path(pid: Pid, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/{name}", pid.as_raw_nonzero()))
}

/// Whether it is one of the programs that runs start, by the name that the kernel keeps: its first 15 bytes.
fn is_helper(pid: Pid) -> bool {
    let Ok(name) = fs::read_to_string(proc_path(pid, "comm")) else {
        return false;
    };
    let name = name.trim_end();
    kinds::programs()
        .map(|p| p.name)
        .chain(OF_DRIVERS.iter().copied())
        .any(|helper| helper.get(..15).unwrap_or(helper) == name)
}

/// Whether an argument, the working directory or an open file of a process lies in `dir`.
fn works_in(pid: Pid, dir: &Path) -> bool {
    let arguments = fs::read(proc_path(pid, "cmdline")).unwrap_or_default();
    if arguments.split(|b| *b == 0).any(|a| mentions(a, dir)) {
        return true;
    }
    let lies_in = |link: PathBuf| fs::read_link(link).is_ok_and(|path| path.starts_with(dir));
    let files = fs::read_dir(proc_path(pid, "fd")).into_iter().flatten();
    lies_in(proc_path(pid, "cwd")) || files.flatten().any(|fd| lies_in(fd.path()))
}

/// Whether a path in an argument, alone or in a list of options, lies in `dir`.
fn mentions(argument: &[u8], dir: &Path) -> bool {
    argument
        .split(|b| matches!(b, b',' | b':' | b'='))
        .any(|part| Path::new(std::ffi::OsStr::from_bytes(part)).starts_with(dir))
}

fn ended(process: &OwnedFd, until: Instant) -> bool {
    let left = until.saturating_duration_since(Instant::now());
    let left = Timespec::try_from(left).ok();
    let mut wanted = [PollFd::new(process, PollFlags::IN)];
    // It is readable once the process has ended, whether or not somebody has waited for it.
    matches!(poll(&mut wanted, left.as_ref()), Ok(n) if n > 0)
}

/// Unmounts what is mounted below `dir` in mount namespaces of other processes: those of programs that outlived the run, and copies
/// that were made while its mounts were there.
pub(super) fn unmount_elsewhere(dir: &Path) -> Result<(), String> {
    let namespace = |pid: &Pid| fs::read_link(proc_path(*pid, "ns/mnt")).ok();
    let own = fs::read_link("/proc/self/ns/mnt").ok();
    let mut others = BTreeMap::new();
    for pid in processes() {
        if let Some(other) = namespace(&pid).filter(|n| Some(n) != own.as_ref()) {
            others.entry(other).or_insert(pid);
        }
    }
    for pid in others.into_values() {
        let table = fs::read(proc_path(pid, "mountinfo")).unwrap_or_default();
        // Cheap and coarse; only a namespace that may have one is entered.
        let name = dir.file_name().unwrap_or_default().as_bytes();
        if !table.windows(name.len()).any(|w| w == name) {
            continue;
        }
        let unmounted = in_mount_ns_of(pid, || umount_below(dir).map(|_| ()));
        // Whose last process has ended meanwhile is gone itself.
        if let Err(e) = unmounted.and_then(|inner| inner)
            && namespace(&pid).is_some()
        {
            let pid = pid.as_raw_nonzero();
            return Err(format!(
                "{}: mounted in the namespace of process {pid}: {e}",
                dir.display()
            ));
        }
    }
    Ok(())
}

/// Detaches the loop devices behind which a file in `dir` is, which nothing has mounted any more, and waits until they are free.
pub(super) fn free_loops(dir: &Path) -> Result<(), String> {
    devices::take_down_of_run(dir).map_err(|e| e.to_string())?;
    let until = Instant::now() + PATIENCE;
    loop {
        let attached = match loopdev::attached() {
            Ok(attached) => attached,
            // Without sysfs, as in a bare container, there are no loop devices that a run could have made there.
            Err(_) => return Ok(()),
        };
        let of_it = |(number, file): (u32, PathBuf)| Some((number, image_in(dir, &file)?));
        let mut held = attached.into_iter().filter_map(of_it).peekable();
        let Some((number, image)) = held.peek().cloned() else {
            return Ok(());
        };
        for (number, image) in held {
            // Gone by itself, or in use until the next round.
            let _ = loopdev::detach(number, &image, dir);
        }
        if Instant::now() > until {
            let image = image.display();
            return Err(format!(
                "/dev/loop{number}: still in use, with {image} behind it"
            ));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The image in `dir` that the kernel shows as the file behind a loop device. From the outside of a mount namespace that is gone,
/// the way to `dir` may be missing from it; its name is enough, as no other run has it.
fn image_in(dir: &Path, shown: &Path) -> Option<PathBuf> {
    let name = dir.file_name()?;
    let mut parts = shown.components();
    parts.find(|part| *part == Component::Normal(name))?;
    Some(dir.join(parts.as_path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_runs_are_told_from_others() {
        for (name, is) in [
            (".graphtest-0123abcd-7", true),
            (".graphtest-0123abcd-", false),
            (".graphtest-0123abcd", false),
            (".graphtest-probe-x1", false),
            ("x.graphtest-0123abcd-7", false),
        ] {
            assert_eq!(is_run_dir(name.as_bytes()), is, "{name}");
        }
    }

    #[test]
    fn arguments_and_images_are_of_one_directory() {
        let dir = Path::new("/tmp/.graphtest-0123abcd-7");
        let options = b"lowerdir=/l:/tmp/.graphtest-0123abcd-7/under/lower,workdir=/w";
        assert!(mentions(options, dir));
        assert!(!mentions(options, Path::new("/tmp/.graphtest-0123abcd-70")));
        assert!(!mentions(options, Path::new("/tmp/.graphtest-0123abcd")));
        let shown = Path::new("/.graphtest-0123abcd-7/own/1/image0");
        assert_eq!(image_in(dir, shown), Some(dir.join("own/1/image0")));
        assert_eq!(image_in(dir, Path::new("/tmp/other/image0")), None);
    }

    #[test]
    fn a_program_is_known_by_its_name_and_where_it_works() {
        let own = Pid::from_raw(i32::try_from(std::process::id()).unwrap()).unwrap();
        // This test works somewhere, but is no helper.
        assert!(works_in(own, &std::env::current_dir().unwrap()));
        assert!(!is_helper(own));
    }
}
