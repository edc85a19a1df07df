//! zfs and its variants.

use super::{Kind, Pool, Recipe};

pub(super) const ZFS: Kind = Kind {
    name: "zfs",
    about: "a zfs: a pool in a file",
    recipe: Recipe::Pool(Pool {
        properties: &["compression=off"],
    }),
};

pub(super) const COMPRESS: Kind = Kind {
    name: "zfs+compress",
    about: "a zfs that compresses files with lz4",
    recipe: Recipe::Pool(Pool {
        properties: &["compression=lz4"],
    }),
};
