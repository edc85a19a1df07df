//! Where something holds: ranges of kernels, and of the versions that a driver's status tells.
//!
//! ```yaml
//! kernels: ">=5.4, <5.11"              # release numbers
//! status: {fuse-overlayfs: "<1.14"}    # a key of the driver's status, and comparisons with what it says
//! ```

use std::collections::BTreeMap;

use super::event::CellStart;

/// A cell with what its driver says of itself.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The cell.
    pub cell: CellStart,
    /// What the driver's `status` said when the cell was begun.
    pub status: BTreeMap<String, String>,
}

/// A kernel range and status ranges, all of which must hold; the default always does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    kernels: Vec<Comparison>,
    status: BTreeMap<String, Vec<Comparison>>,
}

/// A comparison with what a kernel or a status says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Comparison {
    operator: &'static str,
    with: Operand,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operand {
    /// Numbers of a version.
    Version(Vec<u32>),
    /// The whole value; only for `=` and `!=`.
    Text(String),
}

impl Condition {
    /// Reads both ranges as they are written.
    ///
    /// # Errors
    /// What is not a comparison, and the key it stands under.
    pub fn new(kernels: &str, status: &BTreeMap<String, String>) -> Result<Self, String> {
        let ranges = status.iter().map(|(key, range)| {
            let parsed = comparisons(range).map_err(|e| format!("status: {key}: {e}"))?;
            Ok((key.clone(), parsed))
        });
        let condition = Self {
            kernels: comparisons(kernels).map_err(|e| format!("kernels: {e}"))?,
            status: ranges.collect::<Result<_, String>>()?,
        };
        let text = |c: &&Comparison| matches!(c.with, Operand::Text(_));
        match condition.kernels.iter().find(text) {
            Some(_) => Err(format!("kernels: {}", wrong(kernels))),
            None => Ok(condition),
        }
    }

    /// Whether it holds there. What a driver does not say is in no range.
    pub fn holds(&self, ground: &Ground) -> bool {
        self.kernels.iter().all(|c| c.holds(&ground.cell.kernel))
            && self.status.iter().all(|(key, range)| {
                let said = ground.status.get(key);
                said.is_some_and(|value| range.iter().all(|c| c.holds(value)))
            })
    }
}

fn comparisons(text: &str) -> Result<Vec<Comparison>, String> {
    let parts = text.split(',').map(str::trim).filter(|c| !c.is_empty());
    parts.map(Comparison::new).collect()
}

fn wrong(text: &str) -> String {
    format!("expected comparisons such as \">=5.4, <5.11\", found {text:?}")
}

impl Comparison {
    fn new(text: &str) -> Result<Self, String> {
        // The longer operators first: `<=` also begins with `<`.
        let operator = ["<=", ">=", "!=", "<", ">", "="]
            .into_iter()
            .find(|o| text.starts_with(o))
            .ok_or_else(|| wrong(text))?;
        let operand = text[operator.len()..].trim();
        let begins = operand.starts_with(|c: char| c.is_ascii_digit());
        let with = match operator {
            _ if begins => Operand::Version(version(operand)),
            "=" | "!=" if !operand.is_empty() => Operand::Text(operand.to_string()),
            _ => return Err(wrong(text)),
        };
        Ok(Self { operator, with })
    }

    fn holds(&self, value: &str) -> bool {
        let order = match &self.with {
            Operand::Text(text) => return (value.trim() == text) == (self.operator == "="),
            // As many numbers as the comparison names: 5.4.3 is `=5.4`.
            Operand::Version(with) => {
                let mut found = version(value);
                if found.is_empty() {
                    return self.operator == "!=";
                }
                found.resize(with.len(), 0);
                found.cmp(with)
            }
        };
        match self.operator {
            "<" => order.is_lt(),
            "<=" => order.is_le(),
            ">" => order.is_gt(),
            ">=" => order.is_ge(),
            "!=" => order.is_ne(),
            _ => order.is_eq(),
        }
    }
}

/// The first numbers of a text: `6.1.0-18-amd64` is 6, 1, 0, and so is `version 6.1.0`.
fn version(text: &str) -> Vec<u32> {
    let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
    let numbers = digits
        .split(|c: char| c != '.' && !c.is_ascii_digit())
        .next()
        .unwrap_or_default();
    numbers.split('.').map_while(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn ground(status: &str) -> Ground {
        Ground {
            cell: CellStart {
                target: "t".to_string(),
                backing: "dir".to_string(),
                kernel: "6.1.5-18-amd64".to_string(),
            },
            status: [("Tool".to_string(), status.to_string())].into(),
        }
    }

    #[rstest]
    #[case("", true)]
    #[case(">=6.1", true)]
    #[case("<6.1", false)]
    #[case(">=5.4, <6.2", true)]
    #[case("=6.1", true)]
    #[case("!=6.1", false)]
    #[case("<=6", true)]
    #[case(">6.1.5", false)]
    #[case("<6.10", true)]
    fn kernels_compare_as_numbers(#[case] kernels: &str, #[case] holds: bool) {
        let condition = Condition::new(kernels, &BTreeMap::new()).unwrap();
        assert_eq!(condition.holds(&ground("")), holds);
    }

    #[rstest]
    #[case("Tool", "<1.14", "tool: version 1.9-1+b1", true)]
    #[case("Tool", "<1.14", "version 1.14", false)]
    #[case("Tool", ">=1.9, <1.14", "1.13.2", true)]
    #[case("Tool", "<1.14", "no version", false)]
    #[case("Other", "<1.14", "1.9", false)]
    #[case("Tool", "=true", "true", true)]
    #[case("Tool", "!=true", "true", false)]
    fn status_compares_as_versions_or_words(
        #[case] key: &str,
        #[case] range: &str,
        #[case] value: &str,
        #[case] holds: bool,
    ) {
        let status = BTreeMap::from([(key.to_string(), range.to_string())]);
        let condition = Condition::new("", &status).unwrap();
        assert_eq!(condition.holds(&ground(value)), holds);
    }

    #[rstest]
    #[case("5.4", "", "kernels: expected comparisons")]
    #[case("=new", "", "kernels: expected comparisons")]
    #[case("", "1.14", "status: Tool: expected comparisons")]
    #[case("", "<new", "status: Tool: expected comparisons")]
    fn what_is_no_comparison_is_said(
        #[case] kernels: &str,
        #[case] range: &str,
        #[case] says: &str,
    ) {
        let status = BTreeMap::from([("Tool".to_string(), range.to_string())]);
        let error = Condition::new(kernels, &status).unwrap_err();
        assert!(error.starts_with(says), "{error}");
    }
}
