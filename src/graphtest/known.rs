//! Known results: scenarios that are expected to fail on certain targets, backings or kernels, each with a reason and a link.
//!
//! ```yaml
//! - scenario: whiteouts/*        # a glob of scenario ids, or of `suite/name#row`
//!   targets: [aufs]              # globs; left out: all
//!   backings: [tmpfs]
//!   kernels: ">=5.4, <5.11"      # release numbers; left out: all
//!   reason: The kernel loses opaque markers on tmpfs.
//!   link: https://github.com/moby/moby/issues/1
//! ```

use std::path::Path;

use globset::{Glob, GlobMatcher};
use serde::{Deserialize, Serialize};

use super::event::CellStart;

/// One entry of a file of known results, as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// A glob of scenario ids, or of ids with rows.
    pub scenario: String,
    /// Globs of targets; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
    /// Globs of backings; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backings: Vec<String>,
    /// Comparisons with release numbers, all of which must hold; empty: all kernels.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernels: String,
    /// Why it fails.
    pub reason: String,
    /// Where that is recorded.
    pub link: String,
}

/// A comparison with a kernel release.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Comparison {
    /// `<`, `<=`, `>`, `>=` or `=`.
    operator: &'static str,
    release: Vec<u32>,
}

/// An entry, ready to be asked.
#[derive(Clone, Debug)]
struct Rule {
    scenario: GlobMatcher,
    targets: Vec<GlobMatcher>,
    backings: Vec<GlobMatcher>,
    kernels: Vec<Comparison>,
    reason: String,
}

/// All known results of a run.
#[derive(Clone, Debug, Default)]
pub struct Known {
    rules: Vec<Rule>,
}

impl Known {
    /// Reads a file, or every `*.yaml` file of a directory in the order of their names.
    ///
    /// # Errors
    /// The file cannot be read, or what is wrong in it, with its name.
    pub fn load(path: &Path) -> Result<Self, String> {
        let said = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let mut files = vec![path.to_path_buf()];
        if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(|e| said(path, &e))?;
            files = entries.filter_map(Result::ok).map(|e| e.path()).collect();
            files.retain(|p| p.extension().is_some_and(|e| e == "yaml"));
            files.sort();
        }
        let mut known = Self::default();
        for file in files {
            let text = std::fs::read_to_string(&file).map_err(|e| said(&file, &e))?;
            let entries: Vec<Entry> = serde_yaml::from_str(&text).map_err(|e| said(&file, &e))?;
            for (i, entry) in entries.into_iter().enumerate() {
                let rule = Rule::new(entry);
                known
                    .rules
                    .push(rule.map_err(|e| said(&file, &format!("entry {}: {e}", i + 1)))?);
            }
        }
        Ok(known)
    }

    /// Why this scenario is known to fail in this cell; `None` when it is not.
    pub fn reason(&self, cell: &CellStart, id: &str, label: &str) -> Option<&str> {
        let any = |globs: &[GlobMatcher], name: &str| {
            globs.is_empty() || globs.iter().any(|g| g.is_match(name))
        };
        let rule = self.rules.iter().find(|r| {
            (r.scenario.is_match(id) || r.scenario.is_match(label))
                && any(&r.targets, &cell.target)
                && any(&r.backings, &cell.backing)
                && r.kernels.iter().all(|c| c.holds(&cell.kernel))
        });
        rule.map(|r| r.reason.as_str())
    }
}

impl Rule {
    fn new(entry: Entry) -> Result<Self, String> {
        let glob = |text: &String| {
            Glob::new(text)
                .map(|g| g.compile_matcher())
                .map_err(|e| e.to_string())
        };
        if entry.reason.trim().is_empty() || entry.link.trim().is_empty() {
            return Err("`reason` and `link` must say something".to_string());
        }
        let kernels = entry
            .kernels
            .split(',')
            .map(str::trim)
            .filter(|c| !c.is_empty());
        Ok(Self {
            scenario: glob(&entry.scenario)?,
            targets: entry.targets.iter().map(glob).collect::<Result<_, _>>()?,
            backings: entry.backings.iter().map(glob).collect::<Result<_, _>>()?,
            kernels: kernels.map(Comparison::new).collect::<Result<_, _>>()?,
            reason: format!("{} ({})", entry.reason.trim(), entry.link.trim()),
        })
    }
}

