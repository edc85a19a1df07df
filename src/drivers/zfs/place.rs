//! Which dataset a home's layers are in.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags, major, minor};

use super::GRAPH;
use super::program::zfs;
use super::work::unique;
use crate::drivers::home::write_atomically;
use crate::graphdriver::{Error, FsMagic, Result, get_fs_magic};
use crate::sys::mount::{MountPoint, mount_table};
use crate::sys::zfs::{MAX_NAME, Zfs};

/// The file in a home that names the dataset of its own.
const RECORD: &str = "dataset";
/// The option that names a dataset, as moby has it.
pub(super) const FSNAME: &str = "zfs.fsname";
/// The property that says whose dataset it is, for people and for whoever gives back what a home took.
const HOME: &str = "graphtest:home";

/// What the dataset of a home is made with. Layers inherit it: every property of a file is kept and means what it says, whatever the
/// datasets above are set to; snapshots are not seen in layers, and tools that make some of every dataset leave them alone.
const PROPERTIES: &[&str] = &[
    "mountpoint=legacy",
    "xattr=sa",
    "acltype=posixacl",
    "aclinherit=passthrough",
    "setuid=on",
    "devices=on",
    "exec=on",
    "readonly=off",
    "snapdir=hidden",
    "casesensitivity=sensitive",
    "normalization=none",
    "utf8only=off",
    "com.sun:auto-snapshot=false",
];

/// Whether a home can be there at all, asked before it is made.
///
/// # Errors
/// [`Error::Prerequisites`] when no dataset is named and what is there of the home's path is not on a zfs.
pub(super) fn suits(home: &Path, named: Option<&str>) -> Result<()> {
    if named.is_some() {
        return Ok(());
    }
    let there = home
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("."));
    lies_on(there).map(drop)
}

/// Makes the directory if need be.
pub(super) fn make_home(home: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o710)
        .create(home)
        .map_err(|e| Error::io("make the home", home, e))
}

/// The dataset that the layers of a home are children of: the one that the option names; else that which the home has on record; else,
/// for a home that moby's driver has made, the one that the home lies on; else a new one there, of the home's own, so that several homes
/// can lie on one dataset.
///
/// # Errors
/// The home is not on a zfs; a dataset is gone, or its names are not those of files elsewhere; it cannot be made.
pub(super) fn dataset(kernel: &Zfs, home: &Path, named: Option<&str>) -> Result<String> {
    if let Some(name) = named {
        return checked(kernel, name);
    }
    let used = home.join(GRAPH).exists();
    if let Some(name) = recorded(home)? {
        return match kernel.has(&name) {
            Ok(true) => Ok(name),
            // Killed before it was made.
            Ok(false) if !used => make(&name, home),
            Ok(false) => Err(Error::Prerequisites(format!(
                "dataset {name}, which holds the layers of {}, is not there; is its pool imported?",
                home.display()
            ))),
            Err(e) => Err(Error::io("look for the dataset", name, e)),
        };
    }
    if used {
        return checked(kernel, &lies_on(home)?);
    }
    let name = format!("{}/graph-{}", lies_on(home)?, unique());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(home, flags, Mode::empty())
        .map_err(|e| Error::io("open the home", home, e))?;
    // First, so that what is made is always found again.
    write_atomically(dir.as_fd(), RECORD, name.as_bytes(), 0o644)?;
    make(&name, home)
}

/// The dataset that a path lies on.
fn lies_on(path: &Path) -> Result<String> {
    let found = get_fs_magic(path)?;
    let not = |why: String| Error::Prerequisites(format!("{}: {why}", path.display()));
    if found != FsMagic::ZFS {
        let why = format!(
            "on {found}, and zfs keeps layers on nothing but zfs, unless {FSNAME} names a dataset"
        );
        return Err(not(why));
    }
    let device = std::fs::metadata(path)
        .map_err(|e| Error::io("stat", path, e))?
        .dev();
    let table = mount_table().map_err(|e| Error::io("read the mounts above", path, e))?;
    source(&table, (major(device), minor(device)))
        .ok_or_else(|| not("no mount tells the dataset that it is on".to_owned()))
}

/// The dataset that is mounted with this device number.
fn source(table: &[MountPoint], device: (u32, u32)) -> Option<String> {
    let mut of_it = table
        .iter()
        .filter(|m| m.fs_type == "zfs" && m.device == device);
    let name = of_it.next()?.source.to_str()?;
    // A snapshot cannot have children.
    (!name.contains('@')).then(|| name.to_owned())
}

