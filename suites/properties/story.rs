//! A history told as a scenario, in which every operation fits what is there.
//!
//! Whether it does is asked of the model of trees. What drivers may do differently, all of it conforming, makes worlds of their own: links
//! of a parent that part or stay, sockets that are seen or not, directories of a parent that can be renamed or not. An operation is
//! told only when it comes out the same in every world, so one scenario holds for every driver.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use graphtest::tree::build::Failure;
use graphtest::tree::model::ChildRules;
use graphtest::tree::op::{DirOp, FileOp, Op, Path, RemoveOp};
use graphtest::tree::{Entry, Kind, Model, Prediction, Tree, TreePath};

use crate::history::{Event, List};

/// What may stand in the scenario.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// Files can be given to any owner.
    pub owners: bool,
    /// Device nodes can be made.
    pub mknod: bool,
    /// Extended attributes of every kind are kept.
    pub xattrs: bool,
}

impl Abilities {
    /// Whether the operation can be carried out there.
    fn allow(self, op: &Op) -> bool {
        let Abilities {
            owners,
            mknod,
            xattrs,
        } = self;
        match op {
            Op::Chown(_) => owners,
            Op::Setxattr(_) => xattrs,
            Op::Symlink(o) => owners || o.owner.is_none(),
            Op::File(o) => (owners || o.owner.is_none()) && (xattrs || o.xattrs.is_empty()),
            Op::Dir(o) => (owners || o.owner.is_none()) && (xattrs || o.xattrs.is_empty()),
            Op::Fifo(o) => owners || o.owner.is_none(),
            Op::Char(o) => mknod && (owners || o.owner.is_none()),
            Op::Block(o) => mknod && (owners || o.owner.is_none()),
            _ => true,
        }
    }
}

/// More worlds than this are not followed.
const MAX_WORLDS: usize = 32;

#[derive(Clone, Debug)]
struct Layer {
    model: Model,
    /// The inodes of directories that come from the parent.
    below: BTreeSet<u64>,
}

/// The store as one conforming driver shows it.
#[derive(Clone, Debug)]
struct World {
    rules: ChildRules,
    layers: BTreeMap<String, Layer>,
}

impl World {
    fn create(&mut self, id: &str, parent: Option<&str>) {
        let (mut model, mut below) = (Model::new(), BTreeSet::new());
        if let Some(parent) = parent {
            model = self.layers[parent].model.child(self.rules);
            let tree = model.tree();
            let dirs = tree.entries.values().filter(|e| e.kind == Kind::Dir);
            below.extend(dirs.filter_map(|e| e.link));
        }
        self.layers.insert(id.to_string(), Layer { model, below });
    }

    fn tree(&self, id: &str) -> Tree {
        self.layers[id].model.tree()
    }

    fn predict(&self, id: &str, op: &Op) -> Prediction {
        let mut model = self.layers[id].model.clone();
        model.apply(std::slice::from_ref(op))[0]
    }

    /// The same after an operation; `None` where it is not certain to end so.
    fn after(&self, id: &str, op: &Op, outcome: Result<(), Failure>) -> Option<Self> {
        let mut after = self.clone();
        let model = &mut after.layers.get_mut(id)?.model;
        let odd = model.follow(std::slice::from_ref(op), &[outcome]);
        odd.is_empty().then_some(after)
    }

    /// Whether it renames a name to another one of the same inode, which does nothing; where links have parted, it does something.
    fn is_idle(&self, id: &str, op: &Op) -> bool {
        let Op::Rename(rename) = op else { return false };
        let tree = self.tree(id);
        let link = |path: &Path| tree.entries.get(&path.0).and_then(|e| e.link);
        link(&rename.path).is_some_and(|ino| link(&rename.to) == Some(ino))
    }

    /// Whether it moves a directory that comes from the parent, which a driver may refuse.
    fn may_refuse(&self, id: &str, op: &Op) -> bool {
        let Op::Rename(rename) = op else { return false };
        let tree = self.tree(id);
        let from_below = |path: &TreePath| {
            let entry: Option<&Entry> = tree.entries.get(path);
            entry.is_some_and(|e| {
                e.link
                    .is_some_and(|ino| self.layers[id].below.contains(&ino))
            })
        };
        from_below(&rename.path.0) || from_below(&rename.to.0)
    }
}

/// Tells a history: the steps of a scenario, in YAML.
pub fn tell(history: &[Event], abilities: Abilities) -> String {
    let mut teller = Teller::new(abilities);
    for event in history {
        teller.event(event);
    }
    teller.step("plain", "all");
    teller.text
}

struct Teller {
    abilities: Abilities,
    worlds: Vec<World>,
    /// The layers, the oldest first, each with its parent.
    live: Vec<(String, Option<String>)>,
    held: BTreeSet<String>,
    /// The operations of the list that is being told.
    ops: Vec<Op>,
    text: String,
}

