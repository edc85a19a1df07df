//! Archives that a scenario makes or saves, and reading them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use super::call::{Done, Fail};
use super::world::World;
use crate::archive::manifest::{self, Manifest};
use crate::archive::read::Reader;
use crate::archive::{EntryHeader, EntryKind, fixtures};
use crate::graphtest::lang::At;
use crate::graphtest::step::{ArchiveEntry, ArchiveStep};
use crate::tree::op::escape;
use crate::tree::{Digest, Tree, content};

/// An archive on disk, beside the driver's home.
#[derive(Debug)]
pub(crate) struct Archive {
    /// Where its bytes are.
    pub path: PathBuf,
    /// What applying it does, when it was saved from a layer whose model is known.
    pub effect: Option<Effect>,
}

/// From this tree to that.
#[derive(Clone, Debug)]
pub(crate) struct Effect {
    /// What the archive was made against.
    pub old: Tree,
    /// What it was made from.
    pub new: Tree,
}

/// An entry as it was read: its header and, of a regular file, the digest of its data.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// The header, with PAX and GNU overrides in.
    pub header: EntryHeader,
    /// The digest of a regular file's data; `None` for whatever is none or is stored sparsely.
    pub digest: Option<Digest>,
}

impl Archive {
    /// Opens its bytes.
    pub fn open(&self) -> Done<BufReader<File>> {
        File::open(&self.path)
            .map(BufReader::new)
            .map_err(|e| Fail::new(format!("the archive cannot be read: {e}")))
    }
}

/// Reads an archive whole; it must be a well-formed tar that ends as one.
pub(crate) fn read_entries(path: &Path, what: &str) -> Done<Vec<Stored>> {
    let bad = |e: crate::archive::Error| {
        Fail::new(format!(
            "{what}: expected a well-formed archive, found: {e}"
        ))
    };
    let file = File::open(path).map_err(|e| Fail::new(format!("{what}: {e}")))?;
    let mut reader = Reader::new(BufReader::new(file));
    let mut entries = Vec::new();
    while let Some(header) = reader.next_entry().map_err(bad)? {
        let mut hasher = content::Hasher::new();
        let mut read = 0u64;
        let mut block = Vec::with_capacity(content::BLOCK);
        let mut index = 0;
        loop {
            let want = (content::BLOCK - block.len()) as u64;
            let got = reader.data(want).map_err(bad)?;
            let n = got.len();
            block.extend_from_slice(got);
            reader.consume(n);
            read += n as u64;
            if block.len() == content::BLOCK || (n == 0 && !block.is_empty()) {
                hasher.block(index, &block);
                index += 1;
                block.clear();
            }
            if n == 0 {
                break;
            }
        }
        let whole = header.kind == EntryKind::File && read == header.size;
        let digest = whole.then(|| hasher.finish(read));
        entries.push(Stored { header, digest });
    }
    reader.drain().map_err(bad)?;
    Ok(entries)
}

/// A name as steps write it: directories without the final `/`.
pub(crate) fn plain_name(header: &EntryHeader) -> &[u8] {
    header.name.strip_suffix(b"/").unwrap_or(&header.name)
}

/// Names for a person.
pub(crate) fn list(names: &BTreeSet<&[u8]>) -> String {
    let shown: Vec<String> = names.iter().take(20).map(|n| escape(n)).collect();
    match (names.len(), names.len() > shown.len()) {
        (0, _) => "nothing".to_string(),
        (n, true) => format!("{}, ... ({n} in all)", shown.join(", ")),
        _ => shown.join(", "),
    }
}

impl World<'_> {
    pub fn archive(&mut self, s: &ArchiveStep) -> Done {
        let path = self.scratch_path("archive");
        let wrong = |e: String| Fail::new(format!("the archive cannot be made: {e}"));
        let manifest = manifest_of(s).map_err(wrong)?;
        File::create(&path)
            .and_then(|mut out| manifest::build(&manifest, &mut out))
            .map_err(|e| wrong(e.to_string()))?;
        let archive = Archive { path, effect: None };
        self.archives.insert(s.name.clone(), archive.into());
        Ok(())
    }

    /// An archive by the name that a step gives.
    pub fn archive_named(&self, name: &str) -> Done<std::sync::Arc<Archive>> {
        self.archives.get(name).cloned().ok_or_else(|| {
            let known: Vec<&str> = self.archives.keys().map(String::as_str).collect();
            Fail::new(format!(
                "the scenario has no archive {name} at this point; it has: {}",
                known.join(", ")
            ))
        })
    }
}

