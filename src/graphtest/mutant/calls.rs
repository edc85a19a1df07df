//! Bugs in single calls: create, remove, exists, status, metadata.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::graphdriver::{Change, CreateOpts, DiffStream, Error, Result};

use super::base::{Base, Bug, Create, other};
use super::files::remove_any;

/// Gives a bug without state a name and a constructor.
macro_rules! stateless {
    ($($(#[$doc:meta])* $name:ident;)*) => { $(
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $name;
        impl $name {
            pub(super) fn make() -> Box<dyn Bug> {
                Box::new(Self)
            }
        }
    )* };
}
pub(super) use stateless;

/// As [`stateless`], for bugs with state that starts empty.
macro_rules! stateful {
    ($($name:ident),*) => { $(
        impl $name {
            pub(super) fn make() -> Box<dyn Bug> {
                Box::<Self>::default()
            }
        }
    )* };
}
pub(super) use stateful;

stateless! {
    /// The process' umask shapes the mode of a new root.
    RootModeUmask;
    /// A new root has mode 0700.
    RootMode0700;
    /// Creating an id that exists makes it anew, empty.
    DupCreateWipes;
    /// Creating an id that exists succeeds and changes nothing.
    DupCreateAccepted;
    /// Cleaning up after a failed create removes a layer that was there before.
    BadParentCleanupWipes;
    /// A create that fails leaves a layer.
    CreateLeavesPieces;
    /// A create without its parent makes a layer without parent.
    MissingParentIgnored;
    /// A chain too long is cut: the layer is made on a shorter one.
    TooDeepAccepted;
    /// Unknown storage options are passed over.
    StorageOptIgnored;
    /// An id with slashes is taken by its last component.
    IdBasename;
    /// Ids are cut to 60 bytes.
    IdCut;
    /// Ids are made lower case.
    IdLowercased;
    /// A child of a child is made on its grandparent.
    SkipsParent;
    /// A layer made on an empty one shows nothing.
    EmptyLayerBreaksChain;
    /// Every layer exists.
    ExistsAlways;
    /// Asking for a layer makes it.
    ExistsCreates;
    /// A removed layer leaves its data under another name.
    RemoveKeepsStorage;
    /// Removing the empty id removes everything.
    RemoveEmptyIdWipes;
    /// Removing what does not exist is an error.
    RemoveMissingFails;
    /// Removing a layer removes its siblings.
    RemoveTakesSiblings;
    /// Removing a layer removes its children.
    RemoveTakesChildren;
    /// A key of the status stands twice.
    StatusKeyTwice;
    /// The last key of the metadata is missing.
    MetadataPathsWrong;
    /// A layer without parent has a LowerDir.
    MetadataLowerForBase;
    /// Metadata of a layer that does not exist is that of another.
    MetadataOfMissing;
}

fn umask() -> Result<u32> {
    let status = fs::read_to_string("/proc/thread-self/status").map_err(other)?;
    let text = status
        .lines()
        .find_map(|l| l.strip_prefix("Umask:"))
        .ok_or_else(|| other("no umask in /proc"))?;
    u32::from_str_radix(text.trim(), 8).map_err(other)
}

fn set_root_mode(b: &Base, c: &Create<'_>, mode: u32) -> Result<()> {
    if c.parent.is_some() {
        return Ok(());
    }
    b.with_root(c.id, |root| {
        fs::set_permissions(root, Permissions::from_mode(mode))
    })
}

impl Bug for RootModeUmask {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        b.create(&c)?;
        set_root_mode(b, &c, 0o755 & !umask()?)
    }
}

impl Bug for RootMode0700 {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        b.create(&c)?;
        set_root_mode(b, &c, 0o700)
    }
}

impl Bug for DupCreateWipes {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        match b.create(&c) {
            Err(Error::LayerExists(_)) => {
                b.remove(c.id)?;
                b.create(&c)
            }
            done => done,
        }
    }
}

