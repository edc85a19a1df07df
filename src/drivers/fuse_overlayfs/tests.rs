//! What is this driver's own: processes, and what becomes of mounts without one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::tests::{Lab, edit, plain};
use super::*;
use crate::sys::mount::{is_mount_point, mount_table};

/// `base` and `top`, which lies on it; nothing where the driver does not run.
fn lab() -> Option<(Lab, Arc<dyn Driver>)> {
    let lab = Lab::new(NAME, "/dev/shm");
    match init(&lab.home(), &InitOptions::default()) {
        Ok(driver) => {
            driver.create("base", None, &plain()).unwrap();
            edit(&*driver, "base", "[{file: f, text: f}]");
            driver.create("top", Some("base"), &plain()).unwrap();
            Some((lab, driver))
        }
        Err(e) => {
            assert!(e.is_driver_not_supported(), "{e}");
            eprintln!("ignored: {e}");
            None
        }
    }
}

/// The processes of the program that have a file of this directory open. Zombies have none; other processes may: what another test forks
/// holds all that this one has open.
fn serving(home: &Path) -> Vec<i32> {
    programs(|pid, _| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd"));
        let mut open = fds.into_iter().flatten().flatten();
        open.any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(home)))
    })
}

/// The zombies of the program that nobody reaps; the other tests of this process have some for a moment.
fn zombies() -> usize {
    let mine = format!("PPid:\t{}\n", std::process::id());
    let now = || programs(|_, status| status.contains(&mine) && status.contains("State:\tZ"));
    let mut left = now();
    for _ in 0..500 {
        if left.is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
        let still = now();
        left.retain(|pid| still.contains(pid));
    }
    left.len()
}

/// The processes of the program for which this is so, of the number and the status that the kernel tells.
fn programs(is_so: impl Fn(i32, &str) -> bool) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|p| p.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| {
            status.starts_with("Name:\tfuse-overlayfs\n") && is_so(*pid, &status)
        })
    })
    .collect()
}

fn home(lab: &Lab) -> PathBuf {
    lab.home().canonicalize().unwrap()
}

#[test]
fn no_process_is_left_after_a_put() {
    let Some((lab, driver)) = lab() else { return };
    let home = home(&lab);
    assert!(serving(&home).is_empty());
    let path = driver.get("top", "").unwrap();
    let mount = mount_table().unwrap().into_iter().find(|m| m.path == path);
    assert_eq!(mount.unwrap().fs_type, "fuse.fuse-overlayfs");
    assert_eq!(serving(&home).len(), 1);
    driver.put("top").unwrap();
    assert!(serving(&home).is_empty());
    assert_eq!(zombies(), 0);
    assert!(!is_mount_point(&path).unwrap());
}

#[test]
fn a_mount_whose_process_was_killed_is_made_anew() {
    let Some((lab, driver)) = lab() else { return };
    let home = home(&lab);
    let path = driver.get("top", "").unwrap();
    let pid = nix::unistd::Pid::from_raw(serving(&home)[0]);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    while path.join("f").exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(is_mount_point(&path).unwrap(), "it is there, and dead");
    assert_eq!(driver.get("top", "").unwrap(), path);
    assert_eq!(std::fs::read(path.join("f")).unwrap(), b"f");
    driver.put("top").unwrap();
    assert!(path.join("f").exists(), "the first get still has it");
    driver.put("top").unwrap();
    assert_eq!((serving(&home), zombies()), (Vec::new(), 0));
}

#[test]
fn a_layer_whose_process_was_killed_can_be_removed() {
    let Some((lab, driver)) = lab() else { return };
    let home = home(&lab);
    driver.get("top", "").unwrap();
    let pid = nix::unistd::Pid::from_raw(serving(&home)[0]);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    driver.remove("top").unwrap();
    driver.remove("base").unwrap();
    assert_eq!((serving(&home), zombies()), (Vec::new(), 0));
}

#[test]
fn a_process_that_does_not_end_is_killed() {
    let Some((lab, driver)) = lab() else { return };
    let home = home(&lab);
    driver.get("top", "").unwrap();
    let pid = nix::unistd::Pid::from_raw(serving(&home)[0]);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    driver.put("top").unwrap();
    assert_eq!((serving(&home), zombies()), (Vec::new(), 0));
}

#[test]
fn another_driver_ends_what_one_before_it_left_mounted() {
    let Some((lab, driver)) = lab() else { return };
    let home = home(&lab);
    let path = driver.get("top", "").unwrap();
    // A crash runs no destructor.
    std::mem::forget(driver);
    let after = lab.start();
    assert_eq!(serving(&home).len(), 1);
    after.cleanup().unwrap();
    assert!(!is_mount_point(&path).unwrap());
    assert_eq!((serving(&home), zombies()), (Vec::new(), 0));
}

#[test]
fn what_the_program_says_is_in_the_error() {
    let Some((lab, driver)) = lab() else { return };
    driver.create("more", Some("top"), &plain()).unwrap();
    // A file in the place of a directory: the driver's own record is whole, so the program is the first to notice.
    let diff = lab.home().join("base/diff");
    std::fs::remove_dir_all(&diff).unwrap();
    std::fs::write(&diff, "").unwrap();
    let error = driver.get("more", "").unwrap_err().to_string();
    assert!(error.contains("does not serve"), "{error}");
    assert!(error.contains("cannot"), "{error}");
    assert!(!is_mount_point(&lab.home().join("more/merged")).unwrap());
    assert_eq!((serving(&home(&lab)), zombies()), (Vec::new(), 0));
}

#[test]
fn it_takes_no_options() {
    let lab = Lab::new(NAME, "/dev/shm");
    let options = InitOptions::new(["fuse-overlayfs.mount_program=/bin/false"]);
    let error = init(&lab.home(), &options).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { .. }), "{error}");
}
