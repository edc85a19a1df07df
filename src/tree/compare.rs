//! Comparing whole trees, and saying in few lines what differs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Content, Entry, Kind, Timestamp, Tree, TreePath};
use crate::tree::op::escape;

/// How finely a filesystem, or a layer format, keeps times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimeResolution {
    /// Nanoseconds.
    #[default]
    Nanos,
    /// Microseconds.
    Micros,
    /// Whole seconds.
    Secs,
}

impl TimeResolution {
    /// The time as it is kept at this resolution: cut off, as filesystems do, never rounded.
    pub fn cut(self, time: Timestamp) -> Timestamp {
        let unit = match self {
            Self::Nanos => 1,
            Self::Micros => 1_000,
            Self::Secs => 1_000_000_000,
        };
        Timestamp {
            secs: time.secs,
            nanos: time.nanos / unit * unit,
        }
    }
}

/// What a comparison looks at. The default looks at everything.
#[derive(Clone, Debug, Default)]
pub struct Compare {
    /// Leave modification times out.
    pub ignore_mtime: bool,
    /// Leave the modification times of directories out.
    pub ignore_dir_mtime: bool,
    /// Leave extended attributes out.
    pub ignore_xattrs: bool,
    /// Leave sockets out of both trees.
    pub ignore_sockets: bool,
    /// Do not ask which names are links of one inode.
    pub ignore_links: bool,
    /// What is found may hold more than what is expected.
    pub subset: bool,
    /// How finely times are compared.
    pub resolution: TimeResolution,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where.
    pub path: TreePath,
    /// What, such as `mode 0755 expected, 0700 found`.
    pub what: String,
}

/// All differences between two trees, by path. Printed in at most [`TreeDiff::SHOWN`] lines and one that counts the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreeDiff {
    /// The differences.
    pub differences: Vec<Difference>,
}

impl TreeDiff {
    /// How many differences are printed.
    pub const SHOWN: usize = 10;

    /// Whether the trees are equal, as far as was asked.
    pub fn is_empty(&self) -> bool {
        self.differences.is_empty()
    }

    /// The printed form, a line each.
    pub fn lines(&self) -> Vec<String> {
        let shown = self.differences.iter().take(Self::SHOWN);
        let mut lines: Vec<String> = shown.map(|d| format!("{}: {}", d.path, d.what)).collect();
        if self.differences.len() > Self::SHOWN {
            let more = self.differences.len() - Self::SHOWN;
            lines.push(format!("... and {more} more"));
        }
        lines
    }
}

impl fmt::Display for TreeDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}

/// Compares what is expected with what is found. An attribute that is `None` on either side is not compared, nor is the root
/// when `expected` has none.
pub fn compare(expected: &Tree, found: &Tree, how: &Compare) -> TreeDiff {
    let mut diff = TreeDiff::default();
    let paths: BTreeSet<&TreePath> = expected
        .entries
        .keys()
        .chain(found.entries.keys())
        .collect();
    for path in paths {
        let what = match (wanted(expected, path, how), wanted(found, path, how)) {
            (Some(e), Some(f)) => entry_differences(e, f, how),
            (Some(e), None) => vec![format!("missing ({})", kind_name(&e.kind))],
            (None, Some(f)) if !how.subset && !path.is_root() => {
                vec![format!("unexpected ({})", kind_name(&f.kind))]
            }
            _ => Vec::new(),
        };
        diff.differences
            .extend(what.into_iter().map(|what| Difference {
                path: path.clone(),
                what,
            }));
    }
    if !how.ignore_links {
        link_differences(expected, found, &mut diff);
    }
    diff
}

fn wanted<'t>(tree: &'t Tree, path: &TreePath, how: &Compare) -> Option<&'t Entry> {
    let entry = tree.entries.get(path)?;
    (!(how.ignore_sockets && entry.kind == Kind::Socket)).then_some(entry)
}

/// The name of a type, as scenario files write it.
pub fn kind_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Dir => "dir",
        Kind::File(_) => "file",
        Kind::Symlink(_) => "symlink",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::Char(_) => "char",
        Kind::Block(_) => "block",
    }
}

fn entry_differences(expected: &Entry, found: &Entry, how: &Compare) -> Vec<String> {
    if std::mem::discriminant(&expected.kind) != std::mem::discriminant(&found.kind) {
        let (e, f) = (kind_name(&expected.kind), kind_name(&found.kind));
        return vec![format!("{e} expected, {f} found")];
    }
    let mut out = Vec::new();
    kind_differences(&expected.kind, &found.kind, &mut out);
    // A symbolic link's mode means nothing, and differs between filesystems.
    if !matches!(expected.kind, Kind::Symlink(_)) {
        differ(
            expected.mode,
            found.mode,
            "mode",
            |m| format!("{m:04o}"),
            &mut out,
        );
    }
    let owner = |o: super::Owner| format!("{}:{}", o.uid, o.gid);
    differ(expected.owner, found.owner, "owner", owner, &mut out);
    let ignored = how.ignore_mtime || (how.ignore_dir_mtime && expected.kind == Kind::Dir);
    if !ignored {
        let cut = |t: Option<Timestamp>| t.map(|t| how.resolution.cut(t));
        let print = |t: Timestamp| t.to_string();
        differ(
            cut(expected.mtime),
            cut(found.mtime),
            "mtime",
            print,
            &mut out,
        );
    }
    if !how.ignore_xattrs
        && let (Some(e), Some(f)) = (&expected.xattrs, &found.xattrs)
    {
        xattr_differences(e, f, &mut out);
    }
    out
}