impl Bug for DupCreateAccepted {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        match b.create(&c) {
            Err(Error::LayerExists(_)) => Ok(()),
            done => done,
        }
    }
}

impl Bug for BadParentCleanupWipes {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        let failed = b.create(&c);
        if failed.is_err() && b.inner.exists(c.id) && c.parent.is_some_and(|p| !b.inner.exists(p)) {
            b.remove(c.id)?;
        }
        failed
    }
}

impl Bug for CreateLeavesPieces {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        let failed = b.create(&c);
        if failed.is_err() && !b.inner.exists(c.id) {
            // An id that is not valid leaves nothing here either.
            let _ = b.create(&Create {
                parent: None,
                opts: &CreateOpts::default(),
                ..c
            });
        }
        failed
    }
}

impl Bug for MissingParentIgnored {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        match b.create(&c) {
            Err(Error::UnknownLayer(_)) => b.create(&Create { parent: None, ..c }),
            done => done,
        }
    }
}

impl Bug for TooDeepAccepted {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        match b.create(&c) {
            Err(Error::TooDeep { .. }) => {
                let shorter = c.parent.and_then(|p| b.parent_of(p));
                b.create(&Create {
                    parent: shorter.as_deref(),
                    ..c
                })
            }
            done => done,
        }
    }
}

impl Bug for StorageOptIgnored {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        let opts = CreateOpts {
            mount_label: c.opts.mount_label.clone(),
            ..CreateOpts::default()
        };
        b.create(&Create { opts: &opts, ..c })
    }
}

/// A bug that changes ids on their way in.
macro_rules! renames_ids {
    ($name:ident, |$id:ident| $to:expr) => {
        impl $name {
            fn id<'a>($id: &'a str) -> std::borrow::Cow<'a, str> {
                $to.into()
            }
        }
        impl Bug for $name {
            fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
                let (id, parent) = (Self::id(c.id), c.parent.map(Self::id));
                match b.create(&Create {
                    id: &id,
                    parent: parent.as_deref(),
                    ..c
                }) {
                    Err(Error::LayerExists(_)) if id != c.id => Ok(()),
                    done => done,
                }
            }
            fn remove(&self, b: &Base, id: &str) -> Result<()> {
                b.remove(&Self::id(id))
            }
            fn get(&self, b: &Base, id: &str, label: &str) -> Result<PathBuf> {
                b.inner.get(&Self::id(id), label)
            }
            fn put(&self, b: &Base, id: &str) -> Result<()> {
                b.inner.put(&Self::id(id))
            }
            fn exists(&self, b: &Base, id: &str) -> bool {
                b.inner.exists(&Self::id(id))
            }
            fn diff(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<DiffStream> {
                b.inner.diff(&Self::id(id), parent.map(Self::id).as_deref())
            }
            fn changes(&self, b: &Base, id: &str, parent: Option<&str>) -> Result<Vec<Change>> {
                b.inner
                    .changes(&Self::id(id), parent.map(Self::id).as_deref())
            }
        }
    };
}

renames_ids!(IdBasename, |id| id
    .rsplit('/')
    .find(|c| !matches!(*c, "" | "." | ".."))
    .unwrap_or(id));
renames_ids!(IdCut, |id| id.get(..60).unwrap_or(id));
renames_ids!(IdLowercased, |id| id.to_lowercase());

impl Bug for SkipsParent {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        let grand = c.parent.and_then(|p| b.parent_of(p));
        b.create(&Create {
            parent: grand.as_deref().or(c.parent),
            ..c
        })
    }
}

impl Bug for EmptyLayerBreaksChain {
    fn create(&self, b: &Base, c: Create<'_>) -> Result<()> {
        let empty = |p: &str| match b.parent_of(p) {
            Some(g) => Ok::<_, Error>(b.inner.changes(p, Some(&g))?.is_empty()),
            None => Ok(false),
        };
        b.create(&c)?;
        if c.parent.map(empty).transpose()? == Some(true) {
            b.with_root(c.id, |root| {
                fs::read_dir(root)?.try_for_each(|e| remove_any(&e?.path()))
            })?;
        }
        Ok(())
    }
}

