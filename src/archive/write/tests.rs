//! Streams, read back by others.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use rstest::rstest;

use crate::archive::read::Reader;
use crate::archive::testing::{
    Overlay, assert_same, build, copy, open, place, run, scanned, some_ops,
};
use crate::archive::{
    ApplyOptions, Error, Form, IdMap, IdMaps, LayerStream, WriteOptions, apply, changes, diff_size,
    layer_size,
};
use crate::tree::{Compare, Owner, compare};

fn whole(root: &Path) -> Vec<u8> {
    let stream = LayerStream::full(open(root).as_fd(), WriteOptions::default()).unwrap();
    read(stream).unwrap()
}

fn read(mut stream: LayerStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map(|_| bytes)
}

fn diff(new: &Path, old: &Path) -> Vec<u8> {
    let (new, old) = (open(new), open(old));
    let found = changes(new.as_fd(), Some(old.as_fd())).unwrap();
    read(LayerStream::from_changes(new.as_fd(), found, WriteOptions::default()).unwrap()).unwrap()
}

fn names(archive: &[u8]) -> Vec<String> {
    let mut reader = Reader::new(archive);
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        names.push(String::from_utf8_lossy(&entry.name).into_owned());
    }
    names
}

fn apply_to(root: &Path, archive: &[u8]) {
    apply(
        open(root).as_fd(),
        &mut &archive[..],
        &ApplyOptions::default(),
    )
    .unwrap();
}

/// GNU tar with these arguments and the archive on its input.
fn gnu_tar(archive: &[u8], args: &[&str]) -> String {
    let mut child = Command::new("tar")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || std::io::Write::write_all(&mut input, archive).unwrap());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.is_empty(), "{said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    })
}

fn every_kind() -> String {
    let long = "long-name-".repeat(12);
    let split = format!("{}/{}", "p".repeat(120), "n".repeat(99));
    format!(
        r#"
- {{dir: d, mode: "2750", owner: "5:6", mtime: "1000.000000001", xattrs: {{user.d: x}}}}
- {{file: d/f, text: hello, mode: "4755", owner: "7:8", mtime: "1700000000.123456789", xattrs: {{user.k: '\xff\x00\x0a=', security.capability: '\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00'}}}}
- {{file: before, text: old, mtime: "-5.5"}}
- {{file: d-x, text: between, mtime: "1"}}
- {{file: {long}, text: long}}
- {{dir: {dir}}}
- {{file: {split}, text: split}}
- {{file: 'odd\x0a\xff\xc3\xa9', size: 100000, seed: 7}}
- {{file: sparse, size: 40M, islands: [{{at: 0, text: start}}, {{at: 20M, text: island}}]}}
- {{file: block, size: 512, seed: 1}}
- {{file: empty, text: ''}}
- {{file: owned, text: x, owner: "3000000:4294967294"}}
- {{symlink: s, to: /nowhere, owner: "9:9", mtime: "77.5"}}
- {{symlink: s-long, to: {long}{long}}}
- {{fifo: p, mode: "0600"}}
- {{socket: k, mode: "0777", owner: "1:1"}}
- {{char: c, dev: "1:3", mode: "0666", mtime: "3"}}
- {{block: blk, dev: "259:1048575"}}
- {{hardlink: h, to: d/f}}
- {{hardlink: sh, to: s}}
- {{hardlink: {long}2, to: {long}}}
"#,
        dir = "p".repeat(120),
    )
}

#[test]
fn gnu_tar_makes_the_same_tree_of_it() {
    let place = place();
    let (tree, out) = (place.path().join("tree"), place.path().join("out"));
    build(&tree, &every_kind());
    // The root is no part of the stream.
    std::fs::create_dir(&out).unwrap();
    let archive = whole(&tree);
    let args = [
        "-x",
        "-p",
        "--same-owner",
        "--warning=no-timestamp",
        "--xattrs",
        "--xattrs-include=*",
        "-C",
        out.to_str().unwrap(),
    ];
    gnu_tar(&archive, &args);
    copy_root_attributes(&tree, &out);
    assert_same(&tree, &out);
    let listed = gnu_tar(&archive, &["-t", "--quoting-style=literal"]);
    assert!(!listed.contains("k\n/"), "sockets are left out: {listed}");
}

#[test]
fn applying_it_makes_the_same_tree() {
    let place = place();
    let (tree, out) = (place.path().join("tree"), place.path().join("out"));
    build(&tree, &every_kind());
    std::fs::create_dir(&out).unwrap();
    apply_to(&out, &whole(&tree));
    copy_root_attributes(&tree, &out);
    assert_same(&tree, &out);
}

