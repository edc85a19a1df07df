//! Files by descriptor: openat2(2), one-pass directory reading, `/proc/self/fd`.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dev, FileType, RawDir, ResolveFlags, mknodat};
pub use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// The longest path the kernel takes in one call, with the final NUL (`PATH_MAX`).
pub const PATH_MAX: usize = 4096;

/// Opens `path` below `dir` without following any symbolic link and without leaving the mount; the empty path is `dir`
/// itself. Paths longer than `PATH_MAX` are opened in pieces.
///
/// # Errors
/// `ELOOP` for a symbolic link anywhere in the path, `EXDEV` for a mount point or a path that leaves `dir`, and those of openat2(2).
pub fn open_beneath(
    dir: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let mut held: Option<OwnedFd> = None;
    let mut rest = path;
    while rest.len() >= PATH_MAX {
        let cut = rest[..PATH_MAX]
            .iter()
            .rposition(|b| *b == b'/')
            .ok_or(Errno::NAMETOOLONG)?;
        let at = held.as_ref().map_or(dir, |fd| std::os::fd::AsFd::as_fd(fd));
        let next = openat2_retrying(
            at,
            &rest[..cut],
            OFlags::PATH | OFlags::DIRECTORY,
            Mode::empty(),
            resolve,
        )?;
        held = Some(next);
        rest = &rest[cut + 1..];
    }
    let at = held.as_ref().map_or(dir, |fd| std::os::fd::AsFd::as_fd(fd));
    Ok(openat2_retrying(at, rest, flags, mode, resolve)?)
}

