//! The thin pool of a home: on sparse files of the home's, on two devices, or one that somebody else has made.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate, makedev, statvfs};
use rustix::io::Errno;

use super::options::Options;
use crate::graphdriver::{Error, Result};
use crate::sys;
use crate::sys::dm::{Control, Info, MAX_UUID, SECTOR, Table};

const TARGET: &str = "thin-pool";
/// The kernel tells in its log when fewer blocks are free.
const LOW_WATER: u64 = 32768;
/// No block is written with zeros before its first use: the filesystems never show what they did not write. A pool that is full says so at
/// once: nobody here makes it larger while a writer waits.
const FEATURES: &str = "2 skip_block_zeroing error_if_no_space";
/// Bytes in a block of the pool's own records.
pub(super) const RECORD_BLOCK: u64 = 4096;
/// The most blocks of them that the kernel keeps back for itself.
const KEPT_BACK: u64 = 4096;
/// The room that is taken for them beyond what they need now, in bytes.
const RESERVE: u64 = 2 << 20;
/// How long a device may take to lose its last user.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a pool is made of.
#[derive(Debug)]
enum Below {
    /// Sparse files behind loop devices.
    Files(Box<[LoopFile; 2]>),
    /// Devices by their paths: of the metadata, of the data.
    Devices([PathBuf; 2]),
    /// Somebody else makes it and takes it away.
    Given,
}

/// A sparse file.
#[derive(Debug)]
struct LoopFile {
    path: PathBuf,
    /// The least that it is to have, in bytes.
    size: u64,
}

/// The thin pool.
#[derive(Debug)]
pub(super) struct Pool {
    /// Its name.
    pub name: String,
    uuid: String,
    below: Below,
    block_sectors: u64,
    /// Where nodes and files lie.
    dir: PathBuf,
}

/// What a pool has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    /// The number of its last transaction.
    pub transaction_id: u64,
    /// Blocks of 4096 bytes in which it keeps its own records: used, and all.
    pub metadata: [u64; 2],
    /// Blocks of data: used, and all.
    pub data: [u64; 2],
    /// The block of the metadata that somebody has reserved to read all of it as it was.
    pub reserved: Option<u64>,
    /// Whether it takes changes.
    pub writable: bool,
}

impl Usage {
    /// What the kernel says; the error is why the pool cannot be used.
    fn parse(status: &str) -> Result<Self, String> {
        let broken = || format!("it says: {status}");
        let mut words = status.split_whitespace();
        let pair = |word: Option<&str>| -> Option<[u64; 2]> {
            let (used, all) = word?.split_once('/')?;
            Some([used.parse().ok()?, all.parse().ok()?])
        };
        let mut parse = || {
            Some(Self {
                transaction_id: words.next()?.parse().ok()?,
                metadata: pair(words.next())?,
                data: pair(words.next())?,
                // `-` when there is none.
                reserved: words.next()?.parse().ok(),
                // `ro` when its own records could not be written.
                writable: words.next()? != "ro",
            })
        };
        parse().ok_or_else(broken)
    }

    /// Refuses what would leave less than a part of the pool free.
    pub fn check(&self, percent: u64, pool: &str) -> Result<()> {
        if percent == 0 {
            return Ok(());
        }
        for ([used, all], what) in [(self.data, "data"), (self.metadata, "metadata")] {
            let (free, least) = (all.saturating_sub(used), (all * percent / 100).max(1));
            if free < least {
                return Err(Error::NoSpace(format!(
                    "the pool {pool} has {free} free blocks of {what}; {least} of {all} are wanted for a new layer (dm.min_free_space={percent}%)"
                )));
            }
        }
        Ok(())
    }
}

impl Pool {
    /// The pool of a home whose devices' names begin with `prefix`.
    ///
    /// # Errors
    /// A file cannot be made.
    pub fn new(home: &Path, prefix: &str, options: &Options) -> Result<Self> {
        let dir = home.join("devicemapper");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(|e| Error::io("make", &dir, e))?;
        let file = |name: &str, size| LoopFile {
            path: dir.join(name),
            size,
        };
        let below = match (
            &options.pool,
            &options.metadata_device,
            &options.data_device,
        ) {
            (Some(_), ..) => Below::Given,
            (None, Some(metadata), Some(data)) => {
                Below::Devices([metadata, data].map(PathBuf::from))
            }
            _ => Below::Files(Box::new([
                file("metadata", options.loop_metadata_size),
                file("data", options.loop_data_size),
            ])),
        };
        let name = options.pool.clone();
        let name = name.unwrap_or_else(|| format!("{prefix}-pool"));
        // Which home it is of, for whoever finds it when that is gone.
        let mut uuid = format!("{name}@{}", home.display());
        while uuid.len() > MAX_UUID {
            uuid.pop();
        }
        Ok(Self {
            name,
            uuid,
            below,
            block_sectors: options.block_size / SECTOR,
            dir,
        })
    }

