//! Devices as the kernel has them: made usable, held back while something is done, and let go.

use std::time::Instant;

use rustix::io::Errno;

use super::{PATIENCE, PAUSE, Set, in_use};
use crate::drivers::devicemapper::filesystem::{Filesystem, set_xfs_retries};
use crate::drivers::devicemapper::pool::remove_when_free;
use crate::drivers::devicemapper::records::{Device, Key};
use crate::graphdriver::{Error, Result};
use crate::sys::dm::{Info, Removed, SECTOR, Table};

impl Set {
    /// Has all that is on its way to a device reach it, and keeps more from coming, while something is done.
    pub(super) fn while_suspended<T>(&self, name: &str, work: impl FnOnce() -> T) -> Result<T> {
        let failed = |op| move |e| Error::io(op, format!("/dev/mapper/{name}"), e);
        // One that is to go with its last user would do so between two calls.
        let Some(active) = self.stays(name).map_err(failed("keep"))? else {
            return Ok(work());
        };
        self.suspend(name).map_err(failed("suspend"))?;
        let done = work();
        self.control.resume(name).map_err(failed("resume"))?;
        if active.goes {
            self.control.remove(name, true).map_err(failed("remove"))?;
        }
        Ok(done)
    }

    fn suspend(&self, name: &str) -> Result<(), Errno> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.control.suspend(name) {
                // Since Linux 6.8 said of a device whose filesystem is just going.
                Err(Errno::INVAL) if Instant::now() < until => std::thread::sleep(PAUSE),
                other => return other,
            }
        }
    }

    /// Has all that was written into a layer reach its device, in its last place.
    ///
    /// # Errors
    /// Not all of it could be written.
    pub fn write_out(&self, key: &Key) -> Result<()> {
        let name = self.name(key, &self.device(key)?);
        self.while_suspended(&name, || ())
    }

    /// Makes a device usable.
    pub fn activate(&self, key: &Key, device: &Device) -> Result<Info> {
        let name = self.name(key, device);
        let failed = |op| {
            let path = format!("/dev/mapper/{name}");
            move |e: Errno| Error::io(op, path.clone(), e)
        };
        let pool = self.pool.info(&self.control)?.ok_or(Errno::NXIO);
        let (major, minor) = pool.map_err(self.pool.failed("look at"))?.number;
        let table = Table {
            sectors: device.size / SECTOR,
            target: "thin".to_owned(),
            parameters: format!("{major}:{minor} {}", device.device_id),
        };
        if let Some(info) = self.stays(&name).map_err(failed("keep"))? {
            let is = self.control.table(&name).map_err(failed("look at"))?;
            if is.as_ref() == Some(&table) {
                return Ok(info);
            }
            let smaller =
                |is: Table| is.parameters == table.parameters && is.sectors < table.sectors;
            if is.is_some_and(smaller) {
                self.control
                    .reload(&name, &table)
                    .map_err(failed("enlarge"))?;
                return Ok(info);
            }
            // Of a home that is gone and had the same inode, or of a maker that was killed before it gave it a table.
            self.control
                .remove(&name, false)
                .map_err(failed("remove"))?;
        }
        self.control
            .create(&name, "", &table)
            .map_err(failed("activate"))
    }

    /// The device as it was found if it is active, which it then stays, and is not suspended.
    fn stays(&self, name: &str) -> Result<Option<Info>, Errno> {
        let until = Instant::now() + PATIENCE;
        loop {
            let Some(info) = self.control.info(name)? else {
                return Ok(None);
            };
            if info.goes {
                match self.control.keep(name) {
                    Ok(()) => {}
                    Err(Errno::NXIO) => return Ok(None),
                    Err(Errno::BUSY) if Instant::now() < until => {
                        std::thread::sleep(PAUSE);
                        continue;
                    }
                    Err(e) => return Err(e),
                }
            }
            if info.suspended {
                self.control.resume(name)?;
            }
            return Ok(Some(info));
        }
    }

    /// Makes a device unusable once its last user has gone.
    pub fn deactivate(&self, key: &Key, device: &Device) -> Result<Removed> {
        let name = self.name(key, device);
        if !self.options.deferred_removal {
            return self.remove_now(&name, key);
        }
        match self.control.remove(&name, true) {
            Err(Errno::NXIO) => Ok(Removed::Gone),
            other => other.map_err(|e| Error::io("remove", format!("/dev/mapper/{name}"), e)),
        }
    }

    pub(super) fn remove_now(&self, name: &str, key: &Key) -> Result<Removed> {
        match remove_when_free(&self.control, name) {
            Ok(()) => Ok(Removed::Gone),
            Err(Errno::BUSY) => Err(in_use(key)),
            Err(e) => Err(Error::io("remove", format!("/dev/mapper/{name}"), e)),
        }
    }

    /// Tells the filesystem that is mounted from a device what only it can be told.
    pub fn tune(&self, info: &Info) -> Result<()> {
        match (self.options.xfs_retries, self.filesystem()?) {
            (Some(retries), Filesystem::Xfs) => {
                set_xfs_retries(&format!("dm-{}", info.number.1), retries)
            }
            _ => Ok(()),
        }
    }

    /// Lets devices go on that a process was snapshotting when it was killed.
    pub(super) fn resume_all(&self) -> Result<()> {
        for (key, device) in self.known() {
            let name = self.name(key, device);
            let failed = |e| Error::io("resume", format!("/dev/mapper/{name}"), e);
            if let Some(info) = self.control.info(&name).map_err(failed)?
                && info.suspended
            {
                unless_gone(self.control.resume(&name)).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// What was done to a device, or nothing when the device has gone meanwhile.
pub(super) fn unless_gone<T>(done: Result<T, Errno>) -> Result<(), Errno> {
    match done {
        Ok(_) | Err(Errno::NXIO) => Ok(()),
        Err(e) => Err(e),
    }
}
