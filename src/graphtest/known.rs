//! Known results: scenarios that are expected to fail on certain targets, backings or kernels, each with a reason and a link.
//!
//! ```yaml
//! - scenario: whiteouts/opaque-*   # a glob of scenario ids, or of `suite/name#row`
//!   targets: [aufs]                # globs; left out: all
//!   backings: [tmpfs]
//!   kernels: ">=5.4, <5.11"        # release numbers; left out: all
//!   status: {aufs: "<5"}           # keys of the driver's status, with versions; left out: all
//!   reason: The kernel loses opaque markers on tmpfs.
//!   link: https://github.com/moby/moby/issues/1
//!   fixed: Linux 5.11              # what mends it, when that is known
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use globset::{Glob, GlobMatcher};
use serde::Serialize;

use super::builtin;
use super::condition::{Condition, Ground};
use super::lang::{Cx, Fields, Part, Raw};
use super::scenario::Location;
use super::{Library, Outcome, yaml};

/// One entry of a file of known results, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// A glob of scenario ids, or of ids with rows.
    pub scenario: String,
    /// Globs of targets; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
    /// Globs of backings; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backings: Vec<String>,
    /// Comparisons with release numbers, all of which must hold; empty: all kernels.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kernels: String,
    /// Comparisons with what the driver's status says under these keys; empty: whatever it says.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub status: BTreeMap<String, String>,
    /// Why it fails.
    pub reason: String,
    /// Where that is recorded.
    pub link: String,
    /// What mends it: a kernel, a version of a tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fixed: Option<String>,
}

impl Entry {
    fn decode(node: &yaml::Node, cx: &mut Cx) -> Option<Self> {
        let mut fields = Fields::open(node, cx, "a known result, which begins with `scenario:`")?;
        let scenario = fields.take("scenario", cx);
        let targets = fields.take("targets", cx);
        let backings = fields.take("backings", cx);
        let kernels = fields.take::<Option<String>>("kernels", cx);
        let status = fields.take("status", cx);
        let reason = fields.take("reason", cx);
        let link = fields.take("link", cx);
        let fixed = fields.take("fixed", cx);
        fields.finish(cx);
        Some(Self {
            scenario: scenario?,
            targets: targets?,
            backings: backings?,
            kernels: kernels?.unwrap_or_default(),
            status: status?,
            reason: reason?,
            link: link?,
            fixed: fixed?,
        })
    }
}

/// An entry, ready to be asked.
#[derive(Clone, Debug)]
struct Rule {
    at: Location,
    entry: Entry,
    scenario: GlobMatcher,
    targets: Vec<GlobMatcher>,
    backings: Vec<GlobMatcher>,
    condition: Condition,
}

/// All known results of a run.
#[derive(Clone, Debug, Default)]
pub struct Known {
    rules: Vec<Rule>,
}

impl Known {
    /// The files of `suites/known/`, which are built in.
    ///
    /// # Errors
    /// Never for a released version: the crate's own tests load them.
    pub fn builtin() -> Result<Self, String> {
        let files = builtin::KNOWN.iter();
        Self::from_texts(files.map(|(file, text)| (file.to_string(), text.to_string())))
    }

    /// Reads a file, or every `*.yaml` file of a directory in the order of their names.
    ///
    /// # Errors
    /// A file cannot be read, or everything that is wrong in them, a line each with file and line.
    pub fn load(path: &Path) -> Result<Self, String> {
        Self::from_texts(Self::texts(path)?)
    }

