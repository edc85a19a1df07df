//! The base device, which every layer without a parent is a snapshot of.

use super::Set;
use crate::drivers::devicemapper::filesystem::Filesystem;
use crate::drivers::devicemapper::records::{Device, Key};
use crate::graphdriver::{Error, Result};
use crate::sys::dm::{self, SECTOR};

/// The size of the base device when nobody says, in bytes.
const BASE_SIZE: u64 = 10 << 30;

impl Set {
    /// Makes the base device, or looks whether it is the one on record.
    pub(super) fn base(&mut self) -> Result<()> {
        match self.devices.get(&Key::Base) {
            Some(Err(why)) => {
                return Err(Error::Damaged {
                    id: "base".to_owned(),
                    why: why.clone(),
                });
            }
            Some(Ok(device)) if device.initialized => {
                let device = *device;
                let checked = self.check_base(&device);
                self.deactivate(&Key::Base, &device)?;
                return checked;
            }
            Some(Ok(_)) => self.delete(&Key::Base)?,
            None => {}
        }
        let size = self.options.base_size.unwrap_or(BASE_SIZE) / SECTOR * SECTOR;
        self.make(&Key::Base, None, size)?;
        let device = self.device(&Key::Base)?;
        let made = self.make_base_filesystem(&device);
        let left = self.deactivate(&Key::Base, &device);
        made.and(left.map(drop)).inspect_err(|_| {
            let _ = self.delete(&Key::Base);
        })
    }

    fn make_base_filesystem(&mut self, device: &Device) -> Result<()> {
        let named = self.options.filesystem.as_deref();
        let wanted = named.and_then(Filesystem::named);
        let wanted = wanted.unwrap_or_else(Filesystem::usual);
        let info = self.activate(&Key::Base, device)?;
        let node = dm::node(&info, self.pool.nodes())
            .map_err(|e| Error::io("find the node of", self.name(&Key::Base, device), e))?;
        wanted.make(&node, device.size, &self.options.mkfs_arguments)?;
        let (found, uuid) = Filesystem::probe(&node)?;
        self.set.base_filesystem = found.name().to_owned();
        self.set.base_uuid = uuid;
        self.records.set_device_set(&self.set)?;
        let device = Device {
            initialized: true,
            ..*device
        };
        self.records.set(&Key::Base, &device)?;
        self.devices.insert(Key::Base, Ok(device));
        Ok(())
    }

    fn check_base(&mut self, device: &Device) -> Result<()> {
        let info = self.activate(&Key::Base, device)?;
        let node = dm::node(&info, self.pool.nodes())
            .map_err(|e| Error::io("find the node of", self.name(&Key::Base, device), e))?;
        let (found, uuid) = Filesystem::probe(&node)?;
        if self.set.base_uuid.is_empty() {
            self.set.base_uuid = uuid;
            self.set.base_filesystem = found.name().to_owned();
            return self.records.set_device_set(&self.set);
        }
        if uuid != self.set.base_uuid {
            return Err(Error::Prerequisites(format!(
                "the base device of the pool {} has the uuid {uuid}, and the home's has {}: it is another pool",
                self.pool.name, self.set.base_uuid
            )));
        }
        self.set.base_filesystem = found.name().to_owned();
        Ok(())
    }

    /// How large the base device is to become; `None` when it stays.
    ///
    /// # Errors
    /// It would become smaller.
    pub fn base_growth(&self) -> Result<Option<u64>> {
        let is = self.device(&Key::Base)?.size;
        match self.options.base_size.map(|size| size / SECTOR * SECTOR) {
            Some(wanted) if wanted < is => Err(Error::InvalidOption {
                key: "dm.basesize".to_owned(),
                why: format!(
                    "{wanted} bytes are less than the {is} of the base device that is there"
                ),
            }),
            Some(wanted) if wanted > is => Ok(Some(wanted)),
            _ => Ok(None),
        }
    }
}
