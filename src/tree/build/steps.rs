//! The operations themselves, by system calls.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, StatxFlags, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;

use super::blocks;
use super::times::DirTimes;
use super::{Failure, InodeId, Inodes, Outcome};
use crate::sys::copy::{read_at, write_all_at};
use crate::sys::{fs, xattr};
use crate::tree::content::pseudo_random;
use crate::tree::op::{self, Op, Xattrs, escape};
use crate::tree::{Owner, Rdev, Timestamp, TreePath};

/// The mode of a directory that names none.
pub const CREATE_MODE_DIR: u32 = 0o755;
/// The mode of everything else that names none.
pub const CREATE_MODE_FILE: u32 = 0o644;
/// The longest path an operation may name, in bytes; longer ones are `ENAMETOOLONG`, as when a program hands them to the kernel.
pub const MAX_NAMED_PATH: usize = fs::PATH_MAX - 1;

/// The longest name of an extended attribute (`XATTR_NAME_MAX`).
pub const XATTR_NAME_MAX: usize = 255;
/// The largest value of an extended attribute (`XATTR_SIZE_MAX`).
pub const XATTR_SIZE_MAX: usize = 65536;

/// Carries out one operation.
pub fn run(root: BorrowedFd<'_>, op: &Op, inodes: &mut Inodes) -> Outcome {
    match op {
        Op::File(o) => file(root, o),
        Op::Dir(o) => dir(root, o),
        Op::Symlink(o) => symlink(root, o),
        Op::Hardlink(o) => hardlink(root, o),
        Op::Fifo(o) => {
            let about = Attrs::of(&o.mode, &o.owner, &o.mtime);
            node(root, &o.path.0, FileType::Fifo, None, &about)
        }
        Op::Socket(o) => {
            let about = Attrs::of(&o.mode, &o.owner, &None);
            node(root, &o.path.0, FileType::Socket, None, &about)
        }
        Op::Char(o) => {
            let (kind, dev) = (FileType::CharacterDevice, Some(o.dev.0));
            let about = Attrs::of(&o.mode, &o.owner, &o.mtime);
            node(root, &o.path.0, kind, dev, &about)
        }
        Op::Block(o) => {
            let (kind, dev) = (FileType::BlockDevice, Some(o.dev.0));
            let about = Attrs::of(&o.mode, &o.owner, &o.mtime);
            node(root, &o.path.0, kind, dev, &about)
        }
        Op::Remove(o) => remove(root, &o.path.0, &[], fs::remove_all),
        Op::Unlink(o) => remove(root, &o.path.0, &[Errno::ISDIR], |d, n| {
            rustix::fs::unlinkat(d, handed(n, o.slash), AtFlags::empty())
        }),
        Op::Rmdir(o) => remove(root, &o.path.0, &[], |d, n| {
            rustix::fs::unlinkat(d, handed(n, o.slash), AtFlags::REMOVEDIR)
        }),
        Op::Rename(o) => rename(root, o),
        Op::Chmod(o) => chmod(root, &o.path.0, o.mode.0),
        Op::Chown(o) => {
            let (parent, name) = parent(root, &o.path.0)?;
            chown(parent.as_fd(), &name, o.owner.0, o.recursive)
        }
        Op::Touch(o) => {
            let (parent, name) = parent(root, &o.path.0)?;
            Ok(touch(parent.as_fd(), &name, o.mtime.0)?)
        }
        Op::Write(o) => {
            let at = o.at.as_ref().map_or(0, |at| at.0);
            write(root, &o.path.0, OFlags::empty(), &o.text.0, at)
        }
        // With O_APPEND the offset is not looked at.
        Op::Append(o) => write(root, &o.path.0, OFlags::APPEND, &o.text.0, 0),
        Op::Truncate(o) => truncate(root, &o.path.0, o.size.0),
        Op::Setxattr(o) => {
            // Kernels differ in whether the name or the path is looked at first.
            let key = key(&o.name)?;
            check_value(&o.value.0)?;
            let (parent, name) = parent(root, &o.path.0)?;
            Ok(xattr::set(parent.as_fd(), &name, &key, &o.value.0)?)
        }
        Op::Rmxattr(o) => {
            let key = key(&o.name)?;
            let (parent, name) = parent(root, &o.path.0)?;
            Ok(xattr::remove(parent.as_fd(), &name, &key)?)
        }
        Op::Open(o) => open_op(root, o),
        Op::Read(o) => read(root, o),
        Op::List(o) => list(root, o),
        Op::Space(o) => blocks::space(root, o),
        Op::Shared(o) => blocks::shared(root, o),
        Op::Clone(o) => blocks::clone(root, o),
        Op::Unnamed(o) => blocks::unnamed(root, o),
        Op::Inode(o) => inode(root, o, inodes),
    }
}

