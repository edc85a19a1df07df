//! The processes that serve mounts: each is a child of this one, with the mount as its standard input.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, TryLockError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FlockOperation, MemfdFlags, Mode, OFlags, Stat, flock, memfd_create};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open, pidfd_send_signal,
};

use super::NAME;
use crate::drivers::home::{detach, open_dir};
use crate::drivers::overlayfs::OverlayMount;
use crate::graphdriver::{Error, Result};
use crate::sys;

/// Where the kernel hands out connections.
const DEVICE: &str = "/dev/fuse";

/// How long the end of a process is waited for. It ends when nobody has the mount any more; a copy of the mount in another
/// namespace may live longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The children that serve mounts, by mount point. Of the process, not of a driver: a driver may be gone without having put what it
/// mounted, and then its children are another's to reap.
static CHILDREN: Mutex<Vec<(PathBuf, Child)>> = Mutex::new(Vec::new());

/// A process that was started just now.
#[derive(Debug)]
struct Process {
    child: Child,
    /// What it says; in memory, so that it never waits for a reader.
    said: File,
}

/// Mounts the overlay and starts a process that serves it.
///
/// # Errors
/// The errno of mount(2), or what the program says.
pub(super) fn serve(overlay: &OverlayMount<'_>, target: &Path) -> Result<()> {
    let failed = |op| move |e: Errno| Error::io(op, DEVICE, e);
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open(DEVICE, flags, Mode::empty()).map_err(failed("open"))?;
    let lock = lock(target)?;
    mount(&device, target, overlay.upper.is_none(), overlay.label)?;
    let started = start(overlay, device, lock);
    if let Ok(process) = &started {
        sys::spawn::note_work(process.child.id(), target);
    }
    // Waits until the program has answered the kernel, or is gone.
    let answer = started.and_then(|process| match rustix::fs::stat(target) {
        Ok(_) => Ok(process),
        Err(e) => Err(refused(process, target, e)),
    });
    match answer {
        Ok(process) => {
            with_children(|children| children.push((target.to_owned(), process.child)));
            Ok(())
        }
        Err(e) => {
            // The first failure is the one to tell.
            let _ = detach(target);
            Err(e)
        }
    }
}

/// Whether the process behind a mount lives and answers.
pub(super) fn answers(target: &Path) -> bool {
    // Never answered from a cache.
    rustix::fs::statfs(target).is_ok()
}

/// Waits, after an unmount, until no process serves this mount point any more, whoever started it. One that does not end though nobody
/// has the mount any more is killed: all it was given is written then.
pub(super) fn await_end(target: &Path) {
    if !ends(target) {
        kill_useless(target);
        ends(target);
    }
}

fn ends(target: &Path) -> bool {
    let until = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(100);
    while !(unlocked(target) && reaped(target)) {
        if Instant::now() >= until {
            return false;
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
    true
}

/// Kills the processes that hold this mount point locked and have no mount to serve any more.
fn kill_useless(target: &Path) {
    let Ok(point) = rustix::fs::stat(target) else {
        return;
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|p| Pid::from_raw(p.file_name().to_str()?.parse().ok()?));
    for pid in pids {
        // By the descriptor: the number may be another's by now.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        if matches!(is_useless(&process, &point), Ok(true)) {
            let _ = pidfd_send_signal(&process, Signal::KILL);
        }
    }
}

/// Whether a process has what [`start`] gives as standard output and input: the mount point, and a connection which has ended.
fn is_useless(process: &OwnedFd, point: &Stat) -> Result<bool, Errno> {
    let its = |fd| pidfd_getfd(process, fd, PidfdGetfdFlags::empty());
    let lock = rustix::fs::fstat(its(1)?)?;
    if (lock.st_dev, lock.st_ino) != (point.st_dev, point.st_ino) {
        return Ok(false);
    }
    let device = its(0)?;
    let mut polled = [PollFd::new(&device, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default()))?;
    Ok(polled[0].revents().contains(PollFlags::ERR))
}

/// Reaps all children that ended, and says whether those of this mount point have.
fn reaped(target: &Path) -> bool {
    with_children(|children| {
        children.retain_mut(|(_, child)| matches!(child.try_wait(), Ok(None)));
        children.iter().all(|(at, _)| at != target)
    })
    .unwrap_or(true)
}

/// `None` when the lock cannot be had: after a fork of a process with several threads there may be nobody to give it back.
fn with_children<T>(work: impl FnOnce(&mut Vec<(PathBuf, Child)>) -> T) -> Option<T> {
    for _ in 0..100 {
        match CHILDREN.try_lock() {
            Ok(mut children) => return Some(work(&mut children)),
            Err(TryLockError::Poisoned(e)) => return Some(work(&mut e.into_inner())),
            Err(TryLockError::WouldBlock) => sleep(Duration::from_millis(1)),
        }
    }
    None
}

/// Makes the mount. What the program would ask for itself, but that device nodes in it work.
fn mount(device: &OwnedFd, target: &Path, read_only: bool, label: &str) -> Result<()> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let mut data = format!(
        "fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions,allow_other",
        device.as_raw_fd(),
        uid = uid.as_raw(),
        gid = gid.as_raw(),
    );
    if !label.is_empty() {
        data.push_str(&format!(",context=\"{label}\""));
    }
    let mut flags = MountFlags::NOATIME;
    flags.set(MountFlags::RDONLY, read_only);
    let kind = "fuse.fuse-overlayfs";
    sys::mount::mount(Path::new(NAME), target, kind, flags, data.as_bytes())
        .map_err(|e| Error::io("mount", target, e))
}

