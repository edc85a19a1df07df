//! The program `zfs`: run, and understood when it refuses. The messages are those of libzfs, which are the same from 2.0 to 2.4.
//!
//! It takes longer to start than the kernel to do what it asks for, so what every layer needs is asked of the kernel itself
//! ([`crate::sys::zfs`]); the program does what takes several requests, or is seldom done.

use std::fs::File;
use std::io;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::graphdriver::{Error, LayerId, Result};

/// The program that changes datasets.
const ZFS: &str = "zfs";
/// The program that tells of pools.
const ZPOOL: &str = "zpool";

/// How long a dataset that somebody uses is tried again. The kernel lets go of an unmounted one some milliseconds later.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// The same where the program is asked next, which tells a dataset that is in use from one that has snapshots.
pub(super) const SOON: Duration = Duration::from_millis(30);

/// Why the program refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is such a dataset or snapshot.
    Exists,
    /// There is none, or not the one that it would be made from or in.
    Missing,
    /// It is mounted somewhere, or held.
    Busy,
    /// These were made from it.
    Dependents(Vec<String>),
    /// The errno that it stands for.
    Errno(Errno),
    /// There is no such program.
    NotInstalled,
    /// Something else.
    Other,
}

/// A call of the program, or of the kernel, that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// Why.
    pub why: Refusal,
    /// What it said, in one line.
    pub said: String,
}

impl Refused {
    /// Reads what the program said on its standard error.
    fn of(text: &str) -> Self {
        let lines: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .collect();
        let first = lines.first().copied().unwrap_or_default();
        Self {
            why: refusal(first, &lines),
            said: lines.join("; "),
        }
    }

    /// What the kernel itself refuses to do.
    pub(super) fn with(errno: Errno, what: String) -> Self {
        let why = match errno {
            Errno::EXIST => Refusal::Exists,
            Errno::NOENT => Refusal::Missing,
            Errno::BUSY => Refusal::Busy,
            other => Refusal::Errno(other),
        };
        Self {
            why,
            said: format!("{what}: {}", std::io::Error::from(errno)),
        }
    }

    /// The error of a driver's call on a layer.
    pub(super) fn on(self, id: &LayerId) -> Error {
        let in_use = |why| Error::InUse {
            id: id.to_string(),
            why,
        };
        match self.why {
            Refusal::Exists => Error::LayerExists(id.to_string()),
            Refusal::Missing => id.unknown(),
            Refusal::Busy => in_use("its dataset is busy".to_owned()),
            Refusal::Dependents(names) => in_use(format!("made from it: {}", names.join(", "))),
            Refusal::Errno(e) => Error::io("change the dataset of", id.as_str(), e),
            Refusal::NotInstalled | Refusal::Other => self.alone(),
        }
    }

    /// The error of a call that is about no layer.
    pub(super) fn alone(self) -> Error {
        match self.why {
            Refusal::Errno(e) => Error::io("run", ZFS, e),
            Refusal::NotInstalled => Error::NotSupported(self.said),
            _ => Error::Other(self.said),
        }
    }
}

/// What stands after the last `: ` of `cannot VERB 'NAME': REASON` says why.
fn refusal(first: &str, lines: &[&str]) -> Refusal {
    let reason = first.rsplit_once("': ").map_or(first, |(_, reason)| reason);
    let is = |text: &str| reason.contains(text);
    if is("has dependent clones") || is("has children") || is("has dependents") {
        // After a line that says how they would all be destroyed.
        let names = lines
            .iter()
            .skip_while(|l| !l.starts_with("use '-"))
            .skip(1);
        return Refusal::Dependents(names.map(|l| (*l).to_owned()).collect());
    }
    if is("already exists") {
        Refusal::Exists
    } else if is("does not exist")
        || is("no such pool or dataset")
        || is("could not find any snapshots")
    {
        Refusal::Missing
    } else if is("busy") {
        Refusal::Busy
    } else if is("out of space") {
        Refusal::Errno(Errno::NOSPC)
    } else if is("quota exceeded") {
        Refusal::Errno(Errno::DQUOT)
    } else if is("read-only") {
        Refusal::Errno(Errno::ROFS)
    } else if is("permission denied") {
        Refusal::Errno(Errno::PERM)
    } else {
        Refusal::Other
    }
}

/// Runs `zfs` to its end and returns what it prints. `lock` is its standard input, so that it stays locked as long as the program runs,
/// whatever becomes of this process.
///
/// # Errors
/// What it refuses.
pub(super) fn zfs(arguments: &[&str], lock: Option<&File>) -> Result<String, Refused> {
    run(ZFS, arguments, lock)
}

