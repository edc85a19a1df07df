//! device-mapper by its ioctls (linux/dm-ioctl.h): no libdevmapper, no dmsetup, no udev.

#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use nix::libc;
use rustix::fs::{CWD, FileType, Mode, major, makedev, minor, mknodat};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Updater, ioctl, opcode};

/// The longest name of a device, in bytes.
pub const MAX_NAME: usize = NAME - 1;
/// The longest uuid of a device, in bytes.
pub const MAX_UUID: usize = UUID - 1;
/// Bytes in a sector, the unit of tables.
pub const SECTOR: u64 = 512;

const NAME: usize = 128;
const UUID: usize = 129;
/// The control device, and its number of linux/miscdevice.h.
const CONTROL: &str = "/dev/mapper/control";
const CONTROL_NUMBER: (u32, u32) = (10, 236);
/// Room for what the kernel answers: a status, a table. Lists may need more.
const ROOM: usize = 4096;
const MOST_ROOM: usize = 16 << 20;

/// Commands, by their place in the enumeration of linux/dm-ioctl.h.
const VERSION: u8 = 0;
const LIST_DEVICES: u8 = 2;
const DEV_CREATE: u8 = 3;
const DEV_REMOVE: u8 = 4;
const DEV_RENAME: u8 = 5;
const DEV_SUSPEND: u8 = 6;
const DEV_STATUS: u8 = 7;
const TABLE_LOAD: u8 = 9;
const TABLE_STATUS: u8 = 12;
const LIST_VERSIONS: u8 = 13;
const TARGET_MSG: u8 = 14;

const SUSPEND_FLAG: u32 = 1 << 1;
const STATUS_TABLE_FLAG: u32 = 1 << 4;
const BUFFER_FULL_FLAG: u32 = 1 << 8;
const NOFLUSH_FLAG: u32 = 1 << 11;
const DEFERRED_REMOVE: u32 = 1 << 17;

/// `BLKDISCARD` of linux/fs.h.
const DISCARD: Opcode = opcode::none(0x12, 119);

/// `struct dm_ioctl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; NAME],
    uuid: [u8; UUID],
    data: [u8; 7],
}

const HEADER: usize = size_of::<Header>();

/// `struct dm_target_spec`, after which the parameters come as text.
const TARGET_SPEC: usize = 40;
const TARGET_TYPE: usize = 16;

/// One target over the whole of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// How many sectors of 512 bytes it has.
    pub sectors: u64,
    /// The target's type, such as `thin-pool`.
    pub target: String,
    /// Its parameters.
    pub parameters: String,
}

/// A device as the kernel describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its major and minor number.
    pub number: (u32, u32),
    /// How often it is open; a mount counts.
    pub open: u32,
    /// Whether all that is written to it waits.
    pub suspended: bool,
    /// Whether it goes with its last user.
    pub goes: bool,
}

/// What became of a device that was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It is gone.
    Gone,
    /// It is in use, and goes with its last user.
    Later,
}

/// A buffer for one call: the header, and what follows it.
struct Call {
    number: u8,
    // Of words, for the alignment of the header.
    words: Vec<u64>,
}

// SAFETY: each DM_* command is _IOWR(0xfd, number, struct dm_ioctl), and reads and writes as many bytes as `data_size` says, which
// `Call::new` sets to the length of the buffer.
unsafe impl Ioctl for &mut Call {
    type Output = ();
    const IS_MUTATING: bool = true;
    fn opcode(&self) -> Opcode {
        opcode::read_write::<Header>(0xfd, self.number)
    }
    fn as_ptr(&mut self) -> *mut libc::c_void {
        self.words.as_mut_ptr().cast()
    }
    unsafe fn output_from_ptr(
        _: IoctlOutput,
        _: *mut libc::c_void,
    ) -> rustix::io::Result<Self::Output> {
        Ok(())
    }
}

impl Call {
    fn new(number: u8, name: &str, flags: u32, data: &[u8], room: usize) -> Result<Self, Errno> {
        let len = HEADER + data.len().max(room);
        let mut call = Self {
            number,
            words: vec![0; len.div_ceil(8)],
        };
        let size = call.words.len() * 8;
        let mut header = Header {
            version: [4, 0, 0],
            data_size: u32::try_from(size).map_err(|_| Errno::TOOBIG)?,
            data_start: HEADER as u32,
            target_count: 0,
            open_count: 0,
            flags,
            event_nr: 0,
            padding: 0,
            dev: 0,
            name: [0; NAME],
            uuid: [0; UUID],
            data: [0; 7],
        };
        text_into(&mut header.name, name)?;
        *call.header_mut() = header;
        call.bytes_mut()[HEADER..HEADER + data.len()].copy_from_slice(data);
        Ok(call)
    }

