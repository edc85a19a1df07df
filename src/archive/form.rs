//! How a driver keeps deletions in a layer's own directory.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Statx};
use rustix::io::Errno;

use super::Error;
use super::walk::{errno, file_type, stat_if_there};
use crate::sys::xattr;
use crate::tree::TreePath;

/// How deletions are kept on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// Not at all: a whole tree, in which everything that is not there is gone.
    #[default]
    Plain,
    /// overlayfs: character devices 0/0, and `trusted.overlay.*` attributes.
    Overlay,
    /// overlayfs mounted with `userxattr`: `user.overlay.*` attributes.
    OverlayUser,
    /// AUFS: files named `.wh.NAME`, and `.wh..wh..opq` in an opaque directory.
    Aufs,
}

/// What one directory says about one name.
#[allow(clippy::large_enum_variant)] // One lives at a time, on the stack.
pub(super) enum Seen {
    Entry(Statx),
    Whiteout,
    Nothing,
}

/// Prefix of the names that stand for deletions.
pub(super) const WHITEOUT: &[u8] = b".wh.";
/// Prefix of AUFS' own names.
const AUFS_META: &[u8] = b".wh..wh.";
const AUFS_OPAQUE: &[u8] = b".wh..wh..opq";

impl Form {
    /// The name that a name in a directory speaks of, and whether it says that it is deleted; `None` for the driver's own.
    pub(super) fn listed(self, name: &[u8]) -> Option<(&[u8], bool)> {
        if self != Self::Aufs || !name.starts_with(WHITEOUT) {
            return Some((name, false));
        }
        (!name.starts_with(AUFS_META)).then(|| (&name[WHITEOUT.len()..], true))
    }

    /// Looks a name up. `marked`: the directory may hold whiteouts that are marked by an attribute.
    pub(super) fn look(
        self,
        dir: BorrowedFd<'_>,
        name: impl rustix::path::Arg + Copy,
        marked: bool,
    ) -> rustix::io::Result<Seen> {
        let st = stat_if_there(dir, name)?;
        match (self, st) {
            (Self::Plain, Some(st)) => Ok(Seen::Entry(st)),
            (Self::Overlay | Self::OverlayUser, Some(st)) => {
                let device = (st.stx_rdev_major, st.stx_rdev_minor);
                let by_device = file_type(&st) == FileType::CharacterDevice && device == (0, 0);
                let by_mark = marked
                    && file_type(&st) == FileType::RegularFile
                    && st.stx_size == 0
                    && self.own_xattr(dir, name, WHITEOUT_MARK)?.is_some();
                Ok(if by_device || by_mark {
                    Seen::Whiteout
                } else {
                    Seen::Entry(st)
                })
            }
            (Self::Aufs, Some(st)) => Ok(Seen::Entry(st)),
            (Self::Aufs, None) => {
                let hidden = name.into_with_c_str(|name| {
                    let whiteout = [WHITEOUT, name.to_bytes()].concat();
                    // A name too long to have a whiteout has none.
                    match stat_if_there(dir, &whiteout[..]) {
                        Err(Errno::NAMETOOLONG) => Ok(false),
                        st => st.map(|st| st.is_some()),
                    }
                })?;
                Ok(if hidden {
                    Seen::Whiteout
                } else {
                    Seen::Nothing
                })
            }
            (_, None) => Ok(Seen::Nothing),
        }
    }

    /// Whether the directory hides what lies below it.
    pub(super) fn is_opaque(self, dir: BorrowedFd<'_>) -> rustix::io::Result<bool> {
        match self {
            Self::Plain => Ok(true),
            Self::Aufs => Ok(stat_if_there(dir, AUFS_OPAQUE)?.is_some()),
            Self::Overlay | Self::OverlayUser => {
                Ok(self.own_xattr(dir, c"", OPAQUE)?.as_deref() == Some(b"y"))
            }
        }
    }

    /// Whether the directory may hold whiteouts marked by an attribute (kernel 6.7: `opaque=x`).
    pub(super) fn has_marked_whiteouts(self, dir: BorrowedFd<'_>) -> rustix::io::Result<bool> {
        match self {
            Self::Plain | Self::Aufs => Ok(false),
            Self::Overlay | Self::OverlayUser => {
                Ok(self.own_xattr(dir, c"", OPAQUE)?.as_deref() == Some(b"x"))
            }
        }
    }

    /// Whether a file has only its attributes here and its content in another layer.
    pub(super) fn is_metadata_only(
        self,
        dir: BorrowedFd<'_>,
        name: impl rustix::path::Arg,
        st: &Statx,
    ) -> rustix::io::Result<bool> {
        match self {
            Self::Plain | Self::Aufs => Ok(false),
            Self::Overlay | Self::OverlayUser => Ok(file_type(st) == FileType::RegularFile
                && self.own_xattr(dir, name, METACOPY)?.is_some()),
        }
    }

    /// Fails when the directory shows the content of another one.
    pub(super) fn refuse_redirected(
        self,
        dir: BorrowedFd<'_>,
        path: &TreePath,
    ) -> Result<(), Error> {
        if matches!(self, Self::Plain | Self::Aufs) {
            return Ok(());
        }
        match self.own_xattr(dir, c"", REDIRECT) {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(Error::Refused {
                name: path.clone(),
                why: "it was renamed in place (redirect_dir)".into(),
            }),
            Err(e) => Err(Error::io("read attributes of", path, e)),
        }
    }

    fn own_xattr(
        self,
        dir: BorrowedFd<'_>,
        name: impl rustix::path::Arg,
        own: Own,
    ) -> rustix::io::Result<Option<Vec<u8>>> {
        let key = match self {
            Self::OverlayUser => own.user,
            _ => own.trusted,
        };
        name.into_with_c_str(|name| Ok(xattr::get(dir, name, key)))?
            .or_else(|e| match errno(&e) {
                Errno::OPNOTSUPP => Ok(None),
                e => Err(e),
            })
    }
}

/// One of overlayfs' attributes, by mount option.
#[derive(Clone, Copy)]
struct Own {
    trusted: &'static CStr,
    user: &'static CStr,
}

macro_rules! own {
    ($konst:ident, $trusted:literal, $user:literal) => {
        const $konst: Own = Own {
            trusted: $trusted,
            user: $user,
        };
    };
}

own!(OPAQUE, c"trusted.overlay.opaque", c"user.overlay.opaque");
own!(
    WHITEOUT_MARK,
    c"trusted.overlay.whiteout",
    c"user.overlay.whiteout"
);
own!(
    METACOPY,
    c"trusted.overlay.metacopy",
    c"user.overlay.metacopy"
);
own!(
    REDIRECT,
    c"trusted.overlay.redirect",
    c"user.overlay.redirect"
);
