//! Applying to a branch of aufs, over the branches below it.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::archive::manifest::{Manifest, to_bytes};
use crate::archive::testing::{build, open, place, scanned, union};
use crate::archive::{ApplyOptions, Error, Form, apply_layer};
use crate::tree::{Owner, Timestamp, TreePath};

fn archive(yaml: &str) -> Vec<u8> {
    to_bytes(&serde_yaml::from_str::<Manifest>(yaml).expect("a manifest"))
}

/// A file below gets a further name: the layer takes it over, whole, and both names are one.
#[test]
fn a_link_to_a_file_of_the_layers_below() {
    let dir = place();
    let [base, middle, branch, shown] =
        ["base", "middle", "branch", "shown"].map(|name| dir.path().join(name));
    build(
        &base,
        r#"[{dir: d, mode: "0750", owner: "1:2"}, {file: d/f, text: old, mtime: "5"}, {symlink: s, to: d}, {file: gone, text: x}]"#,
    );
    build(
        &middle,
        r#"[{dir: d, mode: "2711", owner: "3:4"}, {file: d/f, size: 70000, seed: 7, mode: "4750", owner: "5:6", mtime: "77.5", xattrs: {user.k: v}},
            {symlink: d/l, to: nowhere, owner: "7:8", mtime: "9"}, {fifo: d/p, mode: "0620"}, {file: .wh.gone, text: ''}]"#,
    );
    fs::create_dir(&branch).unwrap();
    let options = ApplyOptions {
        form: Form::Aufs,
        ..ApplyOptions::default()
    };
    let apply_links = |text: &str| {
        let (middle, base) = (open(&middle), open(&base));
        let lowers = [middle.as_fd(), base.as_fd()];
        apply_layer(
            open(&branch).as_fd(),
            &lowers,
            &mut &archive(text)[..],
            &options,
        )
    };
    let applied = apply_links(
        "{entries: [{hardlink: f2, to: s/f}, {hardlink: d/l2, to: d/l}, {hardlink: p2, to: d/p}, {hardlink: f3, to: f2}]}",
    );
    assert_eq!(applied.unwrap().size, 70_000 + "nowhere".len() as u64);
    union(&[&branch, &middle, &base], &shown);
    let tree = scanned(&shown);
    let at = |path: &str| tree.entries[&TreePath(path.into())].clone();
    for (new, old, links) in [
        ("f2", "d/f", 3),
        ("f3", "d/f", 3),
        ("d/l2", "d/l", 2),
        ("p2", "d/p", 2),
    ] {
        assert_eq!(at(new).link, at(old).link, "{new}");
        let st = fs::symlink_metadata(branch.join(new)).unwrap();
        assert_eq!(st.nlink(), links, "{new}");
    }
    let f = at("d/f");
    assert_eq!(f.mode, Some(0o4750));
    assert_eq!(f.owner, Some(Owner { uid: 5, gid: 6 }));
    assert_eq!(
        f.mtime,
        Some(Timestamp {
            secs: 77,
            nanos: 500_000_000
        })
    );
    assert_eq!(at("d").mode, Some(0o2711));
    assert_eq!(
        fs::read(shown.join("f2")).unwrap(),
        fs::read(middle.join("d/f")).unwrap()
    );
    for missing in [
        "{entries: [{hardlink: x, to: gone}]}",
        "{entries: [{hardlink: x, to: d}]}",
        "{entries: [{hardlink: x, to: none/f}]}",
        "{entries: [{whiteout: .wh.s}, {hardlink: x, to: s}]}",
        "{entries: [{whiteout: d/.wh..wh..opq}, {hardlink: x, to: d/l3}]}",
    ] {
        let refused = apply_links(missing);
        assert!(matches!(refused, Err(Error::Refused { .. })), "{missing}");
    }
}

/// What an earlier archive deleted stays deleted for the next one on the same branch.
#[test]
fn markers_of_an_earlier_archive_count() {
    let dir = place();
    let [base, branch, shown] = ["base", "branch", "shown"].map(|name| dir.path().join(name));
    build(
        &base,
        r#"[{dir: d, mode: "0700"}, {file: d/f, text: f}, {dir: o, mode: "0711"}, {dir: o/e}, {file: o/e/g, text: g}]"#,
    );
    fs::create_dir(&branch).unwrap();
    let options = ApplyOptions {
        form: Form::Aufs,
        ..ApplyOptions::default()
    };
    for text in [
        "{entries: [{whiteout: .wh.d}, {dir: o}, {whiteout: o/.wh..wh..opq}]}",
        "{entries: [{whiteout: d/.wh.f}, {whiteout: o/e/.wh.g}]}",
    ] {
        let below = open(&base);
        let tar = archive(text);
        apply_layer(
            open(&branch).as_fd(),
            &[below.as_fd()],
            &mut &tar[..],
            &options,
        )
        .unwrap();
    }
    union(&[&branch, &base], &shown);
    let names = |root: &Path| -> Vec<String> {
        scanned(root)
            .entries
            .keys()
            .map(ToString::to_string)
            .collect()
    };
    assert_eq!(names(&shown), ["/", "o"]);
    assert_eq!(names(&branch), ["/", ".wh.d", "o", "o/.wh..wh..opq"]);
}
