//! Histories of a store by chance: layers, operations in them, restarts and removals.

use graphtest::tree::op::Op;
use proptest::prelude::*;

/// What happens to a store, one thing after the other.
#[derive(Clone, Debug)]
pub enum Event {
    /// A layer is made on another one (counted from the newest; beyond the oldest: on nothing), filled and looked at.
    Layer {
        /// Which one is its parent.
        parent: usize,
        /// What is done in it.
        lists: Vec<List>,
        /// It is looked at from other sides too.
        thorough: bool,
    },
    /// More is done in a layer that has no children.
    More {
        /// Which one.
        layer: usize,
        /// What is done in it.
        list: List,
    },
    /// A layer is held while the rest happens.
    Hold(usize),
    /// A layer that has no children is removed.
    Remove(usize),
    /// A new driver on the same home.
    Restart {
        /// The old one had no time to clean up.
        killed: bool,
    },
}

/// Operations carried out while a layer is mounted once.
#[derive(Clone, Debug)]
pub struct List {
    /// They are not made to fit, and compared with a plain directory.
    pub as_plain: bool,
    /// The operations.
    pub ops: Vec<Op>,
}

/// Histories that begin with a layer.
pub fn history() -> impl Strategy<Value = Vec<Event>> {
    (layer(1), prop::collection::vec(event(), 0..6)).prop_map(|(first, mut rest)| {
        rest.insert(0, first);
        rest
    })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => layer(0),
        2 => (0..4_usize, list()).prop_map(|(layer, list)| Event::More { layer, list }),
        1 => (0..4_usize).prop_map(Event::Hold),
        1 => (0..4_usize).prop_map(Event::Remove),
        1 => any::<bool>().prop_map(|killed| Event::Restart { killed }),
    ]
}

/// A layer in which something is done so many times at least.
fn layer(least: usize) -> impl Strategy<Value = Event> {
    let parent = prop_oneof![4 => Just(0_usize), 1 => 1..5_usize];
    let lists = prop::collection::vec(list(), least..3);
    let thorough = prop::bool::weighted(0.3);
    (parent, lists, thorough).prop_map(|(parent, lists, thorough)| Event::Layer {
        parent,
        lists,
        thorough,
    })
}

fn list() -> impl Strategy<Value = List> {
    let ops = prop::collection::vec(op(), 1..10);
    (prop::bool::weighted(0.2), ops).prop_map(|(as_plain, ops)| List { as_plain, ops })
}

fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(texts).prop_map(str::to_string)
}

/// Few paths, and fewer still most of the time, so that operations of several layers meet.
fn path() -> impl Strategy<Value = String> {
    let often = one_of(&["a", "d", "d/a", "e/a"]);
    let seldom = one_of(&[
        "b",
        "d/b",
        "e",
        "d/e",
        "d/e/a",
        "a/a",
        "d/e/b",
        "d/a/d",
        "d-1",
        "d/x\\xff y",
    ]);
    prop_oneof![2 => often, 1 => seldom].prop_map(|p| format!("'{p}'"))
}

/// The same, and the root of the layer.
fn path_or_root() -> impl Strategy<Value = String> {
    prop_oneof![12 => path(), 1 => Just("/".to_string())]
}

fn mode() -> impl Strategy<Value = String> {
    one_of(&[
        "0755", "0644", "0700", "1777", "2775", "4755", "6711", "0000", "0640",
    ])
}

fn owner() -> impl Strategy<Value = String> {
    one_of(&["0:0", "1000:1000", "1000:2000", "70000:1"])
}

fn time() -> impl Strategy<Value = String> {
    one_of(&["5.000000001", "1700000000.5", "-3", "1700000000"])
}

fn text() -> impl Strategy<Value = String> {
    one_of(&[
        "text: one",
        "text: two",
        "text: ''",
        "size: 70000, seed: 3",
        "size: 9000, islands: [{at: 5000, text: i}]",
    ])
}

