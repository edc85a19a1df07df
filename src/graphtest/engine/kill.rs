//! The step `kill-at-each-syscall`: a crash at every moment of some steps; and what must be found after steps were cut short, however.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::libc;

use super::call::{Done, Fail};
use super::layers::Layers;
use super::lifecycle::open_dir;
use super::many::touches;
use super::quota::OnRecord;
use super::state::{self, HomeState};
use super::world::World;
use crate::drivers::copy::{Files, copy_tree};
use crate::graphdriver::CreateOpts;
use crate::graphtest::outcome::Progress;
use crate::graphtest::step::{Action, Expect, KillStep, Step};
use crate::sys::memory::give_back_free;
use crate::sys::ptrace::{Outcome, fork_prepared_killed_at_syscall};
use crate::tree::compare;

/// More system calls than any sensible step makes.
const MAX_CALLS: u64 = 5_000;

/// A child that another thread's lock at the moment of the fork keeps waiting for ever (std has one for starting threads, as copying a
/// large tree does) is given up after so many seconds, and forked again so many times.
const PATIENCE: u32 = 15;
const TRIES: u32 = 3;

/// Steps that are cut short: what every try starts from and must come to.
pub(super) struct Crash<'s> {
    /// What is cut short.
    pub body: &'s [Step],
    /// What must be possible afterwards.
    then: &'s [Step],
    /// A copy of the home before the steps.
    rest: PathBuf,
    /// The layers before the steps, and after them.
    pub before: Layers,
    after: Layers,
    /// The home after the steps without any kill.
    done: HomeState,
    /// The limits before the steps and after them, where limits of projects or of subvolumes are kept.
    limits: Option<(OnRecord, OnRecord)>,
    /// The layers that the steps touch.
    touched: BTreeMap<String, Touch>,
    /// Those of them that the steps remove, perhaps to make them anew: they may be gone.
    removed: BTreeSet<String>,
}

/// What steps do to a layer, and so what may be found of it after a kill.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Touch {
    /// It is made or removed: it is whole or not there.
    AtOnce,
    /// It is written into: a part may be there.
    Written,
    /// An archive is applied to it: a part may be there, and it is not to be used but removed.
    Applied,
}

