//! Which drivers there are, and which one is chosen for a storage root.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{Driver, Error, Result};
use crate::archive::IdMaps;

/// The order in which drivers are tried when none is named: moby 22.06 to 23.0, the last list that has every driver.
pub const PRIORITY: &[&str] = &[
    "overlay2",
    "fuse-overlayfs",
    "btrfs",
    "zfs",
    "aufs",
    "overlay",
    "devicemapper",
    "vfs",
];

/// The driver that is never chosen for its prior state: it works everywhere, so its state says nothing about what was wanted.
const NEVER_PRIOR: &str = "vfs";

/// What a driver is started with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitOptions {
    /// `key=value` options of the driver.
    pub options: Vec<String>,
    /// Uid and gid maps; the default changes nothing.
    pub id_maps: IdMaps,
}

impl InitOptions {
    /// Options without id maps.
    pub fn new(options: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            options: options.into_iter().map(Into::into).collect(),
            id_maps: IdMaps::identity(),
        }
    }
}

/// Starts a driver on its home, the directory `<storage root>/<driver name>`, which it makes if need be.
pub type InitFunc = fn(home: &Path, init: &InitOptions) -> Result<Arc<dyn Driver>>;

type Start = dyn Fn(&Path, &InitOptions) -> Result<Arc<dyn Driver>> + Send + Sync;

/// The drivers there are, by name.
#[derive(Clone, Default)]
pub struct Registry {
    drivers: BTreeMap<String, Arc<Start>>,
    priority: Vec<String>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("drivers", &self.drivers.keys())
            .field("priority", &self.priority)
            .finish()
    }
}

impl Registry {
    /// No drivers, in the order of [`PRIORITY`] once they are registered.
    pub fn new() -> Self {
        Self::with_priority(PRIORITY.iter().copied())
    }

    /// No drivers, in another order.
    pub fn with_priority(priority: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            drivers: BTreeMap::new(),
            priority: priority.into_iter().map(Into::into).collect(),
        }
    }

    /// Adds a driver.
    ///
    /// # Errors
    /// [`Error::AlreadyRegistered`]; the first one stays.
    pub fn register(
        &mut self,
        name: &str,
        init: impl Fn(&Path, &InitOptions) -> Result<Arc<dyn Driver>> + Send + Sync + 'static,
    ) -> Result<()> {
        if self.drivers.contains_key(name) {
            return Err(Error::AlreadyRegistered(name.to_owned()));
        }
        self.drivers.insert(name.to_owned(), Arc::new(init));
        Ok(())
    }

    /// The registered names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.drivers.keys().map(String::as_str)
    }

    /// The order in which drivers are tried; it may hold names that are not registered.
    pub fn priority(&self) -> &[String] {
        &self.priority
    }

    /// Starts the named driver in `<root>/<name>`.
    ///
    /// # Errors
    /// [`Error::NotSupported`] for a name that is not registered; else what the driver says.
    pub fn get_driver(
        &self,
        name: &str,
        root: &Path,
        init: &InitOptions,
    ) -> Result<Arc<dyn Driver>> {
        self.start(name, &root.join(name), init)
    }

    /// Starts the named driver on exactly this home.
    ///
    /// # Errors
    /// Those of [`Registry::get_driver`].
    pub fn start(&self, name: &str, home: &Path, init: &InitOptions) -> Result<Arc<dyn Driver>> {
        match self.drivers.get(name) {
            Some(start) => start(home, init),
            None => Err(Error::NotSupported(format!(
                "there is no graph driver {name:?}"
            ))),
        }
    }

    /// Chooses and starts a driver: the first of `names` that is not empty (see [`requested`]); else the one whose state is
    /// in `root`; else the first of the priority list, then of the others by name, that can run.
    ///
    /// # Errors
    /// A named driver's error, as it is. [`Error::SeveralPriorDrivers`] when the state of several drivers is found. Any error of
    /// the one driver that has state: going on would make its images disappear (moby#11999). An error of the search that is
    /// not of the not-supported kind. [`Error::NoDriver`] when nothing is left.
    pub fn select(
        &self,
        names: &[&str],
        root: &Path,
        init: &InitOptions,
    ) -> Result<Arc<dyn Driver>> {
        if let Some(name) = names.iter().find(|name| !name.is_empty()) {
            return self.get_driver(name, root, init);
        }
        // moby starts the first prior driver before it looks whether it is the only one, and drops it without a cleanup; a
        // conflict is known without starting anything.
        let prior = self.prior_drivers(root);
        if prior.len() > 1 {
            return Err(Error::SeveralPriorDrivers {
                root: root.to_owned(),
                drivers: prior,
            });
        }
        if let Some(name) = prior.first() {
            return self
                .get_driver(name, root, init)
                .map_err(|e| has_state(e, name, root));
        }
        let listed = self
            .priority
            .iter()
            .filter(|name| self.drivers.contains_key(*name));
        let others = self
            .drivers
            .keys()
            .filter(|name| !self.priority.contains(name));
        for name in listed.chain(others) {
            match self.get_driver(name, root, init) {
                Err(e) if e.is_driver_not_supported() => {}
                result => return result,
            }
        }
        Err(Error::NoDriver)
    }

    /// The registered drivers that have state below `root`, sorted: their directory exists and is not empty. One that cannot be
    /// read counts, to be on the safe side. `vfs` never counts.
    pub fn prior_drivers(&self, root: &Path) -> Vec<String> {
        let has_state = |name: &str| match std::fs::read_dir(root.join(name)) {
            Ok(mut entries) => entries.next().is_some(),
            Err(e) => !matches!(e.kind(), io::ErrorKind::NotFound),
        };
        self.names()
            .filter(|name| *name != NEVER_PRIOR && has_state(name))
            .map(str::to_owned)
            .collect()
    }
}

/// Says in an error that may not name its driver which one has state here.
fn has_state(error: Error, name: &str, root: &Path) -> Error {
    let told = |why: String| format!("{name}, whose state is in {}: {why}", root.display());
    match error {
        Error::NotSupported(why) => Error::NotSupported(told(why)),
        Error::Prerequisites(why) => Error::Prerequisites(told(why)),
        Error::IncompatibleFs(why) => Error::IncompatibleFs(told(why)),
        Error::Other(why) => Error::Other(told(why)),
        other => other,
    }
}

/// The names to hand to [`Registry::select`], in the order in which they count: what the caller names, the value of the
/// `DOCKER_DRIVER` variable, the configured default.
pub fn requested<'a>(
    named: &'a str,
    docker_driver: Option<&'a str>,
    default: &'a str,
) -> [&'a str; 3] {
    [named, docker_driver.unwrap_or_default(), default]
}
