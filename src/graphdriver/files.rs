//! The files of a layer by their names in its archive, for tar-split.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, fstat};

use super::{Driver, FileGetCloser, Held, ProtoDriver, Result};
use crate::sys;

/// Files below a directory that is the root of a layer, or of what the layer itself holds.
#[derive(Debug)]
pub struct LayerFiles<R> {
    root: R,
}

impl<R> LayerFiles<R> {
    /// The files below `root`.
    pub fn new(root: R) -> Self {
        Self { root }
    }
}

impl FileGetCloser for LayerFiles<OwnedFd> {
    fn get(&self, name: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        open_regular(self.root.as_fd(), name)
    }
}

/// The layer stays held until this is dropped.
impl FileGetCloser for LayerFiles<Held> {
    fn get(&self, name: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        open_regular(self.root.root(), name)
    }
}

fn open_regular(root: BorrowedFd<'_>, name: &[u8]) -> io::Result<Box<dyn Read + Send>> {
    let parts: Vec<&[u8]> = name
        .split(|b| *b == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .collect();
    // Opening a pipe that took the file's name must not block.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = sys::fs::open_beneath(root, &parts.join(&b'/'), flags, Mode::empty())?;
    if !FileType::from_raw_mode(fstat(&file)?.st_mode).is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    Ok(Box::new(File::from(file)))
}

/// The files of a layer: through the driver's own [`super::DiffGetter`] where it has one, else by getting the layer, which
/// is what moby's layer store does.
///
/// # Errors
/// As [`super::DiffGetter::diff_getter`] or [`ProtoDriver::get`].
pub fn layer_files(driver: &Arc<dyn Driver>, id: &str) -> Result<Box<dyn FileGetCloser>> {
    match driver.diff_getter() {
        Some(native) => native.diff_getter(id),
        None => {
            let driver: Arc<dyn ProtoDriver> = driver.clone();
            Ok(Box::new(LayerFiles::new(Held::get(driver, id)?)))
        }
    }
}