impl World<'_> {
    pub fn kill(&mut self, s: &KillStep) -> Done {
        let crash = self.crash(&s.body, &s.then)?;
        // For there are to be hundreds of children.
        give_back_free();
        let mut n = 1;
        while self.crash_at(&crash, s.started, n)? {
            n += 1;
            if n > MAX_CALLS {
                return Err(Fail::new(format!(
                    "the steps make more than {MAX_CALLS} system calls"
                )));
            }
        }
        // What follows goes on from a home on which nothing was killed.
        self.restore(&crash)?;
        forget(&crash)?;
        self.init(&Expect::default())?;
        self.run(&s.body)?;
        self.run(&s.then)
    }

    /// Does the steps once undisturbed, and notes what was there before and what came of them. No driver runs afterwards.
    pub(super) fn crash<'s>(&mut self, body: &'s [Step], then: &'s [Step]) -> Done<Crash<'s>> {
        if !self.held.values().all(|n| *n == 0) {
            return Err(Fail::new(
                "the scenario holds a layer; put it before steps that are cut short",
            ));
        }
        // What a driver makes when a layer is first shown is there before, then.
        self.all_as_modelled(|_| true)?;
        self.stop()?;
        let rest = self.scratch_home();
        copy_home(&self.home, &rest)?;
        let on_record = self.on_record()?;
        let before = self.layers.clone();
        self.init(&Expect::default())?;
        self.run(body)?;
        let after = self.layers.clone();
        self.run(then)?;
        self.stop()?;
        let mut touched = BTreeMap::new();
        written(body, &mut touched);
        let removed = body.iter().filter_map(|step| match &step.action {
            Action::Remove(s) => Some(s.id.clone()),
            _ => None,
        });
        let limits = on_record.zip(self.on_record()?);
        Ok(Crash {
            limits,
            removed: removed.collect(),
            body,
            then,
            rest,
            before,
            after,
            done: HomeState::names(&self.home)?,
            touched,
        })
    }

    /// Puts the home back to what it was before the steps.
    pub(super) fn restore(&mut self, crash: &Crash<'_>) -> Done {
        self.abandon();
        self.unmount_home()?;
        state::remove_dir(&self.home)
            .map_err(|e| Fail::new(format!("the home cannot be put back: {e}")))?;
        copy_home(&crash.rest, &self.home)?;
        if let Some((before, _)) = &crash.limits {
            self.put_on_record(before)?;
        }
        self.layers = crash.before.clone();
        Ok(())
    }

    /// One try; `false` when the child came to its end before its `n`-th call.
    fn crash_at(&mut self, crash: &Crash<'_>, started: bool, n: u64) -> Done<bool> {
        self.restore(crash)?;
        let report = self.scratch_path("child");
        let mut outcome = self.child(crash, started, n, &report)?;
        for _ in 0..TRIES {
            if outcome != Outcome::Signaled(libc::SIGALRM) {
                break;
            }
            self.restore(crash)?;
            outcome = self.child(crash, started, n, &report)?;
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
        self.init(&Expect::default())
            .and_then(|_| self.look_after(crash))
            .and_then(|()| self.again(crash))
            .map_err(|f| f.context(&words))?;
        Ok(true)
    }

    /// Forks a child that starts a driver and does the steps.
    fn child(&mut self, crash: &Crash<'_>, started: bool, n: u64, report: &Path) -> Done<Outcome> {
        // Nothing that another thread of this process may have locked is used in the child.
        let progress = Progress::default();
        // Of a layer that is applied to, nothing is asked in the child, where it would only be more calls to be killed at.
        let applied = crash.touched.iter().filter(|(_, t)| **t == Touch::Applied);
        let applied: BTreeSet<String> = applied.map(|(id, _)| id.clone()).collect();
        let mut world = self.fork(1, &applied, &progress);
        world.concurrent = false;
        let tell = |fail: Fail| {
            let _ = std::fs::write(report, fail.detail.join("\n"));
            1
        };
        let prepare = || {
            nix::unistd::alarm::set(PATIENCE);
            if started {
                world.init(&Expect::default()).map_err(tell)?;
            }
            Ok(world)
        };
        let outcome = fork_prepared_killed_at_syscall(n, prepare, |mut world| {
            let ready = match started {
                true => Ok(true),
                false => world.init(&Expect::default()),
            };
            let done = ready.and_then(|_| world.run(crash.body));
            done.map_or_else(tell, |()| 0)
        });
        outcome.map_err(|e| Fail::new(format!("a child cannot be traced: {e}")))
    }

    /// Every layer is whole, or one that was being made or removed and is gone.
    pub(super) fn look_after(&mut self, crash: &Crash<'_>) -> Done {
        let driver = self.driver()?;
        for id in crash.before.ids() {
            if !crash.touched.contains_key(&id) {
                if !driver.exists(&id) {
                    return Err(Fail::new(format!("expected {id} to be there, it is gone")));
                }
                self.whole(&id, &[&crash.before])?;
            }
        }
        for (id, touch) in &crash.touched {
            let (was, will) = (crash.before.has(id), crash.after.has(id));
            if !driver.exists(id) {
                if was && will && !crash.removed.contains(id) {
                    return Err(Fail::new(format!("expected {id} to be there, it is gone")));
                }
                continue;
            }
            let at_once = *touch == Touch::AtOnce;
            if !was && !will && at_once {
                // Made and removed again by the steps: whatever it holds, it must be possible to remove it.
                continue;
            }
            if at_once {
                self.whole(id, &[&crash.before, &crash.after])?;
            }
        }
        Ok(())
    }

    /// The layer must hold what one of these says.
    pub(super) fn whole(&mut self, id: &str, either: &[&Layers]) -> Done {
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

    /// Removes what the steps made, whole or not.
    pub(super) fn remove_made(&mut self, crash: &Crash<'_>) -> Done {
        for id in crash.touched.keys().filter(|id| !crash.before.has(id)) {
            if self.driver()?.exists(id) {
                self.remove_layer(id, &Expect::default())?;
            }
        }
        Ok(())
    }

    /// The steps must be possible now, and leave no more behind than if they had not been cut short.
    pub(super) fn again(&mut self, crash: &Crash<'_>) -> Done {
        let driver = self.driver()?;
        let plainly = Expect::default();
        for (id, touch) in &crash.touched {
            match (crash.before.has(id), driver.exists(id), touch) {
                (false, true, _) => self.remove_layer(id, &plainly)?,
                (true, true, Touch::Written) => {
                    self.adopt(id)?;
                }
                (true, true, Touch::Applied) => {
                    let (opts, parent) = (CreateOpts::default(), crash.before.parent(id));
                    self.remove_layer(id, &plainly)?;
                    self.create_layer(id, parent.as_deref(), false, &opts, &plainly)?;
                }
                _ => {}
            }
        }
        drop(driver);
        self.run(crash.body)
            .and_then(|()| self.run(crash.then))
            .map_err(|f| f.context("the steps again"))?;
        self.stop()?;
        if let Some((_, after)) = &crash.limits {
            self.no_more_limits(after)?;
        }
        let now = HomeState::names(&self.home)?;
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

/// Removes the copy of the home, which takes room from what follows.
pub(super) fn forget(crash: &Crash<'_>) -> Done {
    state::remove_dir(&crash.rest)
        .map_err(|e| Fail::new(format!("the copy of the home cannot be removed: {e}")))
}

/// The layers that steps touch, and how.
fn written(steps: &[Step], into: &mut BTreeMap<String, Touch>) {
    let mut touched = BTreeMap::new();
    touches(steps, &mut touched);
    for (id, changed) in touched {
        if changed {
            into.entry(id).or_insert(Touch::AtOnce);
        }
    }
    for step in steps {
        let (id, touch) = match &step.action {
            Action::In(s) => (&s.id, Touch::Written),
            Action::Subvolumes(s) => (&s.id, Touch::Written),
            Action::Apply(s) => (&s.id, Touch::Applied),
            Action::TarSplit(s) => (&s.id, Touch::Applied),
            _ => continue,
        };
        into.insert(id.clone(), touch);
    }
}

/// Copies a home with everything in it, the attributes of overlay filesystems too.
fn copy_home(from: &Path, to: &Path) -> Done {
    let wrong = |e: String| Fail::new(format!("the home cannot be copied: {e}"));
    std::fs::create_dir(to).map_err(|e| wrong(e.to_string()))?;
    let source = open_dir(from).map_err(|e| wrong(e.to_string()))?;
    let target = open_dir(to).map_err(|e| wrong(e.to_string()))?;
    copy_tree(
        source.as_fd(),
        target.as_fd(),
        Files::CopiedAndSnapshots,
        |_| true,
    )
    .map_err(|e| wrong(e.to_string()))
}
