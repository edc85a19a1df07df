//! Loop devices: made in one step, found again by what lies behind them; no udev, no ioctl on a device of somebody else's.

#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use rustix::fs::makedev;
use rustix::io::Errno;
use rustix::ioctl::{Getter, Ioctl, IoctlOutput, NoArg, Opcode, Setter, ioctl};

use super::fs::block_node;

/// The opcodes of loop(4); they are older than the scheme for numbering them.
const LOOP_CLR_FD: Opcode = 0x4C01;
const LOOP_GET_STATUS64: Opcode = 0x4C05;
const LOOP_SET_CAPACITY: Opcode = 0x4C07;
const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;
/// The device is given up when nobody has it open or mounted any more.
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// The page cache of the file is passed by.
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// The major number of loop devices.
pub const MAJOR: u32 = 7;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// An ioctl whose result is the number that the call returns.
struct GetFree;

// SAFETY: LOOP_CTL_GET_FREE takes no argument and returns a number that is not negative.
unsafe impl Ioctl for GetFree {
    type Output = u32;
    const IS_MUTATING: bool = false;
    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE
    }
    fn as_ptr(&mut self) -> *mut libc::c_void {
        std::ptr::null_mut()
    }
    unsafe fn output_from_ptr(
        out: IoctlOutput,
        _: *mut libc::c_void,
    ) -> rustix::io::Result<Self::Output> {
        u32::try_from(out).map_err(|_| Errno::INVAL)
    }
}

/// A loop device that this process has attached and holds open. Once it is dropped, autoclear gives it up with its last user.
#[derive(Debug)]
pub struct Attached {
    /// Its number: N of `/dev/loopN`.
    pub number: u32,
    /// The node to mount: `/dev/loopN`, or one made in the directory given to [`attach`].
    pub node: PathBuf,
    /// Held open.
    pub file: File,
}

impl Attached {
    /// Whether no filesystem and no other program claims it for itself (`O_EXCL`).
    pub fn is_unclaimed(&self) -> bool {
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(&self.node)
            .is_ok()
    }
}

/// Attaches a free loop device to `image`, with autoclear, and with direct I/O where the file's filesystem has it. Where `/dev` has
/// no node for it (a container's `/dev` gets none), one is made in `nodes`.
///
/// # Errors
/// There is no `/dev/loop-control` (no loop driver) or it may not be opened; no device is free; the kernel is older than 5.8.
pub fn attach(image: &Path, nodes: &Path) -> io::Result<Attached> {
    const TRIES: u32 = 200;
    let named = |what: &str, e: io::Error| io::Error::new(e.kind(), format!("{what}: {e}"));
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
    let file = open(image).map_err(|e| named(&image.display().to_string(), e))?;
    let control = Path::new("/dev/loop-control");
    let control = open(control).map_err(|e| named("/dev/loop-control", e))?;
    for attempt in 0..TRIES {
        // SAFETY: the opcode and its argument are as loop(4) has them.
        let number = unsafe { ioctl(&control, GetFree) }
            .map_err(|e| named("find a free loop device", e.into()))?;
        let node = node_of(number, nodes)?;
        let device = open(&node).map_err(|e| named(&node.display().to_string(), e))?;
        match configure(&device, &file, image) {
            Ok(()) => {
                return Ok(Attached {
                    number,
                    node,
                    file: device,
                });
            }
            // Somebody else got it between the two calls.
            Err(Errno::BUSY) => std::thread::sleep(Duration::from_micros(u64::from(attempt) * 100)),
            Err(e) => return Err(named("attach a loop device (Linux 5.8 or later)", e.into())),
        }
    }
    let why = format!("no free loop device within {TRIES} tries");
    Err(io::Error::new(io::ErrorKind::ResourceBusy, why))
}

