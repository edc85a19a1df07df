//! Cells, and making them ready: the backing is provisioned, the driver is started once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::Required;
use crate::graphdriver::Capability;
use crate::graphtest::event::CellStart;
use crate::graphtest::{Case, Target};
use crate::lab::{Backing, Provisioned, Register, provision};
use crate::sys::remove::remove_tree;

/// A cell to be run.
#[derive(Clone, Debug)]
pub struct Cell {
    /// What is tested.
    pub target: Arc<dyn Target>,
    /// What its homes live on.
    pub backing: Backing,
    /// What of it was asked for by name: what cannot be had then is an error, otherwise a skip.
    pub named: Named,
    /// What runs in it, in order.
    pub cases: Vec<Arc<Case>>,
    /// What of that must not be skipped.
    pub required: Arc<Required>,
}

/// What of a cell was asked for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// The target.
    pub target: bool,
    /// The backing.
    pub backing: bool,
}

impl Named {
    /// The cell itself was.
    pub const ALL: Self = Self {
        target: true,
        backing: true,
    };
    /// Nothing was.
    pub const NOTHING: Self = Self {
        target: false,
        backing: false,
    };
}

/// Why a cell cannot run.
#[derive(Debug)]
pub enum Cannot {
    /// Its backing cannot be had.
    Backing(String),
    /// The driver says that it does not run there (one of the three not-supported errors).
    NotSupported(String),
    /// The driver fails to start, which nothing excuses.
    Broken(String),
}

impl Cannot {
    /// Whether it is an error for a cell of which this much was asked for by name. A driver was asked for on a backing only when both
    /// were: of the drivers that are tried on a backing by default, one that does not support it is skipped, and the other way round.
    pub(super) fn is_error(&self, named: Named) -> bool {
        match self {
            Self::Backing(_) => named.backing,
            Self::NotSupported(_) => named.target && named.backing,
            Self::Broken(_) => true,
        }
    }
}

impl std::fmt::Display for Cannot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Backing(why) | Self::NotSupported(why) | Self::Broken(why)) = self;
        f.write_str(why)
    }
}

impl Cell {
    /// The name in lists: `overlay2 on tmpfs`.
    pub fn name(&self) -> String {
        format!("{} on {}", self.target.name(), self.backing)
    }

    pub(super) fn start(&self) -> CellStart {
        CellStart {
            target: self.target.name().to_string(),
            backing: self.backing.to_string(),
            kernel: super::kernel(),
        }
    }
}

/// What a driver says when it is started.
#[derive(Clone, Debug)]
pub struct Started {
    /// Capabilities that it does not claim.
    pub not_claimed: Vec<String>,
    /// Its status, key by key, and the version of the program that serves the backing, by its name.
    pub status: BTreeMap<String, String>,
}

/// Makes a cell's place and starts its driver once.
///
/// # Errors
/// Why the cell cannot run here.
pub fn prepare(cell: &Cell, register: &Register) -> Result<(Provisioned, Started), Cannot> {
    let provisioned =
        provision(&cell.backing, register).map_err(|e| Cannot::Backing(e.to_string()))?;
    match start_once(cell.target.as_ref(), &provisioned.place.dir) {
        Ok(mut started) => {
            if let Some((name, version)) = provisioned.program.clone() {
                started.status.entry(name).or_insert(version);
            }
            Ok((provisioned, started))
        }
        Err(cannot) => match provisioned.give_back(register).left.first() {
            None => Err(cannot),
            Some(left) => Err(Cannot::Broken(format!("{cannot}; left behind: {left}"))),
        },
    }
}

/// Starts the driver on a home of its own, asks for its claims and its status, and takes the home away again.
fn start_once(target: &dyn Target, dir: &Path) -> Result<Started, Cannot> {
    let home = dir.join("start");
    std::fs::create_dir(&home).map_err(|e| Cannot::Broken(format!("{}: {e}", home.display())))?;
    let said = target
        .init(&home, &[])
        .and_then(|driver| {
            let said = (driver.capabilities(), driver.status());
            driver.cleanup().map(|()| said)
        })
        .map_err(|e| match e.is_driver_not_supported() {
            true => Cannot::NotSupported(e.to_string()),
            false => Cannot::Broken(e.to_string()),
        });
    let removed =
        remove_tree(&home).map_err(|e| Cannot::Broken(format!("{}: remove: {e}", home.display())));
    let (claims, status) = said?;
    removed?;
    let missing = Capability::ALL.iter().filter(|c| !claims.has(**c));
    Ok(Started {
        not_claimed: missing.map(|c| c.name().to_string()).collect(),
        status: status.into_iter().collect(),
    })
}
