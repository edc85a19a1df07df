//! Debian's package index: which packages suites have, with their digests, from a signed list of digests.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use globset::Glob;
use serde::{Deserialize, Serialize};

use super::cache::Cache;
use super::error::{Result, at, cannot};
use super::fetch::{self, Known};
use super::mirror::Mirrors;
use super::version;

/// The largest index that is read, in bytes.
const LIMIT: u64 = 256 << 20;

/// A package as an index has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Package {
    pub name: String,
    pub version: String,
    /// Where the mirror has it.
    pub uri: String,
    pub sha256: String,
    /// In bytes.
    pub size: u64,
    /// What it needs: any one of each.
    #[serde(default, skip)]
    pub depends: Vec<Vec<String>>,
}

impl Package {
    fn known(&self) -> Known {
        Known {
            sha256: self.sha256.clone(),
            size: self.size,
        }
    }

    /// Fetches it to a path.
    pub(super) fn fetch(&self, path: &Path) -> Result<()> {
        fetch::file(&self.uri, &self.known(), path)
    }
}

/// The packages of some suites, of each name the highest version.
#[derive(Debug, Default)]
pub(super) struct Index {
    packages: HashMap<String, Package>,
    /// Names that packages provide beside their own.
    provided: HashMap<String, String>,
}

impl Index {
    /// Reads the indexes of these suites. `note` is told what could not be checked.
    pub(super) fn load(
        cache: &Cache,
        mirrors: &Mirrors,
        suites: &[String],
        note: &mut dyn FnMut(String),
    ) -> Result<Self> {
        Self::load_components(cache, mirrors, suites, &["main".to_string()], note)
    }

    /// The same of these components of the archive.
    pub(super) fn load_components(
        cache: &Cache,
        mirrors: &Mirrors,
        suites: &[String],
        components: &[String],
        note: &mut dyn FnMut(String),
    ) -> Result<Self> {
        let mut index = Self::default();
        for suite in suites {
            for component in components {
                let text = packages(cache, mirrors, suite, component, note)?;
                index.add(mirrors.base(suite), &text);
            }
        }
        Ok(index)
    }

    /// Takes the paragraphs of a `Packages` file in.
    fn add(&mut self, base: &str, text: &str) {
        for paragraph in text.split("\n\n") {
            if let Some((package, provides)) = parse(base, paragraph) {
                for name in provides {
                    self.provided.entry(name).or_insert(package.name.clone());
                }
                let newer = self
                    .packages
                    .get(&package.name)
                    .is_none_or(|old| version::compare(&package.version, &old.version).is_gt());
                if newer {
                    self.packages.insert(package.name.clone(), package);
                }
            }
        }
    }

    /// The package of this name, or one that provides it.
    pub(super) fn get(&self, name: &str) -> Option<&Package> {
        let by_name = self.packages.get(name);
        by_name.or_else(|| self.packages.get(self.provided.get(name)?))
    }

    /// Of the packages whose names match the glob, that of the highest version.
    pub(super) fn newest(&self, glob: &str) -> Result<Option<&Package>> {
        let matcher = Glob::new(glob)
            .map_err(|e| cannot(e.to_string()))?
            .compile_matcher();
        let found = self.packages.values().filter(|p| {
            let odd = ["-unsigned", "-dbg"]
                .iter()
                .any(|end| p.name.ends_with(end));
            !odd && matcher.is_match(&p.name)
        });
        // Names carry the version too; the order of equal ones must not depend on the map's.
        Ok(found.max_by(|a, b| {
            version::compare(&a.version, &b.version)
                .then_with(|| version::compare(&a.name, &b.name))
        }))
    }

    /// The packages with everything that they need, but for names that `without` matches; sorted by name.
    pub(super) fn closure(&self, names: &[String], without: &[String]) -> Result<Vec<Package>> {
        let mut left_out = globset::GlobSetBuilder::new();
        for glob in without {
            left_out.add(Glob::new(glob).map_err(|e| cannot(e.to_string()))?);
        }
        let left_out = left_out.build().map_err(|e| cannot(e.to_string()))?;
        let mut found: HashMap<&str, &Package> = HashMap::new();
        let mut open: Vec<&Package> = Vec::new();
        for name in names {
            let none = || cannot(format!("no package {name} in the index"));
            open.push(self.get(name).ok_or_else(none)?);
        }
        while let Some(package) = open.pop() {
            if found.insert(&package.name, package).is_some() {
                continue;
            }
            for any in &package.depends {
                if any.iter().any(|name| left_out.is_match(name)) {
                    continue;
                }
                let Some(next) = any.iter().find_map(|name| self.get(name)) else {
                    return Err(cannot(format!(
                        "{} needs {}, which is not in the index",
                        package.name,
                        any.join(" or ")
                    )));
                };
                if !left_out.is_match(&next.name) {
                    open.push(next);
                }
            }
        }
        let mut all: Vec<Package> = found.into_values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }
}