fn chmod(root: BorrowedFd<'_>, path: &TreePath, bits: u32) -> Outcome {
    let target = open(root, path, OFlags::PATH, Mode::empty())?;
    // fchmod refuses O_PATH descriptors, and fchmodat2 is as new as Linux 6.6.
    Ok(rustix::fs::chmodat(
        CWD,
        fs::fd_path(target.as_fd()),
        mode(bits),
        AtFlags::empty(),
    )?)
}

fn write(root: BorrowedFd<'_>, path: &TreePath, flags: OFlags, bytes: &[u8], at: u64) -> Outcome {
    let file = open(root, path, OFlags::WRONLY | flags, Mode::empty())?;
    Ok(write_all_at(file.as_fd(), bytes, at)?)
}

fn truncate(root: BorrowedFd<'_>, path: &TreePath, size: u64) -> Outcome {
    let target = open(root, path, OFlags::PATH, Mode::empty())?;
    let size = i64::try_from(size).map_err(|_| Errno::INVAL)?;
    nix::unistd::truncate(&fs::fd_path(target.as_fd()), size)
        .map_err(|e| Errno::from_raw_os_error(e as i32).into())
}

/// Sets the times that waited for the end. A directory that is gone by a way that could not be followed (another name of it) is left out.
pub fn set_dir_times(root: BorrowedFd<'_>, times: &DirTimes) -> io::Result<()> {
    for (path, time) in &times.0 {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        match fs::open_in_root(root, path.as_bytes(), flags, Mode::empty()) {
            Ok(dir) => rustix::fs::utimensat(
                CWD,
                fs::fd_path(dir.as_fd()),
                &mtime_only(*time),
                AtFlags::empty(),
            )?,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

pub(super) fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode(bits)
}

fn key(name: &str) -> Result<CString, Failure> {
    if name.is_empty() || name.len() > XATTR_NAME_MAX {
        return Err(Errno::RANGE.into());
    }
    CString::new(name)
        .map_err(|_| Failure::Invalid(format!("an attribute's name holds NUL: {name:?}")))
}

fn check_value(value: &[u8]) -> Result<(), Errno> {
    if value.len() > XATTR_SIZE_MAX {
        Err(Errno::TOOBIG)
    } else {
        Ok(())
    }
}

/// Opens `path` inside the root, following symbolic links, never waiting for a FIFO's other end.
pub(super) fn open(
    root: BorrowedFd<'_>,
    path: &TreePath,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    if path.0.len() > MAX_NAMED_PATH {
        return Err(Errno::NAMETOOLONG);
    }
    let calm = if flags.contains(OFlags::PATH) {
        OFlags::empty()
    } else {
        OFlags::NONBLOCK | OFlags::NOCTTY
    };
    fs::open_in_root(root, path.as_bytes(), flags | calm, mode)
}

/// The directory that holds `path`, and the name in it; the root is `.` in itself.
pub(super) fn parent(root: BorrowedFd<'_>, path: &TreePath) -> Result<(OwnedFd, CString), Errno> {
    if path.0.len() > MAX_NAMED_PATH {
        return Err(Errno::NAMETOOLONG);
    }
    let dir = path.parent().unwrap_or_default();
    let dir = fs::open_in_root(
        root,
        dir.as_bytes(),
        OFlags::PATH | OFlags::DIRECTORY,
        Mode::empty(),
    )?;
    let name = if path.is_root() {
        c".".to_owned()
    } else {
        CString::new(path.base()).map_err(|_| Errno::INVAL)?
    };
    Ok((dir, name))
}

/// A name as it is handed to the kernel. None of the calls that take one with a `/` at its end follows a symbolic link of that name:
/// mkdir, symlink, link (its new name), unlink, rmdir and rename.
fn handed(name: &CStr, slash: bool) -> CString {
    if !slash {
        return name.to_owned();
    }
    let mut bytes = name.to_bytes().to_vec();
    bytes.push(b'/');
    CString::new(bytes).unwrap_or_default()
}

/// The same as [`parent`] for a name to be made; the root exists.
pub(super) fn new_name(root: BorrowedFd<'_>, path: &TreePath) -> Result<(OwnedFd, CString), Errno> {
    if path.is_root() {
        Err(Errno::EXIST)
    } else {
        parent(root, path)
    }
}

fn mtime_only(time: Timestamp) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: time.secs,
            tv_nsec: time.nanos.into(),
        },
    }
}

