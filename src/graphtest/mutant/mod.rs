//! Mutants: deliberately broken drivers that test the suite itself.
//!
//! A mutant wraps a good driver and breaks exactly one thing, through the driver's own face wherever that is possible, so that
//! the same bug can be put into any driver. Every scenario names at least one mutant that it must fail on, and every mutant is
//! named by a scenario; `cargo test` holds both to it. [`ALL`] is the list, `graphtest list mutants` prints it.

mod base;
mod calls;
mod child;
mod datasets;
mod disk;
mod edges;
mod files;
mod homes;
mod mounts;
mod overlays;
mod persist;
#[cfg(feature = "plugin")]
mod plugin;
mod pools;
mod put;
mod quota;
mod recipe;
mod report;
mod select;
mod stream;
mod subvolumes;
mod table;
mod tarball;
mod target;
mod transfer;

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use crate::graphdriver::Driver;

use base::{Base, Bug, Mutated};

pub use select::{SelectBug, select};
pub use table::ALL;
pub use target::MutatedTarget;

/// One deliberate bug.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// The name scenarios use in `catches`.
    pub name: &'static str,
    /// What is broken, in one sentence.
    pub about: &'static str,
    make: Make,
}

/// How the bug is made.
#[derive(Clone, Copy, Debug)]
enum Make {
    /// Tampering with what a good driver does.
    Recipe(recipe::Recipe),
    /// A whole call done wrongly, with state of its own.
    Bug(fn() -> Box<dyn Bug>),
    /// Options are lost on their way into the driver.
    IgnoresOptions,
    /// The same, but for the first driver on a home.
    IgnoresLaterOptions,
    /// A home that ignores case is taken, by a driver in a part of it that heeds case, which makes all ids lower case.
    CaseIgnored,
    /// Files of the home are tampered with before the driver looks at them.
    Before(fn(&Path) -> std::io::Result<()>),
    /// The choice of a driver is wrong; the driver itself is good.
    Select(SelectBug),
    /// The driver is served as a plugin that does the protocol wrong; the driver itself is good.
    Wire(WireBug),
}

/// What a plugin does wrong at the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireBug {
    /// Every error is answered as a success.
    ErrorsHidden,
    /// An archive that is cut off is taken for the whole.
    CutBodyTaken,
    /// Bodies in chunks are refused.
    ChunkedRefused,
    /// The first piece of an archive is taken for all of it.
    FirstPieceOnly,
    /// A request without a host is refused.
    HostRequired,
    /// A request without a content type is refused.
    TypeRequired,
    /// A call is refused while another one is going on.
    OneAtATime,
    /// A home that is not there is refused.
    HomeMustBeThere,
    /// Members of `Init` that early daemons do not send are asked for.
    StrictInit,
    /// A body that is no JSON is passed over.
    GarbageTaken,
    /// The question for capabilities is an error.
    CapabilitiesFail,
    /// Gets are still counted after a restart of the daemon.
    CountsKept,
    /// The error of a diff comes under status 200.
    DiffErrorIs200,
    /// Every id exists.
    ExistsAlways,
    /// A success is said in a word.
    NotJson,
    /// An error says nothing.
    ErrorWithoutText,
    /// A call that is not known succeeds.
    UnknownCallTaken,
    /// A sender that is gone ends the plugin.
    DiesOfHangUp,
}

impl Mutant {
    /// The options that reach the driver's init function on a home.
    pub fn options<'a>(&self, home: &Path, given: &'a [String]) -> &'a [String] {
        match self.make {
            Make::IgnoresOptions => &[],
            Make::IgnoresLaterOptions if Base::is_restart(home) => &[],
            _ => given,
        }
    }

    /// Where in a home the driver is started.
    ///
    /// # Errors
    /// The place cannot be made.
    pub fn place<'h>(&self, home: &'h Path) -> std::io::Result<Cow<'h, Path>> {
        match self.make {
            Make::CaseIgnored => homes::heeding_case(home),
            _ => Ok(home.into()),
        }
    }

    /// What happens to a home before the driver's init function.
    ///
    /// # Errors
    /// The home cannot be tampered with.
    pub fn before(&self, home: &Path) -> std::io::Result<()> {
        match self.make {
            Make::Before(tamper) if Base::is_restart(home) => tamper(home),
            _ => Ok(()),
        }
    }

    /// The bug in selection, when it is one.
    pub fn selection(&self) -> Option<SelectBug> {
        match self.make {
            Make::Select(bug) => Some(bug),
            _ => None,
        }
    }

    /// The bug at the wire, when it is one.
    pub fn wire(&self) -> Option<WireBug> {
        match self.make {
            Make::Wire(bug) => Some(bug),
            _ => None,
        }
    }

    /// Wraps a good driver whose home is `home`. `restarted` says that the home had layers already.
    pub fn wrap(&self, inner: Arc<dyn Driver>, home: &Path) -> Arc<dyn Driver> {
        let bug: Box<dyn Bug> = match self.make {
            Make::Recipe(recipe) => Box::new(recipe),
            Make::Bug(make) => make(),
            Make::CaseIgnored if home.ends_with(homes::HEEDING) => calls::IdLowercased::make(),
            Make::IgnoresOptions | Make::Select(_) | Make::Wire(_) => return inner,
            Make::CaseIgnored | Make::IgnoresLaterOptions | Make::Before(_) => {
                Box::new(recipe::Recipe::NONE)
            }
        };
        let base = Base::new(inner, home);
        // A bug that cannot do its harm survives, and that is reported.
        let _ = bug.start(&base);
        Arc::new(Mutated { base, bug })
    }
}

/// The mutant of that name.
pub fn find(name: &str) -> Option<&'static Mutant> {
    ALL.iter().find(|m| m.name == name)
}

/// Wraps a good driver in the mutant of that name; `None` when there is no such mutant.
pub fn wrap(name: &str, inner: Arc<dyn Driver>, home: &Path) -> Option<Arc<dyn Driver>> {
    find(name).map(|m| m.wrap(inner, home))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_kebab_case() {
        let names: BTreeSet<&str> = ALL.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), ALL.len());
        for m in ALL {
            assert!(
                m.name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{}",
                m.name
            );
            assert!(m.about.ends_with('.'), "{}: `about` is a sentence", m.name);
            assert!(find(m.name).is_some());
        }
    }

    #[test]
    fn every_mutant_is_named_by_a_scenario() {
        let library = crate::graphtest::load::builtin().unwrap_or_else(|e| panic!("{e}"));
        let scenarios = library
            .suites
            .iter()
            .flat_map(|s| &s.scenarios)
            .flat_map(|s| &s.catches);
        let named: BTreeSet<&String> = scenarios
            .chain(library.cases().flat_map(|c| &c.catches))
            .collect();
        let unnamed: Vec<&str> = ALL
            .iter()
            .map(|m| m.name)
            .filter(|n| !named.contains(&n.to_string()))
            .collect();
        assert!(unnamed.is_empty(), "no scenario catches {unnamed:?}");
    }
}