fn configure(device: &File, file: &File, image: &Path) -> Result<(), Errno> {
    let mut file_name = [0; 64];
    let name = image.as_os_str().as_bytes();
    let len = name.len().min(file_name.len() - 1);
    file_name[..len].copy_from_slice(&name[..len]);
    let mut result = Ok(());
    // A filesystem without direct I/O, or with a larger block than 512 bytes, is refused or ignored, depending on the kernel.
    for flags in [LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO, LO_FLAGS_AUTOCLEAR] {
        let config = LoopConfig {
            fd: u32::try_from(file.as_raw_fd()).map_err(|_| Errno::BADF)?,
            block_size: 0,
            info: LoopInfo {
                flags,
                file_name,
                ..empty_info()
            },
            reserved: [0; 8],
        };
        // SAFETY: LOOP_CONFIGURE reads a struct loop_config.
        result = unsafe { ioctl(device, Setter::<LOOP_CONFIGURE, LoopConfig>::new(config)) };
        if result != Err(Errno::INVAL) {
            break;
        }
    }
    result
}

fn empty_info() -> LoopInfo {
    // SAFETY: numbers and arrays of numbers, for which zero is a value.
    unsafe { mem::zeroed() }
}

/// The node of a loop device: the machine's, or one made in `nodes`.
fn node_of(number: u32, nodes: &Path) -> io::Result<PathBuf> {
    let usual = PathBuf::from(format!("/dev/loop{number}"));
    block_node(&usual, makedev(MAJOR, number), nodes)
}

/// Every attached loop device of the machine with the path of the file behind it, as sysfs tells it. No device is opened.
///
/// # Errors
/// `/sys/block` cannot be read.
pub fn attached() -> io::Result<Vec<(u32, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let number = name
            .to_str()
            .and_then(|n| n.strip_prefix("loop"))
            .and_then(|n| n.parse().ok());
        if let Some(number) = number
            && let Some(file) = file_behind(number)
        {
            found.push((number, file));
        }
    }
    found.sort();
    Ok(found)
}

/// The path of the file behind a loop device, as the kernel shows it (` (deleted)` at the end of one that is gone); `None` when it is
/// not attached.
pub fn file_behind(number: u32) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let mut path = fs::read(format!("/sys/block/loop{number}/loop/backing_file")).ok()?;
    if path.last() == Some(&b'\n') {
        path.pop();
    }
    Some(std::ffi::OsString::from_vec(path).into())
}

/// Makes loop device `number`, behind which is `image`, as large as that file is now; false when it is another's.
///
/// # Errors
/// The device cannot be opened, or the errno of `LOOP_SET_CAPACITY`.
pub fn follow_size(number: u32, image: &Path, nodes: &Path) -> io::Result<bool> {
    let device = File::open(node_of(number, nodes)?)?;
    if !is_behind(&device, image)? {
        return Ok(false);
    }
    // SAFETY: LOOP_SET_CAPACITY takes no argument.
    unsafe { ioctl(&device, NoArg::<LOOP_SET_CAPACITY>::new()) }?;
    Ok(true)
}

/// Whether the file behind loop device `number` is `image`, by device and inode number.
///
/// # Errors
/// The device cannot be opened; `NotFound` when there is no such file.
pub fn is_of(number: u32, image: &Path, nodes: &Path) -> io::Result<bool> {
    is_behind(&File::open(node_of(number, nodes)?)?, image)
}