fn touch(dir: BorrowedFd<'_>, name: &CStr, time: Timestamp) -> Result<(), Errno> {
    rustix::fs::utimensat(dir, name, &mtime_only(time), AtFlags::SYMLINK_NOFOLLOW)
}

fn ids(owner: Owner) -> (Option<Uid>, Option<Gid>) {
    (
        Some(Uid::from_raw(owner.uid)),
        Some(Gid::from_raw(owner.gid)),
    )
}

fn chown_one(dir: BorrowedFd<'_>, name: &CStr, owner: Owner) -> Result<(), Errno> {
    let (uid, gid) = ids(owner);
    rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
}

fn chown(dir: BorrowedFd<'_>, name: &CStr, owner: Owner, recursive: bool) -> Outcome {
    chown_one(dir, name, owner)?;
    let st = rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE)?;
    if recursive && FileType::from_raw_mode(u32::from(st.stx_mode)) == FileType::Directory {
        let sub = fs::open_beneath(
            dir,
            name.to_bytes(),
            OFlags::RDONLY | OFlags::DIRECTORY,
            Mode::empty(),
        )?;
        for child in fs::sorted_names(sub.as_fd())? {
            chown(sub.as_fd(), &child, owner, true)?;
        }
    }
    Ok(())
}

fn file(root: BorrowedFd<'_>, o: &op::FileOp) -> Outcome {
    let create = o.mode.as_ref().map_or(CREATE_MODE_FILE, |m| m.0) & 0o777;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
    let file = open(root, &o.path.0, flags, mode(create))?;
    let fd = file.as_fd();
    match (&o.text, &o.size) {
        (Some(text), _) => write_all_at(fd, &text.0, 0)?,
        (None, size) => {
            let size = size.as_ref().map_or(0, |s| s.0);
            match &o.islands {
                Some(islands) => {
                    rustix::fs::ftruncate(fd, size)?;
                    for island in islands {
                        write_all_at(fd, &island.text.0, island.at.0)?;
                    }
                }
                None => write_pseudo_random(fd, o.seed, size)?,
            }
        }
    }
    if let Some(owner) = &o.owner {
        let (uid, gid) = ids(owner.0);
        rustix::fs::fchown(fd, uid, gid)?;
    }
    // After the owner: chown takes setuid and setgid away.
    if let Some(m) = &o.mode {
        rustix::fs::fchmod(fd, mode(m.0))?;
    }
    for (name, value) in &o.xattrs {
        rustix::fs::fsetxattr(fd, key(name)?, &value.0, XattrFlags::empty())?;
    }
    if let Some(time) = &o.mtime {
        rustix::fs::futimens(fd, &mtime_only(time.0))?;
    }
    Ok(())
}

fn write_pseudo_random(file: BorrowedFd<'_>, seed: u64, size: u64) -> Result<(), Errno> {
    let mut buf = vec![0; usize::try_from(size).unwrap_or(usize::MAX).min(256 * 1024)];
    let mut at = 0;
    while at < size {
        let len = usize::try_from(size - at)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        pseudo_random(seed, at, &mut buf[..len]);
        write_all_at(file, &buf[..len], at)?;
        at += len as u64;
    }
    Ok(())
}

fn dir(root: BorrowedFd<'_>, o: &op::DirOp) -> Outcome {
    let (parent, name) = new_name(root, &o.path.0)?;
    let fd = parent.as_fd();
    let create = o.mode.as_ref().map_or(CREATE_MODE_DIR, |m| m.0) & 0o777;
    rustix::fs::mkdirat(fd, handed(&name, o.slash), mode(create))?;
    set_owner_and_mode(fd, &name, &o.owner, &o.mode)?;
    set_xattrs(fd, &name, &o.xattrs)
}

fn set_xattrs(dir: BorrowedFd<'_>, name: &CStr, xattrs: &Xattrs) -> Outcome {
    for (attr, value) in xattrs {
        xattr::set(dir, name, &key(attr)?, &value.0)?;
    }
    Ok(())
}

fn set_owner_and_mode(
    dir: BorrowedFd<'_>,
    name: &CStr,
    owner: &Option<op::OwnerText>,
    bits: &Option<op::Mode>,
) -> Result<(), Errno> {
    if let Some(owner) = owner {
        chown_one(dir, name, owner.0)?;
    }
    if let Some(bits) = bits {
        rustix::fs::chmodat(dir, name, mode(bits.0), AtFlags::empty())?;
    }
    Ok(())
}

