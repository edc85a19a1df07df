//! Which driver is chosen, over a registry in which every driver is vfs under another name.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rstest::rstest;
use tempfile::TempDir;

use super::vfs;
use crate::graphdriver::{Error, ErrorClass, InitOptions, Registry, requested};

const NAMES: [&str; 5] = ["zfs", "vfs", "overlay2", "btrfs", "unlisted"];

/// `broken` drivers fail to start with these errors.
fn registry(broken: &'static [(&'static str, &'static str)]) -> Registry {
    let mut registry = Registry::new();
    for name in NAMES {
        let start =
            move |home: &Path, init: &InitOptions| match broken.iter().find(|(b, _)| *b == name) {
                None => vfs::init(home, init),
                Some((_, "not-supported")) => Err(Error::NotSupported("no module".to_owned())),
                Some((_, "prerequisites")) => Err(Error::Prerequisites("no tool".to_owned())),
                Some((_, "incompatible")) => Err(Error::IncompatibleFs("on nfs".to_owned())),
                Some((_, why)) => Err(Error::Other((*why).to_owned())),
            };
        registry.register(name, start).unwrap();
    }
    registry
}

fn root(prior: &[&str]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for name in prior {
        fs::create_dir_all(root.path().join(name).join("state")).unwrap();
    }
    root
}

/// The name of the driver that was started: the one whose home was set up.
fn chosen(registry: &Registry, names: &[&str], root: &TempDir) -> Result<String, Error> {
    registry.select(names, root.path(), &InitOptions::default())?;
    let started: Vec<&str> = NAMES
        .into_iter()
        .filter(|name| root.path().join(name).join("dir").exists())
        .collect();
    assert_eq!(started.len(), 1, "one driver is started: {started:?}");
    Ok(started[0].to_owned())
}

#[rstest]
#[case::priority(&[], &[], "overlay2")]
#[case::next_when_not_supported(&[], &[("overlay2", "not-supported")], "btrfs")]
#[case::next_after_all_three_kinds(&[], &[("overlay2", "not-supported"), ("btrfs", "prerequisites"), ("zfs", "incompatible")], "vfs")]
#[case::unlisted_last(&[], &[("overlay2", "not-supported"), ("btrfs", "prerequisites"), ("zfs", "incompatible"), ("vfs", "not-supported")], "unlisted")]
#[case::prior_state_wins(&["zfs"], &[], "zfs")]
#[case::prior_state_of_an_unlisted_one(&["unlisted"], &[], "unlisted")]
#[case::vfs_never_by_prior_state(&["vfs"], &[], "overlay2")]
#[case::vfs_does_not_make_a_conflict(&["vfs", "zfs"], &[], "zfs")]
#[case::state_of_strangers_is_nothing(&["aufs", "windowsfilter"], &[], "overlay2")]
fn without_a_name(
    #[case] prior: &[&str],
    #[case] broken: &'static [(&'static str, &'static str)],
    #[case] expected: &str,
) {
    assert_eq!(
        chosen(&registry(broken), &["", ""], &root(prior)).unwrap(),
        expected
    );
}

#[rstest]
#[case::named(("btrfs", Some("zfs"), "overlay2"), "btrfs")]
#[case::variable(("", Some("zfs"), "overlay2"), "zfs")]
#[case::default(("", None, "zfs"), "zfs")]
#[case::empty_variable(("", Some(""), "zfs"), "zfs")]
#[case::none(("", None, ""), "overlay2")]
fn the_first_name_counts(
    #[case] (named, variable, default): (&str, Option<&str>, &str),
    #[case] expected: &str,
) {
    let names = requested(named, variable, default);
    assert_eq!(
        chosen(&registry(&[]), &names, &root(&[])).unwrap(),
        expected
    );
}

#[test]
fn a_name_overrides_state_and_conflict() {
    let root = root(&["zfs", "overlay2"]);
    assert_eq!(chosen(&registry(&[]), &["vfs"], &root).unwrap(), "vfs");
}

#[rstest]
#[case::named_and_broken(&[], &["zfs"], &[("zfs", "not-supported")], ErrorClass::NotSupported, &["no module"])]
#[case::unknown_name(&[], &["aufs"], &[], ErrorClass::NotSupported, &["aufs"])]
#[case::conflict(&["zfs", "btrfs"], &[], &[], ErrorClass::Conflict, &["btrfs, zfs"])]
#[case::prior_and_broken(&["zfs"], &[], &[("zfs", "not-supported")], ErrorClass::NotSupported, &["zfs", "no module"])]
#[case::prior_and_failing(&["zfs"], &[], &[("zfs", "disk on fire")], ErrorClass::Other, &["zfs", "disk on fire"])]
#[case::other_errors_end_the_search(&[], &[], &[("overlay2", "disk on fire")], ErrorClass::Other, &["disk on fire"])]
fn refused(
    #[case] prior: &[&str],
    #[case] names: &[&str],
    #[case] broken: &'static [(&'static str, &'static str)],
    #[case] class: ErrorClass,
    #[case] says: &[&str],
) {
    let root = root(prior);
    let error = chosen(&registry(broken), names, &root).unwrap_err();
    assert_eq!(error.class(), class, "{error}");
    assert!(
        says.iter().all(|text| error.to_string().contains(text)),
        "{error}"
    );
    // Nothing was started to find that out.
    assert!(
        NAMES
            .iter()
            .all(|name| !root.path().join(name).join("dir").exists())
    );
}

#[test]
fn nothing_left() {
    let registry = Registry::new();
    let error = registry
        .select(&[], root(&[]).path(), &InitOptions::default())
        .map(drop);
    assert!(matches!(error, Err(Error::NoDriver)));
}

#[test]
fn an_empty_directory_is_no_state_and_an_unreadable_one_is() {
    let root = root(&[]);
    fs::create_dir(root.path().join("zfs")).unwrap();
    assert_eq!(registry(&[]).prior_drivers(root.path()), [""; 0]);
    fs::write(root.path().join("btrfs"), "not even a directory").unwrap();
    assert_eq!(registry(&[]).prior_drivers(root.path()), ["btrfs"]);
    fs::create_dir(root.path().join("overlay2")).unwrap();
    fs::set_permissions(
        root.path().join("overlay2"),
        fs::Permissions::from_mode(0o0),
    )
    .unwrap();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = root.path().to_owned();
    let found = crate::sys::act_as(1234, 1234, move || registry(&[]).prior_drivers(&path)).unwrap();
    assert_eq!(found, ["btrfs", "overlay2"]);
}

#[test]
fn a_second_registration_is_refused_and_the_first_stays() {
    let mut registry = registry(&[]);
    let error = registry
        .register("zfs", |_: &Path, _: &InitOptions| Err(Error::NoDriver))
        .unwrap_err();
    assert!(matches!(error, Error::AlreadyRegistered(name) if name == "zfs"));
    assert_eq!(chosen(&registry, &["zfs"], &root(&[])).unwrap(), "zfs");
}

#[test]
fn the_priority_list_can_be_another() {
    let mut registry = Registry::with_priority(["btrfs", "zfs"]);
    for name in NAMES {
        registry.register(name, vfs::init).unwrap();
    }
    assert_eq!(chosen(&registry, &[], &root(&[])).unwrap(), "btrfs");
}
