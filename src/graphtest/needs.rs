//! What a scenario needs, decided at run time from what the driver claims and what the place can do.

use std::fmt;
use std::str::FromStr;

use crate::graphdriver::{Capabilities, Capability};
use crate::lab::{Fact, Facts};

/// One need, or the absence of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// Written `not-...`: it must be absent.
    pub negated: bool,
    /// What.
    pub kind: NeedKind,
}

/// What can be needed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NeedKind {
    /// The driver claims it.
    Capability(Capability),
    /// The machine and the backing have it.
    Fact(Fact),
    /// The driver's on-disk layout is that of the built-in driver of this name.
    Layout(String),
    /// The driver claims chains of this many layers.
    Depth(u32),
    /// The driver claims that its chains cannot be longer than a number of layers, which is `${max-depth}`.
    DepthLimit,
}

const DEPTH_LIMIT: &str = "depth-limit";

impl FromStr for Need {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (negated, name) = match text.strip_prefix("not-") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let kind = if let Some(layout) = name.strip_prefix("layout:") {
            NeedKind::Layout(layout.to_string())
        } else if name == DEPTH_LIMIT {
            NeedKind::DepthLimit
        } else if let Some(depth) = name.strip_prefix("depth:") {
            NeedKind::Depth(
                depth
                    .parse()
                    .map_err(|_| format!("expected depth:N, found `{text}`"))?,
            )
        } else if let Ok(fact) = name.parse() {
            NeedKind::Fact(fact)
        } else if let Ok(capability) = name.parse() {
            NeedKind::Capability(capability)
        } else {
            let mut known: Vec<&str> = Fact::ALL.iter().map(|f| f.name()).collect();
            known.extend(Capability::ALL.iter().map(|c| c.name()));
            known.extend(["layout:NAME", "depth:N", DEPTH_LIMIT]);
            return Err(super::lang::unknown("need", name, &known));
        };
        Ok(Self { negated, kind })
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.negated {
            f.write_str("not-")?;
        }
        match &self.kind {
            NeedKind::Capability(c) => write!(f, "{c}"),
            NeedKind::Fact(x) => write!(f, "{x}"),
            NeedKind::Layout(name) => write!(f, "layout:{name}"),
            NeedKind::Depth(n) => write!(f, "depth:{n}"),
            NeedKind::DepthLimit => f.write_str(DEPTH_LIMIT),
        }
    }
}

impl Need {
    /// Whether it is the need for a limit, with which `${max-depth}` is known.
    pub(crate) fn is_depth_limit(&self) -> bool {
        self.kind == NeedKind::DepthLimit && !self.negated
    }

    /// Why the place does not meet it; `None` when it does, or when the place has no say.
    pub fn unmet_by_place(&self, facts: &Facts) -> Option<String> {
        let NeedKind::Fact(fact) = &self.kind else {
            return None;
        };
        match (facts.why_not(*fact), self.negated) {
            (Some(why), false) => Some(format!("needs {fact}: {why}")),
            (None, true) => Some(format!("needs a place without {fact}")),
            _ => None,
        }
    }

    /// Why no driver of this layout meets it; `None` when one may.
    pub fn unmet_by_layout(&self, layout: Option<&str>) -> Option<String> {
        let of_layout = matches!(self.kind, NeedKind::Layout(_));
        let none = Capabilities::new([]);
        of_layout.then(|| self.unmet_by_driver(&none, layout))?
    }

    /// Why the driver does not meet it; `None` when it does, or when the driver has no say.
    pub fn unmet_by_driver(&self, claims: &Capabilities, layout: Option<&str>) -> Option<String> {
        let (met, what) = match &self.kind {
            NeedKind::Fact(_) => return None,
            NeedKind::Capability(c) => (claims.has(*c), format!("{c}, which is not claimed")),
            NeedKind::Layout(name) => (
                layout == Some(name.as_str()),
                format!("the on-disk layout of {name}"),
            ),
            NeedKind::DepthLimit => (
                claims.max_depth.is_some(),
                "a limit on the length of chains, none is claimed".to_string(),
            ),
            NeedKind::Depth(n) => (
                claims.max_depth.is_none_or(|limit| limit >= *n),
                format!(
                    "chains of {n} layers, {} are claimed",
                    claims.max_depth.unwrap_or(0)
                ),
            ),
        };
        match (met, self.negated) {
            (false, false) => Some(format!("needs {what}")),
            (true, true) => Some(format!("needs a driver without `{}`", self.negate())),
            _ => None,
        }
    }

    fn negate(&self) -> Self {
        Self {
            negated: !self.negated,
            kind: self.kind.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("mknod")]
    #[case("native-diff")]
    #[case("not-native-diff")]
    #[case("layout:overlay2")]
    #[case("depth:128")]
    #[case("depth-limit")]
    #[case("not-depth-limit")]
    fn needs_print_as_they_are_written(#[case] text: &str) {
        assert_eq!(text.parse::<Need>().unwrap().to_string(), text);
    }

    #[rstest]
    #[case("depth:200", Some("needs chains of 200 layers, 128 are claimed"))]
    #[case("depth:128", None)]
    #[case("not-depth:200", None)]
    #[case("depth-limit", None)]
    #[case("not-depth-limit", Some("needs a driver without `depth-limit`"))]
    #[case("quota", Some("needs quota, which is not claimed"))]
    #[case("not-mounts", Some("needs a driver without `mounts`"))]
    #[case("layout:vfs", None)]
    #[case("layout:overlay2", Some("needs the on-disk layout of overlay2"))]
    fn drivers_meet_needs(#[case] need: &str, #[case] reason: Option<&str>) {
        let claims = Capabilities::new([Capability::Mounts]).with_max_depth(128);
        let need: Need = need.parse().unwrap();
        assert_eq!(
            need.unmet_by_driver(&claims, Some("vfs")).as_deref(),
            reason
        );
    }

    #[test]
    fn a_driver_without_a_limit_claims_none() {
        let need: Need = "depth-limit".parse().unwrap();
        let reason = need.unmet_by_driver(&Capabilities::new([]), None);
        let why = "needs a limit on the length of chains, none is claimed";
        assert_eq!(reason.as_deref(), Some(why));
    }

    #[test]
    fn a_misspelt_need_names_the_nearest() {
        let e = "xattr-usr".parse::<Need>().unwrap_err();
        assert!(e.contains("did you mean `xattr-user`?"), "{e}");
    }
}
