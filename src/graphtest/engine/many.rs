//! Steps that do a thing several times: chain, repeat, parallel.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Barrier};

use super::call::{Done, Fail};
use super::world::World;
use crate::graphdriver::CreateOpts;
use crate::graphtest::lang::At;
use crate::graphtest::outcome::Progress;
use crate::graphtest::step::{Action, ChainStep, Expect, ParallelStep, RepeatStep, Step};
use crate::sys;
use crate::tree::op::Op;

impl World<'_> {
    pub fn chain(&mut self, s: &ChainStep, expect: &Expect) -> Done {
        let mut parent = s.on.clone();
        let mut worked_in = None;
        for i in 0..s.length as usize {
            let id = format!("{}{}", s.prefix, i + 1);
            let opts = CreateOpts::default();
            // The end of a chain is where a driver may give up; what it made before stays.
            if !self.create_layer(&id, parent.as_deref(), false, &opts, expect)? {
                break;
            }
            let ops: &[At<Op>] = s.each.each.get(i).map_or(&[], |ops| &**ops);
            if !ops.is_empty() {
                self.must_inside(&id, |world, root| world.work_in(&id, root, ops))?;
                worked_in = Some(id.clone());
            }
            parent = Some(id);
        }
        // What the others hold when they are shown afresh, the next one shows.
        worked_in.map_or(Ok(()), |id| self.look_afresh(&id))
    }

    pub fn repeat(&mut self, s: &RepeatStep) -> Done {
        for (i, body) in s.body.each.iter().enumerate() {
            self.run(body)
                .map_err(|f| f.context(&format!("turn {} of {}", i + 1, s.times)))?;
        }
        Ok(())
    }

    pub fn parallel(&mut self, s: &ParallelStep) -> Done {
        let times = s.times.unwrap_or(1) as usize;
        let threads: Vec<&[Arc<[Step]>]> = s.body.each.chunks(times).collect();
        let shared = shared_layers(&threads);
        let start = Barrier::new(threads.len());
        let (start, shared) = (&start, &shared);
        let mut worlds: Vec<World<'_>> = Vec::new();
        let progress: Vec<Progress> = threads.iter().map(|_| Progress::default()).collect();
        for (n, progress) in progress.iter().enumerate() {
            worlds.push(self.fork(n as u64 + 1, shared, progress));
        }
        let done: Vec<(World<'_>, Done)> = std::thread::scope(|scope| {
            let handles: Vec<_> = worlds
                .into_iter()
                .zip(&threads)
                .map(|(world, turns)| scope.spawn(move || world.thread(turns, start)))
                .collect();
            handles
                .into_iter()
                .map(|h| match h.join() {
                    Ok(done) => done,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
                .collect()
        });
        let mut first = Ok(());
        let mut parts = Vec::new();
        for (n, (world, result)) in done.into_iter().enumerate() {
            let result = result.map_err(|f| f.context(&format!("in thread {}", n + 1)));
            first = first.and(result);
            parts.push(world.into_parts());
        }
        self.join(parts, shared, &threads);
        first
    }

    /// What one thread does, all starting together.
    fn thread(mut self, turns: &[Arc<[Step]>], start: &Barrier) -> (Self, Done) {
        // A umask of its own, which begins as that of the thread it comes from.
        let ready = sys::unshare_fs();
        start.wait();
        let result = ready
            .map_err(|e| Fail::new(format!("no umask of its own: {e}")))
            .and_then(|()| turns.iter().try_for_each(|steps| self.run(steps)));
        (self, result)
    }

    /// The world as one thread has it: its own state, the same driver.
    pub fn fork<'b>(&self, n: u64, shared: &BTreeSet<String>, progress: &'b Progress) -> World<'b>
    where
        Self: 'b,
    {
        let mut world = World::new(self.target, self.place, progress, &self.dir);
        world.own = self.own;
        world.home = self.home.clone();
        world.options = self.options.clone();
        world.running = self.running.clone();
        world.claims = self.claims.clone();
        world.layers = self.layers.clone();
        for id in shared {
            world.layers.forget_tree(id);
        }
        world.paths = self.paths.clone();
        world.archives = self.archives.clone();
        world.inodes = self.inodes.clone();
        world.shared = shared.clone();
        world.concurrent = true;
        // Names of scratch files never meet those of another thread.
        world.scratch = self.scratch + n * 1_000_000;
        world
    }

    /// Takes over what the threads know: of each layer, from the one that touched it.
    fn join(&mut self, parts: Vec<Parts>, shared: &BTreeSet<String>, threads: &[&[Arc<[Step]>]]) {
        for (part, turns) in parts.into_iter().zip(threads) {
            let mut touched = BTreeMap::new();
            for steps in turns.iter() {
                touches(steps, &mut touched);
            }
            for (id, changes) in touched {
                if changes && !shared.contains(&id) {
                    self.layers.take_over(&id, &part.layers);
                }
            }
            for (id, times) in part.held {
                *self.held.entry(id).or_default() += times;
            }
            self.archives.extend(part.archives);
            self.scratch = self.scratch.max(part.scratch);
        }
        let driver = self.running.clone();
        for id in shared {
            match &driver {
                Some(d) if d.exists(id) => self.layers.unknown(id),
                _ => self.layers.remove(id),
            }
        }
        self.paths.clear();
    }
}

