//! What a scenario works on: the driver, its home, what is held, what the layers ought to hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::archives::Archive;
use super::call::{Done, Fail, describe};
use super::home::make_dir;
use super::layers::Layers;
use super::own::Own;
use crate::graphdriver::{Capabilities, Driver};
use crate::graphtest::outcome::Progress;
use crate::graphtest::step::{Action, Expect, Step};
use crate::graphtest::target::Target;
use crate::lab::Place;
use crate::sys;
use crate::tree::build::Inodes;
use crate::tree::compare::{Compare, TimeResolution};

/// The state of a running scenario, or of one thread of it.
pub(crate) struct World<'a> {
    pub target: &'a dyn Target,
    pub place: &'a Place,
    pub progress: &'a Progress,
    /// The scenario's own directory, for what it keeps beside the driver's home.
    pub dir: PathBuf,
    /// The filesystem that the scenario has to itself, where it asks for one.
    pub own: Option<&'a Own>,
    /// Whether that is read-only now.
    pub read_only: bool,
    /// The driver's home in it.
    pub home: PathBuf,
    /// Whether somebody has mounted something on the home, which is not the driver's.
    pub bound: bool,
    /// The options of the driver that runs now.
    pub options: Vec<String>,
    /// The driver; `None` only between two.
    pub running: Option<Arc<dyn Driver>>,
    /// Drivers that crashed, as far as the home can tell. A crash runs no destructor, so theirs run when the home no longer matters.
    pub crashed: Vec<Arc<dyn Driver>>,
    /// What it claims.
    pub claims: Capabilities,
    /// What each layer ought to hold.
    pub layers: Layers,
    /// What they held when the backing was last synced.
    pub synced: Layers,
    /// How often each layer is held by `get:`.
    pub held: BTreeMap<String, u32>,
    /// The path that `get` gave for each layer since this driver was started.
    pub paths: BTreeMap<String, PathBuf>,
    /// Archives by name.
    pub archives: BTreeMap<String, Arc<Archive>>,
    /// Inodes that operations remember.
    pub inodes: Inodes,
    /// Layers that several threads touch now.
    pub shared: BTreeSet<String>,
    /// Whether other threads work on the same driver now.
    pub concurrent: bool,
    /// Counts scratch files; threads have a range each.
    pub scratch: u64,
}

impl<'a> World<'a> {
    /// A world without a driver.
    pub fn new(
        target: &'a dyn Target,
        place: &'a Place,
        progress: &'a Progress,
        dir: &Path,
    ) -> Self {
        Self {
            target,
            place,
            progress,
            dir: dir.to_path_buf(),
            own: None,
            read_only: false,
            home: dir.join("home"),
            bound: false,
            options: Vec::new(),
            running: None,
            crashed: Vec::new(),
            claims: Capabilities::default(),
            layers: Layers::default(),
            synced: Layers::default(),
            held: BTreeMap::new(),
            paths: BTreeMap::new(),
            archives: BTreeMap::new(),
            inodes: Inodes::default(),
            shared: BTreeSet::new(),
            concurrent: false,
            scratch: 0,
        }
    }

    /// The driver.
    pub fn driver(&self) -> Done<Arc<dyn Driver>> {
        self.running
            .clone()
            .ok_or_else(|| Fail::new("no driver is running: the last one could not be started"))
    }

    /// Starts the first driver on a fresh home.
    pub fn start(&mut self) -> Done {
        make_dir(&self.home)?;
        self.init(&Expect::default()).map(|_| ())
    }

    /// Starts a driver on the home; `false` when that fails as stated.
    pub fn init(&mut self, expect: &Expect) -> Done<bool> {
        let started = self.target.init(&self.home, &self.options);
        let Some(driver) = expect.judge("init", started)? else {
            return Ok(false);
        };
        self.claims = driver.capabilities();
        self.running = Some(driver);
        self.paths.clear();
        Ok(true)
    }

