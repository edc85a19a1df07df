//! tar-split through the public face: apply, then give back byte for byte.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rstest::rstest;

use super::*;
use crate::archive::manifest::{Manifest, to_bytes};
use crate::archive::{ApplyOptions, apply};

fn archive(yaml: &str) -> Vec<u8> {
    to_bytes(&serde_yaml::from_str::<Manifest>(yaml).unwrap())
}

/// Applies through a recorder; the layer and the metadata.
fn record(tar: &[u8]) -> (tempfile::TempDir, Vec<u8>) {
    let layer = tempfile::tempdir().unwrap();
    let root = File::open(layer.path()).unwrap();
    let mut recorder = Recorder::new(tar, Vec::new());
    apply(root.as_fd(), &mut recorder, &ApplyOptions::default()).unwrap();
    (layer, recorder.finish().unwrap())
}

fn give_back(layer: &tempfile::TempDir, metadata: &[u8]) -> Result<Vec<u8>, Error> {
    let get = |name: &[u8]| -> io::Result<Box<dyn Read + Send>> {
        let name = name.strip_prefix(b"/").unwrap_or(name);
        Ok(Box::new(File::open(
            layer.path().join(std::ffi::OsStr::from_bytes(name)),
        )?))
    };
    let mut out = Vec::new();
    assemble(metadata, &get, &mut out).map(|()| out)
}

const LONG: &str = "some/quite/long/directory/that/goes/on/and/on/until/it/passes/the/hundred/bytes/of/the/name/field/of/a/header/f";

#[rstest]
#[case::ustar("entries: [{dir: d/}, {file: d/f, text: hello}, {symlink: l, to: d/f}]")]
#[case::gnu(&format!("entries: [{{file: {LONG}, text: x, format: gnu}}, {{symlink: l, to: {LONG}, format: gnu}}]"))]
#[case::pax("entries: [{file: f, text: x, format: pax, mtime: '5.25', xattrs: {user.k: v}}]")]
#[case::prefix(&format!("entries: [{{file: {LONG}, text: x}}]"))]
#[case::odd_padding(
    "entries: [{file: a, size: 511}, {file: b, size: 512}, {file: c, size: 513}, {file: e, size: 1}]"
)]
#[case::more_than_a_buffer("entries: [{file: a, size: 3M, seed: 4}, {file: b, text: x}]")]
#[case::extra_trailer("entries: [{file: f, text: x}]\nappend: 'junk behind the end'")]
#[case::no_trailer("entries: [{file: f, text: x}]\nend: none")]
#[case::one_block("entries: [{file: f, text: x}]\nend: one")]
#[case::not_utf8(
    "entries: [{file: 'f\\xff', text: x}, {file: 'dir\\xfe/g', text: y, format: pax}]"
)]
#[case::hard_links("entries: [{file: f, text: x}, {hardlink: g, to: f}, {hardlink: h, to: /g}]")]
#[case::empty("entries: []")]
#[case::whiteouts(
    "entries: [{whiteout: .wh.a}, {dir: d}, {whiteout: d/.wh..wh..opq}, {file: d/f, text: x}]"
)]
#[case::global("entries: [{global: g, pax: {comment: hi}}, {file: f, text: x}]")]
#[case::padding_not_zero(
    "entries: [{raw: f, type: '0', size: 1, text: 'x and bytes that are padding'}]"
)]
#[case::sparse(
    "entries: [{file: s, text: 'abcd', pax: {GNU.sparse.map: '4096,3,8191,1', GNU.sparse.size: '8192'}}, {file: f, text: x}]"
)]
fn gives_back_every_byte(#[case] yaml: &str) {
    let tar = archive(yaml);
    let (layer, metadata) = record(&tar);
    assert!(give_back(&layer, &metadata).unwrap() == tar);
}