/// A dataset that somebody else made, if it can hold layers.
fn checked(kernel: &Zfs, name: &str) -> Result<String> {
    let invalid = |why: String| Error::InvalidOption {
        key: FSNAME.to_owned(),
        why,
    };
    match kernel.has(name) {
        Ok(true) if !name.contains('@') => {}
        Ok(true) => return Err(invalid(format!("{name} is a snapshot"))),
        Ok(false) => return Err(invalid(format!("there is no dataset {name}"))),
        Err(e) => return Err(invalid(format!("{name}: {e}"))),
    }
    let wanted = "type,casesensitivity,normalization";
    let found = zfs(&["get", "-H", "-o", "value", wanted, name], None).map_err(|e| e.alone())?;
    suitable(name, &found).map_err(Error::IncompatibleFs)?;
    Ok(name.to_owned())
}

/// Whether values of type, case sensitivity and normalization are those of a dataset that holds layers.
fn suitable(name: &str, values: &str) -> Result<(), String> {
    let values: Vec<&str> = values.lines().map(str::trim).collect();
    match values[..] {
        ["filesystem", "sensitive", "none"] => Ok(()),
        ["filesystem", "sensitive", form] => Err(format!(
            "zfs {name} takes some different names for one (normalization={form})"
        )),
        ["filesystem", case, _] => Err(format!(
            "zfs {name} takes names that differ in case for one (casesensitivity={case})"
        )),
        _ => Err(format!("zfs {name} is no filesystem")),
    }
}

/// What the home has on record.
fn recorded(home: &Path) -> Result<Option<String>> {
    let path = home.join(RECORD);
    match std::fs::read_to_string(&path) {
        Ok(text) if is_name(&text) => Ok(Some(text)),
        Ok(_) => Err(Error::Other(format!(
            "{}: names no dataset; the layers are children of the dataset that the property {HOME} says is of this home",
            path.display()
        ))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, e)),
    }
}

/// Whether a text can be the name of a dataset below another one.
fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.: ".contains(&b);
    text.len() <= MAX_NAME
        && text.contains('/')
        && text
            .split('/')
            .all(|part| !part.is_empty() && part.bytes().all(plain))
}

/// Makes the dataset of a home.
fn make(name: &str, home: &Path) -> Result<String> {
    let mut arguments = vec!["create"];
    for property in PROPERTIES {
        arguments.extend(["-o", property]);
    }
    let home = String::from_utf8_lossy(home.as_os_str().as_bytes());
    let of_home = format!("{HOME}={home}");
    arguments.extend(["-o", &of_home, name]);
    zfs(&arguments, None).map_err(|e| e.alone())?;
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("pool/graph-1f-0", true)]
    #[case("pool", false)]
    #[case("", false)]
    #[case("pool//x", false)]
    #[case("pool/x\n", false)]
    #[case("pool/x@y", false)]
    fn a_record_names_a_dataset_or_is_refused(#[case] text: &str, #[case] is: bool) {
        assert_eq!(is_name(text), is);
        let home = tempfile::tempdir().unwrap();
        assert_eq!(recorded(home.path()).unwrap(), None);
        std::fs::write(home.path().join(RECORD), text).unwrap();
        match recorded(home.path()) {
            Ok(found) => assert!(is && found.as_deref() == Some(text)),
            Err(e) => assert!(!is && e.to_string().contains(HOME), "{e}"),
        }
    }

    #[rstest]
    #[case("filesystem\nsensitive\nnone\n", None)]
    #[case("filesystem\ninsensitive\nnone\n", Some("casesensitivity=insensitive"))]
    #[case("filesystem\nsensitive\nformD\n", Some("normalization=formD"))]
    #[case("volume\n-\n-\n", Some("no filesystem"))]
    #[case("", Some("no filesystem"))]
    fn datasets_that_mix_names_up_are_refused(#[case] values: &str, #[case] why: Option<&str>) {
        match (suitable("p/x", values), why) {
            (Ok(()), None) => {}
            (Err(said), Some(why)) => assert!(said.contains(why), "{said}"),
            (found, _) => panic!("{found:?}"),
        }
    }

    #[test]
    fn the_dataset_is_found_by_its_device() {
        let mount = |fs_type: &str, device, source: &str| MountPoint {
            fs_type: fs_type.to_owned(),
            device,
            source: source.into(),
            ..mount_table().unwrap()[0].clone()
        };
        let table = [
            mount("ext4", (0, 40), "/dev/vda"),
            mount("zfs", (0, 41), "pool"),
            mount("zfs", (0, 42), "pool/a"),
            mount("zfs", (0, 43), "pool/a@snap"),
        ];
        assert_eq!(source(&table, (0, 42)).as_deref(), Some("pool/a"));
        assert_eq!(source(&table, (0, 40)), None);
        assert_eq!(source(&table, (0, 43)), None);
        assert_eq!(source(&table, (0, 44)), None);
    }

    #[test]
    fn a_home_elsewhere_is_refused_before_anything_is_made() {
        let tmp = tempfile::tempdir().unwrap();
        let e = lies_on(tmp.path()).unwrap_err();
        assert!(matches!(e, Error::Prerequisites(_)), "{e}");
        assert!(e.to_string().contains(FSNAME), "{e}");
    }
}
