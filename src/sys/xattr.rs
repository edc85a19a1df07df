//! Extended attributes of a name in a directory, never following a symbolic link.
//!
//! The `*xattrat` family (Linux 6.13) is used where it exists; older kernels are reached through `/proc/self/fd/N/NAME`.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use rustix::io::Errno;

// The same numbers on every architecture; include/uapi/asm-generic/unistd.h.
const SYS_SETXATTRAT: libc::c_long = 463;
const SYS_GETXATTRAT: libc::c_long = 464;
const SYS_LISTXATTRAT: libc::c_long = 465;
const SYS_REMOVEXATTRAT: libc::c_long = 466;

/// The largest value (`XATTR_SIZE_MAX`) and the largest list of names (`XATTR_LIST_MAX`).
const MAX: usize = 65536;

static NO_XATTRAT: AtomicBool = AtomicBool::new(false);

/// `struct xattr_args` of include/uapi/linux/xattr.h.
#[repr(C, align(8))]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

fn at_flags(name: &CStr) -> libc::c_int {
    let empty = if name.is_empty() {
        libc::AT_EMPTY_PATH
    } else {
        0
    };
    empty | libc::AT_SYMLINK_NOFOLLOW
}

/// `None`: this kernel does not have the call, or not for `O_PATH` descriptors themselves.
fn outcome(ret: libc::c_long, name: &CStr) -> Option<Result<usize, Errno>> {
    match usize::try_from(ret) {
        Ok(n) => Some(Ok(n)),
        Err(_) => match Errno::from_raw_os_error(nix::errno::Errno::last_raw()) {
            Errno::NOSYS => {
                NO_XATTRAT.store(true, Ordering::Relaxed);
                None
            }
            Errno::BADF if name.is_empty() => None,
            e => Some(Err(e)),
        },
    }
}

fn has_xattrat() -> bool {
    !NO_XATTRAT.load(Ordering::Relaxed)
}

/// For the fallback: a path that reaches `name` in `dir`. The empty name is the directory itself.
fn proc_path(dir: BorrowedFd<'_>, name: &CStr) -> CString {
    let mut path = format!("/proc/self/fd/{}", dir.as_raw_fd()).into_bytes();
    if !name.is_empty() {
        path.push(b'/');
        path.extend_from_slice(name.to_bytes());
    }
    CString::new(path).unwrap_or_default()
}

fn list_once(dir: BorrowedFd<'_>, name: &CStr, buf: &mut [u8]) -> Result<usize, Errno> {
    if has_xattrat() {
        // SAFETY: `name` ends in NUL, and the kernel writes at most `buf.len()` bytes into `buf`.
        let ret = unsafe {
            libc::syscall(
                SYS_LISTXATTRAT,
                dir.as_raw_fd(),
                name.as_ptr(),
                at_flags(name),
                buf.as_mut_ptr(),
                buf.len(),
            )
        };
        if let Some(result) = outcome(ret, name) {
            return result;
        }
    }
    let path = proc_path(dir, name);
    if name.is_empty() {
        rustix::fs::listxattr(path, buf)
    } else {
        rustix::fs::llistxattr(path, buf)
    }
}

/// getxattrat(2) or setxattrat(2).
///
/// # Safety
/// `args` must describe memory that the call may read, or for getxattrat(2) write.
unsafe fn call_with_args(
    number: libc::c_long,
    dir: BorrowedFd<'_>,
    name: &CStr,
    key: &CStr,
    args: &XattrArgs,
) -> libc::c_long {
    // SAFETY: both names end in NUL; the caller answers for what `args` describes.
    unsafe {
        libc::syscall(
            number,
            dir.as_raw_fd(),
            name.as_ptr(),
            at_flags(name),
            key.as_ptr(),
            &raw const *args,
            size_of::<XattrArgs>(),
        )
    }
}

fn get_once(dir: BorrowedFd<'_>, name: &CStr, key: &CStr, buf: &mut [u8]) -> Result<usize, Errno> {
    if has_xattrat() {
        let size = u32::try_from(buf.len()).unwrap_or(u32::MAX);
        let args = XattrArgs {
            value: buf.as_mut_ptr() as u64,
            size,
            flags: 0,
        };
        // SAFETY: `args` describes `buf`, and the kernel writes at most `size` bytes into it.
        let ret = unsafe { call_with_args(SYS_GETXATTRAT, dir, name, key, &args) };
        if let Some(result) = outcome(ret, name) {
            return result;
        }
    }
    let path = proc_path(dir, name);
    if name.is_empty() {
        rustix::fs::getxattr(path, key, buf)
    } else {
        rustix::fs::lgetxattr(path, key, buf)
    }
}

/// Fills a buffer that starts small and grows to the kernel's limit.
fn growing(mut fill: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut small = [0u8; 512];
    match fill(&mut small) {
        Ok(n) => return Ok(small[..n].to_vec()),
        Err(Errno::RANGE) => {}
        Err(e) => return Err(e),
    }
    let mut big = vec![0u8; MAX];
    let n = fill(&mut big)?;
    big.truncate(n);
    Ok(big)
}

