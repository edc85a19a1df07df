//! The names of layers as names of datasets.
//!
//! An id stands in a dataset's name as it is, as moby has it, wherever zfs takes it. Any other one (zfs takes few characters, and no
//! whole name above 255 bytes) is written with a `:` before the two digits of each byte that does not fit, or, if it is too long, as its
//! start and its SHA-256. Names with a `:` are such ones only.

use sha2::{Digest, Sha256};

use crate::graphdriver::LayerId;
use crate::sys::zfs::MAX_NAME;

/// Room for `@` and the name of a snapshot.
const SNAPSHOT: usize = 40;
/// How much of a long id's start is kept, for people.
const START: usize = 24;

/// Whether zfs takes the character in a name, and we as it is.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

/// The name of a layer's dataset below another.
pub(super) fn dataset(parent: &str, id: &LayerId) -> String {
    let mut name = String::new();
    for byte in id.as_str().bytes() {
        if is_plain(byte) {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!(":{byte:02x}"));
        }
    }
    if parent.len() + 1 + name.len() + SNAPSHOT > MAX_NAME {
        name.truncate(START);
        let digest = Sha256::digest(id.as_str());
        // Two colons, which no other name has beside each other.
        name.push_str("::");
        name.extend(digest.iter().map(|b| format!("{b:02x}")));
    }
    format!("{parent}/{name}")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn name(id: &str) -> String {
        dataset("pool/graph", &LayerId::parse(id).unwrap())
    }

    #[rstest]
    #[case("0123abcd", "pool/graph/0123abcd")]
    #[case("a-b_c.d", "pool/graph/a-b_c.d")]
    #[case("a b", "pool/graph/a:20b")]
    #[case("a:b", "pool/graph/a:3ab")]
    #[case("a@b#c%d", "pool/graph/a:40b:23c:25d")]
    #[case("ä", "pool/graph/:c3:a4")]
    fn ids_are_told_apart_in_what_zfs_takes(#[case] id: &str, #[case] expected: &str) {
        assert_eq!(name(id), expected);
    }

    #[test]
    fn long_ids_differ_to_their_last_byte() {
        let long = |end: char| format!("{}{end}", "x".repeat(254));
        let (a, b) = (name(&long('a')), name(&long('b')));
        assert_ne!(a, b);
        for name in [&a, &b, &name(&"@".repeat(255))] {
            assert!(name.len() + SNAPSHOT <= MAX_NAME, "{name}");
            assert!(
                name["pool/graph/".len()..]
                    .bytes()
                    .all(|b| is_plain(b) || b == b':')
            );
        }
        // As long as can be without being cut.
        let most = MAX_NAME - SNAPSHOT - "pool/graph/".len();
        assert!(name(&"y".repeat(most)).ends_with(&"y".repeat(most)));
        assert!(name(&"y".repeat(most + 1)).contains("::"));
    }
}
