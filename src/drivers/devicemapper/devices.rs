//! The devices of a pool, and the transactions in which they come and go.
//!
//! A transaction is written down, the pool is told, the device's record is written or deleted, and the pool's number is raised. A process
//! that dies in between leaves a number on record that the pool does not have yet; the next start takes the device away then.

mod active;
mod base;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use self::active::unless_gone;
use super::filesystem::Filesystem;
use super::options::Options;
use super::pool::Pool;
use super::records::{Device, DeviceSet, Devices, Key, Records, Transaction};
use super::touched::release_left;
use crate::graphdriver::{Error, Result};
use crate::sys::dm::{self, Control, MAX_NAME, Removed};

/// Device numbers have 24 bits.
const NUMBERS: u32 = 1 << 24;
/// How long a device that is just going, or whose filesystem is, may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the last user of a device that is deleted may take, before the device is left to it, where it can be.
const A_MOMENT: Duration = Duration::from_secs(1);
/// How often it is looked at.
const PAUSE: Duration = Duration::from_millis(2);

/// The pool of a home with all that is in it.
#[derive(Debug)]
pub(super) struct Set {
    pub control: Control,
    pub pool: Pool,
    pub options: Options,
    records: Records,
    /// Names of devices begin so.
    prefix: String,
    devices: Devices,
    set: DeviceSet,
    /// The numbers that are taken.
    numbers: BTreeSet<u32>,
    /// The pool's number.
    transaction_id: u64,
    /// Whether the pool was seen to be there, and not taken away since.
    up: bool,
}

impl Set {
    /// Takes up what is there, and makes what is not.
    ///
    /// # Errors
    /// The pool is not to be had, is another home's, or has failed; a record cannot be read; no filesystem can be made.
    pub fn open(
        control: Control,
        pool: Pool,
        records: Records,
        prefix: String,
        options: Options,
    ) -> Result<Self> {
        let mut set = Self {
            control,
            pool,
            options,
            records,
            prefix,
            devices: Devices::new(),
            set: DeviceSet::default(),
            numbers: BTreeSet::new(),
            transaction_id: 0,
            up: false,
        };
        set.up()?;
        set.take_up().inspect_err(|_| {
            // The first failure is the one to tell.
            let _ = set.down();
        })?;
        Ok(set)
    }

    fn take_up(&mut self) -> Result<()> {
        release_left(&self.pool, &self.control);
        let usage = self.pool.usage(&self.control)?;
        // A disk that is full, or read-only, may still be read.
        let _ = self.pool.reserve(&usage);
        self.transaction_id = usage.transaction_id;
        let known = self.records.device_set()?;
        self.devices = self.records.devices()?;
        if known.is_none() && self.devices.is_empty() && self.pool.is_given() {
            let [used, _] = usage.data;
            if used > 0 || usage.transaction_id > 0 {
                return Err(Error::Prerequisites(format!(
                    "the pool {} holds {used} blocks and {} transactions of somebody else's; a new home needs an empty one",
                    self.pool.name, usage.transaction_id
                )));
            }
        }
        self.set = known.unwrap_or_default();
        let numbers = self.devices.values().flatten().map(|d| d.device_id);
        self.numbers = numbers.collect();
        self.resume_all()?;
        self.roll_back()?;
        self.sweep();
        self.base()
    }

    /// Sees to it that the pool is there.
    pub fn up(&mut self) -> Result<()> {
        if self.up {
            return Ok(());
        }
        let Self {
            control,
            pool,
            prefix,
            ..
        } = self;
        pool.activate(control, || remove_all(control, prefix, &pool.name))?;
        self.up = true;
        Ok(())
    }

    /// Takes the pool away, with the devices that nobody uses.
    pub fn down(&mut self) -> Result<()> {
        if !self.up {
            return Ok(());
        }
        let records = match self.records.set_device_set(&self.set) {
            // It only says where to look for a free number first.
            Err(e) if e.is_no_room() => Ok(()),
            other => other,
        };
        let keys: Vec<(Key, Device)> = self.known().map(|(k, d)| (k.clone(), *d)).collect();
        for (key, device) in keys {
            self.deactivate(&key, &device)?;
        }
        self.pool.remove(&self.control)?;
        self.up = false;
        records
    }

