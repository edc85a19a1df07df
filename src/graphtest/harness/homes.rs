//! Where the homes of trials are made: a first place for nearly all, and others for what it does not have.

use crate::sync::lock;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, OnceLock};

use crate::graphdriver::Capabilities;
use crate::graphtest::condition::Ground;
use crate::graphtest::event::CellStart;
use crate::graphtest::known::Known;
use crate::graphtest::needs::Need;
use crate::graphtest::run::kernel;
use crate::graphtest::scenario::Case;
use crate::graphtest::target::Target;
use crate::lab::{Backing, Place, Provisioned, Register, enter_mount_namespace, provision};
use crate::sys;

/// Directories for homes, written down before they are made and given back in the end. What a killed process leaves of them,
/// `graphtest clean` gives back.
#[derive(Debug)]
pub struct Homes {
    register: Register,
    first: Provisioned,
    more: Vec<Further>,
    /// By target and index of the place, the first one being 0: what the target claims there, or why it does not run there.
    claims: Mutex<BTreeMap<(String, usize), Claims>>,
}

/// What a target claims at a place and its status, `None` when it fails in another way than by not running there, which is for the
/// scenarios to show; the error says why it does not run there.
type Claims = Result<Option<(Capabilities, BTreeMap<String, String>)>, String>;

/// A place that is made when it is asked for.
#[derive(Debug)]
struct Further {
    backing: Backing,
    made: OnceLock<Result<Provisioned, String>>,
}

impl Homes {
    /// Makes a directory below `parent` and probes it; with `tmpfs`, one on a tmpfs of its own, where one can be mounted.
    ///
    /// To be called while the process has one thread: it enters namespaces, of mounts as root, of users and mounts as an
    /// ordinary user. Where there are none, that is said on standard error.
    ///
    /// # Errors
    /// Nothing can be made there, or the state directory cannot be written.
    pub fn make(parent: &Path, tmpfs: bool) -> Result<Self, String> {
        // Before the namespaces, in which an ordinary user seems to be root.
        let register = Register::begin().map_err(|e| e.to_string())?;
        if let Err(why) = isolate() {
            eprintln!("note: {why}; what needs mounts is ignored");
        }
        let dir = Backing::dir(Some(parent.to_path_buf()));
        let on_tmpfs = tmpfs
            .then(|| provision(&Backing::tmpfs(), &register).ok())
            .flatten();
        let first = match on_tmpfs {
            Some(made) => Ok(made),
            None => provision(&dir, &register),
        };
        match first {
            Ok(first) => Ok(Self {
                register,
                first,
                more: Vec::new(),
                claims: Mutex::default(),
            }),
            Err(e) => {
                // The error of making it says more than that of the register.
                let _ = register.close();
                Err(format!("no homes: {e}"))
            }
        }
    }

    /// Further places for [`place_for`](Self::place_for), in this order.
    pub fn also_on(mut self, backings: impl IntoIterator<Item = Backing>) -> Self {
        self.more
            .extend(backings.into_iter().map(|backing| Further {
                backing,
                made: OnceLock::new(),
            }));
        self
    }

    /// The first place.
    pub fn place(&self) -> &Place {
        &self.first.place
    }

    /// The first place on which the target runs and all needs are met. Further places are made as need be, by
    /// whichever thread comes first.
    ///
    /// # Errors
    /// Why none of them will do.
    pub fn place_for(&self, target: &dyn Target, needs: &[Need]) -> Result<&Place, String> {
        let mut reasons: Vec<String> = Vec::new();
        let mut unsuitable = |why: String| {
            if !reasons.contains(&why) {
                reasons.push(why);
            }
        };
        for index in 0..=self.more.len() {
            match self.at(index) {
                Ok(place) => match self.unmet(index, place, target, needs) {
                    None => return Ok(place),
                    Some(why) => unsuitable(why),
                },
                Err(why) => unsuitable(why),
            }
        }
        Err(reasons.join("; "))
    }

