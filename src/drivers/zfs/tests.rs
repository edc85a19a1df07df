//! What holds of the driver on every kernel; what needs zfs is for the scenarios, in a guest.

use crate::drivers::registry;
use crate::graphdriver::{Error, ErrorClass, InitOptions};

fn start(options: &[&str]) -> (tempfile::TempDir, Error) {
    let dir = tempfile::tempdir().unwrap();
    let init = InitOptions {
        options: options.iter().map(ToString::to_string).collect(),
        ..InitOptions::default()
    };
    let e = registry()
        .get_driver("zfs", dir.path(), &init)
        .expect_err("no temporary directory of a test is on zfs");
    (dir, e)
}

#[test]
fn where_it_cannot_run_it_says_so_and_makes_nothing() {
    let (dir, e) = start(&[]);
    assert!(e.is_driver_not_supported(), "{e}");
    assert!(e.to_string().contains("zfs"), "{e}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn options_are_checked_first() {
    for option in ["zfs.fsnam=p/x", "size=1G", "zfs.fsname"] {
        let (_, e) = start(&[option]);
        assert_eq!(e.class(), ErrorClass::InvalidOption, "{option}: {e}");
    }
}