impl Comparison {
    fn new(text: &str) -> Result<Self, String> {
        // The longer operators first: `<=` also begins with `<`.
        let operator = ["<=", ">=", "<", ">", "="]
            .into_iter()
            .find(|o| text.starts_with(o));
        let wrong = || format!("kernels: expected a comparison such as \">=5.4\", found {text:?}");
        let operator = operator.ok_or_else(wrong)?;
        let release = release(text[operator.len()..].trim());
        if release.is_empty() {
            Err(wrong())
        } else {
            Ok(Self { operator, release })
        }
    }

    /// Compares as many numbers as the comparison names: 5.4.3 is `=5.4`.
    fn holds(&self, kernel: &str) -> bool {
        let mut found = release(kernel);
        found.resize(self.release.len(), 0);
        match self.operator {
            "<" => found < self.release,
            "<=" => found <= self.release,
            ">" => found > self.release,
            ">=" => found >= self.release,
            _ => found == self.release,
        }
    }
}

/// The leading numbers of a release: `6.1.0-18-amd64` is 6, 1, 0.
fn release(text: &str) -> Vec<u32> {
    let numbers = text
        .split(|c: char| c != '.' && !c.is_ascii_digit())
        .next()
        .unwrap_or_default();
    numbers.split('.').map_while(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn known(kernels: &str) -> Known {
        let entry = Entry {
            scenario: "whiteouts/*".to_string(),
            targets: vec!["overlay*".to_string()],
            backings: vec!["tmpfs".to_string()],
            kernels: kernels.to_string(),
            reason: "broken".to_string(),
            link: "https://example.org/1".to_string(),
        };
        Known {
            rules: vec![Rule::new(entry).unwrap()],
        }
    }

    #[rstest]
    #[case("", "overlay2", "tmpfs", "whiteouts/a", true)]
    #[case("", "vfs", "tmpfs", "whiteouts/a", false)]
    #[case("", "overlay2", "dir", "whiteouts/a", false)]
    #[case("", "overlay2", "tmpfs", "life/a", false)]
    #[case(">=6.1", "overlay2", "tmpfs", "whiteouts/a", true)]
    #[case("<6.1", "overlay2", "tmpfs", "whiteouts/a", false)]
    #[case(">=5.4, <6.2", "overlay2", "tmpfs", "whiteouts/a", true)]
    #[case("=6.1", "overlay2", "tmpfs", "whiteouts/a", true)]
    #[case("<=6", "overlay2", "tmpfs", "whiteouts/a", true)]
    #[case(">6.1.5", "overlay2", "tmpfs", "whiteouts/a", false)]
    #[case("<6.10", "overlay2", "tmpfs", "whiteouts/a", true)]
    fn rules_apply_where_they_say(
        #[case] kernels: &str,
        #[case] target: &str,
        #[case] backing: &str,
        #[case] id: &str,
        #[case] applies: bool,
    ) {
        let cell = CellStart {
            target: target.to_string(),
            backing: backing.to_string(),
            kernel: "6.1.5-18-amd64".to_string(),
        };
        assert_eq!(known(kernels).reason(&cell, id, id).is_some(), applies);
    }

    #[rstest]
    #[case("- {scenario: a, reason: x}", "link")]
    #[case("- {scenario: a, reason: '', link: x}", "entry 1")]
    #[case("- {scenario: a, reason: x, link: x, kernels: 5.4}", "comparison")]
    #[case("- {scenario: 'a[', reason: x, link: x}", "entry 1")]
    #[case("- {scenario: a, reason: x, link: x, target: y}", "unknown field")]
    fn bad_files_say_what_is_wrong(#[case] text: &str, #[case] says: &str) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("k.yaml"), text).unwrap();
        let error = Known::load(dir.path()).unwrap_err();
        assert!(error.contains("k.yaml") && error.contains(says), "{error}");
    }
}