fn symlink(root: BorrowedFd<'_>, o: &op::SymlinkOp) -> Outcome {
    let (parent, name) = new_name(root, &o.path.0)?;
    let target = CString::new(o.to.0.as_slice()).map_err(|_| Errno::INVAL)?;
    rustix::fs::symlinkat(&target, &parent, handed(&name, o.slash))?;
    set_owner_and_mode(parent.as_fd(), &name, &o.owner, &None)?;
    if let Some(time) = &o.mtime {
        touch(parent.as_fd(), &name, time.0)?;
    }
    Ok(())
}

fn hardlink(root: BorrowedFd<'_>, o: &op::HardlinkOp) -> Outcome {
    let (old_parent, old_name) = parent(root, &o.to.0)?;
    let (new_parent, new_name) = new_name(root, &o.path.0)?;
    Ok(rustix::fs::linkat(
        old_parent,
        old_name,
        new_parent,
        handed(&new_name, o.slash),
        AtFlags::empty(),
    )?)
}

/// The attributes that an operation may give to a special file it makes.
struct Attrs<'a> {
    mode: &'a Option<op::Mode>,
    owner: &'a Option<op::OwnerText>,
    mtime: &'a Option<op::Time>,
}

impl<'a> Attrs<'a> {
    fn of(
        mode: &'a Option<op::Mode>,
        owner: &'a Option<op::OwnerText>,
        mtime: &'a Option<op::Time>,
    ) -> Self {
        Self { mode, owner, mtime }
    }
}

fn node(
    root: BorrowedFd<'_>,
    path: &TreePath,
    kind: FileType,
    dev: Option<Rdev>,
    about: &Attrs<'_>,
) -> Outcome {
    let (parent, name) = new_name(root, path)?;
    let create = about.mode.as_ref().map_or(CREATE_MODE_FILE, |m| m.0) & 0o777;
    let dev = dev.map_or(0, |d| rustix::fs::makedev(d.major, d.minor));
    // A socket made by mknod is like one left behind by its server, and its path has no length limit.
    rustix::fs::mknodat(&parent, &name, kind, mode(create), dev)?;
    set_owner_and_mode(parent.as_fd(), &name, about.owner, about.mode)?;
    if let Some(time) = about.mtime {
        touch(parent.as_fd(), &name, time.0)?;
    }
    Ok(())
}

/// `call` on a name; on the root what `on_root` says, else `EBUSY`: the kernel's answers to `.` differ from call to call.
fn remove(
    root: BorrowedFd<'_>,
    path: &TreePath,
    on_root: &[Errno],
    call: impl FnOnce(BorrowedFd<'_>, &CStr) -> Result<(), Errno>,
) -> Outcome {
    if path.is_root() {
        return Err(on_root.first().copied().unwrap_or(Errno::BUSY).into());
    }
    let (parent, name) = parent(root, path)?;
    Ok(call(parent.as_fd(), &name)?)
}

fn rename(root: BorrowedFd<'_>, o: &op::RenameOp) -> Outcome {
    if o.path.0.is_root() || o.to.0.is_root() {
        return Err(Errno::BUSY.into());
    }
    let (old_parent, old_name) = parent(root, &o.path.0)?;
    let (new_parent, new_name) = parent(root, &o.to.0)?;
    let mut flags = RenameFlags::empty();
    flags.set(RenameFlags::NOREPLACE, o.noreplace);
    flags.set(RenameFlags::EXCHANGE, o.exchange);
    let renamed = rustix::fs::renameat_with(
        old_parent,
        handed(&old_name, o.slash),
        new_parent,
        handed(&new_name, o.to_slash),
        flags,
    );
    // Onto a directory with something in it; POSIX leaves the choice, and xfs makes the other one than most.
    Ok(renamed.map_err(|e| match e {
        Errno::EXIST if !o.noreplace => Errno::NOTEMPTY,
        e => e,
    })?)
}

/// The flags an `open` operation names.
pub fn open_flags(names: &[String]) -> Result<OFlags, Failure> {
    names.iter().try_fold(OFlags::empty(), |flags, name| {
        Ok(flags
            | match name.as_str() {
                "O_RDONLY" => OFlags::RDONLY,
                "O_WRONLY" => OFlags::WRONLY,
                "O_RDWR" => OFlags::RDWR,
                "O_CREAT" => OFlags::CREATE,
                "O_EXCL" => OFlags::EXCL,
                "O_TRUNC" => OFlags::TRUNC,
                "O_APPEND" => OFlags::APPEND,
                "O_DIRECTORY" => OFlags::DIRECTORY,
                "O_NOFOLLOW" => OFlags::NOFOLLOW,
                other => return Err(Failure::Invalid(format!("unknown flag {other}"))),
            })
    })
}

fn open_op(root: BorrowedFd<'_>, o: &op::OpenOp) -> Outcome {
    let flags = open_flags(&o.flags)?;
    // openat2 refuses a mode that would not be used.
    let bits = if flags.contains(OFlags::CREATE) {
        CREATE_MODE_FILE
    } else {
        0
    };
    let mut path = o.path.0.clone();
    if o.slash {
        path.0.push(b'/');
    }
    let file = open(root, &path, flags, mode(bits))?;
    let mut rest = o.text.as_ref().map_or(&[][..], |t| &t.0);
    while !rest.is_empty() {
        let n = rustix::io::retry_on_intr(|| rustix::io::write(&file, rest))?;
        rest = &rest[n..];
    }
    Ok(())
}

fn read(root: BorrowedFd<'_>, o: &op::ReadOp) -> Outcome {
    let file = open(root, &o.path.0, OFlags::RDONLY, Mode::empty())?;
    let expected = &o.is.0;
    // A little more than expected is enough to tell and to show.
    let mut found = vec![0; expected.len() + 64];
    let mut len = 0;
    while len < found.len() {
        match read_at(file.as_fd(), &mut found[len..], len as u64) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) => return Err(e.into()),
        }
    }
    found.truncate(len);
    if found == *expected {
        return Ok(());
    }
    let shown = |bytes: &[u8]| {
        let dots = if bytes.len() > 64 { "..." } else { "" };
        format!("\"{}\"{dots}", escape(&bytes[..bytes.len().min(64)]))
    };
    Err(Failure::Mismatch(format!(
        "content {} instead of {}",
        shown(&found),
        shown(expected)
    )))
}

