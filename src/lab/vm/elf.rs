//! What a program needs of the C library.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::error::{Result, at};

/// The highest version of glibc's symbols that a program uses, such as (2, 34); `None` when it uses none, as a static one.
///
/// Names of versions stand in the table of strings for dynamic linking; see "Symbol Versioning" in the Linux Standard Base.
pub(super) fn glibc_needed(program: &Path) -> Result<Option<(u32, u32)>> {
    let mut bytes = Vec::new();
    File::open(program)
        .and_then(|mut f| f.read_to_end(&mut bytes))
        .map_err(at(program, "read"))?;
    let strings = section(&bytes, b".dynstr").map_err(at(program, "read"))?;
    let names = strings.unwrap_or_default().split(|b| *b == 0);
    let versions = names.filter_map(|name| {
        let text = std::str::from_utf8(name).ok()?;
        let (major, minor) = text.strip_prefix("GLIBC_")?.split_once('.')?;
        let minor = minor.split('.').next()?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    Ok(versions.max())
}

/// A section of a 64-bit little-endian ELF file by its name: elf(5).
fn section<'a>(elf: &'a [u8], name: &[u8]) -> io::Result<Option<&'a [u8]>> {
    let bad = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "not a 64-bit little-endian ELF file",
        )
    };
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err(bad());
    }
    let number = |at: usize, bytes: usize| -> io::Result<usize> {
        let raw = at.checked_add(bytes).and_then(|end| elf.get(at..end));
        let raw = raw.ok_or_else(bad)?;
        Ok(raw.iter().rev().fold(0, |n, b| n << 8 | usize::from(*b)))
    };
    let (table, size, count, names) = (
        number(40, 8)?,
        number(58, 2)?,
        number(60, 2)?,
        number(62, 2)?,
    );
    let header = |i: usize| {
        i.checked_mul(size)
            .and_then(|o| o.checked_add(table))
            .ok_or_else(bad)
    };
    let content = |header: usize| -> io::Result<&[u8]> {
        let (offset, length) = (number(header + 24, 8)?, number(header + 32, 8)?);
        let end = offset.checked_add(length).ok_or_else(bad)?;
        elf.get(offset..end).ok_or_else(bad)
    };
    let names = content(header(names)?)?;
    for i in 0..count {
        let header = header(i)?;
        let rest = names.get(number(header, 4)?..).ok_or_else(bad)?;
        if rest.split(|b| *b == 0).next() == Some(name) {
            return content(header).map(Some);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_says_which_library_it_needs() {
        let me = std::env::current_exe().unwrap();
        let needed = glibc_needed(&me).unwrap();
        if cfg!(target_env = "gnu") {
            assert!(needed.unwrap() >= (2, 17), "{needed:?}");
        } else {
            assert_eq!(needed, None);
        }
    }

    #[test]
    fn junk_is_refused_and_never_read_past_its_end() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("x");
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        assert!(glibc_needed(&path).is_err());
        let me = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for cut in [6, 40, 63, 64, 1000] {
            assert!(section(&me[..cut], b".dynstr").is_err(), "{cut}");
        }
        let mut bad = me[..64].to_vec();
        bad[40..48].fill(0xff);
        assert!(section(&bad, b".dynstr").is_err());
    }
}
