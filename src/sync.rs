//! Locks of which a panic elsewhere makes no new failure: what they guard is whole at every moment.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, whatever became of the thread that had it before.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
