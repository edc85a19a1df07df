//! A target whose drivers are mutants.

use std::path::Path;
use std::sync::Arc;

use crate::graphdriver::{Driver, Error, InitOptions, Registry, Result};
use crate::graphtest::target::Target;

use super::{Mutant, select};

/// A good target with one bug.
#[derive(Debug)]
pub struct MutatedTarget {
    inner: Arc<dyn Target>,
    mutant: &'static Mutant,
    name: String,
}

impl MutatedTarget {
    /// Puts a bug into a target; its name is `TARGET+MUTANT`.
    pub fn new(inner: Arc<dyn Target>, mutant: &'static Mutant) -> Self {
        let name = format!("{}+{}", inner.name(), mutant.name);
        Self {
            inner,
            mutant,
            name,
        }
    }
}

impl Target for MutatedTarget {
    fn name(&self) -> &str {
        &self.name
    }

    fn init(&self, home: &Path, options: &[String]) -> Result<Arc<dyn Driver>> {
        self.mutant
            .before(home)
            .map_err(|e| Error::io("tamper with", home, e))?;
        let good = self.inner.init(home, self.mutant.options(home, options))?;
        Ok(self.mutant.wrap(good, home))
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
        self.inner.elsewhere()
    }
}
