//! Applying through the public face: random archives against a simple model, and options. Single archives with what must come of
//! them stand in `fixtures/` and are applied by `suites/hostile.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use rstest::rstest;
use rustix::fs::{RenameFlags, renameat_with};

use crate::archive::manifest::{Data, Entry, Manifest, What, to_bytes};
use crate::archive::testing::{Overlay, open, place, scanned, union};
use crate::archive::{
    Applied, ApplyOptions, ChangeKind, Error, Form, IdMap, IdMaps, apply, apply_layer,
    layer_changes, layer_size, layer_size_in,
};
use crate::tree::op::Bytes;
use crate::tree::{
    Compare, Content, Entry as Found, Kind, Owner, Timestamp, Tree, TreePath, compare,
};

fn archive(yaml: &str) -> Vec<u8> {
    to_bytes(&serde_yaml::from_str::<Manifest>(yaml).expect("a manifest"))
}

fn apply_to(dir: &Path, tar: &[u8], options: &ApplyOptions) -> Result<Applied, Error> {
    apply(open(dir).as_fd(), &mut &tar[..], options)
}

/// Gives few bytes at a time.
struct Trickle<'a>(&'a [u8], usize);

impl Read for Trickle<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = buf.len().min(self.1);
        self.0.read(&mut buf[..n])
    }
}

#[rstest]
#[case::one(1)]
#[case::odd(7)]
#[case::block(512)]
#[case::more_than_a_block(513)]
fn reads_of_any_size_do(#[case] chunk: usize) {
    let dir = place();
    let tar = archive(
        "{entries: [{file: a, size: 5000, seed: 1, format: pax}, {dir: d}, {file: d/b, text: b}], append: junk}",
    );
    let mut input = Trickle(&tar, chunk);
    let applied = apply(
        open(dir.path()).as_fd(),
        &mut input,
        &ApplyOptions::default(),
    )
    .unwrap();
    assert_eq!(
        applied,
        Applied {
            size: 5001,
            entries: 3
        }
    );
    assert!(input.0.is_empty(), "the input is read to its end");
}

#[test]
fn a_failing_stream_says_so() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the wire was cut"))
        }
    }
    let dir = place();
    let error = apply(
        open(dir.path()).as_fd(),
        &mut Broken,
        &ApplyOptions::default(),
    )
    .unwrap_err();
    assert!(
        matches!(&error, Error::Stream(e) if e.to_string() == "the wire was cut"),
        "{error:?}"
    );
}

#[test]
fn owners_go_through_the_maps() {
    let dir = place();
    let run = |container_id, host_id| IdMap {
        container_id,
        host_id,
        size: 10,
    };
    let options = ApplyOptions {
        id_maps: IdMaps {
            uids: vec![run(0, 5000)],
            gids: vec![run(0, 6000)],
        },
        ..ApplyOptions::default()
    };
    apply_to(
        dir.path(),
        &archive("{entries: [{file: new/f, text: f, owner: '3:4'}]}"),
        &options,
    )
    .unwrap();
    let owner = |name: &str| {
        let st = fs::symlink_metadata(dir.path().join(name)).unwrap();
        (st.uid(), st.gid())
    };
    assert_eq!(owner("new/f"), (5003, 6004));
    assert_eq!(owner("new"), (5000, 6000));
    let error = apply_to(
        dir.path(),
        &archive("{entries: [{file: g, owner: '10:0'}]}"),
        &options,
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("uid 10 is not mapped"),
        "{error}"
    );
    assert!(!dir.path().join("g").exists());
}

