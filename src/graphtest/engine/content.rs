//! Steps on what a layer holds: in, tree, same-tree, plain.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use super::call::{Done, Fail};
use super::lifecycle::open_dir;
use super::world::World;
use crate::drivers::copy::{Files, copy_tree};
use crate::graphtest::lang::At;
use crate::graphtest::step::{Expect, Ignore, InStep, PlainStep, SameTreeStep, TreeStep};
use crate::lab::Fact;
use crate::sys::xattr;
use crate::tree::build::{self, Failure, Inodes, Outcome};
use crate::tree::model::Model;
use crate::tree::op::Op;
use crate::tree::{Compare, ScanOptions, Tree, compare, scan};

/// The first look at a layer that was changed. An overlay mounted with `userxattr`, as it must be in a user namespace, shows a file
/// of the parent and a new hard link to it with two inode numbers until it is mounted anew (measured on 6.18, tmpfs), so which
/// names are links is then asked only at the second look.
const RIGHT_AFTER: &str = "right after the operations";

impl World<'_> {
    pub fn operate(&mut self, s: &InStep, expect: &Expect) -> Done {
        if s.read_only {
            return self.refused_in(&s.id, &s.ops, expect);
        }
        if s.same_as_plain {
            return self.operate_as_plain(&s.id, &s.ops, expect);
        }
        self.operate_in(&s.id, &s.ops, expect)
    }

    /// Carries out operations in a layer and in its model, and compares, once while the layer is still held and once afresh.
    pub fn operate_in(&mut self, id: &str, ops: &[At<Op>], expect: &Expect) -> Done {
        match self.inside(id, expect, |world, root, _| world.work_in(id, root, ops))? {
            Some(()) => self.look_afresh(id),
            None => Ok(()),
        }
    }

    /// The same in a layer that is shown at `root`, by whomever, without the look afterwards.
    pub(super) fn work_in(&mut self, id: &str, root: BorrowedFd<'_>, ops: &[At<Op>]) -> Done {
        let plain: Vec<Op> = ops.iter().map(|op| op.value.clone()).collect();
        let outcomes = self.run_ops(root, &plain)?;
        judge(ops, &outcomes)?;
        self.follow(id, root, ops, &outcomes)
    }

    /// The model follows, and the layer must be as it says. A driver that does not claim that links of the parent stay together when
    /// one of them is changed may still keep some; which, the layer shows.
    pub fn follow(
        &mut self,
        id: &str,
        root: BorrowedFd<'_>,
        ops: &[At<Op>],
        outcomes: &[Outcome],
    ) -> Done {
        let before = self.layers.model(id).cloned();
        let as_modelled = |world: &mut Self| {
            world.layers.follow(id, ops, outcomes)?;
            world.check_layer(id, root, RIGHT_AFTER).map(drop)
        };
        let first = as_modelled(self);
        let (Err(_), Some(before)) = (&first, before) else {
            return first;
        };
        for other in before.with_links_kept() {
            self.layers.adopt(id, other);
            if as_modelled(self).is_ok() {
                return Ok(());
            }
        }
        first
    }

    /// The second look at a layer that was changed, from which its model learns the times that no operation set.
    pub fn look_afresh(&mut self, id: &str) -> Done {
        if self.layers.tree(id).is_none() {
            return Ok(());
        }
        self.must_inside(id, |world, root| {
            let found = world.check_layer(id, root, "after put and a fresh get")?;
            if let Some(found) = found {
                world.layers.learn_times(id, &found);
            }
            Ok(())
        })
    }

    fn run_ops(&mut self, root: BorrowedFd<'_>, ops: &[Op]) -> Done<Vec<Outcome>> {
        build::run_ops(root, ops, &mut self.inodes)
            .map_err(|e| Fail::new(format!("the operations cannot be carried out: {e}")))
    }

    /// Scans a layer that is held and compares it with its model; gives the scan when there is one.
    fn check_layer(&self, id: &str, root: BorrowedFd<'_>, when: &str) -> Done<Option<Tree>> {
        let Some(expected) = self.layers.tree(id) else {
            return Ok(None);
        };
        let found = scan_root(id, root)?;
        let how = Compare {
            ignore_links: when == RIGHT_AFTER && !self.place.facts.has(Fact::Root),
            ..self.comparison()
        };
        let diff = compare(&expected, &found, &how);
        if diff.is_empty() {
            return Ok(Some(found));
        }
        Err(Fail::lines(
            format!("the tree of {id} {when} is not what the operations so far make:"),
            diff.lines(),
        ))
    }

    /// Every operation must fail with EROFS, and change nothing.
    fn refused_in(&mut self, id: &str, ops: &[At<Op>], expect: &Expect) -> Done {
        let plain: Vec<Op> = ops.iter().map(|op| op.value.clone()).collect();
        self.inside(id, expect, |world, root, _| {
            let outcomes = world.run_ops(root, &plain)?;
            for (op, outcome) in ops.iter().zip(&outcomes) {
                if *outcome != Err(Failure::Errno(Errno::ROFS)) {
                    let found = found(outcome);
                    let fail = Fail::new(format!("expected EROFS, {found}"));
                    return Err(fail.in_op(&op.at, &op.value));
                }
            }
            world.check_layer(id, root, "after refused operations")
        })?;
        Ok(())
    }

    /// As [`World::operate_in`], and each operation must come out as it does in a plain directory that holds the same.
    fn operate_as_plain(&mut self, id: &str, ops: &[At<Op>], expect: &Expect) -> Done {
        let dir = self.scratch_path("plain");
        let copied = self.inside(id, expect, |_, root, _| copy_layer(root, &dir))?;
        if copied.is_none() {
            return Ok(());
        }
        let all: Vec<Op> = ops.iter().map(|op| op.value.clone()).collect();
        let (in_layer, tree) = self.must_inside(id, |world, root| {
            let outcomes = world.run_ops(root, &all)?;
            judge_stated(ops, &outcomes)?;
            world.follow(id, root, ops, &outcomes)?;
            Ok((outcomes, scan_root(id, root)?))
        })?;
        // What the layer may refuse and did refuse is left out, and so is what speaks of the inodes or the space of the layer.
        let comparable: Vec<usize> = (0..ops.len())
            .filter(|&i| {
                let tolerated = !all[i].may_fail().is_empty() && in_layer[i].is_err();
                !tolerated && !matches!(all[i], Op::Inode(_) | Op::Space(_) | Op::Shared(_))
            })
            .collect();
        let plain: Vec<Op> = comparable.iter().map(|&i| all[i].clone()).collect();
        let root = open_dir(&dir)
            .map_err(|e| Fail::new(format!("the plain directory cannot be opened: {e}")))?;
        let in_plain = build::run_ops(root.as_fd(), &plain, &mut Inodes::default())
            .map_err(|e| Fail::new(format!("the plain directory does not work: {e}")))?;
        for (&i, plain) in comparable.iter().zip(&in_plain) {
            if in_layer[i] != *plain {
                let fail = Fail::new(format!(
                    "expected the same as in a plain directory, where {}; in the layer {}",
                    found(plain),
                    found(&in_layer[i])
                ));
                return Err(fail.in_op(&ops[i].at, &ops[i].value));
            }
        }
        let expected = scan_root("the plain directory", root.as_fd())?;
        let how = Compare {
            // The two are touched one after the other.
            ignore_mtime: true,
            ..self.comparison()
        };
        let diff = compare(&expected, &tree, &how);
        if !diff.is_empty() {
            return Err(Fail::lines(
                format!(
                    "the tree of {id} is not that of a plain directory after the same operations:"
                ),
                diff.lines(),
            ));
        }
        super::state::remove_dir(&dir)
            .map_err(|e| Fail::new(format!("the plain directory cannot be removed: {e}")))?;
        self.look_afresh(id)
    }

    /// From now on the layer ought to hold what it holds now; gives that.
    pub fn adopt(&mut self, id: &str) -> Done<Tree> {
        let (found, model) = self.must_inside(id, |world, root| {
            let found = scan_root(id, root)?;
            let model = Model::of_directory(root, &found, world.layers.model(id))
                .map_err(|e| Fail::new(format!("{id} cannot be read: {e}")))?;
            Ok((found, model))
        })?;
        self.layers.adopt(id, model);
        Ok(found)
    }

    /// Gets a layer and scans it; `None` when the get fails as stated.
    pub fn scan_layer(&mut self, id: &str, expect: &Expect) -> Done<Option<Tree>> {
        self.inside(id, expect, |_, root, _| scan_root(id, root))
    }

    /// The same for a get that must succeed.
    pub fn tree_of(&mut self, id: &str) -> Done<Tree> {
        self.must_inside(id, |_, root| scan_root(id, root))
    }

    pub fn tree(&mut self, s: &TreeStep, expect: &Expect) -> Done {
        let Some(found) = self.scan_layer(&s.id, expect)? else {
            return Ok(());
        };
        let stated = s.is.is_some() || !s.holds.is_empty() || !s.lacks.is_empty();
        if !stated {
            return self.as_modelled(&s.id, &found);
        }
        let patterns = s.is.as_ref().unwrap_or(&s.holds);
        let ops: Vec<Op> = patterns.iter().map(|p| p.0.clone()).collect();
        let expected = Tree::from_entries(&ops)
            .map_err(|e| Fail::new(format!("the scenario's entries make no tree: {e}")))?;
        let how = Compare {
            subset: s.is.is_none(),
            ..self.comparison()
        };
        let mut lines = compare(&expected, &found, &how).lines();
        for path in s.lacks.iter().filter(|p| found.entries.contains_key(&p.0)) {
            lines.push(format!("{path}: expected to be absent, it is there"));
        }
        if lines.is_empty() {
            return Ok(());
        }
        Err(Fail::lines(
            format!("the tree of {} is another:", s.id),
            lines,
        ))
    }

    /// What was scanned must be what the model says.
    fn as_modelled(&self, id: &str, found: &Tree) -> Done {
        let Some(expected) = self.layers.tree(id) else {
            return Err(Fail::new(format!(
                "the scenario leaves open what {id} holds; state it with `is:` or `holds:`"
            )));
        };
        let diff = compare(&expected, found, &self.comparison());
        if diff.is_empty() {
            return Ok(());
        }
        Err(Fail::lines(
            format!("the tree of {id} is not what the steps so far make:"),
            diff.lines(),
        ))
    }

    pub fn same_tree(&mut self, s: &SameTreeStep) -> Done {
        let (one, other) = (self.tree_of(&s.id)?, self.tree_of(&s.other)?);
        let has = |what| s.ignore.contains(&what);
        let how = Compare {
            ignore_mtime: has(Ignore::Mtime),
            ignore_dir_mtime: has(Ignore::DirMtime),
            ignore_xattrs: has(Ignore::Xattrs),
            ignore_sockets: has(Ignore::Sockets),
            ignore_links: has(Ignore::Link),
            ..self.comparison()
        };
        let diff = compare(&one, &other, &how);
        if diff.is_empty() {
            return Ok(());
        }
        Err(Fail::lines(
            format!("expected {} as in {}, found:", s.other, s.id),
            diff.lines(),
        ))
    }

    pub fn plain(&mut self, s: &PlainStep) -> Done {
        if s.id == "all" {
            return self.all_as_modelled(|_| true);
        }
        let found = self.tree_of(&s.id)?;
        self.as_modelled(&s.id, &found)
    }

    /// Every layer that has a model and is asked for must hold what its model says.
    pub fn all_as_modelled(&mut self, asked: impl Fn(&str) -> bool) -> Done {
        for id in self.layers.modelled() {
            if asked(&id) {
                let found = self.tree_of(&id)?;
                self.as_modelled(&id, &found)?;
            }
        }
        Ok(())
    }
}

