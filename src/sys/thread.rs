//! Threads for work that changes what threads else share.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use nix::libc;

/// Does some work on a thread of its own, which may give itself another working directory, other namespaces or other rights.
///
/// It is not one of std's: those take a lock when they start and when they end, and a process that was forked while another thread of
/// its parent's held it would wait for ever.
///
/// # Errors
/// `EAGAIN` when there can be no more threads; the work panicked.
pub fn on_own_thread<T: Send, W: FnOnce() -> T + Send>(work: W) -> io::Result<T> {
    let mut task = Task {
        work: Some(work),
        result: None,
    };
    let mut thread = MaybeUninit::uninit();
    // SAFETY: `task` is of the type that the function is made for, lives until the thread was joined, and is not looked at before.
    let failed = unsafe {
        let task = (&raw mut task).cast();
        match libc::pthread_create(thread.as_mut_ptr(), ptr::null(), start::<T, W>, task) {
            0 => libc::pthread_join(thread.assume_init(), ptr::null_mut()),
            failed => failed,
        }
    };
    match task.result {
        Some(result) => Ok(result),
        None if failed != 0 => Err(io::Error::from_raw_os_error(failed)),
        None => Err(io::Error::other("the thread panicked")),
    }
}

struct Task<T, W> {
    work: Option<W>,
    /// `None` after the end: it panicked.
    result: Option<T>,
}

extern "C" fn start<T, W: FnOnce() -> T>(task: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: it is the task that the thread was started with, and whoever started it waits.
    let task = unsafe { &mut *task.cast::<Task<T, W>>() };
    if let Some(work) = task.work.take() {
        task.result = catch_unwind(AssertUnwindSafe(work)).ok();
    }
    ptr::null_mut()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_has_a_thread_of_its_own_and_gives_back_what_it_made() {
        let here = std::thread::current().id();
        let mut seen = Vec::new();
        let there = on_own_thread(|| {
            seen.push(1);
            std::thread::current().id()
        });
        assert_ne!(there.expect("a thread"), here);
        assert_eq!(seen, [1]);
    }

    #[test]
    fn a_panic_is_an_error() {
        let error = on_own_thread(|| panic!("on purpose")).expect_err("a panic");
        assert_eq!(error.to_string(), "the thread panicked");
    }
}
