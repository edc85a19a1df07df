//! The steps of the scenario language as values. The reference for readers is `suites/README.md`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::lang::{At, Cx, Fields, OneOrMany, Part, Turns, object, unknown};
use super::scenario::Location;
use super::yaml::{self, Node, NodeKind};
use crate::archive::{Change, manifest};
use crate::tree::op::{Bytes, Op, Path, Size};

mod check;
mod values;

pub use values::{
    Access, ApplySize, ArchiveEntry, BackingWord, DriverWord, ErrorSpec, Expect, GuardWord,
    HomeMove, Ignore, Keeps, Pattern, Restart, Room, SubvolumeBy,
};

macro_rules! steps {
    ($(
        $(#[doc = $about:literal])*
        $variant:ident, $strukt:ident, $verb:literal ( $(#[$sdoc:meta])* $subject:ident : $sty:ty )
        { $( $(#[doc = $fdoc:literal])* $field:ident : $fty:ty = $key:literal ),* $(,)? }
    );* $(;)?) => {
        $(
            $(#[doc = $about])*
            #[derive(Clone, Debug, PartialEq)]
            pub struct $strukt {
                $(#[$sdoc])*
                pub $subject: $sty,
                $( $(#[doc = $fdoc])* pub $field: $fty, )*
            }
        )*

        /// What a step does.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Action { $( $(#[doc = $about])* $variant($strukt), )* }

        impl Action {
            /// Every verb, in the order of the reference.
            pub const VERBS: &'static [&'static str] = &[$($verb),*];

            /// The verb.
            pub fn verb(&self) -> &'static str {
                match self { $( Self::$variant(_) => $verb, )* }
            }

            fn take(verb: &str, fields: &mut Fields<'_>, cx: &mut Cx) -> Option<Self> {
                match verb {
                    $( $verb => {
                        let $subject = fields.take($verb, cx);
                        $( let $field = fields.take($key, cx); )*
                        Some(Self::$variant($strukt { $subject: $subject?, $( $field: $field?, )* }))
                    } )*
                    _ => None,
                }
            }

            fn schemas(g: &mut SchemaGenerator) -> Vec<Schema> {
                let mut all = Vec::new();
                $( {
                    let mut fields = vec![($verb, true, <$sty as Part>::schema(g))];
                    $( fields.push(($key, <$fty as Part>::absent().is_none(), <$fty as Part>::schema(g))); )*
                    fields.push(("fails", false, OneOrMany::<ErrorSpec>::schema(g)));
                    fields.push(("may-fail", false, OneOrMany::<ErrorSpec>::schema(g)));
                    fields.push(("says", false, OneOrMany::<String>::schema(g)));
                    all.push(object(concat!($($about),*), fields));
                } )*
                all
            }
        }
    };
}

steps! {
    /// Creates a layer.
    Create, CreateStep, "create" (/** The new layer. */ id: String) {
        /// Its parent.
        parent: Option<String> = "parent",
        /// By `create_read_write`.
        rw: bool = "rw",
        /// Storage options.
        opts: BTreeMap<String, String> = "opts",
        /// Mount label.
        label: Option<String> = "label",
    };
    /// Removes a layer.
    Remove, RemoveStep, "remove" (/** The layer. */ id: String) {};
    /// Whether a layer exists.
    Exists, ExistsStep, "exists" (/** The layer. */ id: String) {
        /// What must be answered; left out: true.
        is: Option<bool> = "is",
    };
    /// Gets a layer and holds it.
    Get, GetStep, "get" (/** The layer. */ id: String) {
        /// Mount label.
        label: Option<String> = "label",
        /// How often; left out: once.
        times: Option<u32> = "times",
    };
    /// Gives a get back.
    Put, PutStep, "put" (/** The layer. */ id: String) {
        /// How often; left out: once.
        times: Option<u32> = "times",
    };
    /// Whether the path that the last get returned is a mount point now.
    Mounted, MountedStep, "mounted" (/** The layer. */ id: String) {
        /// What must be found; left out: true.
        is: Option<bool> = "is",
    };
    /// Carries out operations in a layer.
    In, InStep, "in" (/** The layer. */ id: String) {
        /// The operations.
        ops: Vec<At<Op>> = "do",
        /// Each must end as in a plain directory.
        same_as_plain: bool = "same-as-plain",
        /// Each must fail with EROFS.
        read_only: bool = "read-only",
    };
    /// Scans all of a layer.
    Tree, TreeStep, "tree" (/** The layer. */ id: String) {
        /// Exactly these entries.
        is: Option<Vec<Pattern>> = "is",
        /// At least these entries.
        holds: Vec<Pattern> = "holds",
        /// None of these paths.
        lacks: Vec<Path> = "lacks",
    };
    /// Two layers show equal trees.
    SameTree, SameTreeStep, "same-tree" (/** The one. */ id: String) {
        /// The other.
        other: String = "as",
        /// What is not compared.
        ignore: Vec<Ignore> = "ignore",
    };
    /// Layers' trees are what the model says.
    Plain, PlainStep, "plain" (/** The layer, or `all`. */ id: String) {};
    /// The changes of a layer.
    Changes, ChangesStep, "changes" (/** The layer. */ id: String) {
        /// Against this layer; left out: its parent; `none`: nothing.
        parent: Option<String> = "parent",
        /// Exactly these.
        are: Option<Vec<Change>> = "are",
        /// At least these.
        include: Vec<Change> = "include",
        /// None of these.
        exclude: Vec<Change> = "exclude",
    };
    /// Reads the diff of a layer.
    Diff, DiffStep, "diff" (/** The layer. */ id: String) {
        /// Against this layer; left out: its parent; `none`: nothing.
        parent: Option<String> = "parent",
        /// Keeps it under this name, for `apply`.
        save: Option<String> = "save",
        /// At least these names.
        holds: Vec<Bytes> = "holds",
        /// None of these names.
        lacks: Vec<Bytes> = "lacks",
        /// Exactly these names.
        is: Option<Vec<Bytes>> = "is",
        /// These entries, with the attributes given.
        entries: Vec<At<ArchiveEntry>> = "entries",
        /// A second diff has the same bytes.
        stable: bool = "stable",
        /// Reads this many bytes only and drops the stream.
        close_after: Option<Size> = "close-after",
    };
    /// Makes an archive for `apply`.
    Archive, ArchiveStep, "archive" (/** Its name. */ name: String) {
        /// What stands in it.
        entries: Option<Vec<At<ArchiveEntry>>> = "entries",
        /// Cut after this many bytes.
        truncate: Option<Size> = "truncate",
        /// These bytes instead of entries.
        raw: Option<Bytes> = "raw",
        /// These bytes behind the end.
        append: Option<Bytes> = "append",
        /// Compressed as a whole.
        gzip: bool = "gzip",
        /// A manifest of `fixtures/` instead of entries.
        fixture: Option<String> = "fixture",
        /// The blocks that end it: `two` (the default), `one` or `none`.
        end: Option<manifest::End> = "end",
    };
    /// Applies an archive to a layer.
    Apply, ApplyStep, "apply" (/** The layer. */ id: String) {
        /// The archive or saved diff.
        from: String = "from",
        /// The parent to name in the call; left out: the layer's parent.
        parent: Option<String> = "parent",
        /// Bytes per read.
        chunk: Option<Size> = "chunk",
        /// What must be returned.
        size: Option<ApplySize> = "size",
    };
    /// The size of a layer's diff.
    Size, SizeStep, "size" (/** The layer. */ id: String) {
        /// Against this layer; left out: its parent; `none`: nothing.
        parent: Option<String> = "parent",
        /// Exactly.
        is: Option<Size> = "is",
        /// No more.
        at_most: Option<Size> = "at-most",
        /// No less.
        at_least: Option<Size> = "at-least",
    };
    /// Diff, apply onto a fresh layer, compare trees, changes and sizes.
    RoundTrip, RoundTripStep, "round-trip" (/** The layer. */ id: String) {
        /// Once more from the second.
        twice: bool = "twice",
        /// The fresh layer's parent; left out: the layer's own.
        onto: Option<String> = "onto",
    };
    /// Diffs every layer of the chain and applies them on every built-in driver that runs here: it shows the same tree.
    Export, ExportStep, "export" (/** The layer. */ id: String) {
    };
    /// Applies through tar-split and gives the archive back byte for byte.
    TarSplit, TarSplitStep, "tar-split" (/** The layer. */ id: String) {
        /// The archive or saved diff.
        from: String = "from",
    };
    /// A chain of layers.
    Chain, ChainStep, "chain" (/** What their ids begin with. */ prefix: String) {
        /// How many.
        length: u32 = "length",
        /// The parent of the first.
        on: Option<String> = "on",
        /// Done in each.
        each: Turns<At<Op>> = "each",
    };
    /// Steps several times.
    Repeat, RepeatStep, "repeat" (/** How often. */ times: u32) {
        /// The steps.
        body: Turns<Step> = "do",
        /// The variable that counts; left out: `i`.
        index: Option<String> = "index",
    };
    /// Steps in several threads at once.
    Parallel, ParallelStep, "parallel" (/** How many threads. */ threads: u32) {
        /// The steps: all turns of thread 1, then all turns of thread 2, ...
        body: Turns<Step> = "do",
        /// How often each thread does them; left out: once.
        times: Option<u32> = "times",
    };
    /// A new driver on the same home.
    Restart, RestartStep, "restart" (/** How the old one ends. */ how: Restart) {
        /// What becomes of the home in between.
        home: Option<HomeMove> = "home",
        /// Done only when the new one starts.
        then: Vec<Step> = "then",
    };
    /// Cleanup of the driver.
    Cleanup, CleanupStep, "cleanup" (/** The driver. */ driver: DriverWord) {
        /// How often; left out: once.
        times: Option<u32> = "times",
    };
    /// The driver's status.
    Status, StatusStep, "status" (/** The driver. */ driver: DriverWord) {
        /// Keys that it has.
        has: Vec<String> = "has",
        /// Keys and their values.
        tells: BTreeMap<String, String> = "tells",
    };
    /// A layer's metadata.
    Metadata, MetadataStep, "metadata" (/** The layer. */ id: String) {
        /// Keys that it has.
        has: Vec<String> = "has",
        /// Keys that it has not.
        lacks: Vec<String> = "lacks",
        /// Every value that is an absolute path exists.
        paths_exist: bool = "paths-exist",
    };
    /// The umask for the rest of the scenario.
    Umask, UmaskStep, "umask" (/** Permission bits. */ mask: crate::tree::op::Mode) {};
    /// The driver's home, or the limits that the scenario's own backing has on record, are the same after some steps as before.
    Guard, GuardStep, "guard" (/** What is the same. */ what: GuardWord) {
        /// The steps.
        body: Vec<Step> = "do",
    };
    /// The name of the driver's home, and how it is reached; only as the first step.
    Home, HomeStep, "home" (/** One path component or several. */ name: Bytes) {
        /// The name is that of a symbolic link to the home.
        link: bool = "link",
        /// The home lies on this many overlays, each on the one before.
        overlays: Option<u32> = "overlays",
        /// The home is a mount point: another directory is bound there.
        bind: bool = "bind",
        /// The home lies in a subvolume of btrfs that is mounted by itself, named so.
        subvolume: Option<SubvolumeBy> = "subvolume",
        /// The home is a directory that ignores the case of names.
        ignore_case: bool = "ignore-case",
        /// Options `key=value` of the first driver.
        opts: Vec<String> = "opts",
    };
    /// A new driver with options instead of the first.
    Init, InitStep, "init" (/** The driver. */ driver: DriverWord) {
        /// Options `key=value`.
        opts: Vec<String> = "opts",
    };
    /// Damages a file of the driver's home.
    Corrupt, CorruptStep, "corrupt" (/** Path below the home; may hold `*`. */ path: String) {
        /// Cut after this many bytes.
        truncate: Option<Size> = "truncate",
        /// Removed.
        remove: bool = "remove",
        /// Holds this instead.
        text: Option<Bytes> = "text",
        /// Holds what it holds twice, with this in between.
        twice: Option<Bytes> = "twice",
        /// Holds what this file of the home holds instead.
        from: Option<String> = "from",
        /// An empty directory in its place.
        empty: bool = "empty",
    };
    /// Kills a child at each of its system calls.
    Kill, KillStep, "kill-at-each-syscall" (/** What the child does. */ body: Vec<Step>) {
        /// What must be possible afterwards, each time.
        then: Vec<Step> = "then",
        /// Only the steps are cut short, not the start of the driver before them.
        started: bool = "started",
    };
    /// Makes subvolumes inside a layer, as somebody who works in it may.
    Subvolumes, SubvolumesStep, "subvolumes" (/** The layer. */ id: String) {
        /// Their paths; what is above is there, or named before.
        paths: Vec<At<Path>> = "paths",
    };
    /// The layer becomes what is mounted of the scenario's own backing when no subvolume is named.
    DefaultSubvolume, DefaultSubvolumeStep, "default-subvolume" (/** The layer. */ id: String) {};
    /// Somebody makes the subvolume that a layer is read-only, as one is that was received.
    ReadOnlySubvolume, ReadOnlySubvolumeStep, "read-only-subvolume" (/** The layer. */ id: String) {};
    /// Somebody else mounts the overlay that a layer is with other options than the driver, and works there.
    OverlayOf, OverlayOfStep, "overlay-of" (/** The layer. */ id: String) {
        /// The options.
        options: Vec<String> = "options",
        /// The operations.
        ops: Vec<At<Op>> = "do",
    };
    /// Somebody else works on the dataset of zfs that a layer is.
    Dataset, DatasetStep, "dataset" (/** The layer. */ id: String) {
        /// They make a snapshot of it with this name.
        snapshot: Option<String> = "snapshot",
        /// They make a dataset with this name below it.
        child: Option<String> = "child",
        /// They destroy it.
        destroyed: bool = "destroyed",
        /// They have it mounted elsewhere during these steps.
        body: Vec<Step> = "do",
    };
    /// How much can be written into a layer.
    Limit, LimitStep, "limit" (/** The layer. */ id: String) {
        /// So many bytes can be written.
        at_least: Size = "at-least",
        /// Not more than so many; left out: there may be no limit.
        at_most: Option<Size> = "at-most",
        /// In so many threads, a file each; left out: one.
        writers: Option<u32> = "writers",
        /// With CAP_SYS_RESOURCE, to which some filesystems refuse nothing.
        privileged: bool = "privileged",
        /// What was written stays.
        keep: bool = "keep",
    };
    /// What statfs(2) tells about the room of a layer.
    Statfs, StatfsStep, "statfs" (/** The layer. */ id: String) {
        /// It has no more bytes in all.
        size_at_most: Option<Size> = "size-at-most",
        /// It has no fewer bytes in all.
        size_at_least: Option<Size> = "size-at-least",
        /// No more of them are free.
        free_at_most: Option<Size> = "free-at-most",
        /// No fewer of them are free.
        free_at_least: Option<Size> = "free-at-least",
    };
    /// Somebody else sets a limit on a directory of the scenario's own backing.
    ForeignLimit, ForeignLimitStep, "foreign-limit" (/** The limit. */ size: Size) {};
    /// Fills what the scenario's own backing has left.
    Fill, FillStep, "fill" (/** What is filled. */ what: Room) {
        /// So much stays free: bytes, or a number of files; left out: nothing.
        leave: Option<Size> = "leave",
    };
    /// Gives back what `fill:` took.
    Free, FreeStep, "free" (/** What was filled. */ what: Room) {};
    /// Tries steps on a full backing with ever more room, until they succeed.
    Full, FullStep, "full-at-each" (/** What the driver does. */ body: Vec<Step>) {
        /// What there is too little of; left out: space.
        of: Option<Room> = "of",
        /// What must be possible afterwards, each time.
        then: Vec<Step> = "then",
    };
    /// Mounts the scenario's own backing otherwise, under the running driver.
    Remount, RemountStep, "remount" (/** How. */ how: Access) {};
    /// Everything that was written to the scenario's own backing reaches the disk.
    Sync, SyncStep, "sync" (/** The backing. */ backing: BackingWord) {};
    /// Cuts the power of the scenario's own backing.
    CutPower, CutPowerStep, "cut-power" (/** The backing. */ backing: BackingWord) {
        /// What of the last moments is on the disk; left out: nothing.
        keeps: Option<Keeps> = "keeps",
    };
    /// Calls a plugin over a connection of its own, byte for byte as daemons do, or worse.
    Request, RequestStep, "request" (/** The call, such as `GraphDriver.Get`. */ call: String) {
        /// What is sent; `%HOME%` in it is the driver's home.
        body: Option<String> = "body",
        /// An archive or saved diff that is sent instead.
        archive: Option<String> = "archive",
        /// What stands behind the call's name and a `?`.
        query: Option<String> = "query",
        /// The body goes in chunks; left out: with its length before it.
        chunked: bool = "chunked",
        /// Bytes of the body per write.
        chunk: Option<Size> = "chunk",
        /// The sender ends after so many bytes of the body.
        cut: Option<Size> = "cut",
        /// The sender is gone before the answer.
        hang_up: bool = "hang-up",
        /// The host of the request; left out: what daemons since 20.10.26 say.
        host: Option<String> = "host",
        /// The content type; left out: none, as daemons do it.
        content_type: Option<String> = "type",
        /// What is accepted; left out: what daemons since 1.10 say.
        accept: Option<String> = "accept",
        /// The status of the answer must be one of these; with another than 200 nothing else is looked at.
        status: Vec<u32> = "status",
        /// The answer has these members, an object in JSON.
        gives: Option<String> = "gives",
        /// A directory that is there afterwards.
        makes: Option<String> = "makes",
    };
    /// Driver selection over a made-up registry.
    Select, SelectStep, "select" (/** The driver asked for; empty: none. */ name: String) {
        /// Drivers whose directories hold something.
        prior: Vec<String> = "prior",
        /// Drivers that fail to start, and how.
        broken: BTreeMap<String, ErrorSpec> = "broken",
        /// The value of `DOCKER_DRIVER`.
        env: Option<String> = "env",
        /// The default name.
        default: Option<String> = "default",
        /// Which driver must be chosen.
        chooses: Option<String> = "chooses",
    };
}

impl RequestStep {
    /// The layer that an archive is applied to.
    pub fn layer(&self) -> Option<&str> {
        let pairs = self.query.as_deref()?.split('&');
        pairs.filter_map(|pair| pair.strip_prefix("id=")).next()
    }
}

/// A step, where it stands, and how it is to end.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Where it stands.
    pub at: Location,
    /// Verb and subject as written, for reports.
    pub text: String,
    /// What may come of it instead of success.
    pub expect: Expect,
    /// What it does.
    pub action: Action,
}

impl Part for Step {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let mut fields = Fields::open(node, cx, "a step such as `create: base`")?;
        let Some((verb, subject, line)) = fields.first().map(|(v, s, l)| (v.to_string(), s, l))
        else {
            cx.expected("a step such as `create: base`", node);
            return None;
        };
        if !Action::VERBS.contains(&verb.as_str()) {
            let known = unknown("step", &verb, Action::VERBS);
            cx.wrong(
                line,
                format!("the first key of a step is its verb: {known}"),
            );
            return None;
        }
        let text = match &subject.kind {
            NodeKind::Scalar { text, .. } => {
                let text = cx.vars.replace(text).unwrap_or_else(|_| text.clone());
                format!("{verb}: {}", yaml::shorten(&text, 60))
            }
            _ => verb.clone(),
        };
        let action = Action::take(&verb, &mut fields, cx);
        let fails = fields.take::<OneOrMany<ErrorSpec>>("fails", cx);
        let may_fail = fields.take::<OneOrMany<ErrorSpec>>("may-fail", cx);
        let says = fields.take::<OneOrMany<String>>("says", cx);
        fields.finish(cx);
        let expect = Expect {
            fails: fails?.0,
            may_fail: may_fail?.0,
            says: says?.0,
        };
        let mut action = action?;
        let before = cx.errors.len();
        check::unroll_body(&mut action, line, cx);
        check::whole(&action, &expect, line, cx);
        (cx.errors.len() == before).then(|| Self {
            at: cx.at(line),
            text,
            expect,
            action,
        })
    }

    fn schema(g: &mut SchemaGenerator) -> Schema {
        g.subschema_for::<StepSchema>()
    }
}

/// Stands for [`Step`] where schemars needs a type, so that steps in steps refer to one definition.
struct StepSchema;

impl JsonSchema for StepSchema {
    fn schema_name() -> Cow<'static, str> {
        "Step".into()
    }
    fn json_schema(g: &mut SchemaGenerator) -> Schema {
        json_schema!({ "oneOf": Action::schemas(g) })
    }
}
