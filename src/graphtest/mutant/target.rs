//! A target whose drivers are mutants.

#[cfg(feature = "plugin")]
use std::io;
use std::path::Path;
use std::sync::Arc;
#[cfg(feature = "plugin")]
use std::sync::Mutex;

use crate::graphdriver::{Driver, Error, InitOptions, Registry, Result};
use crate::graphtest::target::Target;
#[cfg(feature = "plugin")]
use crate::graphtest::wire::Wire;
#[cfg(feature = "plugin")]
use crate::sync::lock;

#[cfg(feature = "plugin")]
use super::plugin::Front;
use super::{Mutant, select};

/// A good target with one bug.
#[derive(Debug)]
pub struct MutatedTarget {
    inner: Arc<dyn Target>,
    mutant: &'static Mutant,
    name: String,
    /// What it is served by, where the bug is at the wire.
    #[cfg(feature = "plugin")]
    front: Mutex<Option<Front>>,
}

impl MutatedTarget {
    /// Puts a bug into a target; its name is `TARGET+MUTANT`.
    pub fn new(inner: Arc<dyn Target>, mutant: &'static Mutant) -> Self {
        let name = format!("{}+{}", inner.name(), mutant.name);
        Self {
            inner,
            mutant,
            name,
            #[cfg(feature = "plugin")]
            front: Mutex::default(),
        }
    }

    /// A driver that is served with a bug at the wire; `None` when the bug is another.
    #[cfg(feature = "plugin")]
    fn served(&self, home: &Path, options: &[String]) -> Option<Result<Arc<dyn Driver>>> {
        let bug = self.mutant.wire()?;
        let mut front = lock(&self.front);
        if front.as_ref().is_none_or(|f| !f.is_for(home)) {
            // The one before lets go of its home first.
            *front = None;
            match Front::start(Arc::clone(&self.inner), bug, home) {
                Ok(started) => *front = Some(started),
                Err(e) => return Some(Err(e)),
            }
        }
        front.as_ref().map(|front| front.init(home, options))
    }

    /// Without the protocol there is nothing to be wrong with it.
    #[cfg(not(feature = "plugin"))]
    fn served(&self, _: &Path, _: &[String]) -> Option<Result<Arc<dyn Driver>>> {
        None
    }
}

impl Target for MutatedTarget {
    fn name(&self) -> &str {
        &self.name
    }

    fn init(&self, home: &Path, options: &[String]) -> Result<Arc<dyn Driver>> {
        if let Some(served) = self.served(home, options) {
            return served;
        }
        self.mutant
            .before(home)
            .map_err(|e| Error::io("tamper with", home, e))?;
        let place = self.mutant.place(home);
        let place = place.map_err(|e| Error::io("make a place in", home, e))?;
        let options = self.mutant.options(home, options);
        let good = self.inner.init(&place, options)?;
        Ok(self.mutant.wrap(good, &place))
    }

    fn select(
        &self,
        registry: &Registry,
        names: [&str; 3],
        root: &Path,
        init: &InitOptions,
    ) -> Result<Arc<dyn Driver>> {
        match self.mutant.selection() {
            Some(bug) => select(bug, registry, names, root, init),
            None => self.inner.select(registry, names, root, init),
        }
    }

    fn layout(&self) -> Option<&str> {
        self.inner.layout()
    }

    fn filesystem(&self) -> Option<&str> {
        self.inner.filesystem()
    }

    fn elsewhere(&self) -> bool {
        self.inner.elsewhere() || self.mutant.wire().is_some()
    }

    #[cfg(feature = "plugin")]
    fn dial(&self) -> Option<io::Result<Wire>> {
        match &*lock(&self.front) {
            Some(front) => Some(front.dial()),
            None => self.inner.dial(),
        }
    }
}
