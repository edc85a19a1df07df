//! Mounts: mount(2), umount2(2), and the mount table of the calling thread's namespace.
//!
//! The new mount API (`fsopen`, `fsconfig`, `fsmount`, `move_mount`) needs no wrapper: it is safe as rustix has it.

use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::io::Errno;
pub use rustix::mount::MountFlags;
use rustix::mount::{MountPropagationFlags, UnmountFlags};

/// One line of `/proc/thread-self/mountinfo`; see proc_pid_mountinfo(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    /// The mount's id.
    pub id: u64,
    /// The id of the mount it sits on.
    pub parent: u64,
    /// `st_dev` of what is mounted, as major and minor.
    pub device: (u32, u32),
    /// The directory inside the mounted filesystem that forms the mount's root.
    pub root: PathBuf,
    /// Where it is mounted, as seen from the process's root.
    pub path: PathBuf,
    /// Options of the mount, comma-separated.
    pub options: String,
    /// Propagation: the optional fields, such as `shared:1 master:2`; empty means private.
    pub propagation: String,
    /// The filesystem's type, such as `overlay`.
    pub fs_type: String,
    /// The source, as the filesystem shows it.
    pub source: OsString,
    /// Options of the filesystem, comma-separated.
    pub super_options: OsString,
}

/// mount(2) with textual data.
///
/// # Errors
/// The errno of the call; `EINVAL` when an argument holds NUL.
pub fn mount(
    source: &Path,
    target: &Path,
    fs_type: &str,
    flags: MountFlags,
    data: &[u8],
) -> io::Result<()> {
    let data = CString::new(data)?;
    let data = (!data.is_empty()).then_some(data.as_c_str());
    Ok(rustix::mount::mount(source, target, fs_type, flags, data)?)
}

/// Makes `source` visible at `target` too (`MS_BIND`); mounts below `source` are not taken along.
///
/// # Errors
/// The errno of the call.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_bind(source, target)?)
}

/// Makes an existing mount read-only for this mount point alone (`MS_REMOUNT|MS_BIND|MS_RDONLY`).
///
/// # Errors
/// The errno of the call.
pub fn remount_bind_read_only(target: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_remount(
        target,
        MountFlags::BIND | MountFlags::RDONLY,
        "",
    )?)
}

/// Changes the flags of the filesystem itself that is mounted at `target` (`MS_REMOUNT`): read-only or not. Its options stay.
///
/// # Errors
/// `EBUSY` when it is to be read-only and something on it is open for writing.
pub fn remount(target: &Path, flags: MountFlags) -> io::Result<()> {
    Ok(rustix::mount::mount_remount(target, flags, "")?)
}

/// Hands the filesystem that is mounted at `target` further options as text (`MS_REMOUNT`).
///
/// # Errors
/// The errno of the call; `EINVAL` when `data` holds NUL, or an option is not known.
pub fn remount_with(target: &Path, data: &[u8]) -> io::Result<()> {
    let data = CString::new(data)?;
    Ok(rustix::mount::mount_remount(
        target,
        MountFlags::empty(),
        data.as_c_str(),
    )?)
}

/// Makes the mount at `path` private: mounts below it neither propagate to other namespaces nor come from there.
///
/// # Errors
/// `EINVAL` when `path` is not a mount point.
pub fn make_private(path: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_change(
        path,
        MountPropagationFlags::PRIVATE,
    )?)
}

/// [`make_private`] for the mount at `path` and all mounts below it.
///
/// # Errors
/// `EINVAL` when `path` is not a mount point.
pub fn make_private_recursive(path: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_change(
        path,
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?)
}

/// How long what is to be unmounted may stay in use.
const PATIENCE: Duration = Duration::from_secs(10);

/// Unmounts what is mounted at `path`, never following a symbolic link at its end.
///
/// # Errors
/// `EBUSY` when it is in use, `EINVAL` when nothing is mounted there.
pub fn umount(path: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(path, UnmountFlags::NOFOLLOW)?)
}

