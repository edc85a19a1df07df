//! Kernels: packaged ones, fetched and unpacked in the cache, and a user's own.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cache::Cache;
use super::error::{Result, VmError, at, cannot};
use super::index::{Index, Package};
use super::mirror::Mirrors;
use super::recipe;
use super::userland::Userland;
use super::{deb, fetch};

/// A kernel that a guest can be started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What it was asked for by.
    pub name: String,
    /// As `uname -r` says in the guest.
    pub release: String,
    /// The image that the emulator loads.
    pub image: PathBuf,
    /// Directories that hold modules of this release, such as `/lib/modules/RELEASE`; a file of a later one takes the place of that of an
    /// earlier one.
    pub(super) modules: Vec<PathBuf>,
    /// What tells it, with its modules, from others of the same release.
    pub(super) digest: String,
    /// The programs of its guests, where they are others than usual.
    pub(super) programs: Option<Userland>,
}

/// What a name stood for when it was last looked up.
#[derive(Debug, Serialize, Deserialize)]
struct Lookup {
    release: String,
    digest: String,
    packages: Vec<Package>,
}

impl Kernel {
    /// The kernel of this name in `vm/kernels.yaml` as the cache has it.
    ///
    /// # Errors
    /// There is no such kernel. `Ok(None)`: it is not in the cache.
    pub fn cached(cache: &Cache, name: &str) -> Result<Option<Self>> {
        recipe::kernel(name)?;
        let text = match fs::read(cache.path("lookups", name)) {
            Ok(text) => text,
            Err(_) => return Ok(None),
        };
        let Ok(lookup) = serde_json::from_slice::<Lookup>(&text) else {
            return Ok(None);
        };
        let dir = cache.path("kernels", &lookup.digest);
        Ok(dir.exists().then(|| Self::unpacked(name, &lookup, &dir)))
    }

    /// Looks the kernel of this name up in the package index, fetches what of it the cache does not have, and unpacks it.
    ///
    /// # Errors
    /// There is no such kernel, here or on the mirror; the mirror cannot be read; something is not what its digest says.
    pub fn fetch(
        cache: &Cache,
        mirrors: &Mirrors,
        name: &str,
        note: &mut dyn FnMut(String),
    ) -> Result<Self> {
        let entry = recipe::kernel(name)?;
        let index = Index::load(cache, mirrors, &entry.suites, note)?;
        let Some(image) = index.newest(&entry.package)? else {
            return Err(cannot(format!(
                "kernel {name}: the mirror has no {} in {} any more",
                entry.package,
                entry.suites.join(", ")
            )));
        };
        let packages = with_parts(&index, image)?;
        let release = image.name.trim_start_matches("linux-image-").to_string();
        let digests: String = packages.iter().map(|p| p.sha256.as_str()).collect();
        let lookup = Lookup {
            digest: fetch::sha256(digests.as_bytes())[..32].to_string(),
            release,
            packages,
        };
        let dir = cache.item("kernels", &lookup.digest, |part| {
            unpack(&lookup, part, note)
        })?;
        cache.renew("lookups", name, |path| {
            let text = serde_json::to_string_pretty(&lookup).map_err(at(path, "write"))?;
            fs::write(path, text).map_err(at(path, "write"))
        })?;
        Ok(Self::unpacked(name, &lookup, &dir))
    }

    fn unpacked(name: &str, lookup: &Lookup, dir: &Path) -> Self {
        Self {
            name: name.to_string(),
            release: lookup.release.clone(),
            image: dir.join(IMAGE),
            modules: vec![dir.join("usr/lib/modules").join(&lookup.release)],
            digest: lookup.digest.clone(),
            programs: None,
        }
    }

    /// A kernel image of the user's own, without modules.
    ///
    /// # Errors
    /// It cannot be read, or is no kernel for x86.
    pub fn own(image: &Path) -> Result<Self> {
        let image = fs::canonicalize(image)
            .map_err(|e| VmError::Unknown(format!("{}: {e}", image.display())))?;
        let release = release_of(&image)
            .map_err(|e| VmError::Unknown(format!("{}: {e}", image.display())))?;
        Ok(Self {
            name: image.display().to_string(),
            release,
            image,
            modules: Vec::new(),
            digest: "own".to_string(),
            programs: None,
        })
    }