    /// The devices whose records can be read.
    fn known(&self) -> impl Iterator<Item = (&Key, &Device)> {
        let devices = self.devices.iter();
        devices.filter_map(|(key, device)| Some((key, device.as_ref().ok()?)))
    }

    /// Whether there is a record of this device, readable or not.
    pub fn has(&self, key: &Key) -> bool {
        self.devices.contains_key(key)
    }

    /// A layer's device.
    ///
    /// # Errors
    /// [`Error::UnknownLayer`], [`Error::Damaged`].
    pub fn device(&self, key: &Key) -> Result<Device> {
        let id = key.to_string();
        match self.devices.get(key) {
            Some(Ok(device)) if !device.deleted => Ok(*device),
            Some(Ok(_)) | None => Err(Error::UnknownLayer(id)),
            Some(Err(why)) => Err(Error::Damaged {
                id,
                why: why.clone(),
            }),
        }
    }

    /// The filesystem of all devices.
    ///
    /// # Errors
    /// The record names none that is known.
    pub fn filesystem(&self) -> Result<Filesystem> {
        let name = &self.set.base_filesystem;
        Filesystem::named(name)
            .ok_or_else(|| Error::Other(format!("the base device holds {name:?}, not ext4 or xfs")))
    }

    /// How many removed layers are still in use.
    pub fn deleted(&self) -> usize {
        let deleted = self.known().filter(|(_, device)| device.deleted);
        deleted.count()
    }

    /// The kernel's name of a device: moby's, where that fits and is nobody else's.
    pub fn name(&self, key: &Key, device: &Device) -> String {
        let number = device.device_id;
        let name = format!("{}-{key}", self.prefix);
        let taken = matches!(key, Key::Layer(id) if id.as_str() == "pool" || key.to_string().starts_with('.'));
        if taken || name.len() > MAX_NAME {
            return format!("{}-.thin-{number}", self.prefix);
        }
        name
    }

    /// Makes a device that shows what `from` holds, of at least its size.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when the pool is nearly full, [`Error::InvalidOption`] for a size that is too small.
    pub fn snapshot(&mut self, key: &Key, from: &Key, size: Option<u64>) -> Result<()> {
        let origin = self.device(from)?;
        let size = size.unwrap_or(origin.size);
        if size < origin.size {
            return Err(Error::InvalidOption {
                key: "size".to_owned(),
                why: format!(
                    "{size} bytes are less than the {} of the layer below",
                    origin.size
                ),
            });
        }
        let usage = self.pool.usage(&self.control)?;
        if !usage.writable {
            let why = "its own records could not be written, and it takes no changes";
            return Err(Error::Other(format!("the pool {}: {why}", self.pool.name)));
        }
        usage.check(self.options.min_free_percent, &self.pool.name)?;
        self.pool.reserve(&usage)?;
        self.make(key, Some((from, origin)), size)
    }

    /// Makes a device in a transaction.
    fn make(&mut self, key: &Key, from: Option<(&Key, Device)>, size: u64) -> Result<()> {
        let tried = self.begin_and_tell(key, from);
        let device_id = tried.inspect_err(|_| {
            // What is begun and not done must not be taken back at the next start.
            let _ = self.records.taken_back();
        })?;
        let device = Device {
            device_id,
            size,
            transaction_id: self.transaction_id + 1,
            initialized: false,
            deleted: false,
        };
        let recorded = self.records.set(key, &device).and_then(|()| self.close());
        if let Err(e) = recorded {
            let _ = self.tell(&format!("delete {device_id}"));
            let _ = self.records.forget(key);
            let _ = self.records.taken_back();
            return Err(e);
        }
        self.numbers.insert(device_id);
        self.devices.insert(key.clone(), Ok(device));
        Ok(())
    }