impl Teller {
    fn new(abilities: Abilities) -> Self {
        let all = [(true, true), (true, false), (false, true), (false, false)];
        let worlds = all.map(|(sockets, links_stay)| World {
            rules: ChildRules {
                sockets,
                links_stay,
                // No name and no outcome depends on times.
                dir_times: true,
            },
            layers: BTreeMap::new(),
        });
        Self {
            abilities,
            worlds: worlds.to_vec(),
            live: Vec::new(),
            held: BTreeSet::new(),
            ops: Vec::new(),
            text: String::new(),
        }
    }

    fn step(&mut self, verb: &str, subject: &str) {
        writeln!(self.text, "      - {verb}: {subject}").expect("text");
    }

    fn key(&mut self, key: &str, value: &str) {
        writeln!(self.text, "        {key}: {value}").expect("text");
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::Layer {
                parent,
                lists,
                thorough,
            } => self.layer(*parent, lists, *thorough),
            Event::More { layer, list } => {
                if let Some(id) = self.leaf(*layer) {
                    self.list(&id, list);
                    self.look_at(&id);
                }
            }
            Event::Hold(layer) => {
                if let Some(id) = self.newest(*layer) {
                    self.step("get", &id);
                    self.held.insert(id);
                }
            }
            Event::Remove(layer) => {
                if let Some(id) = self.leaf(*layer).filter(|id| !self.held.contains(id)) {
                    self.step("remove", &id);
                    self.live.retain(|(live, _)| *live != id);
                }
            }
            Event::Restart { killed } => {
                self.step("restart", if *killed { "killed" } else { "clean" });
                self.held.clear();
                self.step("plain", "all");
            }
        }
    }

    /// The layer that was made so many layers before the newest.
    fn newest(&self, ago: usize) -> Option<String> {
        self.live.iter().rev().nth(ago).map(|(id, _)| id.clone())
    }

    /// The same among those without children.
    fn leaf(&self, ago: usize) -> Option<String> {
        let is_parent = |id: &String| self.live.iter().any(|(_, p)| p.as_ref() == Some(id));
        let mut leaves = self
            .live
            .iter()
            .rev()
            .map(|(id, _)| id)
            .filter(|id| !is_parent(id));
        leaves.nth(ago).cloned()
    }

    fn layer(&mut self, parent: usize, lists: &[List], thorough: bool) {
        let parent = self.newest(parent);
        // Ids of layers that are gone are used again.
        let taken = |id: &String| self.live.iter().any(|(live, _)| live == id);
        let mut names = (1..).map(|n| format!("l{n}"));
        let id = names
            .find(|id| !taken(id))
            .expect("there are always more numbers");
        self.step("create", &id);
        if let Some(parent) = &parent {
            self.key("parent", parent);
        }
        for world in &mut self.worlds {
            world.create(&id, parent.as_deref());
        }
        self.live.push((id.clone(), parent));
        if lists.is_empty() {
            self.step("diff", &id);
            self.key("is", "[]");
        }
        for list in lists {
            self.list(&id, list);
        }
        self.look_at(&id);
        if thorough {
            self.look_further(&id);
        }
    }

    /// Looks at a layer from its parent's parent, and from nothing.
    fn look_further(&mut self, id: &str) {
        let parent_of = |id: &str| {
            let layer = self.live.iter().find(|(live, _)| live == id);
            layer.and_then(|(_, parent)| parent.clone())
        };
        let above = parent_of(id).and_then(|parent| parent_of(&parent));
        for from in above.as_deref().into_iter().chain(["none"]) {
            for verb in ["changes", "size"] {
                self.step(verb, id);
                self.key("parent", from);
            }
        }
        self.step("diff", id);
        self.key("stable", "true");
    }

    fn look_at(&mut self, id: &str) {
        for verb in ["tree", "changes", "size", "round-trip"] {
            self.step(verb, id);
        }
    }

    fn list(&mut self, id: &str, list: &List) {
        // A plain directory knows no links that part and shows every socket.
        let as_plain = list.as_plain && self.worlds.iter().all(|w| is_plain(&w.tree(id)));
        for op in &list.ops {
            if !self.abilities.allow(op) {
                continue;
            }
            if as_plain {
                self.as_it_is(id, op);
            } else {
                self.made_to_fit(id, op);
            }
        }
        let ops = std::mem::take(&mut self.ops);
        if ops.is_empty() {
            return;
        }
        self.step("in", id);
        if as_plain {
            self.key("same-as-plain", "true");
        }
        self.text.push_str("        do:\n");
        for op in &ops {
            let value = serde_yaml::to_value(op).expect("an operation is a value");
            writeln!(self.text, "          - {}", flow(&value)).expect("text");
        }
    }

    /// Tells an operation that succeeds in every world, and says whether it does.
    fn tell(&mut self, id: &str, op: &Op) -> bool {
        let succeeds = |w: &World| w.predict(id, op) == Prediction::Done && !w.is_idle(id, op);
        if !self.worlds.iter().all(succeeds) {
            return false;
        }
        let mut op = op.clone();
        if let Op::Rename(rename) = &mut op
            && self
                .worlds
                .iter()
                .any(|w| w.may_refuse(id, &Op::Rename(rename.clone())))
        {
            rename.may_fail.push("EXDEV".to_string());
        }
        let mut worlds: Vec<World> = Vec::new();
        for world in &self.worlds {
            let Some(after) = world.after(id, &op, Ok(())) else {
                return false;
            };
            worlds.push(after);
        }
        if !op.may_fail().is_empty() {
            worlds.extend(self.worlds.iter().cloned());
        }
        if worlds.len() > MAX_WORLDS {
            return false;
        }
        self.worlds = worlds;
        self.ops.push(op);
        true
    }

    /// Tells an operation that fails in the same way in every world too.
    fn as_it_is(&mut self, id: &str, op: &Op) {
        if self.tell(id, op) || matches!(op, Op::Rename(_)) {
            // Which of two reasons a rename fails for is not the same on every filesystem.
            return;
        }
        let Prediction::Fails(errno) = self.worlds[0].predict(id, op) else {
            return;
        };
        let after = |w: &World| {
            let same = w.predict(id, op) == Prediction::Fails(errno);
            same.then(|| w.after(id, op, Err(Failure::Errno(errno))))
                .flatten()
        };
        if let Some(worlds) = self.worlds.iter().map(after).collect() {
            self.worlds = worlds;
            self.ops.push(op.clone());
        }
    }

    /// Tells an operation, with others before it that make room for what it makes.
    fn made_to_fit(&mut self, id: &str, op: &Op) {
        let makes = matches!(
            op,
            Op::File(_)
                | Op::Dir(_)
                | Op::Symlink(_)
                | Op::Hardlink(_)
                | Op::Fifo(_)
                | Op::Socket(_)
                | Op::Char(_)
                | Op::Block(_)
        );
        if self.tell(id, op) || !makes {
            return;
        }
        if let Op::Hardlink(link) = op {
            let there = |w: &World| {
                w.tree(id)
                    .entries
                    .get(&link.to.0)
                    .is_some_and(|e| e.kind != Kind::Dir)
            };
            if link.to == link.path {
                return;
            }
            if !self.worlds.iter().all(there) {
                self.made_to_fit(id, &make_file(&link.to.0));
            }
        }
        let mut above = op.path().parent();
        let mut dirs = Vec::new();
        while let Some(dir) = above.filter(|d| !d.is_root()) {
            above = dir.parent();
            dirs.push(dir);
        }
        for dir in dirs.iter().rev() {
            let is_dir = |w: &World| {
                w.tree(id)
                    .entries
                    .get(dir)
                    .is_some_and(|e| e.kind == Kind::Dir)
            };
            if !self.worlds.iter().all(is_dir) && !self.tell(id, &make_dir(dir)) {
                self.tell(id, &remove(dir));
                self.tell(id, &make_dir(dir));
            }
        }
        if !self.tell(id, op) && self.tell(id, &remove(op.path())) {
            self.tell(id, op);
        }
    }
}