    /// Where nodes are made that `/dev` lacks.
    pub fn nodes(&self) -> &Path {
        &self.dir
    }

    /// Whether what is not needed is given back to files.
    pub fn is_sparse(&self) -> bool {
        matches!(self.below, Below::Files(_))
    }

    /// Whether it was made for others to use.
    pub fn is_given(&self) -> bool {
        matches!(self.below, Below::Given)
    }

    /// The files or devices that it is made of: of the metadata, of the data; none of a given one.
    pub fn parts(&self) -> Option<[&Path; 2]> {
        match &self.below {
            Below::Files(files) => Some(files.each_ref().map(|f| f.path.as_path())),
            Below::Devices(devices) => Some(devices.each_ref().map(PathBuf::as_path)),
            Below::Given => None,
        }
    }

    /// Sees to it that the pool is there, and as large as it is to be. `stale` is called when one of its name is there that is made of
    /// other files, which are those of a home that is gone; it must remove the devices on it.
    ///
    /// # Errors
    /// [`Error::NotSupported`] when the kernel has no thin pools, [`Error::Prerequisites`] when the name is another device's.
    pub fn activate(&self, control: &Control, stale: impl FnOnce() -> Result<()>) -> Result<()> {
        let there = self.info(control)?;
        let table = there.map(|_| control.table(&self.name)).transpose();
        let table = table.map_err(self.failed("look at"))?.flatten();
        if let (Some(_), None) = (there, &table) {
            // Its maker was killed before it gave it a table.
            self.remove(control)?;
        }
        if let Some((info, table)) = there.zip(table) {
            if table.target != TARGET {
                let why = format!("{} is no thin pool but {}", self.name, table.target);
                return Err(Error::Prerequisites(why));
            }
            if info.suspended {
                control.resume(&self.name).map_err(self.failed("resume"))?;
            }
            if self.is_on_its_files(&table)? {
                return self.enlarge(control, &table);
            }
            stale()?;
            self.remove(control)?;
        }
        if self.is_given() {
            let why = format!("there is no pool {}", self.name);
            return Err(Error::Prerequisites(why));
        }
        self.make(control)
    }

    fn make(&self, control: &Control) -> Result<()> {
        // Held until the pool has them.
        let mut held = Vec::new();
        let devices = match &self.below {
            Below::Given => return Ok(()),
            Below::Devices(devices) => devices.clone(),
            Below::Files(files) => {
                for file in files.iter() {
                    file.make()?;
                    let attached = sys::loopdev::attach(&file.path, &self.dir)
                        .map_err(|e| Error::io("attach a loop device to", &file.path, e))?;
                    held.push(attached);
                }
                [held[0].node.clone(), held[1].node.clone()]
            }
        };
        let [metadata, data] = &devices;
        let sectors = device_sectors(data)?;
        let (metadata, data) = (metadata.display(), data.display());
        let parameters = format!(
            "{metadata} {data} {} {LOW_WATER} {FEATURES}",
            self.block_sectors
        );
        let table = Table {
            sectors,
            target: TARGET.to_owned(),
            parameters,
        };
        control
            .create(&self.name, &self.uuid, &table)
            .map(drop)
            .map_err(|e| match e {
                Errno::INVAL if !has_target(control) => Error::NotSupported(
                    "the kernel has no thin pools (CONFIG_DM_THIN_PROVISIONING)".to_owned(),
                ),
                e => self.failed("make the pool")(e),
            })
    }

