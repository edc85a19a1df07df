//! aufs' files, as dockerd reads them: `layers/<id>` names what a layer lies on, one id a line, the parent first.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FlockOperation, renameat, unlinkat};
use rustix::io::Errno;

use super::super::home::{
    Home, MAKING, excerpt, is_temporary, lock_dir, open_dir, read_text, temporary_name,
    write_synced,
};
use crate::graphdriver::{Error, LayerId, Result};

/// The directory of the branches: what each layer itself holds.
pub(super) const DIFF: &str = "diff";
/// The directory of the mount points.
pub(super) const MNT: &str = "mnt";
/// The directory of the lists of parents.
pub(super) const LAYERS: &str = "layers";
/// Where aufs keeps a second name of each file whose names lie in several branches, at the top of the branch that it writes to.
pub(super) const PSEUDO_LINKS: &str = ".wh..wh.plnk";
/// moby's driver gives layers this suffix while it deletes them, and deletes whatever has it when it starts.
const REMOVING: &str = "-removing";

/// Whether no layer can have this id.
pub(super) fn reserved(id: &str) -> bool {
    is_temporary(id) || id.ends_with(REMOVING) || id == "lost+found"
}

/// The directory `layers`.
#[derive(Debug)]
pub(super) struct Lists {
    dir: OwnedFd,
}

impl Lists {
    /// Makes it if need be.
    pub fn open(home: &Home) -> Result<Self> {
        home.directory(LAYERS).map(|dir| Self { dir })
    }

    /// What a layer lies on, its parent first.
    ///
    /// # Errors
    /// [`Error::Damaged`] for a list that is missing or is not what the driver writes.
    pub fn parents(&self, id: &LayerId) -> Result<Vec<LayerId>> {
        let text = read_text(self.dir.as_fd(), id, id.as_str())?
            .ok_or_else(|| id.damaged(format!("it has no file in `{LAYERS}`")))?;
        parse(id, &text).ok_or_else(|| {
            let found = excerpt(&text);
            id.damaged(format!(
                "its file in `{LAYERS}` is no list of ids but {found}"
            ))
        })
    }

    /// Whether there is a list for this layer.
    pub fn has(&self, id: &LayerId) -> bool {
        super::super::home::has_entry(self.dir.as_fd(), id.as_str())
    }

    /// Holds off everybody else who gives a list its name or takes one away, in this process and in others.
    pub fn lock(&self) -> Result<OwnedFd> {
        lock_dir(self.dir.as_fd(), FlockOperation::LockExclusive)
            .map_err(|e| Error::io("lock", LAYERS, e))
    }

    /// Writes a list that has no name yet.
    pub fn write(&self, parents: &[LayerId]) -> Result<Unnamed<'_>> {
        let name = temporary_name(MAKING);
        write_synced(self.dir.as_fd(), &name, text(parents).as_bytes(), 0o644)?;
        Ok(Unnamed { lists: self, name })
    }

    /// Removes a layer's list; that there is none is success.
    pub fn remove(&self, id: &LayerId) -> Result<()> {
        self.unlink(id.as_str())
    }

    /// Removes what a process that was killed has left: lists without a name, and of layers that are not there. The caller holds
    /// the lock.
    pub fn sweep(&self, home: &Home) -> Result<()> {
        let failed = |e: std::io::Error| Error::io("read the directory", LAYERS, e);
        let dir = open_dir(self.dir.as_fd(), ".").map_err(|e| failed(e.into()))?;
        let mut stale = Vec::new();
        crate::sys::fs::for_each_name(dir.as_fd(), |name, _| {
            if let Ok(name) = name.to_str()
                && (is_temporary(name) || LayerId::parse(name).is_ok_and(|id| !home.has(&id)))
            {
                stale.push(name.to_owned());
            }
            Ok(())
        })
        .map_err(failed)?;
        stale.iter().try_for_each(|name| self.unlink(name))
    }

    fn unlink(&self, name: &str) -> Result<()> {
        match unlinkat(&self.dir, name, AtFlags::empty()) {
            // On a disk that has become read-only it waits for the next start.
            Ok(()) | Err(Errno::NOENT | Errno::ROFS) => Ok(()),
            Err(e) => Err(Error::io("remove", format!("{LAYERS}/{name}"), e)),
        }
    }
}

/// A list that has no name yet; dropped, it is gone.
#[derive(Debug)]
pub(super) struct Unnamed<'l> {
    lists: &'l Lists,
    name: String,
}

impl Unnamed<'_> {
    /// Gives it a layer's name, instead of any other that had it.
    pub fn name(self, id: &LayerId) -> Result<()> {
        let dir = &self.lists.dir;
        renameat(dir, &self.name, dir, id.as_str())
            .map_err(|e| Error::io("rename the list of parents to", format!("{LAYERS}/{id}"), e))
    }
}

impl Drop for Unnamed<'_> {
    fn drop(&mut self) {
        // After `name` there is none; else the next start removes what cannot be removed now.
        let _ = unlinkat(&self.lists.dir, &self.name, AtFlags::empty());
    }
}

fn text(parents: &[LayerId]) -> String {
    parents.iter().map(|id| format!("{id}\n")).collect()
}

/// Blank lines mean nothing, as to moby's driver, and nothing at all is a layer without a parent. A layer that lies on itself, or twice on another, cannot have been written.
fn parse(id: &LayerId, text: &str) -> Option<Vec<LayerId>> {
    let mut parents = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let parent = LayerId::parse_unreserved(line, reserved).ok()?;
        if parent == *id || parents.contains(&parent) {
            return None;
        }
        parents.push(parent);
    }
    Some(parents)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn id(text: &str) -> LayerId {
        LayerId::parse(text).unwrap()
    }

    #[rstest]
    #[case("", Some(vec![]))]
    #[case("\n\n", Some(vec![]))]
    #[case("b\nc\n", Some(vec!["b", "c"]))]
    #[case("b\n\nc", Some(vec!["b", "c"]))]
    #[case(" b\n", Some(vec![" b"]))]
    #[case("a\n", None)]
    #[case("b\nb\n", None)]
    #[case("../b\n", None)]
    #[case("b\0\n", None)]
    #[case(".new-1\n", None)]
    #[case("b-removing\n", None)]
    fn lists_of_parents(#[case] list: &str, #[case] expected: Option<Vec<&str>>) {
        let expected = expected.map(|ids| ids.into_iter().map(id).collect::<Vec<_>>());
        let found = parse(&id("a"), list);
        assert_eq!(found, expected);
        if let Some(parents) = found {
            assert_eq!(parse(&id("a"), &text(&parents)), Some(parents));
        }
    }
}
