//! Tar headers: POSIX ustar, with PAX records for what ustar cannot hold.

use std::collections::BTreeMap;

use crate::tree::{Owner, Rdev, Timestamp};

/// The unit of a tar.
pub(in crate::archive) const BLOCK: usize = 512;

/// What one header says.
#[derive(Debug)]
pub(super) struct Header<'a> {
    /// Without the final `/` of a directory.
    pub(super) path: &'a [u8],
    pub(super) kind: EntryKind<'a>,
    /// Permission bits with setuid, setgid and sticky.
    pub(super) mode: u32,
    pub(super) owner: Owner,
    pub(super) mtime: Timestamp,
    pub(super) xattrs: &'a BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryKind<'a> {
    /// With its size.
    File(u64),
    /// To the name of an earlier entry.
    Hardlink(&'a [u8]),
    Symlink(&'a [u8]),
    Char(Rdev),
    Block(Rdev),
    Dir,
    Fifo,
}

impl EntryKind<'_> {
    fn type_flag(self) -> u8 {
        match self {
            Self::File(_) => b'0',
            Self::Hardlink(_) => b'1',
            Self::Symlink(_) => b'2',
            Self::Char(_) => b'3',
            Self::Block(_) => b'4',
            Self::Dir => b'5',
            Self::Fifo => b'6',
        }
    }
}

/// Appends the header, after a PAX header if one is needed. Fails on an attribute whose name no PAX record can hold.
pub(super) fn append(out: &mut Vec<u8>, header: &Header<'_>) -> Result<(), String> {
    let mut block = [0; BLOCK];
    let mut records = Vec::new();
    let mut slashed;
    let mut path = header.path;
    if header.kind == EntryKind::Dir {
        slashed = path.to_vec();
        slashed.push(b'/');
        path = &slashed;
    }
    if !put_path(&mut block, path) {
        pax_record(&mut records, b"path", path);
    }
    let (mut size, mut device) = (0, Rdev::default());
    match header.kind {
        EntryKind::File(n) => size = n,
        EntryKind::Hardlink(to) | EntryKind::Symlink(to) => {
            if to.len() <= 100 && to.is_ascii() {
                block[157..157 + to.len()].copy_from_slice(to);
            } else {
                pax_record(&mut records, b"linkpath", to);
            }
        }
        EntryKind::Char(d) | EntryKind::Block(d) => device = d,
        EntryKind::Dir | EntryKind::Fifo => {}
    }
    put_octal(&mut block[100..108], u64::from(header.mode & 0o7777));
    for (field, value, key) in [
        (108..116, u64::from(header.owner.uid), &b"uid"[..]),
        (116..124, u64::from(header.owner.gid), b"gid"),
        (124..136, size, b"size"),
    ] {
        if !put_octal(&mut block[field], value) {
            pax_record(&mut records, key, value.to_string().as_bytes());
        }
    }
    let whole = header.mtime.nanos == 0;
    let fits = put_octal(
        &mut block[136..148],
        u64::try_from(header.mtime.secs).unwrap_or(0),
    );
    if !whole || !fits || header.mtime.secs < 0 {
        pax_record(&mut records, b"mtime", decimal(header.mtime).as_bytes());
    }
    for (name, value) in header.xattrs {
        if name.contains(&b'=') {
            return Err(format!(
                "the attribute name {:?} holds a `=`",
                String::from_utf8_lossy(name)
            ));
        }
        pax_record(&mut records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    block[156] = header.kind.type_flag();
    put_octal(&mut block[329..337], u64::from(device.major));
    put_octal(&mut block[337..345], u64::from(device.minor));
    if !records.is_empty() {
        append_pax(out, header.path, &records);
    }
    finish(&mut block);
    out.extend_from_slice(&block);
    Ok(())
}

fn append_pax(out: &mut Vec<u8>, path: &[u8], records: &[u8]) {
    let base = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    let mut name = b"PaxHeaders.0/".to_vec();
    name.extend(base.iter().filter(|b| b.is_ascii_graphic()).take(80));
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(&name);
    put_octal(&mut block[100..108], 0);
    put_octal(&mut block[108..116], 0);
    put_octal(&mut block[116..124], 0);
    put_octal(&mut block[124..136], records.len() as u64);
    put_octal(&mut block[136..148], 0);
    put_octal(&mut block[329..337], 0);
    put_octal(&mut block[337..345], 0);
    block[156] = b'x';
    finish(&mut block);
    out.extend_from_slice(&block);
    out.extend_from_slice(records);
    pad(out, records.len() as u64);
}

/// Appends the zeros that fill the last block of a body of this size.
pub(super) fn pad(out: &mut Vec<u8>, size: u64) {
    let past = (size % BLOCK as u64) as usize;
    if past != 0 {
        out.resize(out.len() + BLOCK - past, 0);
    }
}

/// Puts a path into the name field, or splits it at a `/` over prefix and name; `false` when it does not fit or is not ASCII.
fn put_path(block: &mut [u8; BLOCK], path: &[u8]) -> bool {
    if path.is_ascii() && path.len() <= 100 {
        block[..path.len()].copy_from_slice(path);
        return true;
    }
    // The final slash of a directory belongs to its name.
    let end = path.len().saturating_sub(1);
    let cut = path[..end.min(156)].iter().rposition(|b| *b == b'/');
    match cut {
        Some(cut) if path.is_ascii() && cut > 0 && path.len() - cut - 1 <= 100 => {
            block[345..345 + cut].copy_from_slice(&path[..cut]);
            block[..path.len() - cut - 1].copy_from_slice(&path[cut + 1..]);
            true
        }
        _ => {
            // Readers that know PAX never look here; the others get something to show.
            for (to, from) in block[..100]
                .iter_mut()
                .zip(path.iter().filter(|b| b.is_ascii()))
            {
                *to = *from;
            }
            false
        }
    }
}

/// Writes octal digits and a NUL; zero, and `false`, when the number does not fit.
pub(in crate::archive) fn put_octal(field: &mut [u8], value: u64) -> bool {
    let digits = field.len() - 1;
    let fits = digits * 3 >= 64 || value >> (digits * 3) == 0;
    let mut rest = if fits { value } else { 0 };
    for digit in field[..digits].iter_mut().rev() {
        *digit = b'0' + (rest & 7) as u8;
        rest >>= 3;
    }
    field[digits] = 0;
    fits
}

/// Sets magic and checksum.
fn finish(block: &mut [u8; BLOCK]) {
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    put_octal(&mut block[148..155], u64::from(sum));
}

/// Appends `LENGTH KEY=VALUE\n`, where the length counts itself.
pub(in crate::archive) fn pax_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + digits(length) {
        length = rest + digits(length);
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn digits(n: usize) -> usize {
    n.checked_ilog10().map_or(1, |d| d as usize + 1)
}

/// Seconds with as many decimals as are needed.
fn decimal(t: Timestamp) -> String {
    let (sign, secs, nanos) = if t.secs < 0 && t.nanos > 0 {
        ("-", -(t.secs + 1), 1_000_000_000 - t.nanos)
    } else {
        ("", t.secs, t.nanos)
    };
    if nanos == 0 {
        return t.secs.to_string();
    }
    let frac = format!("{nanos:09}");
    format!("{sign}{secs}.{}", frac.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::whole(5, 0, "5")]
    #[case::fraction(5, 120_000_000, "5.12")]
    #[case::before_the_epoch(-2, 500_000_000, "-1.5")]
    #[case::just_before(-1, 999_999_999, "-0.000000001")]
    #[case::whole_before(-3, 0, "-3")]
    fn times(#[case] secs: i64, #[case] nanos: u32, #[case] text: &str) {
        assert_eq!(decimal(Timestamp { secs, nanos }), text);
    }

    #[rstest]
    #[case(b"k", 0, "5 k=\n")]
    #[case(b"path", 1, "9 path=v\n")]
    #[case(b"path", 2, "11 path=vv\n")]
    fn records(#[case] key: &[u8], #[case] values: usize, #[case] text: &str) {
        let mut out = Vec::new();
        pax_record(&mut out, key, &b"v".repeat(values));
        assert_eq!(out, text.as_bytes());
    }

    #[test]
    fn a_record_states_its_own_length() {
        for n in 0..1200 {
            let mut out = Vec::new();
            pax_record(&mut out, b"key", &vec![b'v'; n]);
            let length = out.split(|b| *b == b' ').next().unwrap();
            assert_eq!(
                String::from_utf8_lossy(length),
                out.len().to_string(),
                "value of {n} bytes"
            );
        }
    }

    #[rstest]
    #[case(0o777_7777, true)]
    #[case(0o1000_0000, false)]
    fn octal_fields(#[case] value: u64, #[case] fits: bool) {
        let mut field = [b'x'; 8];
        assert_eq!(put_octal(&mut field, value), fits);
        assert_eq!(&field, if fits { b"7777777\0" } else { b"0000000\0" });
    }
}