/// The names of the attributes of `name` in `dir` (the empty name: of what `dir` is open on), in no order. A filesystem without attributes has none.
///
/// # Errors
/// The errno of listxattrat(2).
pub fn list(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Vec<CString>> {
    let names = match growing(|buf| list_once(dir, name, buf)) {
        Ok(names) => names,
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(e) => return Err(e.into()),
    };
    Ok(names
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty())
        .filter_map(|n| CString::new(n).ok())
        .collect())
}

/// One attribute of `name` in `dir`; `None` when it has no such attribute.
///
/// # Errors
/// The errno of getxattrat(2), but for `ENODATA`.
pub fn get(dir: BorrowedFd<'_>, name: &CStr, key: &CStr) -> io::Result<Option<Vec<u8>>> {
    match growing(|buf| get_once(dir, name, key, buf)) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Sets one attribute of `name` in `dir`, whether it is there or not.
///
/// # Errors
/// The errno of setxattrat(2).
pub fn set(dir: BorrowedFd<'_>, name: &CStr, key: &CStr, value: &[u8]) -> Result<(), Errno> {
    if has_xattrat() {
        let size = u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?;
        let args = XattrArgs {
            value: value.as_ptr() as u64,
            size,
            flags: 0,
        };
        // SAFETY: `args` describes `value`, which the kernel only reads.
        let ret = unsafe { call_with_args(SYS_SETXATTRAT, dir, name, key, &args) };
        if let Some(result) = outcome(ret, name) {
            return result.map(drop);
        }
    }
    let path = proc_path(dir, name);
    let flags = rustix::fs::XattrFlags::empty();
    if name.is_empty() {
        rustix::fs::setxattr(path, key, value, flags)
    } else {
        rustix::fs::lsetxattr(path, key, value, flags)
    }
}

/// Removes one attribute of `name` in `dir`.
///
/// # Errors
/// `ENODATA` when it has no such attribute; the errno of removexattrat(2).
pub fn remove(dir: BorrowedFd<'_>, name: &CStr, key: &CStr) -> Result<(), Errno> {
    if has_xattrat() {
        // SAFETY: both names end in NUL; nothing is written to memory.
        let ret = unsafe {
            libc::syscall(
                SYS_REMOVEXATTRAT,
                dir.as_raw_fd(),
                name.as_ptr(),
                at_flags(name),
                key.as_ptr(),
            )
        };
        if let Some(result) = outcome(ret, name) {
            return result.map(drop);
        }
    }
    let path = proc_path(dir, name);
    if name.is_empty() {
        rustix::fs::removexattr(path, key)
    } else {
        rustix::fs::lremovexattr(path, key)
    }
}

/// Whether an attribute belongs to the overlay filesystem or to the host's policy and not to a layer's user.
pub fn is_internal(key: &[u8]) -> bool {
    key.starts_with(b"trusted.overlay.")
        || key.starts_with(b"user.overlay.")
        || key == b"security.selinux"
        // The access lists once more: how xfs shows what it keeps them in.
        || key == b"trusted.SGI_ACL_FILE"
        || key == b"trusted.SGI_ACL_DEFAULT"
}

/// All attributes of `name` in `dir` that a layer's user owns, by name.
///
/// # Errors
/// Those of [`list`] and [`get`].
pub fn visible(
    dir: BorrowedFd<'_>,
    name: &CStr,
) -> io::Result<std::collections::BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut found = std::collections::BTreeMap::new();
    for key in list(dir, name)? {
        if !is_internal(key.to_bytes())
            && let Some(value) = get(dir, name, &key)?
        {
            found.insert(key.into_bytes(), value);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};
    use std::os::fd::AsFd;

    /// One test for both ways: the switch is one for the whole process.
    #[test]
    fn both_ways_agree_and_follow_no_link() {
        let tmp = tempfile::tempdir().expect("a directory");
        std::fs::write(tmp.path().join("f"), "x").expect("write");
        std::os::unix::fs::symlink("f", tmp.path().join("l")).expect("symlink");
        let dir = std::fs::File::open(tmp.path()).expect("open");
        let fd = dir.as_fd();
        let only_path = rustix::fs::open(tmp.path(), OFlags::PATH, Mode::empty()).expect("open");
        let big = vec![7u8; 2000];
        for fallback in [false, true] {
            NO_XATTRAT.store(fallback, Ordering::Relaxed);
            set(fd, c"f", c"user.k", &big).expect("set");
            set(fd, c"", c"user.d", b"dir").expect("set on the directory itself");
            assert_eq!(get(fd, c"f", c"user.k").expect("get"), Some(big.clone()));
            assert_eq!(get(fd, c"f", c"user.none").expect("get"), None);
            assert_eq!(
                visible(fd, c"").expect("visible").get(&b"user.d"[..]),
                Some(&b"dir".to_vec())
            );
            assert_eq!(list(fd, c"f").expect("list"), [c"user.k".to_owned()]);
            assert!(
                list(fd, c"l").expect("list").is_empty(),
                "the link was followed"
            );
            assert_eq!(set(fd, c"l", c"user.k", b""), Err(Errno::PERM));
            set(only_path.as_fd(), c"", c"user.d", b"dir")
                .expect("set through a descriptor of a path only");
            remove(fd, c"f", c"user.k").expect("remove");
            assert_eq!(remove(fd, c"f", c"user.k"), Err(Errno::NODATA));
        }
        NO_XATTRAT.store(false, Ordering::Relaxed);
    }
}
