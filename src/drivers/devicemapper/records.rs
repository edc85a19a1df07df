//! What the home records of its devices, in files as moby's driver writes them: `metadata/<id>` for a layer, `metadata/base` for the
//! device that layers begin as snapshots of, `metadata/deviceset-metadata`, and `metadata/transaction-metadata`.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::drivers::home::{TEMPORARY, excerpt, write_atomically};
use crate::graphdriver::{Error, LayerId, Result};
use crate::sys;

const BASE: &str = "base";
const DEVICE_SET: &str = "deviceset-metadata";
const TRANSACTION: &str = "transaction-metadata";
/// A layer that has the name of one of these files; moby's ids never have.
const LAYER: &str = ".layer-";
/// A layer that was removed while it was in use, by the number of its device.
const DELETED: &str = ".deleted-";

/// Whether the driver keeps a name for itself.
pub(super) fn is_reserved(id: &str) -> bool {
    [TEMPORARY, LAYER, DELETED]
        .iter()
        .any(|prefix| id.starts_with(prefix))
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// That of which all layers without a parent are snapshots.
    Base,
    /// A layer.
    Layer(LayerId),
    /// A layer that was removed while it was in use.
    Deleted(u32),
}

impl Key {
    /// The name of its file.
    fn file(&self) -> String {
        match self {
            Self::Base => BASE.to_owned(),
            Self::Layer(id) if [BASE, DEVICE_SET, TRANSACTION].contains(&id.as_str()) => {
                format!("{LAYER}{id}")
            }
            Self::Layer(id) => id.to_string(),
            Self::Deleted(number) => format!("{DELETED}{number}"),
        }
    }

    fn of_file(name: &str) -> Option<Self> {
        if name == BASE {
            return Some(Self::Base);
        }
        if let Some(number) = name.strip_prefix(DELETED) {
            return number.parse().ok().map(Self::Deleted);
        }
        let id = match name.strip_prefix(LAYER) {
            Some(id) => id,
            None if is_reserved(name) || name == DEVICE_SET || name == TRANSACTION => return None,
            None => name,
        };
        LayerId::parse(id).ok().map(Self::Layer)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file())
    }
}

/// A device of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Device {
    /// Its number in the pool: 24 bits.
    pub device_id: u32,
    /// Bytes.
    pub size: u64,
    /// The transaction that made it.
    pub transaction_id: u64,
    /// Whether it holds a filesystem.
    pub initialized: bool,
    /// Whether it is to go when nobody uses it any more.
    #[serde(default)]
    pub deleted: bool,
}

/// What is known of all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DeviceSet {
    /// The number before the one to be tried for the next device.
    pub next_device_id: u32,
    /// The uuid of the base's filesystem.
    #[serde(rename = "BaseDeviceUUID", default)]
    pub base_uuid: String,
    /// Its type.
    #[serde(rename = "BaseDeviceFilesystem", default)]
    pub base_filesystem: String,
}

/// A change of the pool that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Transaction {
    /// The number that the pool has when it is complete.
    pub open_transaction_id: u64,
    /// The device's file; empty for the base, as moby has it.
    pub device_hash: String,
    /// The device's number.
    pub device_id: u32,
}

impl Transaction {
    /// For a device that is made or deleted.
    pub fn new(open_transaction_id: u64, key: &Key, device_id: u32) -> Self {
        let device_hash = match key {
            Key::Base => String::new(),
            key => key.file(),
        };
        Self {
            open_transaction_id,
            device_hash,
            device_id,
        }
    }

    /// The device.
    pub fn key(&self) -> Option<Key> {
        match self.device_hash.as_str() {
            "" => Some(Key::Base),
            file => Key::of_file(file),
        }
    }
}

/// The devices on record; the text says why a record cannot be read.
pub(super) type Devices = BTreeMap<Key, Result<Device, String>>;

/// The directory of the records.
#[derive(Debug)]
pub(super) struct Records {
    path: PathBuf,
    dir: OwnedFd,
}

impl Records {
    /// Those in a directory.
    pub fn new(path: PathBuf, dir: OwnedFd) -> Self {
        Self { path, dir }
    }

    /// Reads the records of all devices, and deletes what a killed process was just writing.
    pub fn devices(&self) -> Result<Devices> {
        let mut names = Vec::new();
        sys::fs::for_each_name(self.dir.as_fd(), |name, _| {
            names.extend(name.to_str().ok().map(str::to_owned));
            Ok(())
        })
        .map_err(|e| Error::io("read the directory", &self.path, e))?;
        let mut devices = Devices::new();
        for name in names {
            if name.starts_with(TEMPORARY) {
                self.delete(&name)?;
            } else if let Some(key) = Key::of_file(&name)
                && let Some(device) = self.read(&name)?
            {
                devices.insert(key, device);
            }
        }
        Ok(devices)
    }

    /// Writes the record of a device.
    pub fn set(&self, key: &Key, device: &Device) -> Result<()> {
        self.write(&key.file(), device)
    }

    /// Deletes the record of a device; that there is none is success.
    pub fn forget(&self, key: &Key) -> Result<()> {
        self.delete(&key.file())
    }

    /// What is known of all devices; `None` in a new home.
    pub fn device_set(&self) -> Result<Option<DeviceSet>> {
        self.whole(DEVICE_SET)
    }

    /// Writes what is known of all devices.
    pub fn set_device_set(&self, set: &DeviceSet) -> Result<()> {
        self.write(DEVICE_SET, set)
    }

