//! Processors: how many there are for this process, and keeping a thread on one of them.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::sync::lock;

/// How many processors this process may use, as it was when first asked: the answer takes several files to read, and a thread that is
/// kept on one of them for a while would be told one.
pub fn cpus() -> usize {
    static CPUS: OnceLock<usize> = OnceLock::new();
    *CPUS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Keeps the calling thread, and the processes that it forks, on one processor until dropped: on the one where the fewest threads of
/// this process are kept.
///
/// Two that take turns, such as a tracer and what it traces, lose most of their time in waking each other across processors.
pub(super) struct Pinned {
    /// The processor, and where the thread could run before; `None` where that cannot be told or changed, and nothing is pinned.
    pin: Option<(usize, CpuSet)>,
}

/// How many threads are kept on each processor.
static KEPT: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

impl Pinned {
    pub(super) fn new() -> Self {
        // Asked before, so that nothing under the pin remembers a single one.
        cpus();
        Self { pin: pin().ok() }
    }

    /// Lets a process that was forked under the pin run where this one could before.
    pub(super) fn free(&self, pid: Pid) {
        if let Some((_, before)) = &self.pin {
            // It may be gone.
            let _ = sched_setaffinity(pid, before);
        }
    }
}

fn pin() -> nix::Result<(usize, CpuSet)> {
    let before = sched_getaffinity(THIS)?;
    let mut kept = lock(&KEPT);
    let usable = (0..CpuSet::count()).filter(|cpu| before.is_set(*cpu) == Ok(true));
    let fewest = usable.min_by_key(|cpu| kept.get(cpu).copied().unwrap_or(0));
    let cpu = fewest.ok_or(Errno::EINVAL)?;
    let mut one = CpuSet::new();
    one.set(cpu)?;
    sched_setaffinity(THIS, &one)?;
    *kept.entry(cpu).or_default() += 1;
    Ok((cpu, before))
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.free(THIS);
        if let Some((cpu, _)) = self.pin
            && let Some(kept) = lock(&KEPT).get_mut(&cpu)
        {
            *kept -= 1;
        }
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
            let _pinned = Pinned::new();
            assert_eq!(count(&sched_getaffinity(THIS).expect("a set")), 1);
            assert_eq!(cpus(), count(&before));
        }
        assert!(sched_getaffinity(THIS).expect("a set") == before);
    }
}