/// One paragraph, with the names that the package provides.
fn parse(base: &str, paragraph: &str) -> Option<(Package, Vec<String>)> {
    let mut fields: HashMap<&str, &str> = HashMap::new();
    for line in paragraph.lines() {
        if let Some((key, value)) = line.split_once(": ") {
            fields.insert(key, value.trim());
        }
    }
    let text = |key: &str| fields.get(key).copied().unwrap_or_default();
    let needs = [text("Pre-Depends"), text("Depends")];
    let depends = needs.iter().flat_map(|list| list.split(','));
    let package = Package {
        name: text("Package").to_string(),
        version: text("Version").to_string(),
        uri: format!("{base}/{}", fields.get("Filename")?),
        sha256: text("SHA256").to_string(),
        size: text("Size").parse().ok()?,
        depends: depends.map(names).filter(|any| !any.is_empty()).collect(),
    };
    let provides = text("Provides").split(',').flat_map(names).collect();
    Some((package, provides))
}

/// `a (>= 1) | b:any` as `a`, `b`.
fn names(any: &str) -> Vec<String> {
    let name = |one: &str| {
        let word = one.split_whitespace().next()?;
        Some(word.split(':').next()?.to_string())
    };
    any.split('|').filter_map(name).collect()
}

/// The text of the `Packages` file of a suite's component: from the cache when the mirror's list of digests still has it.
fn packages(
    cache: &Cache,
    mirrors: &Mirrors,
    suite: &str,
    component: &str,
    note: &mut dyn FnMut(String),
) -> Result<String> {
    let dists = format!("{}/dists/{suite}", mirrors.base(suite));
    let uri = format!("{dists}/InRelease");
    let signed = fetch::bytes(&uri, LIMIT)?;
    if let Some(why) = verify(&uri, &signed, &mirrors.keyrings)? {
        note(format!("{uri}: {why}"));
    }
    let release = String::from_utf8_lossy(&signed);
    let name = format!("{component}/binary-{ARCH}/Packages.xz");
    let known = digest_of(&release, &name)
        .ok_or_else(|| cannot(format!("{uri}: has no SHA-256 of {name}")))?;
    let path = cache.item("indexes", &known.sha256, |part| {
        let plain = format!("{dists}/{name}");
        fetch::file(&plain, &known, part).or_else(|first| {
            // The mirror may be changing at the moment; what is under its digest does not change.
            let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
            let by_hash = format!("{dists}/{dir}/by-hash/SHA256/{}", known.sha256);
            fetch::file(&by_hash, &known, part).map_err(|_| first)
        })
    })?;
    let mut text = String::new();
    let file = std::fs::File::open(&path).map_err(at(&path, "open"))?;
    lzma_rust2::XzReader::new(std::io::BufReader::new(file), true)
        .read_to_string(&mut text)
        .map_err(at(&path, "decompress"))?;
    Ok(text)
}

/// Debian's name of this machine's architecture.
const ARCH: &str = "amd64";

/// A file's line in the list of SHA-256 digests.
fn digest_of(release: &str, name: &str) -> Option<Known> {
    let mut lines = release.lines().skip_while(|l| *l != "SHA256:").skip(1);
    lines
        .by_ref()
        .take_while(|l| l.starts_with(' '))
        .find_map(|line| {
            let mut words = line.split_whitespace();
            let (sha256, size) = (words.next()?.to_string(), words.next()?.parse().ok()?);
            (words.next()? == name).then_some(Known { sha256, size })
        })
}

