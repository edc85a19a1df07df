//! Choosing cases: by words of a command line, by level, by tag.

use std::sync::Arc;

use globset::Glob;

use super::{Case, Level, Library};

/// What to run of a library; the default is everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// A case is selected by any of these; empty: every case. Each is a requirement's id; else, with one of `*?[{`, a glob of
    /// `suite/name` or `suite/name#row`; else a whole `suite/name` or `suite/name#row`; else a part of it.
    pub filters: Vec<String>,
    /// The lowest level; `None`: all levels.
    pub level: Option<Level>,
    /// A case is selected by any of these tags; empty: with or without tags.
    pub tags: Vec<String>,
}

impl Selection {
    /// The selected cases, in the library's order.
    ///
    /// # Errors
    /// A filter or a tag that selects nothing is named, as is a glob that is not one: a misspelt name must not pass for success.
    pub fn select(&self, library: &Library) -> Result<Vec<Arc<Case>>, String> {
        let all: Vec<&Arc<Case>> = library.cases().collect();
        let mut by_filter = vec![self.filters.is_empty(); all.len()];
        for filter in &self.filters {
            let matches = Matcher::new(filter, library)?;
            let mut any = false;
            for (case, selected) in all.iter().zip(&mut by_filter) {
                let hit = matches.hit(case);
                *selected |= hit;
                any |= hit;
            }
            if !any {
                return Err(format!(
                    "the filter `{filter}` selects no scenario; `graphtest list scenarios` shows all"
                ));
            }
        }
        for tag in &self.tags {
            if !all.iter().any(|c| c.scenario.tags.contains(tag)) {
                return Err(format!("no scenario has the tag `{tag}`"));
            }
        }
        let selected: Vec<Arc<Case>> = all
            .into_iter()
            .zip(by_filter)
            .filter(|(case, by_filter)| *by_filter && self.level_and_tags(case))
            .map(|(case, _)| Arc::clone(case))
            .collect();
        if selected.is_empty() {
            return Err(
                "nothing is selected: no scenario has all of the filter, the level and the tag"
                    .to_string(),
            );
        }
        Ok(selected)
    }

    fn level_and_tags(&self, case: &Case) -> bool {
        let scenario = &case.scenario;
        self.level.is_none_or(|lowest| scenario.level >= lowest)
            && (self.tags.is_empty() || self.tags.iter().any(|t| scenario.tags.contains(t)))
    }
}

enum Matcher<'a> {
    Requirement(&'a str),
    Glob(globset::GlobMatcher),
    Whole(&'a str),
    Part(&'a str),
}

impl<'a> Matcher<'a> {
    fn new(filter: &'a str, library: &Library) -> Result<Self, String> {
        if library.requirements.contains_key(filter) {
            return Ok(Self::Requirement(filter));
        }
        if filter.contains(['*', '?', '[', '{']) {
            let glob = Glob::new(filter)
                .map_err(|e| format!("the filter `{filter}` is not a glob: {e}"))?;
            return Ok(Self::Glob(glob.compile_matcher()));
        }
        let whole = Self::Whole(filter);
        Ok(if library.cases().any(|c| whole.hit(c)) {
            whole
        } else {
            Self::Part(filter)
        })
    }

    fn hit(&self, case: &Case) -> bool {
        let (id, label) = (&case.scenario.id.0, case.label());
        match self {
            Self::Requirement(requirement) => case.scenario.proves.iter().any(|r| r == requirement),
            Self::Glob(glob) => glob.is_match(id) || glob.is_match(&label),
            Self::Whole(name) => id == name || label == *name,
            Self::Part(part) => label.contains(part),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rstest::rstest;

    use super::*;
    use crate::graphtest::{Location, Requirement, Scenario, ScenarioId, Suite};

    fn library() -> Library {
        let scenario = |id: &str, proves: &str, level, tag: &str| {
            Arc::new(Scenario {
                id: ScenarioId(id.to_string()),
                at: Location {
                    file: "s.yaml".into(),
                    line: 1,
                },
                proves: vec![proves.to_string()],
                level,
                must: "It holds.".to_string(),
                from: Vec::new(),
                tags: vec![tag.to_string()],
                hints: Vec::new(),
                catches: vec!["a-mutant".to_string()],
            })
        };
        let scenarios = vec![
            scenario("life/create", "LIFE-1", Level::Must, "quick"),
            scenario("life/create-twice", "LIFE-2", Level::Should, "quick"),
            scenario("tree/modes", "TREE-1", Level::May, "slow"),
        ];
        let case = |scenario: &Arc<Scenario>, name: Option<&str>| {
            Arc::new(Case {
                scenario: Arc::clone(scenario),
                name: name.map(str::to_string),
                needs: Vec::new(),
                catches: Vec::new(),
                backing: None,
                steps: Vec::new().into(),
                by_limit: None,
            })
        };
        let cases = vec![
            case(&scenarios[0], None),
            case(&scenarios[1], Some("a")),
            case(&scenarios[1], Some("ab")),
            case(&scenarios[2], None),
        ];
        let requirement = |id: &str| {
            let value = Requirement {
                id: id.to_string(),
                text: String::new(),
                why: None,
                from: Vec::new(),
            };
            (id.to_string(), Arc::new(value))
        };
        let suite = Suite {
            file: "s.yaml".into(),
            name: "s".to_string(),
            about: String::new(),
            scenarios,
            cases,
        };
        Library {
            suites: vec![suite],
            requirements: BTreeMap::from(["LIFE-1", "LIFE-2", "TREE-1"].map(requirement)),
        }
    }

    #[rstest]
    #[case(&[], None, &[], &["life/create", "life/create-twice#a", "life/create-twice#ab", "tree/modes"])]
    #[case(&["life/create"], None, &[], &["life/create"])]
    #[case(&["life/create-twice#a"], None, &[], &["life/create-twice#a"])]
    #[case(&["life/create-twice"], None, &[], &["life/create-twice#a", "life/create-twice#ab"])]
    #[case(&["creat"], None, &[], &["life/create", "life/create-twice#a", "life/create-twice#ab"])]
    #[case(&["*/mod*", "LIFE-1"], None, &[], &["life/create", "tree/modes"])]
    #[case(&["*#a"], None, &[], &["life/create-twice#a"])]
    #[case(&[], Some(Level::Should), &[], &["life/create", "life/create-twice#a", "life/create-twice#ab"])]
    #[case(&[], None, &["slow"], &["tree/modes"])]
    #[case(&["life"], Some(Level::Must), &["quick"], &["life/create"])]
    fn selects(
        #[case] filters: &[&str],
        #[case] level: Option<Level>,
        #[case] tags: &[&str],
        #[case] expected: &[&str],
    ) {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_string()).collect();
        let selection = Selection {
            filters: owned(filters),
            level,
            tags: owned(tags),
        };
        let found: Vec<String> = selection
            .select(&library())
            .unwrap()
            .iter()
            .map(|c| c.label())
            .collect();
        assert_eq!(found, expected);
    }

    #[rstest]
    #[case(&["life", "lief"], None, &[], "`lief`")]
    #[case(&["a["], None, &[], "not a glob")]
    #[case(&[], None, &["quik"], "`quik`")]
    #[case(&["tree"], Some(Level::Must), &[], "nothing is selected")]
    fn nothing_selected_is_an_error(
        #[case] filters: &[&str],
        #[case] level: Option<Level>,
        #[case] tags: &[&str],
        #[case] says: &str,
    ) {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_string()).collect();
        let selection = Selection {
            filters: owned(filters),
            level,
            tags: owned(tags),
        };
        let error = selection.select(&library()).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}
