//! What `vm/` says: which kernels there are, and what a guest's root is made from.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::Deserialize;

use super::error::{Result, VmError, cannot};
use super::version::compare;

/// A kernel that Debian packages.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct KernelEntry {
    /// A glob of its package's name.
    pub package: String,
    /// The suites that may have it.
    pub suites: Vec<String>,
}

/// What a guest's root is made from.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GuestRecipe {
    pub releases: Vec<Release>,
    pub packages: Vec<String>,
    pub without: Vec<String>,
    pub drop: Vec<String>,
}

/// A Debian release.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Release {
    /// The version of its C library, such as `2.36`.
    pub libc: String,
    pub suites: Vec<String>,
}

impl Release {
    /// Its C library's version as two numbers.
    pub(super) fn libc(&self) -> Option<(u32, u32)> {
        version(&self.libc)
    }
}

/// A version such as `2.36` as two numbers.
pub(super) fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

const KERNELS: &str = include_str!("../../../vm/kernels.yaml");
const GUEST: &str = include_str!("../../../vm/guest.yaml");

/// The kernels of `vm/kernels.yaml` by name.
///
/// # Errors
/// Never for a released version: the crate's own tests read the file.
pub fn kernels() -> Result<BTreeMap<String, KernelEntry>> {
    serde_yaml::from_str(KERNELS).map_err(|e| cannot(format!("vm/kernels.yaml: {e}")))
}

pub(super) fn guest() -> Result<GuestRecipe> {
    serde_yaml::from_str(GUEST).map_err(|e| cannot(format!("vm/guest.yaml: {e}")))
}

/// The names between two, from the first to the second, whichever is the older; none when one of them is no name but a path.
///
/// # Errors
/// One of them is neither.
pub fn kernels_between(from: &str, to: &str) -> Result<Vec<String>> {
    for name in [from, to] {
        if name.contains('/') {
            return Ok(Vec::new());
        }
        kernel(name)?;
    }
    let order = compare(from, to);
    let between = |name: &String| compare(from, name) == order && compare(name, to) == order;
    let mut names: Vec<String> = kernels()?.into_keys().filter(between).collect();
    names.sort_by(|a, b| match order {
        Ordering::Greater => compare(b, a),
        _ => compare(a, b),
    });
    Ok(names)
}

/// A kernel's entry by its name.
///
/// # Errors
/// There is none; the error lists those that there are.
pub fn kernel(name: &str) -> Result<KernelEntry> {
    let mut all = kernels()?;
    if let Some(entry) = all.remove(name) {
        return Ok(entry);
    }
    let mut known: Vec<&String> = all.keys().collect();
    known.sort_by(|a, b| compare(a, b));
    let known: Vec<&str> = known.into_iter().map(String::as_str).collect();
    Err(VmError::Unknown(format!(
        "unknown kernel `{name}`; known: {}, or the path of a kernel image",
        known.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_as_the_code_reads_them() {
        assert!(kernels().unwrap().contains_key("6.1"));
        let recipe = guest().unwrap();
        let versions: Vec<_> = recipe.releases.iter().map(|r| r.libc().unwrap()).collect();
        assert!(versions.is_sorted(), "the oldest release comes first");
    }

    #[test]
    fn what_lies_between_two_kernels_is_in_order() {
        let up = kernels_between("5.10", "6.18").unwrap();
        assert_eq!(up, ["6.1", "6.12", "6.16"]);
        let down = kernels_between("6.18", "5.10").unwrap();
        assert_eq!(down, ["6.16", "6.12", "6.1"]);
        assert!(kernels_between("7.2", "7.3").unwrap().is_empty());
        assert!(kernels_between("6.1", "./bzImage").unwrap().is_empty());
        assert!(kernels_between("6.1", "2.4").is_err());
    }

    #[test]
    fn an_unknown_kernel_is_told_with_those_that_are_known() {
        let e = kernel("2.4").unwrap_err();
        assert!(matches!(e, VmError::Unknown(_)));
        assert!(e.to_string().contains("6.1, 6.12, 6.16"), "{e}");
    }
}
