//! Changes between two trees that are values, for the model that scenarios are checked against.

use super::changes::with_parents;
use super::{Change, ChangeKind};
use crate::tree::{Entry, Kind, Tree};

/// The changes that make `new` out of `old`, by the rules of [`super::changes`] and in its order.
///
/// An attribute that both trees leave open (`None`) is taken as unchanged; one that only one of them knows as changed, since something must have
/// set it.
pub fn model_changes(new: &Tree, old: &Tree) -> Vec<Change> {
    let mut found = Vec::new();
    for (path, entry) in new.entries.iter().filter(|(path, _)| !path.is_root()) {
        let kind = match old.entries.get(path) {
            None => ChangeKind::Add,
            Some(was) if differs(entry, was) => ChangeKind::Modify,
            Some(_) => continue,
        };
        found.push(Change {
            path: path.clone(),
            kind,
        });
    }
    for path in old.entries.keys().filter(|path| !path.is_root()) {
        // Below what is gone, or no longer a directory, the change above says it all.
        let parent = path.parent().unwrap_or_default();
        let parent_is_dir = |e: &Entry| e.kind == Kind::Dir;
        let reported = parent.is_root() || new.entries.get(&parent).is_some_and(parent_is_dir);
        if reported && !new.entries.contains_key(path) {
            found.push(Change {
                path: path.clone(),
                kind: ChangeKind::Delete,
            });
        }
    }
    with_parents(found)
}

fn differs(new: &Entry, old: &Entry) -> bool {
    let is_link = matches!(new.kind, Kind::Symlink(_));
    new.kind != old.kind
        || (!is_link && new.mode != old.mode)
        || new.owner != old.owner
        || new.xattrs != old.xattrs
        || (new.kind != Kind::Dir && new.mtime != old.mtime)
}