/// Attributes of a new entry, some of them.
fn attributes() -> impl Strategy<Value = String> {
    let some = |key: &'static str, value: BoxedStrategy<String>| {
        let given = value.prop_map(move |v| format!(", {key}: '{v}'"));
        prop_oneof![3 => Just(String::new()), 1 => given]
    };
    let (mode, owner, time) = (mode().boxed(), owner().boxed(), time().boxed());
    (
        some("mode", mode),
        some("owner", owner),
        some("mtime", time),
    )
        .prop_map(|(mode, owner, time)| mode + &owner + &time)
}

fn xattrs() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => Just(String::new()),
        1 => one_of(&[", xattrs: {user.k: v}", ", xattrs: {user.k: 'w\\x00w', user.l: ''}"]),
    ]
}

/// A file capability: what `setcap cap_net_raw=p` writes.
const CAPABILITY: &str =
    r"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";

/// An access list that names one more user.
const ACL: &str = r"\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x07\x00\xd0\x07\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x05\x00\xff\xff\xff\xff\x20\x00\x01\x00\xff\xff\xff\xff";

fn xattr() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => one_of(&["name: user.k, value: v", "name: user.k, value: ''", "name: user.l, value: w"]),
        2 => Just(format!("name: security.capability, value: '{CAPABILITY}'")),
        1 => Just(format!("name: system.posix_acl_access, value: '{ACL}'")),
        1 => Just(format!("name: system.posix_acl_default, value: '{ACL}'")),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let flags = one_of(&[
        "",
        "",
        "",
        ", noreplace: true",
        ", exchange: true, may-fail: [EINVAL]",
    ]);
    let text = prop_oneof![
        8 => (path(), text(), attributes(), xattrs()).prop_map(|(p, t, a, x)| format!("file: {p}, {t}{a}{x}")),
        8 => (path(), attributes(), xattrs()).prop_map(|(p, a, x)| format!("dir: {p}{a}{x}")),
        2 => (path(), one_of(&["a", "/d", "../none", "d/e"]), owner()).prop_map(|(p, t, o)| format!("symlink: {p}, to: '{t}', owner: '{o}'")),
        3 => (path(), path()).prop_map(|(p, t)| format!("hardlink: {p}, to: {t}")),
        1 => (path(), attributes()).prop_map(|(p, a)| format!("fifo: {p}{a}")),
        1 => path().prop_map(|p| format!("socket: {p}")),
        1 => (path(), attributes()).prop_map(|(p, a)| format!("char: {p}, dev: '1:3'{a}")),
        1 => (path(), attributes()).prop_map(|(p, a)| format!("block: {p}, dev: '259:70000'{a}")),
        5 => path().prop_map(|p| format!("remove: {p}")),
        4 => (path(), path(), flags).prop_map(|(p, t, f)| format!("rename: {p}, to: {t}{f}")),
        4 => (path_or_root(), mode()).prop_map(|(p, m)| format!("chmod: {p}, mode: '{m}'")),
        2 => (path_or_root(), owner()).prop_map(|(p, o)| format!("chown: {p}, owner: '{o}'")),
        3 => (path_or_root(), time()).prop_map(|(p, t)| format!("touch: {p}, mtime: '{t}'")),
        3 => (path(), prop_oneof![Just(0), 0_u32..6000]).prop_map(|(p, at)| format!("write: {p}, text: in place, at: {at}")),
        3 => path().prop_map(|p| format!("append: {p}, text: more")),
        2 => (path(), 0_u32..80_000).prop_map(|(p, size)| format!("truncate: {p}, size: {size}")),
        3 => (path_or_root(), xattr()).prop_map(|(p, x)| format!("setxattr: {p}, {x}")),
        1 => (path(), one_of(&["user.k", "user.l", "security.capability"])).prop_map(|(p, n)| format!("rmxattr: {p}, name: {n}")),
    ];
    text.prop_map(|text| {
        let text = format!("{{{text}}}");
        serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    })
}
