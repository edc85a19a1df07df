//! Bugs in the choice of a driver.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::graphdriver::{Driver, Error, InitOptions, Registry, Result};

/// What is wrong with the choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelectBug {
    /// State in the storage root does not count.
    PriorIgnored,
    /// When the driver that has state cannot run, the search goes on.
    PriorFallsBack,
    /// Of several drivers with state the first is taken.
    ConflictIgnored,
    /// An empty directory counts as state.
    EmptyCounts,
    /// State of `vfs` counts.
    VfsCounts,
    /// Every error goes on to the next driver.
    AnyErrorSkips,
    /// Drivers are tried in the order of their names.
    ByName,
    /// The environment does not count.
    EnvIgnored,
    /// When the named driver cannot run, the search goes on.
    NamedFallsBack,
}

/// Chooses as [`Registry::select`] does, with one bug. `names` are those of [`crate::graphdriver::requested`]: what the caller
/// names, the environment's, the default.
///
/// # Errors
/// As [`Registry::select`], as far as the bug lets them through.
pub fn select(
    bug: SelectBug,
    registry: &Registry,
    names: [&str; 3],
    root: &Path,
    init: &InitOptions,
) -> Result<Arc<dyn Driver>> {
    let good = |names: [&str; 3]| registry.select(&names, root, init);
    let named = names.iter().find(|n| !n.is_empty());
    match bug {
        SelectBug::EnvIgnored => good([names[0], "", names[2]]),
        SelectBug::NamedFallsBack => good(names).or_else(|e| {
            if named.is_some() {
                good([""; 3])
            } else {
                Err(e)
            }
        }),
        _ if named.is_some() => good(names),
        SelectBug::PriorIgnored => search(registry, root, init, in_order(registry)),
        SelectBug::PriorFallsBack => match good(names) {
            Err(e) if e.is_driver_not_supported() => {
                search(registry, root, init, in_order(registry))
            }
            done => done,
        },
        SelectBug::ConflictIgnored => match registry.prior_drivers(root).first() {
            Some(first) => registry.get_driver(first, root, init),
            None => good(names),
        },
        SelectBug::EmptyCounts => {
            let there: Vec<&str> = registry
                .names()
                .filter(|n| *n != "vfs" && root.join(n).is_dir())
                .collect();
            match there.as_slice() {
                [one] => registry.get_driver(one, root, init),
                [] => good(names),
                many => Err(Error::SeveralPriorDrivers {
                    root: root.to_path_buf(),
                    drivers: many.iter().map(ToString::to_string).collect(),
                }),
            }
        }
        SelectBug::VfsCounts => {
            let state = fs::read_dir(root.join("vfs")).is_ok_and(|mut d| d.next().is_some());
            if state {
                registry.get_driver("vfs", root, init)
            } else {
                good(names)
            }
        }
        SelectBug::AnyErrorSkips => {
            let order = in_order(registry);
            match registry.prior_drivers(root).is_empty() {
                true => order
                    .iter()
                    .find_map(|n| registry.get_driver(n, root, init).ok())
                    .ok_or(Error::NoDriver),
                false => good(names),
            }
        }
        SelectBug::ByName if registry.prior_drivers(root).is_empty() => {
            search(registry, root, init, registry.names().collect())
        }
        SelectBug::ByName => good(names),
    }
}

fn in_order(registry: &Registry) -> Vec<&str> {
    let names: Vec<&str> = registry.names().collect();
    let mut order: Vec<&str> = registry
        .priority()
        .iter()
        .map(String::as_str)
        .filter(|n| names.contains(n))
        .collect();
    let rest: Vec<&str> = names.into_iter().filter(|n| !order.contains(n)).collect();
    order.extend(rest);
    order
}

fn search(
    registry: &Registry,
    root: &Path,
    init: &InitOptions,
    order: Vec<&str>,
) -> Result<Arc<dyn Driver>> {
    for name in order {
        match registry.get_driver(name, root, init) {
            Err(e) if e.is_driver_not_supported() => {}
            done => return done,
        }
    }
    Err(Error::NoDriver)
}