/// The mode and times of the root itself, which no stream holds.
fn copy_root_attributes(from: &Path, to: &Path) {
    let status = Command::new("sh")
        .args([
            "-c",
            "chmod --reference=\"$0\" \"$1\" && touch -r \"$0\" \"$1\"",
        ])
        .args([from, to])
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn a_whole_tree_is_the_diff_against_nothing() {
    let place = place();
    let tree = place.path().join("tree");
    build(&tree, &every_kind());
    let root = open(&tree);
    let all = changes(root.as_fd(), None).unwrap();
    let stream = LayerStream::from_changes(root.as_fd(), all, WriteOptions::default()).unwrap();
    let archive = whole(&tree);
    assert!(read(stream).unwrap() == archive);
    let mut found = names(&archive);
    found
        .iter_mut()
        .for_each(|n| *n = n.trim_end_matches('/').to_string());
    let parts = |name: &String| name.split('/').map(str::to_string).collect::<Vec<_>>();
    assert!(found.is_sorted_by_key(parts), "{found:?}");
    // However it is read.
    let mut stream = LayerStream::full(root.as_fd(), WriteOptions::default()).unwrap();
    let (mut piecewise, mut piece) = (Vec::new(), [0; 1000]);
    for size in (1..=piece.len()).cycle().step_by(37) {
        match stream.read(&mut piece[..size]).unwrap() {
            0 => break,
            n => piecewise.extend_from_slice(&piece[..n]),
        }
    }
    assert!(piecewise == archive);
}

#[rstest]
#[case::deleted("[{remove: d/e}]", &["d/", "d/.wh.e"])]
#[case::order_is_of_the_deleted_name("[{remove: d}, {file: d-x, text: new}]", &[".wh.d", "d-x"])]
#[case::a_further_name_brings_the_old_one("[{hardlink: new, to: d/e/f}]", &["d/", "d/e/", "d/e/f", "new"])]
#[case::sockets("[{socket: sock}]", &[])]
#[case::nothing("[]", &[])]
fn diffs_hold(#[case] edit: &str, #[case] expected: &[&str]) {
    let place = place();
    let (old, new) = (place.path().join("old"), place.path().join("new"));
    build(
        &old,
        "[{dir: d}, {dir: d/e}, {file: d/e/f, text: f}, {file: d-x, text: x}]",
    );
    copy(&old, &new);
    build(&new, edit);
    let archive = diff(&new, &old);
    assert_eq!(names(&archive), expected);
    apply_to(&old, &archive);
    copy_root_attributes(&new, &old);
    assert_same(&new, &old);
}

#[test]
fn whiteouts_are_empty_and_the_same_every_time() {
    let place = place();
    let (old, new) = (place.path().join("old"), place.path().join("new"));
    build(&old, "[{file: f, text: f, mode: '0644', owner: '5:5'}]");
    build(&new, "[]");
    let archive = diff(&new, &old);
    let mut reader = tar::Archive::new(&archive[..]);
    let entry = reader.entries().unwrap().next().unwrap().unwrap();
    let header = entry.header();
    assert_eq!(&*header.path_bytes(), b".wh.f");
    assert_eq!(header.entry_type(), tar::EntryType::Regular);
    let numbers = [header.size(), header.uid(), header.gid(), header.mtime()];
    assert_eq!(numbers.map(Result::unwrap), [0; 4]);
    assert_eq!(header.mode().unwrap(), 0);
    assert_eq!(archive.len(), 3 * 512);
    assert!(diff(&new, &old) == archive);
}

fn refusal(error: std::io::Error) -> Error {
    let inner = error.into_inner().expect("an error of ours");
    *inner.downcast::<Error>().expect("an error of ours")
}

#[test]
fn a_name_that_would_be_a_whiteout_is_refused() {
    let place = place();
    build(place.path(), "[{dir: d}, {file: d/.wh.x, text: ''}]");
    let root = open(place.path());
    let stream = LayerStream::full(root.as_fd(), WriteOptions::default()).unwrap();
    match refusal(read(stream).unwrap_err()) {
        Error::Refused { name, .. } => assert_eq!(name.as_bytes(), b"d/.wh.x"),
        other => panic!("{other}"),
    }
}

fn shifted() -> WriteOptions {
    let run = vec![IdMap {
        container_id: 0,
        host_id: 100_000,
        size: 1000,
    }];
    WriteOptions {
        id_maps: IdMaps {
            uids: run.clone(),
            gids: run,
        },
    }
}

#[test]
fn owners_are_those_inside() {
    let place = place();
    let tree = place.path().join("tree");
    build(&tree, "[{file: f, text: x, owner: '100005:100006'}]");
    // user::rw-, user:100007:r--, group::r--, mask::r--, other::---
    let acl = r"\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xa7\x86\x01\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff";
    build(
        &tree,
        &format!("[{{setxattr: f, name: system.posix_acl_access, value: '{acl}'}}]"),
    );
    let stream = LayerStream::full(open(&tree).as_fd(), shifted()).unwrap();
    let archive = read(stream).unwrap();
    let entry = Reader::new(&archive[..]).next_entry().unwrap().unwrap();
    assert_eq!(entry.owner(), Some(Owner { uid: 5, gid: 6 }));
    let mapped = b"\x02\x00\x04\x00\x07\x00\x00\x00\x04\x00\x04\x00";
    assert!(archive.windows(mapped.len()).any(|w| w == mapped));
}

#[test]
fn an_owner_outside_of_the_maps_fails() {
    let place = place();
    let tree = place.path().join("tree");
    build(&tree, "[{file: f, text: x, owner: '5:5'}]");
    let stream = LayerStream::full(open(&tree).as_fd(), shifted()).unwrap();
    let said = refusal(read(stream).unwrap_err()).to_string();
    assert_eq!(said, "map the owner of f: uid 5 is not mapped");
}

#[test]
fn a_capability_of_a_namespace_is_written_as_one_of_any() {
    let mut value = b"\x01\x00\x00\x03aaaabbbbccccdddd\xe8\x03\x00\x00".to_vec();
    crate::archive::xattrs::to_capability_v2(&mut value);
    assert_eq!(value, b"\x01\x00\x00\x02aaaabbbbccccdddd");
}

/// What changes size under the reader's hands still gives a whole archive.
#[rstest]
#[case::shrunk(10)]
#[case::grown(10_000_000)]
fn files_that_change_keep_the_size_announced(#[case] size: u64) {
    let place = place();
    let tree = place.path().join("tree");
    build(
        &tree,
        "[{file: a, size: 1M, seed: 3}, {file: b, text: last}]",
    );
    let mut stream = LayerStream::full(open(&tree).as_fd(), WriteOptions::default()).unwrap();
    let mut archive = vec![0; 100_000];
    stream.read_exact(&mut archive).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(tree.join("a"));
    file.unwrap().set_len(size).unwrap();
    stream.read_to_end(&mut archive).unwrap();
    let mut reader = tar::Archive::new(&archive[..]);
    let sizes: Vec<u64> = reader
        .entries()
        .unwrap()
        .map(|e| e.unwrap().size())
        .collect();
    assert_eq!(sizes, [1 << 20, 4]);
}

/// Reads a stream with the runs it hands out sent through a socket, some bytes at a time; gives how many bytes went so as well.
fn read_with_runs(mut stream: LayerStream, most: usize) -> (Vec<u8>, usize) {
    let (to, mut from) = UnixStream::pair().unwrap();
    let (mut bytes, mut sent) = (Vec::new(), 0);
    let mut buffer = vec![0; most];
    loop {
        let n = match stream.run() {
            Some(mut run) => run.send(to.as_fd(), most as u64).unwrap() as usize,
            None => 0,
        };
        sent += n;
        let n = match n {
            0 => stream.read(&mut buffer).unwrap(),
            n => from.read_exact(&mut buffer[..n]).map(|()| n).unwrap(),
        };
        if n == 0 {
            return (bytes, sent);
        }
        bytes.extend_from_slice(&buffer[..n]);
    }
}

#[rstest]
fn runs_handed_out_are_the_bytes_that_reading_gives(#[values(1000, 4096, 60_000)] most: usize) {
    let place = place();
    let tree = place.path().join("tree");
    build(
        &tree,
        "[{file: a, size: 1M, seed: 3}, {file: b}, {file: c, text: c}, {file: d, size: 100001, seed: 4}, \
         {file: e, size: 4M, islands: [{at: 1M, text: x}, {at: 2M, text: y}]}, {file: f, size: 4M, islands: []}]",
    );
    let stream = || LayerStream::full(open(&tree).as_fd(), WriteOptions::default()).unwrap();
    let (bytes, sent) = read_with_runs(stream(), most);
    assert!(bytes == read(stream()).unwrap());
    assert!(sent >= (1 << 20) + 100_001, "{sent} bytes were handed out");
    assert!(sent < 2 << 20, "holes were handed out: {sent} bytes");
}

/// What cannot be sent is read, and so is what a run has lost.
#[test]
fn a_run_that_cannot_be_sent_is_still_to_be_read() {
    let place = place();
    let tree = place.path().join("tree");
    build(&tree, "[{file: a, size: 1M, seed: 3, mtime: '1'}]");
    let expected = whole(&tree);
    let mut stream = LayerStream::full(open(&tree).as_fd(), WriteOptions::default()).unwrap();
    let mut bytes = vec![0; 512];
    stream.read_exact(&mut bytes).unwrap();
    // sendfile(2) does not append.
    let appending = File::options()
        .append(true)
        .create(true)
        .open(place.path().join("log"))
        .unwrap();
    let mut run = stream.run().unwrap();
    assert_eq!(run.len(), 1 << 20);
    assert!(run.send(appending.as_fd(), 1000).is_err());
    let mut some = [0; 5000];
    stream.read_exact(&mut some).unwrap();
    bytes.extend_from_slice(&some);
    assert_eq!(stream.run().unwrap().len(), (1 << 20) - 5000);
    let file = File::options().write(true).open(tree.join("a")).unwrap();
    file.set_len(5000).unwrap();
    let (to, _from) = UnixStream::pair().unwrap();
    assert_eq!(stream.run().unwrap().send(to.as_fd(), 1000).unwrap(), 0);
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), expected.len());
    assert!(bytes[..5512] == expected[..5512]);
    assert!(bytes[5512..512 + (1 << 20)].iter().all(|b| *b == 0));
    assert!(stream.run().is_none());
}

