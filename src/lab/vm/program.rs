//! A program for guests: as much of it as is ever loaded, and what it needs of the C library.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::{Result, at};

/// A 64-bit little-endian ELF file, elf(5), without what only debuggers and linkers read: that is most of a program built for
/// debugging.
#[derive(Clone, PartialEq, Eq)]
pub struct Program {
    bytes: Vec<u8>,
    /// The loader; `None`: the program is static.
    interpreter: Option<String>,
    /// The libraries that it names.
    needed: Vec<String>,
    glibc: Option<(u32, u32)>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program")
            .field("bytes", &self.bytes.len())
            .field("interpreter", &self.interpreter)
            .field("needed", &self.needed)
            .field("glibc", &self.glibc)
            .finish()
    }
}

const HEADER: usize = 64;
/// Where the header has the table of sections, and how many there are and which has their names.
const SECTIONS: [std::ops::Range<usize>; 2] = [40..48, 60..64];
const PT_LOAD: usize = 1;
const PT_DYNAMIC: usize = 2;
const PT_INTERP: usize = 3;
const DT_NEEDED: usize = 1;
const DT_STRTAB: usize = 5;
const DT_STRSZ: usize = 10;

impl Program {
    /// Reads a program or a library.
    ///
    /// # Errors
    /// It cannot be read, or is no such file.
    pub fn read(path: &Path) -> Result<Self> {
        File::open(path)
            .and_then(|file| loaded(&file))
            .and_then(Self::parse)
            .map_err(at(path, "read"))
    }

    /// The program that runs.
    ///
    /// # Errors
    /// As [`Program::read`].
    pub fn own() -> Result<Self> {
        // Also when its file has been replaced by a newer one.
        Self::read(Path::new("/proc/self/exe"))
    }

    fn parse(mut bytes: Vec<u8>) -> io::Result<Self> {
        let segments = segments(&bytes)?;
        let of = |kind| segments.iter().find(|s| s.kind == kind);
        let interpreter = of(PT_INTERP).map(|s| s.content(&bytes)).transpose()?;
        let (mut needed, mut glibc) = (Vec::new(), None);
        if let Some(dynamic) = of(PT_DYNAMIC) {
            let entries = dynamic.content(&bytes)?.chunks_exact(16);
            let entries: Vec<_> = entries
                .map(|e| Ok((number(e, 0, 8)?, number(e, 8, 8)?)))
                .collect::<io::Result<_>>()?;
            let value = |tag| entries.iter().find(|e| e.0 == tag).map(|e| e.1);
            let (Some(address), Some(size)) = (value(DT_STRTAB), value(DT_STRSZ)) else {
                return Err(bad());
            };
            let strings = segments.iter().find_map(|s| s.offset_of(address));
            let strings = part(&bytes, strings.ok_or_else(bad)?, size)?;
            for (_, at) in entries.iter().filter(|e| e.0 == DT_NEEDED) {
                needed.push(text(strings.get(*at..).ok_or_else(bad)?));
            }
            glibc = highest_glibc(strings);
        }
        let interpreter = interpreter.map(text);
        for place in SECTIONS {
            bytes[place].fill(0);
        }
        Ok(Self {
            bytes,
            interpreter,
            needed,
            glibc,
        })
    }

    /// The file, without what is never loaded.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The path of its loader; `None`: it is static.
    pub(super) fn interpreter(&self) -> Option<&str> {
        self.interpreter.as_deref()
    }

    /// The libraries that it names.
    pub(super) fn needed(&self) -> &[String] {
        &self.needed
    }

    /// The highest version of glibc's symbols that it uses, such as (2, 34); `None` when it uses none, as a static one.
    pub(super) fn glibc(&self) -> Option<(u32, u32)> {
        self.glibc
    }
}

/// Everything of the file up to the end of the last segment.
fn loaded(file: &File) -> io::Result<Vec<u8>> {
    let short = |e: io::Error| match e.kind() {
        io::ErrorKind::UnexpectedEof => bad(),
        _ => e,
    };
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let read = |length: usize| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0).map(|()| bytes)
    };
    let header = read(HEADER).map_err(short)?;
    let table = table(&header)?.end;
    if table > length {
        return Err(bad());
    }
    let ends = segments(&read(table).map_err(short)?)?;
    let ends = ends.iter().map(|s| s.offset.checked_add(s.size));
    let end = ends.max().flatten().unwrap_or(0).max(table);
    if end > length {
        return Err(bad());
    }
    read(end).map_err(short)
}

