//! A filesystem made for a cell or a scenario: images, loop devices and mounts below one directory of the run.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use super::Fresh;
use super::damage::{self, Damage};
use super::devices;
use super::kinds::{Image, Kind, Pool, Recipe};
use super::overlay;
use super::pool;
use super::power;
use crate::sys::fsctl::{Journal, forget_btrfs};
use crate::sys::kmsg::KernelLog;
use crate::sys::loopdev::{self, Attached};
use crate::sys::mount::{MountFlags, mount, remount, umount_below};

/// The size of a filesystem when none is asked for; the files behind it are sparse.
const SIZE: u64 = 4 << 30;
/// The smallest file that zfs takes for a pool is 64 MiB, of which it keeps most for itself.
const LEAST_POOL: u64 = 128 << 20;
/// How long the last users of a loop device may take after it was unmounted.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was made in a directory. Everything is below it, so that whoever gives the directory back finds all of it.
#[derive(Debug)]
pub(super) struct Stack {
    kind: &'static Kind,
    /// The directory that holds the images and the mount point.
    base: PathBuf,
    /// The options of a tmpfs.
    limits: String,
    /// The files behind the loop devices.
    images: Vec<PathBuf>,
    /// The loop devices that are mounted. They are held open, so that nobody else has them before the last look at the kernel's log.
    devices: Vec<Attached>,
    /// The program that serves it.
    daemon: Option<Child>,
    /// The kernel's log since the last look; `None` where nobody asks for it.
    log: Option<KernelLog>,
    /// What it said.
    found: Damage,
}

impl Stack {
    /// Makes the filesystem and mounts it at [`Stack::on`].
    ///
    /// # Errors
    /// Which step failed and why. What was made until then is below `base`.
    pub(super) fn make(
        kind: &'static Kind,
        base: &Path,
        wanted: Option<&Fresh>,
    ) -> io::Result<Self> {
        let mut stack = Self {
            kind,
            base: base.to_path_buf(),
            limits: "mode=0755".to_string(),
            images: Vec::new(),
            devices: Vec::new(),
            daemon: None,
            log: None,
            found: Damage::default(),
        };
        fs::create_dir(stack.on())?;
        match &kind.recipe {
            Recipe::Dir => return Ok(stack),
            Recipe::Tmpfs | Recipe::Overlay(_) => {
                if let Some(size) = wanted.and_then(|w| w.size) {
                    stack.limits += &format!(",size={size}");
                }
                if let Some(inodes) = wanted.and_then(|w| w.inodes) {
                    stack.limits += &format!(",nr_inodes={inodes}");
                }
            }
            Recipe::Image(image) => stack.make_images(image, wanted)?,
            Recipe::Pool(pool) => {
                stack.make_pool(pool, wanted)?;
                return Ok(stack);
            }
        }
        stack.mount()?;
        if let Recipe::Image(Image {
            prepare: Some(prepare),
            ..
        }) = &kind.recipe
        {
            prepare(&stack.on())?;
        }
        Ok(stack)
    }

    /// The program that serves it, and its version.
    pub(super) fn program(&self) -> Option<(String, String)> {
        let Recipe::Overlay(Some(program)) = &self.kind.recipe else {
            return None;
        };
        // One that tells no version is in no range of versions.
        let version = program.version().unwrap_or_default();
        Some((program.name.to_owned(), version))
    }

    /// Where it is mounted.
    pub(super) fn on(&self) -> PathBuf {
        self.base.join("on")
    }

    /// What the kernel's log says about it from now on is damage, to be told by [`Stack::damage`].
    pub(super) fn watch(&mut self) {
        match KernelLog::from_now() {
            Ok(log) => self.log = Some(log),
            Err(e) => self.found.notes.push(format!("the kernel's log: {e}")),
        }
    }

    /// Lets go of the loop devices but leaves them mounted, for whoever comes later.
    pub(super) fn leave(&mut self) {
        self.devices.clear();
    }

