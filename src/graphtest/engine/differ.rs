//! Steps on what differs: changes, diff, apply, size, round-trip, tar-split.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::archives::{self, Archive, Chunked, Effect, plain_name};
use super::call::{Done, Fail};
use super::world::World;
use crate::archive::{self, Change, ChangeKind, model_changes};
use crate::graphdriver::{CreateOpts, DiffStream, Error};
use crate::graphtest::step::{
    ApplySize, ApplyStep, ChangesStep, DiffStep, Expect, RoundTripStep, SizeStep,
};
use crate::tree::op::Bytes;
use crate::tree::{Compare, Kind, Tree, TreePath, compare};

/// How a step names "no parent".
const NONE: &str = "none";

/// A layer whose diff against `from` is applied to the fresh layer `copy`, made on `onto`.
#[derive(Clone, Copy)]
struct Trip<'t> {
    id: &'t str,
    from: Option<&'t str>,
    copy: &'t str,
    onto: Option<&'t str>,
}

/// What came of it.
struct Applied {
    /// The names in the diff, directories without the final `/`.
    names: BTreeSet<Vec<u8>>,
    /// The size that applying it gave.
    size: u64,
    /// What was done, for a failure.
    what: String,
}

impl World<'_> {
    /// The parent that a step means: the one it names, else the layer's own.
    pub(super) fn parent_meant(&self, id: &str, named: Option<&str>) -> Option<String> {
        match named {
            Some(NONE) => None,
            Some(parent) => Some(parent.to_string()),
            None => self.layers.parent(id),
        }
    }

    pub fn changes(&mut self, s: &ChangesStep, expect: &Expect) -> Done {
        let parent = self.parent_meant(&s.id, s.parent.as_deref());
        let Some(found) = self.changes_of(&s.id, parent.as_deref(), expect)? else {
            return Ok(());
        };
        let has: BTreeSet<&Change> = found.iter().collect();
        let mut lines = Vec::new();
        let stated = s.are.is_some() || !s.include.is_empty() || !s.exclude.is_empty();
        let modelled;
        let are = match &s.are {
            Some(are) => Some(are),
            None if stated => None,
            None => {
                modelled = self.layers.changes(&s.id, parent.as_deref())?;
                Some(&modelled)
            }
        };
        if let Some(are) = are {
            let wanted: BTreeSet<&Change> = are.iter().collect();
            lines.extend(wanted.difference(&has).map(|c| format!("missing:    {c}")));
            lines.extend(has.difference(&wanted).map(|c| format!("unexpected: {c}")));
        }
        let missing = s.include.iter().filter(|c| !has.contains(c));
        lines.extend(missing.map(|c| format!("missing:    {c}")));
        let unwanted = s.exclude.iter().filter(|c| has.contains(c));
        lines.extend(unwanted.map(|c| format!("unexpected: {c}")));
        if lines.is_empty() {
            return Ok(());
        }
        let against = parent.as_deref().unwrap_or("nothing");
        Err(Fail::lines(
            format!("the changes of {} against {against} are others:", s.id),
            lines,
        ))
    }

    /// The driver's changes, which must be in order; `None` when the call fails as stated.
    fn changes_of(
        &mut self,
        id: &str,
        parent: Option<&str>,
        expect: &Expect,
    ) -> Done<Option<Vec<Change>>> {
        let what = format!("changes {id}");
        let Some(found) = self.call(expect, &what, |d| d.changes(id, parent))? else {
            return Ok(None);
        };
        if let Some(c) = found.iter().find(|c| c.path.is_root()) {
            return Err(Fail::new(format!(
                "{what}: expected the root never to be listed, found {c}"
            )));
        }
        for pair in found.windows(2) {
            if pair[0].path == pair[1].path {
                let (a, b) = (&pair[0], &pair[1]);
                return Err(Fail::new(format!(
                    "{what}: expected no path twice, found {a} and {b}"
                )));
            }
            if pair[0].path > pair[1].path {
                let (a, b) = (&pair[0], &pair[1]);
                return Err(Fail::new(format!(
                    "{what}: expected the changes sorted by path, found {a} before {b}"
                )));
            }
        }
        Ok(Some(found))
    }

    pub fn diff(&mut self, s: &DiffStep, expect: &Expect) -> Done {
        let parent = self.parent_meant(&s.id, s.parent.as_deref());
        let what = format!("diff {}", s.id);
        if let Some(n) = &s.close_after {
            return self.close_early(&s.id, parent.as_deref(), n.0);
        }
        let Some(path) = self.diff_to_file(&s.id, parent.as_deref(), expect)? else {
            return Ok(());
        };
        self.check_names(s, &path)?;
        if s.stable {
            let again = self.whole_diff(&s.id, parent.as_deref())?;
            if let Some(at) = first_difference(&path, &again)? {
                return Err(Fail::new(format!(
                    "{what}: expected the same bytes again, found a difference at byte {at}"
                )));
            }
        }
        if let Some(name) = &s.save {
            let effect = self.layers.effect(&s.id, parent.as_deref());
            self.archives
                .insert(name.clone(), Arc::new(Archive { path, effect }));
        }
        Ok(())
    }

    /// Reads the beginning of a diff and drops it.
    fn close_early(&mut self, id: &str, parent: Option<&str>, bytes: u64) -> Done {
        let what = format!("diff {id}");
        let stream = self.must(&what, |d| d.diff(id, parent))?;
        match io::copy(&mut stream.take(bytes), &mut io::sink()) {
            Ok(read) if read == bytes => Ok(()),
            Ok(read) => Err(Fail::new(format!(
                "{what}: expected at least {bytes} bytes, found {read}"
            ))),
            Err(e) => Err(Fail::new(format!("{what}: expected bytes, found: {e}"))),
        }
    }

    /// A diff that must succeed, in a file.
    pub(super) fn whole_diff(&mut self, id: &str, parent: Option<&str>) -> Done<PathBuf> {
        self.diff_to_file(id, parent, &Expect::default())?
            .ok_or_else(|| Fail::new("a diff that must succeed gave nothing"))
    }

    /// Reads a diff to its end into a file; it must end as an archive ends. `None` when the call, or reading, fails as stated.
    fn diff_to_file(
        &mut self,
        id: &str,
        parent: Option<&str>,
        expect: &Expect,
    ) -> Done<Option<PathBuf>> {
        let path = self.scratch_path("diff");
        let what = format!("diff {id}");
        let spooled = self.call(expect, &what, |d| {
            let stream = d.diff(id, parent)?;
            spool(stream, &path).map_err(driver_error)
        })?;
        match spooled {
            None => Ok(None),
            Some((n, end)) if n >= 1024 && n % 512 == 0 && end.iter().all(|b| *b == 0) => {
                Ok(Some(path))
            }
            Some((n, _)) => Err(Fail::new(format!(
                "{what}: expected whole blocks of 512 bytes and two of zeros at the end, found {n} bytes that end otherwise"
            ))),
        }
    }

    fn check_names(&mut self, s: &DiffStep, path: &Path) -> Done {
        let what = format!("diff {}", s.id);
        let entries = archives::read_entries(path, &what)?;
        let mut names: BTreeSet<&[u8]> = BTreeSet::new();
        for entry in &entries {
            if !names.insert(plain_name(&entry.header)) {
                let name = crate::tree::op::escape(plain_name(&entry.header));
                return Err(Fail::new(format!(
                    "{what}: expected no name twice, found {name} again"
                )));
            }
        }
        let plain = |b: &Bytes| b.0.strip_suffix(b"/").unwrap_or(&b.0).to_vec();
        let mut lines = Vec::new();
        if let Some(is) = &s.is {
            let wanted: BTreeSet<Vec<u8>> = is.iter().map(plain).collect();
            let missing = wanted.iter().filter(|n| !names.contains(n.as_slice()));
            lines.extend(missing.map(|n| format!("missing:    {}", crate::tree::op::escape(n))));
            let odd = names.iter().filter(|n| !wanted.contains(**n));
            lines.extend(odd.map(|n| format!("unexpected: {}", crate::tree::op::escape(n))));
        }
        let missing = s
            .holds
            .iter()
            .filter(|n| !names.contains(plain(n).as_slice()));
        lines.extend(missing.map(|n| format!("missing:    {n}")));
        let odd = s
            .lacks
            .iter()
            .filter(|n| names.contains(plain(n).as_slice()));
        lines.extend(odd.map(|n| format!("unexpected: {n}")));
        if !lines.is_empty() {
            lines.push(format!("found: {}", archives::list(&names)));
            return Err(Fail::lines(
                format!("{what}: the entries are others:"),
                lines,
            ));
        }
        let scratch = self.scratch_path("entry");
        archives::check_entries(&s.entries, &entries, &scratch).map_err(|f| f.context(&what))
    }

    pub fn apply(&mut self, s: &ApplyStep, expect: &Expect) -> Done {
        let archive = self.archive_named(&s.from)?;
        let parent = self.parent_meant(&s.id, s.parent.as_deref());
        let what = format!("apply {} to {}", s.from, s.id);
        let chunk = s.chunk.as_ref().map_or(usize::MAX, |c| c.0 as usize);
        let mut input = Chunked::new(archive.open()?, chunk);
        let driver = self.driver()?;
        let result = driver.apply_diff(&s.id, parent.as_deref(), &mut input);
        let Some(size) = expect.judge(&what, result)? else {
            // The layer itself may hold a part; every other one must be whole.
            self.layers.unknown(&s.id);
            // On a read-only disk a driver need not be able to show a layer.
            if !self.concurrent && !self.read_only {
                self.all_as_modelled(|id| id != s.id)
                    .map_err(|f| f.context(&format!("{what} failed, as stated, but did harm")))?;
            }
            return Ok(());
        };
        if !input.ended {
            return Err(Fail::new(format!(
                "{what}: expected the stream to be read to its end, it was not"
            )));
        }
        self.check_applied_size(s, parent.as_deref(), size, &what)?;
        self.after_apply(&s.id, archive.effect.as_ref(), &what)
    }

    fn check_applied_size(
        &self,
        s: &ApplyStep,
        parent: Option<&str>,
        size: u64,
        what: &str,
    ) -> Done {
        let expected = match &s.size {
            Some(ApplySize::Is(n)) => *n,
            None if parent.is_some() || self.shared.contains(&s.id) => return Ok(()),
            _ => self.must(&format!("size {}", s.id), |d| d.diff_size(&s.id, parent))?,
        };
        if size == expected {
            return Ok(());
        }
        Err(Fail::new(format!(
            "{what}: expected the size {expected}, found {size}"
        )))
    }

    /// The model follows where the effect of the archive is known; else it takes over what is there.
    pub(super) fn after_apply(&mut self, id: &str, effect: Option<&Effect>, what: &str) -> Done {
        if self.shared.contains(id) {
            return Ok(());
        }
        let current = self.layers.tree(id);
        let found = self.adopt(id)?;
        if let (Some(effect), Some(current)) = (effect, current) {
            let how = Compare {
                ignore_mtime: true,
                ignore_sockets: true,
                ..self.comparison()
            };
            let root = TreePath::root();
            let mut base = effect.old.clone();
            base.entries.remove(&root);
            if compare(&base, &current, &how).is_empty() {
                let expected = carried(effect, &current);
                let how = Compare {
                    ignore_sockets: true,
                    ..self.comparison()
                };
                let diff = compare(&expected, &found, &how);
                if !diff.is_empty() {
                    return Err(Fail::lines(
                        format!("{what}: the tree is not that of the layer it was made from:"),
                        diff.lines(),
                    ));
                }
            }
        }
        Ok(())
    }

    pub fn size(&mut self, s: &SizeStep, expect: &Expect) -> Done {
        let parent = self.parent_meant(&s.id, s.parent.as_deref());
        let what = format!("size {}", s.id);
        let found = self.call(expect, &what, |d| d.diff_size(&s.id, parent.as_deref()))?;
        let Some(found) = found else { return Ok(()) };
        let unstated = s.is.is_none() && s.at_most.is_none() && s.at_least.is_none();
        let exact = match &s.is {
            Some(size) => Some(size.0),
            None if unstated => Some(self.layers.size(&s.id, parent.as_deref())?),
            None => None,
        };
        if let Some(exact) = exact.filter(|e| *e != found) {
            return Err(Fail::new(format!(
                "{what}: expected {exact}, found {found}"
            )));
        }
        if let Some(most) = s.at_most.as_ref().filter(|m| found > m.0) {
            return Err(Fail::new(format!(
                "{what}: expected at most {most}, found {found}"
            )));
        }
        if let Some(least) = s.at_least.as_ref().filter(|m| found < m.0) {
            return Err(Fail::new(format!(
                "{what}: expected at least {least}, found {found}"
            )));
        }
        Ok(())
    }

    pub fn round_trip(&mut self, s: &RoundTripStep) -> Done {
        let from = self.parent_meant(&s.id, None);
        let onto = s.onto.clone().or_else(|| from.clone());
        let mut source = (s.id.clone(), from);
        let turns = if s.twice { 2 } else { 1 };
        let mut made = Vec::new();
        for turn in 1..=turns {
            let copy = format!("{}-round-trip-{turn}", s.id);
            let trip = Trip {
                id: &source.0,
                from: source.1.as_deref(),
                copy: &copy,
                onto: onto.as_deref(),
            };
            self.carry(trip).map_err(|f| match turn {
                1 => f,
                _ => f.context("the second time"),
            })?;
            made.push(copy.clone());
            source = (copy, onto.clone());
        }
        for copy in made {
            self.remove_layer(&copy, &Expect::default())?;
        }
        Ok(())
    }

    /// Applies the diff, and compares the two layers. Each is held meanwhile, so that it is shown once.
    fn carry(&mut self, trip: Trip<'_>) -> Done {
        self.must_inside(trip.id, |world, _| {
            let applied = world.apply_diff(trip)?;
            world.must_inside(trip.copy, |world, _| world.compare_copy(trip, &applied))
        })
    }

    fn apply_diff(&mut self, trip: Trip<'_>) -> Done<Applied> {
        let Trip {
            id,
            from,
            copy,
            onto,
        } = trip;
        let what = format!("diff {id}");
        let path = self.whole_diff(id, from)?;
        let entries = archives::read_entries(&path, &what)?;
        let names = entries.iter().map(|e| plain_name(&e.header).to_vec());
        let names = names.collect();
        let (opts, plainly) = (CreateOpts::default(), Expect::default());
        self.create_layer(copy, onto, false, &opts, &plainly)?;
        let archive = Archive { path, effect: None };
        let mut input = Chunked::new(archive.open()?, usize::MAX);
        let what = format!("apply the diff of {id} to a fresh layer");
        let size = self.must(&what, |d| d.apply_diff(copy, onto, &mut input))?;
        if !input.ended {
            return Err(Fail::new(format!(
                "{what}: expected the stream to be read to its end, it was not"
            )));
        }
        Ok(Applied { names, size, what })
    }

    fn compare_copy(&mut self, trip: Trip<'_>, applied: &Applied) -> Done {
        let Trip {
            id,
            from,
            copy,
            onto,
        } = trip;
        let Applied { names, size, what } = applied;
        let (expected, found) = (self.tree_of(id)?, self.adopt(copy)?);
        let how = Compare {
            ignore_sockets: true,
            ..self.comparison()
        };
        let wanted = archived(&expected, |path| names.contains(path.as_bytes()));
        let diff = compare(&wanted, &archived(&found, |_| true), &how);
        if !diff.is_empty() {
            return Err(Fail::lines(
                format!("{what}: the tree is not that of {id}:"),
                diff.lines(),
            ));
        }
        let (a, b) = (
            self.must(&format!("size {id}"), |d| d.diff_size(id, from))?,
            self.must("size of the fresh layer", |d| d.diff_size(copy, onto))?,
        );
        if from == onto && a != b {
            return Err(Fail::new(format!(
                "{what}: expected the size {a} of {id}, found {b}"
            )));
        }
        if onto.is_none() && *size != b {
            return Err(Fail::new(format!(
                "{what}: expected apply to return the size {b}, it returned {size}"
            )));
        }
        if from == onto {
            self.same_changes(id, copy, onto, &expected)
                .map_err(|f| f.context(what))?;
        }
        Ok(())
    }

    /// Both layers have the same changes, sockets left out, which an archive cannot hold, and the directories around them.
    fn same_changes(&mut self, id: &str, copy: &str, onto: Option<&str>, tree: &Tree) -> Done {
        let never = Expect::default();
        let of = |world: &mut Self, id: &str| -> Done<BTreeSet<Change>> {
            let found = world.changes_of(id, onto, &never)?.unwrap_or_default();
            Ok(found.into_iter().collect())
        };
        let (mut a, mut b) = (of(self, id)?, of(self, copy)?);
        let is_socket = |path: &TreePath| {
            let entry = tree.entries.get(path);
            entry.is_some_and(|e| e.kind == Kind::Socket)
        };
        let sockets: BTreeSet<TreePath> = a
            .iter()
            .map(|c| &c.path)
            .filter(|p| is_socket(p))
            .cloned()
            .collect();
        let carried = |c: &Change| {
            let around = |socket: &TreePath| {
                *socket == c.path || c.kind == ChangeKind::Modify && socket.is_below(&c.path)
            };
            !sockets.iter().any(around)
        };
        a.retain(carried);
        b.retain(carried);
        if a == b {
            return Ok(());
        }
        let mut lines: Vec<String> = a
            .difference(&b)
            .map(|c| format!("missing:    {c}"))
            .collect();
        lines.extend(b.difference(&a).map(|c| format!("unexpected: {c}")));
        Err(Fail::lines(
            format!("the changes are not those of {id}:"),
            lines,
        ))
    }
}