    /// Whether the pool of this table is made of this home's files.
    fn is_on_its_files(&self, table: &Table) -> Result<bool> {
        let Below::Files(files) = &self.below else {
            return Ok(true);
        };
        let numbers = loop_numbers(table);
        let Some(numbers) = numbers else {
            return Ok(false);
        };
        for (number, file) in numbers.into_iter().zip(files.iter()) {
            match sys::loopdev::is_of(number, &file.path, &self.dir) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(e) => return Err(Error::io("look at a loop device of", &file.path, e)),
            }
        }
        Ok(true)
    }

    /// Makes files and a running pool larger, if they are to be.
    fn enlarge(&self, control: &Control, table: &Table) -> Result<()> {
        let (Below::Files(files), Some(numbers)) = (&self.below, loop_numbers(table)) else {
            return Ok(());
        };
        let mut grown = false;
        for (number, file) in numbers.into_iter().zip(files.iter()) {
            if file.make()? {
                sys::loopdev::follow_size(number, &file.path, &self.dir)
                    .map_err(|e| Error::io("enlarge the loop device of", &file.path, e))?;
                grown = true;
            }
        }
        if !grown {
            return Ok(());
        }
        let size = std::fs::metadata(&files[1].path).map(|m| m.len());
        let size = size.map_err(|e| Error::io("look at", &files[1].path, e))?;
        let larger = Table {
            sectors: size / SECTOR,
            ..table.clone()
        };
        control
            .reload(&self.name, &larger)
            .map_err(self.failed("enlarge"))
    }

    /// Sees to it that what the pool records of itself finds room whatever becomes of the disk: a pool that cannot write its records
    /// takes no more changes until it is repaired.
    ///
    /// # Errors
    /// There is no room.
    pub fn reserve(&self, usage: &Usage) -> Result<()> {
        let Below::Files(files) = &self.below else {
            return Ok(());
        };
        let [told, all] = usage.metadata;
        // What the kernel keeps back for itself counts as used (dm-thin-metadata.c, `set_metadata_reserve`).
        let used = told.saturating_sub((all / 10).min(KEPT_BACK));
        // What is changed is written elsewhere first; the first free blocks are taken.
        let bytes = (used * 2 * RECORD_BLOCK + RESERVE).min(all * RECORD_BLOCK);
        let path = &files[0].path;
        let failed = |e: io::Error| Error::io("take room for", path, e);
        let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
        // Blocks that the file shares with a copy are written elsewhere, for which there must be room, too.
        let keep = FallocateFlags::KEEP_SIZE;
        let taken = match fallocate(&file, keep | FallocateFlags::UNSHARE_RANGE, 0, bytes) {
            Err(Errno::OPNOTSUPP) => fallocate(&file, keep, 0, bytes),
            other => other,
        };
        match taken {
            // Some filesystems take no room in advance.
            Err(Errno::OPNOTSUPP) => Ok(()),
            other => other.map_err(|e| failed(e.into())),
        }
    }

    /// Whether the disk below the pool's files has no room for one more block.
    pub fn disk_is_full(&self) -> bool {
        let free = statvfs(&self.dir).map(|s| s.f_bavail * s.f_frsize);
        self.is_sparse() && free.is_ok_and(|free| free < self.block_sectors * SECTOR)
    }

    /// The device; `None` when it is not there.
    pub fn info(&self, control: &Control) -> Result<Option<Info>> {
        control.info(&self.name).map_err(self.failed("look at"))
    }

    /// What it has.
    ///
    /// # Errors
    /// It has failed.
    pub fn usage(&self, control: &Control) -> Result<Usage> {
        let status = control.status(&self.name).map_err(self.failed("ask"))?;
        Usage::parse(&status.parameters)
            .map_err(|why| Error::Other(format!("the pool {} has failed: {why}", self.name)))
    }

    /// How many bytes are in a block.
    pub fn block_size(&self, control: &Control) -> Result<u64> {
        let table = control.table(&self.name).map_err(self.failed("look at"))?;
        let sectors = table.and_then(|t| t.parameters.split_whitespace().nth(2)?.parse().ok());
        Ok(sectors.unwrap_or(self.block_sectors) * SECTOR)
    }

    /// Where its metadata lies.
    ///
    /// # Errors
    /// It is not there; no node of the device can be made.
    pub fn metadata_node(&self, control: &Control) -> Result<PathBuf> {
        let table = control.table(&self.name).map_err(self.failed("look at"))?;
        let number = table.as_ref().and_then(|table| {
            let (major, minor) = table
                .parameters
                .split_whitespace()
                .next()?
                .split_once(':')?;
            Some(makedev(major.parse().ok()?, minor.parse().ok()?))
        });
        let failed = |e| Error::io("find the metadata of", &self.name, e);
        let number = number.ok_or_else(|| failed(Errno::NXIO.into()))?;
        sys::fs::block_node_of(number, &self.dir).map_err(failed)
    }

    /// Tells it something.
    pub fn message(&self, control: &Control, text: &str) -> Result<(), Errno> {
        control.message(&self.name, text)
    }

    /// Takes it away, if it is ours. What goes with its last user is waited for.
    pub fn remove(&self, control: &Control) -> Result<()> {
        if self.is_given() {
            return Ok(());
        }
        remove_when_free(control, &self.name).map_err(self.failed("remove"))
    }

    /// An error about the pool.
    pub fn failed(&self, op: &'static str) -> impl Fn(Errno) -> Error {
        let name = self.name.clone();
        move |e| Error::io(op, format!("/dev/mapper/{name}"), e)
    }
}

