//! overlay2's files, as dockerd reads them: `l/<short>` links, and `link`, `lower` and `committed` of a layer.
//!
//! Short names keep the options of a mount short: `l/<26 characters>` is a symbolic link to `../<id>/diff`.

use std::collections::HashMap;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, FlockOperation, readlinkat, symlinkat, unlinkat};
use rustix::io::Errno;

use super::super::home::{Home, excerpt, has_entry, lock_dir, open_dir, read_text};
use super::super::overlayfs::COMMITTED;
use crate::graphdriver::{Error, LayerId, Result};

/// The directory of short names.
pub(super) const LINKS: &str = "l";
const SHORT_LEN: usize = 26;

/// A short name: 26 characters of base32, about 130 random bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Short(String);

impl Short {
    /// A new one.
    pub fn random() -> Result<Self> {
        const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let mut bytes = [0u8; SHORT_LEN];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut random| random.read_exact(&mut bytes))
            .map_err(|e| Error::io("read", "/dev/urandom", e))?;
        Ok(Self(
            bytes
                .iter()
                .map(|b| char::from(ALPHABET[usize::from(b % 32)]))
                .collect(),
        ))
    }

    /// A name read from disk; `None` for what cannot be one.
    pub fn parse(text: &str) -> Option<Self> {
        let valid =
            text.len() == SHORT_LEN && text.bytes().all(|b| matches!(b, b'A'..=b'Z' | b'2'..=b'7'));
        valid.then(|| Self(text.to_owned()))
    }

    /// The text, which is what the file `link` holds.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its path, relative to the home.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(LINKS).join(&self.0)
    }
}

/// What a layer's own files say.
#[derive(Debug)]
pub(super) struct Record {
    /// Its short name.
    pub link: Short,
    /// The short names of what lies below it, the parent first.
    pub lower: Vec<Short>,
    /// Whether it is marked as having children.
    pub committed: bool,
}

/// The lower file's text.
pub(super) fn lower_text(lower: &[Short]) -> String {
    let entries: Vec<String> = lower
        .iter()
        .map(|short| format!("{LINKS}/{}", short.0))
        .collect();
    entries.join(":")
}

fn parse_lower(text: &str) -> Option<Vec<Short>> {
    text.split(':')
        .map(|entry| entry.strip_prefix("l/").and_then(Short::parse))
        .collect()
}

impl Record {
    /// Reads the files of a layer.
    ///
    /// # Errors
    /// [`Error::UnknownLayer`], or [`Error::Damaged`] for files that are missing, empty, or not what the driver writes.
    pub fn read(home: &Home, id: &LayerId) -> Result<Self> {
        let dir = home.open_layer(id)?;
        let link = read_text(dir.as_fd(), id, "link")?
            .ok_or_else(|| id.damaged("it has no file `link`"))?;
        let link = Short::parse(&link).ok_or_else(|| {
            id.damaged(format!(
                "its file `link` holds no short name but {}",
                excerpt(&link)
            ))
        })?;
        let lower = match read_text(dir.as_fd(), id, "lower")? {
            Some(text) => parse_lower(&text).ok_or_else(|| {
                id.damaged(format!(
                    "its file `lower` holds no list of short names but {}",
                    excerpt(&text)
                ))
            })?,
            // Only a layer with a parent has a work directory: without this, a lost file would show an empty parent.
            None if has_entry(dir.as_fd(), "work") => {
                return Err(id.damaged("it has a work directory but no file `lower`"));
            }
            None => Vec::new(),
        };
        if !has_entry(dir.as_fd(), "diff") {
            return Err(id.damaged("it has no directory `diff`"));
        }
        Ok(Self {
            link,
            lower,
            committed: has_entry(dir.as_fd(), COMMITTED),
        })
    }
}

/// The directory `l`.
#[derive(Debug)]
pub(super) struct Links {
    dir: OwnedFd,
}

impl Links {
    /// Opens it.
    pub fn new(dir: OwnedFd) -> Self {
        Self { dir }
    }

    /// Holds off the sweep of a driver that is just starting, while a link exists whose layer has not its name yet.
    pub fn being_made(&self) -> Result<OwnedFd> {
        lock_dir(self.dir.as_fd(), FlockOperation::LockShared)
            .map_err(|e| Error::io("lock", LINKS, e))
    }

    /// Makes a short name lead to a layer.
    pub fn make(&self, short: &Short, id: &LayerId) -> Result<()> {
        symlinkat(target(id), &self.dir, short.as_str())
            .map_err(|e| Error::io("make the link", short.path(), e))
    }