/// As [`judge`], but an operation that states nothing may fail: the plain directory says how.
fn judge_stated(ops: &[At<Op>], outcomes: &[Outcome]) -> Done {
    for (op, outcome) in ops.iter().zip(outcomes) {
        let silent = op.value.fails().is_empty() && op.value.may_fail().is_empty();
        if !(silent && matches!(outcome, Err(Failure::Errno(_)))) {
            judge(std::slice::from_ref(op), std::slice::from_ref(outcome))?;
        }
    }
    Ok(())
}

/// Each operation must have come out as it states.
fn judge(ops: &[At<Op>], outcomes: &[Outcome]) -> Done {
    for (i, (op, outcome)) in ops.iter().zip(outcomes).enumerate() {
        build::judge(i, &op.value, outcome).map_err(|e| {
            let what = format!("expected {}, {}", e.expected, e.found);
            let mut fail = Fail::new(what).in_op(&op.at, &op.value);
            // The kernel mounts an overlay read-only when there is no room for its work directory.
            let full = [Errno::NOSPC, Errno::DQUOT, Errno::ROFS].map(|e| Err(Failure::Errno(e)));
            fail.no_room = full.contains(outcome);
            fail
        })?;
    }
    Ok(())
}

fn found(outcome: &Outcome) -> String {
    match outcome {
        Ok(()) => "it succeeded".to_string(),
        Err(e) => format!("found {e}"),
    }
}

pub(super) fn scan_root(what: &str, root: BorrowedFd<'_>) -> Done<Tree> {
    scan(root, &ScanOptions::default())
        .map_err(|e| Fail::new(format!("{what} cannot be scanned: {e}")))
}

/// Copies what a layer shows into a new plain directory.
fn copy_layer(root: BorrowedFd<'_>, dir: &std::path::Path) -> Done {
    let wrong = |e: String| Fail::new(format!("the layer cannot be copied aside: {e}"));
    std::fs::create_dir(dir).map_err(|e| wrong(e.to_string()))?;
    let target = open_dir(dir).map_err(|e| wrong(e.to_string()))?;
    copy_tree(root, target.as_fd(), Files::Copied, |key| {
        !xattr::is_internal(key)
    })
    .map_err(|e| wrong(e.to_string()))
}