/// What is left of a thread's world.
struct Parts {
    layers: super::layers::Layers,
    held: BTreeMap<String, u32>,
    archives: BTreeMap<String, Arc<super::archives::Archive>>,
    scratch: u64,
}

impl World<'_> {
    fn into_parts(self) -> Parts {
        Parts {
            layers: self.layers,
            held: self.held,
            archives: self.archives,
            scratch: self.scratch,
        }
    }
}

/// The layers that more than one thread touches and at least one changes.
fn shared_layers(threads: &[&[Arc<[Step]>]]) -> BTreeSet<String> {
    let mut by_layer: BTreeMap<String, (usize, bool)> = BTreeMap::new();
    for turns in threads {
        let mut touched = BTreeMap::new();
        for steps in turns.iter() {
            touches(steps, &mut touched);
        }
        for (id, changes) in touched {
            let entry = by_layer.entry(id).or_default();
            entry.0 += 1;
            entry.1 |= changes;
        }
    }
    by_layer
        .into_iter()
        .filter(|(_, (threads, changed))| *threads > 1 && *changed)
        .map(|(id, _)| id)
        .collect()
}

/// The layers that steps touch, and whether they change them.
pub(super) fn touches(steps: &[Step], into: &mut BTreeMap<String, bool>) {
    fn note(into: &mut BTreeMap<String, bool>, id: &str, changes: bool) {
        *into.entry(id.to_string()).or_default() |= changes;
    }
    for step in steps {
        match &step.action {
            Action::Create(s) => note(into, &s.id, true),
            Action::Remove(s) => note(into, &s.id, true),
            Action::In(s) => note(into, &s.id, !s.read_only),
            Action::Apply(s) => note(into, &s.id, true),
            Action::Limit(s) => note(into, &s.id, true),
            Action::Subvolumes(s) => note(into, &s.id, true),
            Action::DefaultSubvolume(s) => note(into, &s.id, false),
            Action::ReadOnlySubvolume(s) => note(into, &s.id, false),
            Action::OverlayOf(s) => note(into, &s.id, true),
            Action::Statfs(s) => note(into, &s.id, false),
            Action::Dataset(s) => {
                note(into, &s.id, s.destroyed);
                touches(&s.body, into);
            }
            Action::Request(s) => {
                if let Some(id) = s.layer() {
                    note(into, id, true);
                }
            }
            Action::TarSplit(s) => note(into, &s.id, true),
            Action::Exists(s) => note(into, &s.id, false),
            Action::Get(s) => note(into, &s.id, false),
            Action::Put(s) => note(into, &s.id, false),
            Action::Mounted(s) => note(into, &s.id, false),
            Action::Metadata(s) => note(into, &s.id, false),
            Action::Tree(s) => note(into, &s.id, false),
            Action::SameTree(s) => {
                note(into, &s.id, false);
                note(into, &s.other, false);
            }
            Action::Plain(s) => note(into, &s.id, false),
            Action::Changes(s) => note(into, &s.id, false),
            Action::Diff(s) => note(into, &s.id, false),
            Action::Size(s) => note(into, &s.id, false),
            Action::RoundTrip(s) => note(into, &s.id, false),
            Action::Export(s) => note(into, &s.id, false),
            Action::Chain(s) => {
                for i in 1..=s.length {
                    note(into, &format!("{}{i}", s.prefix), true);
                }
            }
            Action::Repeat(s) => s.body.each.iter().for_each(|b| touches(b, into)),
            Action::Parallel(s) => s.body.each.iter().for_each(|b| touches(b, into)),
            Action::Guard(s) => touches(&s.body, into),
            Action::Restart(s) => touches(&s.then, into),
            Action::Kill(s) => {
                touches(&s.body, into);
                touches(&s.then, into);
            }
            Action::Full(s) => {
                touches(&s.body, into);
                touches(&s.then, into);
            }
            Action::Archive(_)
            | Action::Cleanup(_)
            | Action::Status(_)
            | Action::Umask(_)
            | Action::Home(_)
            | Action::Init(_)
            | Action::Corrupt(_)
            | Action::ForeignLimit(_)
            | Action::Fill(_)
            | Action::Free(_)
            | Action::Remount(_)
            | Action::Sync(_)
            | Action::CutPower(_)
            | Action::Select(_) => {}
        }
    }
}
