//! Work in a forked child: to its end, or to the n-th system call that could have changed something, where it is killed.

#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use super::cpus::Pinned;

/// How the child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was killed at the asked system call, which was not carried out.
    Killed,
    /// It ended by itself, before it came to that many system calls, with this status.
    Exited(i32),
    /// A signal that nobody here sent ended it.
    Signaled(i32),
}

/// The status of a child whose work panicked.
pub const PANICKED: i32 = 101;

/// What a traced child tells its parent that it is prepared with; it never reaches the child's own handlers.
const PREPARED: Signal = Signal::SIGUSR2;

/// Runs `work` in a forked child and waits for it; the child's status is what `work` returns, or [`PANICKED`].
///
/// Only the calling thread exists in the child. Work that takes locks of the parent's other threads (other than the
/// allocator's) may wait for ever.
///
/// # Errors
/// Those of fork(2) and waitpid(2).
pub fn in_child(work: impl FnOnce() -> i32) -> io::Result<Outcome> {
    let child = spawn(work)?;
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(Outcome::Exited(code)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Outcome::Signaled(signal as i32)),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn spawn(work: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: the child runs ordinary Rust code on a copy of this thread; glibc keeps its allocator usable after a fork, and the
    // child leaves through _exit, so that nothing of the parent (exit handlers, buffers) runs twice.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(PANICKED);
            // SAFETY: _exit does not return and touches no memory.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Runs `work` in a forked child and kills it, and every thread and process it forked, just before its `n`-th (from 1)
/// system call that could change something outside the process; calls that only look (`read`, `stat`, `mmap`, ...) are not counted,
/// since being killed at one of them is the same as being killed at the next one that counts. A process that executes another program
/// is let go there: it lives on when the one that started it is killed.
///
/// # Errors
/// Those of fork(2) and ptrace(2); `EPERM` where tracing is forbidden.
pub fn fork_killed_at_syscall(n: u64, work: impl FnOnce() -> i32) -> io::Result<Outcome> {
    traced(n, || Ok(()), |()| work())
}

/// The same, with calls counted only from where `prepare` has come to its end; when it fails, its error is the child's status.
///
/// The child has none of this process's descriptors but the standard ones, of which `prepare` and `work` thus may use none: whatever
/// else is going on here (files on filesystems, devices) can be given back while the child lives.
///
/// # Errors
/// Those of [`fork_killed_at_syscall`].
pub fn fork_prepared_killed_at_syscall<T>(
    n: u64,
    prepare: impl FnOnce() -> Result<T, i32>,
    work: impl FnOnce(T) -> i32,
) -> io::Result<Outcome> {
    let prepare = || {
        close_all_but_standard();
        prepare()
    };
    traced(n, prepare, work)
}

/// In a forked child: closes what it has from its parent.
fn close_all_but_standard() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: no memory is touched. What this thread goes on to use owns none of the descriptors (the caller's promise), and the other
    // threads, which may own some, are not in this process. Kernels before 5.9 have no such call and leave all open.
    unsafe {
        libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0);
    }
}

fn traced<T>(
    n: u64,
    prepare: impl FnOnce() -> Result<T, i32>,
    work: impl FnOnce(T) -> i32,
) -> io::Result<Outcome> {
    let parent = nix::unistd::getpid();
    let pinned = Pinned::new();
    let child = spawn(|| {
        // A parent that is killed before it has set PTRACE_O_EXITKILL would leave a child that stays stopped for ever.
        let bound = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
        if bound.is_err() || nix::unistd::getppid() != parent {
            return PANICKED;
        }
        // A process group of its own lets the parent wait for its threads and nothing else.
        let ready = nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0))
            .and_then(|()| ptrace::traceme());
        if ready.and_then(|()| raise(Signal::SIGSTOP)).is_err() {
            return PANICKED;
        }
        match prepare() {
            Err(code) => code,
            Ok(_) if raise(PREPARED).is_err() => PANICKED,
            Ok(prepared) => work(prepared),
        }
    })?;
    let outcome = trace(child, n, &pinned);
    if outcome.is_err() {
        let _ = kill(child, Signal::SIGKILL);
        let _ = waitpid(child, None);
    }
    outcome
}

