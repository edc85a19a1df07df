//! Whether a filesystem came out whole: its checker, and the kernel's log.

use std::path::{Path, PathBuf};

use super::kinds::Image;
use super::program::last_lines;
use crate::sys::kmsg::{KernelLog, LogLine};
use crate::sys::loopdev;
use crate::sys::spawn::work_of;

/// How many of a checker's last lines are told.
const LINES: usize = 6;

/// What was found when a filesystem was looked at after use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Damage {
    /// What is wrong with it.
    pub damage: Vec<String>,
    /// What could not be looked at, and what the kernel said that no filesystem of ours can be blamed for.
    pub notes: Vec<String>,
}

impl Damage {
    /// Both together.
    pub(super) fn add(&mut self, other: Self) {
        self.damage.extend(other.damage);
        self.notes.extend(other.notes);
    }
}

/// Runs the checker of a filesystem on its images, which are not mounted. Nothing is changed.
pub(super) fn check(image: &Image, images: &[PathBuf], nodes: &Path) -> Damage {
    let (program, arguments) = &image.check;
    let mut found = Damage::default();
    let run = |on: &Path| {
        let arguments = arguments.iter().map(std::ffi::OsStr::new);
        let run = || program.output(arguments.clone().chain([on.as_os_str()]));
        image.undisturbed(run, |done| {
            let failed = done.as_ref().ok().filter(|out| !out.status.success());
            failed.map(|out| String::from_utf8_lossy(&out.stderr).into_owned())
        })
    };
    let result = if let [only] = images {
        run(only)
    } else {
        // A filesystem over several devices is found only on devices.
        let attached: Result<Vec<_>, _> =
            images.iter().map(|i| loopdev::attach(i, nodes)).collect();
        attached.and_then(|a| run(&a[0].node))
    };
    match result {
        Ok(out) if out.status.success() => {}
        Ok(out) if has_no_idea(&out) => {
            let why = last_lines(&out, LINES).join("; ");
            let name = program.name;
            found
                .notes
                .push(format!("not checked for damage: {name}: {why}"));
        }
        Ok(out) => {
            let name = program.name;
            found.damage.push(format!("{name} says: {}", out.status));
            found.damage.extend(last_lines(&out, LINES));
        }
        Err(e) => found.notes.push(format!("not checked for damage: {e}")),
    }
    found
}

/// Whether a checker is too old for the features of the filesystem.
fn has_no_idea(out: &std::process::Output) -> bool {
    // btrfs check, e2fsck, xfs_repair.
    let says = [
        "unsupported option features",
        "has unsupported feature",
        "unsupported features",
    ];
    let said = last_lines(out, LINES).join(" ");
    says.iter().any(|s| said.contains(s))
}

/// What the kernel's log has said since it was last asked: complaints about these loop devices are damage, other ones are notes, but for
/// those about a program that works for something outside of `dir`.
pub(super) fn complaints(log: &mut KernelLog, devices: &[u32], dir: &Path) -> Damage {
    let mut found = Damage::default();
    let lines = match log.lines() {
        Ok(lines) => lines,
        Err(e) => {
            found.notes.push(format!("the kernel's log: {e}"));
            return found;
        }
    };
    for line in lines {
        let text = format!("the kernel's log: {}", line.text);
        if devices.iter().any(|d| names(&line.text, *d)) {
            if is_complaint(&line) {
                found.damage.push(text);
            }
        } else if is_trouble(&line.text) && !is_of_another(&line.text, dir) {
            found.notes.push(text);
        }
    }
    found
}

/// All that the log has said about these devices since it was last asked, complaint or not.
pub(super) fn about(log: Option<&mut KernelLog>, devices: &[u32]) -> Vec<String> {
    let lines = log.and_then(|l| l.lines().ok()).unwrap_or_default();
    let of_them = |l: &LogLine| devices.iter().any(|d| names(&l.text, *d));
    lines.into_iter().filter(of_them).map(|l| l.text).collect()
}

/// Whether a line is about loop device `number`: `loop3`, but not `loop31`.
fn names(text: &str, number: u32) -> bool {
    let name = format!("loop{number}");
    text.match_indices(&name).any(|(at, _)| {
        let before = text[..at].bytes().next_back();
        let after = text[at + name.len()..].bytes().next();
        !before.is_some_and(|b| b.is_ascii_alphanumeric())
            && !after.is_some_and(|b| b.is_ascii_digit())
    })
}

