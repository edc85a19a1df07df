//! Debian's binary packages: deb(5). An archive of `ar` with a compressed tar in it.

use std::fs::{self, File, Permissions};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use super::error::{Result, at};

/// The directories of the root that are links to those of the same name below `usr`.
pub(super) const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// Unpacks the files of a package below `root`, as far as `wanted` says of their paths, which have no leading slash. `bin`,
/// `sbin`, `lib` and `lib64` are those below `usr`, as in every release since 2023. Owners and times are left.
pub(super) fn unpack(deb: &Path, root: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<()> {
    let unpacked = data(deb).and_then(|data| {
        let mut archive = tar::Archive::new(data);
        for entry in archive.entries()? {
            unpack_entry(&mut entry?, root, wanted)?;
        }
        Ok(())
    });
    unpacked.map_err(at(deb, "unpack"))
}

fn unpack_entry(
    entry: &mut tar::Entry<'_, impl Read>,
    root: &Path,
    wanted: &dyn Fn(&Path) -> bool,
) -> io::Result<()> {
    let name = inside(&entry.path()?)?;
    if name.as_os_str().is_empty() || !wanted(&name) {
        return Ok(());
    }
    let to = root.join(&name);
    let kind = entry.header().entry_type();
    // Releases since 2025 have the links themselves in a package; whoever makes a root makes them.
    if kind.is_symlink() && MERGED.iter().any(|d| name == Path::new("usr").join(d)) {
        return Ok(());
    }
    if kind.is_dir() {
        return fs::create_dir_all(&to);
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
        // A package could have put a symbolic link there.
        if !fs::canonicalize(parent)?.starts_with(fs::canonicalize(root)?) {
            return Err(io::Error::other(format!(
                "{}: leads outside",
                name.display()
            )));
        }
    }
    match fs::remove_file(&to) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let link = || entry.link_name()?.ok_or(io::ErrorKind::InvalidData.into());
    if kind.is_symlink() {
        let target: io::Result<_> = link();
        symlink(target?, &to)
    } else if kind.is_hard_link() {
        let target: io::Result<_> = link();
        fs::hard_link(root.join(inside(&target?)?), &to)
    } else if kind.is_file() {
        let mode = entry.header().mode()? & 0o777;
        io::copy(entry, &mut File::create(&to)?)?;
        fs::set_permissions(&to, Permissions::from_mode(mode))
    } else {
        Ok(())
    }
}

/// A name in a package as a path below the root, with `/usr` merged.
fn inside(name: &Path) -> io::Result<PathBuf> {
    let mut path = PathBuf::new();
    for part in name.components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir | Component::RootDir => {}
            _ => {
                return Err(io::Error::other(format!(
                    "{}: leads outside",
                    name.display()
                )));
            }
        }
    }
    let merged = MERGED.iter().any(|d| path.starts_with(d));
    Ok(if merged {
        Path::new("usr").join(path)
    } else {
        path
    })
}

/// The tar with the files of a package.
fn data(deb: &Path) -> io::Result<Box<dyn Read>> {
    let mut file = File::open(deb)?;
    let mut magic = [0; 8];
    file.read_exact(&mut magic)?;
    if &magic != b"!<arch>\n" {
        return Err(io::Error::other("not a Debian package"));
    }
    loop {
        let mut header = [0; 60];
        file.read_exact(&mut header)?;
        let text = |range: std::ops::Range<usize>| {
            String::from_utf8_lossy(&header[range])
                .trim_end_matches([' ', '/'])
                .to_string()
        };
        let (name, size) = (text(0..16), text(48..58).parse::<u64>());
        let size = size.map_err(|_| io::Error::other("a member without a size"))?;
        if !name.starts_with("data.tar") {
            // Members begin at even offsets.
            file.seek(SeekFrom::Current((size + size % 2).cast_signed()))?;
            continue;
        }
        let member = BufReader::new(file.take(size));
        return match name.as_str() {
            "data.tar.xz" => Ok(Box::new(lzma_rust2::XzReader::new(member, true))),
            "data.tar.gz" => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(member))),
            "data.tar" => Ok(Box::new(member)),
            other => Err(io::Error::other(format!(
                "{other}: a compression that is not known"
            ))),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A package with these files; those that begin with `->` are symbolic links.
    fn deb(files: &[(&str, &str)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, text) in files {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o755);
            let bytes = &mut header.as_old_mut().name;
            bytes[..name.len()].copy_from_slice(name.as_bytes());
            if let Some(target) = text.strip_prefix("->") {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_link_name_literal(target).unwrap();
                header.set_size(0);
                header.set_cksum();
                tar.append(&header, io::empty()).unwrap();
            } else {
                header.set_size(text.len() as u64);
                header.set_cksum();
                tar.append(&header, text.as_bytes()).unwrap();
            }
        }
        let tar = tar.into_inner().unwrap();
        let mut all = b"!<arch>\n".to_vec();
        for (name, bytes) in [("debian-binary", &b"2.0\n\n"[..3]), ("data.tar", &tar)] {
            let header = format!(
                "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n",
                0,
                0,
                0,
                100644,
                bytes.len()
            );
            all.extend(header.as_bytes());
            all.extend(bytes);
            if bytes.len() % 2 == 1 {
                all.push(b'\n');
            }
        }
        all
    }

    fn unpacked(files: &[(&str, &str)]) -> (tempfile::TempDir, Result<()>) {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("x.deb");
        fs::write(&path, deb(files)).unwrap();
        let root = tmp.path().join("root");
        fs::create_dir(&root).unwrap();
        let wanted = |path: &Path| !path.starts_with("usr/share");
        let result = unpack(&path, &root, &wanted);
        (tmp, result)
    }

    #[test]
    fn files_are_unpacked_with_usr_merged() {
        let (tmp, result) = unpacked(&[
            ("./sbin/tool", "program"),
            ("./usr/share/doc/x", "text"),
            ("./usr/lib/a.so", "->a.so.1"),
            ("./sbin", "->usr/sbin"),
        ]);
        result.unwrap();
        let root = tmp.path().join("root/usr");
        assert_eq!(fs::read(root.join("sbin/tool")).unwrap(), b"program");
        let mode = fs::metadata(root.join("sbin/tool")).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o755);
        assert_eq!(
            fs::read_link(root.join("lib/a.so")).unwrap(),
            Path::new("a.so.1")
        );
        assert!(!root.join("share").exists());
    }

    #[test]
    fn nothing_is_unpacked_outside() {
        let (tmp, result) = unpacked(&[("../out", "x")]);
        assert!(result.unwrap_err().to_string().contains("leads outside"));
        assert!(!tmp.path().join("out").exists());
        let (tmp, result) = unpacked(&[("./etc", "->../"), ("./etc/out", "x")]);
        assert!(result.unwrap_err().to_string().contains("leads outside"));
        assert!(!tmp.path().join("out").exists());
    }

    #[test]
    fn what_is_no_package_is_said_to_be_none() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("x.deb");
        fs::write(&path, "<html>no</html>").unwrap();
        let e = unpack(&path, tmp.path(), &|_| true).unwrap_err();
        assert!(e.to_string().contains("not a Debian package"), "{e}");
    }
}
