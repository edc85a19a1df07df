//! Mounting a chain of branches: as many as fit in a page with mount(2), the others appended by remounts.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::NAME;
use crate::sys::{self, mount::MountFlags};

/// The most branches that every build of aufs takes (`CONFIG_AUFS_BRANCH_MAX_127`, the default).
pub(super) const MAX_BRANCHES: usize = 127;

/// Where the table of inode numbers of a mount lies: on a filesystem that needs no disk. aufs makes the file and unlinks it at once.
const SHARED_MEMORY: &str = "/dev/shm";

/// A union to be mounted.
#[derive(Debug)]
pub(super) struct Union<'a> {
    /// The branches as they are written in options, the uppermost first.
    pub branches: &'a [Vec<u8>],
    /// Whether the uppermost is written to.
    pub writable: bool,
    /// Options behind the branches, such as `dio`.
    pub options: &'a [&'static str],
    /// SELinux label; empty: none.
    pub label: &'a str,
    /// The file for inode numbers; empty: wherever aufs puts it.
    pub xino: &'a str,
}

impl Union<'_> {
    /// The data of each call of mount(2), none longer than `room`: the first mounts, the others are remounts.
    ///
    /// A branch below keeps whiteouts (`ro+wh`): it was written to as the uppermost one.
    ///
    /// # Errors
    /// `E2BIG` when one branch with the options is longer.
    pub fn calls(&self, room: usize) -> io::Result<Vec<Vec<u8>>> {
        let label = if self.label.is_empty() {
            Vec::new()
        } else {
            format!(",context=\"{}\"", self.label).into_bytes()
        };
        let mut tail = Vec::new();
        for option in self.options {
            tail.extend([b",", option.as_bytes()].concat());
        }
        if !self.xino.is_empty() {
            tail.extend([b",xino=", self.xino.as_bytes()].concat());
        }
        tail.extend(&label);

        let mut calls = Vec::new();
        let mut data: Vec<u8> = Vec::new();
        for (number, branch) in self.branches.iter().enumerate() {
            let kind: &[u8] = if number == 0 && self.writable {
                b"=rw"
            } else {
                b"=ro+wh"
            };
            let before = |first: bool, mounts: bool| -> &'static [u8] {
                match (first, mounts) {
                    (true, true) => b"br:",
                    (false, true) => b":",
                    (true, false) => b"append:",
                    (false, false) => b",append:",
                }
            };
            let behind = if calls.is_empty() { &tail } else { &label };
            let part = [before(data.is_empty(), calls.is_empty()), branch, kind].concat();
            if !data.is_empty() && data.len() + part.len() + behind.len() > room {
                data.extend(behind);
                calls.push(std::mem::take(&mut data));
                data = [before(true, false), branch, kind].concat();
            } else {
                data.extend(part);
            }
            let behind = if calls.is_empty() { &tail } else { &label };
            if data.len() + behind.len() > room {
                return Err(Errno::TOOBIG.into());
            }
        }
        data.extend(if calls.is_empty() { &tail } else { &label });
        calls.push(data);
        Ok(calls)
    }

    /// Mounts it at `target`; without a writable branch also the mount itself is read-only.
    ///
    /// # Errors
    /// The errno of the calls; nothing is mounted then.
    pub fn mount(&self, target: &Path) -> io::Result<()> {
        // The kernel copies one page of data, the last byte of which must be NUL.
        let calls = self.calls(rustix::param::page_size() - 1)?;
        let (first, more) = calls.split_first().ok_or(Errno::INVAL)?;
        let (source, none) = (Path::new("none"), MountFlags::empty());
        sys::mount::mount(source, target, NAME, none, first)?;
        let mut completed = more
            .iter()
            .try_for_each(|data| sys::mount::remount_with(target, data));
        if !self.writable {
            completed = completed.and_then(|()| sys::mount::remount_bind_read_only(target));
        }
        completed.inspect_err(|_| {
            // The first failure is the one to tell.
            let _ = sys::mount::umount_detach(target);
        })
    }
}

