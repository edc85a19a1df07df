//! The kernel's zfs in guests: the modules, built once for each kernel from Debian's source, inside a root made from packages and never
//! with this machine's own tools, and the programs of the same version.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::cache::Cache;
use super::error::{Result, at, cannot};
use super::fetch;
use super::index::{Index, Package};
use super::kernel::Kernel;
use super::mirror::Mirrors;
use super::program::Program;
use super::recipe;
use super::userland::{self, Userland};
use crate::sys::cpus;
use crate::sys::remove::remove_tree;
use crate::sys::spawn::die_with_starter;

/// What `vm/zfs.yaml` says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    releases: Vec<Release>,
    components: Vec<String>,
    programs: Vec<String>,
    source: String,
    tools: Vec<String>,
    without: Vec<String>,
}

/// A release of Debian, and the kernels that its zfs can be built for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Release {
    kernels: Vec<String>,
    libc: String,
    suites: Vec<String>,
}

const RECIPE: &str = include_str!("../../../vm/zfs.yaml");

fn recipe() -> Result<Recipe> {
    serde_yaml::from_str(RECIPE).map_err(|e| cannot(format!("vm/zfs.yaml: {e}")))
}

/// What was last taken for a kernel.
#[derive(Debug, Serialize, Deserialize)]
struct Lookup {
    /// The item with the modules.
    modules: String,
    /// The item with the programs.
    programs: String,
    /// The version of both.
    version: String,
}

/// The script that is run in the root of the build, and what it leaves the modules in.
const SCRIPT: &str = include_str!("zfs-build.sh");
const BUILT: &str = "built";
/// What it says goes here.
const LOG: &str = "build.log";
/// Files that tools are expected to be by other names: what a package's scripts would set up.
const ALTERNATIVES: &[(&str, &str)] = &[("usr/bin/awk", "mawk")];

impl Kernel {
    /// The same kernel with zfs, as the cache has it; `None`: it has to be built.
    ///
    /// # Errors
    /// There is no zfs for this kernel.
    pub fn cached_with_zfs(&self, cache: &Cache, program: &Program) -> Result<Option<Self>> {
        self.zfs_release(program)?;
        let Ok(text) = fs::read(cache.path("lookups", &self.zfs_lookup())) else {
            return Ok(None);
        };
        let Ok(lookup) = serde_json::from_slice::<Lookup>(&text) else {
            return Ok(None);
        };
        let there = cache.path("modules", &lookup.modules).exists()
            && cache.path("userlands", &lookup.programs).exists();
        Ok(there.then(|| self.clone().joined(cache, lookup)))
    }

    /// Fetches Debian's zfs and builds its modules for this kernel, unless the cache has them: about five minutes of two processors.
    ///
    /// # Errors
    /// There is no zfs for this kernel; the mirror has no headers of it any more; the build fails.
    pub fn with_zfs(
        &self,
        cache: &Cache,
        mirrors: &Mirrors,
        program: &Program,
        note: &mut dyn FnMut(String),
    ) -> Result<Self> {
        let (recipe, release) = self.zfs_release(program)?;
        let mut suites = release.suites.clone();
        suites.extend(recipe::kernel(&self.name)?.suites);
        suites.sort();
        suites.dedup();
        let mut components = vec!["main".to_string()];
        components.extend(recipe.components.iter().cloned());
        let index = Index::load_components(cache, mirrors, &suites, &components, note)?;
        let source = index
            .get(&recipe.source)
            .ok_or_else(|| cannot(format!("the mirror has no {}", recipe.source)))?;
        let headers = format!("linux-headers-{}", self.release);
        if index.get(&headers).is_none() {
            return Err(cannot(format!(
                "kernel {}: the mirror has no {headers} any more; `graphtest vm fetch {0}` fetches the kernel that it has",
                self.name
            )));
        }
        let programs = self.zfs_programs(cache, &recipe, &index, note)?;
        let key = format!("2{}{}{SCRIPT}", self.digest, source.sha256);
        let lookup = Lookup {
            modules: fetch::sha256(key.as_bytes())[..32].to_string(),
            programs: programs.digest.clone(),
            version: source.version.clone(),
        };
        cache.item("modules", &lookup.modules, |part| {
            let mut wanted = recipe.tools.clone();
            wanted.extend([recipe.source.clone(), headers]);
            let packages = index.closure(&wanted, &recipe.without)?;
            let size: u64 = packages.iter().map(|p| p.size).sum();
            note(format!(
                "building zfs {} for {} from {} packages ({} MB): this takes about five minutes, once",
                source.version,
                self.release,
                packages.len(),
                size >> 20
            ));
            self.build_zfs(&packages, part)
        })?;
        cache.renew("lookups", &self.zfs_lookup(), |path| {
            let text = serde_json::to_string_pretty(&lookup).map_err(at(path, "write"))?;
            fs::write(path, text).map_err(at(path, "write"))
        })?;
        Ok(self.clone().joined(cache, lookup))
    }

