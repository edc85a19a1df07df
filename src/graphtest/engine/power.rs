//! Steps on the state of the scenario's own backing: remount, sync, cut-power.

use rustix::fs::syncfs;

use super::call::{Done, Fail};
use super::home::make_dir;
use super::layers::Layers;
use super::lifecycle::open_dir;
use super::world::World;
use crate::graphtest::step::{Access, CutPowerStep, Expect, Keeps, RemountStep};
use crate::tree::{Compare, compare};

impl World<'_> {
    pub fn remount(&mut self, s: &RemountStep) -> Done {
        self.own()?.remount(s.how)?;
        self.read_only = s.how == Access::ReadOnly;
        Ok(())
    }

    pub fn sync(&mut self) -> Done {
        open_dir(self.own()?.dir())
            .and_then(syncfs)
            .map_err(|e| Fail::new(format!("the backing cannot be synced: {e}")))?;
        self.synced = self.layers.clone();
        Ok(())
    }

    /// What was synced must be whole afterwards. What was done since may be lost, but a layer that is there must be one: it can be
    /// got, and one that nothing was written into shows the names of its parent, whose data may not have reached a copy of it.
    pub fn cut_power(&mut self, s: &CutPowerStep) -> Done {
        let own = self.own()?;
        self.abandon();
        own.cut_power(s.keeps.unwrap_or(Keeps::Nothing), || self.crashed.clear())?;
        // The home itself may be lost; whoever runs a driver makes it.
        make_dir(&self.home)?;
        self.init(&Expect::default())
            .map_err(|f| f.context("after the cut"))?;
        let (synced, last) = (self.synced.clone(), self.layers.clone());
        for id in synced.ids() {
            let there = self.driver()?.exists(&id);
            if !there && last.has(&id) {
                return Err(Fail::new(format!(
                    "expected {id}, which was synced, to be there after the cut, it is gone"
                )));
            }
            if there && !written_since(&id, &synced, &last) {
                self.whole(&id, &[&synced])?;
                self.layers.take_over(&id, &synced);
            }
        }
        for id in last.ids() {
            if !self.driver()?.exists(&id) {
                self.layers.remove(&id);
            } else if !synced.has(&id) || written_since(&id, &synced, &last) {
                self.has_come_through(&id, &last)?;
            }
        }
        Ok(())
    }

    /// A layer that was not synced and is there: it must be one; what it holds is taken over.
    fn has_come_through(&mut self, id: &str, last: &Layers) -> Done {
        let found = self.adopt(id).map_err(|f| {
            f.context(&format!(
                "{id}, which was not synced, is there after the cut"
            ))
        })?;
        let parent = last.parent(id).and_then(|p| last.tree(&p));
        let (Some(parent), Some(then)) = (parent, last.tree(id)) else {
            return Ok(());
        };
        let how = self.comparison();
        if !compare(&parent, &then, &how).is_empty() {
            return Ok(());
        }
        let missing: Vec<String> = parent
            .entries
            .keys()
            .filter(|path| !found.entries.contains_key(*path))
            .map(|path| format!("{path}: missing"))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Fail::lines(
            format!(
                "{id}, which nothing was written into, does not show the files of its parent after the cut:"
            ),
            missing,
        ))
    }
}

/// Whether something was written into a synced layer since.
fn written_since(id: &str, synced: &Layers, last: &Layers) -> bool {
    match (synced.tree(id), last.tree(id)) {
        (Some(then), Some(now)) => !compare(&then, &now, &Compare::default()).is_empty(),
        (_, None) => last.has(id),
        (None, Some(_)) => true,
    }
}
