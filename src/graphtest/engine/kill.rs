//! The step `kill-at-each-syscall`: a crash at every moment of some steps, and what is found afterwards.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::libc;

use super::call::{Done, Fail};
use super::layers::Layers;
use super::lifecycle::open_dir;
use super::many::touches;
use super::state::{self, HomeState};
use super::world::World;
use crate::drivers::copy::{Files, copy_tree};
use crate::graphtest::outcome::Progress;
use crate::graphtest::step::{Action, Expect, KillStep, Step};
use crate::sys::ptrace::{Outcome, fork_killed_at_syscall};
use crate::tree::compare;

/// More system calls than any sensible step makes.
const MAX_CALLS: u64 = 5_000;

/// A child that another thread's lock at the moment of the fork keeps waiting for ever (std has one for starting threads) is
/// given up after so many seconds, and forked again so many times.
const PATIENCE: u32 = 15;
const TRIES: u32 = 3;

/// What every try starts from and must come to.
struct Crash<'s> {
    steps: &'s KillStep,
    /// A copy of the home before the steps.
    rest: PathBuf,
    before: Layers,
    after: Layers,
    /// The home after the steps without any kill.
    done: HomeState,
    /// The layers that the steps touch; true for those whose content they write, of which a part may be there.
    touched: BTreeMap<String, bool>,
}