    fn zfs_lookup(&self) -> String {
        format!("zfs-{}", self.digest)
    }

    /// The release whose zfs is for this kernel, and whose C library the graphtest program can run with.
    fn zfs_release(&self, program: &Program) -> Result<(Recipe, Release)> {
        let recipe = recipe()?;
        let named = |r: &&Release| r.kernels.contains(&self.name);
        let Some(release) = recipe.releases.iter().find(named).cloned() else {
            let all = recipe.releases.iter().flat_map(|r| r.kernels.iter());
            let all: Vec<&str> = all.map(String::as_str).collect();
            return Err(cannot(format!(
                "kernel {}: no zfs for it; there is one for {}",
                self.name,
                all.join(", ")
            )));
        };
        let needed = program.glibc();
        if needed.is_some() && recipe::version(&release.libc) < needed {
            return Err(cannot(format!(
                "kernel {}: zfs for it comes with version {} of the C library, with which this graphtest does not run",
                self.name, release.libc
            )));
        }
        Ok((recipe, release))
    }

    /// The programs of a guest with those of zfs.
    fn zfs_programs(
        &self,
        cache: &Cache,
        recipe: &Recipe,
        index: &Index,
        note: &mut dyn FnMut(String),
    ) -> Result<Userland> {
        let mut guest = recipe::guest()?;
        guest.packages.extend(recipe.programs.iter().cloned());
        guest.without.extend(recipe.without.iter().cloned());
        Userland::make(cache, index, &guest, note)
    }

    /// This kernel with other modules and programs.
    fn joined(mut self, cache: &Cache, lookup: Lookup) -> Self {
        self.modules.push(cache.path("modules", &lookup.modules));
        self.digest = lookup.modules;
        self.programs = Some(Userland::at(cache, lookup.programs));
        self
    }

    /// Makes a directory with the modules of zfs for this kernel.
    fn build_zfs(&self, packages: &[Package], part: &Path) -> Result<()> {
        let root = part.join("root");
        userland::unpack(packages, &[], &root)?;
        let release = &self.release;
        build(&root, release).map_err(|e| {
            let log = fs::read_to_string(root.join(LOG)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(12)..].join("\n    ");
            cannot(format!(
                "zfs for {release} cannot be built: {e}\n    {last}"
            ))
        })?;
        let to = part.join("updates/zfs");
        fs::create_dir_all(&to).map_err(at(&to, "make"))?;
        for module in built(&root)? {
            let name = module.file_name().unwrap_or_default();
            fs::rename(&module, to.join(name)).map_err(at(&module, "move"))?;
        }
        remove_tree(&root).map_err(at(&root, "remove"))
    }
}

/// The modules that were built.
fn built(root: &Path) -> Result<Vec<PathBuf>> {
    let dir = root.join(BUILT);
    let entries = fs::read_dir(&dir).map_err(at(&dir, "read"))?;
    let paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    match paths.iter().any(|p| p.ends_with("zfs.ko")) {
        true => Ok(paths),
        false => Err(cannot(format!("{}: holds no zfs.ko", dir.display()))),
    }
}

