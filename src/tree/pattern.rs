//! Patterns: the entries that a scenario says must be seen, written as the operations that make them.

use std::collections::BTreeMap;

use super::data::Data;
use super::op::{Bytes, Mode, Op, OwnerText, Time, Xattrs};
use super::{Entry, Kind, Tree, TreePath};

impl Tree {
    /// The tree that these entries describe. What an entry does not name (a mode, a file's content) is not compared. A
    /// `hardlink` is the same as the entry it names, which comes before it, and must be one inode with it.
    ///
    /// # Errors
    /// For an operation that is no entry, a path that comes twice, a link to nothing.
    pub fn from_entries(ops: &[Op]) -> Result<Self, String> {
        let mut tree = Self::default();
        for (number, op) in (0u64..).zip(ops) {
            let entry = match op {
                Op::Hardlink(o) => tree.linked(&o.to.0, number)?,
                other => entry(other)?,
            };
            if tree.entries.insert(op.path().clone(), entry).is_some() {
                return Err(format!("{} stands twice in the list of entries", op.path()));
            }
        }
        Ok(tree)
    }

    fn linked(&mut self, to: &TreePath, number: u64) -> Result<Entry, String> {
        let Some(entry) = self.entries.get_mut(to) else {
            return Err(format!(
                "a hardlink to {to}, which is not among the entries before it"
            ));
        };
        entry.link.get_or_insert(number);
        Ok(entry.clone())
    }
}

fn entry(op: &Op) -> Result<Entry, String> {
    Ok(match op {
        Op::File(o) => {
            let said = o.text.is_some() || o.size.is_some() || o.islands.is_some();
            let content = said.then(|| Data::of_op(o).content());
            with(
                Kind::File(content),
                &o.mode,
                &o.owner,
                &o.mtime,
                Some(&o.xattrs),
            )
        }
        Op::Dir(o) => with(Kind::Dir, &o.mode, &o.owner, &o.mtime, Some(&o.xattrs)),
        Op::Symlink(o) => with(
            Kind::Symlink(o.to.0.clone()),
            &None,
            &o.owner,
            &o.mtime,
            None,
        ),
        Op::Fifo(o) => with(Kind::Fifo, &o.mode, &o.owner, &o.mtime, None),
        Op::Socket(o) => with(Kind::Socket, &o.mode, &o.owner, &None, None),
        Op::Char(o) => with(Kind::Char(o.dev.0), &o.mode, &o.owner, &o.mtime, None),
        Op::Block(o) => with(Kind::Block(o.dev.0), &o.mode, &o.owner, &o.mtime, None),
        other => return Err(format!("`{}` is not an entry", other.verb())),
    })
}

fn with(
    kind: Kind,
    mode: &Option<Mode>,
    owner: &Option<OwnerText>,
    mtime: &Option<Time>,
    xattrs: Option<&Xattrs>,
) -> Entry {
    // An entry without xattrs says nothing about them.
    let xattrs = xattrs.filter(|x| !x.is_empty());
    let bytes = |(name, value): (&String, &Bytes)| (name.clone().into_bytes(), value.0.clone());
    Entry {
        kind,
        mode: mode.as_ref().map(|m| m.0),
        owner: owner.as_ref().map(|o| o.0),
        mtime: mtime.as_ref().map(|t| t.0),
        xattrs: xattrs.map(|x| x.iter().map(bytes).collect::<BTreeMap<_, _>>()),
        link: None,
    }
}