impl World<'_> {
    pub fn kill(&mut self, s: &KillStep) -> Done {
        if !self.held.values().all(|n| *n == 0) {
            return Err(Fail::new(
                "the scenario holds a layer; put it before kill-at-each-syscall",
            ));
        }
        self.stop()?;
        let rest = self.scratch_path("rest");
        copy_home(&self.home, &rest)?;
        let before = self.layers.clone();
        self.init(&Expect::default())?;
        self.run(&s.body)?;
        let after = self.layers.clone();
        self.run(&s.then)?;
        self.stop()?;
        let mut touched = BTreeMap::new();
        written(&s.body, &mut touched);
        let crash = Crash {
            steps: s,
            rest,
            before,
            after,
            done: HomeState::of(&self.home)?,
            touched,
        };
        let mut n = 1;
        while self.crash_at(&crash, n)? {
            n += 1;
            if n > MAX_CALLS {
                return Err(Fail::new(format!(
                    "the steps make more than {MAX_CALLS} system calls"
                )));
            }
        }
        // What follows goes on from a home on which nothing was killed.
        self.restore(&crash)?;
        self.init(&Expect::default())?;
        self.run(&s.body)?;
        self.run(&s.then)
    }

    /// Puts the home back to what it was before the steps.
    fn restore(&mut self, crash: &Crash<'_>) -> Done {
        self.abandon();
        self.unmount_home()?;
        state::remove_dir(&self.home)
            .map_err(|e| Fail::new(format!("the home cannot be put back: {e}")))?;
        copy_home(&crash.rest, &self.home)?;
        self.layers = crash.before.clone();
        Ok(())
    }

    /// One try; `false` when the child came to its end before its `n`-th call.
    fn crash_at(&mut self, crash: &Crash<'_>, n: u64) -> Done<bool> {
        self.restore(crash)?;
        let report = self.scratch_path("child");
        let mut outcome = self.child(crash, n, &report)?;
        for _ in 0..TRIES {
            if outcome != Outcome::Signaled(libc::SIGALRM) {
                break;
            }
            self.restore(crash)?;
            outcome = self.child(crash, n, &report)?;
        }
        let said = std::fs::read_to_string(&report).unwrap_or_default();
        match outcome {
            Outcome::Exited(0) => return Ok(false),
            Outcome::Killed => {}
            other => {
                let what =
                    format!("expected the child to do the steps or be killed, found {other:?}");
                return Err(Fail::lines(what, said.lines().map(str::to_string)));
            }
        }
        let words = format!("killed at its system call {n}");
        self.look_after(crash)
            .and_then(|()| self.again(crash))
            .map_err(|f| f.context(&words))?;
        Ok(true)
    }

    /// Forks a child that starts a driver and does the steps.
    fn child(&mut self, crash: &Crash<'_>, n: u64, report: &Path) -> Done<Outcome> {
        // Nothing that another thread of this process may have locked is used in the child.
        let progress = Progress::default();
        let mut world = self.fork(1, &std::collections::BTreeSet::new(), &progress);
        world.concurrent = false;
        let outcome = fork_killed_at_syscall(n, || {
            nix::unistd::alarm::set(PATIENCE);
            let done = world
                .init(&Expect::default())
                .and_then(|_| world.run(&crash.steps.body));
            match done {
                Ok(()) => 0,
                Err(fail) => {
                    let _ = std::fs::write(report, fail.detail.join("\n"));
                    1
                }
            }
        });
        outcome.map_err(|e| Fail::new(format!("a child cannot be traced: {e}")))
    }

    /// A new driver opens the home: every layer is whole, or one that was being made or removed and is gone.
    fn look_after(&mut self, crash: &Crash<'_>) -> Done {
        self.init(&Expect::default())?;
        let driver = self.driver()?;
        for id in crash.before.ids() {
            if !crash.touched.contains_key(&id) {
                if !driver.exists(&id) {
                    return Err(Fail::new(format!("expected {id} to be there, it is gone")));
                }
                self.whole(&id, &[&crash.before])?;
            }
        }
        for (id, written) in &crash.touched {
            let (was, will) = (crash.before.has(id), crash.after.has(id));
            if !driver.exists(id) {
                if was && will {
                    return Err(Fail::new(format!("expected {id} to be there, it is gone")));
                }
                continue;
            }
            if !was && !will && !written {
                // Made and removed again by the steps: whatever it holds, it must be possible to remove it.
                continue;
            }
            if !written {
                self.whole(id, &[&crash.before, &crash.after])?;
            }
        }
        Ok(())
    }

    /// The layer must hold what one of these says.
    fn whole(&mut self, id: &str, either: &[&Layers]) -> Done {
        let expected: Vec<_> = either.iter().filter_map(|layers| layers.tree(id)).collect();
        let found = self.tree_of(id)?;
        let how = self.comparison();
        let mut diffs = expected.iter().map(|tree| compare(tree, &found, &how));
        match diffs.next() {
            Some(first) if !first.is_empty() && !diffs.any(|d| d.is_empty()) => Err(Fail::lines(
                format!("expected {id} to be whole or gone, it is neither:"),
                first.lines(),
            )),
            _ => Ok(()),
        }
    }

    /// The steps must be possible now, and leave no more behind than without the kill.
    fn again(&mut self, crash: &Crash<'_>) -> Done {
        let driver = self.driver()?;
        for (id, written) in &crash.touched {
            match (crash.before.has(id), driver.exists(id)) {
                (false, true) => self.remove_layer(id, &Expect::default())?,
                (true, true) if *written => {
                    self.adopt(id)?;
                }
                _ => {}
            }
        }
        drop(driver);
        self.run(&crash.steps.body)
            .and_then(|()| self.run(&crash.steps.then))
            .map_err(|f| f.context("the steps again"))?;
        self.stop()?;
        let now = HomeState::of(&self.home)?;
        if now.len() > crash.done.len() {
            return Err(Fail::lines(
                format!(
                    "expected {} files and directories in the home after the steps, found {}; some that no clean run leaves:",
                    crash.done.len(),
                    now.len()
                ),
                now.not_in(&crash.done),
            ));
        }
        Ok(())
    }
}

/// The layers that steps touch, and whether they write into them.
fn written(steps: &[Step], into: &mut BTreeMap<String, bool>) {
    let mut touched = BTreeMap::new();
    touches(steps, &mut touched);
    for (id, changed) in touched {
        if changed {
            into.entry(id).or_insert(false);
        }
    }
    for step in steps {
        let id = match &step.action {
            Action::In(s) => &s.id,
            Action::Apply(s) => &s.id,
            Action::TarSplit(s) => &s.id,
            _ => continue,
        };
        into.insert(id.clone(), true);
    }
}

/// Copies a home with everything in it, the attributes of overlay filesystems too.
fn copy_home(from: &Path, to: &Path) -> Done {
    let wrong = |e: String| Fail::new(format!("the home cannot be copied: {e}"));
    std::fs::create_dir(to).map_err(|e| wrong(e.to_string()))?;
    let source = open_dir(from).map_err(|e| wrong(e.to_string()))?;
    let target = open_dir(to).map_err(|e| wrong(e.to_string()))?;
    copy_tree(source.as_fd(), target.as_fd(), Files::Copied, |_| true)
        .map_err(|e| wrong(e.to_string()))
}
