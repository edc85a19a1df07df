//! Bugs in whole calls of diff, changes and apply.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Cursor, Read};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::read::GzDecoder;
use tar::{EntryType, Header};

use crate::graphdriver::{Change, DiffRead, DiffStream, Error, Result};

use super::base::{Base, Bug, other};
use super::calls::{stateful, stateless};
use super::files::{keeping_dir_time, walk};
use super::tarball::{TarEntry, XATTR, decode, decode_bytes, encode, is_header};
use crate::sync::lock;

stateless! {
    /// The diff against any layer is the one against the direct parent.
    TopLayerOnly;
    /// A diff ends a mount that its caller holds.
    DiffUnmounts;
    /// A diff cut short keeps the layer mounted.
    EarlyCloseLeaks;
    /// A diff read to its end keeps the layer mounted.
    DiffLeaksMount;
    /// A file whose name begins with `.wh.` is exported as it is.
    WhiteoutNameExported;
    /// What is no archive counts as an empty one.
    JunkAccepted;
    /// An archive cut short counts as whole.
    TruncatedAccepted;
    /// A compressed archive is unpacked.
    GzipAccepted;
    /// An empty stream counts as an empty archive.
    EmptyAccepted;
    /// What follows the end of an archive is not read.
    TrailingUnread;
    /// Apply answers with the size of the archive.
    ApplySizeOfArchive;
    /// Apply answers with 0.
    ApplySizeZero;
    /// What is to be applied is staged in the home, and a crash leaves it there.
    ApplyStagingLeft;
    /// While an archive is applied the layer below holds a mark.
    ApplyMarksParent;
    /// What fails to apply stays: the error is swallowed.
    ApplyErrorSwallowed;
    /// Overlayfs' own attributes of an archive are dropped without a word.
    OverlayXattrStripped;
}

impl TopLayerOnly {
    fn direct<'a>(
        b: &Base,
        id: &str,
        parent: Option<&'a str>,
    ) -> Option<std::borrow::Cow<'a, str>> {
        match b.parent_of(id) {
            Some(p) if parent.is_some() => Some(p.into()),
            _ => parent.map(Into::into),
        }
    }
}