    /// The last transaction that was begun.
    pub fn transaction(&self) -> Result<Option<Transaction>> {
        self.whole(TRANSACTION)
    }

    /// Writes down a transaction that begins.
    pub fn begin(&self, transaction: &Transaction) -> Result<()> {
        self.write(TRANSACTION, transaction)
    }

    /// Deletes the record of a transaction that is complete. When it comes back after a cut of power, its number says so.
    pub fn done(&self) -> Result<()> {
        self.unlink(TRANSACTION).map(drop)
    }

    /// Deletes the record of a transaction that was taken back.
    pub fn taken_back(&self) -> Result<()> {
        self.delete(TRANSACTION)
    }

    fn whole<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let read = self.read(name)?.transpose();
        read.map_err(|why| Error::Other(format!("{}/{name}: {why}", self.path.display())))
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<Result<T, String>>> {
        let path = self.path.join(name);
        let bytes = match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| Error::io("read", &path, e))?,
        };
        Ok(Some(serde_json::from_slice(&bytes).map_err(|e| {
            let found = excerpt(&String::from_utf8_lossy(&bytes));
            format!("the record {found} cannot be read: {e}")
        })))
    }

    fn write(&self, name: &str, record: &impl Serialize) -> Result<()> {
        let json = serde_json::to_vec(record).map_err(|e| Error::Other(e.to_string()))?;
        write_atomically(self.dir.as_fd(), name, &json, 0o600)?;
        self.sync()
    }

    fn delete(&self, name: &str) -> Result<()> {
        match self.unlink(name)? {
            true => self.sync(),
            false => Ok(()),
        }
    }

    /// Whether there was such a file.
    fn unlink(&self, name: &str) -> Result<bool> {
        match unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(Error::io("remove", self.path.join(name), e)),
        }
    }

    /// The pool commits on its own; what it does next must not be on the disk before this.
    fn sync(&self) -> Result<()> {
        rustix::fs::fsync(&self.dir).map_err(|e| Error::io("sync", &self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(id: &str) -> Key {
        Key::Layer(LayerId::parse(id).unwrap())
    }

    #[test]
    fn files_and_devices_name_each_other() {
        for key in [
            Key::Base,
            layer("0123abc"),
            layer("base"),
            layer("deviceset-metadata"),
            layer("transaction-metadata"),
            layer(".hidden"),
            Key::Deleted(7),
        ] {
            assert_eq!(Key::of_file(&key.file()), Some(key));
        }
        assert_eq!(layer("base").file(), ".layer-base");
        for name in [DEVICE_SET, TRANSACTION, ".tmp-1-2", ".deleted-x"] {
            assert_eq!(Key::of_file(name), None, "{name}");
        }
    }

    #[test]
    fn records_are_those_of_moby() {
        let tmp = tempfile::tempdir().unwrap();
        let open = || {
            let dir = std::fs::File::open(tmp.path()).unwrap().into();
            Records::new(tmp.path().to_owned(), dir)
        };
        let records = open();
        let device = Device {
            device_id: 3,
            size: 10 << 30,
            transaction_id: 5,
            initialized: true,
            deleted: false,
        };
        records.set(&layer("abc"), &device).unwrap();
        let text = std::fs::read_to_string(tmp.path().join("abc")).unwrap();
        assert_eq!(
            text,
            r#"{"device_id":3,"size":10737418240,"transaction_id":5,"initialized":true,"deleted":false}"#
        );
        let set = r#"{"next_device_id":4,"BaseDeviceUUID":"u","BaseDeviceFilesystem":"xfs"}"#;
        std::fs::write(tmp.path().join(DEVICE_SET), set).unwrap();
        let found = open().device_set().unwrap().unwrap();
        assert_eq!((found.next_device_id, found.base_uuid.as_str()), (4, "u"));
        records.set_device_set(&found).unwrap();
        assert_eq!(
            std::fs::read_to_string(tmp.path().join(DEVICE_SET)).unwrap(),
            set
        );
        let begun = Transaction::new(6, &Key::Base, 9);
        records.begin(&begun).unwrap();
        assert_eq!(
            std::fs::read_to_string(tmp.path().join(TRANSACTION)).unwrap(),
            r#"{"open_transaction_id":6,"device_hash":"","device_id":9}"#
        );
        assert_eq!(
            records.transaction().unwrap().unwrap().key(),
            Some(Key::Base)
        );
    }

    #[test]
    fn what_is_damaged_is_told_and_what_was_being_written_is_deleted() {
        let tmp = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("half", "{\"device_id\":"),
            (".tmp-1-1", "x"),
            ("base", "{}"),
        ] {
            std::fs::write(tmp.path().join(name), text).unwrap();
        }
        let dir = std::fs::File::open(tmp.path()).unwrap().into();
        let records = Records::new(tmp.path().to_owned(), dir);
        let found = records.devices().unwrap();
        assert!(
            found[&layer("half")]
                .as_ref()
                .unwrap_err()
                .contains("device_id")
        );
        assert!(found[&Key::Base].is_err());
        assert!(!tmp.path().join(".tmp-1-1").exists());
        assert_eq!(records.device_set().unwrap(), None);
        std::fs::write(tmp.path().join(DEVICE_SET), "no").unwrap();
        assert!(
            records
                .device_set()
                .unwrap_err()
                .to_string()
                .contains(DEVICE_SET)
        );
    }
}
