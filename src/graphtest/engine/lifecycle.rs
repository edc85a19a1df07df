//! Steps on a layer as a whole: create, remove, exists, get, put, mounted, metadata; and the driver's status.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use super::call::{Done, Fail};
use super::world::World;
use crate::graphdriver::CreateOpts;
use crate::graphtest::step::{
    CreateStep, ExistsStep, Expect, GetStep, MetadataStep, MountedStep, PutStep, RemoveStep,
    StatusStep,
};
use crate::sys;

/// How long another process may take to hear that a connection, and with it a diff, was given up.
const NEWS: Duration = Duration::from_secs(5);

impl World<'_> {
    pub fn create(&mut self, s: &CreateStep, expect: &Expect) -> Done {
        let opts = CreateOpts {
            mount_label: s.label.clone().unwrap_or_default(),
            storage_opt: s.opts.clone(),
        };
        self.create_layer(&s.id, s.parent.as_deref(), s.rw, &opts, expect)
            .map(|_| ())
    }

    /// Creates a layer and its model; `false` when that fails as stated.
    pub fn create_layer(
        &mut self,
        id: &str,
        parent: Option<&str>,
        rw: bool,
        opts: &CreateOpts,
        expect: &Expect,
    ) -> Done<bool> {
        let what = match parent {
            Some(parent) => format!("create {id} on {parent}"),
            None => format!("create {id}"),
        };
        let created = self.call(expect, &what, |d| {
            if rw {
                d.create_read_write(id, parent, opts)
            } else {
                d.create(id, parent, opts)
            }
        })?;
        if created.is_none() {
            return Ok(false);
        }
        if !self.shared.contains(id) {
            if !self.driver()?.exists(id) {
                return Err(Fail::new(format!(
                    "{what}: expected the layer to exist afterwards, exists says no"
                )));
            }
            self.paths.remove(id);
            self.layers.create(id, parent, &self.claims);
        }
        Ok(true)
    }

    pub fn remove(&mut self, s: &RemoveStep, expect: &Expect) -> Done {
        self.remove_layer(&s.id, expect)
    }

    /// Removes a layer and forgets its model.
    pub fn remove_layer(&mut self, id: &str, expect: &Expect) -> Done {
        let what = format!("remove {id}");
        if self.call(expect, &what, |d| d.remove(id))?.is_none() {
            return Ok(());
        }
        if !self.shared.contains(id) && self.driver()?.exists(id) {
            return Err(Fail::new(format!(
                "{what}: expected the layer to be gone, exists says it is there"
            )));
        }
        self.layers.remove(id);
        self.held.remove(id);
        self.paths.remove(id);
        Ok(())
    }

    pub fn exists(&self, s: &ExistsStep) -> Done {
        let (expected, found) = (s.is.unwrap_or(true), self.driver()?.exists(&s.id));
        if expected == found {
            return Ok(());
        }
        Err(Fail::new(format!(
            "exists {}: expected {expected}, found {found}",
            s.id
        )))
    }

    pub fn get(&mut self, s: &GetStep, expect: &Expect) -> Done {
        for _ in 0..s.times.unwrap_or(1) {
            let label = s.label.as_deref().unwrap_or_default();
            if self.get_layer(&s.id, label, expect)?.is_some() {
                *self.held.entry(s.id.clone()).or_default() += 1;
            }
        }
        Ok(())
    }

    /// One get, whose path must be as paths are; `None` when it fails as stated.
    pub fn get_layer(&mut self, id: &str, label: &str, expect: &Expect) -> Done<Option<PathBuf>> {
        let what = format!("get {id}");
        let Some(path) = self.call(expect, &what, |d| d.get(id, label))? else {
            return Ok(None);
        };
        let wrong = |why: String| Err(Fail::new(format!("{what}: {why}")));
        if !path.is_absolute() {
            return wrong(format!(
                "expected an absolute path, found {}",
                path.display()
            ));
        }
        match std::fs::symlink_metadata(&path) {
            Ok(m) if m.is_dir() => {}
            Ok(m) => {
                let kind = m.file_type();
                let path = self.short(&path);
                return wrong(format!("expected a directory at {path}, found {kind:?}"));
            }
            Err(e) => {
                let path = self.short(&path);
                return wrong(format!("expected a directory at {path}, found: {e}"));
            }
        }
        // Once given back, a layer may be shown elsewhere: a base that got a child is frozen.
        let held = self.held.get(id).is_some_and(|n| *n > 0);
        match self.paths.get(id) {
            Some(first) if held && *first != path => {
                let (first, path) = (self.short(first), self.short(&path));
                return wrong(format!(
                    "expected the path that is held already, {first}, found {path}"
                ));
            }
            _ => self.paths.insert(id.to_string(), path.clone()),
        };
        Ok(Some(path))
    }

    pub fn put(&mut self, s: &PutStep, expect: &Expect) -> Done {
        for _ in 0..s.times.unwrap_or(1) {
            let what = format!("put {}", s.id);
            if self.call(expect, &what, |d| d.put(&s.id))?.is_some()
                && let Some(held) = self.held.get_mut(&s.id)
            {
                *held = held.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// Does something in a layer between a get and its put; `None` when the get fails as stated. The put is made even after a
    /// failure, so that the end of the case is not about it.
    pub fn inside<T>(
        &mut self,
        id: &str,
        expect: &Expect,
        work: impl FnOnce(&mut Self, BorrowedFd<'_>, &Path) -> Done<T>,
    ) -> Done<Option<T>> {
        let Some(path) = self.get_layer(id, "", expect)? else {
            return Ok(None);
        };
        let result = match open_dir(&path) {
            Ok(root) => work(self, root.as_fd(), &path),
            Err(e) => Err(Fail::new(format!(
                "the root of {id} cannot be opened, {}: {e}",
                self.short(&path)
            ))),
        };
        let put = self.must(&format!("put {id}"), |d| d.put(id));
        let value = result?;
        put.map(|()| Some(value))
    }

    /// The same for a get that must succeed.
    pub fn must_inside<T>(
        &mut self,
        id: &str,
        work: impl FnOnce(&mut Self, BorrowedFd<'_>) -> Done<T>,
    ) -> Done<T> {
        self.inside(id, &Expect::default(), |world, root, _| work(world, root))?
            .ok_or_else(|| Fail::new("a get that must succeed gave nothing"))
    }

    pub fn mounted(&self, s: &MountedStep) -> Done {
        let home = self.home.canonicalize();
        let home = home.unwrap_or_else(|_| self.home.clone());
        let Some(path) = self.paths.get(&s.id) else {
            return Err(Fail::new(format!(
                "the scenario asks whether {} is mounted before it was got",
                s.id
            )));
        };
        let expected = s.is.unwrap_or(true);
        let until = Instant::now() + NEWS;
        let found = loop {
            let found = self.is_mounted(path, &home)?;
            if expected == found {
                return Ok(());
            }
            if !self.target.elsewhere() || Instant::now() > until {
                break found;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let word = |mounted| {
            if mounted {
                "a mount point"
            } else {
                "no mount point"
            }
        };
        Err(Fail::new(format!(
            "{}: expected {}, found {}",
            self.short(path),
            word(expected),
            word(found)
        )))
    }

    /// Whether a path is, or is below, a mount point of the home's. The layer may be a directory of the filesystem that is mounted.
    fn is_mounted(&self, path: &Path, home: &Path) -> Done<bool> {
        let below = |at: &&Path| at.starts_with(home) && *at != home;
        for at in path.ancestors().take_while(below) {
            match sys::mount::is_mount_point(at) {
                Ok(true) => return Ok(true),
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Fail::new(format!("{}: {e}", self.short(at))));
                }
                _ => {}
            }
        }
        Ok(false)
    }

    pub fn metadata(&self, s: &MetadataStep, expect: &Expect) -> Done {
        let what = format!("metadata {}", s.id);
        let Some(data) = self.call(expect, &what, |d| d.metadata(&s.id))? else {
            return Ok(());
        };
        let data = data.unwrap_or_default();
        let keys: Vec<&str> = data.keys().map(String::as_str).collect();
        let list = if keys.is_empty() {
            "none".to_string()
        } else {
            keys.join(", ")
        };
        if let Some(key) = s.has.iter().find(|k| !data.contains_key(*k)) {
            return Err(Fail::new(format!(
                "{what}: expected the key {key}, found: {list}"
            )));
        }
        if let Some(key) = s.lacks.iter().find(|k| data.contains_key(*k)) {
            return Err(Fail::new(format!(
                "{what}: expected no key {key}, found: {list}"
            )));
        }
        if s.paths_exist {
            // `LowerDir` holds several paths joined by `:`.
            let parts = data
                .iter()
                .flat_map(|(k, v)| v.split(':').map(move |part| (k, Path::new(part))));
            for (key, path) in parts.filter(|(_, p)| p.is_absolute()) {
                if let Err(e) = std::fs::symlink_metadata(path) {
                    let path = self.short(path);
                    return Err(Fail::new(format!(
                        "{what}: expected the path of {key} to exist, {path}: {e}"
                    )));
                }
            }
        }
        Ok(())
    }

    pub fn status(&self, s: &StatusStep) -> Done {
        let status = || Ok::<_, Fail>(self.driver()?.status());
        let keys = |status: &[(String, String)]| -> Vec<String> {
            status.iter().map(|(key, _)| key.clone()).collect()
        };
        let told = status()?;
        let first = keys(&told);
        let mut seen = BTreeSet::new();
        if let Some(key) = first.iter().find(|k| !seen.insert(k.as_str())) {
            return Err(Fail::new(format!(
                "expected no key twice, found {key} again"
            )));
        }
        if let Some(key) = s
            .has
            .iter()
            .chain(s.tells.keys())
            .find(|k| !first.contains(k))
        {
            return Err(Fail::new(format!(
                "expected the key {key}, found: {}",
                first.join(", ")
            )));
        }
        for (key, value) in told {
            if let Some(expected) = s.tells.get(&key).filter(|expected| **expected != value) {
                return Err(Fail::new(format!(
                    "expected {key}: {expected}, found {key}: {value}"
                )));
            }
        }
        let second = keys(&status()?);
        if first != second {
            return Err(Fail::lines(
                "expected the same keys in the same order when asked again:",
                [
                    format!("first: {}", first.join(", ")),
                    format!("again: {}", second.join(", ")),
                ],
            ));
        }
        Ok(())
    }
}

/// Opens a directory for reading.
pub(super) fn open_dir(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}
