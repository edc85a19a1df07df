//! PAX extended header records.

use super::header::{EntryHeader, EntryKind, Extent};
use crate::tree::Timestamp;

/// The records of one extended header, last value of a key first in force; an empty value takes a record back.
#[derive(Debug, Default)]
pub(super) struct Records {
    pairs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Records {
    /// Splits `%d key=value\n` records.
    ///
    /// # Errors
    /// What is wrong with the first bad one.
    pub fn parse(mut data: &[u8]) -> Result<Self, String> {
        let mut pairs = Vec::new();
        // Some writers pad the data with NULs.
        while data.first().is_some_and(|b| *b != 0) {
            let bad = || "a PAX record is malformed".to_string();
            let space = data
                .iter()
                .take(20)
                .position(|b| *b == b' ')
                .ok_or_else(bad)?;
            let len: usize = decimal(&data[..space]).ok_or_else(bad)?;
            if len <= space + 1 || len > data.len() || data[len - 1] != b'\n' {
                return Err(bad());
            }
            let body = &data[space + 1..len - 1];
            let equals = body.iter().position(|b| *b == b'=').ok_or_else(bad)?;
            if equals == 0 || body[..equals].contains(&0) {
                return Err("a PAX record's key is empty or holds NUL".to_string());
            }
            pairs.push((body[..equals].to_vec(), body[equals + 1..].to_vec()));
            data = &data[len..];
        }
        Ok(Self { pairs })
    }

    fn get(&self, key: &str) -> Option<&[u8]> {
        let value = self.pairs.iter().rfind(|(k, _)| k == key.as_bytes());
        value.map(|(_, v)| v.as_slice()).filter(|v| !v.is_empty())
    }

    fn num<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>, String> {
        self.get(key)
            .map(|v| {
                decimal(v).ok_or_else(|| format!("the PAX record {key} is not a number that fits"))
            })
            .transpose()
    }

    /// Puts the records' values over those of the header.
    ///
    /// # Errors
    /// What is wrong with a value.
    pub fn override_header(&self, entry: &mut EntryHeader) -> Result<(), String> {
        for (key, field) in [("path", &mut entry.name), ("linkpath", &mut entry.link)] {
            if let Some(value) = self.get(key) {
                *field = value.to_vec();
            }
        }
        if let Some(name) = self.get("GNU.sparse.name") {
            entry.name = name.to_vec();
        }
        if let Some(size) = self.num("size")? {
            (entry.size, entry.stored) = (size, size);
        }
        entry.ids.0 = self.num("uid")?.unwrap_or(entry.ids.0);
        entry.ids.1 = self.num("gid")?.unwrap_or(entry.ids.1);
        for (key, field) in [
            ("SCHILY.devmajor", &mut entry.device.0),
            ("SCHILY.devminor", &mut entry.device.1),
        ] {
            *field = self.num(key)?.unwrap_or(*field);
        }
        if let Some(value) = self.get("mtime") {
            entry.mtime = time(value).ok_or("the PAX record mtime is not a time")?;
        }
        self.xattrs(&mut entry.xattrs)
    }

    /// Collects `SCHILY.xattr.*`, and `LIBARCHIVE.xattr.*` for names that the former does not give.
    fn xattrs(&self, into: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), String> {
        let mut set =
            |name: Vec<u8>, value: Vec<u8>| match into.iter_mut().find(|(n, _)| *n == name) {
                Some((_, v)) => *v = value,
                None => into.push((name, value)),
            };
        for (key, value) in &self.pairs {
            if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                let value =
                    base64_lenient(value).ok_or("a LIBARCHIVE.xattr record is not base64")?;
                set(percent_decode(name), value);
            }
        }
        for (key, value) in &self.pairs {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                set(name.to_vec(), value.clone());
            }
        }
        Ok(())
    }

    /// Whether the entry's data begins with a sparse map (GNU sparse format 1.0).
    pub fn sparse_map_in_data(&self) -> bool {
        self.get("GNU.sparse.major") == Some(b"1")
    }

    /// The size that a sparse file shall have.
    pub fn sparse_size(&self) -> Result<Option<u64>, String> {
        Ok(match self.num("GNU.sparse.realsize")? {
            Some(size) => Some(size),
            None => self.num("GNU.sparse.size")?,
        })
    }

    /// The extents of GNU sparse formats 0.0 (repeated records) and 0.1 (one list); `None` when it is neither.
    pub fn sparse_map(&self) -> Result<Option<Vec<Extent>>, String> {
        let bad = || "the GNU sparse map is malformed".to_string();
        let mut numbers = Vec::new();
        if let Some(map) = self.get("GNU.sparse.map") {
            for n in map.split(|b| *b == b',') {
                numbers.push(decimal(n).ok_or_else(bad)?);
            }
        } else if self.get("GNU.sparse.numblocks").is_some() {
            for (key, value) in &self.pairs {
                let expected: &[u8] = if numbers.len() % 2 == 0 {
                    b"GNU.sparse.offset"
                } else {
                    b"GNU.sparse.numbytes"
                };
                if key == expected {
                    numbers.push(decimal(value).ok_or_else(bad)?);
                } else if key == b"GNU.sparse.offset" || key == b"GNU.sparse.numbytes" {
                    return Err(bad());
                }
            }
        } else {
            return Ok(None);
        }
        pair_up(&numbers).map(Some)
    }
}

