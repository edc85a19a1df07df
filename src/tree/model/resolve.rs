//! Paths to inodes, as the kernel walks them with the layer's root as `/`.

use rustix::io::Errno;

use super::access::SEARCH;
use super::inode::Node;
use super::{Actor, Ino, Model, ROOT, Stop};
use crate::tree::TreePath;
use crate::tree::build::MAX_NAMED_PATH;

/// The longest name of a directory's entry.
const NAME_MAX: usize = 255;
/// The kernel follows this many symbolic links in one path.
const MAX_LINKS: u32 = 40;

/// Where a path leads.
pub struct Found {
    /// The directory that holds its last component.
    pub dir: Ino,
    /// The last component; empty when the path ends in `.`, `..` or is the root.
    pub name: Vec<u8>,
    /// What stands there.
    pub ino: Option<Ino>,
}

/// What to do with a symbolic link at the end of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// It is what the path leads to.
    No,
    /// It is followed.
    Yes,
    /// It is followed to make a file, which cannot have a name with a `/` at its end.
    ToCreate,
}

/// Stands for the `/` at the end of a symbolic link's target.
const SLASH: &[u8] = b"";

impl Model {
    /// Walks a path. Where its end does not exist, its directory must.
    pub(super) fn walk(&self, path: &[u8], how: Follow, who: Actor) -> Result<Found, Stop> {
        let mut at = ROOT;
        let mut links = 0;
        // Components still to be walked, the next one last.
        let mut rest: Vec<Vec<u8>> = components(path).collect();
        if rest.is_empty() {
            // The root is opened as `.`, which must be searched for.
            rest.push(b".".to_vec());
        }
        while let Some(name) = rest.pop() {
            let Node::Dir { names, parent } = &self.inode(at).node else {
                return Err(Errno::NOTDIR.into());
            };
            if name == SLASH {
                continue;
            }
            self.may(at, SEARCH, who)?;
            if matches!(name.as_slice(), b"." | b"..") {
                at = if name == b".." { *parent } else { at };
                continue;
            }
            if name.len() > NAME_MAX {
                return Err(Errno::NAMETOOLONG.into());
            }
            if how == Follow::ToCreate && rest == [SLASH] {
                return Err(Errno::ISDIR.into());
            }
            let last = rest.is_empty();
            let Some(&ino) = names.get(&name) else {
                return if last {
                    Ok(Found {
                        dir: at,
                        name,
                        ino: None,
                    })
                } else {
                    Err(Errno::NOENT.into())
                };
            };
            match &self.inode(ino).node {
                Node::Symlink(target) if !last || how != Follow::No => {
                    self.sticky_doubt(at, ino, who)?;
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    if target.starts_with(b"/") {
                        at = ROOT;
                    }
                    if target.ends_with(b"/") {
                        rest.push(SLASH.to_vec());
                    }
                    rest.extend(components(target));
                }
                _ if last => {
                    return Ok(Found {
                        dir: at,
                        name,
                        ino: Some(ino),
                    });
                }
                _ => at = ino,
            }
        }
        Ok(Found {
            dir: at,
            name: Vec::new(),
            ino: Some(at),
        })
    }

    /// What stands at a path, a symbolic link at its end followed.
    pub(super) fn existing(&self, path: &TreePath, who: Actor) -> Result<Ino, Stop> {
        checked(path)?;
        self.walk(path.as_bytes(), Follow::Yes, who)?
            .ino
            .ok_or(Errno::NOENT.into())
    }

    /// The directory that is to hold `path`; the root for the root.
    pub(super) fn dir_of(&self, path: &TreePath, who: Actor) -> Result<Ino, Stop> {
        checked(path)?;
        let parent = path.parent().unwrap_or_default();
        let ino = self
            .walk(parent.as_bytes(), Follow::Yes, who)?
            .ino
            .ok_or(Errno::NOENT)?;
        if self.is_dir(ino) {
            Ok(ino)
        } else {
            Err(Errno::NOTDIR.into())
        }
    }

    /// A name in a directory; the empty name is the directory itself.
    pub(super) fn lookup(&self, dir: Ino, name: &[u8], who: Actor) -> Result<Option<Ino>, Stop> {
        self.may(dir, SEARCH, who)?;
        if name.is_empty() {
            return Ok(Some(dir));
        }
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        Ok(self
            .names_of(dir)
            .and_then(|names| names.get(name).copied()))
    }

    /// What stands at a path, a symbolic link at its end not followed.
    pub(super) fn named(&self, path: &TreePath, who: Actor) -> Result<Ino, Stop> {
        let dir = self.dir_of(path, who)?;
        self.lookup(dir, path.base(), who)?
            .ok_or(Errno::NOENT.into())
    }

    /// Whether `ino` is `dir` or lies above it.
    pub(super) fn is_at_or_above(&self, ino: Ino, dir: Ino) -> bool {
        let mut at = dir;
        loop {
            if at == ino {
                return true;
            }
            match &self.inode(at).node {
                Node::Dir { parent, .. } if at != ROOT => at = *parent,
                _ => return false,
            }
        }
    }
}

/// The kernel takes no longer path in one call.
pub fn checked(path: &TreePath) -> Result<(), Stop> {
    if path.0.len() > MAX_NAMED_PATH {
        Err(Errno::NAMETOOLONG.into())
    } else {
        Ok(())
    }
}

/// The components of a path, last first.
fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.rsplit(|b| *b == b'/')
        .filter(|c| !c.is_empty())
        .map(<[u8]>::to_vec)
}
