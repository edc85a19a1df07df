//! The emulator: which one there is, what it needs to run kernels soundly, and its command line.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::{VmError, cannot};
use super::kernel::Kernel;
use crate::named::named;
use crate::sys::cpus;

named! {
    /// How a guest's instructions are carried out.
    Accel, "accelerator" {
        /// By the processor, where a look at the clock says that it does; else by the emulator.
        Auto = "auto";
        /// By the processor.
        Kvm = "kvm";
        /// By the emulator.
        Tcg = "tcg";
    }
}

/// An emulator that can run guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emulator {
    program: PathBuf,
    /// Major and minor.
    version: (u32, u32),
    kvm: bool,
}

const PROGRAM: &str = "qemu-system-x86_64";

impl Emulator {
    /// The one on `PATH`. Returns with it what is to be said about the choice of the accelerator.
    ///
    /// # Errors
    /// There is none, or it does not say its version; KVM was asked for and cannot be used.
    pub fn find(accel: Accel) -> Result<(Self, Option<String>), VmError> {
        let program = PathBuf::from(PROGRAM);
        let out = Command::new(&program).arg("--version").output();
        let out = match out {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(cannot(format!(
                    "{PROGRAM} is not installed; Debian's package is qemu-system-x86"
                )));
            }
            other => other.map_err(|e| cannot(format!("{PROGRAM}: {e}")))?,
        };
        let text = String::from_utf8_lossy(&out.stdout);
        let Some(version) = version(&text) else {
            let first = text.lines().next().unwrap_or("nothing");
            return Err(cannot(format!("{PROGRAM} --version says: {first}")));
        };
        let (kvm, note) = match (accel, crate::sys::kvm::usable()) {
            (Accel::Tcg, _) => (false, None),
            (Accel::Kvm | Accel::Auto, Ok(())) => (true, None),
            (Accel::Kvm, Err(why)) => return Err(cannot(format!("KVM cannot be used: {why}"))),
            (Accel::Auto, Err(why)) => (
                false,
                Some(format!("guests are emulated, not run by KVM: {why}")),
            ),
        };
        let found = Self {
            program,
            version,
            kvm,
        };
        Ok((found, note))
    }

    /// The command line of a guest.
    pub(super) fn command(&self, guest: &Files<'_>, kernel: &Kernel, memory_mib: u32) -> Command {
        let mut command = Command::new(&self.program);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        let accel = if self.kvm { "kvm" } else { "tcg" };
        command.args([
            "-machine",
            &format!("q35,accel={accel}"),
            "-cpu",
            self.cpu(),
        ]);
        let processors = cpus().min(PROCESSORS);
        command.args([
            "-smp",
            &processors.to_string(),
            "-m",
            &memory_mib.to_string(),
        ]);
        command.arg("-kernel").arg(&kernel.image);
        command.arg("-initrd").arg(guest.initrd);
        let first = super::initrd::FIRST;
        let talk = if guest.talkative { TALKATIVE } else { QUIET };
        command.args([
            "-append",
            &format!("{CMDLINE} {talk} rdinit={first} -- guest"),
        ]);
        for (name, path, options) in [
            ("root", guest.root, "readonly=on"),
            ("work", guest.work, "cache=unsafe"),
            ("job", guest.job, "readonly=on"),
        ] {
            command.arg("-drive").arg(with_path(
                &format!("if=none,id={name},format=raw,{options},file="),
                path,
            ));
            command.args(["-device", &format!("nvme,serial={name},drive={name}")]);
        }
        let file = |id: &str, path: &Path| with_path(&format!("file,id={id},path="), path);
        if guest.interactive {
            command.args(["-chardev", "stdio,id=console,signal=off"]);
            command.arg("-chardev").arg(file("said", guest.said));
        } else {
            command.arg("-chardev").arg(file("console", guest.console));
            command.args(["-chardev", "stdio,id=said,signal=off"]);
        }
        for (index, id) in ["console", "said"].iter().enumerate() {
            command.args(["-device", &format!("isa-serial,chardev={id},index={index}")]);
        }
        command
    }

    /// Emulation before version 10 gets `cmpxchg16b` wrong when an interrupt follows it, of which kernels from 6.12 on die at
    /// random; kernels do without when the processor does not have it.
    fn cpu(&self) -> &'static str {
        match (self.kvm, self.version.0 < 10) {
            (true, _) => "host",
            (false, true) => "max,-cx16",
            (false, false) => "max",
        }
    }
}

/// A guest's files.
#[derive(Debug)]
pub(super) struct Files<'a> {
    pub initrd: &'a Path,
    /// Disks, by whose names guests know them.
    pub root: &'a Path,
    pub work: &'a Path,
    pub job: &'a Path,
    /// What the kernel says goes here, unless it is interactive.
    pub console: &'a Path,
    /// What the guest says goes here, if it is interactive; else to standard output.
    pub said: &'a Path,
    pub interactive: bool,
    /// The kernel says everything.
    pub talkative: bool,
}

/// The most processors that a guest has, in which scenarios run side by side.
const PROCESSORS: usize = 2;

/// What a guest's kernel is told: its console, to end at once when it breaks, and to leave out what takes time and guards nothing in a
/// machine that lives for minutes. One such thing breaks kernels besides: the test of the timer counts its ticks during a short loop, in
/// which an emulator on a busy machine may deliver none ("IO-APIC + timer doesn't work").
const CMDLINE: &str =
    "console=ttyS0 oops=panic panic=-1 no_timer_check cryptomgr.notests mitigations=off nokaslr";

/// A kernel that says only what is wrong comes up half a second sooner than one that says everything.
const QUIET: &str = "quiet loglevel=3";
const TALKATIVE: &str = "ignore_loglevel";

/// An option that ends with a path, in which a comma is doubled.
fn with_path(option: &str, path: &Path) -> OsString {
    let mut text = OsString::from(option);
    let bytes = path.as_os_str().as_encoded_bytes();
    let doubled: Vec<u8> = bytes
        .iter()
        .flat_map(|b| std::iter::repeat_n(*b, if *b == b',' { 2 } else { 1 }))
        .collect();
    text.push(OsString::from_vec(doubled));
    text
}

/// Major and minor from `QEMU emulator version 7.2.22 (...)`.
fn version(text: &str) -> Option<(u32, u32)> {
    let words = text.split_once("version ")?.1;
    let mut numbers = words.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(
            version("QEMU emulator version 7.2.22 (Debian 1:7.2)\n"),
            Some((7, 2))
        );
        assert_eq!(version("QEMU emulator version 10.0.2\n"), Some((10, 0)));
        assert_eq!(version("qemu: command not understood"), None);
    }

    fn emulator(version: (u32, u32), kvm: bool) -> Emulator {
        let program = PROGRAM.into();
        Emulator {
            program,
            version,
            kvm,
        }
    }

    #[test]
    fn an_old_emulator_hides_the_instruction_that_it_gets_wrong() {
        assert_eq!(emulator((7, 2), false).cpu(), "max,-cx16");
        assert_eq!(emulator((9, 2), false).cpu(), "max,-cx16");
        assert_eq!(emulator((10, 0), false).cpu(), "max");
        assert_eq!(emulator((7, 2), true).cpu(), "host");
    }

    #[test]
    fn a_comma_in_a_path_is_no_option() {
        assert_eq!(with_path("file=", Path::new("/a,b/c")), "file=/a,,b/c");
    }
}
