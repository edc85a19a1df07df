//! Layer ids, checked before they touch a path.

use std::fmt;

use super::{Error, Result};

/// An id that can stand as one path component: 1 to 255 bytes, not `.` or `..`, without `/`, NUL and other control characters.
///
/// moby's drivers use ids as they come: `Remove("")` of vfs takes the whole home (moby#36158). 255 bytes is `NAME_MAX`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(String);

impl LayerId {
    /// The longest id, in bytes.
    pub const MAX: usize = 255;

    /// Checks an id.
    ///
    /// # Errors
    /// [`Error::InvalidId`], saying what is wrong.
    pub fn parse(id: &str) -> Result<Self> {
        let why = if id.is_empty() {
            "it is empty"
        } else if id == "." || id == ".." {
            "it names a directory itself or the one above"
        } else if id.len() > Self::MAX {
            "it is longer than 255 bytes"
        } else if id.contains('/') {
            "it holds a `/`"
        } else if id.chars().any(char::is_control) {
            "it holds a control character"
        } else {
            return Ok(Self(id.to_owned()));
        };
        Err(Self::invalid(id, why))
    }

    /// Checks an id against the names that a driver keeps for itself, too.
    ///
    /// # Errors
    /// [`Error::InvalidId`], saying what is wrong.
    pub fn parse_unreserved(id: &str, reserved: impl Fn(&str) -> bool) -> Result<Self> {
        let parsed = Self::parse(id)?;
        if reserved(id) {
            return Err(Self::invalid(id, "the driver uses this name itself"));
        }
        Ok(parsed)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The error for an id that does not exist as a layer.
    pub fn unknown(&self) -> Error {
        Error::UnknownLayer(self.0.clone())
    }

    /// The error for a layer whose state on disk is not what it must be.
    pub fn damaged(&self, why: impl Into<String>) -> Error {
        Error::Damaged {
            id: self.0.clone(),
            why: why.into(),
        }
    }

    fn invalid(id: &str, why: &'static str) -> Error {
        // An over-long id is not repeated whole in a message.
        let mut shown: String = id.chars().take(80).collect();
        if shown.len() < id.len() {
            shown.push_str("...");
        }
        Error::InvalidId { id: shown, why }
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<std::path::Path> for LayerId {
    fn as_ref(&self) -> &std::path::Path {
        std::path::Path::new(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("")]
    #[case(".")]
    #[case("..")]
    #[case("a/b")]
    #[case("../a")]
    #[case("/")]
    #[case("a\0b")]
    #[case("a\nb")]
    #[case("\u{7f}")]
    #[case(&"x".repeat(256))]
    #[case(&"ä".repeat(128))]
    fn refused(#[case] id: &str) {
        assert!(matches!(LayerId::parse(id), Err(Error::InvalidId { .. })));
    }

    #[rstest]
    #[case("a")]
    #[case("...")]
    #[case(".a")]
    #[case("a b:c,d\\e\"f@g%h#i-init")]
    #[case("é")]
    #[case(&"f".repeat(64))]
    #[case(&"x".repeat(255))]
    fn taken(#[case] id: &str) {
        assert_eq!(LayerId::parse(id).unwrap().as_str(), id);
    }

    #[test]
    fn reserved_names_are_the_drivers() {
        assert!(matches!(
            LayerId::parse_unreserved("l", |id| id == "l"),
            Err(Error::InvalidId { .. })
        ));
        assert!(LayerId::parse_unreserved("ll", |id| id == "l").is_ok());
    }
}