/// As [`umount`], of what nobody else has a reason to use. A process that another thread forks meanwhile has everything open that this one
/// had, until it executes a program or closes it all; so long the mount is in use, and waited for, for ten seconds at most.
///
/// # Errors
/// Those of [`umount`].
pub fn umount_patiently(path: &Path) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        match umount(path) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(2));
            }
            done => return done,
        }
    }
}

/// Detaches what is mounted at `path` (`MNT_DETACH`): gone from the name space at once, given up when no longer in use.
///
/// # Errors
/// `EINVAL` when nothing is mounted there.
pub fn umount_detach(path: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(
        path,
        UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
    )?)
}

/// Detaches every mount at or below `path`, the last one first, and returns where they were. One that went with another, or that
/// somebody else took away meanwhile, is no error.
///
/// # Errors
/// The mount table cannot be read, or a mount cannot be detached; the message names it.
pub fn umount_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut gone = Vec::new();
    for mount in mounts_below(path)?.into_iter().rev() {
        match umount_detach(&mount.path) {
            Err(e) if !matches!(Errno::from_io_error(&e), Some(Errno::INVAL | Errno::NOENT)) => {
                let what = format!("unmount {}: {e}", mount.path.display());
                return Err(io::Error::new(e.kind(), what));
            }
            _ => gone.push(mount.path),
        }
    }
    Ok(gone)
}

/// The mount table of the calling thread's mount namespace, in the kernel's order (a mount comes after what it is on).
///
/// # Errors
/// When `/proc` is not mounted, or a line does not have the documented form.
pub fn mount_table() -> io::Result<Vec<MountPoint>> {
    let text = std::fs::read("/proc/thread-self/mountinfo")?;
    text.split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            parse_line(line).ok_or_else(|| {
                let line = String::from_utf8_lossy(line);
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("a line of mountinfo is not understood: {line}"),
                )
            })
        })
        .collect()
}

/// The mounts at or below `path`, in the kernel's order: unmount from the last to the first.
///
/// # Errors
/// Those of [`mount_table`].
pub fn mounts_below(path: &Path) -> io::Result<Vec<MountPoint>> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let mut mounts = mount_table()?;
    mounts.retain(|m| m.path.starts_with(&path));
    Ok(mounts)
}

/// The mount that a path, which holds no symbolic link, lies in.
///
/// # Errors
/// Those of [`mount_table`].
pub fn mount_of(path: &Path) -> io::Result<MountPoint> {
    let mut table = mount_table()?;
    table.retain(|m| path.starts_with(&m.path));
    // The longest path holds it; of several mounted on each other, the last.
    let holds = table.into_iter().max_by_key(|m| m.path.as_os_str().len());
    holds.ok_or(io::ErrorKind::NotFound.into())
}

/// Whether something is mounted at `path` (bind mounts too); a symbolic link at its end is not followed. A mount that answers no
/// more, because the process that served it is gone, is one.
///
/// # Errors
/// The errno of statx(2), such as `ENOENT`.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let st = match rustix::fs::statx(CWD, path, flags, StatxFlags::TYPE) {
        Err(Errno::NOTCONN | Errno::CONNABORTED | Errno::IO | Errno::STALE) => {
            return in_table(path);
        }
        other => other?,
    };
    if st.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(st.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    // Kernels before 5.8 do not tell.
    in_table(path)
}

/// Looks a path up in the mount table; only the directory that it is in is asked for anything.
fn in_table(path: &Path) -> io::Result<bool> {
    let path = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => parent.canonicalize()?.join(name),
        _ => path.canonicalize()?,
    };
    Ok(mount_table()?.iter().any(|m| m.path == path))
}