fn differ<T: PartialEq + Copy>(
    expected: Option<T>,
    found: Option<T>,
    name: &str,
    print: impl Fn(T) -> String,
    out: &mut Vec<String>,
) {
    if let (Some(e), Some(f)) = (expected, found)
        && e != f
    {
        out.push(format!("{name} {} expected, {} found", print(e), print(f)));
    }
}

fn kind_differences(expected: &Kind, found: &Kind, out: &mut Vec<String>) {
    match (expected, found) {
        (Kind::File(Some(e)), Kind::File(Some(f))) => {
            if e.size != f.size {
                out.push(format!("size {} expected, {} found", e.size, f.size));
            }
            if e.digest != f.digest {
                out.push(content_difference(e, f));
            }
        }
        (Kind::Symlink(e), Kind::Symlink(f)) if e != f => {
            let (e, f) = (escape(e), escape(f));
            out.push(format!("target {e:?} expected, {f:?} found"));
        }
        (Kind::Char(e), Kind::Char(f)) | (Kind::Block(e), Kind::Block(f)) if e != f => {
            let print = |d: super::Rdev| format!("{}:{}", d.major, d.minor);
            differ(Some(*e), Some(*f), "device", print, out);
        }
        _ => {}
    }
}

fn content_difference(e: &Content, f: &Content) -> String {
    if e.head == f.head {
        let from = e.head.len();
        return format!("content differs after its first {from} bytes");
    }
    format!("content {} expected, {} found", shown(e), shown(f))
}

/// The first bytes of a content, in quotes.
fn shown(content: &Content) -> String {
    const MAX: usize = 32;
    let head = &content.head[..content.head.len().min(MAX)];
    let dots = if content.size > head.len() as u64 {
        "..."
    } else {
        ""
    };
    format!("\"{}\"{dots}", escape(head))
}

fn xattr_differences(
    expected: &BTreeMap<Vec<u8>, Vec<u8>>,
    found: &BTreeMap<Vec<u8>, Vec<u8>>,
    out: &mut Vec<String>,
) {
    let names: BTreeSet<&Vec<u8>> = expected.keys().chain(found.keys()).collect();
    let print = |value: Option<&Vec<u8>>| match value {
        Some(v) if v.len() > 40 => format!("\"{}\"... ({} bytes)", escape(&v[..40]), v.len()),
        Some(v) => format!("\"{}\"", escape(v)),
        None => "none".to_string(),
    };
    for name in names {
        let (e, f) = (expected.get(name), found.get(name));
        if e != f {
            let (name, e, f) = (escape(name), print(e), print(f));
            out.push(format!("xattr {name} {e} expected, {f} found"));
        }
    }
}

