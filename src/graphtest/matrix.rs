//! Matrix files: which cells a machine of one sort is to have, and what must not be skipped in them.
//!
//! ```yaml
//! matrix: host
//! about: Every driver that a stock kernel runs, on every backing that it can make.
//! kernels: ["6.1"]                  # under each of which the cells run, in guests; left out: this machine's
//! require: [lifecycle/*]            # globs of scenarios that no cell may skip
//! cells:                            # every target on every backing of an entry
//!   - {targets: [vfs, overlay2], on: [dir, tmpfs, ext4]}
//!   - targets: [overlay2]
//!     on: [xfs+pquota]
//!     require: [quotas/*]           # what these may not skip besides
//!     optional: true                # a machine that cannot have them skips them
//! ```
//!
//! A cell that is not optional counts as asked for by name: where it cannot be had, that is an error.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::lang::{At, Cx, Fields, OneOrMany, Raw, unknown};
use super::run::Required;
use super::target::{Target, built_in};
use super::{Library, yaml};
use crate::lab::Backing;

/// A matrix file.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub about: String,
    /// The kernels under each of which the cells run, in guests; none: this machine's.
    pub kernels: Vec<String>,
    /// The cells, in the order of the file.
    pub cells: Vec<MatrixCell>,
}

/// A cell of a matrix.
#[derive(Clone, Debug)]
pub struct MatrixCell {
    /// What is tested.
    pub target: Arc<dyn Target>,
    /// What its homes live on.
    pub backing: Backing,
    /// Whether a machine that cannot have it may do without.
    pub optional: bool,
    /// What must not be skipped in it.
    pub required: Required,
}

impl Matrix {
    /// Reads a matrix file. What it requires must match scenarios of the library.
    ///
    /// # Errors
    /// The file cannot be read, or everything that is wrong in it, a line each with file and line.
    pub fn load(path: &Path, library: &Library) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Self::parse(&path.display().to_string(), &text, library)
    }

    fn parse(file: &str, text: &str, library: &Library) -> Result<Self, String> {
        let file: Arc<str> = file.into();
        let mut cx = Cx::new(file.clone());
        let matrix = match yaml::parse(&file, text) {
            Ok(node) => Self::decode(&node, library, &mut cx),
            Err(e) => {
                cx.errors.push(e);
                None
            }
        };
        match matrix {
            Some(matrix) if cx.errors.is_empty() => Ok(matrix),
            _ => {
                let errors: Vec<String> = cx.errors.iter().map(ToString::to_string).collect();
                Err(errors.join("\n"))
            }
        }
    }

    fn decode(node: &yaml::Node, library: &Library, cx: &mut Cx) -> Option<Self> {
        let mut fields = Fields::open(node, cx, "a mapping with `matrix:`")?;
        let name = fields.take("matrix", cx);
        let about = fields.take("about", cx);
        let kernels = fields.take::<OneOrMany<At<String>>>("kernels", cx);
        let everywhere = fields.take::<Vec<At<String>>>("require", cx);
        let entries = fields.take::<Vec<Raw>>("cells", cx);
        fields.finish(cx);
        let everywhere = required(&everywhere?, library, cx);
        let mut found = Found {
            cells: Vec::new(),
            lines: BTreeMap::new(),
        };
        let entries = entries?;
        for Raw(entry) in &entries {
            found.take(entry, &everywhere, library, cx);
        }
        if entries.is_empty() {
            cx.wrong(node.line, "expected at least one entry in `cells:`");
        }
        Some(Self {
            name: name?,
            about: about?,
            kernels: kernels_once(&kernels?.0, cx),
            cells: found.cells,
        })
    }
}

/// The names of kernels, each of which must stand there once. Which there are is known to whoever runs guests.
fn kernels_once(names: &[At<String>], cx: &mut Cx) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for name in names {
        if found.contains(&name.value) {
            let message = format!("expected each kernel once, found `{}` again", name.value);
            cx.wrong(name.at.line, message);
        }
        found.push(name.value.clone());
    }
    found
}

/// The cells so far, and the line of each.
struct Found {
    cells: Vec<MatrixCell>,
    lines: BTreeMap<String, u32>,
}