    /// The same kernel with the modules that a directory has for it beside those that it has: the directory itself, or its
    /// `lib/modules/RELEASE` (where `make modules_install INSTALL_MOD_PATH=DIR` puts them) or `usr/lib/modules/RELEASE`.
    ///
    /// # Errors
    /// It has none for this release, or cannot be read.
    pub fn with_modules(mut self, dir: &Path) -> Result<Self> {
        let below = ["lib/modules", "usr/lib/modules"].map(|d| dir.join(d).join(&self.release));
        let is_itself = dir.file_name().is_some_and(|n| *n == *self.release);
        let itself = is_itself.then(|| dir.to_path_buf());
        let Some(found) = itself.into_iter().chain(below).find(|d| d.is_dir()) else {
            return Err(VmError::Unknown(format!(
                "{}: no modules for {}: expected them in lib/modules/{2} there, as `make modules_install INSTALL_MOD_PATH={0}` leaves \
                 them, found no such directory",
                dir.display(),
                self.name,
                self.release
            )));
        };
        let found = fs::canonicalize(&found).map_err(at(&found, "resolve"))?;
        let files = modules_in(&found)?;
        if files.is_empty() {
            let why = format!("{}: no modules: no *.ko files", found.display());
            return Err(VmError::Unknown(why));
        }
        let text = format!("{} {}", self.digest, files.join("\n"));
        self.digest = fetch::sha256(text.as_bytes())[..32].to_string();
        self.modules.push(found);
        Ok(self)
    }

    /// The file with the configuration that it was built with, where there is one beside it.
    pub fn config(&self) -> Option<PathBuf> {
        let dir = self.image.parent()?;
        let name = format!("config-{}", self.release);
        // A build leaves the image in arch/x86/boot of the tree.
        let of_build = dir.ancestors().nth(3).map(|top| top.join(".config"));
        let of_modules = self.modules.iter().map(|m| m.join("config"));
        let all = [dir.join("boot").join(&name), dir.join(&name)];
        let mut all = all.into_iter().chain(of_modules).chain(of_build);
        all.find(|path| path.is_file())
    }
}

/// The modules below a directory, a line each that changes when the file does; sorted.
fn modules_in(dir: &Path) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(dir).map_err(at(dir, "read"))? {
        let path = entry.map_err(at(dir, "read"))?.path();
        let meta = fs::symlink_metadata(&path).map_err(at(&path, "stat"))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if meta.is_dir() {
            lines.extend(modules_in(&path)?);
        } else if ["ko", "ko.xz", "ko.zst", "ko.gz"]
            .iter()
            .any(|end| name.strip_suffix(end).is_some_and(|n| n.ends_with('.')))
        {
            let time = (meta.mtime(), meta.mtime_nsec());
            lines.push(format!("{} {} {time:?}", path.display(), meta.size()));
        }
    }
    lines.sort();
    Ok(lines)
}

/// Where an unpacked kernel's image is.
const IMAGE: &str = "vmlinuz";

/// The image's package with those of the same kernel that it needs: since 7.0 image, modules and lists are packages of their own.
fn with_parts(index: &Index, image: &Package) -> Result<Vec<Package>> {
    let mut all = vec![image.clone()];
    let mut next = 0;
    while let Some(package) = all.get(next) {
        let needs: Vec<&String> = package.depends.iter().flatten().collect();
        let parts = needs.into_iter().filter(|name| {
            ["linux-binary-", "linux-modules-", "linux-base-"]
                .iter()
                .any(|start| name.starts_with(start))
        });
        let parts: Vec<Package> = parts.filter_map(|name| index.get(name)).cloned().collect();
        all.extend(parts);
        all.dedup_by(|a, b| a.name == b.name);
        next += 1;
        if next > 16 {
            return Err(cannot(format!(
                "{}: its packages need each other without end",
                image.name
            )));
        }
    }
    Ok(all)
}

