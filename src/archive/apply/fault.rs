//! What went wrong on an entry, before its name is known.

use std::io;

use crate::archive::Error;
use crate::tree::TreePath;

pub(super) type Outcome<T = ()> = Result<T, Fault>;

#[derive(Debug)]
pub(super) enum Fault {
    /// The entry is not one that can be applied.
    Refused(String),
    /// The whole error.
    Whole(Error),
}

impl Fault {
    pub fn into_error(self, name: &[u8]) -> Error {
        match self {
            Self::Refused(why) => Error::refused(name, why),
            Self::Whole(e) => e,
        }
    }
}

impl From<Error> for Fault {
    fn from(e: Error) -> Self {
        Self::Whole(e)
    }
}

pub(super) fn refused<T>(why: impl Into<String>) -> Outcome<T> {
    Err(Fault::Refused(why.into()))
}

/// A failed call becomes an error that says on what.
pub(super) trait On<T> {
    fn on(self, op: &'static str, path: &TreePath) -> Outcome<T>;
}

impl<T, E: Into<io::Error>> On<T> for Result<T, E> {
    fn on(self, op: &'static str, path: &TreePath) -> Outcome<T> {
        self.map_err(|e| Fault::Whole(Error::io(op, path, e)))
    }
}
