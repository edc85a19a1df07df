//! The filesystem that a scenario has to itself.

use std::io;
use std::path::Path;

use rustix::fs::statvfs;

use super::call::{Done, Fail};
use crate::graphtest::scenario::OwnBacking;
use crate::graphtest::step::{Access, Keeps};
use crate::lab::{self, Fresh, Journal, Place};

/// A filesystem made for one run of a scenario, of the kind that the cell's homes lie on.
#[derive(Debug)]
pub(crate) struct Own {
    made: lab::OwnBacking,
}

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
        let wanted = Fresh {
            size: asked.size,
            inodes: asked.inodes,
        };
        let made = place.fresh(&wanted).map_err(|e| match e.kind() {
            io::ErrorKind::Unsupported => Without::Kind(format!(
                "needs a backing of its own: {}: {e}",
                place.backing
            )),
            _ => Without::Failed(Fail::new(format!("no backing of its own: {e}"))),
        })?;
        let own = Self { made };
        let Some(inodes) = asked.inodes else {
            return Ok(own);
        };
        let limited = statvfs(own.dir())
            .is_ok_and(|st| st.f_files > 0 && st.f_files <= inodes.saturating_mul(2));
        if limited {
            return Ok(own);
        }
        own.give_back().map_err(Without::Failed)?;
        let why = format!(
            "needs a limit on the number of files: {} has none",
            place.backing
        );
        Err(Without::Kind(why))
    }

    /// The place of homes on it.
    pub fn place(&self) -> &Place {
        &self.made.place
    }

    /// Its root.
    pub fn dir(&self) -> &Path {
        &self.made.place.dir
    }

    /// Mounts it otherwise, whoever uses it.
    pub fn remount(&self, how: Access) -> Done {
        self.made
            .remount(how == Access::ReadOnly)
            .map_err(|e| Fail::new(format!("the backing cannot be mounted otherwise: {e}")))
    }

    /// Cuts its power, lets go of what is open on it, and mounts it again.
    pub fn cut_power(&self, keeps: Keeps, let_go: impl FnOnce()) -> Done {
        let journal = match keeps {
            Keeps::Nothing => Journal::Lost,
            Keeps::Metadata => Journal::Flushed,
        };
        self.made
            .cut_power(journal, let_go)
            .map_err(|e| Fail::new(format!("the power of the backing: {e}")))
    }

    /// Leaves it in place, with the cell's.
    pub fn keep(self) {
        self.made.keep();
    }

    /// Unmounts it, looks for damage, and gives back all that it took.
    pub fn give_back(self) -> Done {
        let given = self.made.give_back();
        let wrong: Vec<String> = given.left.into_iter().chain(given.damage).collect();
        if wrong.is_empty() {
            return Ok(());
        }
        Err(Fail::lines(
            "the scenario's backing is not given back whole",
            wrong,
        ))
    }
}