#[test]
fn what_vanishes_is_left_out() {
    let place = place();
    let tree = place.path().join("tree");
    build(
        &tree,
        "[{file: a, size: 1M}, {file: b, text: b}, {dir: c}, {file: c/d, text: d}, {file: e, text: e}]",
    );
    let mut stream = LayerStream::full(open(&tree).as_fd(), WriteOptions::default()).unwrap();
    let mut archive = vec![0; 1000];
    stream.read_exact(&mut archive).unwrap();
    std::fs::remove_file(tree.join("b")).unwrap();
    std::fs::remove_dir_all(tree.join("c")).unwrap();
    stream.read_to_end(&mut archive).unwrap();
    assert_eq!(names(&archive), ["a", "e"]);
}

/// Too large for ustar's field, and nothing but a hole.
#[test]
fn a_size_beyond_ustar_is_a_pax_record() {
    let place = place();
    let tree = place.path().join("tree");
    build(&tree, "[{file: f, size: 9G, islands: [], mtime: '1'}]");
    let mut stream = LayerStream::full(open(&tree).as_fd(), WriteOptions::default()).unwrap();
    let mut start = [0; 2048];
    stream.read_exact(&mut start).unwrap();
    let entry = Reader::new(&start[..]).next_entry().unwrap().unwrap();
    assert_eq!(entry.size, 9 << 30);
}

