//! Diffs by comparing two mounted trees: turns any [`ProtoDriver`] into a [`Driver`].

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::{
    Capabilities, Change, CreateOpts, DiffRead, DiffStream, Driver, Error, FileRun, ProtoDriver,
    Result,
};
use crate::archive::{self, ApplyOptions, ChangesOptions, Form, IdMaps, LayerStream, WriteOptions};
use crate::sys;

/// Forwards every method of [`ProtoDriver`] to a field.
macro_rules! delegate_proto_driver {
    ($field:ident) => {
        fn name(&self) -> &str {
            self.$field.name()
        }
        fn create(&self, id: &str, parent: Option<&str>, opts: &CreateOpts) -> Result<()> {
            self.$field.create(id, parent, opts)
        }
        fn create_read_write(
            &self,
            id: &str,
            parent: Option<&str>,
            opts: &CreateOpts,
        ) -> Result<()> {
            self.$field.create_read_write(id, parent, opts)
        }
        fn remove(&self, id: &str) -> Result<()> {
            self.$field.remove(id)
        }
        fn get(&self, id: &str, mount_label: &str) -> Result<PathBuf> {
            self.$field.get(id, mount_label)
        }
        fn put(&self, id: &str) -> Result<()> {
            self.$field.put(id)
        }
        fn exists(&self, id: &str) -> bool {
            self.$field.exists(id)
        }
        fn status(&self) -> Vec<(String, String)> {
            self.$field.status()
        }
        fn metadata(&self, id: &str) -> Result<Option<BTreeMap<String, String>>> {
            self.$field.metadata(id)
        }
        fn cleanup(&self) -> Result<()> {
            self.$field.cleanup()
        }
        fn capabilities(&self) -> Capabilities {
            self.$field.capabilities()
        }
        fn settled(&self, id: &str, parent: &str) -> Option<crate::tree::Timestamp> {
            self.$field.settled(id, parent)
        }
        fn touched(
            &self,
            new: std::os::fd::BorrowedFd<'_>,
            old: std::os::fd::BorrowedFd<'_>,
        ) -> Option<std::collections::HashSet<u64>> {
            self.$field.touched(new, old)
        }
    };
}
pub(crate) use delegate_proto_driver;

/// A layer that was got, with its root open; it is put when this is dropped.
///
/// Fields drop in order: the root is closed before the layer is put, so that its mount is not in use any more.
#[derive(Debug)]
pub struct Held {
    root: OwnedFd,
    layer: Got,
}

/// A layer that was got; it is put when this is dropped.
struct Got {
    driver: Option<Arc<dyn ProtoDriver>>,
    id: String,
}

impl fmt::Debug for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)
    }
}

impl Held {
    /// Gets the layer and opens its root.
    ///
    /// # Errors
    /// The layer cannot be got, or its root cannot be opened; it is not held then.
    pub fn get(driver: Arc<dyn ProtoDriver>, id: &str) -> Result<Self> {
        let path = driver.get(id, "")?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(root) => Ok(Self {
                root,
                layer: Got {
                    driver: Some(driver),
                    id: id.to_owned(),
                },
            }),
            Err(e) => {
                // The first failure is the one to tell.
                let _ = driver.put(id);
                Err(Error::io("open the layer", path, e))
            }
        }
    }

    /// The root of the layer.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The stream, with this layer held until it is dropped.
    pub fn keep_with(self, stream: impl DiffRead + 'static) -> DiffStream {
        Box::new(HeldStream {
            stream,
            _layer: self,
        })
    }

    /// Puts the layer and says whether that went well.
    ///
    /// # Errors
    /// As [`ProtoDriver::put`].
    pub fn put(self) -> Result<()> {
        let Self { root, mut layer } = self;
        drop(root);
        let driver = layer.driver.take();
        driver.map_or(Ok(()), |driver| driver.put(&layer.id))
    }
}

impl Drop for Got {
    fn drop(&mut self) {
        if let Some(driver) = self.driver.take() {
            // There is nobody to tell; a caller that wants to know uses `Held::put`.
            let _ = driver.put(&self.id);
        }
    }
}

/// A stream that keeps layers held until it is dropped. Fields drop in order: the stream before what it reads from.
struct HeldStream<R> {
    stream: R,
    _layer: Held,
}

impl<R: Read> Read for HeldStream<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.stream.read(buf)
    }
}

impl<R: DiffRead> DiffRead for HeldStream<R> {
    fn run(&mut self) -> Option<FileRun<'_>> {
        self.stream.run()
    }
}

/// Makes a whole driver of one that only knows how to make and mount layers, as moby's `NaiveDiffDriver`: both trees are
/// mounted and compared.
///
/// moby's sleeps to the end of the second after a diff, because its archives carry whole seconds only; times here are compared
/// and written to the nanosecond, so there is nothing to wait for.
#[derive(Debug)]
pub struct NaiveDiff<P> {
    driver: Arc<P>,
    id_maps: IdMaps,
    user_namespace: bool,
}