fn parse_line(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|b| *b == b' ');
    let text = |f: &mut dyn Iterator<Item = &[u8]>| {
        f.next().map(|f| String::from_utf8_lossy(f).into_owned())
    };
    let id = text(&mut fields)?.parse().ok()?;
    let parent = text(&mut fields)?.parse().ok()?;
    let device = text(&mut fields)?;
    let (major, minor) = device.split_once(':')?;
    let root = unescape_octal(fields.next()?);
    let path = unescape_octal(fields.next()?);
    let options = text(&mut fields)?;
    let mut propagation = Vec::new();
    loop {
        match fields.next()? {
            b"-" => break,
            tag => propagation.push(String::from_utf8_lossy(tag).into_owned()),
        }
    }
    Some(MountPoint {
        id,
        parent,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root: root.into(),
        path: path.into(),
        options,
        propagation: propagation.join(" "),
        fs_type: text(&mut fields)?,
        source: unescape_octal(fields.next()?),
        super_options: unescape_octal(fields.next().unwrap_or_default()),
    })
}

/// Space, tab, newline and backslash stand as `\ooo` in the table.
fn unescape_octal(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&b, tail)) = rest.split_first() {
        let octal = (b == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .filter(|d| d.iter().all(|c| (b'0'..=b'7').contains(c)));
        if let Some(d) = octal {
            out.push(
                d.iter()
                    .fold(0u8, |n, c| n.wrapping_mul(8).wrapping_add(c - b'0')),
            );
            rest = &tail[3..];
        } else {
            out.push(b);
            rest = tail;
        }
    }
    OsString::from_vec(out)
}

/// Escapes a path for a mount option that is a list: overlayfs splits at `:` and `,` and takes `\` as an escape.
pub fn escape_overlay_path(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    for &b in path.as_os_str().as_bytes() {
        if matches!(b, b'\\' | b':' | b',') {
            out.push(b'\\');
        }
        out.push(b);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table_is_taken_apart() {
        let line = br"36 35 98:0 /mnt1 /mnt\0402\134x rw,noatime master:1 shared:2 - ext3 /dev/ro\012ot rw,errors=continue";
        let m = parse_line(line).expect("the line of proc(5)");
        assert_eq!((m.id, m.parent, m.device), (36, 35, (98, 0)));
        assert_eq!(m.root, Path::new("/mnt1"));
        assert_eq!(m.path, Path::new("/mnt 2\\x"));
        assert_eq!(
            (m.options.as_str(), m.propagation.as_str()),
            ("rw,noatime", "master:1 shared:2")
        );
        assert_eq!(
            (m.fs_type.as_str(), m.source.as_bytes()),
            ("ext3", &b"/dev/ro\not"[..])
        );
        assert_eq!(m.super_options, "rw,errors=continue");
        assert_eq!(parse_line(b"36 35 98:0 / /mnt rw no-separator"), None);
    }

    #[test]
    fn the_root_is_a_mount_point_and_a_new_directory_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(is_mount_point(Path::new("/proc")).expect("statx"));
        assert!(!is_mount_point(dir.path()).expect("statx"));
        assert!(mounts_below(dir.path()).expect("mountinfo").is_empty());
        assert!(
            mounts_below(Path::new("/proc"))
                .expect("mountinfo")
                .iter()
                .any(|m| m.fs_type == "proc")
        );
    }

    #[test]
    fn all_below_is_taken_away_and_nothing_beside() {
        assert!(
            rustix::process::geteuid().is_root(),
            "run as root: sudo -E env PATH=\"$PATH\" cargo test"
        );
        // A namespace of this thread's own.
        crate::sys::ns::enter_private_mount_ns_of_test();
        let dir = tempfile::tempdir().expect("a directory");
        let tmpfs = |name: &str| {
            let at = dir.path().join(name);
            std::fs::create_dir(&at).expect("a mount point");
            let none = MountFlags::empty();
            mount(Path::new("graphtest"), &at, "tmpfs", none, b"").expect("a tmpfs");
            at
        };
        let (below, inside, beside) = (tmpfs("a"), tmpfs("a/b"), tmpfs("ab"));
        let gone = umount_below(&below).expect("all taken away");
        assert_eq!(gone, [inside, below.clone()]);
        let left = mounts_below(dir.path()).expect("mountinfo");
        assert_eq!(left.iter().map(|m| &m.path).collect::<Vec<_>>(), [&beside]);
        assert!(umount_below(&below).expect("nothing to do").is_empty());
        umount_below(&beside).expect("taken away");
    }
}
