//! Processors: how many there are for this process, and keeping a thread on one of them.

use std::sync::OnceLock;

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

/// How many processors this process may use, as it was when first asked: the answer takes several files to read, and a thread that is
/// [`Pinned`] for a while would be told one.
pub fn cpus() -> usize {
    static CPUS: OnceLock<usize> = OnceLock::new();
    *CPUS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Keeps the calling thread, and the processes that it forks, on the processor that it is on, until dropped.
///
/// Two that take turns, such as a tracer and what it traces, lose most of their time in waking each other across processors.
pub(super) struct Pinned {
    /// Where the thread could run before; `None` where that cannot be told or changed, and nothing is pinned.
    before: Option<CpuSet>,
}

impl Pinned {
    pub(super) fn here() -> Self {
        // Asked before, so that nothing under the pin remembers a single one.
        cpus();
        let pin = || {
            let before = sched_getaffinity(THIS)?;
            let mut here = CpuSet::new();
            here.set(sched_getcpu()?)?;
            sched_setaffinity(THIS, &here)?;
            nix::Result::Ok(before)
        };
        Self { before: pin().ok() }
    }

    /// Lets a process that was forked under the pin run where this one could before.
    pub(super) fn free(&self, pid: Pid) {
        if let Some(before) = &self.before {
            // It may be gone.
            let _ = sched_setaffinity(pid, before);
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.free(THIS);
    }
}

/// The calling thread.
const THIS: Pid = Pid::from_raw(0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_holds_until_it_is_dropped() {
        let before = sched_getaffinity(THIS).expect("a set");
        let count = |set: &CpuSet| {
            (0..CpuSet::count())
                .filter(|n| set.is_set(*n) == Ok(true))
                .count()
        };
        {
            let _pinned = Pinned::here();
            assert_eq!(count(&sched_getaffinity(THIS).expect("a set")), 1);
            assert_eq!(cpus(), count(&before));
        }
        assert!(sched_getaffinity(THIS).expect("a set") == before);
    }
}