impl<P: ProtoDriver + 'static> NaiveDiff<P> {
    /// Wraps a driver; the maps shift owners in diffs and applied archives.
    pub fn new(driver: Arc<P>, id_maps: IdMaps) -> Self {
        Self {
            driver,
            id_maps,
            user_namespace: sys::ns::in_user_ns(),
        }
    }

    /// The wrapped driver.
    pub fn driver(&self) -> &Arc<P> {
        &self.driver
    }

    /// How to apply an archive to a mounted layer.
    pub fn apply_options(&self) -> ApplyOptions {
        ApplyOptions {
            form: Form::Plain,
            id_maps: self.id_maps.clone(),
            in_userns: self.user_namespace,
            best_effort_xattrs: false,
        }
    }

    /// How to write an archive of a layer.
    pub fn write_options(&self) -> WriteOptions {
        WriteOptions {
            id_maps: self.id_maps.clone(),
        }
    }

    fn hold(&self, id: &str) -> Result<Held> {
        Held::get(Arc::clone(&self.driver) as Arc<dyn ProtoDriver>, id)
    }

    /// The layer held, and its changes.
    fn compare(&self, id: &str, parent: Option<&str>) -> Result<(Held, Vec<Change>)> {
        let layer = self.hold(id)?;
        let changes = match parent {
            None => archive::changes(layer.root(), None)?,
            Some(parent) => {
                let settled = self.driver.settled(id, parent);
                let parent = self.hold(parent)?;
                let options = ChangesOptions {
                    settled,
                    touched: self.driver.touched(layer.root(), parent.root()),
                };
                let changes = archive::changes_with(layer.root(), Some(parent.root()), &options)?;
                parent.put()?;
                changes
            }
        };
        Ok((layer, changes))
    }
}

impl<P: ProtoDriver + 'static> ProtoDriver for NaiveDiff<P> {
    delegate_proto_driver!(driver);
}

impl<P: ProtoDriver + 'static> Driver for NaiveDiff<P> {
    fn diff(&self, id: &str, parent: Option<&str>) -> Result<DiffStream> {
        let (layer, changes) = match parent {
            None => (self.hold(id)?, None),
            Some(_) => {
                let (layer, changes) = self.compare(id, parent)?;
                (layer, Some(changes))
            }
        };
        let stream = match changes {
            None => LayerStream::full(layer.root(), self.write_options())?,
            Some(changes) => {
                LayerStream::from_changes(layer.root(), changes, self.write_options())?
            }
        };
        Ok(layer.keep_with(stream))
    }

    fn changes(&self, id: &str, parent: Option<&str>) -> Result<Vec<Change>> {
        let (layer, changes) = self.compare(id, parent)?;
        layer.put()?;
        Ok(changes)
    }

    fn apply_diff(&self, id: &str, _parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        let layer = self.hold(id)?;
        let applied = archive::apply(layer.root(), diff, &self.apply_options())?;
        layer.put()?;
        Ok(applied.size)
    }

    fn diff_size(&self, id: &str, parent: Option<&str>) -> Result<u64> {
        let (layer, changes) = self.compare(id, parent)?;
        let size = archive::diff_size(layer.root(), &changes)?;
        layer.put()?;
        Ok(size)
    }
}

/// A driver that can apply archives in its own way to some layers (moby's `ApplyDiffProtoDriver`).
pub trait ApplyDiff: ProtoDriver {
    /// Applies an archive as [`Driver::apply_diff`] does; `None`, with nothing read of the stream, when this layer is to be done
    /// the naive way (moby's `ErrApplyDiffFallback`).
    ///
    /// # Errors
    /// As [`Driver::apply_diff`].
    fn try_apply_diff(
        &self,
        id: &str,
        parent: Option<&str>,
        diff: &mut dyn Read,
        options: &ApplyOptions,
    ) -> Result<Option<u64>>;
}

/// [`NaiveDiff`] with the driver's own way to apply archives, as moby's `NaiveDiffDriverWithApply`.
#[derive(Debug)]
pub struct NaiveDiffWithApply<P> {
    naive: NaiveDiff<P>,
}

impl<P: ApplyDiff + 'static> NaiveDiffWithApply<P> {
    /// Wraps a driver; the maps shift owners in diffs and applied archives.
    pub fn new(driver: Arc<P>, id_maps: IdMaps) -> Self {
        Self {
            naive: NaiveDiff::new(driver, id_maps),
        }
    }
}

impl<P: ApplyDiff + 'static> ProtoDriver for NaiveDiffWithApply<P> {
    delegate_proto_driver!(naive);
}

impl<P: ApplyDiff + 'static> Driver for NaiveDiffWithApply<P> {
    fn diff(&self, id: &str, parent: Option<&str>) -> Result<DiffStream> {
        self.naive.diff(id, parent)
    }

    fn changes(&self, id: &str, parent: Option<&str>) -> Result<Vec<Change>> {
        self.naive.changes(id, parent)
    }

    fn apply_diff(&self, id: &str, parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        let options = self.naive.apply_options();
        match self
            .naive
            .driver()
            .try_apply_diff(id, parent, diff, &options)?
        {
            Some(size) => Ok(size),
            None => self.naive.apply_diff(id, parent, diff),
        }
    }

    fn diff_size(&self, id: &str, parent: Option<&str>) -> Result<u64> {
        self.naive.diff_size(id, parent)
    }
}
