//! The step `select`: which driver is chosen over a made-up registry.

use crate::sync::lock;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::call::{Done, Fail};
use super::world::World;
use crate::graphdriver::{Error, InitOptions, PRIORITY, Registry, requested};
use crate::graphtest::step::{ErrorSpec, Expect, SelectStep};

impl World<'_> {
    /// The made-up drivers are the scenario's own target under the names of the priority list, so that what is chosen is a driver.
    pub fn select(&mut self, s: &SelectStep, expect: &Expect) -> Done {
        let root = self.scratch_path("select");
        let homes = self.scratch_path("homes");
        let state = |e: std::io::Error| Fail::new(format!("no storage root: {e}"));
        std::fs::create_dir(&root).map_err(state)?;
        std::fs::create_dir(&homes).map_err(state)?;
        for driver in &s.prior {
            // A trailing `/` asks for a directory that holds nothing.
            let empty = driver.strip_suffix('/');
            let dir = root.join(empty.unwrap_or(driver));
            std::fs::create_dir(&dir).map_err(state)?;
            if empty.is_none() {
                std::fs::write(dir.join("state"), b"x").map_err(state)?;
            }
        }
        let started: Arc<Mutex<Vec<String>>> = Arc::default();
        let registry = self.made_up(s, &homes, &started)?;
        let names = requested(
            &s.name,
            s.env.as_deref(),
            s.default.as_deref().unwrap_or_default(),
        );
        let init = InitOptions::default();
        let result = self.target.select(&registry, names, &root, &init);
        let started = lock(&started).clone();
        let what = format!("select {:?}", s.name);
        if expect.judge(&what, result.map(drop))?.is_none() {
            return Ok(());
        }
        let chosen = started.last().map_or("nothing", String::as_str);
        match s.chooses.as_deref() {
            Some(wanted) if wanted != chosen => Err(Fail::new(format!(
                "{what}: expected {wanted} to be chosen, found {chosen}"
            ))),
            _ => Ok(()),
        }
    }

    /// Every name of the priority list; those that are to fail do so, the others start and are noted.
    fn made_up(
        &self,
        s: &SelectStep,
        homes: &Path,
        started: &Arc<Mutex<Vec<String>>>,
    ) -> Done<Registry> {
        let mut made = Registry::new();
        let broken: Vec<&String> = s.broken.keys().collect();
        let known = PRIORITY.iter().map(ToString::to_string);
        let names: std::collections::BTreeSet<String> =
            known.chain(broken.into_iter().cloned()).collect();
        let good = self.driver()?;
        for name in names {
            let fault = s.broken.get(&name).copied();
            let (started, good) = (started.clone(), good.clone());
            let home: PathBuf = homes.join(&name);
            let own = name.clone();
            let start = move |_: &Path, _: &InitOptions| match fault {
                Some(spec) => Err(fault_of(spec, &own, &home)),
                None => {
                    let mut list = lock(&started);
                    list.push(own.clone());
                    Ok(good.clone())
                }
            };
            made.register(&name, start)
                .map_err(|e| Fail::new(format!("the made-up registry: {e}")))?;
        }
        Ok(made)
    }
}

/// An error of a class.
fn fault_of(spec: ErrorSpec, name: &str, home: &Path) -> Error {
    use crate::graphdriver::ErrorClass as C;
    let why = format!("{name} is broken, as the scenario says");
    let ErrorSpec::Class(class) = spec else {
        return Error::Other(why);
    };
    match class {
        C::NotSupported => Error::NotSupported(why),
        C::NotFound => Error::UnknownLayer(name.to_string()),
        C::Exists => Error::LayerExists(name.to_string()),
        C::InvalidId => Error::InvalidId {
            id: name.to_string(),
            why: "the scenario says so",
        },
        C::InvalidOption => Error::InvalidOption {
            key: name.to_string(),
            why,
        },
        C::TooDeep => Error::TooDeep {
            id: name.to_string(),
            depth: 2,
            limit: 1,
        },
        C::InUse => Error::InUse {
            id: name.to_string(),
            why,
        },
        C::Damaged => Error::Damaged {
            id: name.to_string(),
            why,
        },
        C::Archive => Error::Archive(crate::archive::Error::Split(why)),
        C::Conflict => Error::SeveralPriorDrivers {
            root: home.to_path_buf(),
            drivers: vec![name.to_string()],
        },
        C::Unclassified => Error::Remote {
            call: "GraphDriver.Init".to_string(),
            text: why,
            class: None,
        },
        C::Other => Error::Other(why),
    }
}