/// A program header.
struct Segment {
    kind: usize,
    offset: usize,
    address: usize,
    size: usize,
}

impl Segment {
    fn content<'a>(&self, elf: &'a [u8]) -> io::Result<&'a [u8]> {
        part(elf, self.offset, self.size)
    }

    /// Where in the file an address of a loaded segment is.
    fn offset_of(&self, address: usize) -> Option<usize> {
        let within = address.checked_sub(self.address)?;
        (self.kind == PT_LOAD && within < self.size).then(|| self.offset.checked_add(within))?
    }
}

/// Where the program headers are.
fn table(header: &[u8]) -> io::Result<std::ops::Range<usize>> {
    if header.get(..6) != Some(b"\x7fELF\x02\x01") || number(header, 54, 2)? != ENTRY {
        return Err(bad());
    }
    let (begin, count) = (number(header, 32, 8)?, number(header, 56, 2)?);
    let end = begin.checked_add(count * ENTRY).ok_or_else(bad)?;
    Ok(begin..end)
}

/// The size of a program header.
const ENTRY: usize = 56;

fn segments(elf: &[u8]) -> io::Result<Vec<Segment>> {
    let entries = elf.get(table(elf)?).ok_or_else(bad)?.chunks_exact(ENTRY);
    let entries = entries.map(|entry| {
        Ok(Segment {
            kind: number(entry, 0, 4)?,
            offset: number(entry, 8, 8)?,
            address: number(entry, 16, 8)?,
            size: number(entry, 32, 8)?,
        })
    });
    entries.collect()
}

fn bad() -> io::Error {
    let what = "not a 64-bit little-endian ELF file";
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn part(bytes: &[u8], offset: usize, length: usize) -> io::Result<&[u8]> {
    let end = offset.checked_add(length).ok_or_else(bad)?;
    bytes.get(offset..end).ok_or_else(bad)
}

/// A little-endian number of so many bytes.
fn number(bytes: &[u8], at: usize, length: usize) -> io::Result<usize> {
    let raw = part(bytes, at, length)?.iter().rev();
    Ok(raw.fold(0, |n, b| n << 8 | usize::from(*b)))
}

/// The text up to a NUL.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Names of versions stand among the strings for dynamic linking; see "Symbol Versioning" in the Linux Standard Base.
fn highest_glibc(strings: &[u8]) -> Option<(u32, u32)> {
    let versions = strings.split(|b| *b == 0).filter_map(|name| {
        let text = std::str::from_utf8(name).ok()?;
        let (major, minor) = text.strip_prefix("GLIBC_")?.split_once('.')?;
        let minor = minor.split('.').next()?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    versions.max()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_program_says_what_it_needs() {
        let me = Program::own().unwrap();
        if cfg!(all(target_env = "gnu", not(target_feature = "crt-static"))) {
            assert!(me.glibc().unwrap() >= (2, 17), "{me:?}");
            assert!(me.needed().contains(&"libc.so.6".to_string()), "{me:?}");
            assert!(me.interpreter().unwrap().starts_with("/lib"), "{me:?}");
        } else {
            assert_eq!((me.glibc(), me.needed().len()), (None, 0));
        }
    }

    #[test]
    fn what_is_left_of_a_program_still_runs() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("me");
        let me = Program::own().unwrap();
        let whole = std::fs::metadata("/proc/self/exe").unwrap().len();
        assert!((me.bytes().len() as u64) < whole, "{me:?} of {whole}");
        std::fs::write(&path, me.bytes()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let list = std::process::Command::new(&path)
            .args(["--list", "what_is_left_of_a_program"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&list.stdout);
        assert!(
            said.contains("what_is_left_of_a_program_still_runs"),
            "{list:?}"
        );
        // Reading it once more takes nothing away.
        assert_eq!(Program::read(&path).unwrap(), me);
    }

    #[test]
    fn junk_is_refused_and_never_read_past_its_end() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("x");
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let e = Program::read(&path).unwrap_err().to_string();
            assert!(e.contains("not a 64-bit"), "{e}");
        };
        refused(b"#!/bin/sh\n");
        let me = std::fs::read("/proc/self/exe").unwrap();
        for cut in [0, 6, 40, 63, 64, 300, 1000, 5000] {
            refused(&me[..cut]);
        }
        // The table, the number of its entries, and the first entry's offset.
        for place in [32..40, 56..58, 72..80] {
            let mut bad = me[..me.len().min(1 << 20)].to_vec();
            bad[place].fill(0xff);
            refused(&bad);
        }
    }
}