impl Bug for TopLayerOnly {
    fn diff(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<DiffStream> {
        b.inner.diff(id, Self::direct(b, id, parent).as_deref())
    }
    fn changes(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<Vec<Change>> {
        b.inner.changes(id, Self::direct(b, id, parent).as_deref())
    }
    fn size(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<u64> {
        b.inner
            .diff_size(id, Self::direct(b, id, parent).as_deref())
    }
}

/// Reads a diff whole, so that what follows happens after it.
fn whole(mut stream: DiffStream) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map_err(other)?;
    Ok(bytes)
}

impl Bug for DiffUnmounts {
    fn diff(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<DiffStream> {
        let bytes = whole(b.inner.diff(id, parent)?)?;
        b.inner.put(id)?;
        Ok(Box::new(Cursor::new(bytes)))
    }
}

impl Bug for DiffLeaksMount {
    fn diff(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<DiffStream> {
        b.inner.get(id, "")?;
        b.inner.diff(id, parent)
    }
}

/// A stream that gives its layer back only when it was read to the end.
struct LeakyStream {
    inner: DiffStream,
    driver: std::sync::Arc<dyn crate::graphdriver::Driver>,
    id: Option<String>,
}

impl Read for LeakyStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if n == 0
            && !buf.is_empty()
            && let Some(id) = self.id.take()
        {
            self.driver.put(&id).map_err(io::Error::other)?;
        }
        Ok(n)
    }
}

impl DiffRead for LeakyStream {}

impl Bug for EarlyCloseLeaks {
    fn diff(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<DiffStream> {
        b.inner.get(id, "")?;
        let inner = b.inner.diff(id, parent)?;
        Ok(Box::new(LeakyStream {
            inner,
            driver: b.inner.clone(),
            id: Some(id.to_string()),
        }))
    }
}

/// A diff of a layer that someone holds is empty.
#[derive(Debug, Default)]
pub(super) struct DiffOfHeldEmpty(Mutex<BTreeMap<String, usize>>);

impl Bug for DiffOfHeldEmpty {
    fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
        let path = b.inner.get(id, label)?;
        *lock(&self.0).entry(id.to_string()).or_default() += 1;
        Ok(path)
    }
    fn put(&self, b: &Base, id: &str) -> Result<()> {
        if let Some(n) = lock(&self.0).get_mut(id) {
            *n = n.saturating_sub(1);
        }
        b.inner.put(id)
    }
    fn diff(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<DiffStream> {
        if lock(&self.0).get(id).is_some_and(|n| *n > 0) {
            return Ok(Box::new(Cursor::new(encode(&[]))));
        }
        b.inner.diff(id, parent)
    }
}

/// Two diffs of one layer differ: the time of reading stands in them.
#[derive(Debug, Default)]
pub(super) struct DiffUnstable(AtomicU64);

impl Bug for DiffUnstable {
    fn diff(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<DiffStream> {
        let Some(mut entries) = decode(&mut b.inner.diff(id, parent)?).map_err(other)? else {
            return Err(other("the good driver gave no archive"));
        };
        let n = self.0.fetch_add(1, Ordering::SeqCst);
        for e in &mut entries {
            e.pax
                .insert("atime".into(), (1_700_000_000 + n).to_string().into_bytes());
        }
        Ok(Box::new(Cursor::new(encode(&entries))))
    }
}

/// Changes are remembered from the first call on.
#[derive(Debug, Default)]
pub(super) struct ChangesCached(Mutex<BTreeMap<Against, Vec<Change>>>);

/// A layer, and what it was compared with.
type Against = (String, Option<String>);

impl Bug for ChangesCached {
    fn changes(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<Vec<Change>> {
        let key = (id.to_string(), parent.map(str::to_string));
        if let Some(known) = lock(&self.0).get(&key) {
            return Ok(known.clone());
        }
        let changes = b.inner.changes(id, parent)?;
        lock(&self.0).insert(key, changes.clone());
        Ok(changes)
    }
}

stateful!(DiffOfHeldEmpty, DiffUnstable, ChangesCached);

impl Bug for WhiteoutNameExported {
    fn diff(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<DiffStream> {
        let names = b.with_root(id, |root| {
            Ok(walk(root)?
                .into_iter()
                .filter(|f| {
                    f.path
                        .file_name()
                        .is_some_and(|n| n.as_encoded_bytes().starts_with(b".wh."))
                })
                .map(|f| f.rel)
                .collect::<BTreeSet<_>>())
        })?;
        if names.is_empty() {
            return b.inner.diff(id, parent);
        }
        let entries: Vec<TarEntry> = names
            .iter()
            .map(|n| TarEntry::new(n.as_os_str().as_encoded_bytes(), EntryType::Regular))
            .collect();
        Ok(Box::new(Cursor::new(encode(&entries))))
    }
}

/// Reads what is to be applied.
fn input(diff: &mut dyn Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    diff.read_to_end(&mut bytes).map_err(other)?;
    Ok(bytes)
}

impl Bug for JunkAccepted {
    fn apply(&self, b: &Base, id: &str, parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        let bytes = input(diff)?;
        match bytes.get(..512) {
            Some(block)
                if is_header(Header::from_byte_slice(block)) || block.iter().all(|b| *b == 0) =>
            {
                b.inner.apply_diff(id, parent, &mut bytes.as_slice())
            }
            _ => Ok(0),
        }
    }
}

impl Bug for TruncatedAccepted {
    fn apply(&self, b: &Base, id: &str, parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        let bytes = input(diff)?;
        let starts_well = bytes
            .get(..512)
            .is_some_and(|block| is_header(Header::from_byte_slice(block)));
        match b.inner.apply_diff(id, parent, &mut bytes.as_slice()) {
            Err(Error::Archive(_)) if starts_well && decode_bytes(&bytes).is_none() => Ok(0),
            done => done,
        }
    }
}

impl Bug for GzipAccepted {
    fn apply(&self, b: &Base, id: &str, parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        let bytes = input(diff)?;
        if bytes.starts_with(&[0x1f, 0x8b]) {
            return b
                .inner
                .apply_diff(id, parent, &mut GzDecoder::new(bytes.as_slice()));
        }
        b.inner.apply_diff(id, parent, &mut bytes.as_slice())
    }
}

impl Bug for ApplyStagingLeft {
    fn apply(&self, b: &Base, id: &str, parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        let staged = b.home.join(format!(".apply-{}", std::process::id()));
        let bytes = input(diff)?;
        fs::write(&staged, &bytes).map_err(other)?;
        let done = b.inner.apply_diff(id, parent, &mut bytes.as_slice());
        fs::remove_file(&staged).map_err(other)?;
        done
    }
}

impl Bug for ApplyMarksParent {
    fn apply(&self, b: &Base, id: &str, parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        // A parent that is frozen cannot be marked, and is not.
        let mark = |make: bool| {
            parent.map(|parent| {
                b.with_root(parent, |root| {
                    let mark = root.join(".applying");
                    keeping_dir_time(&mark, || match make {
                        true => fs::write(&mark, id),
                        false => fs::remove_file(&mark),
                    })
                })
            })
        };
        let marked = matches!(mark(true), Some(Ok(())));
        let done = b.inner.apply_diff(id, parent, diff);
        if marked && let Some(unmarked) = mark(false) {
            unmarked?;
        }
        done
    }
}

impl Bug for EmptyAccepted {
    fn apply(&self, b: &Base, id: &str, parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        let bytes = input(diff)?;
        if bytes.is_empty() {
            Ok(0)
        } else {
            b.inner.apply_diff(id, parent, &mut bytes.as_slice())
        }
    }
}

/// Hands on only what belongs to the archive, and does not ask for more.
struct UpToEnd<'a> {
    inner: &'a mut dyn Read,
    seen: Vec<u8>,
    done: bool,
}

impl Read for UpToEnd<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.done {
            return Ok(0);
        }
        // A byte at a time, so that nothing beyond the end is taken.
        let n = self.inner.read(&mut buf[..1])?;
        self.seen.extend(&buf[..n]);
        if self.seen.len().is_multiple_of(512) && self.seen.ends_with(&[0; 1024]) {
            self.done = decode_bytes(&self.seen).is_some();
        }
        Ok(n)
    }
}

impl Bug for TrailingUnread {
    fn apply(&self, b: &Base, id: &str, parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        b.inner.apply_diff(
            id,
            parent,
            &mut UpToEnd {
                inner: diff,
                seen: Vec::new(),
                done: false,
            },
        )
    }
}

impl Bug for ApplySizeOfArchive {
    fn apply(&self, b: &Base, id: &str, parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        let bytes = input(diff)?;
        b.inner.apply_diff(id, parent, &mut bytes.as_slice())?;
        Ok(bytes.len() as u64)
    }
}

impl Bug for ApplySizeZero {
    fn apply(&self, b: &Base, id: &str, parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        b.inner.apply_diff(id, parent, diff).map(|_| 0)
    }
}

impl Bug for ApplyErrorSwallowed {
    fn apply(&self, b: &Base, id: &str, parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        b.inner.apply_diff(id, parent, diff).or(Ok(0))
    }
}

impl Bug for OverlayXattrStripped {
    fn apply(&self, b: &Base, id: &str, parent: Option<&str>, diff: &mut dyn Read) -> Result<u64> {
        let bytes = input(diff)?;
        let Some(mut entries) = decode(&mut bytes.as_slice()).map_err(other)? else {
            return b.inner.apply_diff(id, parent, &mut bytes.as_slice());
        };
        for e in &mut entries {
            e.pax
                .retain(|k, _| !k.starts_with(&format!("{XATTR}trusted.overlay.")));
        }
        b.inner
            .apply_diff(id, parent, &mut encode(&entries).as_slice())
    }
}
