//! What is done to the process before anything runs: namespaces, limits, signals. All of it before the first thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::lab::{Register, dead_runs, enter_mount_namespace, state_dir};
use crate::sys::ns::enter_user_ns;

/// Enters namespaces so that no mount can outlive the process: as root a mount namespace; as an ordinary user a user
/// namespace with it. Returns whose rights the process has now, and what could not be had and why.
///
/// With `keep`, root stays in the mount namespace it is in, so that what is kept can be looked at.
pub(super) fn namespaces(keep: bool) -> (String, Option<String>) {
    if rustix::process::geteuid().is_root() {
        let note = if keep {
            None
        } else {
            enter_mount_namespace().err()
        };
        let note = note.map(|e| format!("no mount namespace of its own: {e}; mounts of an interrupted run will stay until `graphtest clean`"));
        return (user(), note);
    }
    let entered = enter_user_ns().and_then(|()| enter_mount_namespace());
    let note = entered.err().map(|e| {
        format!(
            "no user namespace: {e}; what needs mounts or several owners is skipped. Run as root, or allow user namespaces \
             (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
        )
    });
    (user(), note)
}

fn user() -> String {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let all_mapped = map.split_whitespace().eq(["0", "0", "4294967295"]);
    match (rustix::process::geteuid().is_root(), all_mapped) {
        (true, true) => "root",
        (true, false) => "root of a user namespace",
        (false, _) => "ordinary user",
    }
    .to_string()
}

/// Scenarios in parallel hold many directories open; the soft limit is raised to the hard one.
pub(super) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // Not being allowed to is no reason to stop: a scenario that runs out says so itself.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

/// A flag that an interrupt sets; a second interrupt ends the process at once.
pub(super) fn interrupts() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order: the first signal finds the flag false and then sets it.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .context("cannot handle signals")?;
    }
    Ok(stop)
}

/// Whether the flag of [`interrupts`] is set.
pub(super) fn interrupted(stop: &AtomicBool) -> bool {
    stop.load(Ordering::Relaxed)
}

/// Opens the register of what this run makes, and says when earlier runs left something. To be called before [`namespaces`]:
/// it asks whose home directory it is.
pub(super) fn register() -> anyhow::Result<Register> {
    let dead = state_dir().and_then(|state| dead_runs(&state)).unwrap_or(0);
    if dead > 0 {
        let runs = if dead == 1 { "run" } else { "runs" };
        eprintln!(
            "note: {dead} interrupted {runs} left something behind; `graphtest clean` gives it back"
        );
    }
    Ok(Register::begin()?)
}
