//! What all mutants share: the good driver below, what is known of its layers, and the face towards the suite.

use crate::sync::lock;
use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::graphdriver::{
    Capabilities, Change, CreateOpts, DiffGetter, DiffStream, Driver, Error, ProtoDriver, Result,
};

/// Turns any error into a driver's.
pub(super) fn other(e: impl Display) -> Error {
    Error::Other(e.to_string())
}

/// The mark of a mutant in its home.
const MARK: &str = ".mutant";

/// The good driver below a mutant.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) inner: Arc<dyn Driver>,
    pub(super) home: PathBuf,
    /// Parents of the layers made through this mutant, since it was wrapped.
    parents: Mutex<BTreeMap<String, Option<String>>>,
    /// Whether the home had something in it when the mutant was wrapped: a restart.
    pub(super) restarted: bool,
}

impl Base {
    /// Whether a mutant was started on a home before.
    pub(super) fn is_restart(home: &Path) -> bool {
        home.join(MARK).exists()
    }

    pub(super) fn new(inner: Arc<dyn Driver>, home: &Path) -> Self {
        // What a driver lays down at init on its own is told apart from layers by a mark of the mutant's.
        let restarted = Self::is_restart(home);
        if !restarted {
            // Without the mark a restart looks like a first start: the mutant survives, and that is reported.
            let _ = std::fs::write(home.join(MARK), b"");
        }
        Self {
            inner,
            home: home.to_path_buf(),
            parents: Mutex::default(),
            restarted,
        }
    }

    /// The parent of a layer made through this mutant; `None` for others and for layers without parent.
    pub(super) fn parent_of(&self, id: &str) -> Option<String> {
        lock(&self.parents).get(id).cloned().flatten()
    }

    /// The layers made directly on `id`, in order of id.
    pub(super) fn children_of(&self, id: &str) -> Vec<String> {
        let parents = lock(&self.parents);
        parents
            .iter()
            .filter(|(_, p)| p.as_deref() == Some(id))
            .map(|(c, _)| c.clone())
            .collect()
    }

    /// How many layers its chain has, itself included.
    pub(super) fn depth(&self, id: &str) -> usize {
        let mut depth = 1;
        let mut at = id.to_string();
        while let Some(parent) = self.parent_of(&at) {
            depth += 1;
            at = parent;
        }
        depth
    }

    /// The lowest layer of the chain.
    pub(super) fn bottom(&self, id: &str) -> String {
        let mut at = id.to_string();
        while let Some(parent) = self.parent_of(&at) {
            at = parent;
        }
        at
    }

    /// Runs `f` on the root of a layer, which is mounted meanwhile.
    pub(super) fn with_root<T>(
        &self,
        id: &str,
        f: impl FnOnce(&Path) -> std::io::Result<T>,
    ) -> Result<T> {
        let root = self.inner.get(id, "")?;
        let done = f(&root);
        self.inner.put(id)?;
        done.map_err(other)
    }

    /// Makes a layer and keeps its parent in mind.
    pub(super) fn create(&self, c: &Create<'_>) -> Result<()> {
        if c.rw {
            self.inner.create_read_write(c.id, c.parent, c.opts)?;
        } else {
            self.inner.create(c.id, c.parent, c.opts)?;
        }
        lock(&self.parents).insert(c.id.to_string(), c.parent.map(str::to_string));
        Ok(())
    }

    /// Removes a layer and forgets its parent.
    pub(super) fn remove(&self, id: &str) -> Result<()> {
        self.inner.remove(id)?;
        lock(&self.parents).remove(id);
        Ok(())
    }
}

/// A call of `create` or `create_read_write`.
#[derive(Clone, Copy)]
pub(super) struct Create<'a> {
    pub(super) id: &'a str,
    pub(super) parent: Option<&'a str>,
    pub(super) opts: &'a CreateOpts,
    pub(super) rw: bool,
}

/// A bug: what is not overridden is done by the good driver.
pub(super) trait Bug: Send + Sync + fmt::Debug {
    /// Is called when the driver has started.
    fn start(&self, _: &Base) -> Result<()> {
        Ok(())
    }
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        b.create(&c)
    }
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        b.remove(id)
    }
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        b.inner.get(id, label)
    }
    fn put(&self, b: &Base, id: &str) -> Result<()> {
        b.inner.put(id)
    }
    fn exists(&self, b: &Base, id: &str) -> bool {
        b.inner.exists(id)
    }
    fn status(&self, b: &Base) -> Vec<(String, String)> {
        b.inner.status()
    }
    fn metadata(&self, b: &Base, id: &str) -> Result<Option<BTreeMap<String, String>>> {
        b.inner.metadata(id)
    }
    fn cleanup(&self, b: &Base) -> Result<()> {
        b.inner.cleanup()
    }
    fn diff(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<DiffStream> {
        b.inner.diff(id, parent)
    }
    fn changes(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<Vec<Change>> {
        b.inner.changes(id, parent)
    }
    fn apply(&self, b: &Base, id: &str, parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        b.inner.apply_diff(id, parent, diff)
    }
    fn size(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<u64> {
        b.inner.diff_size(id, parent)
    }
}

/// The face of a mutant.
#[derive(Debug)]
pub(super) struct Mutated {
    pub(super) base: Base,
    pub(super) bug: Box<dyn Bug>,
}

impl ProtoDriver for Mutated {
    fn name(&self) -> &str {
        self.base.inner.name()
    }
    fn create(&self, id: &str, parent: Option<&str>, opts: &CreateOpts) -> Result<()> {
        self.bug.create(
            &self.base,
            Create {
                id,
                parent,
                opts,
                rw: false,
            },
        )
    }
    fn create_read_write(&self, id: &str, parent: Option<&str>, opts: &CreateOpts) -> Result<()> {
        self.bug.create(
            &self.base,
            Create {
                id,
                parent,
                opts,
                rw: true,
            },
        )
    }
    fn remove(&self, id: &str) -> Result<()> {
        self.bug.remove(&self.base, id)
    }
    fn get(&self, id: &str, mount_label: &str) -> Result<PathBuf> {
        self.bug.get(&self.base, id, mount_label)
    }
    fn put(&self, id: &str) -> Result<()> {
        self.bug.put(&self.base, id)
    }
    fn exists(&self, id: &str) -> bool {
        self.bug.exists(&self.base, id)
    }
    fn status(&self) -> Vec<(String, String)> {
        self.bug.status(&self.base)
    }
    fn metadata(&self, id: &str) -> Result<Option<BTreeMap<String, String>>> {
        self.bug.metadata(&self.base, id)
    }
    fn cleanup(&self) -> Result<()> {
        self.bug.cleanup(&self.base)
    }
    fn capabilities(&self) -> Capabilities {
        self.base.inner.capabilities()
    }
}

impl Driver for Mutated {
    fn diff(&self, id: &str, parent: Option<&str>) -> Result<DiffStream> {
        self.bug.diff(&self.base, id, parent)
    }
    fn changes(&self, id: &str, parent: Option<&str>) -> Result<Vec<Change>> {
        self.bug.changes(&self.base, id, parent)
    }
    fn apply_diff(&self, id: &str, parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        self.bug.apply(&self.base, id, parent, diff)
    }
    fn diff_size(&self, id: &str, parent: Option<&str>) -> Result<u64> {
        self.bug.size(&self.base, id, parent)
    }
    fn diff_getter(&self) -> Option<&dyn DiffGetter> {
        self.base.inner.diff_getter()
    }
}