    fn header(&self) -> &Header {
        // SAFETY: the buffer holds a header at its start, is aligned for it, and any bytes are one.
        unsafe { &*self.words.as_ptr().cast() }
    }

    fn header_mut(&mut self) -> &mut Header {
        // SAFETY: as above.
        unsafe { &mut *self.words.as_mut_ptr().cast() }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: words are bytes.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.words.len() * 8) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.words.len() * 8;
        // SAFETY: words are bytes, and any bytes are words.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), len) }
    }

    /// What the kernel answered, after the header.
    fn answer(&self) -> &[u8] {
        let header = self.header();
        let end = (header.data_size as usize).min(self.words.len() * 8);
        let range = header.data_start as usize..end;
        self.bytes().get(range).unwrap_or_default()
    }

    fn info(&self) -> Info {
        let header = self.header();
        Info {
            number: (major(header.dev), minor(header.dev)),
            open: u32::try_from(header.open_count).unwrap_or(0),
            suspended: header.flags & SUSPEND_FLAG != 0,
            goes: header.flags & DEFERRED_REMOVE != 0,
        }
    }
}

/// Text in a field that ends with NUL.
fn text_into(field: &mut [u8], text: &str) -> Result<(), Errno> {
    if text.len() >= field.len() {
        return Err(Errno::NAMETOOLONG);
    }
    field[..text.len()].copy_from_slice(text.as_bytes());
    Ok(())
}

/// The text up to a NUL.
fn text_of(field: &[u8]) -> String {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn wide_number(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 8)?;
    Some(u64::from_ne_bytes(bytes.try_into().ok()?))
}

/// Whether the kernel has device-mapper, now; what is a module may not be loaded.
pub fn is_there() -> bool {
    let known = fs::read_to_string("/proc/misc").unwrap_or_default();
    known.lines().any(|line| line.ends_with(" device-mapper"))
}

/// The control device, open.
#[derive(Debug)]
pub struct Control {
    file: File,
}

