//! What every layer ought to hold: a model for each, which follows what scenarios do.

use std::collections::{BTreeMap, BTreeSet};

use super::archives::Effect;
use super::call::{Done, Fail};
use crate::archive::{Change, ChangeKind, model_changes};
use crate::graphdriver::{Capabilities, Capability};
use crate::graphtest::lang::At;
use crate::tree::build::Outcome;
use crate::tree::model::{ChildRules, Model};
use crate::tree::op::Op;
use crate::tree::{Kind, Tree};

/// One layer.
#[derive(Clone, Debug)]
struct Layer {
    parent: Option<String>,
    /// What it ought to hold; `None` where several threads or a failed apply leave it open.
    model: Option<Model>,
}

/// The layers that a scenario made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layers(BTreeMap<String, Layer>);

impl Layers {
    /// A new layer shows what its parent shows, as far as the driver claims.
    pub fn create(&mut self, id: &str, parent: Option<&str>, claims: &Capabilities) {
        let rules = ChildRules {
            sockets: claims.has(Capability::Sockets),
            links_stay: claims.has(Capability::HardlinkCopyUp),
            dir_times: claims.has(Capability::DirTimes),
        };
        let model = match parent {
            None => Some(Model::new()),
            Some(parent) => {
                let below = self.0.get(parent).and_then(|l| l.model.as_ref());
                below.map(|m| m.child(rules))
            }
        };
        let parent = parent.map(str::to_string);
        self.0.insert(id.to_string(), Layer { parent, model });
    }

    /// The layer is gone.
    pub fn remove(&mut self, id: &str) {
        self.0.remove(id);
    }

    /// What it holds is open from now on.
    pub fn unknown(&mut self, id: &str) {
        let layer = self.0.entry(id.to_string()).or_insert(Layer {
            parent: None,
            model: None,
        });
        layer.model = None;
    }

    /// The same, if it is known at all.
    pub fn forget_tree(&mut self, id: &str) {
        if let Some(layer) = self.0.get_mut(id) {
            layer.model = None;
        }
    }

    /// Takes over from another set what it says of one layer.
    pub fn take_over(&mut self, id: &str, from: &Self) {
        match from.0.get(id) {
            Some(layer) => self.0.insert(id.to_string(), layer.clone()),
            None => self.0.remove(id),
        };
    }

    /// The parent it was made on.
    pub fn parent(&self, id: &str) -> Option<String> {
        self.0.get(id)?.parent.clone()
    }

    /// Whether there is such a layer.
    pub fn has(&self, id: &str) -> bool {
        self.0.contains_key(id)
    }

    /// The layers.
    pub fn ids(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// The layers that have a model.
    pub fn modelled(&self) -> Vec<String> {
        let with = self.0.iter().filter(|(_, l)| l.model.is_some());
        with.map(|(id, _)| id.clone()).collect()
    }

    /// Its model.
    pub fn model(&self, id: &str) -> Option<&Model> {
        self.0.get(id)?.model.as_ref()
    }

    /// What it ought to hold.
    pub fn tree(&self, id: &str) -> Option<Tree> {
        Some(self.model(id)?.tree())
    }

    /// The model carries out what came of operations in the real layer. An outcome that the model rules out is a failure of the
    /// driver: a plain filesystem would not have given it.
    pub fn follow(&mut self, id: &str, ops: &[At<Op>], outcomes: &[Outcome]) -> Done {
        let Some(model) = self.0.get_mut(id).and_then(|l| l.model.as_mut()) else {
            return Ok(());
        };
        let plain: Vec<Op> = ops.iter().map(|op| op.value.clone()).collect();
        let wrong = model.follow(&plain, outcomes);
        let Some(first) = wrong.first() else {
            return Ok(());
        };
        let fail = Fail::new(first.to_string());
        Err(match ops.get(first.index) {
            Some(op) => fail.in_op(&op.at, &op.value),
            None => fail,
        })
    }

    /// Times that no operation set are known from now on.
    pub fn learn_times(&mut self, id: &str, found: &Tree) {
        if let Some(model) = self.0.get_mut(id).and_then(|l| l.model.as_mut()) {
            model.learn_times(found);
        }
    }

    /// From now on the layer ought to hold what was found in it.
    pub fn adopt(&mut self, id: &str, model: Model) {
        if let Some(layer) = self.0.get_mut(id) {
            layer.model = Some(model);
        }
    }

    fn known(&self, id: &str, asked: &str) -> Done<Tree> {
        self.tree(id).ok_or_else(|| {
            Fail::new(format!(
                "the scenario leaves open what {id} holds; state {asked}"
            ))
        })
    }

    /// The changes of `id` against `parent`.
    pub fn changes(&self, id: &str, parent: Option<&str>) -> Done<Vec<Change>> {
        const ASKED: &str = "the changes with `are:`, `include:` or `exclude:`";
        let new = self.known(id, ASKED)?;
        let old = match parent {
            Some(parent) => self.known(parent, ASKED)?,
            None => Tree::default(),
        };
        Ok(model_changes(&new, &old))
    }

    /// The size of the changes of `id` against `parent`: of what was added and modified, every inode once, directories none.
    pub fn size(&self, id: &str, parent: Option<&str>) -> Done<u64> {
        let new = self.known(id, "the size with `is:`, `at-most:` or `at-least:`")?;
        let changes = self.changes(id, parent)?;
        let mut seen = BTreeSet::new();
        let mut size = 0;
        for change in changes.iter().filter(|c| c.kind != ChangeKind::Delete) {
            let Some(entry) = new.entries.get(&change.path) else {
                continue;
            };
            if entry.link.is_none_or(|link| seen.insert(link)) {
                size += match &entry.kind {
                    Kind::File(Some(content)) => content.size,
                    Kind::Symlink(target) => target.len() as u64,
                    _ => 0,
                };
            }
        }
        Ok(size)
    }

    /// What a diff of `id` against `parent` does to a layer that is as `parent`.
    pub fn effect(&self, id: &str, parent: Option<&str>) -> Option<Effect> {
        let old = match parent {
            Some(parent) => self.tree(parent)?,
            None => Tree::default(),
        };
        let new = self.tree(id)?;
        Some(Effect { old, new })
    }
}
