//! The filesystem that a scenario has to itself.

use std::io;
use std::path::Path;

use rustix::fs::statvfs;

use super::call::{Done, Fail};
use crate::graphtest::scenario::OwnBacking;
use crate::graphtest::step::{Access, Keeps};
use crate::lab::{self, Fresh, GivenBack, Journal, Place};

/// A filesystem that can hold this many times the files asked for has no limit that is worth filling.
const INODES_ROUNDED: u64 = 4;

/// A filesystem made for one run of a scenario, of the kind that the cell's homes lie on.
#[derive(Debug)]
pub(crate) struct Own(lab::OwnBacking);

/// Why there is none.
pub(crate) enum Without {
    /// There can be none of this kind: the scenario is skipped.
    Kind(String),
    /// Making it failed.
    Failed(Fail),
}

impl Own {
    /// Makes one.
    pub fn make(place: &Place, asked: &OwnBacking) -> Result<Self, Without> {
        let fresh = Fresh {
            size: asked.size,
            inodes: asked.inodes,
        };
        let own = place.fresh(&fresh).map(Self).map_err(|e| match e.kind() {
            io::ErrorKind::Unsupported => Without::Kind(format!("needs a backing of its own: {e}")),
            _ => Without::Failed(Fail::new(format!("no backing of its own: {e}"))),
        })?;
        let Some(inodes) = asked.inodes else {
            return Ok(own);
        };
        let holds = statvfs(own.dir()).map_or(0, |st| st.f_files);
        if (1..=inodes.saturating_mul(INODES_ROUNDED)).contains(&holds) {
            return Ok(own);
        }
        own.give_back().map_err(Without::Failed)?;
        Err(Without::Kind(format!(
            "needs a backing for {inodes} files: the least that {} can have is {holds}",
            place.backing
        )))
    }

    /// The place of homes on it.
    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// Its root.
    pub fn dir(&self) -> &Path {
        &self.place().dir
    }

    /// Mounts it otherwise, whoever uses it.
    pub fn remount(&self, how: Access) -> Done {
        self.0
            .remount(how == Access::ReadOnly)
            .map_err(|e| Fail::new(format!("the backing cannot be mounted {how:?}: {e}")))
    }

    /// Cuts its power, lets go of what is open on it, and mounts it again.
    pub fn cut_power(&self, keeps: Keeps, let_go: impl FnOnce()) -> Done {
        let journal = match keeps {
            Keeps::Nothing => Journal::Lost,
            Keeps::Metadata => Journal::Flushed,
        };
        self.0
            .cut_power(journal, let_go)
            .map_err(|e| Fail::new(format!("the power of the backing cannot be cut: {e}")))
    }

    /// Leaves it as it is until the cell is given back.
    pub fn keep(self) {
        self.0.keep();
    }

    /// Unmounts it and gives back all that it took. What the run did must not have damaged it.
    pub fn give_back(self) -> Done {
        let GivenBack { left, damage, .. } = self.0.give_back();
        let wrong: Vec<String> = left.into_iter().chain(damage).collect();
        if wrong.is_empty() {
            return Ok(());
        }
        Err(Fail::lines(
            "the scenario's backing is left behind or damaged:",
            wrong,
        ))
    }
}