fn list(root: BorrowedFd<'_>, o: &op::ListOp) -> Outcome {
    let dir = open(
        root,
        &o.path.0,
        OFlags::RDONLY | OFlags::DIRECTORY,
        Mode::empty(),
    )?;
    let names = fs::sorted_names(dir.as_fd())?;
    let found: BTreeSet<&[u8]> = names.iter().map(|n| n.to_bytes()).collect();
    let expected: BTreeSet<&[u8]> = o.are.iter().map(|n| n.0.as_slice()).collect();
    if found == expected && names.len() == found.len() {
        return Ok(());
    }
    let print = |names: Vec<&[u8]>| {
        names
            .iter()
            .take(5)
            .map(|n| escape(n))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let missing = print(expected.difference(&found).copied().collect());
    let unexpected = print(found.difference(&expected).copied().collect());
    let twice = if names.len() > found.len() {
        ", names that come twice"
    } else {
        ""
    };
    Err(Failure::Mismatch(format!(
        "names missing: [{missing}], unexpected: [{unexpected}]{twice}"
    )))
}

fn inode(root: BorrowedFd<'_>, o: &op::InodeOp, inodes: &mut Inodes) -> Outcome {
    let (parent, name) = parent(root, &o.path.0)?;
    let wanted = StatxFlags::INO | StatxFlags::NLINK;
    let st = rustix::fs::statx(&parent, &name, AtFlags::SYMLINK_NOFOLLOW, wanted)?;
    if let Some(names) = o.names
        && st.stx_nlink != names
    {
        return Err(Failure::Mismatch(format!(
            "{} names in its inode, not {names}",
            st.stx_nlink
        )));
    }
    let id: InodeId = (st.stx_dev_major, st.stx_dev_minor, st.stx_ino);
    let saved = |name: &String| {
        let found = inodes.0.get(name).copied();
        found.ok_or_else(|| Failure::Invalid(format!("no inode was saved as {name}")))
    };
    let print = |(major, minor, ino): InodeId| format!("inode {ino} on device {major}:{minor}");
    if let Some(name) = &o.same_as {
        let before = saved(name)?;
        if before != id {
            return Err(Failure::Mismatch(format!(
                "{}, not {} as {name}",
                print(id),
                print(before)
            )));
        }
    }
    if let Some(name) = &o.differs_from
        && saved(name)? == id
    {
        return Err(Failure::Mismatch(format!(
            "{} is that of {name}",
            print(id)
        )));
    }
    if let Some(name) = &o.save {
        inodes.0.insert(name.clone(), id);
    }
    Ok(())
}
