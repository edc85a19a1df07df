//! What is overlay's own: trees of links, and what keeps them apart.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rstest::rstest;

use super::super::tests::{Lab, assert_same, diff, edit, plain, tree};
use super::*;
use crate::graphdriver::ErrorClass;

/// `image` and `child` come out of archives, `box` is a layer on `child`.
fn lab() -> (Lab, Arc<dyn Driver>) {
    let lab = Lab::new(NAME, "/dev/shm");
    let driver = lab.start();
    driver.create("image", None, &plain()).unwrap();
    edit(
        &*driver,
        "image",
        "[{dir: d}, {file: d/kept, text: kept}, {file: d/gone, text: gone}]",
    );
    driver.create("work", Some("image"), &plain()).unwrap();
    edit(
        &*driver,
        "work",
        "[{remove: d/gone}, {file: new, text: new}]",
    );
    let archive = diff(&*driver, "work", Some("image"));
    driver.create("child", Some("image"), &plain()).unwrap();
    driver
        .apply_diff("child", Some("image"), &mut &archive[..])
        .unwrap();
    assert_eq!(driver.capabilities().max_depth, None);
    (lab, driver)
}

#[test]
fn an_applied_layer_is_a_tree_of_links() {
    let (lab, driver) = lab();
    let mut names: Vec<_> = fs::read_dir(lab.home().join("child"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["merged", "parent-id", "root"]);
    let inode = |path: &str| fs::metadata(lab.home().join(path)).unwrap().ino();
    assert_eq!(inode("child/root/d/kept"), inode("image/root/d/kept"));
    assert!(
        !lab.home().join("child/root/d/gone").exists()
            && lab.home().join("image/root/d/gone").exists()
    );
    assert_eq!(
        driver
            .metadata("child")
            .unwrap()
            .unwrap()
            .keys()
            .collect::<Vec<_>>(),
        ["RootDir"]
    );
    assert_eq!(
        fs::read_to_string(lab.home().join("work/lower-id")).unwrap(),
        "image"
    );
}

#[test]
fn writing_to_an_applied_layer_never_reaches_its_parent() {
    let (_lab, driver) = lab();
    let image = tree(&*driver, "image");
    edit(
        &*driver,
        "child",
        "[{write: d/kept, text: KEPT}, {chmod: d/kept, mode: '0600'}]",
    );
    assert_same(&image, &tree(&*driver, "image"));
    let child = tree(&*driver, "child");
    driver.create("box", Some("child"), &plain()).unwrap();
    driver.create("box2", Some("box"), &plain()).unwrap();
    for id in ["box", "box2"] {
        assert_same(&child, &tree(&*driver, id));
        assert!(driver.changes(id, Some("child")).unwrap().is_empty());
    }
    edit(&*driver, "box2", "[{append: d/kept, text: '!'}]");
    assert_same(&child, &tree(&*driver, "child"));
    let archive = diff(&*driver, "box2", Some("child"));
    driver.create("box3", Some("child"), &plain()).unwrap();
    driver
        .apply_diff("box3", Some("child"), &mut &archive[..])
        .unwrap();
    let file = driver.get("box3", "").unwrap().join("d/kept");
    assert_eq!(fs::read(file).unwrap(), b"KEPT!");
    driver.put("box3").unwrap();
    assert_eq!(driver.remove("box").unwrap_err().class(), ErrorClass::InUse);
    for id in ["box3", "box2", "box", "child", "work", "image"] {
        driver.remove(id).unwrap();
    }
    driver.cleanup().unwrap();
}

#[rstest]
#[case("lower-id", Some(""))]
#[case("lower-id", Some("../../etc"))]
#[case("lower-id", Some("nobody"))]
#[case("lower-id", None)]
fn damaged_files_are_told(#[case] file: &str, #[case] text: Option<&str>) {
    let (lab, driver) = lab();
    let path = lab.home().join("work").join(file);
    match text {
        Some(text) => fs::write(path, text).unwrap(),
        None => fs::remove_file(path).unwrap(),
    }
    let error = driver.get("work", "").unwrap_err();
    assert!(
        matches!(&error, Error::Damaged { id, .. } if id == "work"),
        "{error}"
    );
    driver.remove("work").unwrap();
    assert!(lab.home().join("image/root/d/kept").exists());
}
