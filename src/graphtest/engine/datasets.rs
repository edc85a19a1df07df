//! Steps on datasets of zfs: what somebody else does with those of layers, and the guard of all of them.

use std::io;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use super::call::{Done, Fail};
use super::world::World;
use crate::graphtest::limits;
use crate::graphtest::step::{DatasetStep, Step};
use crate::sys::mount::{MountFlags, mount, mount_table, umount_detach};
use crate::sys::ns::enter_private_mount_ns;

/// The key of a layer's metadata, and of a driver's status, that names a dataset.
const OF_LAYER: &str = "Dataset";
const OF_DRIVER: &str = "Parent Dataset";

fn zfs(words: &[&str]) -> Done<String> {
    limits::zfs(words).map_err(|e| Fail::new(format!("zfs {}: {e}", words.join(" "))))
}

/// A mount in a namespace of its own, which a thread keeps.
struct Elsewhere {
    end: Sender<()>,
    thread: JoinHandle<()>,
}

impl Elsewhere {
    fn mount(dataset: &str) -> io::Result<Self> {
        let (end, ended) = channel();
        let (tell, told) = channel();
        let at = tempfile::tempdir()?;
        let dataset = dataset.to_string();
        let thread = std::thread::spawn(move || {
            let _ = tell.send(mount_alone(&dataset, at.path()));
            // Until somebody says so, or is gone.
            let _ = ended.recv();
            let _ = umount_detach(at.path());
        });
        let gone = |_| io::Error::other("the thread is gone");
        told.recv().map_err(gone)??;
        Ok(Self { end, thread })
    }

    fn let_go(self) {
        drop(self.end);
        let _ = self.thread.join();
    }
}

/// In a mount namespace of the thread's own, without any other mount of zfs, which it would keep, too.
fn mount_alone(dataset: &str, at: &Path) -> io::Result<()> {
    enter_private_mount_ns()?;
    for other in mount_table()?.iter().rev().filter(|m| m.fs_type == "zfs") {
        umount_detach(&other.path)?;
    }
    mount(Path::new(dataset), at, "zfs", MountFlags::empty(), b"")
}

impl World<'_> {
    pub fn dataset(&mut self, s: &DatasetStep) -> Done {
        let name = self.dataset_of(&s.id)?;
        if let Some(snapshot) = &s.snapshot {
            zfs(&["snapshot", &format!("{name}@{snapshot}")])?;
        }
        if let Some(child) = &s.child {
            zfs(&[
                "create",
                "-o",
                "mountpoint=legacy",
                &format!("{name}/{child}"),
            ])?;
        }
        if s.destroyed {
            zfs(&["destroy", "-r", &name])?;
            self.layers.remove(&s.id);
        }
        if s.body.is_empty() {
            return Ok(());
        }
        let elsewhere = Elsewhere::mount(&name)
            .map_err(|e| Fail::new(format!("{name} cannot be mounted elsewhere: {e}")))?;
        let done = self.run(&s.body);
        elsewhere.let_go();
        done
    }

    /// The dataset that a layer is, by what the driver tells of it.
    fn dataset_of(&self, id: &str) -> Done<String> {
        let told = self.driver()?.metadata(id);
        let told = told.map_err(|e| Fail::new(format!("metadata {id}: {e}")))?;
        told.and_then(|all| all.get(OF_LAYER).cloned())
            .ok_or_else(|| Fail::new(format!("expected `{OF_LAYER}` in the metadata of {id}")))
    }

    /// What there is where layers are must be the same after the steps.
    pub fn guard_datasets(&mut self, body: &[Step]) -> Done {
        let status = self.driver()?.status();
        let parent = status.into_iter().find(|(key, _)| key == OF_DRIVER);
        let (_, parent) =
            parent.ok_or_else(|| Fail::new(format!("expected `{OF_DRIVER}` in the status")))?;
        let list = || {
            zfs(&[
                "list",
                "-H",
                "-r",
                "-t",
                "filesystem,snapshot",
                "-o",
                "name",
                &parent,
            ])
        };
        let before = list()?;
        self.run(body)?;
        let after = list()?;
        if before == after {
            return Ok(());
        }
        let only = |these: &str, those: &str, word: &str| -> Vec<String> {
            let missing = these.lines().filter(|l| !those.lines().any(|o| o == *l));
            missing.map(|l| format!("{word}: {l}")).collect()
        };
        let mut lines = only(&before, &after, "gone");
        lines.extend(only(&after, &before, "new"));
        Err(Fail::lines("the datasets where layers are differ:", lines))
    }
}
