//! Locks on ids.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};

use crate::graphdriver::LayerId;
use crate::sync::lock;

/// Locks on ids: several can be taken at once, without deadlock.
#[derive(Debug, Default)]
pub(in crate::drivers) struct IdLocks {
    held: Mutex<HashSet<String>>,
    freed: Condvar,
}

impl IdLocks {
    /// Waits until nobody holds any of the ids, and holds them until the guard is dropped.
    pub fn lock(&self, ids: &[&LayerId]) -> IdGuard<'_> {
        let ids: HashSet<&str> = ids.iter().map(|id| id.as_str()).collect();
        let mut held = self
            .freed
            .wait_while(lock(&self.held), |held| {
                ids.iter().any(|id| held.contains(*id))
            })
            .unwrap_or_else(PoisonError::into_inner);
        let ids: Vec<String> = ids.into_iter().map(str::to_owned).collect();
        held.extend(ids.iter().cloned());
        IdGuard { locks: self, ids }
    }
}

/// See [`IdLocks::lock`].
#[derive(Debug)]
pub(in crate::drivers) struct IdGuard<'l> {
    locks: &'l IdLocks,
    ids: Vec<String>,
}

impl Drop for IdGuard<'_> {
    fn drop(&mut self) {
        let mut held = lock(&self.locks.held);
        for id in &self.ids {
            held.remove(id);
        }
        drop(held);
        self.locks.freed.notify_all();
    }
}