/// Copies a stream into a new file; gives its length and its last bytes. What does not begin as an archive is not read on: it may have
/// no end.
fn spool(mut stream: DiffStream, path: &Path) -> io::Result<(u64, [u8; 1024])> {
    let mut options = File::options();
    let mut file = options.read(true).write(true).create_new(true).open(path)?;
    let mut first = Vec::with_capacity(512);
    stream.by_ref().take(512).read_to_end(&mut first)?;
    if let Ok(block) = <&[u8; 512]>::try_from(&first[..])
        && block.iter().any(|b| *b != 0)
        && !archive::checksum_holds(block)
    {
        let begins = crate::tree::op::escape(&first[..40]);
        return Err(io::Error::other(format!(
            "it is no archive, it begins with {begins}"
        )));
    }
    file.write_all(&first)?;
    let n = first.len() as u64 + io::copy(&mut stream, &mut file)?;
    let mut end = [0; 1024];
    if n >= 1024 {
        file.seek(SeekFrom::End(-1024))?;
        file.read_exact(&mut end)?;
    }
    Ok((n, end))
}

/// What a stream says when it cannot go on, as the driver's error.
fn driver_error(e: io::Error) -> Error {
    match e.downcast::<archive::Error>() {
        Ok(e) => Error::Archive(e),
        Err(e) => Error::Other(e.to_string()),
    }
}