/// Starts the program on a mount that is there already (libfuse 3.3 takes a descriptor in the place of a mount point).
fn start(overlay: &OverlayMount<'_>, device: OwnedFd, lock: OwnedFd) -> Result<Process> {
    let failed = |e: std::io::Error| Error::io("start", NAME, e);
    let said = memfd_create(c"fuse-overlayfs", MemfdFlags::CLOEXEC)
        .map(File::from)
        .map_err(|e| failed(e.into()))?;
    let mut command = Command::new(NAME);
    command
        .args(["-f", "-o"])
        .arg(options(overlay))
        .arg("/dev/fd/0")
        .current_dir(overlay.home)
        .stdin(Stdio::from(device))
        .stdout(Stdio::from(lock))
        .stderr(Stdio::from(said.try_clone().map_err(failed)?));
    // With the command, this process's copy of the connection is closed: only the program's end is left.
    let child = command.spawn().map_err(failed)?;
    drop(command);
    Ok(Process { child, said })
}

/// The directories, relative to the home, where the program starts. The kernel is not to hold back what is written: what it holds of a
/// file that has two names from below is mixed up with the other, and times would move when it is written at last.
fn options(overlay: &OverlayMount<'_>) -> OsString {
    let mut options = b"writeback=0,lowerdir=".to_vec();
    for (i, lower) in overlay.lowers.iter().enumerate() {
        if i > 0 {
            options.push(b':');
        }
        options.extend(lower.as_os_str().as_encoded_bytes());
    }
    if let Some((upper, work)) = &overlay.upper {
        for (key, dir) in [(",upperdir=", upper), (",workdir=", work)] {
            options.extend(key.as_bytes());
            options.extend(dir.as_os_str().as_encoded_bytes());
        }
    }
    OsString::from_vec(options)
}

/// Why a mount does not answer: what its process said, which is at its end or brought there.
fn refused(mut process: Process, target: &Path, answer: Errno) -> Error {
    let _ = process.child.kill();
    let ended = process.child.wait();
    let mut said = String::new();
    let _ = process.said.rewind();
    let _ = process.said.read_to_string(&mut said);
    let ended = ended.map_or_else(|e| e.to_string(), |status| status.to_string());
    let said: Vec<&str> = said
        .lines()
        .filter(|line| !line.starts_with("unknown argument ignored"))
        .collect();
    let (at, said) = (target.display(), said.join("; "));
    Error::Other(format!(
        "{NAME} does not serve {at}: {said} ({ended}; {answer})"
    ))
}

/// A lock on the mount point, which the process holds while it lives: by it anyone can wait for its end.
fn lock(target: &Path) -> Result<OwnedFd> {
    let failed = |e: Errno| Error::io("lock", target, e);
    let dir = open_dir(CWD, target).map_err(failed)?;
    flock(&dir, FlockOperation::LockShared).map_err(failed)?;
    Ok(dir)
}

fn unlocked(target: &Path) -> bool {
    // A mount below the one that was taken away has its own process.
    let free = |dir: OwnedFd| flock(&dir, FlockOperation::NonBlockingLockExclusive);
    !matches!(open_dir(CWD, target).and_then(free), Err(Errno::WOULDBLOCK))
}