    fn make_images(&mut self, image: &Image, wanted: Option<&Fresh>) -> io::Result<()> {
        let size = wanted.and_then(|w| w.size).unwrap_or(SIZE).max(image.least);
        let mut arguments: Vec<String> = image.arguments.iter().map(ToString::to_string).collect();
        if let Some(inodes) = wanted.and_then(|w| w.inodes) {
            let limit = image.inodes.ok_or_else(|| {
                let why = format!("{} has no limit of inodes", image.fs_type);
                io::Error::new(io::ErrorKind::Unsupported, why)
            })?;
            arguments.extend(limit(size, inodes));
        }
        for i in 0..image.devices {
            let path = self.base.join(format!("image{i}"));
            File::create_new(&path)?.set_len(size / image.devices)?;
            self.images.push(path);
        }
        let images = self.images.iter().map(|i| i.as_os_str().to_os_string());
        let arguments: Vec<OsString> = arguments
            .into_iter()
            .map(Into::into)
            .chain(images)
            .collect();
        image.undisturbed(
            || image.mkfs.run(&arguments),
            |made| made.as_ref().err().map(ToString::to_string),
        )
    }

    fn make_pool(&mut self, pool: &Pool, wanted: Option<&Fresh>) -> io::Result<()> {
        if wanted.is_some_and(|w| w.inodes.is_some()) {
            let why = "zfs has no limit of inodes";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let size = wanted.and_then(|w| w.size).unwrap_or(SIZE).max(LEAST_POOL);
        let image = self.base.join("image0");
        File::create_new(&image)?.set_len(size)?;
        let name = pool::name_in(&self.base);
        pool::make(pool, &name, &image, &self.on())?;
        self.images.push(image);
        Ok(())
    }

    /// The pool of zfs that it is.
    pub(super) fn pool(&self) -> Option<String> {
        matches!(self.kind.recipe, Recipe::Pool(_)).then(|| pool::name_in(&self.base))
    }

    /// Mounts what is made.
    ///
    /// # Errors
    /// No loop device, or the errno of mount(2) with what the kernel's log says about it.
    pub(super) fn mount(&mut self) -> io::Result<()> {
        let on = self.on();
        let none = MountFlags::empty();
        match &self.kind.recipe {
            Recipe::Dir => Ok(()),
            Recipe::Tmpfs => self.mount_tmpfs(&on),
            Recipe::Overlay(program) => {
                let under = self.base.join("under");
                fs::create_dir(&under)?;
                self.mount_tmpfs(&under)?;
                self.daemon = overlay::mount_over(&under, &on, *program, &self.base)?;
                Ok(())
            }
            Recipe::Image(image) => {
                let attached = self.attach()?;
                let mut options = image.options.to_string();
                for other in &attached[1..] {
                    options += &format!(",device={}", other.node.display());
                }
                let options = options.trim_start_matches(',').as_bytes();
                let mut log = KernelLog::from_now().ok();
                mount(&attached[0].node, &on, image.fs_type, none, options).map_err(|e| {
                    let why = damage::about(log.as_mut(), &numbers(&attached));
                    said(&format!("mount of {}", self.kind.name), e_with(e, &why))
                })?;
                self.devices = attached;
                Ok(())
            }
            Recipe::Pool(_) => pool::take_up(&pool::name_in(&self.base), &self.base, &on),
        }
    }

    fn mount_tmpfs(&self, at: &Path) -> io::Result<()> {
        let (source, limits) = (Path::new("graphtest"), self.limits.as_bytes());
        mount(source, at, "tmpfs", MountFlags::empty(), limits)
            .map_err(|e| said(&format!("mount a tmpfs at {}", at.display()), e))
    }

    fn attach(&self) -> io::Result<Vec<Attached>> {
        let one = |image: &PathBuf| loopdev::attach(image, &self.base);
        self.images.iter().map(one).collect()
    }

    /// Unmounts all of it, with what is mounted on it, and waits until the loop devices are free.
    ///
    /// # Errors
    /// What still holds on to it.
    pub(super) fn unmount(&mut self) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        devices::take_down(&self.base).map_err(|e| e.to_string())?;
        umount_below(&self.base).map_err(|e| e.to_string())?;
        if let Some(name) = self.pool() {
            pool::let_go(&name, &mut self.found)?;
        }
        for device in &self.devices {
            // A filesystem that is in use, here or in another mount namespace, keeps the device from being opened for one alone.
            wait_until(until, || device.is_unclaimed()).map_err(|()| busy(device))?;
            if self.is_btrfs() {
                // It would take a filesystem for the one that it knew under the same id, or refuse it. Not being able to is no harm.
                let _ = wait_until(until, || !matches!(forget_btrfs(&device.node), Ok(false)));
            }
        }
        if let Some(log) = &mut self.log {
            self.found
                .add(damage::complaints(log, &numbers(&self.devices), &self.base));
        }
        if let Some(daemon) = self.daemon.take() {
            overlay::wait_for(daemon, until)?;
        }
        for (device, image) in self.devices.drain(..).zip(&self.images) {
            let Attached { number, node, file } = device;
            drop(file);
            let gone = || loopdev::file_behind(number).as_deref() != Some(image);
            wait_until(until, gone).map_err(|()| format!("{}: still open", node.display()))?;
        }
        Ok(())
    }

