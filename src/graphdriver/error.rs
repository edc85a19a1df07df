//! What a driver can answer instead of a result.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::named::named;

/// A driver's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a driver or of driver selection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The driver cannot run here at all (moby's `ErrNotSupported`).
    #[error("driver not supported: {0}")]
    NotSupported(String),
    /// Something it needs is missing (moby's `ErrPrerequisites`).
    #[error("prerequisites for driver not satisfied (wrong filesystem?): {0}")]
    Prerequisites(String),
    /// The filesystem below is one it cannot live on (moby's `ErrIncompatibleFS`).
    #[error("backing file system is unsupported for this graph driver: {0}")]
    IncompatibleFs(String),
    /// State of several drivers was found; one must be named.
    #[error("{root} contains state of several graph drivers: {}; name one, or remove what is not needed", drivers.join(", "))]
    SeveralPriorDrivers {
        /// The storage root.
        root: PathBuf,
        /// The drivers, sorted.
        drivers: Vec<String>,
    },
    /// No registered driver can run here.
    #[error("no supported storage backend found")]
    NoDriver,
    /// The name is registered already.
    #[error("graph driver {0} is already registered")]
    AlreadyRegistered(String),
    /// No such layer.
    #[error("layer {0} does not exist")]
    UnknownLayer(String),
    /// The id is taken.
    #[error("layer {0} exists already")]
    LayerExists(String),
    /// The id cannot be one.
    #[error("layer id {id:?} is not valid: {why}")]
    InvalidId {
        /// The id.
        id: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An option that the driver does not know or cannot take.
    #[error("option {key:?}: {why}")]
    InvalidOption {
        /// The key as given.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// A limit on size was asked for where none can be kept.
    #[error("the size option cannot be enforced here: {0}")]
    QuotaNotSupported(String),
    /// What the driver keeps its layers in has no room left.
    #[error("no room left: {0}")]
    NoSpace(String),
    /// The chain would be longer than the driver can mount.
    #[error("layer {id} would be layer {depth} of its chain; at most {limit} can be mounted")]
    TooDeep {
        /// The layer refused.
        id: String,
        /// How many layers its chain would have.
        depth: u32,
        /// How many it may have.
        limit: u32,
    },
    /// The layer is in use by something that forbids the call.
    #[error("layer {id} is in use: {why}")]
    InUse {
        /// The layer.
        id: String,
        /// By what.
        why: String,
    },
    /// What the driver keeps on disk is damaged.
    #[error("layer {id} is damaged: {why}")]
    Damaged {
        /// The layer.
        id: String,
        /// What was found.
        why: String,
    },
    /// The archive cannot be applied or made.
    #[error(transparent)]
    Archive(#[from] crate::archive::Error),
    /// A system call failed.
    #[error("{op} {}: {source}", path.display())]
    Io {
        /// What was being done.
        op: &'static str,
        /// On which path.
        path: PathBuf,
        /// The errno.
        source: io::Error,
    },
    /// A driver in another process says that the call failed, or did not say anything that can be understood.
    #[error("{call}: {text}")]
    Remote {
        /// The call, such as `GraphDriver.Create`.
        call: String,
        /// What it says, or what came instead.
        text: String,
        /// The class of the error, where the other side says it.
        class: Option<ErrorClass>,
    },
    /// Anything else a driver wants to say.
    #[error("{0}")]
    Other(String),
}

named! {
    /// The classes of error that scenarios name after `fails:`.
    ErrorClass, "error class" {
        /// One of the three not-supported errors, or a quota that cannot be kept.
        NotSupported = "not-supported";
        /// No such layer.
        NotFound = "not-found";
        /// The id is taken.
        Exists = "exists";
        /// The id is not valid.
        InvalidId = "invalid-id";
        /// An option is not known.
        InvalidOption = "invalid-option";
        /// The chain is too long.
        TooDeep = "too-deep";
        /// In use.
        InUse = "in-use";
        /// Driver state on disk is damaged.
        Damaged = "damaged";
        /// The archive is at fault.
        Archive = "archive";
        /// State of several drivers.
        Conflict = "conflict";
        /// A driver in another process says a text only, which any class can stand for.
        Unclassified = "unclassified";
        /// A system call failed, or something else.
        Other = "other";
    }
}

impl Error {
    /// Wraps a failed system call.
    pub fn io(op: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            op,
            path: path.into(),
            source: source.into(),
        }
    }

    /// Whether selection may go on to the next driver: one of the three not-supported errors (moby's `IsDriverNotSupported`).
    pub fn is_driver_not_supported(&self) -> bool {
        matches!(
            self,
            Self::NotSupported(_)
                | Self::Prerequisites(_)
                | Self::IncompatibleFs(_)
                | Self::Remote {
                    class: Some(ErrorClass::NotSupported),
                    ..
                }
        )
    }

    /// The errno of a system call that failed, on the driver's own files or on an entry of an archive.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::NoSpace(_) => Some(Errno::NOSPC),
            Self::Io { source, .. } | Self::Archive(crate::archive::Error::Io { source, .. }) => {
                Errno::from_io_error(source)
            }
            _ => None,
        }
    }

    /// Whether the disk is full, or a quota is.
    pub fn is_no_room(&self) -> bool {
        match self {
            // Another process says the text that strerror(3) has for the errno, in the case that its language prints it in.
            Self::Remote { text, .. } => {
                let text = text.to_ascii_lowercase();
                text.contains("no space left on device") || text.contains("disk quota exceeded")
            }
            _ => matches!(self.errno(), Some(Errno::NOSPC | Errno::DQUOT)),
        }
    }

    /// The class scenarios compare.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::NotSupported(_)
            | Self::Prerequisites(_)
            | Self::IncompatibleFs(_)
            | Self::QuotaNotSupported(_)
            | Self::NoDriver => ErrorClass::NotSupported,
            Self::SeveralPriorDrivers { .. } => ErrorClass::Conflict,
            Self::UnknownLayer(_) => ErrorClass::NotFound,
            Self::LayerExists(_) | Self::AlreadyRegistered(_) => ErrorClass::Exists,
            Self::InvalidId { .. } => ErrorClass::InvalidId,
            Self::InvalidOption { .. } => ErrorClass::InvalidOption,
            Self::TooDeep { .. } => ErrorClass::TooDeep,
            Self::InUse { .. } => ErrorClass::InUse,
            Self::Damaged { .. } => ErrorClass::Damaged,
            Self::Archive(e) if e.is_of_the_disk() => ErrorClass::Other,
            Self::Archive(_) => ErrorClass::Archive,
            Self::Remote { class, .. } => class.unwrap_or(ErrorClass::Unclassified),
            Self::Io { .. } | Self::NoSpace(_) | Self::Other(_) => ErrorClass::Other,
        }
    }
}