#[test]
fn long_junk_behind_the_end_is_kept_in_pieces() {
    let mut tar = archive("entries: [{file: f, text: x}]");
    tar.resize(tar.len() + 3 * CHUNK + 17, 0);
    let (layer, metadata) = record(&tar);
    assert!(give_back(&layer, &metadata).unwrap() == tar);
}

/// Keys, order and checksums as `storage.Entry` of vbatts/tar-split has them.
#[test]
fn lines_are_those_of_tar_split() {
    let (_layer, metadata) = record(&archive(
        "entries: [{dir: d/}, {file: d/f, text: '123456789'}, {file: 'x\\xff', text: ''}]",
    ));
    let mut text = String::new();
    MultiGzDecoder::new(&metadata[..])
        .read_to_string(&mut text)
        .unwrap();
    let lines: Vec<BTreeMap<String, serde_json::Value>> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let files: Vec<String> = lines
        .iter()
        .filter(|l| l["type"] == 1)
        .map(|l| serde_json::to_string(l).unwrap())
        .collect();
    // b90956c775a41001 is the check value of CRC-64/GO-ISO.
    assert_eq!(
        files,
        [
            r#"{"name":"d/","payload":null,"position":1,"type":1}"#,
            r#"{"name":"d/f","payload":"uQlWx3WkEAE=","position":3,"size":9,"type":1}"#,
            r#"{"name_raw":"eP8=","payload":null,"position":5,"type":1}"#,
        ]
    );
    let kinds: Vec<u64> = lines.iter().map(|l| l["type"].as_u64().unwrap()).collect();
    assert_eq!(kinds, [2, 1, 2, 1, 2, 1, 2]);
}

#[rstest]
#[case::changed("y", "not what it was")]
#[case::longer("xx", "longer")]
#[case::shorter("", "shorter")]
fn a_changed_file_is_noticed(#[case] content: &str, #[case] says: &str) {
    let (layer, metadata) = record(&archive("entries: [{file: f, text: x}]"));
    std::fs::write(layer.path().join("f"), content).unwrap();
    let error = give_back(&layer, &metadata).unwrap_err().to_string();
    assert!(error.contains(says) && error.contains("f:"), "{error}");
}

#[test]
fn a_missing_file_is_named() {
    let (layer, metadata) = record(&archive("entries: [{file: f, text: x}]"));
    std::fs::remove_file(layer.path().join("f")).unwrap();
    assert!(
        give_back(&layer, &metadata)
            .unwrap_err()
            .to_string()
            .contains("f:")
    );
}

#[rstest]
#[case::cut(|m: &mut Vec<u8>| m.truncate(m.len() / 2))]
#[case::no_gzip(|m: &mut Vec<u8>| m[0] ^= 1)]
#[case::flipped(|m: &mut Vec<u8>| { let at = m.len() - 6; m[at] ^= 0x55 })]
fn damaged_metadata_is_refused(#[case] damage: fn(&mut Vec<u8>)) {
    let (layer, mut metadata) = record(&archive("entries: [{file: f, text: x}]"));
    damage(&mut metadata);
    assert!(matches!(give_back(&layer, &metadata), Err(Error::Split(_))));
}

#[test]
fn a_name_that_comes_twice_is_refused() {
    let tar = archive("entries: [{file: f, text: x}, {file: ./f, text: y}]");
    let error = Recorder::new(&tar[..], Vec::new()).finish().unwrap_err();
    assert!(matches!(error, Error::Split(_)), "{error}");
}

#[test]
fn an_archive_error_comes_through_the_recorder_as_it_is() {
    let mut tar = archive("entries: [{file: f, text: x}]");
    tar.truncate(700);
    let layer = tempfile::tempdir().unwrap();
    let root = File::open(layer.path()).unwrap();
    let mut recorder = Recorder::new(&tar[..], Vec::new());
    let error = apply(root.as_fd(), &mut recorder, &ApplyOptions::default()).unwrap_err();
    assert!(
        matches!(error, Error::Corrupt { offset: 700, .. }),
        "{error:?}"
    );
}
