//! Whether KVM runs guests at the processor's speed: a look at the clock, for there are some that pass every functional test and
//! carry out each instruction in software, a thousand times slower.

#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use nix::libc;

/// The requests of linux/kvm.h for x86.
const KVM_CREATE_VM: u64 = 0xAE01;
const KVM_GET_VCPU_MMAP_SIZE: u64 = 0xAE04;
const KVM_CREATE_VCPU: u64 = 0xAE41;
const KVM_SET_USER_MEMORY_REGION: u64 = 0x4020_AE46;
const KVM_RUN: u64 = 0xAE80;
const KVM_SET_REGS: u64 = 0x4090_AE82;
const KVM_GET_SREGS: u64 = 0x8138_AE83;
const KVM_SET_SREGS: u64 = 0x4138_AE84;
const KVM_EXIT_IO: u32 = 2;

/// How often the guest counts down. A processor needs some microseconds for it, software twenty milliseconds and more.
const ROUNDS: u64 = 30_000;
/// How long it may take, at its best of [`TRIES`]: others may run in between.
const ALLOWED: Duration = Duration::from_millis(4);
const TRIES: usize = 3;
/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// `dec ecx; jnz -3; mov dx, 0x3f8; out dx, al; hlt`, 32-bit.
const CODE: [u8; 9] = [0x49, 0x75, 0xfd, 0x66, 0xba, 0xf8, 0x03, 0xee, 0xf4];
/// Where it is in the guest's memory.
const AT: u64 = 0x1000;
const MEMORY: usize = 0x4000;

/// `struct kvm_userspace_memory_region`.
#[repr(C)]
struct Region {
    slot: u32,
    flags: u32,
    guest: u64,
    size: u64,
    host: u64,
}

/// `struct kvm_segment`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Segment {
    base: u64,
    limit: u32,
    selector: u16,
    kind: u8,
    present: u8,
    dpl: u8,
    db: u8,
    s: u8,
    l: u8,
    g: u8,
    avl: u8,
    unusable: u8,
    padding: u8,
}

/// `struct kvm_sregs`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct SpecialRegisters {
    /// cs, ds, es, fs, gs, ss, tr, ldt.
    segments: [Segment; 8],
    tables: [u64; 4],
    cr0: u64,
    /// cr2, cr3, cr4, cr8, efer, apic_base.
    others: [u64; 6],
    interrupts: [u64; 4],
}

/// `struct kvm_regs`.
#[repr(C)]
#[derive(Default)]
struct Registers {
    rax: u64,
    rbx: u64,
    rcx: u64,
    others: [u64; 13],
    rip: u64,
    rflags: u64,
}

/// Whether guests can be run by KVM at the processor's speed. Takes under a second, and at most two.
///
/// # Errors
/// Why not.
pub fn usable() -> Result<(), String> {
    let (tell, told) = channel();
    // A thread of its own: should KVM never come back from the guest, it is left behind.
    std::thread::spawn(move || tell.send(try_out()));
    match told.recv_timeout(PATIENCE) {
        Ok(Ok(best)) if best <= ALLOWED => Ok(()),
        Ok(Ok(best)) => Err(format!(
            "it is there, but carries out instructions in software: {ROUNDS} rounds of a loop took {} ms",
            best.as_millis()
        )),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("it does not come back from a guest of eight instructions".to_string()),
    }
}