/// Whether a copy of the tree in a plain directory is all that it is.
fn is_plain(tree: &Tree) -> bool {
    let mut seen = BTreeSet::new();
    let mut entries = tree.entries.values();
    entries.all(|e| e.kind != Kind::Socket && e.link.is_none_or(|ino| seen.insert(ino)))
}

fn make_dir(path: &TreePath) -> Op {
    Op::Dir(DirOp {
        path: Path(path.clone()),
        mode: None,
        owner: None,
        mtime: None,
        slash: false,
        xattrs: BTreeMap::new(),
        fails: Vec::new(),
        may_fail: Vec::new(),
        as_owner: None,
    })
}

fn make_file(path: &TreePath) -> Op {
    Op::File(FileOp {
        path: Path(path.clone()),
        text: None,
        size: None,
        seed: 0,
        islands: None,
        mode: None,
        owner: None,
        mtime: None,
        xattrs: BTreeMap::new(),
        fails: Vec::new(),
        may_fail: Vec::new(),
        as_owner: None,
    })
}

fn remove(path: &TreePath) -> Op {
    Op::Remove(RemoveOp {
        path: Path(path.clone()),
        fails: Vec::new(),
        may_fail: Vec::new(),
        as_owner: None,
    })
}

/// A value in one line, as people write operations.
fn flow(value: &serde_yaml::Value) -> String {
    match value {
        serde_yaml::Value::Mapping(map) => {
            let pairs = map.iter().map(|(k, v)| format!("{}: {}", flow(k), flow(v)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
        serde_yaml::Value::Sequence(items) => {
            let items = items.iter().map(flow);
            format!("[{}]", items.collect::<Vec<_>>().join(", "))
        }
        serde_yaml::Value::String(text) => {
            let bare = |b: u8| b.is_ascii_alphanumeric() || b"/._-".contains(&b);
            let is_word = text.starts_with(|c: char| c.is_ascii_alphabetic());
            if is_word && text.bytes().all(bare) {
                text.clone()
            } else {
                serde_json::to_string(text).expect("text is JSON")
            }
        }
        other => serde_json::to_string(other).expect("a scalar is JSON"),
    }
}