    /// Begins a transaction with the first number that the pool has not, and returns it.
    fn begin_and_tell(&mut self, key: &Key, from: Option<(&Key, Device)>) -> Result<u32> {
        loop {
            let number = self.next_number()?;
            self.begin(key, number)?;
            let message = match &from {
                None => format!("create_thin {number}"),
                Some((_, origin)) => format!("create_snap {number} {}", origin.device_id),
            };
            let told = match &from {
                Some((from, origin)) => {
                    let name = self.name(from, origin);
                    self.while_suspended(&name, || self.tell(&message))?
                }
                None => self.tell(&message),
            };
            match told {
                Ok(()) => return Ok(number),
                // The pool has a device that no record tells of.
                Err(Errno::EXIST) => {
                    self.numbers.insert(number);
                }
                Err(e) => return Err(self.pool.failed("make a device in")(e)),
            }
        }
    }

    fn next_number(&mut self) -> Result<u32> {
        for _ in 0..NUMBERS {
            self.set.next_device_id = (self.set.next_device_id + 1) % NUMBERS;
            if !self.numbers.contains(&self.set.next_device_id) {
                return Ok(self.set.next_device_id);
            }
        }
        let why = format!("all {NUMBERS} device numbers are taken");
        Err(Error::NoSpace(why))
    }

    fn begin(&self, key: &Key, number: u32) -> Result<()> {
        let transaction = Transaction::new(self.transaction_id + 1, key, number);
        self.records.begin(&transaction)
    }

    fn tell(&self, message: &str) -> Result<(), Errno> {
        self.pool.message(&self.control, message)
    }

    fn close(&mut self) -> Result<()> {
        let (old, new) = (self.transaction_id, self.transaction_id + 1);
        self.tell(&format!("set_transaction_id {old} {new}"))
            .map_err(self.pool.failed("raise the transaction of"))?;
        self.transaction_id = new;
        self.records.done()
    }

    /// Deletes a device, or, when it is in use and that is allowed, has it go later.
    ///
    /// # Errors
    /// [`Error::InUse`].
    pub fn delete(&mut self, key: &Key) -> Result<()> {
        self.delete_within(key, A_MOMENT)
    }

    fn delete_within(&mut self, key: &Key, moment: Duration) -> Result<()> {
        let device = match self.devices.get(key) {
            None => return Ok(()),
            Some(Ok(device)) => *device,
            Some(Err(_)) => {
                // Whatever it was, nobody can use it any more.
                self.records.forget(key)?;
                self.devices.remove(key);
                return Ok(());
            }
        };
        match self.is_idle(key, &device, moment)? {
            true => self.delete_now(key, device, moment),
            false => self.delete_later(key, device),
        }
    }