/// Runs the script in a root of packages: as root of a user namespace, for which nobody has to be root, with this machine's devices and
/// processes and nothing else of it.
fn build(root: &Path, release: &str) -> Result<()> {
    for dir in ["dev", "proc", "sys", "tmp", BUILT] {
        let dir = root.join(dir);
        fs::create_dir_all(&dir).map_err(at(&dir, "make"))?;
    }
    for (name, target) in ALTERNATIVES {
        let link = root.join(name);
        if fs::symlink_metadata(&link).is_err() {
            std::os::unix::fs::symlink(target, &link).map_err(at(&link, "make"))?;
        }
    }
    let script = root.join("build.sh");
    fs::write(&script, SCRIPT).map_err(at(&script, "write"))?;
    let log = root.join(LOG);
    let said = File::create(&log).map_err(at(&log, "make"))?;
    let busybox = root.join("usr/bin/busybox");
    let enter = "cd \"$1\" && for d in dev proc; do \"$0\" mount -o rbind /$d $d || exit; done && \
                 exec \"$0\" chroot . /bin/sh /build.sh \"$2\" \"$3\"";
    let jobs = cpus();
    let mut command = Command::new(&busybox);
    command
        .args(["unshare", "--user", "--map-root-user", "--mount"])
        .arg(&busybox)
        .args(["sh", "-c", enter])
        .args([busybox.as_os_str(), root.as_os_str(), release.as_ref()])
        .arg(jobs.to_string())
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(said.try_clone().map_err(at(&log, "make"))?)
        .stderr(said);
    die_with_starter(&mut command);
    let status = command.status().map_err(at(&busybox, "start"))?;
    if status.success() {
        return Ok(());
    }
    Err(cannot(status.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(name: &str) -> Kernel {
        Kernel {
            name: name.to_string(),
            release: "6.1.0".to_string(),
            image: "vmlinuz".into(),
            modules: Vec::new(),
            digest: "d".to_string(),
            programs: None,
        }
    }

    #[test]
    fn the_file_is_as_the_code_reads_it() {
        let recipe = recipe().unwrap();
        for release in &recipe.releases {
            assert!(recipe::version(&release.libc).is_some());
            for name in &release.kernels {
                recipe::kernel(name).unwrap();
            }
        }
    }

    #[test]
    fn a_kernel_without_zfs_is_told_with_those_that_have_it() {
        let tmp = tempfile::tempdir().unwrap();
        let cache = Cache::at(tmp.path());
        let e = kernel("/boot/mine")
            .cached_with_zfs(&cache, &Program::own().unwrap())
            .unwrap_err();
        assert!(e.to_string().contains("there is one for 5.10, 6.1"), "{e}");
        assert_eq!(
            kernel("6.1")
                .cached_with_zfs(&cache, &Program::own().unwrap())
                .unwrap(),
            None
        );
    }

    #[test]
    fn what_was_built_is_found_again() {
        let tmp = tempfile::tempdir().unwrap();
        let cache = Cache::at(tmp.path());
        let plain = kernel("6.1");
        let lookup = r#"{"modules": "m", "programs": "p", "version": "2.1"}"#;
        fs::write(cache.subdir("lookups").unwrap().join("zfs-d"), lookup).unwrap();
        assert_eq!(
            plain
                .cached_with_zfs(&cache, &Program::own().unwrap())
                .unwrap(),
            None
        );
        fs::create_dir(cache.subdir("modules").unwrap().join("m")).unwrap();
        fs::create_dir(cache.subdir("userlands").unwrap().join("p")).unwrap();
        let found = plain
            .cached_with_zfs(&cache, &Program::own().unwrap())
            .unwrap()
            .unwrap();
        assert_eq!(
            (found.digest.as_str(), found.release.as_str()),
            ("m", "6.1.0")
        );
        assert_eq!(found.modules, [cache.path("modules", "m")]);
    }
}
