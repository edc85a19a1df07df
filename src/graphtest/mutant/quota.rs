//! Bugs in the limits of layers.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Mutex;

use crate::graphdriver::{CreateOpts, Result, parse_size};
use crate::graphtest::limits::Limits;

use super::base::{Base, Bug, Create, other};
use super::calls::{stateful, stateless};
use super::files::walk;
use crate::sync::lock;

const SIZE: &str = "size";

/// The limits of the layers that there are.
type Sizes = BTreeMap<String, u64>;

/// Another limit than the one asked for; `None`: none.
type Wrong = fn(&Base, &Create<'_>, &Sizes, Option<u64>) -> Result<Option<u64>>;

/// Layers get a wrong limit.
pub(super) struct WrongSize {
    wrong: Wrong,
    sizes: Mutex<Sizes>,
}

impl fmt::Debug for WrongSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WrongSize").finish_non_exhaustive()
    }
}

fn wrong(wrong: Wrong) -> Box<dyn Bug> {
    Box::new(WrongSize {
        wrong,
        sizes: Mutex::default(),
    })
}

impl Bug for WrongSize {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        let mut sizes = lock(&self.sizes);
        let asked = match c.opts.storage_opt.get(SIZE) {
            Some(text) => Some(parse_size(SIZE, text)?),
            None => None,
        };
        let given = (self.wrong)(b, &c, &sizes, asked)?;
        let mut opts = c.opts.clone();
        opts.storage_opt.remove(SIZE);
        if let Some(size) = given {
            opts.storage_opt.insert(SIZE.to_string(), size.to_string());
        }
        let (opts, rw) = (&opts, c.rw || given.is_some());
        b.create(&Create { opts, rw, ..c })?;
        if let Some(size) = asked.or(given) {
            sizes.insert(c.id.to_string(), size);
        }
        Ok(())
    }
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        b.remove(id)?;
        lock(&self.sizes).remove(id);
        Ok(())
    }
}

pub(super) fn ignored() -> Box<dyn Bug> {
    wrong(|_, _, _, _| Ok(None))
}

pub(super) fn halved() -> Box<dyn Bug> {
    wrong(|_, _, _, asked| Ok(asked.map(|size| size / 2)))
}

pub(super) fn inherited() -> Box<dyn Bug> {
    wrong(|_, c, sizes, asked| Ok(asked.or_else(|| sizes.get(c.parent?).copied())))
}

pub(super) fn shared() -> Box<dyn Bug> {
    wrong(|_, _, sizes, asked| Ok(asked.map(|size| size / (sizes.len() as u64 + 1))))
}

pub(super) fn with_parent() -> Box<dyn Bug> {
    wrong(|b, c, _, asked| match (asked, c.parent) {
        (Some(size), Some(parent)) => Ok(Some(size.saturating_sub(taken(b, parent)?).max(4096))),
        _ => Ok(asked),
    })
}

pub(super) fn without_parent() -> Box<dyn Bug> {
    wrong(|b, c, _, asked| match (asked, c.parent) {
        (Some(size), Some(parent)) => Ok(Some(size + taken(b, parent)?)),
        _ => Ok(asked),
    })
}

/// The bytes that the files of a layer take.
fn taken(b: &Base, id: &str) -> Result<u64> {
    b.with_root(id, |root| {
        let blocks: u64 = walk(root)?.iter().map(|found| found.meta.blocks()).sum();
        Ok(blocks * 512)
    })
}

stateless! {
    /// A size that is none is passed over.
    BadSizePassedOver;
    /// A restart lifts all limits.
    LostOnRestart;
    /// The limit of a layer that is gone stays on record.
    Leaked;
    /// Removing a layer lifts the limits of everybody.
    ForeignLifted;
}

impl Bug for BadSizePassedOver {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        let mut opts: CreateOpts = c.opts.clone();
        opts.storage_opt
            .retain(|key, value| key != SIZE || parse_size(key, value).is_ok());
        b.create(&Create { opts: &opts, ..c })
    }
}

fn limits(b: &Base) -> Result<Limits> {
    Limits::of(&b.home, &b.home.join(".mutant-node")).map_err(other)
}

fn lift_all(b: &Base) -> Result<()> {
    let limits = limits(b)?;
    for number in limits.all().map_err(other)?.into_keys() {
        limits.set(number, 0).map_err(other)?;
    }
    Ok(())
}

impl Bug for LostOnRestart {
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        if b.restarted {
            lift_all(b)?;
        }
        b.inner.get(id, label)
    }
}

impl Bug for Leaked {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        let limits = limits(b)?;
        let before = limits.all().map_err(other)?;
        b.remove(id)?;
        for (number, limit) in before {
            limits.set(number, limit).map_err(other)?;
        }
        Ok(())
    }
}

impl Bug for ForeignLifted {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        b.remove(id)?;
        lift_all(b)
    }
}

/// A layer that is full cannot be removed.
#[derive(Debug, Default)]
pub(super) struct FullNotRemoved(Mutex<Sizes>);

stateful!(FullNotRemoved);

impl Bug for FullNotRemoved {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        b.create(&c)?;
        if let Some(text) = c.opts.storage_opt.get(SIZE) {
            lock(&self.0).insert(c.id.to_string(), parse_size(SIZE, text)?);
        }
        Ok(())
    }
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        let size = lock(&self.0).get(id).copied();
        if let Some(size) = size
            && b.inner.exists(id)
            && taken(b, id)? > size / 2
        {
            return Err(other("no space to remove it"));
        }
        b.remove(id)
    }
}