    /// Makes a device unusable; false when it stays in use, and that is allowed.
    fn is_idle(&self, key: &Key, device: &Device, moment: Duration) -> Result<bool> {
        if !self.options.deferred_deletion {
            return self.remove_now(&self.name(key, device), key).map(|_| true);
        }
        let until = Instant::now() + moment;
        loop {
            if self.deactivate(key, device)? == Removed::Gone {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            // The kernel may be just letting go of it, or a process that was forked just now.
            std::thread::sleep(PAUSE);
        }
    }

    /// Gives the name free; the device goes with its last user.
    fn delete_later(&mut self, key: &Key, device: Device) -> Result<()> {
        if matches!(key, Key::Deleted(_)) || !self.options.deferred_deletion {
            return Err(in_use(key));
        }
        let later = Key::Deleted(device.device_id);
        let device = Device {
            deleted: true,
            ..device
        };
        self.records.set(&later, &device)?;
        self.records.forget(key)?;
        let (from, to) = (self.name(key, &device), self.name(&later, &device));
        self.devices.remove(key);
        self.devices.insert(later, Ok(device));
        unless_gone(self.control.rename(&from, &to))
            .map_err(|e| Error::io("rename", format!("/dev/mapper/{from}"), e))
    }

    /// Deletes a device that nobody uses. Once it is begun the device is of no use any more.
    fn delete_now(&mut self, key: &Key, device: Device, moment: Duration) -> Result<()> {
        let number = device.device_id;
        match self.begin(key, number) {
            // To make room there must be a way without any: killed in between, it leaves a device that no record tells of.
            Err(e) if e.is_no_room() => self.records.forget(key)?,
            begun => begun?,
        }
        if self.wants_discard() {
            self.discard(key, &device);
        }
        let until = Instant::now() + moment;
        loop {
            match self.tell(&format!("delete {number}")) {
                Ok(()) | Err(Errno::NODATA) => break,
                Err(Errno::BUSY) if Instant::now() < until => {
                    self.is_idle(key, &device, moment)?;
                    std::thread::sleep(PAUSE);
                }
                Err(Errno::BUSY) => {
                    self.records.taken_back()?;
                    return self.delete_later(key, device);
                }
                Err(e) => return Err(self.pool.failed("delete a device in")(e)),
            }
        }
        self.records.forget(key)?;
        self.close()?;
        self.numbers.remove(&number);
        self.devices.remove(key);
        Ok(())
    }

    fn wants_discard(&self) -> bool {
        let asked = self.options.discard;
        asked.unwrap_or_else(|| self.pool.is_sparse())
    }

    /// Gives the blocks that a device has for itself back to what is below the pool. What fails here only keeps room taken there.
    fn discard(&mut self, key: &Key, device: &Device) {
        let active = self.control.info(&self.name(key, device));
        if matches!(active, Ok(Some(info)) if info.open > 0) {
            return;
        }
        let Ok(info) = self.activate(key, device) else {
            return;
        };
        let node = dm::node(&info, self.pool.nodes());
        if let Ok(file) = node.and_then(|node| std::fs::OpenOptions::new().write(true).open(node)) {
            let _ = dm::discard(&file, device.size);
        }
        let _ = self.is_idle(key, device, A_MOMENT);
    }

    /// Takes back what a process had begun when it was killed.
    fn roll_back(&mut self) -> Result<()> {
        let Some(begun) = self.records.transaction()? else {
            return Ok(());
        };
        if begun.open_transaction_id <= self.transaction_id {
            // It is complete; a disk that is read-only keeps the record.
            let _ = self.records.done();
            return Ok(());
        }
        let number = begun.device_id;
        if let Some(key) = begun.key() {
            if let Some(Ok(device)) = self.devices.get(&key)
                && device.device_id == number
            {
                let device = *device;
                self.deactivate(&key, &device)?;
            }
            let of_it =
                |d: &Result<Device, String>| d.as_ref().is_ok_and(|d| d.device_id == number);
            if self.devices.get(&key).is_some_and(of_it) {
                self.devices.remove(&key);
                self.records.forget(&key)?;
            }
        }
        // What cannot be deleted keeps its number.
        let _ = self.tell(&format!("delete {number}"));
        self.numbers.remove(&number);
        self.records.taken_back()
    }

    /// Deletes layers that were removed while they were in use, and are not any more.
    pub fn sweep(&mut self) {
        let deleted = self.known().filter(|(_, device)| device.deleted);
        let keys: Vec<Key> = deleted.map(|(key, _)| key.clone()).collect();
        for key in keys {
            // In use still, or to be tried again at the next occasion.
            let _ = self.delete_within(&key, Duration::ZERO);
        }
    }

    /// Writes down another size of a device.
    pub fn set_size(&mut self, key: &Key, size: u64) -> Result<()> {
        let device = Device {
            size,
            ..self.device(key)?
        };
        self.records.set(key, &device)?;
        self.devices.insert(key.clone(), Ok(device));
        Ok(())
    }
}

fn in_use(key: &Key) -> Error {
    Error::InUse {
        id: key.to_string(),
        why: "its device is mounted or open".to_owned(),
    }
}

/// Removes the devices that hold on to a pool whose home is gone.
fn remove_all(control: &Control, prefix: &str, pool: &str) -> Result<()> {
    let failed = |name: &str| {
        let path = format!("/dev/mapper/{name}");
        move |e: Errno| Error::io("remove", path.clone(), e)
    };
    for name in control.devices().map_err(failed("control"))? {
        let ours = name
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with('-'));
        if !ours || name == pool {
            continue;
        }
        unless_gone(control.remove(&name, false)).map_err(failed(&name))?;
    }
    Ok(())
}
