//! The filesystem that a scenario has to itself.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::statvfs;

use super::call::{Done, Fail};
use crate::graphtest::scenario::OwnBacking;
use crate::graphtest::step::{Access, Keeps};
use crate::lab::Place;
use crate::sys::mount::{MountFlags, mount, umount_below};

/// A filesystem made for one run of a scenario, of the kind that the cell's homes lie on.
#[derive(Debug)]
pub(crate) struct Own {
    place: Place,
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
        static NEXT: AtomicU64 = AtomicU64::new(0);
        if place.backing != "tmpfs" {
            let why = format!("needs a backing of its own: {} has none", place.backing);
            return Err(Without::Kind(why));
        }
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = place.dir.join(format!("own{n}"));
        let failed =
            |e: std::io::Error| Without::Failed(Fail::new(format!("no backing of its own: {e}")));
        std::fs::create_dir(&dir).map_err(failed)?;
        let mut data = "mode=0755".to_string();
        if let Some(size) = asked.size {
            data += &format!(",size={size}");
        }
        if let Some(inodes) = asked.inodes {
            data += &format!(",nr_inodes={inodes}");
        }
        mount(
            Path::new("graphtest"),
            &dir,
            "tmpfs",
            MountFlags::empty(),
            data.as_bytes(),
        )
        .map_err(failed)?;
        let own = Self {
            place: Place {
                dir,
                backing: place.backing.clone(),
                facts: place.facts.clone(),
            },
        };
        let Some(inodes) = asked.inodes else {
            return Ok(own);
        };
        let limited = statvfs(&own.place.dir)
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
        &self.place
    }

    /// Its root.
    pub fn dir(&self) -> &Path {
        &self.place.dir
    }

    /// Mounts it otherwise, whoever uses it.
    pub fn remount(&self, how: Access) -> Done {
        let flags = match how {
            Access::ReadOnly => MountFlags::RDONLY,
            Access::ReadWrite => MountFlags::empty(),
        };
        rustix::mount::mount_remount(self.dir(), flags, "")
            .map_err(|e| Fail::new(format!("the backing cannot be mounted otherwise: {e}")))
    }

    /// Cuts its power, lets go of what is open on it, and mounts it again.
    pub fn cut_power(&self, _: Keeps, _: impl FnOnce()) -> Done {
        Err(Fail::new("a tmpfs has no power to cut"))
    }

    /// Unmounts it and gives back all that it took.
    pub fn give_back(self) -> Done {
        let dir: &PathBuf = &self.place.dir;
        umount_below(dir)
            .and_then(|_| std::fs::remove_dir(dir))
            .map_err(|e| Fail::new(format!("the scenario's backing cannot be given back: {e}")))
    }
}