/// Errors, and warnings and notices that speak of damage.
fn is_complaint(line: &LogLine) -> bool {
    let text = line.text.to_lowercase();
    line.level <= 3
        || line.level <= 5
            && ["error", "corrupt", "inconsisten", "ext4-fs warning"]
                .iter()
                .any(|word| text.contains(word))
}

/// What a kernel says when it is itself in trouble.
fn is_trouble(text: &str) -> bool {
    [
        "BUG:",
        "kernel BUG",
        "Oops:",
        "WARNING: ",
        "general protection fault",
        "blocked for more than",
        "soft lockup",
    ]
    .iter()
    .any(|word| text.contains(word))
}

/// Whether a line is about a program that was started here, and works for something outside of `dir`.
fn is_of_another(text: &str, dir: &Path) -> bool {
    let work = process_named(text).and_then(work_of);
    work.is_some_and(|work| !work.starts_with(dir))
}

/// The process that a line is about: `NAME[7] general protection fault`, `task NAME:7 blocked`, `CPU: 0 PID: 7`.
fn process_named(text: &str) -> Option<u32> {
    let number = |rest: &str| {
        let end = rest.find(|c: char| !c.is_ascii_digit());
        rest[..end.unwrap_or(rest.len())].parse().ok()
    };
    if let Some((_, rest)) = text.split_once("PID: ") {
        return number(rest);
    }
    if let Some((task, _)) = text.split_once(" blocked for more than") {
        return task.rsplit_once(':').and_then(|(_, pid)| number(pid));
    }
    text.split_once('[').and_then(|(_, rest)| number(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: u8, text: &str) -> LogLine {
        LogLine {
            level,
            text: text.to_string(),
        }
    }

    #[test]
    fn a_device_is_named_whole() {
        assert!(names("EXT4-fs error (device loop3): ext4_lookup", 3));
        assert!(names("XFS (loop3): Metadata corruption", 3));
        assert!(names("I/O error, dev loop3, sector 8", 3));
        assert!(!names("XFS (loop31): Metadata corruption", 3));
        assert!(!names("/dev/myloop3 is bad", 3));
    }

    #[test]
    fn complaints_are_told_from_talk() {
        let of = |level, text: &str| is_complaint(&line(level, text));
        assert!(of(2, "EXT4-fs error (device loop3): bad inode"));
        assert!(of(4, "XFS (loop3): Corruption of in-memory data detected"));
        assert!(of(3, "BTRFS critical (device loop3): leaf is bad"));
        assert!(!of(6, "EXT4-fs (loop3): mounted filesystem"));
        assert!(!of(
            6,
            "BTRFS info (device loop3): scan completed (inconsistency flag cleared)"
        ));
        assert!(!of(5, "XFS (loop3): Ending clean mount"));
        assert!(is_trouble("WARNING: CPU: 1 PID: 7 at fs/btrfs/qgroup.c:1"));
        assert!(!is_trouble("EXT4-fs (loop3): mounted filesystem"));
    }

    #[test]
    fn trouble_of_a_program_is_told_where_it_worked() {
        let (ours, theirs) = (
            Path::new("/x/.graphtest-1-1"),
            Path::new("/x/.graphtest-1-10"),
        );
        // Beyond any that is given out.
        let pid = 0x7fff_fff0;
        crate::sys::spawn::note_work(pid, &theirs.join("on/home"));
        for line in [
            format!("traps: fuse-overlayfs[{pid}] general protection fault ip:7f"),
            format!("INFO: task fuse-overlayfs:{pid} blocked for more than 120 seconds."),
            format!("WARNING: CPU: 0 PID: {pid} at fs/fuse/dev.c:1"),
        ] {
            assert!(is_trouble(&line) && is_of_another(&line, ours), "{line}");
            assert!(!is_of_another(&line, theirs), "{line}");
        }
        for line in [
            "WARNING: CPU: 0 PID: 1 at fs/fuse/dev.c:1",
            "BUG: soft",
            "Oops: 0002 [#1]",
        ] {
            assert!(!is_of_another(line, ours), "{line}");
        }
    }
}