/// Verifies the signature with gpgv(1). `Some`: it could not be verified here, and why.
///
/// # Errors
/// The signature is wrong.
fn verify(uri: &str, signed: &[u8], keyrings: &[std::path::PathBuf]) -> Result<Option<String>> {
    if keyrings.is_empty() {
        let why = "signature not checked: no keyring of Debian here; Debian's package is debian-archive-keyring";
        return Ok(Some(why.to_string()));
    }
    let mut command = Command::new("gpgv");
    for ring in keyrings {
        command.arg("--keyring").arg(ring);
    }
    let child = command
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let why = "signature not checked: gpgv is not installed; Debian's package is gpgv";
            return Ok(Some(why.to_string()));
        }
        other => other.map_err(|e| cannot(format!("gpgv: {e}")))?,
    };
    let said = |e: std::io::Error| cannot(format!("gpgv: {e}"));
    if let Some(mut to) = child.stdin.take() {
        to.write_all(signed).map_err(said)?;
    }
    let out = child.wait_with_output().map_err(said)?;
    if out.status.success() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&out.stderr);
    let last = text.lines().last().unwrap_or("no good signature").trim();
    Err(cannot(format!("{uri}: wrong signature: {last}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKAGES: &str = "\
Package: linux-image-6.1.0-9-cloud-amd64\nVersion: 6.1.90-1\nFilename: pool/a.deb\nSize: 1\nSHA256: aa\n
Package: linux-image-6.1.0-10-cloud-amd64\nVersion: 6.1.100-1\nFilename: pool/b.deb\nSize: 2\nSHA256: bb\n
Package: linux-image-6.1.0-11-cloud-amd64-unsigned\nVersion: 6.1.101-1\nFilename: pool/c.deb\nSize: 2\nSHA256: cc\n
Package: tool\nVersion: 1\nDepends: lib (>= 2) | other, virtual, python3:any, sed\nFilename: t\nSize: 1\nSHA256: t\n
Package: lib\nVersion: 2\nPre-Depends: tool\nDescription: a: b\n more\nFilename: l\nSize: 1\nSHA256: l\n
Package: real\nVersion: 1\nProvides: virtual (= 3), x\nFilename: r\nSize: 1\nSHA256: r\n
Package: tool\nVersion: 0.9\nFilename: old\nSize: 1\nSHA256: old\n";

    fn index() -> Index {
        let mut index = Index::default();
        index.add("http://m.example/debian", PACKAGES);
        index
    }

    #[test]
    fn the_newest_kernel_of_a_name_is_found() {
        let index = index();
        let found = index.newest("linux-image-6.1.*-cloud-amd64").unwrap();
        let found = found.unwrap();
        assert_eq!(found.name, "linux-image-6.1.0-10-cloud-amd64");
        assert_eq!(found.uri, "http://m.example/debian/pool/b.deb");
        assert!(index.newest("linux-image-6.2.*").unwrap().is_none());
    }

    #[test]
    fn what_a_package_needs_comes_with_it() {
        let index = index();
        let without = ["python3*".to_string(), "sed".to_string()];
        let found = index.closure(&["tool".to_string()], &without).unwrap();
        let names: Vec<&str> = found.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["lib", "real", "tool"]);
        assert_eq!(found[2].version, "1");
        let e = index.closure(&["tool".to_string()], &[]).unwrap_err();
        assert_eq!(
            e.to_string(),
            "tool needs python3, which is not in the index"
        );
    }

    #[test]
    fn digests_are_those_of_the_right_section() {
        let release = "MD5Sum:\n 00 7 main/Packages.xz\nSHA256:\n aa 8 other\n bb 9 main/Packages.xz\nEnd: x\n";
        let found = digest_of(release, "main/Packages.xz").unwrap();
        assert_eq!((found.sha256.as_str(), found.size), ("bb", 9));
        assert_eq!(digest_of(release, "main/none"), None);
    }

    #[test]
    fn an_unsigned_list_is_refused_or_told() {
        let none = verify("u", b"text", &[]).unwrap();
        assert!(none.unwrap().contains("no keyring"));
        // A keyring that holds no key: whoever has gpgv refuses, whoever has none is told.
        let tmp = tempfile::tempdir().unwrap();
        let ring = tmp.path().join("empty.gpg");
        std::fs::write(&ring, "").unwrap();
        match verify("u", b"text", &[ring]) {
            Err(e) => assert!(e.to_string().contains("wrong signature"), "{e}"),
            Ok(said) => assert!(said.unwrap().contains("gpgv is not installed")),
        }
    }
}