impl Found {
    /// Takes every cell of an entry in.
    fn take(&mut self, node: &yaml::Node, all: &Required, library: &Library, cx: &mut Cx) {
        let Some(mut fields) = Fields::open(node, cx, "cells such as {targets: [vfs], on: [dir]}")
        else {
            return;
        };
        let targets = fields.take::<OneOrMany<At<String>>>("targets", cx);
        let backings = fields.take::<OneOrMany<At<String>>>("on", cx);
        let own = fields.take::<Vec<At<String>>>("require", cx);
        let optional = fields.take::<bool>("optional", cx);
        fields.finish(cx);
        let (Some(targets), Some(backings), Some(own), Some(optional)) =
            (targets, backings, own, optional)
        else {
            return;
        };
        for (key, list) in [("targets", &targets.0), ("on", &backings.0)] {
            if list.is_empty() {
                cx.wrong(node.line, format!("expected at least one name in `{key}:`"));
            }
        }
        let required = all.and(required(&own, library, cx));
        let targets: Vec<_> = targets.0.iter().filter_map(|t| target(t, cx)).collect();
        for name in &backings.0 {
            let backing: Backing = match name.value.parse() {
                Ok(backing) => backing,
                Err(why) => {
                    cx.wrong(name.at.line, why);
                    continue;
                }
            };
            for target in &targets {
                let cell = format!("{} on {backing}", target.name());
                if let Some(first) = self.lines.insert(cell.clone(), name.at.line) {
                    let message = format!(
                        "expected each cell once, found `{cell}` again (first on line {first})"
                    );
                    cx.wrong(name.at.line, message);
                }
                self.cells.push(MatrixCell {
                    target: Arc::clone(target),
                    backing: backing.clone(),
                    optional,
                    required: required.clone(),
                });
            }
        }
    }
}

fn target(name: &At<String>, cx: &mut Cx) -> Option<Arc<dyn Target>> {
    let all = built_in();
    let found = all.iter().find(|t| t.name() == name.value);
    if found.is_none() {
        let known: Vec<&str> = all.iter().map(|t| t.name()).collect();
        cx.wrong(name.at.line, unknown("target", &name.value, &known));
    }
    found.cloned()
}

/// The globs as a list; one that matches nothing would require nothing.
fn required(globs: &[At<String>], library: &Library, cx: &mut Cx) -> Required {
    let mut all = Required::default();
    for glob in globs {
        let one = Required::parse(&glob.value).and_then(|one| one.check(library).map(|()| one));
        match one {
            Ok(one) => all = all.and(one),
            // The line of the list is the file's own.
            Err(why) => cx.wrong(glob.at.line, why.trim_start_matches("line 1: ")),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::graphtest::load::builtin;

    fn read(text: &str) -> Result<Matrix, String> {
        Matrix::parse("m.yaml", text, &builtin().unwrap())
    }

    #[test]
    fn every_target_of_an_entry_is_on_every_backing_of_it() {
        let text = "matrix: m\nabout: x\nrequire: [lifecycle/*]\ncells:\n- {targets: [vfs, overlay2], on: [dir, tmpfs]}\n\
                    - {targets: overlay, on: 'dir:/x', optional: true, require: [whiteouts/*]}\n";
        let matrix = read(text).unwrap();
        let cells: Vec<String> = matrix
            .cells
            .iter()
            .map(|c| {
                let globs = ["lifecycle/a", "whiteouts/a"].map(|id| c.required.has(id));
                format!("{} {} {} {globs:?}", c.target.name(), c.backing, c.optional)
            })
            .collect();
        assert_eq!(
            cells,
            [
                "vfs dir false [true, false]",
                "overlay2 dir false [true, false]",
                "vfs tmpfs false [true, false]",
                "overlay2 tmpfs false [true, false]",
                "overlay dir:/x true [true, true]",
            ]
        );
    }

    #[rstest]
    #[case(
        "- {targets: [vfs], on: [dir], opt: true}",
        "m.yaml:4: expected one of: "
    )]
    #[case(
        "- targets: vfs\n  on: [dir,\n    floppy]",
        "m.yaml:6: unknown backing"
    )]
    #[case("- {targets: [overlay3], on: [dir]}", "did you mean `overlay`?")]
    #[case(
        "- {targets: [vfs], on: []}",
        "m.yaml:4: expected at least one name in `on:`"
    )]
    #[case("- {targets: [vfs]}", "m.yaml:4: expected at least one name in `on:`")]
    #[case(
        "- {targets: vfs, on: dir}\n- {targets: vfs, on: dir}",
        "m.yaml:5: expected each cell once"
    )]
    #[case(
        "- {targets: vfs, on: dir, require: [none/*]}",
        "m.yaml:4: `none/*` matches no scenario"
    )]
    #[case(
        "- {targets: vfs, on: dir, require: ['a[']}",
        "m.yaml:4: error parsing glob"
    )]
    #[case("  []", "m.yaml:1: expected at least one entry")]
    fn what_is_wrong_is_said_with_its_line(#[case] cells: &str, #[case] says: &str) {
        let error = read(&format!("matrix: m\nabout: x\ncells:\n{cells}\n")).unwrap_err();
        assert!(error.contains(says), "{error}");
    }

    #[test]
    fn the_files_in_ci_are_well_formed() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("ci");
        let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
        let files = entries.filter(|p| p.extension().is_some_and(|e| e == "yaml"));
        let library = builtin().unwrap();
        let loaded = files.map(|f| Matrix::load(&f, &library).unwrap());
        assert!(loaded.count() > 0);
    }
}