#[test]
fn in_a_user_namespace_devices_are_left_out() {
    let dir = place();
    let options = ApplyOptions {
        in_userns: true,
        ..ApplyOptions::default()
    };
    let tar = archive(
        "{entries: [{char: dev/null, dev: '1:3'}, {block: dev/sda, dev: '8:0'}, {fifo: dev/p}]}",
    );
    apply_to(dir.path(), &tar, &options).unwrap();
    let names: Vec<_> = fs::read_dir(dir.path().join("dev"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["p"]);
}

/// A name space that no kernel has stands for a filesystem that keeps no attributes: the errno is the same.
#[rstest]
#[case::strict(false)]
#[case::best_effort(true)]
fn attributes_that_cannot_be_kept(#[case] best_effort_xattrs: bool) {
    let dir = place();
    let options = ApplyOptions {
        best_effort_xattrs,
        ..ApplyOptions::default()
    };
    let tar = archive("{entries: [{file: f, text: f, xattrs: {nowhere.k: v, user.k: v}}]}");
    let result = apply_to(dir.path(), &tar, &options);
    assert_eq!(result.is_ok(), best_effort_xattrs, "{result:?}");
    if let Err(error) = result {
        assert!(error.to_string().contains("nowhere.k"), "{error}");
    }
}

#[test]
fn an_attribute_beyond_the_kernels_limit_is_an_error() {
    let dir = place();
    let mut entry = Entry::new("f", What::File(Data::Bytes(vec![])));
    entry
        .xattrs
        .insert("user.big".into(), Bytes(vec![b'v'; 65537]));
    let tar = to_bytes(&Manifest {
        entries: vec![entry],
        ..Manifest::default()
    });
    let error = apply_to(dir.path(), &tar, &ApplyOptions::default()).unwrap_err();
    assert!(error.to_string().contains("user.big"), "{error}");
}

/// Sizes are of what stands at the end: what was replaced does not count, an inode counts once.
#[rstest]
#[case::replaced("[{file: a, size: 100}, {file: a, size: 10}]", 10)]
#[case::links(
    "[{file: a, size: 100}, {hardlink: b, to: a}, {hardlink: c, to: b}]",
    100
)]
#[case::first_name_replaced(
    "[{file: a, size: 100}, {hardlink: b, to: a}, {file: a, size: 1}]",
    101
)]
#[case::all_names_replaced(
    "[{file: a, size: 100}, {hardlink: b, to: a}, {file: a, size: 1}, {fifo: b}]",
    1
)]
#[case::tree_replaced(
    "[{file: d/a, size: 100}, {file: d/e/b, size: 50}, {file: d, size: 3}]",
    3
)]
#[case::symlink("[{symlink: l, to: '12345'}]", 5)]
#[case::sparse(
    "[{file: s, text: a, pax: {GNU.sparse.map: '5000,1', GNU.sparse.size: '5001'}}]",
    5001
)]
#[case::directories_none("[{dir: d}, {dir: d/e}]", 0)]
fn sizes(#[case] entries: &str, #[case] size: u64) {
    let dir = place();
    let applied = apply_to(
        dir.path(),
        &archive(&format!("{{entries: {entries}}}")),
        &ApplyOptions::default(),
    )
    .unwrap();
    assert_eq!(applied.size, size);
    assert_eq!(layer_size(open(dir.path()).as_fd()).unwrap(), size);
}

#[test]
fn a_new_name_for_a_file_of_the_layer_below_counts_once() {
    let dir = place();
    apply_to(
        dir.path(),
        &archive("{entries: [{file: a, size: 100}]}"),
        &ApplyOptions::default(),
    )
    .unwrap();
    let tar = archive("{entries: [{hardlink: b, to: a}, {hardlink: c, to: a}]}");
    assert_eq!(
        apply_to(dir.path(), &tar, &ApplyOptions::default())
            .unwrap()
            .size,
        100
    );
}

#[test]
fn zeros_become_holes() {
    let dir = place();
    let mut content = vec![0; 3 << 20];
    content[(1 << 20) + 5] = 1;
    let file = Entry::new("f", What::File(Data::Bytes(content.clone())));
    let tar = to_bytes(&Manifest {
        entries: vec![file],
        ..Manifest::default()
    });
    apply_to(dir.path(), &tar, &ApplyOptions::default()).unwrap();
    assert!(fs::read(dir.path().join("f")).unwrap() == content);
    let blocks = fs::metadata(dir.path().join("f")).unwrap().blocks();
    assert!(
        blocks * 512 < 1 << 20,
        "{blocks} blocks of 3 MiB that hold one byte"
    );
}