/// What of a tree an archive carries: the root is never an entry, `trusted` attributes stay behind, and a directory that is not
/// `in_archive` has whatever time it has.
pub(super) fn archived(tree: &Tree, in_archive: impl Fn(&TreePath) -> bool) -> Tree {
    let mut tree = tree.clone();
    tree.entries.remove(&TreePath::root());
    for (path, entry) in &mut tree.entries {
        if entry.kind == Kind::Dir && !in_archive(path) {
            entry.mtime = None;
        }
        if let Some(xattrs) = &mut entry.xattrs {
            xattrs.retain(|k, _| !k.starts_with(b"trusted."));
        }
    }
    tree
}

/// What a layer that holds `current` holds after an archive of this effect.
fn carried(effect: &Effect, current: &Tree) -> Tree {
    let mut expected = effect.new.clone();
    expected.entries.remove(&TreePath::root());
    let changed = model_changes(&effect.new, &effect.old);
    let changed: BTreeSet<&TreePath> = changed.iter().map(|c| &c.path).collect();
    for (path, entry) in &mut expected.entries {
        if !changed.contains(path) {
            // Not in the archive: it stays as it is here.
            if let Some(here) = current.entries.get(path) {
                entry.mtime = here.mtime;
                entry.xattrs.clone_from(&here.xattrs);
            }
        } else if let Some(xattrs) = &mut entry.xattrs {
            xattrs.retain(|k, _| !k.starts_with(b"trusted."));
        }
    }
    expected
}

/// The offset of the first byte that differs between two files.
pub(super) fn first_difference(one: &Path, other: &Path) -> Done<Option<u64>> {
    let read = || -> io::Result<Option<u64>> {
        let mut a = io::BufReader::new(File::open(one)?);
        let mut b = io::BufReader::new(File::open(other)?);
        let mut at = 0;
        let (mut x, mut y) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        loop {
            let n = fill(&mut a, &mut x)?;
            let m = fill(&mut b, &mut y)?;
            let same = x[..n]
                .iter()
                .zip(&y[..m])
                .take_while(|(p, q)| p == q)
                .count();
            if same < n.max(m) {
                return Ok(Some(at + same as u64));
            }
            if n == 0 {
                return Ok(None);
            }
            at += n as u64;
        }
    };
    read().map_err(|e| Fail::new(format!("the two streams cannot be compared: {e}")))
}

fn fill(from: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < buf.len() {
        match from.read(&mut buf[n..])? {
            0 => break,
            got => n += got,
        }
    }
    Ok(n)
}