    /// Removes a short name if it leads to this layer; anything else that has the name is left alone.
    pub fn remove(&self, short: &Short, id: &LayerId) -> Result<()> {
        if self.layer_of(short).as_ref() != Some(id) {
            return Ok(());
        }
        match unlinkat(&self.dir, short.as_str(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(Error::io("remove the link", short.path(), e)),
        }
    }

    /// Removes every short name that leads to this layer, for one whose file `link` is lost.
    pub fn remove_all_to(&self, id: &LayerId) -> Result<()> {
        for (short, layer) in self.all()? {
            if layer == *id {
                self.remove(&short, id)?;
            }
        }
        Ok(())
    }

    /// The layer that a short name leads to; `None` when it leads nowhere or somewhere else.
    pub fn layer_of(&self, short: &Short) -> Option<LayerId> {
        let found = readlinkat(&self.dir, short.as_str(), Vec::new()).ok()?;
        let id = found
            .to_str()
            .ok()?
            .strip_prefix("../")?
            .strip_suffix("/diff")?;
        LayerId::parse(id).ok()
    }

    fn all(&self) -> Result<Vec<(Short, LayerId)>> {
        let failed = |e: std::io::Error| Error::io("read the directory", LINKS, e);
        let dir = open_dir(self.dir.as_fd(), ".").map_err(|e| failed(e.into()))?;
        let mut found = Vec::new();
        // What is no symbolic link leads nowhere; not every filesystem tells the types of names.
        crate::sys::fs::for_each_name(dir.as_fd(), |name, _| {
            if let Some(short) = name.to_str().ok().and_then(Short::parse)
                && let Some(id) = self.layer_of(&short)
            {
                found.push((short, id));
            }
            Ok(())
        })
        .map_err(failed)?;
        Ok(found)
    }

    /// Removes links whose layer is gone or has another short name, and makes those again that were lost.
    pub fn mend(&self, home: &Home, layers: &[LayerId]) -> Result<()> {
        let exclusive = FlockOperation::NonBlockingLockExclusive;
        let _lock = match lock_dir(self.dir.as_fd(), exclusive) {
            Ok(lock) => lock,
            // Another driver makes a layer on this home right now, so somebody did this when it started.
            Err(Errno::WOULDBLOCK) => return Ok(()),
            Err(e) => return Err(Error::io("lock", LINKS, e)),
        };
        let mut known: HashMap<Short, &LayerId> = HashMap::new();
        for id in layers {
            let link = home
                .open_layer(id)
                .and_then(|dir| read_text(dir.as_fd(), id, "link"));
            // A damaged layer says so when it is used.
            if let Some(short) = link.ok().flatten().as_deref().and_then(Short::parse) {
                known.insert(short, id);
            }
        }
        for (short, id) in self.all()? {
            if known.get(&short) == Some(&&id) {
                known.remove(&short);
            } else if !home.has(&id) || !layer_lost_its_link(home, &id) {
                self.remove(&short, &id)?;
            }
        }
        for (short, id) in known {
            match self.make(&short, id) {
                Err(Error::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
        }
        Ok(())
    }
}

/// Whether the layer's own file no longer tells its short name; then the link in `l` is all that its children have.
fn layer_lost_its_link(home: &Home, id: &LayerId) -> bool {
    home.open_layer(id)
        .and_then(|dir| read_text(dir.as_fd(), id, "link"))
        .map_or(true, |text| {
            text.as_deref().and_then(Short::parse).is_none()
        })
}

fn target(id: &LayerId) -> String {
    format!("../{id}/diff")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn short_names_are_random_and_can_be_read_back() {
        let (a, b) = (Short::random().unwrap(), Short::random().unwrap());
        assert_ne!(a, b);
        assert_eq!(Short::parse(a.as_str()), Some(a.clone()));
        let text = lower_text(&[a.clone(), b.clone()]);
        assert_eq!(text.len(), 2 * 28 + 1);
        assert_eq!(parse_lower(&text), Some(vec![a, b]));
    }

    #[rstest]
    #[case("")]
    #[case("l/")]
    #[case("l/ABCDEFGHIJKLMNOPQRSTUVWXYZ:")]
    #[case("ABCDEFGHIJKLMNOPQRSTUVWXYZ")]
    #[case("l/../../etc")]
    #[case("l/ABCDEFGHIJKLMNOPQRSTUVWXYZ\n")]
    #[case("l/ABCDEFGHIJKLMNOPQRSTUVWXY1")]
    #[case("/l/ABCDEFGHIJKLMNOPQRSTUVWXYZ")]
    fn what_is_no_list_of_short_names(#[case] text: &str) {
        assert_eq!(parse_lower(text), None);
    }
}
