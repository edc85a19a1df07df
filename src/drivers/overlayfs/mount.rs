//! Mounting an overlay by whichever call takes that many lower directories.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};

use crate::sys::{self, mount::escape_overlay_path};

/// The most lower directories that any kernel takes (`OVL_MAX_STACK`).
pub(in crate::drivers) const MAX_LOWERS: usize = 500;

/// The longest value of one parameter of fsconfig(2), without the final NUL.
const MAX_PARAMETER: usize = 255;

/// An overlay to be mounted. All paths are relative to the home.
#[derive(Debug)]
pub(in crate::drivers) struct OverlayMount<'a> {
    /// The home; absolute.
    pub home: &'a Path,
    /// Lower directories, the uppermost first.
    pub lowers: &'a [PathBuf],
    /// Upper and work directory; without them the mount is read-only.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Where it is to be seen.
    pub target: PathBuf,
    /// Options before the directories, such as `index=off`.
    pub options: &'a [&'static str],
    /// SELinux label; empty: none.
    pub label: &'a str,
}

impl OverlayMount<'_> {
    /// Mounts it: with mount(2) and absolute paths (which read best in the mount table) if the options fit in a page, else with
    /// paths relative to the home, else, where `lowerdir_plus`, directory by directory through fsconfig(2) (Linux 6.5 and later;
    /// its 256 bytes are for each parameter, not for all).
    ///
    /// # Errors
    /// The errno of the calls; `E2BIG` when no way takes so many directories.
    pub fn mount(&self, lowerdir_plus: bool) -> io::Result<()> {
        let absolute = self.data(self.home);
        if fits(&absolute) {
            let target = self.home.join(&self.target);
            return mount_overlay(&target, &absolute);
        }
        let relative = self.data(Path::new(""));
        if fits(&relative) {
            return self.in_home(|| mount_overlay(&self.target, &relative));
        }
        if lowerdir_plus {
            return self.in_home(|| self.mount_by_parameters());
        }
        Err(rustix::io::Errno::TOOBIG.into())
    }

    /// Whether mount(2) takes it, with relative paths if need be.
    pub fn fits_in_a_page(&self) -> bool {
        fits(&self.data(Path::new("")))
    }

    /// Whether the kernel takes lower directories one by one: really tried, up to making the superblock, because kernels before
    /// 6.5 accept the parameter and fail only then.
    pub fn lowerdir_plus_works(&self) -> bool {
        self.in_home(|| self.make_superblock().map(drop)).is_ok()
    }

    fn data(&self, base: &Path) -> Vec<u8> {
        let mut data = Vec::new();
        let mut add = |key: &str, value: &[u8]| {
            if !data.is_empty() {
                data.push(b',');
            }
            data.extend_from_slice(key.as_bytes());
            data.extend_from_slice(value);
        };
        for option in self.options {
            add(option, b"");
        }
        let lowers: Vec<Vec<u8>> = self
            .lowers
            .iter()
            .map(|lower| escape_overlay_path(&base.join(lower)))
            .collect();
        add("lowerdir=", &lowers.join(&b':'));
        if let Some((upper, work)) = &self.upper {
            add("upperdir=", &escape_overlay_path(&base.join(upper)));
            add("workdir=", &escape_overlay_path(&base.join(work)));
        }
        if !self.label.is_empty() {
            add("context=", format!("\"{}\"", self.label).as_bytes());
        }
        data
    }

    /// Works with the home as the current directory, on a thread that does not share it with others.
    fn in_home<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        sys::on_own_thread(|| {
            sys::unshare_fs()?;
            rustix::process::chdir(self.home)?;
            work()
        })?
    }

    fn mount_by_parameters(&self) -> io::Result<()> {
        let superblock = self.make_superblock()?;
        let mount = fsmount(
            &superblock,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )?;
        let from_fd = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(move_mount(&mount, "", CWD, &self.target, from_fd)?)
    }

    fn make_superblock(&self) -> io::Result<OwnedFd> {
        let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        self.configure(&fs).map_err(|e| with_kernel_log(e, &fs))?;
        Ok(fs)
    }

    fn configure(&self, fs: &OwnedFd) -> io::Result<()> {
        fsconfig_set_string(fs, "source", "overlay")?;
        for option in self.options {
            match option.split_once('=') {
                Some((key, value)) => fsconfig_set_string(fs, key, value)?,
                None => fsconfig_set_flag(fs, *option)?,
            }
        }
        for lower in self.lowers {
            // Unlike the others, this parameter is taken literally.
            fsconfig_set_string(fs, "lowerdir+", lower.as_path())?;
        }
        // Held open until the superblock exists.
        let mut held = Vec::new();
        if let Some((upper, work)) = &self.upper {
            for (key, dir) in [("upperdir", upper), ("workdir", work)] {
                let mut value = escape_overlay_path(dir);
                if value.len() > MAX_PARAMETER {
                    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    let fd = rustix::fs::open(dir.as_path(), flags, Mode::empty())?;
                    value = sys::fs::fd_path(fd.as_fd())
                        .into_os_string()
                        .as_bytes()
                        .to_vec();
                    held.push(fd);
                }
                fsconfig_set_string(fs, key, OsStr::from_bytes(&value))?;
            }
        }
        if !self.label.is_empty() {
            fsconfig_set_string(fs, "context", self.label)?;
        }
        Ok(fsconfig_create(fs)?)
    }
}

/// The kernel copies one page of data, the last byte of which must be NUL.
fn fits(data: &[u8]) -> bool {
    data.len() < rustix::param::page_size()
}

fn mount_overlay(target: &Path, data: &[u8]) -> io::Result<()> {
    let source = Path::new("overlay");
    sys::mount::mount(source, target, "overlay", MountFlags::empty(), data)
}

/// The new mount API tells in words what is wrong, to who reads the descriptor.
fn with_kernel_log(error: io::Error, fs: &OwnedFd) -> io::Error {
    let mut log = [0; 1024];
    match rustix::io::read(fs, &mut log) {
        Ok(n) if n > 0 => {
            let said = String::from_utf8_lossy(&log[..n]).trim().to_owned();
            io::Error::new(error.kind(), format!("{error}: {said}"))
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_characters_are_escaped_in_every_option() {
        let mount = OverlayMount {
            home: Path::new("/a:b"),
            lowers: &[PathBuf::from("l/X"), PathBuf::from("l/Y")],
            upper: Some(("i,d/diff".into(), "i,d/work".into())),
            target: "i,d/merged".into(),
            options: &["index=off", "userxattr"],
            label: "a:b:c,d",
        };
        let data = String::from_utf8(mount.data(mount.home)).unwrap();
        assert_eq!(
            data,
            "index=off,userxattr,lowerdir=/a\\:b/l/X:/a\\:b/l/Y,upperdir=/a\\:b/i\\,d/diff,\
             workdir=/a\\:b/i\\,d/work,context=\"a:b:c,d\""
        );
    }
}