impl Control {
    /// Opens the control device, which has the kernel load its module. Where `/dev` has no node for it, one is made in `nodes` as long
    /// as it takes.
    ///
    /// # Errors
    /// `NotFound` when the kernel has no device-mapper, `PermissionDenied` for anybody but the machine's root.
    pub fn open(nodes: &Path) -> io::Result<Self> {
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
        let file = match open(Path::new(CONTROL)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let node = nodes.join(format!(".dm-control-{}", std::process::id()));
                let (kind, mode) = (FileType::CharacterDevice, Mode::from_raw_mode(0o600));
                let (major, minor) = CONTROL_NUMBER;
                mknodat(CWD, &node, kind, mode, makedev(major, minor))?;
                let opened = open(&node);
                fs::remove_file(&node)?;
                opened.map_err(|e| match Errno::from_io_error(&e) {
                    Some(Errno::NODEV | Errno::NXIO) => io::ErrorKind::NotFound.into(),
                    _ => e,
                })
            }
            other => other,
        };
        let control = Self { file: file? };
        control.version()?;
        Ok(control)
    }

    fn call(&self, call: &mut Call) -> Result<(), Errno> {
        // SAFETY: see `Ioctl for &mut Call`.
        unsafe { ioctl(&self.file, call) }
    }

    fn simple(&self, number: u8, name: &str, flags: u32, data: &[u8]) -> Result<Call, Errno> {
        let mut call = Call::new(number, name, flags, data, 0)?;
        self.call(&mut call)?;
        Ok(call)
    }

    /// Calls until what the kernel answers fits.
    fn answered(&self, number: u8, name: &str, flags: u32) -> Result<Call, Errno> {
        let mut room = ROOM;
        loop {
            let mut call = Call::new(number, name, flags, &[], room)?;
            self.call(&mut call)?;
            if call.header().flags & BUFFER_FULL_FLAG == 0 {
                return Ok(call);
            }
            room *= 4;
            if room > MOST_ROOM {
                return Err(Errno::TOOBIG);
            }
        }
    }

    /// The version of the interface: major, minor, patch level.
    ///
    /// # Errors
    /// The errno of the call.
    pub fn version(&self) -> Result<[u32; 3], Errno> {
        Ok(self.simple(VERSION, "", 0, &[])?.header().version)
    }

    /// Makes a device with a table and brings it to life; what fails leaves none.
    ///
    /// # Errors
    /// `EBUSY` when the name or the uuid is taken, `EINVAL` for a table that the target refuses, or a target that the kernel does not have.
    pub fn create(&self, name: &str, uuid: &str, table: &Table) -> Result<Info, Errno> {
        let mut call = Call::new(DEV_CREATE, name, 0, &[], 0)?;
        text_into(&mut call.header_mut().uuid, uuid)?;
        self.call(&mut call)?;
        self.load(name, table)
            .and_then(|()| self.resume(name))
            .inspect_err(|_| {
                // The first failure is the one to tell.
                let _ = self.remove(name, false);
            })
    }

    /// Gives a device another table: what is written to it waits meanwhile.
    ///
    /// # Errors
    /// `EINVAL` for a table that the target refuses; the old one stays.
    pub fn reload(&self, name: &str, table: &Table) -> Result<(), Errno> {
        self.load(name, table)?;
        self.simple(DEV_SUSPEND, name, SUSPEND_FLAG | NOFLUSH_FLAG, &[])?;
        self.resume(name).map(drop)
    }

    fn load(&self, name: &str, table: &Table) -> Result<(), Errno> {
        let text = table.parameters.as_bytes();
        // The parameters end with NUL, and what follows is aligned.
        let len = (TARGET_SPEC + text.len() + 1).next_multiple_of(8);
        let mut data = vec![0; len];
        data[8..16].copy_from_slice(&table.sectors.to_ne_bytes());
        let next = u32::try_from(len).map_err(|_| Errno::TOOBIG)?;
        data[20..24].copy_from_slice(&next.to_ne_bytes());
        text_into(&mut data[24..24 + TARGET_TYPE], &table.target)?;
        data[TARGET_SPEC..TARGET_SPEC + text.len()].copy_from_slice(text);
        let mut call = Call::new(TABLE_LOAD, name, 0, &data, 0)?;
        call.header_mut().target_count = 1;
        self.call(&mut call)
    }

    /// Removes a device. One that is in use stays, and goes with its last user if `deferred`.
    ///
    /// # Errors
    /// `EBUSY` when it is in use, `ENXIO` when there is none.
    pub fn remove(&self, name: &str, deferred: bool) -> Result<Removed, Errno> {
        let flags = if deferred { DEFERRED_REMOVE } else { 0 };
        let call = self.simple(DEV_REMOVE, name, flags, &[])?;
        Ok(if call.info().goes {
            Removed::Later
        } else {
            Removed::Gone
        })
    }

    /// Makes a device stay that was to go with its last user.
    ///
    /// # Errors
    /// `EBUSY` when it is going just now, `ENXIO` when it is gone.
    pub fn keep(&self, name: &str) -> Result<(), Errno> {
        self.message(name, "@cancel_deferred_remove")
    }

    /// Gives a device another name.
    ///
    /// # Errors
    /// `EBUSY` when the name is taken, `ENXIO` when there is no such device.
    pub fn rename(&self, name: &str, to: &str) -> Result<(), Errno> {
        let mut data = to.as_bytes().to_vec();
        data.push(0);
        self.simple(DEV_RENAME, name, 0, &data).map(drop)
    }

    /// Has all that was written to a device, and to the filesystem that is mounted from it, reach it; what is written from then on waits.
    ///
    /// # Errors
    /// `ENXIO` when there is no such device.
    pub fn suspend(&self, name: &str) -> Result<(), Errno> {
        self.simple(DEV_SUSPEND, name, SUSPEND_FLAG, &[]).map(drop)
    }

    /// Lets a device go on, with the table that was loaded last.
    ///
    /// # Errors
    /// `ENXIO` when there is no such device; what its target says against the table.
    pub fn resume(&self, name: &str) -> Result<Info, Errno> {
        Ok(self.simple(DEV_SUSPEND, name, 0, &[])?.info())
    }

    /// A device; `None` when there is none of this name.
    ///
    /// # Errors
    /// The errno of the call.
    pub fn info(&self, name: &str) -> Result<Option<Info>, Errno> {
        match self.simple(DEV_STATUS, name, 0, &[]) {
            Ok(call) => Ok(Some(call.info())),
            Err(Errno::NXIO) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// What a device's target says of itself.
    ///
    /// # Errors
    /// `ENXIO` when there is no such device, `EINVAL` when it has no table.
    pub fn status(&self, name: &str) -> Result<Table, Errno> {
        self.target(name, 0)
    }

    /// The table of a device; `None` when it was never brought to life.
    ///
    /// # Errors
    /// `ENXIO` when there is no such device.
    pub fn table(&self, name: &str) -> Result<Option<Table>, Errno> {
        match self.target(name, STATUS_TABLE_FLAG) {
            Ok(table) => Ok(Some(table)),
            Err(Errno::INVAL) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The uuid that a device was made with; empty when it has none.
    ///
    /// # Errors
    /// `ENXIO` when there is no such device.
    pub fn uuid(&self, name: &str) -> Result<String, Errno> {
        let call = self.simple(DEV_STATUS, name, 0, &[])?;
        Ok(text_of(&call.header().uuid))
    }

    fn target(&self, name: &str, flags: u32) -> Result<Table, Errno> {
        let call = self.answered(TABLE_STATUS, name, flags)?;
        if call.header().target_count == 0 {
            return Err(Errno::INVAL);
        }
        let answer = call.answer();
        let table = || {
            Some(Table {
                sectors: wide_number(answer, 8)?,
                target: text_of(answer.get(24..24 + TARGET_TYPE)?),
                parameters: text_of(answer.get(TARGET_SPEC..)?).trim().to_owned(),
            })
        };
        table().ok_or(Errno::INVAL)
    }

    /// Sends a message to a device's target.
    ///
    /// # Errors
    /// What the target says; `ENXIO` when there is no such device.
    pub fn message(&self, name: &str, text: &str) -> Result<(), Errno> {
        // struct dm_target_msg: the sector, and the text.
        let mut data = 0u64.to_ne_bytes().to_vec();
        data.extend_from_slice(text.as_bytes());
        data.push(0);
        self.simple(TARGET_MSG, name, 0, &data).map(drop)
    }

    /// The names of all devices.
    ///
    /// # Errors
    /// The errno of the call.
    pub fn devices(&self) -> Result<Vec<String>, Errno> {
        let call = self.answered(LIST_DEVICES, "", 0)?;
        // struct dm_name_list: the number, which is 0 when there is no device, how far the next one is, the name.
        let there = |at| wide_number(call.answer(), at).is_some_and(|dev| dev != 0);
        Ok(list(call.answer(), 8)
            .filter_map(|(at, name)| there(at).then_some(name))
            .collect())
    }

    /// The types of targets that the kernel has, now.
    ///
    /// # Errors
    /// The errno of the call.
    pub fn targets(&self) -> Result<Vec<String>, Errno> {
        let call = self.answered(LIST_VERSIONS, "", 0)?;
        // struct dm_target_versions: how far the next one is, three numbers, the name.
        let names = list(call.answer(), 0)
            .map(|(at, _)| text_of(call.answer().get(at + 16..).unwrap_or_default()));
        Ok(names.filter(|name| !name.is_empty()).collect())
    }
}

/// The places in a list of the kernel's, and the text after the number that says, `next` bytes from each, how far the next one is.
fn list(answer: &[u8], next: usize) -> impl Iterator<Item = (usize, String)> {
    let step = move |at: &usize| match number(answer, at + next) {
        None | Some(0) => None,
        Some(offset) => Some(at + offset as usize),
    };
    let first = (!answer.is_empty()).then_some(0);
    std::iter::successors(first, step)
        .map(move |at| (at, text_of(answer.get(at + next + 4..).unwrap_or_default())))
}

/// The node of a device: the kernel's own in `/dev`, or, where that has none (a container's), one made in `nodes`.
///
/// # Errors
/// There is none, and none can be made.
pub fn node(info: &Info, nodes: &Path) -> io::Result<PathBuf> {
    let (major, minor) = info.number;
    let name = format!("dm-{minor}");
    super::fs::block_node(&Path::new("/dev").join(&name), makedev(major, minor), nodes)
}

/// Tells a block device that nothing on it is needed any more.
///
/// # Errors
/// `EOPNOTSUPP` when it has no use for that.
pub fn discard(device: &File, bytes: u64) -> Result<(), Errno> {
    let mut range = [0, bytes];
    // SAFETY: BLKDISCARD reads two u64: where it starts and how long it is.
    unsafe { ioctl(device, Updater::<DISCARD, [u64; 2]>::new(&mut range)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_the_size_of_the_kernels() {
        assert_eq!(HEADER, 312);
        // _IOWR(0xfd, 9, struct dm_ioctl) as strace shows it.
        assert_eq!(opcode::read_write::<Header>(0xfd, TABLE_LOAD), 0xc138_fd09);
        assert_eq!(DISCARD, 0x1277);
    }

    #[test]
    fn names_that_are_too_long_are_refused() {
        let long = "x".repeat(MAX_NAME);
        let call = Call::new(VERSION, &long, 0, b"data", 0).unwrap();
        assert_eq!(text_of(&call.header().name), long);
        assert_eq!(&call.bytes()[HEADER..HEADER + 4], b"data");
        assert_eq!(call.header().data_size as usize, call.bytes().len());
        let longer = Call::new(VERSION, &(long + "x"), 0, &[], 0);
        assert_eq!(longer.err(), Some(Errno::NAMETOOLONG));
    }

    #[test]
    fn a_kernel_without_it_is_told_from_no_permission() {
        let dir = tempfile::tempdir().unwrap();
        match Control::open(dir.path()) {
            Ok(control) => assert_eq!(control.version().unwrap()[0], 4),
            Err(e) => {
                let missing = e.kind() == io::ErrorKind::NotFound;
                assert_eq!(missing, !is_there(), "{e}");
            }
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
