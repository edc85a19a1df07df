//! Starting processes that must not outlive this one.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use rustix::process::{Signal, set_parent_process_death_signal};

/// What the processes that were started here work for, by their ids: of each id the last.
static WORK: Mutex<BTreeMap<u32, PathBuf>> = Mutex::new(BTreeMap::new());

/// Notes that a process works for what is at `path`, for whoever reads its id in the kernel's log later. In a child that was forked while
/// another thread noted something nothing is noted.
pub fn note_work(pid: u32, path: &Path) {
    if let Ok(mut work) = WORK.try_lock() {
        work.insert(pid, path.to_path_buf());
    }
}

/// What the process with this id, started here, works or worked for, if that is known.
pub fn work_of(pid: u32) -> Option<PathBuf> {
    crate::sync::lock(&WORK).get(&pid).cloned()
}

/// Has the kernel kill the process when the thread that starts it ends, however that happens: prctl(2), `PR_SET_PDEATHSIG`.
pub fn die_with_starter(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec, and makes one system call; it neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
}

/// Gives the process a session of its own, whose terminal its standard input is: setsid(2), `TIOCSCTTY`.
pub fn with_own_terminal(command: &mut Command) {
    // SAFETY: as above, with two system calls.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_process_ends_with_the_thread_that_started_it() {
        let child = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            command.arg("60");
            die_with_starter(&mut command);
            command.spawn()
        });
        let mut child = child.join().expect("the thread").expect("sleep");
        let begun = Instant::now();
        let status = child.wait().expect("wait");
        assert!(
            !status.success() && begun.elapsed() < Duration::from_secs(30),
            "{status}"
        );
    }
}