    /// Carries out steps one after the other.
    pub fn run(&mut self, steps: &[Step]) -> Done {
        for step in steps {
            if self.progress.is_called_off() {
                return Err(Fail::new("called off"));
            }
            self.progress.set(&step.at, &step.text);
            self.step(step).map_err(|f| f.in_step(step))?;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Done {
        let expect = &step.expect;
        match &step.action {
            Action::Create(s) => self.create(s, expect),
            Action::Remove(s) => self.remove(s, expect),
            Action::Exists(s) => self.exists(s),
            Action::Get(s) => self.get(s, expect),
            Action::Put(s) => self.put(s, expect),
            Action::Mounted(s) => self.mounted(s),
            Action::Metadata(s) => self.metadata(s, expect),
            Action::Status(s) => self.status(s),
            Action::In(s) => self.operate(s, expect),
            Action::Tree(s) => self.tree(s, expect),
            Action::SameTree(s) => self.same_tree(s),
            Action::Plain(s) => self.plain(s),
            Action::Changes(s) => self.changes(s, expect),
            Action::Diff(s) => self.diff(s, expect),
            Action::Archive(s) => self.archive(s),
            Action::Apply(s) => self.apply(s, expect),
            Action::Size(s) => self.size(s, expect),
            Action::RoundTrip(s) => self.round_trip(s),
            Action::Export(s) => self.export(s),
            Action::TarSplit(s) => self.tar_split(s),
            Action::Chain(s) => self.chain(s, expect),
            Action::Repeat(s) => self.repeat(s),
            Action::Parallel(s) => self.parallel(s),
            Action::Restart(s) => self.restart(s, expect),
            Action::Cleanup(s) => self.cleanup(s, expect),
            Action::Init(s) => self.init_again(s, expect),
            Action::Umask(s) => {
                // The thread has a umask of its own, which the end of the case puts back.
                rustix::process::umask(rustix::fs::Mode::from_raw_mode(s.mask.0));
                Ok(())
            }
            Action::Guard(s) => self.guard(s),
            Action::Corrupt(s) => self.corrupt(s),
            Action::Kill(s) => self.kill(s),
            Action::Subvolumes(s) => self.subvolumes(s, expect),
            Action::DefaultSubvolume(s) => self.default_subvolume(s),
            Action::ReadOnlySubvolume(s) => self.read_only_subvolume(s),
            Action::OverlayOf(s) => self.overlay_of(s),
            Action::Dataset(s) => self.dataset(s),
            Action::Limit(s) => self.limit(s, expect),
            Action::ForeignLimit(s) => self.foreign_limit(s),
            Action::Statfs(s) => self.statfs(s, expect),
            Action::Fill(s) => self.fill(s),
            Action::Free(s) => self.free(s),
            Action::Full(s) => self.full(s),
            Action::Remount(s) => self.remount(s),
            Action::Sync(_) => self.sync(),
            Action::CutPower(s) => self.cut_power(s),
            Action::Request(s) => self.request(s, expect),
            Action::Select(s) => self.select(s, expect),
            Action::Home(_) => Err(Fail::new("`home:` is only for the first step")),
        }
    }

    /// Gives back what is held, cleans up, and looks for mounts left behind.
    pub fn end(&mut self) -> Done {
        let Some(driver) = self.running.take() else {
            return Ok(());
        };
        self.put_held(&*driver)?;
        let place = |what: &str| self.progress.now().map(|(at, _)| (at, what.to_string()));
        driver.cleanup().map_err(|e| {
            Fail::new(format!("expected success, found: {}", describe(&e)))
                .or_at(place("at the end: cleanup"))
        })?;
        drop(driver);
        self.no_mounts_left()
            .map_err(|f| f.or_at(place("at the end: after put and cleanup")))
    }

    /// Puts what is held; nothing is then.
    pub fn put_held(&mut self, driver: &dyn Driver) -> Done {
        let at = self.progress.now();
        for (id, times) in std::mem::take(&mut self.held) {
            for _ in 0..times {
                driver.put(&id).map_err(|e| {
                    Fail::new(format!(
                        "put {id}: expected success, found: {}",
                        describe(&e)
                    ))
                    .or_at(
                        at.clone()
                            .map(|(at, _)| (at, "at the end: put what is held".to_string())),
                    )
                })?;
            }
        }
        Ok(())
    }

    /// No mount may be left below the home. What somebody else has mounted on the home itself must be left.
    pub fn no_mounts_left(&self) -> Done {
        let mut left = sys::mount::mounts_below(&self.home)
            .map_err(|e| Fail::new(format!("the mount table cannot be read: {e}")))?;
        if self.bound {
            let home = self.home.canonicalize();
            let theirs = left
                .iter()
                .position(|m| home.as_ref().is_ok_and(|h| *h == m.path));
            match theirs {
                Some(theirs) => drop(left.remove(theirs)),
                None => {
                    let what = "expected what is mounted on the home to stay, found it taken away";
                    return Err(Fail::new(what));
                }
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        let lines = left
            .iter()
            .map(|m| format!("{} on {}", m.fs_type, self.short(&m.path)));
        Err(Fail::lines(
            format!(
                "expected no mount below the driver's home, found {}:",
                left.len()
            ),
            lines,
        ))
    }

    /// A path as a person wants to read it: relative to the scenario's directory.
    pub fn short(&self, path: &Path) -> String {
        path.strip_prefix(self.homes())
            .or_else(|_| path.strip_prefix(&self.dir))
            .unwrap_or(path)
            .display()
            .to_string()
    }

    /// A fresh path in the scenario's directory.
    pub fn scratch_path(&mut self, what: &str) -> PathBuf {
        self.scratch += 1;
        self.dir.join(format!("{what}-{}", self.scratch))
    }

    /// The same where homes are, which may be another filesystem.
    pub fn scratch_home(&mut self) -> PathBuf {
        self.scratch += 1;
        self.homes().join(format!("home-{}", self.scratch))
    }

    /// The directory that the driver's home is in.
    pub fn homes(&self) -> &Path {
        self.own.map_or(&self.dir, Own::dir)
    }

    /// On a filesystem of its own, which is the place of its facts then.
    pub fn on(mut self, own: &'a Own) -> Self {
        self.place = own.place();
        self.own = Some(own);
        self.home = self.homes().join("home");
        self
    }

    /// The filesystem that the scenario has to itself.
    pub fn own(&self) -> Done<&'a Own> {
        self.own
            .ok_or_else(|| Fail::new("the scenario has no backing of its own"))
    }

    /// How trees are compared on this backing.
    pub fn comparison(&self) -> Compare {
        Compare {
            resolution: match self.place.facts.time_step_nanos {
                1 => TimeResolution::Nanos,
                2..=1000 => TimeResolution::Micros,
                _ => TimeResolution::Secs,
            },
            ..Compare::default()
        }
    }

    /// Forgets the driver as a crash would: it gives nothing back, and its mounts stay.
    pub fn abandon(&mut self) {
        self.crashed.extend(self.running.take());
        self.held.clear();
        self.paths.clear();
    }

    /// Unmounts everything below the home; for the harness's own use between two tries.
    pub fn unmount_home(&self) -> Done {
        sys::mount::umount_below(&self.home)
            .map(|_| ())
            .map_err(|e| Fail::new(format!("the home cannot be unmounted: {e}")))
    }
}