/// Removes a device, if it is there, and waits for a while for its last user to go.
///
/// # Errors
/// `EBUSY` when that did not happen.
pub(super) fn remove_when_free(control: &Control, name: &str) -> Result<(), Errno> {
    let until = Instant::now() + PATIENCE;
    loop {
        match control.remove(name, false) {
            Ok(_) | Err(Errno::NXIO) => return Ok(()),
            Err(Errno::BUSY) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(e) => return Err(e),
        }
    }
}

impl LoopFile {
    /// Makes the file, or makes it larger; whether anything was to be done. It is never made smaller: what lies there is somebody's.
    fn make(&self) -> Result<bool> {
        let failed = |e| Error::io("make", &self.path, e);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.path)
            .map_err(failed)?;
        let is = file.metadata().map_err(failed)?.len();
        if is >= self.size {
            return Ok(false);
        }
        file.set_len(self.size).map_err(failed)?;
        Ok(true)
    }
}

/// Whether the kernel has thin pools, after it was asked for one.
fn has_target(control: &Control) -> bool {
    control
        .targets()
        .is_ok_and(|targets| targets.iter().any(|t| t == TARGET))
}

/// The numbers of the loop devices that a pool is made of; `None` when it is made of others.
fn loop_numbers(table: &Table) -> Option<[u32; 2]> {
    let mut words = table.parameters.split_whitespace();
    let mut number = || {
        words
            .next()?
            .strip_prefix(&format!("{}:", sys::loopdev::MAJOR))?
            .parse()
            .ok()
    };
    Some([number()?, number()?])
}

/// How large a block device is.
fn device_sectors(device: &Path) -> Result<u64> {
    use std::io::{Seek, SeekFrom};
    let size = File::open(device).and_then(|mut f| f.seek(SeekFrom::End(0)));
    Ok(size.map_err(|e| Error::io("look at", device, e))? / SECTOR)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(
        "1 141/524288 245/1638400 - rw discard_passdown error_if_no_space - 1024",
        None,
        true
    )]
    #[case(
        "1 141/524288 245/1638400 - out_of_data_space discard_passdown",
        None,
        true
    )]
    #[case(
        "1 141/524288 245/1638400 77 ro discard_passdown error_if_no_space needs_check",
        Some(77),
        false
    )]
    fn what_the_kernel_says_is_understood(
        #[case] status: &str,
        #[case] reserved: Option<u64>,
        #[case] writable: bool,
    ) {
        let usage = Usage::parse(status).unwrap();
        let (metadata, data) = ([141, 524_288], [245, 1_638_400]);
        assert_eq!(
            usage,
            Usage {
                transaction_id: 1,
                metadata,
                data,
                reserved,
                writable
            }
        );
    }

    #[rstest]
    #[case("Fail")]
    #[case("Error")]
    #[case("")]
    #[case("1 1/2 3 - rw")]
    fn a_pool_that_failed_is_told(#[case] status: &str) {
        assert!(Usage::parse(status).unwrap_err().contains(status));
    }

    #[test]
    fn a_pool_that_is_nearly_full_takes_no_layer() {
        let mut usage = Usage {
            transaction_id: 0,
            metadata: [0, 100],
            data: [90, 100],
            reserved: None,
            writable: true,
        };
        usage.check(10, "p").unwrap();
        usage.data = [91, 100];
        let e = usage.check(10, "p").unwrap_err();
        assert!(e.is_no_room() && e.to_string().contains("9 free blocks of data; 10 of 100"));
        usage.check(0, "p").unwrap();
        (usage.data, usage.metadata) = ([0, 5], [5, 5]);
        let e = usage.check(10, "p").unwrap_err().to_string();
        assert!(e.contains("0 free blocks of metadata; 1 of 5"), "{e}");
    }

    #[test]
    fn a_pool_on_loop_devices_is_told_from_others() {
        let table = |parameters: &str| Table {
            sectors: 8,
            target: TARGET.to_owned(),
            parameters: parameters.to_owned(),
        };
        assert_eq!(loop_numbers(&table("7:12 7:0 128 0")), Some([12, 0]));
        assert_eq!(loop_numbers(&table("7:12 253:0 128 0")), None);
    }

    #[test]
    fn a_file_grows_and_never_shrinks() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = LoopFile {
            path: dir.path().join("data"),
            size: 1 << 20,
        };
        assert!(file.make().unwrap() && !file.make().unwrap());
        file.size = 1 << 10;
        assert!(!file.make().unwrap());
        assert_eq!(std::fs::metadata(&file.path).unwrap().len(), 1 << 20);
    }
}