/// Without the layers below at hand, an upper gets moby's forms: devices for deletions, an attribute for opaque directories.
#[rstest]
#[case::overlay(Form::Overlay, "trusted.overlay.opaque")]
#[case::user(Form::OverlayUser, "user.overlay.opaque")]
fn overlay_forms_on_disk(#[case] form: Form, #[case] opaque: &str) {
    let dir = place();
    let options = ApplyOptions {
        form,
        ..ApplyOptions::default()
    };
    let tar = archive(
        "{entries: [{whiteout: d/.wh.x}, {whiteout: e/.wh..wh..opq}, {whiteout: e/.wh.y}, {whiteout: .wh.g}, {dir: g}]}",
    );
    apply_to(dir.path(), &tar, &options).unwrap();
    let st = fs::symlink_metadata(dir.path().join("d/x")).unwrap();
    assert_eq!((st.mode(), st.rdev()), (0o020_000, 0));
    for name in ["e", "g"] {
        let mut value = [0; 8];
        let n = rustix::fs::lgetxattr(dir.path().join(name), opaque, &mut value[..]).unwrap();
        assert_eq!(&value[..n], b"y", "{name}");
    }
    assert!(
        !dir.path().join("e/y").exists(),
        "nothing shows there anyway"
    );
    let root = archive("{entries: [{whiteout: .wh..wh..opq}]}");
    assert!(matches!(
        apply_to(dir.path(), &root, &options),
        Err(Error::Refused { .. })
    ));
}

#[test]
fn aufs_form_on_disk() {
    let dir = place();
    let options = ApplyOptions {
        form: Form::Aufs,
        ..ApplyOptions::default()
    };
    let tar = archive(
        "{entries: [{whiteout: d/.wh.x}, {whiteout: e/.wh..wh..opq}, {whiteout: .wh.g}, {dir: g}, {whiteout: .wh.h}, {file: h, text: h}]}",
    );
    apply_to(dir.path(), &tar, &options).unwrap();
    let tree = scanned(dir.path());
    let names: Vec<String> = tree.entries.keys().map(ToString::to_string).collect();
    assert_eq!(
        names,
        [
            "/",
            "d",
            "d/.wh.x",
            "e",
            "e/.wh..wh..opq",
            "g",
            "g/.wh..wh..opq",
            "h"
        ]
    );
}

/// Someone inside the layer swaps a directory for a link that leads out, as fast as the kernel goes, while entries are put into it.
#[test]
fn a_directory_swapped_for_a_link_leads_nowhere() {
    let dir = place();
    let [layer, victim] = ["layer", "victim"].map(|name| dir.path().join(name));
    fs::create_dir_all(layer.join("d")).unwrap();
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("hello"), "stands").unwrap();
    std::os::unix::fs::symlink("../victim", layer.join("ln")).unwrap();
    let before = scanned(&victim);
    // Between two entries in `d` another directory is used, so that `d` is opened anew for each.
    let entries: String = (0..300)
        .map(|i| format!("{{file: d/f{i}, text: x, mode: '0777'}}, {{file: e/f, text: x}}, "))
        .collect();
    let tar = archive(&format!(
        "{{entries: [{entries}{{whiteout: d/.wh.hello}}]}}"
    ));
    let (root, done) = (open(&layer), AtomicBool::new(false));
    let swaps = std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swaps = 0u32;
            while !done.load(Ordering::Relaxed) {
                let flags = RenameFlags::EXCHANGE;
                renameat_with(&root, "d", &root, "ln", flags).unwrap();
                swaps += 1;
            }
            swaps
        });
        for _ in 0..20 {
            // What it comes to is a matter of chance; where it acts is not.
            let _ = apply_to(&layer, &tar, &ApplyOptions::default());
        }
        done.store(true, Ordering::Relaxed);
        swapper.join().unwrap()
    });
    assert!(swaps > 20, "only {swaps} swaps");
    let diff = compare(&before, &scanned(&victim), &Compare::default());
    assert!(diff.is_empty(), "{diff}");
}

// What follows is the property: an archive applied to a directory, and applied to a layer's own directory and seen through an overlay mount, both come to
// what a model says that knows only sets of paths.

/// What a layer holds at a path.
#[derive(Clone, Debug)]
enum Node {
    Dir,
    File(u8),
    Symlink,
    Fifo,
}

/// An archive: entries by path, deletions, and where among the entries the deletions stand.
#[derive(Clone, Debug)]
struct Layer {
    nodes: BTreeMap<TreePath, (Node, u16)>,
    deleted: Vec<(TreePath, usize)>,
    opaque: Vec<(TreePath, usize)>,
}

fn some_path() -> impl Strategy<Value = TreePath> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
        .prop_map(|p| TreePath(p.join("/").into_bytes()))
}

fn some_node() -> impl Strategy<Value = Node> {
    prop_oneof![
        3 => Just(Node::Dir),
        3 => (0u8..4).prop_map(Node::File),
        1 => Just(Node::Symlink),
        1 => Just(Node::Fifo),
    ]
}

