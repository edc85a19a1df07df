//! What a driver may or may not claim.

use std::collections::BTreeSet;

use crate::named::named;

named! {
    /// Something a driver may or may not claim; scenarios name what they need. Never asked for by a driver's name.
    Capability, "capability" {
        /// Diff and DiffSize against the direct parent do not compare whole trees.
        NativeDiff = "native-diff";
        /// A layer's `size` option is enforced on `create_read_write`.
        Quota = "quota";
        /// What a layer has of its parent counts towards its `size` (otherwise only what is its own).
        QuotaWithParent = "quota-with-parent";
        /// statfs(2) in a layer that has a `size` tells that size and what is left of it (otherwise the filesystem's).
        QuotaInStatfs = "quota-in-statfs";
        /// The first change of a file's content in a child makes a whole copy of it there (otherwise blocks stay shared).
        CopiesUp = "copies-up";
        /// Uid and gid maps shift owners in diff and apply.
        IdMaps = "id-maps";
        /// `get` mounts a filesystem, which `put` takes away (for layers that have a parent).
        Mounts = "mounts";
        /// A layer that has children is shown read-only.
        FrozenParent = "frozen-parent";
        /// A layer can be removed while it has children, which keep their content.
        IndependentChildren = "independent-children";
        /// A layer that has children cannot be removed.
        RefusesParentRemoval = "refuses-parent-removal";
        /// rename(2) of a directory that comes from the parent works (otherwise it fails with EXDEV).
        DirRename = "dir-rename";
        /// Writing to one of two hard links from the parent changes both names (otherwise they may split).
        HardlinkCopyUp = "hardlink-copy-up";
        /// A file keeps `st_dev` and `st_ino` when it is first written in a child.
        StableInode = "stable-inode";
        /// A directory keeps its time when something of the parent's in it is changed in place.
        DirTimes = "dir-times";
        /// Unix sockets in a parent are seen in its children.
        Sockets = "sockets";
        /// All that the driver keeps lies in its home: a copy of the home is one of every layer.
        HomeHoldsAll = "home-holds-all";
        /// Diff gives back byte for byte the archive that was applied (moby's `ReproducesExactDiffs`).
        ExactDiffs = "exact-diffs";
        /// Files of a layer's diff can be read at random (moby's `DiffGetterDriver`).
        DiffGetter = "diff-getter";
        /// It is a Docker graph-driver plugin that can be called over its socket; no claim of a person's.
        Plugin = "plugin";
    }
}

/// What one driver claims.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// The claims.
    pub claims: BTreeSet<Capability>,
    /// The most layers a chain may have (the layer itself included); `None`: no limit of the driver's own.
    pub max_depth: Option<u32>,
}

impl Capabilities {
    /// A set of claims without a depth limit.
    pub fn new(claims: impl IntoIterator<Item = Capability>) -> Self {
        Self {
            claims: claims.into_iter().collect(),
            max_depth: None,
        }
    }

    /// The same with a depth limit.
    pub fn with_max_depth(mut self, layers: u32) -> Self {
        self.max_depth = Some(layers);
        self
    }

    /// Whether it is claimed.
    pub fn has(&self, c: Capability) -> bool {
        self.claims.contains(&c)
    }
}