    /// The names and texts of the files that [`Known::load`] reads.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(crate) fn texts(path: &Path) -> Result<Vec<(String, String)>, String> {
        let said = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let mut files = vec![path.to_path_buf()];
        if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(|e| said(path, &e))?;
            files = entries.filter_map(Result::ok).map(|e| e.path()).collect();
            files.retain(|p| p.extension().is_some_and(|e| e == "yaml"));
            files.sort();
        }
        let mut texts = Vec::new();
        for file in files {
            let text = std::fs::read_to_string(&file).map_err(|e| said(&file, &e))?;
            texts.push((file.display().to_string(), text));
        }
        Ok(texts)
    }

    /// Reads texts, each with the name that its errors carry.
    ///
    /// # Errors
    /// Everything that is wrong in them.
    pub(crate) fn from_texts(
        texts: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, String> {
        let (mut rules, mut wrong) = (Vec::new(), Vec::new());
        for (file, text) in texts {
            let file: Arc<str> = file.into();
            let mut cx = Cx::new(file.clone());
            match yaml::parse(&file, &text) {
                Err(e) => cx.errors.push(e),
                Ok(list) => {
                    let items = Vec::<Raw>::decode(&list, &mut cx).unwrap_or_default();
                    rules.extend(
                        items
                            .iter()
                            .filter_map(|Raw(item)| Rule::new(item, &mut cx)),
                    );
                }
            }
            wrong.extend(cx.errors.iter().map(ToString::to_string));
        }
        if wrong.is_empty() {
            Ok(Self { rules })
        } else {
            Err(wrong.join("\n"))
        }
    }

    /// Why a case is known to fail there, with the link and what mends it; `None` when it is not. Cases go by their label, `suite/name`
    /// or `suite/name#row`.
    pub fn reason(&self, ground: &Ground, label: &str) -> Option<String> {
        let mut rules = self.rules.iter();
        let rule = rules.find(|r| r.is_about(label) && r.applies(ground));
        rule.map(|r| r.entry.told())
    }

    /// Whether there are known results of this target: whatever is tried on it by chance, they would be found again and again.
    pub fn concern(&self, target: &str) -> bool {
        let mut rules = self.rules.iter();
        rules.any(|r| r.targets.iter().any(|t| t.is_match(target)))
    }

    /// Where the results are recorded, one for each entry.
    pub fn links(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(|rule| rule.entry.link.trim())
    }

    /// Which rules are about a case there, by their place in the list.
    fn about<'a>(&'a self, ground: &'a Ground, label: &'a str) -> impl Iterator<Item = usize> + 'a {
        let rules = self.rules.iter().enumerate();
        rules
            .filter(|(_, r)| r.is_about(label) && r.applies(ground))
            .map(|(i, _)| i)
    }
}

/// How the reason of a result that failed as known begins.
pub(super) const KNOWN: &str = "known: ";

impl Entry {
    /// Reason, link and what mends it, in one line.
    fn told(&self) -> String {
        let fixed = self.fixed.as_ref().map(|f| format!("; mended by {f}"));
        let (reason, link) = (self.reason.trim(), self.link.trim());
        format!("{reason} ({link}{})", fixed.unwrap_or_default())
    }
}

/// Takes the reason of a result that failed as known apart: the entry's reason and its link. `None` for that of any other result.
pub fn told_apart(reason: &str) -> Option<(&str, &str)> {
    let inner = reason.strip_prefix(KNOWN)?.strip_suffix(')')?;
    let (reason, link) = inner.rsplit_once(" (")?;
    Some((reason, link.split("; mended by ").next().unwrap_or(link)))
}

impl Rule {
    fn new(node: &yaml::Node, cx: &mut Cx) -> Option<Self> {
        let entry = Entry::decode(node, cx)?;
        let rule = Self::compile(entry, cx.at(node.line));
        rule.map_err(|e| cx.wrong(node.line, e)).ok()
    }

    fn compile(entry: Entry, at: Location) -> Result<Self, String> {
        let glob = |text: &String| {
            Glob::new(text)
                .map(|g| g.compile_matcher())
                .map_err(|e| e.to_string())
        };
        if entry.reason.trim().is_empty() || entry.link.trim().is_empty() {
            return Err("`reason` and `link` must say something".to_string());
        }
        Ok(Self {
            at,
            scenario: glob(&entry.scenario)?,
            targets: entry.targets.iter().map(glob).collect::<Result<_, _>>()?,
            backings: entry.backings.iter().map(glob).collect::<Result<_, _>>()?,
            condition: Condition::new(&entry.kernels, &entry.status)?,
            entry,
        })
    }