/// Makes extents of `offset, length, offset, length, ...`.
pub(super) fn pair_up(numbers: &[u64]) -> Result<Vec<Extent>, String> {
    if !numbers.len().is_multiple_of(2) {
        return Err("the GNU sparse map is malformed".to_string());
    }
    let pairs = numbers.chunks_exact(2);
    Ok(pairs
        .map(|p| Extent {
            at: p[0],
            len: p[1],
        })
        .collect())
}

/// Checks a sparse map against the entry and puts it in.
///
/// # Errors
/// The map is out of order, passes the end, or does not account for the data.
pub(super) fn set_sparse(
    entry: &mut EntryHeader,
    map: Vec<Extent>,
    size: u64,
) -> Result<(), String> {
    if entry.kind != EntryKind::File {
        return Err("a sparse map on what is not a regular file".to_string());
    }
    let (mut end, mut stored) = (0u64, 0u64);
    for extent in &map {
        if extent.at < end {
            return Err("the sparse map is out of order".to_string());
        }
        end = extent
            .at
            .checked_add(extent.len)
            .filter(|end| *end <= size)
            .ok_or("the sparse map passes the end of the file")?;
        stored += extent.len;
    }
    if stored != entry.stored {
        return Err(format!(
            "the sparse map holds {stored} bytes, the entry {}",
            entry.stored
        ));
    }
    entry.size = size;
    entry.sparse = Some(map);
    Ok(())
}

/// Strict decimal: an optional minus sign where the type has one, digits, nothing else.
pub(super) fn decimal<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with an optional fraction; digits beyond nanoseconds are cut, towards the past.
fn time(text: &[u8]) -> Option<Timestamp> {
    let dot = text.iter().position(|b| *b == b'.');
    let (whole, frac) = match dot {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    if !frac.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let secs: i64 = decimal(whole)?;
    let digit = |i: usize| u32::from(frac.get(i).map_or(0, |b| b - b'0'));
    let nanos = (0..9).fold(0, |n, i| n * 10 + digit(i));
    if !whole.starts_with(b"-") {
        return Some(Timestamp { secs, nanos });
    }
    // -5.25 is 0.75 past -6.
    let inexact = frac.iter().skip(9).any(|b| *b != b'0');
    let below = nanos + u32::from(inexact);
    match below {
        0 => Some(Timestamp { secs, nanos: 0 }),
        n => Some(Timestamp {
            secs: secs.checked_sub(1)?,
            nanos: 1_000_000_000 - n,
        }),
    }
}

fn base64_lenient(text: &[u8]) -> Option<Vec<u8>> {
    use base64::Engine as _;
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    let config =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(&base64::alphabet::STANDARD, config)
        .decode(text)
        .ok()
}

/// libarchive writes awkward bytes of attribute names as `%XX`.
fn percent_decode(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&b, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|h| std::str::from_utf8(h).ok());
        match hex
            .and_then(|h| u8::from_str_radix(h, 16).ok())
            .filter(|_| b == b'%')
        {
            Some(byte) => {
                out.push(byte);
                rest = &tail[2..];
            }
            None => {
                out.push(b);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::whole("17", Some((17, 0)))]
    #[case::fraction("17.5", Some((17, 500_000_000)))]
    #[case::nanos("1.000000001", Some((1, 1)))]
    #[case::cut("1.9999999999", Some((1, 999_999_999)))]
    #[case::negative("-5.25", Some((-6, 750_000_000)))]
    #[case::negative_zero("-0.5", Some((-1, 500_000_000)))]
    #[case::negative_whole("-3", Some((-3, 0)))]
    #[case::nan("NaN", None)]
    #[case::exponent("1e309", None)]
    #[case::plus("+1", None)]
    #[case::huge("99999999999999999999", None)]
    #[case::empty("", None)]
    fn times(#[case] text: &str, #[case] expected: Option<(i64, u32)>) {
        let expected = expected.map(|(secs, nanos)| Timestamp { secs, nanos });
        assert_eq!(time(text.as_bytes()), expected);
    }

    #[rstest]
    #[case::one(b"6 a=b\n", Some(1))]
    #[case::two(b"6 a=b\n7 c=dd\n", Some(2))]
    #[case::newline_in_value(b"8 a=b\nc\n", Some(1))]
    #[case::nul_padding(b"6 a=b\n\0\0", Some(1))]
    #[case::short(b"9 a=b\n", None)]
    #[case::no_equals(b"6 abb\n", None)]
    #[case::no_newline(b"6 a=bb", None)]
    #[case::huge_length(b"99999999999999999999999 a=b\n", None)]
    #[case::minus(b"-6 a=b\n", None)]
    #[case::key_with_nul(b"7 a\0=b\n", None)]
    #[case::zero(b"0 a=b\n", None)]
    fn records(#[case] data: &[u8], #[case] count: Option<usize>) {
        assert_eq!(Records::parse(data).ok().map(|r| r.pairs.len()), count);
    }
}