fn trace(child: Pid, n: u64, pinned: &Pinned) -> io::Result<Outcome> {
    match waitpid(child, None)? {
        WaitStatus::Stopped(..) => {}
        WaitStatus::Exited(_, code) => return Ok(Outcome::Exited(code)),
        other => {
            return Err(io::Error::other(format!(
                "the child did not stop at its start: {other:?}"
            )));
        }
    }
    ptrace::setoptions(
        child,
        Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_EXITKILL
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK,
    )?;
    ptrace::cont(child, None)?;
    let group = Pid::from_raw(-child.as_raw());
    let mut count = 0;
    let mut prepared = false;
    let mut killed = false;
    let mut ended = None;
    let mut traced = BTreeSet::from([child]);
    loop {
        let status = match waitpid(group, Some(WaitPidFlag::__WALL)) {
            Ok(status) => status,
            Err(nix::errno::Errno::EINTR) => continue,
            // Every traced thread and process is gone.
            Err(nix::errno::Errno::ECHILD) => break,
            Err(e) => return Err(e.into()),
        };
        let (pid, pass_on) = match status {
            WaitStatus::Exited(pid, code) => {
                if pid == child {
                    ended = Some(Outcome::Exited(code));
                }
                continue;
            }
            WaitStatus::Signaled(pid, signal, _) => {
                if pid == child {
                    ended = Some(Outcome::Signaled(signal as i32));
                }
                continue;
            }
            WaitStatus::PtraceSyscall(pid) => {
                if prepared && !killed && entered(pid).is_some_and(|call| counts(pid, &call)) {
                    count += 1;
                    if count == n {
                        killed = true;
                        // Not resumed: the call it stands at is never carried out.
                        for pid in &traced {
                            end(*pid)?;
                        }
                        continue;
                    }
                }
                (pid, None)
            }
            WaitStatus::Stopped(pid, Signal::SIGSTOP) if pid != child => (pid, None),
            WaitStatus::Stopped(pid, PREPARED) if pid == child && !prepared => {
                prepared = true;
                (pid, None)
            }
            WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
            WaitStatus::PtraceEvent(pid, _, libc::PTRACE_EVENT_EXEC) if pid != child && !killed => {
                traced.remove(&pid);
                pinned.free(pid);
                let _ = ptrace::detach(pid, None);
                continue;
            }
            WaitStatus::PtraceEvent(pid, ..) => (pid, None),
            _ => continue,
        };
        if killed {
            // It was forked just now.
            end(pid)?;
            continue;
        }
        traced.insert(pid);
        // Stopping at calls that are not counted would take most of the time.
        let resumed = match prepared {
            true => ptrace::syscall(pid, pass_on),
            false => ptrace::cont(pid, pass_on),
        };
        match resumed {
            // Killed in between.
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(e) => return Err(e.into()),
        }
    }
    match (killed, ended) {
        (true, _) => Ok(Outcome::Killed),
        (false, Some(outcome)) => Ok(outcome),
        (false, None) => Err(io::Error::other("the child vanished")),
    }
}

