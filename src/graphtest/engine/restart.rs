//! Steps on the driver and its home: restart, cleanup, init, guard, corrupt.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use globset::GlobBuilder;

use super::call::{Done, Fail};
use super::state::HomeState;
use super::world::World;
use crate::graphtest::step::{
    CleanupStep, CorruptStep, Expect, GuardStep, GuardWord, InitStep, Restart, RestartStep,
};
use crate::sys;
use crate::tree::{ScanOptions, scan_path};

impl World<'_> {
    pub fn restart(&mut self, s: &RestartStep, expect: &Expect) -> Done {
        match s.how {
            Restart::Clean => self.stop()?,
            Restart::Killed => self.abandon(),
        }
        if s.home.is_some() {
            // Mounts of a killed driver would stay at the old path for good.
            self.unmount_home()?;
            let moved = self.scratch_home();
            std::fs::rename(&self.home, &moved)
                .map_err(|e| Fail::new(format!("the home cannot be moved: {e}")))?;
            self.home = moved;
        }
        match self.init(expect)? {
            true => self.run(&s.then),
            false => Ok(()),
        }
    }

    /// Ends the driver in order.
    pub fn stop(&mut self) -> Done {
        if self.running.is_some() {
            self.must("cleanup", |d| d.cleanup())?;
        }
        self.running = None;
        self.held.clear();
        self.paths.clear();
        Ok(())
    }

    pub fn cleanup(&mut self, s: &CleanupStep, expect: &Expect) -> Done {
        for _ in 0..s.times.unwrap_or(1) {
            self.call(expect, "cleanup", |d| d.cleanup())?;
        }
        self.held.clear();
        self.no_mounts_left()
    }

    pub fn init_again(&mut self, s: &InitStep, expect: &Expect) -> Done {
        self.stop()?;
        let options = std::mem::replace(&mut self.options, s.opts.clone());
        if !self.init(expect)? {
            // Refused, as stated: what was there is still there for the options of before.
            self.options = options;
            self.init(&Expect::default())
                .map_err(|f| f.context("after the refused init"))?;
        }
        Ok(())
    }

    pub fn guard(&mut self, s: &GuardStep) -> Done {
        match s.what {
            GuardWord::Home => {}
            GuardWord::Limits => return self.guard_limits(&s.body),
            GuardWord::Datasets => return self.guard_datasets(&s.body),
            GuardWord::ForeignSubvolume => return self.guard_foreign_subvolume(&s.body),
            GuardWord::ForeignMount => return self.guard_foreign_mount(&s.body),
        }
        let before = HomeState::of(&self.home)?;
        self.run(&s.body)?;
        before.compare(&self.home)
    }

    pub fn corrupt(&mut self, s: &CorruptStep) -> Done {
        let glob = GlobBuilder::new(&s.path)
            .literal_separator(true)
            .build()
            .map_err(|e| Fail::new(format!("the scenario's pattern is none: {e}")))?
            .compile_matcher();
        let options = ScanOptions {
            contents: false,
            xattrs: false,
            skip_at_root: Vec::new(),
            unread: Vec::new(),
        };
        let tree = scan_path(&self.home, &options)
            .map_err(|e| Fail::new(format!("the driver's home cannot be read: {e}")))?;
        let names = tree.entries.keys().map(|p| OsStr::from_bytes(p.as_bytes()));
        let hits: Vec<&OsStr> = names.filter(|name| glob.is_match(name)).collect();
        if hits.is_empty() {
            return Err(Fail::new(format!(
                "expected something to damage at {}, found nothing in the driver's home",
                s.path
            )));
        }
        for name in hits {
            let path = self.home.join(name);
            let done = if s.remove {
                sys::remove::remove_tree(&path)
            } else if s.empty {
                sys::remove::remove_tree(&path).and_then(|()| std::fs::create_dir(&path))
            } else if let Some(text) = &s.text {
                std::fs::write(&path, &text.0)
            } else if let Some(between) = &s.twice {
                std::fs::read(&path)
                    .and_then(|held| std::fs::write(&path, [&held, &*between.0, &held].concat()))
            } else if let Some(other) = &s.from {
                std::fs::copy(self.home.join(other), &path).map(drop)
            } else {
                let size = s.truncate.as_ref().map_or(0, |size| size.0);
                std::fs::OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .and_then(|f| f.set_len(size))
            };
            done.map_err(|e| Fail::new(format!("{}: {e}", self.short(&path))))?;
        }
        Ok(())
    }
}