/// Whether the file behind an open loop device is `image`, by device and inode number.
fn is_behind(device: &File, image: &Path) -> io::Result<bool> {
    let image = fs::metadata(image)?;
    // SAFETY: LOOP_GET_STATUS64 writes a struct loop_info64.
    match unsafe { ioctl(device, Getter::<LOOP_GET_STATUS64, LoopInfo>::new()) } {
        Ok(info) => Ok((info.device, info.inode) == (image.dev(), image.ino())),
        Err(Errno::NXIO) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Detaches loop device `number` if the file behind it is `image`, by device and inode number; false when it is another, or none. One
/// that is still in use goes with its last user.
///
/// # Errors
/// The device cannot be opened, or the errno of `LOOP_CLR_FD`.
pub fn detach(number: u32, image: &Path, nodes: &Path) -> io::Result<bool> {
    // As long as it is open here, the kernel does not give it to another file.
    let device = File::open(node_of(number, nodes)?)?;
    if !is_behind(&device, image)? {
        return Ok(false);
    }
    // SAFETY: LOOP_CLR_FD takes no argument.
    match unsafe { ioctl(&device, NoArg::<LOOP_CLR_FD>::new()) } {
        Ok(()) | Err(Errno::NXIO) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(name);
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        path
    }

    #[test]
    fn a_device_is_found_by_its_file_and_detached_by_it_alone() {
        assert!(
            rustix::process::geteuid().is_root(),
            "run as root: sudo -E env PATH=\"$PATH\" cargo test"
        );
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (image(dir.path(), "one"), image(dir.path(), "two"));
        let attached = attach(&one, dir.path()).unwrap();
        let second = attach(&two, dir.path()).unwrap();
        assert_ne!(attached.number, second.number);
        let real = one.canonicalize().unwrap();
        assert_eq!(file_behind(attached.number), Some(real.clone()));
        assert!(
            super::attached()
                .unwrap()
                .contains(&(attached.number, real))
        );
        assert!(!detach(attached.number, &two, dir.path()).unwrap());
        assert!(detach(attached.number, &one, dir.path()).unwrap());
        let (number, other) = (attached.number, second.number);
        drop(attached);
        goes(number, &one);
        drop(second);
        goes(other, &two);
    }

    #[test]
    fn those_who_attach_at_once_get_a_device_each() {
        const EACH: usize = 4;
        const THREADS: usize = 8;
        assert!(
            rustix::process::geteuid().is_root(),
            "run as root: sudo -E env PATH=\"$PATH\" cargo test"
        );
        let dir = tempfile::tempdir().unwrap();
        let (nodes, begin) = (dir.path(), std::sync::Barrier::new(THREADS));
        let attach_some = |thread: usize| {
            let images = (0..EACH).map(|i| image(nodes, &format!("image{thread}-{i}")));
            let images: Vec<PathBuf> = images.collect();
            begin.wait();
            let attached = images
                .into_iter()
                .map(|image| (attach(&image, nodes), image));
            attached.collect::<Vec<_>>()
        };
        let all: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|thread| scope.spawn(move || attach_some(thread)))
                .collect();
            threads
                .into_iter()
                .flat_map(|t| t.join().unwrap())
                .collect()
        });
        let mut numbers = std::collections::BTreeSet::new();
        for (attached, image) in &all {
            let attached = attached.as_ref().unwrap();
            assert!(
                numbers.insert(attached.number),
                "loop{} twice",
                attached.number
            );
            assert!(is_behind(&attached.file, image).unwrap());
        }
        for (attached, image) in all {
            let number = attached.unwrap().number;
            goes(number, &image);
        }
    }

    /// No machine runs out of loop devices before a million; what does not give any says so the same way.
    #[test]
    fn that_no_device_is_given_is_told_and_nothing_is_attached() {
        assert!(
            rustix::process::geteuid().is_root(),
            "run as root: sudo -E env PATH=\"$PATH\" cargo test"
        );
        // A namespace of this thread's own.
        crate::sys::ns::enter_private_mount_ns_of_test();
        let dir = tempfile::tempdir().unwrap();
        let one = image(dir.path(), "one");
        crate::sys::mount::bind(Path::new("/dev/null"), Path::new("/dev/loop-control")).unwrap();
        let refused = attach(&one, dir.path()).unwrap_err().to_string();
        assert!(
            refused.starts_with("find a free loop device: "),
            "{refused}"
        );
        let real = one.canonicalize().unwrap();
        assert!(attached().unwrap().iter().all(|(_, file)| *file != real));
    }

    /// A child that another test has just forked has the device open until it ends.
    fn goes(number: u32, image: &Path) {
        let image = image.canonicalize().unwrap();
        for _ in 0..500 {
            if file_behind(number).as_ref() != Some(&image) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("loop{number} still has {} behind it", image.display());
    }

    #[test]
    fn a_node_is_made_where_the_machine_has_none() {
        let dir = tempfile::tempdir().unwrap();
        // No machine has this one: minor numbers end at 2^20.
        let node = node_of((1 << 20) - 1, dir.path());
        match node {
            Ok(node) => assert!(node.starts_with(dir.path())),
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::PermissionDenied),
        }
    }
}