/// Kills a thread or process that may be gone already.
fn end(pid: Pid) -> io::Result<()> {
    match kill(pid, Signal::SIGKILL) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// A system call that is about to be carried out.
struct Call {
    number: i64,
    args: [u64; 6],
}

/// The system call that `pid` is about to carry out; `None` when it stands at the end of one.
fn entered(pid: Pid) -> Option<Call> {
    // struct ptrace_syscall_info, include/uapi/linux/ptrace.h: op at byte 0, the call's number at byte 24, then its arguments.
    const PTRACE_GET_SYSCALL_INFO: libc::c_uint = 0x420e;
    const ENTRY: u64 = 1;
    let mut info = [0u64; 11]; // the last word is not used at a call's start
    // SAFETY: the kernel writes at most `size_of_val(&info)` bytes into `info`, which outlives the call.
    let got = unsafe {
        libc::ptrace(
            PTRACE_GET_SYSCALL_INFO,
            pid.as_raw(),
            size_of_val(&info),
            info.as_mut_ptr(),
        )
    };
    // `op` is the first byte in memory on either byte order.
    let op = u64::from(info[0].to_ne_bytes()[0]);
    let [_, _, _, number, args @ .., _] = info;
    (got > 0 && op == ENTRY).then_some(Call {
        number: number.cast_signed(),
        args,
    })
}

/// Whether a system call could change something that outlives the process.
fn counts(pid: Pid, call: &Call) -> bool {
    let arg = |n: usize| call.args[n];
    match call.number {
        libc::SYS_openat => opens_to_change(arg(2)),
        // The first word of its `struct open_how`.
        libc::SYS_openat2 => memory(pid, arg(2), 8)
            .and_then(|word| Some(u64::from_ne_bytes(word.try_into().ok()?)))
            .is_none_or(opens_to_change),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open => opens_to_change(arg(1)),
        // A program is looked for in all of `PATH`.
        libc::SYS_execve => memory(pid, arg(0), libc::PATH_MAX as usize)
            .is_none_or(|path| until_nul(&path).exists()),
        // Before `FSCONFIG_CMD_CREATE` only parameters are set, of what only the process has.
        libc::SYS_fsconfig => arg(1) >= 6,
        libc::SYS_quotactl_fd => !looks_at_quota(arg(1)),
        libc::SYS_quotactl => !looks_at_quota(arg(0)),
        libc::SYS_ioctl => !ioctl_looks(arg(1)),
        number => !HARMLESS.contains(&number),
    }
}

/// Whether open(2) with these flags does more than look.
fn opens_to_change(flags: u64) -> bool {
    const CHANGES: i32 = libc::O_CREAT | libc::O_TRUNC | libc::O_TMPFILE & !libc::O_DIRECTORY;
    flags & u64::from(CHANGES.cast_unsigned()) != 0
}

/// Whether a command of quotactl(2) is `Q_XGETQUOTA`, `Q_XGETQSTAT` or `Q_XGETNEXTQUOTA`.
fn looks_at_quota(command: u64) -> bool {
    const GETS: [u64; 3] = [3, 5, 9];
    GETS.contains(&(command >> 8 & 0xff)) && command >> 16 & 0xff == u64::from(b'X')
}

/// Whether an ioctl(2) is one of those that tell attributes of a file; the direction in the number of others cannot be trusted.
fn ioctl_looks(request: u64) -> bool {
    const GETFLAGS: u64 = 0x8008_6601;
    const FSGETXATTR: u64 = 0x801c_581f;
    [GETFLAGS, FSGETXATTR].contains(&request)
}

/// What lies in the memory of a stopped process, as far as it is there.
fn memory(pid: Pid, at: u64, len: usize) -> Option<Vec<u8>> {
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut found = vec![0; len];
    let read = memory.read_at(&mut found, at).ok()?;
    found.truncate(read);
    Some(found)
}

fn until_nul(bytes: &[u8]) -> &Path {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    Path::new(OsStr::from_bytes(&bytes[..end]))
}

/// Calls that only look, change only the process itself, or write out what a kill loses nothing of.
const HARMLESS: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_readv,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_lseek,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_uname,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_futex,
    libc::SYS_ppoll,
    libc::SYS_umask,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_unshare,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_fgetxattr,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    464, // getxattrat
    465, // listxattrat
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_pipe2,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn three_files(dir: &std::path::Path) -> i32 {
        for name in ["a", "b", "c"] {
            // Looking is not counted.
            if std::fs::read_dir(dir).map(Iterator::count).is_err() {
                return 2;
            }
            if std::fs::create_dir(dir.join(name)).is_err() {
                return 1;
            }
        }
        7
    }

    #[test]
    fn the_child_is_killed_before_the_call() {
        for n in 1..=4 {
            let tmp = tempfile::tempdir().expect("a directory");
            let outcome = fork_killed_at_syscall(n, || three_files(tmp.path())).expect("ptrace");
            let made = std::fs::read_dir(tmp.path()).expect("list").count() as u64;
            assert_eq!(made, (n - 1).min(3), "killed at {n}");
            assert_eq!(
                outcome,
                if n <= 3 {
                    Outcome::Killed
                } else {
                    Outcome::Exited(7)
                }
            );
        }
    }

    #[test]
    fn looking_is_not_counted() {
        let tmp = tempfile::tempdir().expect("a directory");
        let at = tmp.path();
        let look = || {
            let dir = std::fs::File::open(at)?;
            let no_flags = rustix::fs::OFlags::empty();
            let by = rustix::fs::ResolveFlags::BENEATH;
            rustix::fs::openat2(&dir, ".", no_flags, rustix::fs::Mode::empty(), by)?;
            rustix::fs::ioctl_getflags(&dir)?;
            dir.sync_all()?;
            // It is in none of the directories of `PATH`.
            let started = std::process::Command::new("graphtest-no-such-program").spawn();
            assert!(started.is_err());
            io::Result::Ok(())
        };
        let work = || {
            let looked = look();
            i32::from(looked.is_err() || std::fs::create_dir(at.join("a")).is_err())
        };
        assert_eq!(
            fork_killed_at_syscall(1, work).expect("ptrace"),
            Outcome::Killed
        );
        assert!(!at.join("a").exists());
        assert_eq!(
            fork_killed_at_syscall(2, work).expect("ptrace"),
            Outcome::Exited(0)
        );
    }

    #[test]
    fn what_prepares_the_child_is_not_counted() {
        let tmp = tempfile::tempdir().expect("a directory");
        let dir = tmp.path();
        let prepare = || match three_files(dir) {
            7 => Ok("d"),
            code => Err(code),
        };
        let work = |name| std::fs::create_dir(dir.join(name)).map_or(1, |()| 0);
        let outcome = fork_prepared_killed_at_syscall(1, prepare, work).expect("ptrace");
        assert_eq!(outcome, Outcome::Killed);
        assert_eq!(std::fs::read_dir(dir).expect("list").count(), 3);
        let outcome = fork_prepared_killed_at_syscall(1, prepare, work).expect("ptrace");
        assert_eq!(outcome, Outcome::Exited(1), "they are there already");
    }

    #[test]
    fn a_prepared_child_keeps_nothing_of_its_parent_open() {
        let held = std::fs::File::open("/proc/self/exe").expect("a file");
        let count = || std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        // The three standard ones, and the directory that is read.
        let prepare = || match count() {
            4 => Ok(()),
            _ => Err(1),
        };
        let outcome = fork_prepared_killed_at_syscall(1000, prepare, |()| 7).expect("ptrace");
        assert_eq!(outcome, Outcome::Exited(7));
        held.metadata().expect("open here still");
    }

    #[test]
    fn a_program_that_the_child_started_lives_on() {
        let tmp = tempfile::tempdir().expect("a directory");
        let (told, made) = (tmp.path().join("told"), tmp.path().join("made"));
        // The program waits for a directory that is made only after the child is dead. Those of the children before end with the
        // test's directory.
        let script = format!(
            "until [ -d '{}' ]; do [ -d '{}' ] || exit; sleep 0.01; done; : > '{}'",
            told.display(),
            tmp.path().display(),
            made.display()
        );
        let work = || {
            let sh = std::process::Command::new("sh")
                .args(["-c", &script])
                .spawn();
            if sh.is_err() {
                return 1;
            }
            three_files(tmp.path())
        };
        // At `mkdir` of the last one, however many calls starting a process takes.
        let mut n = 1;
        while !tmp.path().join("b").exists() {
            for name in ["a", "b", "c"] {
                let _ = std::fs::remove_dir(tmp.path().join(name));
            }
            assert_eq!(
                fork_killed_at_syscall(n, work).expect("ptrace"),
                Outcome::Killed
            );
            n += 1;
        }
        std::fs::create_dir(&told).expect("a directory");
        for _ in 0..500 {
            if made.exists() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("the program died with its parent");
    }

    #[test]
    fn threads_of_the_child_are_counted_and_killed_too() {
        let tmp = tempfile::tempdir().expect("a directory");
        let work = || {
            let dir = tmp.path();
            std::thread::scope(|s| s.spawn(|| three_files(dir)).join().unwrap_or(1))
        };
        assert_eq!(
            fork_killed_at_syscall(2, work).expect("ptrace"),
            Outcome::Killed
        );
        assert_eq!(std::fs::read_dir(tmp.path()).expect("list").count(), 1);
        assert_eq!(
            fork_killed_at_syscall(1000, || 3).expect("ptrace"),
            Outcome::Exited(3)
        );
    }

    #[test]
    fn a_panic_and_a_signal_are_told_apart() {
        assert_eq!(
            in_child(|| panic!("on purpose")).expect("fork"),
            Outcome::Exited(PANICKED)
        );
        let outcome = in_child(|| {
            let _ = kill(nix::unistd::getpid(), Signal::SIGKILL);
            0
        });
        assert_eq!(outcome.expect("fork"), Outcome::Signaled(9));
    }
}
