//! Reading suites: from YAML to cases that can be run, or to everything that is wrong with them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use schemars::SchemaGenerator;

mod suite;
pub(crate) mod whole;

pub use suite::ByLimit;
use suite::Loader;

use super::builtin;
use super::hint::Hint;
use super::lang::{OneOrMany, Part, object};
use super::requirement::{self, Requirement};
use super::scenario::{Case, OwnBacking, Suite};
use super::step::Step;
use super::yaml::Located;

/// Everything that is wrong with the files, in the order it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError {
    /// Each located; at least one.
    pub errors: Vec<Located>,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, e) in self.errors.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{e}")?;
        }
        Ok(())
    }
}

impl std::error::Error for LoadError {}

/// Suites and the requirements they refer to.
#[derive(Clone, Debug)]
pub struct Library {
    /// The suites, in the order they were named.
    pub suites: Vec<Suite>,
    /// The requirements by id.
    pub requirements: BTreeMap<String, Arc<Requirement>>,
}

impl Library {
    /// Every case, in order.
    pub fn cases(&self) -> impl Iterator<Item = &Arc<Case>> {
        self.suites.iter().flat_map(|s| &s.cases)
    }
}

/// The suites that are built in.
///
/// # Errors
/// Never for a released version: the crate's own tests load them.
pub fn builtin() -> Result<Library, LoadError> {
    from_texts(
        builtin::SUITES
            .iter()
            .map(|(file, text)| (file.to_string(), text.to_string())),
    )
}

/// The built-in suites of these names, such as `whiteouts`.
///
/// # Errors
/// As [`builtin`].
#[cfg(feature = "vm")]
pub(crate) fn builtin_only(names: &std::collections::BTreeSet<&str>) -> Result<Library, LoadError> {
    let name = |file: &str| {
        let name = file.rsplit('/').next().unwrap_or(file);
        name.trim_end_matches(".yaml").to_string()
    };
    let mine = builtin::SUITES
        .iter()
        .filter(|(file, _)| names.contains(name(file).as_str()));
    from_texts(mine.map(|(file, text)| (file.to_string(), text.to_string())))
}

/// Suites from files, and from every `*.yaml` file of directories (`requirements.yaml` left out), sorted by name.
///
/// # Errors
/// Everything that is wrong: a file that cannot be read, or what is not as `suites/README.md` says.
pub fn load_files(paths: &[PathBuf]) -> Result<Library, LoadError> {
    from_texts(texts(paths)?)
}

/// The names and texts of the files that [`load_files`] reads.
///
/// # Errors
/// Every file that cannot be read.
pub(crate) fn texts(paths: &[PathBuf]) -> Result<Vec<(String, String)>, LoadError> {
    let mut texts = Vec::new();
    let mut errors = Vec::new();
    for path in paths {
        match read(path) {
            Ok(found) => texts.extend(found),
            Err(message) => errors.push(Located {
                at: super::scenario::Location {
                    file: path.display().to_string().into(),
                    line: 1,
                },
                message,
            }),
        }
    }
    if errors.is_empty() {
        Ok(texts)
    } else {
        Err(LoadError { errors })
    }
}

/// The names and texts of these files, or of the built-in suites when there are none.
///
/// # Errors
/// As [`load_files`].
#[cfg(feature = "cli")]
pub(crate) fn texts_of(paths: &[PathBuf]) -> Result<Vec<(String, String)>, LoadError> {
    if !paths.is_empty() {
        return texts(paths);
    }
    let own = builtin::SUITES.iter();
    Ok(own
        .map(|(file, text)| (file.to_string(), text.to_string()))
        .collect())
}