    fn is_about(&self, label: &str) -> bool {
        let id = label.split('#').next().unwrap_or(label);
        self.scenario.is_match(id) || self.scenario.is_match(label)
    }

    fn applies(&self, ground: &Ground) -> bool {
        let any = |globs: &[GlobMatcher], name: &str| {
            globs.is_empty() || globs.iter().any(|g| g.is_match(name))
        };
        any(&self.targets, &ground.cell.target)
            && any(&self.backings, &ground.cell.backing)
            && self.condition.holds(ground)
    }
}

/// How the known results fared in a run: which of them did not do what they are there for.
#[derive(Clone, Debug)]
pub struct Tally<'a> {
    known: &'a Known,
    met: Vec<Met>,
}

/// What one rule met.
#[derive(Clone, Copy, Debug, Default)]
struct Met {
    /// Results that failed as known.
    failed: bool,
    /// Results that could not be tried.
    skipped: bool,
}

impl<'a> Tally<'a> {
    /// Nothing was run yet.
    pub fn new(known: &'a Known) -> Self {
        Self {
            known,
            met: vec![Met::default(); known.rules.len()],
        }
    }

    /// Takes a result in.
    pub fn add(&mut self, ground: &Ground, label: &str, outcome: Outcome) {
        for rule in self.known.about(ground, label) {
            self.met[rule].failed |= outcome != Outcome::Skip;
            self.met[rule].skipped |= outcome == Outcome::Skip;
        }
    }

