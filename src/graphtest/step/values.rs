//! What stands in steps: errors, changes, words, entries of trees and of archives.

use schemars::{Schema, SchemaGenerator, json_schema};

use crate::archive::{Change, ChangeKind, manifest};
use crate::graphdriver::ErrorClass;
use crate::graphtest::lang::{Cx, Part, unknown};
use crate::graphtest::yaml::{Node, NodeKind};
use crate::tree::op::{Op, Path, Size};

/// An error that a step names after `fails:` or `may-fail:`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorSpec {
    /// Whatever error.
    Any,
    /// An error of this class.
    Class(ErrorClass),
}

impl ErrorSpec {
    /// Whether an error of this class is meant.
    pub fn covers(self, class: ErrorClass) -> bool {
        match self {
            Self::Any => true,
            // What says no class can be of any.
            Self::Class(c) => c == class || class == ErrorClass::Unclassified,
        }
    }

    /// The name in scenario files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Class(c) => c.name(),
        }
    }
}

fn error_names() -> Vec<&'static str> {
    std::iter::once("any")
        .chain(ErrorClass::ALL.iter().map(|c| c.name()))
        .collect()
}

impl Part for ErrorSpec {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let text = cx.text(node, "an error class")?;
        if text == "any" {
            return Some(Self::Any);
        }
        let class = ErrorClass::ALL.iter().copied().find(|c| c.name() == text);
        if class.is_none() {
            cx.wrong(node.line, unknown("error class", &text, &error_names()));
        }
        class.map(Self::Class)
    }
    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "enum": error_names() })
    }
}

/// What may come of a call instead of success.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expect {
    /// It must fail with one of these; empty: it must succeed (or see `may_fail`).
    pub fails: Vec<ErrorSpec>,
    /// It may fail with one of these.
    pub may_fail: Vec<ErrorSpec>,
    /// The error's text must contain these.
    pub says: Vec<String>,
}

impl Part for Change {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        const WHAT: &str = "a change such as `A /a`, `C /d` or `D /x`";
        let text = cx.text(node, WHAT)?;
        let change = text.split_once(' ').and_then(|(letter, path)| {
            let kind = match letter {
                "A" => ChangeKind::Add,
                "C" => ChangeKind::Modify,
                "D" => ChangeKind::Delete,
                _ => return None,
            };
            let path = path.strip_prefix('/')?.parse::<Path>().ok()?.0;
            (!path.is_root()).then_some(Change { path, kind })
        });
        if change.is_none() {
            cx.expected(WHAT, node);
        }
        change
    }
    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[ACD] /.|\\$\\{" })
    }
}

/// One of a few words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $( $(#[$vdoc:meta])* $variant:ident = $word:literal ),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $( $(#[$vdoc])* $variant ),* }

        impl Part for $name {
            fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
                let text = cx.text(node, "a word")?;
                match text.as_str() {
                    $( $word => Some(Self::$variant), )*
                    _ => {
                        cx.wrong(node.line, unknown("word", &text, &[$($word),*]));
                        None
                    }
                }
            }
            fn schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "enum": [$($word),*] })
            }
        }
    };
}

words!(
    /// The one subject of `status:`, `cleanup:` and `init:`.
    DriverWord { /** The driver of the scenario. */ Driver = "driver" }
);
words!(
    /// What `guard:` looks at.
    GuardWord { /** The driver's home. */ Home = "home", /** The limits on record. */ Limits = "limits",
        /** A subvolume of somebody else beside the home. */ ForeignSubvolume = "foreign-subvolume",
        /** The same, mounted read-only once more. */ ForeignMount = "foreign-mount",
        /** The datasets and snapshots of zfs where layers are. */ Datasets = "datasets" }
);
words!(
    /// How a driver ends before it is started again.
    Restart { /** After its cleanup. */ Clean = "clean", /** As after a crash: nothing is given back. */ Killed = "killed" }
);
words!(
    /// How a subvolume is named to mount(2).
    SubvolumeBy { /** By its path (`subvol`). */ Path = "path", /** By its number (`subvolid`). */ Id = "id" }
);
words!(
    /// What becomes of the home while no driver runs.
    HomeMove { /** It gets another path. */ Moved = "moved" }
);
words!(
    /// The one subject of `sync:` and `cut-power:`.
    BackingWord { /** The scenario's own backing. */ Backing = "backing" }
);
words!(
    /// What a backing can be out of.
    Room { /** Bytes. */ Space = "space", /** Files. */ Inodes = "inodes" }
);
words!(
    /// What may be done to a mounted backing.
    Access { /** Only reading. */ ReadOnly = "read-only", /** Reading and writing. */ ReadWrite = "read-write" }
);
words!(
    /// What a cut of power leaves of what was not synced.
    Keeps {
        /// Nothing but what the filesystem had written on its own.
        Nothing = "nothing",
        /// Names, sizes and attributes, as a journal keeps them, without the data of files.
        Metadata = "metadata",
    }
);
words!(
    /// What is not compared between two trees.
    Ignore {
        /// Modification times.
        Mtime = "mtime",
        /// Modification times of directories.
        DirMtime = "dir-mtime",
        /// Extended attributes.
        Xattrs = "xattrs",
        /// Sockets are left out.
        Sockets = "sockets",
        /// Which names are hard links of each other.
        Link = "link",
    }
);

/// An entry of a tree as `tree:` states it: an operation that makes something.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern(pub Op);

const PATTERN_VERBS: &[&str] = &[
    "file", "dir", "symlink", "hardlink", "fifo", "socket", "char", "block",
];

impl Part for Pattern {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let op = Op::decode(node, cx)?;
        if !PATTERN_VERBS.contains(&op.verb()) {
            cx.wrong(node.line, unknown("entry", op.verb(), PATTERN_VERBS));
            return None;
        }
        Some(Self(op))
    }
    fn schema(g: &mut SchemaGenerator) -> Schema {
        Op::schema(g)
    }
}

/// An entry of an archive, as `archive:` and `diff:` state it.
#[derive(Clone, Debug, PartialEq)]
pub struct ArchiveEntry {
    /// The entry.
    pub entry: manifest::Entry,
    /// The keys that were given, which are those that `diff:` compares.
    pub keys: Vec<String>,
}

impl ArchiveEntry {
    /// Whether a key was given.
    pub fn states(&self, key: &str) -> bool {
        self.keys.iter().any(|k| k == key)
    }
}

impl Part for ArchiveEntry {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let node = cx.resolve(node);
        let keys = match &node.kind {
            NodeKind::Map(pairs) => pairs.iter().filter_map(|(k, _)| k.scalar()),
            _ => {
                cx.expected("an archive entry such as {file: a, text: x}", &node);
                return None;
            }
        };
        let keys = keys.map(str::to_string).collect();
        let entry = cx.serde(&node)?;
        Some(Self { entry, keys })
    }
    fn schema(g: &mut SchemaGenerator) -> Schema {
        g.subschema_for::<manifest::Entry>()
    }
}

impl Part for manifest::End {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        cx.serde(node)
    }
    fn schema(g: &mut SchemaGenerator) -> Schema {
        g.subschema_for::<Self>()
    }
}

/// The size that an `apply:` must return.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApplySize {
    /// What `diff_size` says right after.
    DiffSize,
    /// Exactly this.
    Is(u64),
}

impl Part for ApplySize {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        if cx.text(node, "a size, or diff-size")? == "diff-size" {
            return Some(Self::DiffSize);
        }
        Size::decode(node, cx).map(|s| Self::Is(s.0))
    }
    fn schema(g: &mut SchemaGenerator) -> Schema {
        Size::schema(g)
    }
}