/// A path for the list of branches: as it is, or, since aufs has no way to write the characters that mean something there, as a
/// descriptor's name; the descriptor is to be held until the union is mounted.
///
/// # Errors
/// The errno of opening the branch.
pub(super) fn branch(path: &Path, held: &mut Vec<OwnedFd>) -> io::Result<Vec<u8>> {
    let bytes = path.as_os_str().as_bytes();
    if !bytes
        .iter()
        .any(|b| matches!(b, b',' | b':' | b'=' | b'\\'))
    {
        return Ok(bytes.to_vec());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    let name = sys::fs::fd_path(fd.as_fd());
    held.push(fd);
    Ok(name.into_os_string().into_encoded_bytes())
}

/// A file for inode numbers of one mount alone; empty where there is no shared memory. moby's driver has one name for all, so that two
/// mounts of different processes fail when they meet.
pub(super) fn xino() -> String {
    if Path::new(SHARED_MEMORY).is_dir() {
        let name = crate::drivers::home::temporary_name("aufs.xino-");
        format!("{SHARED_MEMORY}/{name}")
    } else {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn calls(count: usize, room: usize, writable: bool, label: &str) -> Vec<String> {
        let branches: Vec<Vec<u8>> = (0..count).map(|i| format!("/b{i}").into_bytes()).collect();
        let union = Union {
            branches: &branches,
            writable,
            options: &["dio", "dirperm1"],
            label,
            xino: "/x",
        };
        let text = |data| String::from_utf8(data).unwrap();
        union.calls(room).unwrap().into_iter().map(text).collect()
    }

    #[rstest]
    #[case::alone(1, true, "", "br:/b0=rw,dio,dirperm1,xino=/x")]
    #[case::two(2, true, "", "br:/b0=rw:/b1=ro+wh,dio,dirperm1,xino=/x")]
    #[case::read_only(2, false, "", "br:/b0=ro+wh:/b1=ro+wh,dio,dirperm1,xino=/x")]
    #[case::labelled(1, true, "a:b", "br:/b0=rw,dio,dirperm1,xino=/x,context=\"a:b\"")]
    fn in_one_call(
        #[case] count: usize,
        #[case] writable: bool,
        #[case] label: &str,
        #[case] expected: &str,
    ) {
        assert_eq!(calls(count, 4095, writable, label), [expected]);
        // It fits to the byte, and one byte less does not do.
        assert_eq!(calls(count, expected.len(), writable, label), [expected]);
        if count == 2 {
            assert_eq!(calls(count, expected.len() - 1, writable, label).len(), 2);
        }
    }

    #[test]
    fn what_does_not_fit_is_appended_in_order() {
        let found = calls(6, 45, true, "l");
        assert_eq!(
            found,
            [
                "br:/b0=rw,dio,dirperm1,xino=/x,context=\"l\"",
                "append:/b1=ro+wh,append:/b2=ro+wh,context=\"l\"",
                "append:/b3=ro+wh,append:/b4=ro+wh,context=\"l\"",
                "append:/b5=ro+wh,context=\"l\"",
            ]
        );
    }

    /// However they are cut, the branches stand in order, each once, and no call is too long or shorter than it need be.
    #[test]
    fn every_cut_keeps_the_order() {
        for room in 40..400 {
            let found = calls(60, room, true, "");
            let parts: Vec<&str> = found
                .iter()
                .flat_map(|data| data.split(['b', ':', ',', '=']))
                .filter_map(|part| part.strip_prefix('/').or(Some(part)))
                .filter(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
                .collect();
            let expected: Vec<String> = (0..60).map(|i| i.to_string()).collect();
            assert_eq!(parts, expected, "{room}: {found:?}");
            assert!(found.iter().all(|data| data.len() <= room), "{room}");
            assert!(
                found
                    .windows(2)
                    .all(|pair| pair[0].len() + ",append:/b10=ro+wh".len() > room),
                "{room}: {found:?}"
            );
        }
    }

    #[test]
    fn a_branch_that_never_fits_is_an_error() {
        let union = Union {
            branches: &[b"/short".to_vec(), vec![b'x'; 100]],
            writable: true,
            options: &[],
            label: "",
            xino: "",
        };
        let error = union.calls(100).unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::TOOBIG));
    }

    #[rstest]
    #[case("plain-1.x y", false)]
    #[case("a:b", true)]
    #[case("a,b", true)]
    #[case("a=rw", true)]
    #[case("a\\b", true)]
    fn special_characters_go_by_a_descriptor(#[case] name: &str, #[case] by_descriptor: bool) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        let mut held = Vec::new();
        let text = branch(&path, &mut held).unwrap();
        assert_eq!(held.len(), usize::from(by_descriptor));
        let leads = Path::new(std::ffi::OsStr::from_bytes(&text)).canonicalize();
        assert_eq!(leads.unwrap(), path.canonicalize().unwrap());
    }

    #[test]
    fn no_two_mounts_share_a_file() {
        assert_ne!(xino(), xino());
    }
}