    /// Lines that match no scenario of the library and, of a run that had everything a line can apply to, lines that met only skipped
    /// results. A line that met a pass is told by that result, which is an unexpected pass.
    pub fn stale(&self, library: &Library, whole: bool) -> Vec<String> {
        let rules = self.known.rules.iter().zip(&self.met);
        let stale = rules.filter_map(|(rule, met)| {
            let why = if !library.cases().any(|c| rule.is_about(&c.label())) {
                "matches no scenario"
            } else if whole && met.skipped && !met.failed {
                "everything it applies to is skipped"
            } else {
                return None;
            };
            Some(format!("{}: `{}` {why}", rule.at, rule.entry.scenario))
        });
        stale.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::CellStart;
    use super::super::load::from_texts;
    use super::super::target::built_in;
    use super::*;
    use rstest::rstest;

    fn ground(target: &str, backing: &str) -> Ground {
        Ground {
            cell: CellStart {
                target: target.to_string(),
                backing: backing.to_string(),
                kernel: "6.1.5-18-amd64".to_string(),
            },
            status: [("Tool".to_string(), "1.9".to_string())].into(),
        }
    }

    fn read(text: &str) -> Result<Known, String> {
        Known::from_texts([("k.yaml".to_string(), text.to_string())])
    }

    /// A suite `s` with the scenarios `a` and `b`.
    fn library() -> Library {
        let scenario = |id: &str| {
            format!(
                "  - {{id: {id}, proves: LIFE-1, level: must, must: Holds., catches: dup-create-wipes, steps: [{{create: x}}]}}\n"
            )
        };
        let text = format!(
            "suite: s\nabout: x\nscenarios:\n{}{}",
            scenario("a"),
            scenario("b")
        );
        from_texts([("s.yaml".to_string(), text)]).unwrap()
    }

    #[rstest]
    #[case("", "overlay2", "tmpfs", "s/a", true)]
    #[case("", "vfs", "tmpfs", "s/a", false)]
    #[case("", "overlay2", "dir", "s/a", false)]
    #[case("", "overlay2", "tmpfs", "s/b", false)]
    #[case("kernels: '>=6.1'", "overlay2", "tmpfs", "s/a", true)]
    #[case("kernels: '<6.1'", "overlay2", "tmpfs", "s/a", false)]
    #[case("status: {Tool: <1.14}", "overlay2", "tmpfs", "s/a", true)]
    #[case("status: {Tool: <1.8}", "overlay2", "tmpfs", "s/a", false)]
    #[case("status: {Other: <1.8}", "overlay2", "tmpfs", "s/a", false)]
    fn rules_apply_where_they_say(
        #[case] more: &str,
        #[case] target: &str,
        #[case] backing: &str,
        #[case] id: &str,
        #[case] applies: bool,
    ) {
        let known = read(&format!(
            "- scenario: s/a*\n  targets: [overlay*]\n  backings: [tmpfs]\n  reason: broken\n  link: L\n  {more}\n"
        ))
        .unwrap();
        let reason = known.reason(&ground(target, backing), id);
        assert_eq!(reason, applies.then(|| "broken (L)".to_string()));
    }

    #[rstest]
    #[case(
        "- {scenario: a, reason: x}",
        "k.yaml:1: expected the key `link`, found none"
    )]
    #[case(
        "- {scenario: a, reason: '', link: x}",
        "k.yaml:1: `reason` and `link` must"
    )]
    #[case(
        "\n- {scenario: a, reason: x, link: x, kernels: 5.4}",
        "k.yaml:2: kernels: expected comparisons"
    )]
    #[case("- {scenario: 'a[', reason: x, link: x}", "k.yaml:1: ")]
    #[case(
        "- scenario: a\n  target: y\n  reason: x\n  link: x",
        "k.yaml:2: expected one of: "
    )]
    #[case("a: b", "k.yaml:1: expected a list")]
    fn bad_files_say_what_is_wrong_and_where(#[case] text: &str, #[case] says: &str) {
        let error = read(text).unwrap_err();
        assert!(error.starts_with(says), "{error}");
    }

    #[test]
    fn what_is_told_can_be_taken_apart() {
        let known = read("- {scenario: s/a, reason: Broken (badly)., link: L, fixed: Tool 2}");
        let reason = known.unwrap().reason(&ground("vfs", "dir"), "s/a").unwrap();
        assert_eq!(reason, "Broken (badly). (L; mended by Tool 2)");
        assert_eq!(
            told_apart(&format!("{KNOWN}{reason}")),
            Some(("Broken (badly).", "L"))
        );
        assert_eq!(told_apart("may, and does not: x (y)"), None);
    }

    #[test]
    fn lines_that_do_nothing_are_stale() {
        let text = "- {scenario: s/a, reason: x, link: L}\n- {scenario: s/gone, reason: x, link: L}\n- {scenario: s/b, targets: [vfs], reason: x, link: L}\n";
        let known = read(text).unwrap();
        let stale = |outcomes: &[(&str, &str, Outcome)], whole| {
            let mut tally = Tally::new(&known);
            for (target, id, outcome) in outcomes {
                tally.add(&ground(target, "dir"), id, *outcome);
            }
            tally.stale(&library(), whole)
        };
        let gone = "k.yaml:2: `s/gone` matches no scenario";
        let skipped = "k.yaml:3: `s/b` everything it applies to is skipped";
        let ran = [
            ("vfs", "s/a", Outcome::XFail),
            ("vfs", "s/b", Outcome::Skip),
            ("aufs", "s/b", Outcome::Fail),
        ];
        assert_eq!(stale(&ran, true), [gone, skipped]);
        assert_eq!(stale(&ran, false), [gone]);
        let elsewhere = [("aufs", "s/b", Outcome::Skip)];
        assert_eq!(stale(&elsewhere, true), [gone]);
        let both = [
            ("vfs", "s/b", Outcome::Skip),
            ("vfs", "s/b", Outcome::XFail),
        ];
        assert_eq!(stale(&both, true), [gone]);
    }

    #[test]
    fn the_built_in_lines_are_about_what_there_is() {
        let known = Known::builtin().unwrap();
        let library = super::super::load::builtin().unwrap();
        assert_eq!(
            Tally::new(&known).stale(&library, false),
            Vec::<String>::new()
        );
        for rule in &known.rules {
            for target in &rule.targets {
                let any = built_in().iter().any(|t| target.is_match(t.name()));
                assert!(any, "{}: no target `{}`", rule.at, target.glob());
            }
        }
    }
}
