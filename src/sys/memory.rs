//! The memory of this process.

#![allow(unsafe_code)]

/// Gives memory that was freed back to the system, where the allocator keeps it (glibc's does, in every thread's own heap).
///
/// fork(2) copies an entry for each page that a process has, and whoever writes to one next copies the page: what nothing lies in is not
/// worth either.
pub fn give_back_free() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim touches only what is free, under the allocator's locks.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
