//! The programs of a guest: Debian packages, unpacked in the cache. They are run on the host too, where making a guest needs
//! mke2fs or depmod: so nothing has to be installed.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::cache::Cache;
use super::error::{Result, at, cannot};
use super::index::{Index, Package};
use super::mirror::Mirrors;
use super::program::Program;
use super::recipe::{self, GuestRecipe, Release};
use super::{deb, fetch};

/// Unpacked packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Userland {
    root: PathBuf,
    /// What tells it from others.
    pub(super) digest: String,
}

/// What was last taken for a release.
#[derive(Debug, Serialize, Deserialize)]
struct Lookup {
    digest: String,
}

/// Where libraries and the loader are.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

impl Userland {
    /// That for a program as the cache has it; `Ok(None)`: it is not there.
    ///
    /// # Errors
    /// The program needs a newer C library than any release has.
    pub fn cached(cache: &Cache, program: &Program) -> Result<Option<Self>> {
        let name = lookup_name(&release_for(program)?);
        let Ok(text) = fs::read(cache.path("lookups", &name)) else {
            return Ok(None);
        };
        let Ok(lookup) = serde_json::from_slice::<Lookup>(&text) else {
            return Ok(None);
        };
        let root = cache.path("userlands", &lookup.digest);
        Ok(root.exists().then(|| Self::at(cache, lookup.digest)))
    }

    /// Looks the packages up, fetches and unpacks them, unless the cache has them.
    ///
    /// # Errors
    /// As [`Userland::cached`]; the mirror cannot be read; something is not what its digest says.
    pub fn fetch(
        cache: &Cache,
        mirrors: &Mirrors,
        program: &Program,
        note: &mut dyn FnMut(String),
    ) -> Result<Self> {
        let recipe = recipe::guest()?;
        let release = release_for(program)?;
        let index = Index::load(cache, mirrors, &release.suites, note)?;
        let userland = Self::make(cache, &index, &recipe, note)?;
        let lookup = Lookup {
            digest: userland.digest.clone(),
        };
        cache.renew("lookups", &lookup_name(&release), |path| {
            let text = serde_json::to_string_pretty(&lookup).map_err(at(path, "write"))?;
            fs::write(path, text).map_err(at(path, "write"))
        })?;
        Ok(userland)
    }

    /// Fetches and unpacks the packages that a recipe names, unless the cache has them.
    ///
    /// # Errors
    /// As [`Userland::fetch`].
    pub(super) fn make(
        cache: &Cache,
        index: &Index,
        recipe: &GuestRecipe,
        note: &mut dyn FnMut(String),
    ) -> Result<Self> {
        let packages = index.closure(&recipe.packages, &recipe.without)?;
        let mut digests: Vec<&str> = packages.iter().map(|p| p.sha256.as_str()).collect();
        digests.extend(recipe.drop.iter().map(String::as_str));
        let digest = fetch::sha256(digests.concat().as_bytes())[..32].to_string();
        let root = cache.item("userlands", &digest, |part| {
            let size: u64 = packages.iter().map(|p| p.size).sum();
            note(format!(
                "fetching {} packages for guests ({} MB)",
                packages.len(),
                size >> 20
            ));
            unpack(&packages, &recipe.drop, part)
        })?;
        Ok(Self { root, digest })
    }

    /// One that the cache has.
    pub(super) fn at(cache: &Cache, digest: String) -> Self {
        Self {
            root: cache.path("userlands", &digest),
            digest,
        }
    }

    /// Where it is.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the lists of modules in `usr/lib/modules/RELEASE` of a tree anew: depmod(8).
    ///
    /// # Errors
    /// Those of [`Userland::run`].
    pub(super) fn list_modules(&self, tree: &Path, release: &str) -> Result<()> {
        let words: [&OsStr; 3] = ["-b".as_ref(), tree.as_os_str(), release.as_ref()];
        self.run("usr/bin/kmod", "depmod", &words)
    }

    /// Where a library or the loader of this name is.
    pub(super) fn library(&self, name: &Path) -> PathBuf {
        self.root.join(LIBRARIES).join(name)
    }

    /// Runs one of its programs on the host, with its own loader and libraries; `name` is what the program is called by.
    ///
    /// # Errors
    /// It cannot be started, or fails: with the last line that it says.
    pub(super) fn run(&self, program: &str, name: &str, arguments: &[&OsStr]) -> Result<()> {
        let libraries = self.root.join(LIBRARIES);
        let out = Command::new(libraries.join("ld-linux-x86-64.so.2"))
            .arg("--argv0")
            .arg(name)
            .arg("--library-path")
            .arg(&libraries)
            .arg(self.root.join(program))
            .args(arguments)
            .env("LC_ALL", "C")
            .env("MKE2FS_CONFIG", self.root.join("etc/mke2fs.conf"))
            .stdin(Stdio::null())
            .output()
            .map_err(|e| cannot(format!("{name}: {e}")))?;
        if out.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&out.stderr);
        let last = text.lines().rfind(|l| !l.trim().is_empty());
        Err(cannot(format!(
            "{name}: {}: {}",
            out.status,
            last.unwrap_or("says nothing")
        )))
    }
}

fn lookup_name(release: &Release) -> String {
    format!("guest-{}", release.libc)
}

/// The oldest release whose C library is new enough for a program.
fn release_for(program: &Program) -> Result<Release> {
    let recipe = recipe::guest()?;
    let needed = program.glibc();
    let fits = |release: &Release| needed.is_none() || release.libc() >= needed;
    recipe.releases.into_iter().find(fits).ok_or_else(|| {
        let (major, minor) = needed.unwrap_or_default();
        cannot(format!(
            "this graphtest needs version {major}.{minor} of the C library, which no release in vm/guest.yaml has; build it for \
             x86_64-unknown-linux-musl, or on an older release"
        ))
    })
}

/// Fetches packages and unpacks them into a new root, but for paths that are left out.
pub(super) fn unpack(packages: &[Package], drop: &[String], root: &Path) -> Result<()> {
    fs::create_dir_all(root).map_err(at(root, "make"))?;
    let package_file = root.join("package.deb");
    let wanted = |path: &Path| !drop.iter().any(|d| path.starts_with(d));
    for package in packages {
        package.fetch(&package_file)?;
        deb::unpack(&package_file, root, &wanted)?;
    }
    fs::remove_file(&package_file).map_err(at(&package_file, "remove"))?;
    for name in deb::MERGED {
        let (link, target) = (root.join(name), Path::new("usr").join(name));
        fs::create_dir_all(root.join(&target)).map_err(at(&link, "make"))?;
        symlink(&target, &link).map_err(at(&link, "make"))?;
    }
    Ok(())
}
