//! The first files of a guest, in memory before its kernel has found a disk: the program, which is its first process, and what that
//! needs to be loaded. So a newer program needs no new image of the root, and is never read from a disk.

use std::collections::BTreeMap;
use std::path::Path;

use super::error::Result;
use super::program::Program;
use super::userland::Userland;

/// Where the program is until the root is there.
pub(super) const FIRST: &str = "/graphtest";

/// Directories on which something is mounted.
const EMPTY: &[&str] = &["dev", "proc", "sys", "root"];

/// Where a dynamically linked program finds libraries, in this order its usual places.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";

/// An archive of the program and the libraries that it names, directly or not, out of the userland.
///
/// # Errors
/// The userland lacks one of them.
pub(super) fn make(userland: &Userland, program: &Program) -> Result<Vec<u8>> {
    let mut files = BTreeMap::from([(
        FIRST.trim_start_matches('/').to_string(),
        program.bytes().to_vec(),
    )]);
    if let Some(loader) = program.interpreter() {
        let name = Path::new(loader).file_name().unwrap_or_default();
        let found = Program::read(&userland.library(name.as_ref()))?;
        let path = loader.trim_start_matches('/').to_string();
        files.insert(path, found.bytes().to_vec());
    }
    let mut wanted = program.needed().to_vec();
    while let Some(name) = wanted.pop() {
        let path = format!("{LIBRARIES}/{name}");
        if files.contains_key(&path) {
            continue;
        }
        let found = Program::read(&userland.library(name.as_ref()))?;
        wanted.extend(found.needed().iter().cloned());
        files.insert(path, found.bytes().to_vec());
    }
    let mut archive = Archive::default();
    let mut dirs: Vec<&str> = EMPTY.to_vec();
    for path in files.keys() {
        let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
        dirs.extend(parents);
    }
    dirs.sort_unstable();
    dirs.dedup();
    for dir in dirs {
        archive.add(dir, 0o040_755, &[]);
    }
    for (path, bytes) in &files {
        archive.add(path, 0o100_755, bytes);
    }
    archive.add("TRAILER!!!", 0, &[]);
    Ok(archive.bytes)
}

/// The kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    /// How many entries there are.
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        // Inode, mode, owner, group, links, time, size, device, device node, length of the name, and no checksum.
        let size = content.len();
        let fields = [
            self.entries as usize,
            mode as usize,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        let whole = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(whole, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_as_the_kernel_reads_them() {
        let mut archive = Archive::default();
        archive.add("dev", 0o040_755, &[]);
        archive.add("a", 0o100_755, b"hello");
        let bytes = archive.bytes;
        assert_eq!(&bytes[..6], b"070701");
        let field = |entry: usize, i: usize| {
            let at = entry + 6 + 8 * i;
            let digits = std::str::from_utf8(&bytes[at..at + 8]).unwrap();
            u32::from_str_radix(digits, 16).unwrap()
        };
        assert_eq!((field(0, 1), field(0, 6), field(0, 11)), (0o040_755, 0, 4));
        assert_eq!(&bytes[110..116], b"dev\0\0\0");
        // The second begins on a multiple of four, and so does its content.
        let second = 116;
        assert_eq!((field(second, 0), field(second, 6)), (2, 5));
        assert_eq!(&bytes[second + 110..], b"a\0hello\0\0\0");
    }
}
