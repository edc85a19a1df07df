//! The archives of `fixtures/`: hostile ones and odd but good ones, with what must come of each.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::manifest::{Entry, Manifest};
use crate::tree::op::{Op, Path};

/// What applying an archive must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// An error, and nothing that the archive does not name is lost.
    Refused,
    /// Success.
    Applied,
}

/// One archive and what must come of it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Fixture {
    /// Its name; with the file's name before it, `names/dot-dot`, the whole id.
    pub name: String,
    /// What is odd about it.
    pub about: String,
    /// Entries of the layer below, instead of the file's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Vec<Entry>>,
    /// The archive.
    pub archive: Manifest,
    /// What applying it must come to.
    pub expect: Expect,
    /// A text that the error must contain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub says: Option<String>,
    /// Exactly these entries must be there afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is: Option<Vec<Op>>,
    /// At least these entries must be there afterwards, after a refusal too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub must_hold: Vec<Op>,
    /// These must not be there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub must_lack: Vec<Path>,
}

/// A file of fixtures.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Collection {
    /// What the archives have in common.
    pub about: String,
    /// Entries of the layer below each.
    #[serde(default)]
    pub base: Vec<Entry>,
    /// The archives.
    pub archives: Vec<Fixture>,
}

macro_rules! files {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("../../fixtures/", $name, ".yaml")))),*]
    };
}

/// The files, one line each.
const FILES: &[(&str, &str)] = files! {
    "apply"
    "hostile/names"
    "hostile/symlinks"
    "hostile/hardlinks"
    "hostile/overwrite"
    "hostile/whiteouts"
    "hostile/root"
    "hostile/devices"
    "hostile/xattrs"
    "hostile/owners"
    "hostile/sizes"
    "hostile/types"
    "hostile/times"
};

/// Every fixture with its id (`hostile/names/dot-dot`), the base of its file filled in.
///
/// # Errors
/// Names the file and the place that is wrong.
pub fn all() -> Result<Vec<(String, Fixture)>, String> {
    let mut found = Vec::new();
    for (file, text) in FILES {
        let collection: Collection =
            serde_yaml::from_str(text).map_err(|e| format!("fixtures/{file}.yaml: {e}"))?;
        for mut fixture in collection.archives {
            fixture.base.get_or_insert_with(|| collection.base.clone());
            found.push((format!("{file}/{}", fixture.name), fixture));
        }
    }
    Ok(found)
}

/// The fixture with this id.
///
/// # Errors
/// As [`all`], and when there is none.
pub fn find(id: &str) -> Result<Fixture, String> {
    let found = all()?.into_iter().find(|(found, _)| found == id);
    found
        .map(|(_, fixture)| fixture)
        .ok_or_else(|| format!("there is no fixture `{id}`"))
}