    fn is_btrfs(&self) -> bool {
        matches!(&self.kind.recipe, Recipe::Image(image) if image.fs_type == "btrfs")
    }

    /// Whether a cut of its power leaves anything.
    pub(super) fn outlives_power(kind: &Kind) -> bool {
        matches!(kind.recipe, Recipe::Image(_))
    }

    /// Cuts the power, mounts it again and checks it; see [`super::OwnBacking::cut_power`].
    ///
    /// # Errors
    /// What cannot be done, or is damaged.
    pub(super) fn cut_power(&mut self, journal: Journal, let_go: impl FnOnce()) -> io::Result<()> {
        if !Self::outlives_power(self.kind) {
            let why = format!("{} does not outlive a cut of its power", self.kind.name);
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let copies = power::cut(&self.on(), &self.images, self.is_btrfs(), journal)
            .map_err(|e| said("cut of the power", e))?;
        let_go();
        self.unmount().map_err(io::Error::other)?;
        if let Some(copies) = copies {
            for (image, copy) in self.images.iter().zip(&copies) {
                fs::rename(copy, image)?;
            }
        }
        // The checkers want a journal that has been replayed, which is what mounting does.
        self.mount()?;
        self.unmount().map_err(io::Error::other)?;
        let damage = self.damage().damage;
        if !damage.is_empty() {
            let why = format!("damaged by a cut of its power: {}", damage.join("; "));
            return Err(io::Error::other(why));
        }
        self.mount()
    }

    /// Makes the filesystem itself read-only, or writable again.
    ///
    /// # Errors
    /// `EBUSY` in words when something on it is open for writing.
    pub(super) fn remount(&self, read_only: bool) -> io::Result<()> {
        if let Some(name) = self.pool() {
            return pool::set_read_only(&name, read_only);
        }
        let flags = if read_only {
            MountFlags::RDONLY
        } else {
            MountFlags::empty()
        };
        let until = Instant::now() + PATIENCE;
        let mut result = remount(&self.on(), flags);
        // A child that another scenario has just forked has the files of this one open until it ends.
        while matches!(&result, Err(e) if e.kind() == io::ErrorKind::ResourceBusy)
            && Instant::now() < until
        {
            std::thread::sleep(Duration::from_millis(2));
            result = remount(&self.on(), flags);
        }
        result.map_err(|e| said(&format!("remount of {}", self.kind.name), e))
    }

    /// What is wrong with it: by the kernel's log, if it was watched, and by its checker. It must not be mounted.
    pub(super) fn damage(&mut self) -> Damage {
        let mut found = std::mem::take(&mut self.found);
        if let Recipe::Image(image) = &self.kind.recipe {
            let checked = damage::check(image, &self.images, &self.base);
            found.add(checked);
        }
        found
    }
}

fn numbers(devices: &[Attached]) -> Vec<u32> {
    devices.iter().map(|d| d.number).collect()
}

fn busy(device: &Attached) -> String {
    format!(
        "{}: still in use after it was unmounted",
        device.node.display()
    )
}

/// Waits until something holds, but not longer than that.
fn wait_until(until: Instant, mut holds: impl FnMut() -> bool) -> Result<(), ()> {
    while !holds() {
        if Instant::now() > until {
            return Err(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn said(what: &str, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{what}: {e}"))
}

fn e_with(e: io::Error, log: &[String]) -> io::Error {
    if log.is_empty() {
        return e;
    }
    let kind = e.kind();
    io::Error::new(kind, format!("{e}; the kernel's log: {}", log.join("; ")))
}