/// One request with a number or an address.
fn request(fd: RawFd, request: u64, argument: u64) -> io::Result<i32> {
    // SAFETY: every caller passes an argument of the type that the request of its descriptor wants, which outlives the call.
    let result = unsafe { libc::ioctl(fd, request as libc::Ioctl, argument) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A request that makes a descriptor.
fn made(fd: RawFd, what: u64) -> io::Result<OwnedFd> {
    let new = request(fd, what, 0)?;
    // SAFETY: the kernel has just made it for this caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// Memory shared with the kernel, unmapped when dropped.
struct Mapping {
    address: *mut libc::c_void,
    size: usize,
}

impl Mapping {
    fn new(size: usize, fd: Option<RawFd>) -> io::Result<Self> {
        let flags = match fd {
            Some(_) => libc::MAP_SHARED,
            None => libc::MAP_SHARED | libc::MAP_ANONYMOUS,
        };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel chooses where, so nothing that is there is replaced.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                access,
                flags,
                fd.unwrap_or(-1),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { address, size })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size, and nothing refers to it any more.
        unsafe { libc::munmap(self.address, self.size) };
    }
}

/// The best time of a few runs.
fn try_out() -> io::Result<Duration> {
    let said = |e: io::Error| io::Error::new(e.kind(), format!("/dev/kvm: {e}"));
    let kvm = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(said)?;
    let vm = made(kvm.as_raw_fd(), KVM_CREATE_VM)?;
    let memory = Mapping::new(MEMORY, None)?;
    // SAFETY: the mapping is longer than AT and the code together, and nobody else knows it yet.
    unsafe {
        let to = memory.address.cast::<u8>().add(AT as usize);
        std::ptr::copy_nonoverlapping(CODE.as_ptr(), to, CODE.len());
    }
    let region = Region {
        slot: 0,
        flags: 0,
        guest: 0,
        size: MEMORY as u64,
        host: memory.address as u64,
    };
    request(
        vm.as_raw_fd(),
        KVM_SET_USER_MEMORY_REGION,
        &raw const region as u64,
    )?;
    let vcpu = made(vm.as_raw_fd(), KVM_CREATE_VCPU)?;
    let size = request(kvm.as_raw_fd(), KVM_GET_VCPU_MMAP_SIZE, 0)?;
    let state = Mapping::new(
        usize::try_from(size).unwrap_or(4096),
        Some(vcpu.as_raw_fd()),
    )?;
    flat(vcpu.as_raw_fd())?;
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        let registers = Registers {
            rcx: ROUNDS,
            rip: AT,
            rflags: 2,
            ..Registers::default()
        };
        request(vcpu.as_raw_fd(), KVM_SET_REGS, &raw const registers as u64)?;
        let begun = Instant::now();
        request(vcpu.as_raw_fd(), KVM_RUN, 0)?;
        best = best.min(begun.elapsed());
        // SAFETY: `exit_reason` is a u32 at offset 8 of `struct kvm_run`, which the mapping holds whole.
        let reason = unsafe { state.address.cast::<u32>().add(2).read_volatile() };
        if reason != KVM_EXIT_IO {
            return Err(io::Error::other(format!(
                "a guest ended for reason {reason}"
            )));
        }
        if best <= ALLOWED {
            break;
        }
    }
    Ok(best)
}

/// Puts the processor into protected mode, all memory in one segment, no paging.
fn flat(vcpu: RawFd) -> io::Result<()> {
    let mut special = SpecialRegisters::default();
    request(vcpu, KVM_GET_SREGS, &raw mut special as u64)?;
    let data = Segment {
        limit: u32::MAX,
        selector: 16,
        kind: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Segment::default()
    };
    special.segments[..6].fill(data);
    special.segments[0] = Segment {
        selector: 8,
        kind: 11,
        ..data
    };
    special.cr0 |= 1;
    request(vcpu, KVM_SET_SREGS, &raw const special as u64).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_are_as_long_as_the_kernels() {
        assert_eq!(size_of::<Region>(), 32);
        assert_eq!(size_of::<Segment>(), 24);
        assert_eq!(size_of::<SpecialRegisters>(), 0x138);
        assert_eq!(size_of::<Registers>(), 0x90);
    }

    #[test]
    fn the_answer_comes_in_time() {
        let begun = Instant::now();
        let answer = usable();
        assert!(begun.elapsed() < PATIENCE * 4, "{answer:?}");
        if !std::path::Path::new("/dev/kvm").exists() {
            assert!(answer.unwrap_err().contains("/dev/kvm"));
        }
    }
}