#[test]
fn sizes_count_every_inode_once_and_no_directory() {
    let place = place();
    let (old, new) = (place.path().join("old"), place.path().join("new"));
    build(&old, "[{file: kept, size: 1k}, {file: gone, size: 7}]");
    copy(&old, &new);
    build(
        &new,
        "[{remove: gone}, {dir: d}, {file: d/f, size: 100}, {hardlink: d/g, to: d/f}, {symlink: s, to: abc}, {fifo: p}, {file: hole, size: 1M, islands: []}]",
    );
    let (new, old) = (open(&new), open(&old));
    let found = changes(new.as_fd(), Some(old.as_fd())).unwrap();
    let expected = 100 + 3 + (1 << 20);
    assert_eq!(diff_size(new.as_fd(), &found).unwrap(), expected);
    assert_eq!(layer_size(new.as_fd()).unwrap(), expected + 1024);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any edit of a layer: its diff, applied to a copy of the parent, gives the layer; the stream made from an overlay's upper directory
    /// alone is byte for byte the one made by comparing the mounted trees.
    #[test]
    fn diffs_applied_give_the_layer(base in some_ops(), edit in some_ops()) {
        let place = place();
        let (lower, copied) = (place.path().join("lower"), place.path().join("copied"));
        std::fs::create_dir(&lower).unwrap();
        run(&lower, &base);
        copy(&lower, &copied);
        std::thread::sleep(std::time::Duration::from_millis(11));
        let child = Overlay::new(place.path(), "child", &[&lower]);
        run(&child.merged, &edit);
        let archive = diff(&child.merged, &lower);
        let (upper, below) = (open(&child.upper), open(&lower));
        let native = LayerStream::from_upper(upper.as_fd(), &[below.as_fd()], Form::Overlay, WriteOptions::default());
        let native = read(native.unwrap()).unwrap();
        prop_assert_eq!(names(&native), names(&archive));
        prop_assert!(native == archive, "equal names, other bytes");
        apply_to(&copied, &archive);
        // The time of a directory alone is no change.
        let how = Compare { ignore_dir_mtime: true, ..Compare::default() };
        let difference = compare(&scanned(&child.merged), &scanned(&copied), &how);
        prop_assert!(difference.is_empty(), "{}", difference);
    }
}
