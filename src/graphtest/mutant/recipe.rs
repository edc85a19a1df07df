//! Mutants that let the good driver work and then tamper with the outcome: a fresh child, a layer given back, a stream, a list.

use std::io::{self, Cursor, Read};
use std::path::Path;

use crate::graphdriver::{Change, DiffStream, Result};

use super::base::{Base, Bug, Create, other};
use super::tarball::{TarEntry, decode, encode};

/// The layer that is tampered with.
#[derive(Clone, Copy)]
pub(super) struct Layer<'a> {
    pub(super) base: &'a Base,
    pub(super) id: &'a str,
    pub(super) parent: Option<&'a str>,
}

impl Layer<'_> {
    /// Runs `f` on the parent's root; without a parent nothing is done.
    pub(super) fn with_parent<T: Default>(
        &self,
        f: impl FnOnce(&Path) -> io::Result<T>,
    ) -> io::Result<T> {
        match self.parent {
            Some(p) => self.base.with_root(p, f).map_err(io::Error::other),
            None => Ok(T::default()),
        }
    }

    /// Runs `f` on the roots of the parent and of the parent's parent; without both nothing is done.
    pub(super) fn with_two<T: Default>(
        &self,
        f: impl FnOnce(&Path, &Path) -> io::Result<T>,
    ) -> io::Result<T> {
        let grand = self.parent.and_then(|p| self.base.parent_of(p));
        match grand {
            Some(g) => self.with_parent(|p| {
                self.base
                    .with_root(&g, |g| f(p, g))
                    .map_err(io::Error::other)
            }),
            None => Ok(T::default()),
        }
    }
}

type OnRoot = fn(&Path, &Layer<'_>) -> io::Result<()>;
type AfterApply = fn(&Path, &[TarEntry]) -> io::Result<()>;
type OnChanges = fn(&mut Vec<Change>, &Layer<'_>) -> Result<()>;
type OnStream = fn(&mut Vec<TarEntry>, &Layer<'_>) -> Result<()>;

/// What is tampered with, and how; the rest is left alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recipe {
    /// The root of a layer just created, when it has a parent.
    pub(super) child: Option<OnRoot>,
    /// The root of a layer just before each `put` (its parent is the one it was created on).
    pub(super) put: Option<OnRoot>,
    /// The entries that `diff` gives.
    pub(super) diff: Option<OnStream>,
    /// The entries that reach `apply_diff`.
    pub(super) apply: Option<OnStream>,
    /// The root of a layer after an archive was applied, with the archive's entries.
    pub(super) applied: Option<AfterApply>,
    /// The answer of `changes`.
    pub(super) changes: Option<OnChanges>,
    /// The answers of `diff_size`.
    pub(super) size: Option<fn(u64, &Layer<'_>) -> Result<u64>>,
}

impl Recipe {
    /// No bug at all; the table overrides single fields.
    pub(super) const NONE: Self = Self {
        child: None,
        put: None,
        diff: None,
        apply: None,
        applied: None,
        changes: None,
        size: None,
    };

    pub(super) const fn child(f: OnRoot) -> Self {
        Self {
            child: Some(f),
            ..Self::NONE
        }
    }
    pub(super) const fn put(f: OnRoot) -> Self {
        Self {
            put: Some(f),
            ..Self::NONE
        }
    }
    pub(super) const fn diff(f: OnStream) -> Self {
        Self {
            diff: Some(f),
            ..Self::NONE
        }
    }
    pub(super) const fn apply(f: OnStream) -> Self {
        Self {
            apply: Some(f),
            ..Self::NONE
        }
    }
}

impl Bug for Recipe {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        b.create(&c)?;
        match self.child {
            Some(f) if c.parent.is_some() => {
                let layer = Layer {
                    base: b,
                    id: c.id,
                    parent: c.parent,
                };
                b.with_root(c.id, |root| f(root, &layer))
            }
            _ => Ok(()),
        }
    }

    fn put(&self, b: &Base, id: &str) -> Result<()> {
        if let Some(f) = self.put {
            let parent = b.parent_of(id);
            if parent.is_some() {
                let layer = Layer {
                    base: b,
                    id,
                    parent: parent.as_deref(),
                };
                b.with_root(id, |root| f(root, &layer))?;
            }
        }
        b.inner.put(id)
    }

    fn diff(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<DiffStream> {
        let mut stream = b.inner.diff(id, parent)?;
        let Some(f) = self.diff else {
            return Ok(stream);
        };
        let Some(mut entries) = decode(&mut stream).map_err(other)? else {
            return Err(other("the good driver gave no archive"));
        };
        f(
            &mut entries,
            &Layer {
                base: b,
                id,
                parent,
            },
        )?;
        Ok(Box::new(Cursor::new(encode(&entries))))
    }

    fn changes(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<Vec<Change>> {
        let mut changes = b.inner.changes(id, parent)?;
        if let Some(f) = self.changes {
            f(
                &mut changes,
                &Layer {
                    base: b,
                    id,
                    parent,
                },
            )?;
        }
        Ok(changes)
    }

    fn apply(&self, b: &Base, id: &str, parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        if self.apply.is_none() && self.applied.is_none() {
            return b.inner.apply_diff(id, parent, diff);
        }
        let mut bytes = Vec::new();
        diff.read_to_end(&mut bytes).map_err(other)?;
        // What is no archive reaches the good driver as it is.
        let Some(mut entries) = decode(&mut bytes.as_slice()).map_err(other)? else {
            return b.inner.apply_diff(id, parent, &mut bytes.as_slice());
        };
        if let Some(f) = self.apply {
            f(
                &mut entries,
                &Layer {
                    base: b,
                    id,
                    parent,
                },
            )?;
            bytes = encode(&entries);
        }
        let size = b.inner.apply_diff(id, parent, &mut bytes.as_slice())?;
        if let Some(f) = self.applied {
            b.with_root(id, |root| f(root, &entries))?;
        }
        Ok(size)
    }

    fn size(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<u64> {
        let size = b.inner.diff_size(id, parent)?;
        match self.size {
            Some(f) => f(
                size,
                &Layer {
                    base: b,
                    id,
                    parent,
                },
            ),
            None => Ok(size),
        }
    }
}