    /// The place with that index, which is made if need be.
    fn at(&self, index: usize) -> Result<&Place, String> {
        let Some(further) = index.checked_sub(1).and_then(|i| self.more.get(i)) else {
            return Ok(self.place());
        };
        let made = further.made.get_or_init(|| {
            provision(&further.backing, &self.register)
                .map_err(|e| format!("{}: {e}", further.backing))
        });
        made.as_ref().map(|p| &p.place).map_err(String::clone)
    }

    /// The first need that is not met there, in words.
    fn unmet(
        &self,
        index: usize,
        place: &Place,
        target: &dyn Target,
        needs: &[Need],
    ) -> Option<String> {
        if let Some(why) = needs.iter().find_map(|n| n.unmet_by_place(&place.facts)) {
            return Some(why);
        }
        let mut claims = lock(&self.claims);
        let key = (target.name().to_string(), index);
        let claims = claims
            .entry(key)
            .or_insert_with(|| claims_at(target, place));
        match claims {
            Err(why) => Some(why.clone()),
            Ok(None) => None,
            Ok(Some((claims, _))) => needs
                .iter()
                .find_map(|n| n.unmet_by_driver(claims, target.layout())),
        }
    }

    /// Why a case is known to fail on a target at one of these places; `None` when it is not.
    pub fn known(
        &self,
        known: &Known,
        target: &dyn Target,
        place: &Place,
        case: &Case,
    ) -> Option<String> {
        if !known.concern(target.name()) {
            return None;
        }
        let mut claims = lock(&self.claims);
        let mut places = (0..=self.more.len()).filter_map(|i| Some((i, self.at(i).ok()?)));
        let (index, _) = places.find(|(_, p)| p.dir == place.dir)?;
        let key = (target.name().to_string(), index);
        let claims = claims
            .entry(key)
            .or_insert_with(|| claims_at(target, place));
        let status = match claims {
            Ok(Some((_, status))) => status.clone(),
            _ => BTreeMap::new(),
        };
        let ground = Ground {
            cell: CellStart {
                target: target.name().to_string(),
                backing: place.backing.clone(),
                kernel: kernel(),
            },
            status,
        };
        known.reason(&ground, &case.label())
    }

    /// Unmounts and removes all of them.
    ///
    /// # Errors
    /// What is left behind or damaged.
    pub fn close(self) -> Result<(), String> {
        let further = self.more.into_iter().filter_map(|f| f.made.into_inner());
        let mut left = Vec::new();
        for made in further.flatten().chain([self.first]) {
            let given = made.give_back(&self.register);
            left.extend(given.left.into_iter().chain(given.damage));
        }
        left.extend(self.register.close().err().map(|e| e.to_string()));
        if left.is_empty() {
            Ok(())
        } else {
            Err(left.join("; "))
        }
    }
}

/// What there is to look on for what a tmpfs does not have: the filesystem of the temporary directory, then made ones.
pub fn made_backings() -> Vec<Backing> {
    let made = ["ext4", "xfs", "btrfs", "ext4+casefold"].map(str::parse);
    let dir = Backing::dir(Some(std::env::temp_dir()));
    std::iter::once(dir)
        .chain(made.into_iter().flatten())
        .collect()
}

/// Namespaces of its own for a process with one thread: mounts as root, users and mounts as an ordinary user.
fn isolate() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        sys::ns::enter_user_ns().map_err(|e| format!("no user namespace: {e}"))?;
    }
    enter_mount_namespace().map_err(|e| format!("no mount namespace of its own: {e}"))
}

/// Why a target cannot run at a place at all; `None` when it can.
pub fn why_not(target: &dyn Target, place: &Place) -> Option<String> {
    claims_at(target, place).err()
}

fn claims_at(target: &dyn Target, place: &Place) -> Claims {
    let home = tempfile::Builder::new()
        .prefix("probe-")
        .tempdir_in(&place.dir)
        .map_err(|e| format!("no home can be made: {e}"))?;
    match target.init(home.path(), &[]) {
        Ok(driver) => {
            let claims = (driver.capabilities(), driver.status().into_iter().collect());
            // Whatever it says, the probe is over; a driver that cannot clean up shows that in its scenarios.
            let _ = driver.cleanup();
            Ok(Some(claims))
        }
        Err(e) if e.is_driver_not_supported() => Err(e.to_string()),
        Err(_) => Ok(None),
    }
}
