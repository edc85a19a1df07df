//! The one driver that a served plugin has: started by `Init`, let go of by `Cleanup`.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::graphdriver::{Driver, Error, InitOptions, Result};
use crate::sync::lock;
use crate::sys::mount::{mounts_below, umount_detach};

/// How long a lock may outlive its owner: a process that is just being started has all that was open for a moment.
const LINGERS: Duration = Duration::from_millis(500);

/// Starts a driver on a home.
pub type Start = dyn Fn(&Path, &InitOptions) -> Result<Arc<dyn Driver>> + Send + Sync;

/// What was last asked for with `Init`, and the driver, as long as it runs.
struct Started {
    home: PathBuf,
    init: InitOptions,
    running: Option<Running>,
}

/// A driver, and the lock that keeps others off its home.
struct Running {
    driver: Arc<dyn Driver>,
    _home: File,
}

/// The state of a served plugin.
pub(super) struct Session {
    start: Box<Start>,
    /// The directory that every home is, or is below.
    fence: PathBuf,
    started: Mutex<Option<Started>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}

impl Session {
    pub fn new(start: Box<Start>, fence: PathBuf) -> Self {
        Self {
            start,
            fence,
            started: Mutex::default(),
        }
    }

    /// Starts a driver on a home, in the place of the one before. A daemon that starts again without having cleaned up has crashed: on the
    /// same home, what the driver before held is for the next one to find, as it is for a driver in the daemon itself. On another home it
    /// is given back, since nobody will ask for it again.
    pub fn init(&self, home: &str, init: InitOptions) -> Result<()> {
        let home = self.within(home)?;
        let mut started = lock(&self.started);
        if let Some(before) = started.take() {
            match before.running {
                Some(running) if before.home != home => {
                    drop(started);
                    release(&before.home, &running)?;
                    started = lock(&self.started);
                }
                _ => {}
            }
        }
        let running = Some(self.run(&home, &init)?);
        *started = Some(Started {
            home,
            init,
            running,
        });
        Ok(())
    }

    /// The driver, started again if it was cleaned up.
    pub fn driver(&self) -> Result<Arc<dyn Driver>> {
        let mut started = lock(&self.started);
        let Some(started) = &mut *started else {
            return Err(Error::Other(
                "there is no driver yet: GraphDriver.Init comes first".to_owned(),
            ));
        };
        if started.running.is_none() {
            started.running = Some(self.run(&started.home, &started.init)?);
        }
        match &started.running {
            Some(running) => Ok(Arc::clone(&running.driver)),
            None => Err(Error::Other("the driver is gone".to_owned())),
        }
    }

    /// Has the driver give back what it holds, and lets go of it: nothing of the home stays open.
    pub fn cleanup(&self) -> Result<()> {
        let mut started = lock(&self.started);
        let Some(started) = &mut *started else {
            return Ok(());
        };
        match started.running.take() {
            None => Ok(()),
            Some(running) => running.driver.cleanup(),
        }
    }

    /// The end: nothing may stay mounted.
    pub fn end(&self) -> Result<()> {
        match lock(&self.started).take() {
            Some(Started {
                home,
                running: Some(running),
                ..
            }) => release(&home, &running),
            _ => Ok(()),
        }
    }

    fn run(&self, home: &Path, init: &InitOptions) -> Result<Running> {
        // A home that is there is locked before the driver looks at it.
        let before = home.exists().then(|| hold(home)).transpose()?;
        let driver = (self.start)(home, init)?;
        let held = match before {
            Some(held) => held,
            None => hold(home)?,
        };
        Ok(Running {
            driver,
            _home: held,
        })
    }

    /// A home as it was asked for; an empty one is the server's own directory.
    fn within(&self, home: &str) -> Result<PathBuf> {
        if home.is_empty() {
            return Ok(self.fence.clone());
        }
        let path = Path::new(home);
        let up = path.components().any(|c| c == Component::ParentDir);
        if path.is_absolute() && !up && path.starts_with(&self.fence) {
            return Ok(path.to_owned());
        }
        Err(Error::InvalidOption {
            key: "Home".to_owned(),
            why: format!(
                "{home:?} is not below {}, the directory that this plugin was started for",
                self.fence.display()
            ),
        })
    }
}

fn release(home: &Path, running: &Running) -> Result<()> {
    let cleaned = running.driver.cleanup();
    // What the driver could not give back, or did not know of; the home itself may be a mount of somebody else's.
    let failed = |e: io::Error| Error::io("unmount all below", home, e);
    let own = home.canonicalize().unwrap_or_else(|_| home.to_owned());
    let left = mounts_below(home).map_err(failed)?;
    for mount in left.iter().rev().filter(|m| m.path != own) {
        umount_detach(&mount.path).map_err(failed)?;
    }
    cleaned
}

/// Locks a home, or any directory, against other servers; closing it lets go.
pub(super) fn hold(dir: &Path) -> Result<File> {
    let file = File::open(dir).map_err(|e| Error::io("open", dir, e))?;
    let until = Instant::now() + LINGERS;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(Errno::WOULDBLOCK) => {
                let what = format!("another server works on {}", dir.display());
                return Err(Error::Other(what));
            }
            Err(e) => return Err(Error::io("lock", dir, e)),
        }
    }
}