/// Of a suite's text one scenario, with what all of them have in common.
#[cfg(feature = "cli")]
pub(crate) fn only(text: &str, scenario: &super::scenario::Scenario) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let begins = |line: &str, at: usize| line.trim_start().starts_with("- ") && indent(line) == at;
    let begin = (scenario.at.line as usize)
        .saturating_sub(1)
        .min(lines.len());
    let depth = lines.get(begin).map_or(0, |l| indent(l));
    let first = lines.iter().position(|l| begins(l, depth)).unwrap_or(begin);
    let mut rest = lines.iter().skip(begin + 1);
    let length = rest
        .position(|l| begins(l, depth) || (!l.trim().is_empty() && indent(l) < depth))
        .map_or(lines.len() - begin, |n| n + 1);
    let kept = lines[..first.min(begin)]
        .iter()
        .chain(&lines[begin..begin + length]);
    kept.map(|l| format!("{l}\n")).collect()
}

fn read(path: &PathBuf) -> Result<Vec<(String, String)>, String> {
    let unreadable = |e: std::io::Error| format!("expected a file that can be read, found: {e}");
    let mut files = Vec::new();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).map_err(unreadable)? {
            let file = entry.map_err(unreadable)?.path();
            let is_suite = file.extension().is_some_and(|e| e == "yaml")
                && file.file_name().is_some_and(|n| n != "requirements.yaml");
            if is_suite {
                files.push(file);
            }
        }
        files.sort();
        if files.is_empty() {
            return Err("expected suites, found a directory without any *.yaml".to_string());
        }
    } else {
        files.push(path.clone());
    }
    files
        .into_iter()
        .map(|f| {
            let text = std::fs::read_to_string(&f).map_err(unreadable)?;
            Ok((f.display().to_string(), text))
        })
        .collect()
}

/// Suites from texts, each with the name that its errors carry.
///
/// # Errors
/// Everything that is wrong with them.
pub fn from_texts(texts: impl IntoIterator<Item = (String, String)>) -> Result<Library, LoadError> {
    let (file, text) = builtin::REQUIREMENTS;
    let requirements = requirement::parse(file, text).map_err(|errors| LoadError { errors })?;
    let mut loader = Loader {
        requirements,
        names: BTreeMap::new(),
        errors: Vec::new(),
    };
    let mut suites = Vec::new();
    for (file, text) in texts {
        suites.extend(loader.suite(&file, &text));
    }
    if loader.errors.is_empty() {
        Ok(Library {
            suites,
            requirements: loader.requirements,
        })
    } else {
        Err(LoadError {
            errors: loader.errors,
        })
    }
}

/// The JSON Schema of a suite file, for editors.
pub fn schema() -> serde_json::Value {
    let mut g = schemars::generate::SchemaSettings::draft2020_12().into_generator();
    let root = suite_schema(&mut g);
    let mut value: serde_json::Value = root.into();
    if let Some(map) = value.as_object_mut() {
        map.insert(
            "$schema".into(),
            "https://json-schema.org/draft/2020-12/schema".into(),
        );
        map.insert("title".into(), "graphtest suite".into());
        map.insert("$defs".into(), g.take_definitions(true).into());
    }
    value
}

fn suite_schema(g: &mut SchemaGenerator) -> schemars::Schema {
    let text = String::schema(g);
    let texts = Vec::<String>::schema(g);
    let scenario = object(
        "One behaviour that a graph driver must, should or may have.",
        vec![
            ("id", true, text.clone()),
            ("proves", true, texts.clone()),
            (
                "level",
                true,
                schemars::json_schema!({ "enum": ["must", "should", "may"] }),
            ),
            ("must", true, text.clone()),
            ("from", false, texts.clone()),
            ("catches", true, OneOrMany::<String>::schema(g)),
            ("tags", false, texts.clone()),
            ("hints", false, Vec::<Hint>::schema(g)),
            ("needs", false, texts.clone()),
            ("backing", false, OwnBacking::schema(g)),
            (
                "cases",
                false,
                schemars::json_schema!({ "type": "array", "items": { "type": "object", "required": ["case"] } }),
            ),
            ("steps", true, Vec::<Step>::schema(g)),
        ],
    );
    object(
        "A suite: scenarios of one family.",
        vec![
            ("suite", true, text.clone()),
            ("about", true, text),
            (
                "scenarios",
                true,
                schemars::json_schema!({ "type": "array", "items": scenario }),
            ),
        ],
    )
}

#[cfg(test)]
mod tests;
