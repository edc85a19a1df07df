//! Debian's order of version numbers: deb-version(7).

use std::cmp::Ordering;

/// Compares two versions.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    let (a, b) = (split(a), split(b));
    a.0.cmp(&b.0)
        .then_with(|| part(a.1, b.1))
        .then_with(|| part(a.2, b.2))
}

/// Epoch, upstream version and revision.
fn split(version: &str) -> (u64, &str, &str) {
    let (epoch, rest) = match version.split_once(':') {
        Some((epoch, rest)) => (epoch.parse().unwrap_or(0), rest),
        None => (0, version),
    };
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, "0"));
    (epoch, upstream, revision)
}

/// Text and numbers by turns, each compared in its own way.
fn part(mut a: &str, mut b: &str) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        let (ta, ra) = take(a, |c| !c.is_ascii_digit());
        let (tb, rb) = take(b, |c| !c.is_ascii_digit());
        let (na, ra) = take(ra, |c| c.is_ascii_digit());
        let (nb, rb) = take(rb, |c| c.is_ascii_digit());
        let number = |n: &str| n.trim_start_matches('0').to_string();
        let (na, nb) = (number(na), number(nb));
        let order = text(ta, tb)
            .then_with(|| na.len().cmp(&nb.len()))
            .then_with(|| na.cmp(&nb));
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (ra, rb);
    }
    Ordering::Equal
}

fn take(s: &str, which: impl Fn(char) -> bool) -> (&str, &str) {
    let end = s.find(|c| !which(c)).unwrap_or(s.len());
    s.split_at(end)
}

/// A tilde comes before the end, the end before letters, letters before everything else.
fn text(a: &str, b: &str) -> Ordering {
    let weight = |byte: Option<&u8>| match byte {
        Some(b'~') => -1,
        None => 0,
        Some(c) if c.is_ascii_alphabetic() => i32::from(*c),
        Some(c) => i32::from(*c) + 256,
    };
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let longest = a.len().max(b.len());
    (0..longest)
        .map(|i| weight(a.get(i)).cmp(&weight(b.get(i))))
        .find(|o| *o != Ordering::Equal)
        .unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("1.0", "1.0", Ordering::Equal)]
    #[case("1.0-1", "1.0", Ordering::Greater)]
    #[case("1.0-0", "1.0", Ordering::Equal)]
    #[case("2:0.9", "1:1.0", Ordering::Greater)]
    #[case("1.10", "1.9", Ordering::Greater)]
    #[case("1.0~rc1", "1.0", Ordering::Less)]
    #[case("1.0~~", "1.0~", Ordering::Less)]
    #[case("1.0a", "1.0+b", Ordering::Less)]
    #[case("6.12.107-1~bpo12+1", "6.12.107-1", Ordering::Less)]
    #[case("6.1.159-1", "6.1.92-1", Ordering::Greater)]
    #[case("1.007", "1.7", Ordering::Equal)]
    fn versions_are_ordered_as_debian_orders_them(
        #[case] a: &str,
        #[case] b: &str,
        #[case] expected: Ordering,
    ) {
        assert_eq!(compare(a, b), expected);
        assert_eq!(compare(b, a), expected.reverse());
    }
}
