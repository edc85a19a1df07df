//! What is tested: a way to make drivers.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::mutant::{self, MutatedTarget};
use super::wire::Wire;
use crate::drivers::{filesystem, registry};
use crate::graphdriver::{Driver, InitOptions, Registry, Result};

/// A way to make drivers of one kind. Scenarios never ask for its name; it is for reports.
pub trait Target: Send + Sync + fmt::Debug {
    /// The name in reports.
    fn name(&self) -> &str;

    /// Starts a driver on a home, which is an existing directory, with options `key=value`.
    ///
    /// # Errors
    /// The driver cannot run there, or an option is not known.
    fn init(&self, home: &Path, options: &[String]) -> Result<Arc<dyn Driver>>;

    /// Chooses a driver of a registry as [`Registry::select`] does, for names as [`requested`](crate::graphdriver::requested) orders
    /// them. Nothing but a target with a bug in the choice has a reason to do it otherwise.
    ///
    /// # Errors
    /// As [`Registry::select`].
    fn select(
        &self,
        registry: &Registry,
        names: [&str; 3],
        root: &Path,
        init: &InitOptions,
    ) -> Result<Arc<dyn Driver>> {
        registry.select(&names, root, init)
    }

    /// The built-in driver whose on-disk layout this one has, where it has one of them; scenarios that damage files need it.
    fn layout(&self) -> Option<&str> {
        None
    }

    /// Whether its driver runs in another process, which has one home at a time: its scenarios run one after the other, and what is done to
    /// this process is nothing to the driver.
    fn elsewhere(&self) -> bool {
        false
    }

    /// A new connection to the plugin that its drivers are served by, for scenarios that call it themselves; `None` when it is no plugin.
    fn dial(&self) -> Option<io::Result<Wire>> {
        None
    }

    /// The filesystem that its homes must lie on, where it must be a certain one: a run that names no backing makes one of these.
    fn filesystem(&self) -> Option<&str> {
        None
    }
}

/// Makes a driver on a home with options.
pub type FactoryFn = dyn Fn(&Path, &[String]) -> Result<Arc<dyn Driver>> + Send + Sync;

/// A target made of a function: what a driver author brings.
pub struct Factory {
    name: String,
    layout: Option<String>,
    filesystem: Option<String>,
    make: Box<FactoryFn>,
}

impl Factory {
    /// A target of this name.
    pub fn new(
        name: impl Into<String>,
        make: impl Fn(&Path, &[String]) -> Result<Arc<dyn Driver>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            layout: None,
            filesystem: None,
            make: Box::new(make),
        }
    }

    /// The same, with the on-disk layout of a built-in driver.
    pub fn with_layout(mut self, layout: impl Into<String>) -> Self {
        self.layout = Some(layout.into());
        self
    }

    /// The same, for homes that must lie on this filesystem, as mount(8) calls it.
    pub fn on_filesystem(mut self, filesystem: impl Into<String>) -> Self {
        self.filesystem = Some(filesystem.into());
        self
    }
}

impl fmt::Debug for Factory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Factory")
            .field("name", &self.name)
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

impl Target for Factory {
    fn name(&self) -> &str {
        &self.name
    }

    fn init(&self, home: &Path, options: &[String]) -> Result<Arc<dyn Driver>> {
        (self.make)(home, options)
    }

    fn layout(&self) -> Option<&str> {
        self.layout.as_deref()
    }

    fn filesystem(&self) -> Option<&str> {
        self.filesystem.as_deref()
    }
}

/// The built-in driver of this name; or, as `DRIVER+MUTANT`, one with a deliberate bug, which tests the suite.
pub fn find(name: &str) -> Option<Arc<dyn Target>> {
    let (driver, bug) = match name.split_once('+') {
        Some((driver, bug)) => (driver, Some(mutant::find(bug)?)),
        None => (name, None),
    };
    let target = built_in().into_iter().find(|t| t.name() == driver)?;
    Some(match bug {
        Some(bug) => Arc::new(MutatedTarget::new(target, bug)),
        None => target,
    })
}

/// The built-in drivers, sorted by name.
pub fn built_in() -> Vec<Arc<dyn Target>> {
    let target = |name: &'static str| -> Arc<dyn Target> {
        let start = move |home: &Path, options: &[String]| {
            registry().start(name, home, &InitOptions::new(options))
        };
        let factory = Factory::new(name, start).with_layout(name);
        Arc::new(match filesystem(name) {
            Some(filesystem) => factory.on_filesystem(filesystem),
            None => factory,
        })
    };
    registry().names().map(target).collect()
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn a_target_is_found_with_and_without_a_bug() {
        let name = |n: &str| find(n).map(|t| t.name().to_string());
        assert_eq!(name("vfs"), Some("vfs".to_string()));
        let broken = "vfs+whiteout-lost";
        assert_eq!(name(broken), Some(broken.to_string()));
        for wrong in ["", "no-such", "vfs+", "vfs+no-such", "+whiteout-lost"] {
            assert_eq!(name(wrong), None, "{wrong}");
        }
    }
}