fn some_layer() -> impl Strategy<Value = Layer> {
    let nodes = prop::collection::btree_map(some_path(), (some_node(), 0u16..0o1000), 0..8);
    let deletions = || prop::collection::vec((some_path(), 0usize..10), 0..3);
    (nodes, deletions(), deletions()).prop_map(|(nodes, deleted, opaque)| {
        Layer {
            nodes,
            deleted,
            opaque,
        }
        .tidy()
    })
}

fn above(path: &TreePath) -> impl Iterator<Item = TreePath> + use<> {
    std::iter::successors(path.parent(), TreePath::parent).filter(|p| !p.is_root())
}

impl Layer {
    /// Leaves out what would be refused or has no one meaning: names below what is no directory.
    fn tidy(mut self) -> Self {
        let solid: BTreeSet<TreePath> = self
            .nodes
            .iter()
            .filter(|(_, (n, _))| !matches!(n, Node::Dir))
            .map(|(p, _)| p.clone())
            .collect();
        let free = |p: &TreePath| above(p).all(|up| !solid.contains(&up));
        self.nodes.retain(|p, _| free(p));
        self.deleted.retain(|(p, _)| free(p));
        // An opaque marker stands in a directory that the archive has.
        let nodes = &self.nodes;
        self.opaque
            .retain(|(p, _)| matches!(nodes.get(p), Some((Node::Dir, _))));
        self
    }

    /// Every directory that an entry lies in gets an entry too, so that no file below stands in the way.
    fn with_directories(mut self) -> Self {
        for path in self.nodes.keys().flat_map(above).collect::<Vec<_>>() {
            self.nodes.entry(path).or_insert((Node::Dir, 0o755));
        }
        self
    }

    fn manifest(&self) -> Manifest {
        let mut entries: Vec<Entry> = self
            .nodes
            .iter()
            .map(|(path, node)| entry(path, node))
            .collect();
        let name = |dir: &TreePath, base: &[u8]| dir.join(base).0;
        for (path, at) in &self.deleted {
            let whiteout = name(
                &path.parent().unwrap_or_default(),
                &[b".wh.", path.base()].concat(),
            );
            entries.insert(
                *at.min(&entries.len()),
                Entry::new(whiteout, What::File(Data::Bytes(vec![]))),
            );
        }
        for (path, at) in &self.opaque {
            // Not before the directory itself, which may take a file's place.
            let own = entries
                .iter()
                .position(|e| e.name == path.0)
                .map_or(0, |own| own + 1);
            let marker = Entry::new(name(path, b".wh..wh..opq"), What::File(Data::Bytes(vec![])));
            entries.insert((*at).clamp(own, entries.len()), marker);
        }
        Manifest {
            entries,
            ..Manifest::default()
        }
    }
}

fn entry(path: &TreePath, (node, attr): &(Node, u16)) -> Entry {
    let what = match node {
        Node::Dir => What::Dir,
        Node::File(n) => What::File(Data::Bytes(vec![*n; *n as usize * 700])),
        Node::Symlink => What::Symlink(b"/nowhere/x".to_vec()),
        Node::Fifo => What::Fifo,
    };
    let mut entry = Entry::new(path.0.clone(), what);
    entry.mode = Some((*attr).into());
    entry.owner = Owner {
        uid: (attr % 3).into(),
        gid: (attr % 5).into(),
    };
    entry.mtime = Timestamp {
        secs: (*attr).into(),
        nanos: 0,
    };
    entry
}

impl Layer {
    /// Deletions first, for they act on what is below only; then the entries.
    fn apply(&self, below: &Tree) -> Tree {
        let mut tree = below.clone();
        let gone = |path: &TreePath| {
            let deleted = |p: &TreePath| self.deleted.iter().any(|(d, _)| p == d || p.is_below(d));
            deleted(path) || self.opaque.iter().any(|(d, _)| path.is_below(d))
        };
        tree.entries.retain(|path, _| !gone(path));
        for (path, node) in &self.nodes {
            for dir in above(path).collect::<Vec<_>>().into_iter().rev() {
                tree.entries.entry(dir).or_insert_with(implied);
            }
            let stays = matches!(node.0, Node::Dir)
                && tree.entries.get(path).is_some_and(|e| e.kind == Kind::Dir);
            if !stays {
                tree.entries.retain(|p, _| !p.is_below(path));
            }
            tree.entries.insert(path.clone(), found(&entry(path, node)));
        }
        tree
    }
}