/// The manifest that a step states.
fn manifest_of(s: &ArchiveStep) -> Result<Manifest, String> {
    let mut manifest = match &s.fixture {
        Some(id) => fixtures::find(id)?.archive,
        None => Manifest {
            entries: s
                .entries
                .iter()
                .flatten()
                .map(|e| e.value.entry.clone())
                .collect(),
            raw: s.raw.clone(),
            ..Manifest::default()
        },
    };
    if let Some(end) = s.end {
        manifest.end = end;
    }
    manifest.append = s.append.clone().or(manifest.append);
    manifest.truncate = s.truncate.clone().or(manifest.truncate);
    manifest.gzip |= s.gzip;
    Ok(manifest)
}

/// Each stated entry must stand in what was read, with the attributes that it states.
pub(crate) fn check_entries(stated: &[At<ArchiveEntry>], found: &[Stored], scratch: &Path) -> Done {
    for entry in stated {
        let manifest = Manifest {
            entries: vec![entry.value.entry.clone()],
            ..Manifest::default()
        };
        // What it would look like in an archive says what each stated attribute means.
        let mut file = File::create(scratch).map_err(|e| Fail::new(e.to_string()))?;
        manifest::build(&manifest, &mut file).map_err(|e| Fail::new(e.to_string()))?;
        let wanted = read_entries(scratch, "the stated entry")?;
        let Some(wanted) = wanted.first() else {
            return Err(Fail::new("the stated entry is none"));
        };
        check_entry(&entry.value, wanted, found)
            .map_err(|f| f.or_at(Some((entry.at.clone(), "entries".to_string()))))?;
    }
    Ok(())
}

fn check_entry(stated: &ArchiveEntry, wanted: &Stored, found: &[Stored]) -> Done {
    let name = plain_name(&wanted.header);
    let Some(f) = found.iter().find(|f| plain_name(&f.header) == name) else {
        return Err(Fail::new(format!(
            "expected an entry {}, found none",
            escape(name)
        )));
    };
    let (w, h) = (&wanted.header, &f.header);
    let states = |key: &str| stated.states(key);
    let mut lines = Vec::new();
    let mut differ = |what: &str, expected: String, found: String| {
        if expected != found {
            lines.push(format!("{what} {expected} expected, {found} found"));
        }
    };
    differ("type", format!("{:?}", w.kind), format!("{:?}", h.kind));
    if states("mode") {
        differ("mode", format!("{:04o}", w.mode), format!("{:04o}", h.mode));
    }
    if states("owner") {
        let print = |ids: (i128, i128)| format!("{}:{}", ids.0, ids.1);
        differ("owner", print(w.ids), print(h.ids));
    }
    if states("mtime") {
        let print = |t: crate::tree::Timestamp| format!("{}.{:09}", t.secs, t.nanos);
        differ("mtime", print(w.mtime), print(h.mtime));
    }
    if states("to") {
        differ("target", escape(&w.link), escape(&h.link));
    }
    if states("dev") {
        differ(
            "device",
            format!("{:?}", w.rdev()),
            format!("{:?}", h.rdev()),
        );
    }
    if states("text") || states("size") {
        differ("size", w.size.to_string(), h.size.to_string());
        if w.size == h.size && wanted.digest != f.digest {
            differ("content", "as stated".to_string(), "another".to_string());
        }
    }
    if states("xattrs") {
        let print = |x: &EntryHeader| {
            let pairs = x.xattrs.iter();
            let pairs: Vec<String> = pairs
                .map(|(k, v)| format!("{}={}", escape(k), escape(v)))
                .collect();
            pairs.join(" ")
        };
        differ("xattrs", print(w), print(h));
    }
    if lines.is_empty() {
        return Ok(());
    }
    Err(Fail::lines(
        format!("the entry {} is another:", escape(name)),
        lines,
    ))
}

/// A reader that gives at most `chunk` bytes a call and remembers whether its end was seen.
pub(crate) struct Chunked<R> {
    inner: R,
    chunk: usize,
    /// Whether a read came back empty.
    pub ended: bool,
}

impl<R: Read> Chunked<R> {
    /// Bytes of `inner`, at most `chunk` at a time.
    pub fn new(inner: R, chunk: usize) -> Self {
        Self {
            inner,
            chunk: chunk.max(1),
            ended: false,
        }
    }
}

impl<R: Read> Read for Chunked<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = buf.len().min(self.chunk);
        let n = self.inner.read(&mut buf[..len])?;
        self.ended |= n == 0 && len > 0;
        Ok(n)
    }
}