/// The same again and again while the dataset is busy, for a short time.
///
/// # Errors
/// What it refuses.
pub(super) fn zfs_patiently(arguments: &[&str], lock: Option<&File>) -> Result<String, Refused> {
    patiently(
        PATIENCE,
        |e: &Refused| e.why == Refusal::Busy,
        || zfs(arguments, lock),
    )
}

/// Does something again and again, for some time, while its error is one that passes.
///
/// # Errors
/// The last one.
pub(super) fn patiently<T, E>(
    time: Duration,
    passes: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let until = Instant::now() + time;
    let mut pause = Duration::from_millis(2);
    loop {
        match attempt() {
            Err(e) if passes(&e) && Instant::now() < until => {
                sleep(pause);
                pause *= 2;
            }
            other => return other,
        }
    }
}

/// Runs `zpool`.
///
/// # Errors
/// What it refuses.
pub(super) fn zpool(arguments: &[&str]) -> Result<String, Refused> {
    run(ZPOOL, arguments, None)
}

fn run(program: &str, arguments: &[&str], lock: Option<&File>) -> Result<String, Refused> {
    let started = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => Refused {
            why: Refusal::NotInstalled,
            said: format!(
                "the program {program} is not installed; Debian's package is zfsutils-linux"
            ),
        },
        _ => Refused {
            why: Errno::from_io_error(&e).map_or(Refusal::Other, Refusal::Errno),
            said: format!("{program}: {e}"),
        },
    };
    let stdin = match lock {
        Some(lock) => Stdio::from(lock.try_clone().map_err(started)?),
        None => Stdio::null(),
    };
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(stdin)
        .output()
        .map_err(started)?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let mut refused = Refused::of(&String::from_utf8_lossy(&stderr));
    if refused.said.is_empty() {
        refused.said = format!("{program} {}: {status}", arguments.join(" "));
    }
    Err(refused)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("cannot create 'p/a': dataset already exists\n", Refusal::Exists)]
    #[case(
        "cannot create snapshot 'p/a@x': dataset already exists\nno snapshots were created\n",
        Refusal::Exists
    )]
    #[case("cannot open 'p/a': dataset does not exist\n", Refusal::Missing)]
    #[case("cannot open 'p': no such pool or dataset\n", Refusal::Missing)]
    #[case(
        "could not find any snapshots to destroy; check snapshot names.\n",
        Refusal::Missing
    )]
    #[case("cannot destroy 'p/a': dataset is busy\n", Refusal::Busy)]
    #[case("cannot destroy 'p/a': pool or dataset is busy\n", Refusal::Busy)]
    #[case("cannot create 'p/a': out of space\n", Refusal::Errno(Errno::NOSPC))]
    #[case(
        "cannot create 'p/a': pool is read-only\n",
        Refusal::Errno(Errno::ROFS)
    )]
    #[case(
        "cannot create 'p/a': permission denied\n",
        Refusal::Errno(Errno::PERM)
    )]
    #[case("cannot create 'p/a': the pool thinks otherwise\n", Refusal::Other)]
    // A name may say anything.
    #[case("cannot create 'p/is busy': dataset already exists\n", Refusal::Exists)]
    #[case(
        "cannot destroy 'p/a': filesystem has dependent clones\nuse '-R' to destroy the following datasets:\np/b\np/c\n",
        Refusal::Dependents(vec!["p/b".to_owned(), "p/c".to_owned()])
    )]
    #[case(
        "cannot destroy 'p/a@x': snapshot has dependent clones\nuse '-R' to destroy the following datasets:\np/b@y\np/b\n",
        Refusal::Dependents(vec!["p/b@y".to_owned(), "p/b".to_owned()])
    )]
    fn what_the_program_says_is_understood(#[case] said: &str, #[case] why: Refusal) {
        assert_eq!(Refused::of(said).why, why);
    }

    #[test]
    fn a_full_pool_is_no_room() {
        let id = LayerId::parse("a").unwrap();
        let full = Refused::of("cannot create snapshot 'p/a@x': out of space\n");
        assert!(full.clone().on(&id).is_no_room() && full.alone().is_no_room());
        let odd = Refused::of("internal error: x\nmore\n").on(&id);
        assert_eq!(odd.to_string(), "internal error: x; more");
    }

    #[test]
    fn a_program_is_run_and_heard() {
        assert_eq!(run("echo", &["a", "b"], None).unwrap(), "a b\n");
        let refused = run("sh", &["-c", "echo no >&2; exit 3"], None).unwrap_err();
        assert_eq!((refused.why, refused.said.as_str()), (Refusal::Other, "no"));
        let silent = run("false", &[], None).unwrap_err();
        assert!(silent.said.contains("exit status: 1"), "{silent:?}");
        let none = run("no-such-program", &[], None).unwrap_err();
        assert_eq!(none.why, Refusal::NotInstalled);
        assert!(matches!(none.alone(), Error::NotSupported(_)));
    }
}