fn implied() -> Found {
    Found {
        kind: Kind::Dir,
        mode: Some(0o755),
        owner: Some(Owner::default()),
        mtime: None,
        xattrs: None,
        link: None,
    }
}

fn found(entry: &Entry) -> Found {
    let kind = match &entry.what {
        What::File(Data::Bytes(b)) => Kind::File(Some(Content::of_bytes(b))),
        What::Symlink(to) => Kind::Symlink(to.clone()),
        What::Fifo => Kind::Fifo,
        _ => Kind::Dir,
    };
    Found {
        kind,
        mode: entry.mode,
        owner: Some(entry.owner),
        mtime: Some(entry.mtime),
        ..implied()
    }
}

/// A directory that the archive does not name gets new times by what is made in it.
fn without_times_of_directories() -> Compare {
    Compare {
        ignore_dir_mtime: true,
        ..Compare::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn archives_come_to_what_the_model_says(
        below in some_layer().prop_map(Layer::with_directories),
        layer in prop_oneof![some_layer(), some_layer().prop_map(Layer::with_directories)],
    ) {
        // What lies below a file of the layer below and brings no directory for it is refused, rightly.
        let solid = |p: &TreePath| matches!(below.nodes.get(p), Some((n, _)) if !matches!(n, Node::Dir));
        let named = |p: &TreePath| layer.nodes.contains_key(p);
        prop_assume!(layer.nodes.keys().all(|p| above(p).all(|up| named(&up) || !solid(&up))));

        let dir = place();
        let [plain, lower, upper] = ["plain", "lower", "upper"].map(|name| dir.path().join(name));
        for made in [&plain, &lower, &upper] {
            fs::create_dir(made).unwrap();
        }
        let (base, tar) = (to_bytes(&Layer { deleted: vec![], opaque: vec![], ..below.clone() }.manifest()), to_bytes(&layer.manifest()));
        let options = ApplyOptions::default();
        apply_to(&lower, &base, &options).unwrap();
        apply_to(&plain, &base, &options).unwrap();
        let first = Layer { deleted: vec![], opaque: vec![], ..below.clone() }.apply(&Tree::default());
        let expected = layer.apply(&first);

        apply_to(&plain, &tar, &options).unwrap();
        let diff = compare(&expected, &scanned(&plain), &without_times_of_directories());
        prop_assert!(diff.is_empty(), "in one directory: {diff}");

        let options = ApplyOptions { form: Form::Overlay, ..options };
        let own = open(&upper);
        let applied = apply_layer(own.as_fd(), &[open(&lower).as_fd()], &mut &tar[..], &options).unwrap();
        let overlay = Overlay::new(dir.path(), "mount", &[&upper, &lower]);
        let diff = compare(&expected, &scanned(&overlay.merged), &without_times_of_directories());
        prop_assert!(diff.is_empty(), "through the mount: {diff}");
        prop_assert_eq!(applied.size, layer_size(own.as_fd()).unwrap());

        let [branch, union_of] = ["branch", "union"].map(|name| dir.path().join(name));
        fs::create_dir(&branch).unwrap();
        let options = ApplyOptions { form: Form::Aufs, ..ApplyOptions::default() };
        let own = open(&branch);
        let applied = apply_layer(own.as_fd(), &[open(&lower).as_fd()], &mut &tar[..], &options).unwrap();
        union(&[&branch, &lower], &union_of);
        let diff = compare(&expected, &scanned(&union_of), &without_times_of_directories());
        prop_assert!(diff.is_empty(), "as a branch: {diff}");
        prop_assert_eq!(applied.size, layer_size_in(own.as_fd(), Form::Aufs).unwrap());
        // What shows through nothing leaves nothing: every marker hides something.
        let changed = layer_changes(own.as_fd(), &[open(&lower).as_fd()], Form::Aufs).unwrap();
        let gone = changed.iter().filter(|c| c.kind == ChangeKind::Delete).count();
        prop_assert!(markers(&branch) <= gone, "{changed:?}");
    }
}

/// Whiteouts below a directory, but for those in a directory that has a marker of its own.
fn markers(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let count = |path: PathBuf| {
        let name = path.file_name().unwrap().as_bytes().to_vec();
        if path.is_dir() && !path.is_symlink() {
            markers(&path)
        } else {
            usize::from(name.starts_with(b".wh.") && !name.starts_with(b".wh..wh."))
        }
    };
    entries.map(count).sum()
}
