//! Where packages come from: the user's own mirror, as apt has it.

use std::path::{Path, PathBuf};

use super::error::{Result, cannot};

/// The mirrors of Debian's archive and of its security archive, and the keys they are signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirrors {
    debian: String,
    security: String,
    /// Keyrings that exist, as gpgv(1) reads them.
    pub(super) keyrings: Vec<PathBuf>,
}

/// One source of apt: see sources.list(5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    signed_by: Option<PathBuf>,
}

/// Where Debian's package of its keys puts them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Names by which a source is known to be Debian's own archive.
const RELEASES: &[&str] = &[
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "sid",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

impl Mirrors {
    /// The mirror of this name if there is one, else that of `$GRAPHTEST_MIRROR`, else those that apt is set up with.
    ///
    /// # Errors
    /// There is none.
    pub fn find(named: Option<&str>) -> Result<Self> {
        let variable = std::env::var("GRAPHTEST_MIRROR").ok();
        let named = named
            .map(str::to_string)
            .or(variable.filter(|v| !v.is_empty()));
        match named {
            Some(uri) => Ok(Self::of_uri(&uri)),
            None => Self::of_sources(&sources(Path::new("/etc/apt"))),
        }
    }

    fn of_uri(uri: &str) -> Self {
        let debian = uri.trim_end_matches('/').to_string();
        Self {
            security: format!("{debian}-security"),
            debian,
            keyrings: existing([KEYRING.into()]),
        }
    }

    fn of_sources(sources: &[Source]) -> Result<Self> {
        let find = |which: fn(&str) -> bool| {
            let mut all = sources.iter().filter(|s| s.suites.iter().any(|n| which(n)));
            all.find_map(|s| Some((s.uris.first()?.trim_end_matches('/').to_string(), s)))
        };
        let is_release = |name: &str| RELEASES.contains(&name);
        let is_security = |name: &str| {
            let release = name
                .strip_suffix("-security")
                .or(name.strip_suffix("/updates"));
            release.is_some_and(|r| RELEASES.contains(&r))
        };
        let Some((debian, source)) = find(is_release) else {
            return Err(cannot(
                "apt is not set up with a mirror of Debian here; name one: --mirror URI, or GRAPHTEST_MIRROR",
            ));
        };
        let security =
            find(is_security).map_or_else(|| format!("{debian}-security"), |(uri, _)| uri);
        let rings = source.signed_by.clone().into_iter().chain([KEYRING.into()]);
        Ok(Self {
            debian,
            security,
            keyrings: existing(rings),
        })
    }

    /// The archive that has a suite.
    pub fn base(&self, suite: &str) -> &str {
        if suite.ends_with("-security") {
            &self.security
        } else {
            &self.debian
        }
    }
}

fn existing(paths: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = paths
        .into_iter()
        .filter(|p| p.extension().is_some_and(|e| e == "gpg" || e == "pgp") && p.is_file())
        .collect();
    found.dedup();
    found
}

/// Everything that apt's directory names; files that cannot be read are passed over, as apt's own users see there.
fn sources(etc: &Path) -> Vec<Source> {
    let mut files = vec![etc.join("sources.list")];
    let dir = std::fs::read_dir(etc.join("sources.list.d"));
    let mut more: Vec<PathBuf> = dir
        .into_iter()
        .flatten()
        .filter_map(|e| Some(e.ok()?.path()))
        .collect();
    more.sort();
    files.extend(more);
    let mut found = Vec::new();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|e| e.to_str()) {
            Some("list") => found.extend(text.lines().filter_map(one_line)),
            Some("sources") => found.extend(stanzas(&text)),
            _ => {}
        }
    }
    found
}

/// `deb [options] URI SUITE COMPONENT...`
fn one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let mut rest = line.strip_prefix("deb ")?.trim();
    let mut signed_by = None;
    if let Some(after) = rest.strip_prefix('[') {
        let (options, after) = after.split_once(']')?;
        let mut options = options.split_whitespace();
        signed_by = options.find_map(|o| o.strip_prefix("signed-by=").map(PathBuf::from));
        rest = after.trim();
    }
    let mut words = rest.split_whitespace().map(str::to_string);
    Some(Source {
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        signed_by,
    })
}

/// Paragraphs of `Key: value`, as deb822(5) has them.
fn stanzas(text: &str) -> Vec<Source> {
    let mut all = vec![Source::default()];
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        if line.trim().is_empty() {
            all.push(Source::default());
            continue;
        }
        let (Some((key, value)), Some(source)) = (line.split_once(':'), all.last_mut()) else {
            continue;
        };
        let words = || value.split_whitespace().map(str::to_string).collect();
        match key.to_ascii_lowercase().as_str() {
            "uris" => source.uris = words(),
            "suites" => source.suites = words(),
            "signed-by" => source.signed_by = Some(value.trim().into()),
            "enabled" if value.trim() == "no" => source.uris.clear(),
            _ => {}
        }
    }
    all.retain(|s| !s.uris.is_empty());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirrors(files: &[(&str, &str)]) -> Result<Mirrors> {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir(tmp.path().join("sources.list.d")).unwrap();
        for (name, text) in files {
            std::fs::write(tmp.path().join(name), text).unwrap();
        }
        Mirrors::of_sources(&sources(tmp.path()))
    }

    #[test]
    fn mirrors_are_those_of_apt() {
        let old = "# deb http://no.example/debian bookworm main\n\
                   deb [arch=amd64 signed-by=/nowhere.gpg] http://a.example/debian/ bookworm main\n\
                   deb http://s.example/debian-security bookworm-security main\n";
        let found = mirrors(&[("sources.list", old)]).unwrap();
        assert_eq!(found.base("trixie-backports"), "http://a.example/debian");
        assert_eq!(
            found.base("trixie-security"),
            "http://s.example/debian-security"
        );
        let other = "Types: deb\nURIs: http://other.example/x\nSuites: nodistro\n\n\
                     Types: deb\nURIs: http://off.example/debian\nSuites: trixie\nEnabled: no\n\n\
                     # said\nTypes: deb\nURIs: http://b.example/debian\nSuites: trixie trixie-updates\n";
        let found = mirrors(&[("sources.list.d/debian.sources", other)]).unwrap();
        assert_eq!(found.base("trixie"), "http://b.example/debian");
        assert_eq!(
            found.base("bookworm-security"),
            "http://b.example/debian-security"
        );
    }

    #[test]
    fn without_a_mirror_it_is_said_how_to_name_one() {
        let e = mirrors(&[("sources.list", "deb http://u.example/ubuntu noble main")]).unwrap_err();
        assert!(e.to_string().contains("--mirror"), "{e}");
    }
}