/// Fetches and unpacks a kernel's packages into `dir`: the image, and the modules.
fn unpack(lookup: &Lookup, dir: &Path, note: &mut dyn FnMut(String)) -> Result<()> {
    fs::create_dir_all(dir).map_err(at(dir, "make"))?;
    let package_file = dir.join("package.deb");
    for package in &lookup.packages {
        note(format!(
            "fetching {} {} ({} MB)",
            package.name,
            package.version,
            package.size >> 20
        ));
        package.fetch(&package_file)?;
        deb::unpack(&package_file, dir, &|path| {
            path.starts_with("boot") || path.starts_with("usr/lib/modules")
        })?;
    }
    fs::remove_file(&package_file).map_err(at(&package_file, "remove"))?;
    let modules = dir.join("usr/lib/modules").join(&lookup.release);
    let candidates = [
        dir.join(format!("boot/vmlinuz-{}", lookup.release)),
        modules.join("vmlinuz"),
    ];
    let Some(image) = candidates.iter().find(|p| p.is_file()) else {
        return Err(cannot(format!(
            "{}: its packages hold no kernel image",
            lookup.release
        )));
    };
    fs::rename(image, dir.join(IMAGE)).map_err(at(image, "rename"))?;
    if !modules.join("kernel").is_dir() {
        return Err(cannot(format!(
            "{}: its packages hold no modules",
            lookup.release
        )));
    }
    Ok(())
}

/// The release in the header of a bzImage: Documentation/arch/x86/boot.rst, `kernel_version`.
fn release_of(image: &Path) -> std::io::Result<String> {
    let mut file = File::open(image)?;
    let mut header = [0; 0x250];
    let not = || std::io::Error::other("not a kernel image for x86 (bzImage)");
    file.read_exact(&mut header).map_err(|_| not())?;
    if &header[0x202..0x206] != b"HdrS" {
        return Err(not());
    }
    let offset = u64::from(u16::from_le_bytes([header[0x20e], header[0x20f]])) + 0x200;
    file.seek(SeekFrom::Start(offset))?;
    let mut text = Vec::new();
    file.take(256).read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let word = text.split([' ', '\0']).next().unwrap_or_default();
    if word.is_empty() {
        Err(not())
    } else {
        Ok(word.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_own_kernel_says_its_release() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("bzImage");
        let mut image = vec![0; 0x1000];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x300u16.to_le_bytes());
        image[0x500..0x50c].copy_from_slice(b"6.9.1-x (me)");
        fs::write(&path, &image).unwrap();
        assert_eq!(Kernel::own(&path).unwrap().release, "6.9.1-x");
        fs::write(&path, "text").unwrap();
        let e = Kernel::own(&path).unwrap_err();
        assert!(e.to_string().contains("not a kernel image"), "{e}");
        assert!(matches!(
            Kernel::own(&tmp.path().join("none")),
            Err(VmError::Unknown(_))
        ));
    }

    #[test]
    fn modules_are_found_and_tell_kernels_apart() {
        let tmp = tempfile::tempdir().unwrap();
        let bare = Kernel {
            name: "./bzImage".to_string(),
            release: "6.9.1-x".to_string(),
            image: tmp.path().join("bzImage"),
            modules: Vec::new(),
            digest: "own".to_string(),
            programs: None,
        };
        let e = bare.clone().with_modules(tmp.path()).unwrap_err();
        assert!(matches!(e, VmError::Unknown(_)));
        assert!(e.to_string().contains("lib/modules/6.9.1-x"), "{e}");
        let dir = tmp.path().join("lib/modules/6.9.1-x");
        fs::create_dir_all(dir.join("kernel/fs")).unwrap();
        let e = bare.clone().with_modules(tmp.path()).unwrap_err();
        assert!(e.to_string().contains("no *.ko files"), "{e}");
        fs::write(dir.join("kernel/fs/a.ko.xz"), "one").unwrap();
        let one = bare.clone().with_modules(tmp.path()).unwrap();
        assert_eq!(one.modules, [fs::canonicalize(&dir).unwrap()]);
        assert_eq!(bare.clone().with_modules(&dir).unwrap(), one);
        fs::write(dir.join("kernel/fs/b.ko"), "more").unwrap();
        let two = bare.clone().with_modules(tmp.path()).unwrap();
        assert!(two.digest != one.digest && one.digest != bare.digest);
    }
}