/// Two names are links of one inode in both trees or in neither. Only names that have a number on both sides are asked.
fn link_differences(expected: &Tree, found: &Tree, diff: &mut TreeDiff) {
    let mut groups: BTreeMap<u64, Vec<(&TreePath, u64)>> = BTreeMap::new();
    for (path, e) in &expected.entries {
        let number = found.entries.get(path).and_then(|f| f.link);
        if let (Some(e), Some(f), false) = (e.link, number, e.kind == Kind::Dir) {
            groups.entry(e).or_default().push((path, f));
        }
    }
    // The found number of each expected group, by its first name.
    let mut owner_of: BTreeMap<u64, &TreePath> = BTreeMap::new();
    for members in groups.values() {
        let (first, number) = members[0];
        for (path, other) in &members[1..] {
            if *other != number {
                let what = format!("expected to be a hard link of {first}, is not");
                diff.differences.push(Difference {
                    path: (*path).clone(),
                    what,
                });
            }
        }
        for (path, number) in members {
            if let Some(stranger) = owner_of.insert(*number, first)
                && stranger != first
            {
                let what = format!("is a hard link of {stranger}, expected not to be");
                diff.differences.push(Difference {
                    path: (*path).clone(),
                    what,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Owner;
    use rstest::rstest;

    fn file(text: &str) -> Entry {
        Entry {
            kind: Kind::File(Some(Content::of_bytes(text.as_bytes()))),
            mode: Some(0o644),
            owner: Some(Owner::default()),
            mtime: Some(Timestamp {
                secs: 5,
                nanos: 1_234_567,
            }),
            xattrs: Some(BTreeMap::new()),
            link: Some(1),
        }
    }

    fn tree(entries: &[(&str, Entry)]) -> Tree {
        let entry = |(path, e): &(&str, Entry)| (TreePath(path.as_bytes().to_vec()), e.clone());
        Tree {
            entries: entries.iter().map(entry).collect(),
        }
    }

    #[rstest]
    #[case::mode(|e: &mut Entry| e.mode = Some(0o600), "a: mode 0644 expected, 0600 found")]
    #[case::owner(|e: &mut Entry| e.owner = Some(Owner { uid: 1, gid: 2 }), "a: owner 0:0 expected, 1:2 found")]
    #[case::mtime(|e: &mut Entry| e.mtime = Some(Timestamp { secs: 5, nanos: 1_000_000 }), "a: mtime 5.001234567 expected, 5.001000000 found")]
    #[case::kind(|e: &mut Entry| e.kind = Kind::Fifo, "a: file expected, fifo found")]
    #[case::content(|e: &mut Entry| e.kind = file("y").kind, "a: content \"x\" expected, \"y\" found")]
    #[case::xattr(|e: &mut Entry| e.xattrs = Some([(b"user.k".to_vec(), vec![0xff])].into()), "a: xattr user.k none expected, \"\\xff\" found")]
    fn each_attribute_is_told(#[case] change: fn(&mut Entry), #[case] line: &str) {
        let mut other = file("x");
        change(&mut other);
        let expected = tree(&[("a", file("x"))]);
        let diff = compare(
            &expected,
            &tree(&[("a", other.clone())]),
            &Compare::default(),
        );
        assert_eq!(diff.to_string(), line);
        let any = Entry {
            mode: None,
            owner: None,
            mtime: None,
            xattrs: None,
            link: None,
            kind: other.kind.clone(),
        };
        let pattern = tree(&[("a", any)]);
        let diff = compare(&pattern, &tree(&[("a", other)]), &Compare::default());
        assert!(diff.is_empty(), "{diff}");
    }

    #[test]
    fn missing_unexpected_and_subset() {
        let (ab, bc) = (
            tree(&[("a", file("")), ("b", file(""))]),
            tree(&[("b", file("")), ("c", file("")), ("", file(""))]),
        );
        let how = Compare {
            ignore_links: true,
            ..Compare::default()
        };
        assert_eq!(
            compare(&ab, &bc, &how).to_string(),
            "a: missing (file)\nc: unexpected (file)"
        );
        let how = Compare {
            subset: true,
            ..how
        };
        assert_eq!(compare(&ab, &bc, &how).to_string(), "a: missing (file)");
    }

    #[test]
    fn what_is_ignored_is_not_told() {
        let mut other = file("x");
        other.mtime = Some(Timestamp {
            secs: 5,
            nanos: 1_234_000,
        });
        let (e, f) = (tree(&[("a", file("x"))]), tree(&[("a", other)]));
        let at = |resolution| {
            compare(
                &e,
                &f,
                &Compare {
                    resolution,
                    ..Compare::default()
                },
            )
            .is_empty()
        };
        assert!(!at(TimeResolution::Nanos));
        assert!(at(TimeResolution::Micros) && at(TimeResolution::Secs));
        assert!(
            compare(
                &e,
                &f,
                &Compare {
                    ignore_mtime: true,
                    ..Compare::default()
                }
            )
            .is_empty()
        );
        let socket = Entry {
            kind: Kind::Socket,
            ..file("")
        };
        let with_socket = tree(&[("a", file("x")), ("s", socket)]);
        assert!(
            compare(
                &e,
                &with_socket,
                &Compare {
                    ignore_sockets: true,
                    ..Compare::default()
                }
            )
            .is_empty()
        );
    }

    #[test]
    fn links_are_compared_as_groups() {
        let link = |n| Entry {
            link: Some(n),
            ..file("")
        };
        let joined = tree(&[("a", link(7)), ("b", link(7)), ("c", link(8))]);
        let same = tree(&[("a", link(1)), ("b", link(1)), ("c", link(2))]);
        let apart = tree(&[("a", link(1)), ("b", link(2)), ("c", link(3))]);
        assert!(compare(&joined, &same, &Compare::default()).is_empty());
        assert_eq!(
            compare(&joined, &apart, &Compare::default()).to_string(),
            "b: expected to be a hard link of a, is not"
        );
        assert_eq!(
            compare(&apart, &joined, &Compare::default()).to_string(),
            "b: is a hard link of a, expected not to be"
        );
    }

    #[test]
    fn many_differences_are_counted() {
        let names: Vec<String> = (0..25).map(|i| format!("f{i:02}")).collect();
        let entries: Vec<(&str, Entry)> = names.iter().map(|n| (n.as_str(), file(""))).collect();
        let diff = compare(&Tree::default(), &tree(&entries), &Compare::default());
        assert_eq!(diff.differences.len(), 25);
        assert_eq!(diff.lines().len(), TreeDiff::SHOWN + 1);
        assert!(diff.to_string().ends_with("... and 15 more"));
    }
}