/// Opens `path` as if `root` were the root directory: symbolic links are followed, absolute ones and `..` never leave
/// `root`. The empty path is `root` itself.
///
/// # Errors
/// Those of openat2(2).
pub fn open_in_root(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    openat2_retrying(
        root,
        path,
        flags,
        mode,
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

/// openat2(2) with `O_CLOEXEC`; tried again while the kernel says `EAGAIN`, which it does when a rename or a mount anywhere
/// on the machine races with a `..` in the path.
fn openat2_retrying(
    at: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let path = CString::new(if path.is_empty() { b"." } else { path }).map_err(|_| Errno::INVAL)?;
    for _ in 0..100_000 {
        match rustix::fs::openat2(at, path.as_c_str(), flags | OFlags::CLOEXEC, mode, resolve) {
            // A FIFO or a device opened without blocking may say EAGAIN for itself, but not a hundred thousand times here.
            Err(Errno::AGAIN | Errno::INTR) => std::thread::yield_now(),
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// The path of an open descriptor below `/proc`, for calls that take only paths; it names the inode itself, also of an
/// `O_PATH` descriptor.
pub fn fd_path(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Calls `each` with every name of the directory (without `.` and `..`), in the filesystem's order, from the start.
///
/// # Errors
/// Those of getdents64(2), and whatever `each` returns, which ends the pass.
pub fn for_each_name(
    dir: BorrowedFd<'_>,
    mut each: impl FnMut(&CStr, FileType) -> io::Result<()>,
) -> io::Result<()> {
    for_each_entry(dir, |name, kind, _| each(name, kind))
}

/// As [`for_each_name`], with the number that the directory has for each name's inode; that of a mount point is that of what it hides.
///
/// # Errors
/// As [`for_each_name`].
pub fn for_each_entry(
    dir: BorrowedFd<'_>,
    mut each: impl FnMut(&CStr, FileType, u64) -> io::Result<()>,
) -> io::Result<()> {
    rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(0))?;
    let mut buf = [MaybeUninit::<u8>::uninit(); 32 * 1024];
    let mut entries = RawDir::new(dir, &mut buf);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            each(entry.file_name(), entry.file_type(), entry.ino())?;
        }
    }
    Ok(())
}

/// Every name of the directory (without `.` and `..`), in byte order.
///
/// # Errors
/// Those of getdents64(2).
pub fn sorted_names(dir: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for_each_name(dir, |name, _| {
        names.push(name.to_owned());
        Ok(())
    })?;
    names.sort_unstable();
    Ok(names)
}

/// `rm -r`: removes `name` in `dir` and everything below it with the rights the caller has, and stops at the first failure.
/// For giving back what may be locked or mounted on, see [`super::remove`].
///
/// # Errors
/// `ENOENT` when it does not exist; `EBUSY` at a mount point; the first errno of what cannot be removed.
pub fn remove_all(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    use rustix::fs::{AtFlags, unlinkat};
    match unlinkat(dir, name, AtFlags::empty()) {
        // POSIX says EPERM for a directory, Linux says EISDIR; some filesystems say the former.
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return other,
    }
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        // The name was no directory, so what unlink said stands.
        Err(Errno::NOTDIR) => return unlinkat(dir, name, AtFlags::empty()),
        other => return other,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let sub = match openat2_retrying(dir, name.to_bytes(), flags, Mode::empty(), resolve) {
        Err(Errno::XDEV) => return Err(Errno::BUSY),
        other => other?,
    };
    let names = sorted_names(std::os::fd::AsFd::as_fd(&sub))
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    for child in &names {
        remove_all(std::os::fd::AsFd::as_fd(&sub), child)?;
    }
    unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// The node of a block device: the usual one, or, where that is missing or another device's (a container's `/dev` gets none), one of the
/// same name made in `nodes`.
///
/// # Errors
/// There is none, and none can be made.
pub fn block_node(usual: &Path, device: Dev, nodes: &Path) -> io::Result<PathBuf> {
    let is_it = |path: &Path| {
        let found = std::fs::symlink_metadata(path);
        found.is_ok_and(|m| m.file_type().is_block_device() && m.rdev() == device)
    };
    if is_it(usual) {
        return Ok(usual.to_owned());
    }
    let own = nodes.join(usual.file_name().unwrap_or_default());
    let mode = Mode::from_raw_mode(0o600);
    match mknodat(CWD, &own, FileType::BlockDevice, mode, device) {
        Err(Errno::EXIST) if is_it(&own) => Ok(own),
        Err(e) => {
            let e = io::Error::from(e);
            let what = format!("mknod {}: {e}", own.display());
            Err(io::Error::new(e.kind(), what))
        }
        Ok(()) => Ok(own),
    }
}

/// The node of a block device of which nothing is known but its number, as [`block_node`] finds it.
///
/// # Errors
/// As [`block_node`]; there is no such device.
pub fn block_node_of(device: Dev, nodes: &Path) -> io::Result<PathBuf> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let known = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"))?;
    let name = known.file_name().unwrap_or_default();
    block_node(&Path::new("/dev").join(name), device, nodes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    fn open_dir(path: &std::path::Path) -> OwnedFd {
        rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .expect("a directory")
    }

    #[test]
    fn beneath_refuses_links_and_in_root_stays_inside() {
        let tmp = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(tmp.path().join("root/etc")).expect("mkdir");
        std::fs::write(tmp.path().join("outside"), "o").expect("write");
        std::fs::write(tmp.path().join("root/etc/f"), "i").expect("write");
        symlink("/etc", tmp.path().join("root/abs")).expect("symlink");
        symlink("../../outside", tmp.path().join("root/up")).expect("symlink");
        let root = open_dir(&tmp.path().join("root"));
        let raw = |e: io::Error| Errno::from_io_error(&e).expect("an errno");
        let beneath =
            |p: &[u8]| open_beneath(root.as_fd(), p, OFlags::RDONLY, Mode::empty()).map_err(raw);
        assert_eq!(beneath(b"abs/f").expect_err("a link"), Errno::LOOP);
        assert_eq!(beneath(b"../outside").expect_err("leaves"), Errno::XDEV);
        beneath(b"etc/f").expect("a plain path");
        let inside = |p: &[u8]| open_in_root(root.as_fd(), p, OFlags::RDONLY, Mode::empty());
        inside(b"abs/f").expect("an absolute link is taken from the root");
        assert_eq!(
            inside(b"up").expect_err("`..` stops at the root"),
            Errno::NOENT
        );
    }

    #[test]
    fn paths_beyond_path_max_are_opened_in_pieces() {
        let tmp = tempfile::tempdir().expect("a directory");
        let name = "n".repeat(200);
        let mut at = open_dir(tmp.path());
        let mut path = Vec::new();
        for _ in 0..50 {
            rustix::fs::mkdirat(&at, name.as_str(), Mode::RWXU).expect("mkdir");
            at = rustix::fs::openat(
                &at,
                name.as_str(),
                OFlags::RDONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .expect("open");
            path.extend_from_slice(name.as_bytes());
            path.push(b'/');
        }
        path.pop();
        let root = open_dir(tmp.path());
        let found =
            open_beneath(root.as_fd(), &path, OFlags::RDONLY, Mode::empty()).expect("a long path");
        let (a, b) = (
            rustix::fs::fstat(&found).expect("stat"),
            rustix::fs::fstat(&at).expect("stat"),
        );
        assert_eq!(a.st_ino, b.st_ino);
        let first = CString::new(name).expect("no NUL");
        remove_all(root.as_fd(), &first).expect("the whole chain is removed");
        assert!(sorted_names(root.as_fd()).expect("list").is_empty());
    }
}