impl Bug for ExistsAlways {
    fn exists(&self, _: &Base, _: &str) -> bool {
        true
    }
}

impl Bug for ExistsCreates {
    fn exists(&self, b: &Base, id: &str) -> bool {
        let there = b.inner.exists(id);
        if !there {
            // A failure leaves nothing, which is right.
            let _ = b.inner.create(id, None, &CreateOpts::default());
        }
        there
    }
}

impl Bug for RemoveKeepsStorage {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        let there = b.inner.exists(id);
        b.remove(id)?;
        if there {
            fs::create_dir_all(b.home.join(format!("{id}-removing"))).map_err(other)?;
        }
        Ok(())
    }
}

impl Bug for RemoveEmptyIdWipes {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        if !id.is_empty() {
            return b.remove(id);
        }
        b.inner.cleanup()?;
        let wipe = || fs::read_dir(&b.home)?.try_for_each(|e| remove_any(&e?.path()));
        wipe().map_err(other)
    }
}

impl Bug for RemoveMissingFails {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        if b.inner.exists(id) {
            b.remove(id)
        } else {
            Err(Error::UnknownLayer(id.to_string()))
        }
    }
}

impl Bug for RemoveTakesSiblings {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        let siblings = b
            .parent_of(id)
            .map(|p| b.children_of(&p))
            .unwrap_or_default();
        b.remove(id)?;
        siblings
            .iter()
            .filter(|s| *s != id)
            .try_for_each(|s| b.remove(s))
    }
}

impl Bug for RemoveTakesChildren {
    fn remove(&self, b: &Base, id: &str) -> Result<()> {
        for child in b.children_of(id) {
            b.remove(&child)?;
        }
        b.remove(id)
    }
}

impl Bug for StatusKeyTwice {
    fn status(&self, b: &Base) -> Vec<(String, String)> {
        let mut status = b.inner.status();
        let key = status
            .first()
            .map_or_else(|| "Root Dir".to_string(), |(k, _)| k.clone());
        status.push((key.clone(), "a".into()));
        status.push((key, "b".into()));
        status
    }
}

/// The keys of the status come in another order each time.
#[derive(Debug, Default)]
pub(super) struct StatusUnstable(AtomicUsize);

impl Bug for StatusUnstable {
    fn status(&self, b: &Base) -> Vec<(String, String)> {
        let mut status = b.inner.status();
        status.push((
            format!("Counter {}", self.0.fetch_add(1, Ordering::SeqCst)),
            "1".into(),
        ));
        status
    }
}

impl Bug for MetadataPathsWrong {
    fn metadata(&self, b: &Base, id: &str) -> Result<Option<BTreeMap<String, String>>> {
        let mut metadata = b.inner.metadata(id)?.unwrap_or_default();
        metadata.insert(
            "UpperDir".into(),
            b.home.join("gone").join(id).display().to_string(),
        );
        Ok(Some(metadata))
    }
}

impl Bug for MetadataLowerForBase {
    fn metadata(&self, b: &Base, id: &str) -> Result<Option<BTreeMap<String, String>>> {
        let mut metadata = b.inner.metadata(id)?.unwrap_or_default();
        metadata
            .entry("LowerDir".into())
            .or_insert_with(|| b.home.display().to_string());
        Ok(Some(metadata))
    }
}

impl Bug for MetadataOfMissing {
    fn metadata(&self, b: &Base, id: &str) -> Result<Option<BTreeMap<String, String>>> {
        match b.inner.metadata(id) {
            Err(Error::UnknownLayer(_)) => Ok(None),
            done => done,
        }
    }
}

stateful!(StatusUnstable);
