//! Programs of the machine: where they are, which package has them, what they say.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

/// A program and the Debian package that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its file's name.
    pub name: &'static str,
    /// The package.
    pub package: &'static str,
}

impl Program {
    /// The program `name`, which `package` has.
    pub const fn new(name: &'static str, package: &'static str) -> Self {
        Self { name, package }
    }

    /// Where it is: on `PATH`, or where administrators' programs are, which an ordinary user's `PATH` often leaves out.
    ///
    /// # Errors
    /// `NotFound` with the name of the package.
    pub fn find(self) -> io::Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let usual = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
        std::env::split_paths(&path)
            .filter(|dir| dir.is_absolute())
            .chain(usual)
            .map(|dir| dir.join(self.name))
            .find(|file| {
                file.metadata()
                    .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
            })
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, self.missing()))
    }

    fn missing(self) -> String {
        format!(
            "{} is not installed; Debian's package is {}",
            self.name, self.package
        )
    }

    /// Runs it to its end, in the C locale, without input.
    ///
    /// # Errors
    /// It is not installed or cannot be started.
    pub fn output<S: AsRef<OsStr>>(
        self,
        arguments: impl IntoIterator<Item = S>,
    ) -> io::Result<Output> {
        Command::new(self.find()?)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", self.name)))
    }

    /// The version that it tells: `NAME: version VERSION`, a line of what `--version` prints. A file that told it already is not asked
    /// again.
    ///
    /// # Errors
    /// Those of [`Program::output`]; what it says instead.
    pub fn version(self) -> io::Result<String> {
        static TOLD: Mutex<BTreeMap<PathBuf, (FileId, String)>> = Mutex::new(BTreeMap::new());
        let path = self.find()?;
        let file = FileId::of(&path)?;
        // In a child that was forked while another thread had the lock, nobody gives it back.
        let told = TOLD.try_lock().ok();
        if let Some((of, version)) = told.as_ref().and_then(|told| told.get(&path))
            && *of == file
        {
            return Ok(version.clone());
        }
        drop(told);
        let version = self.ask_version()?;
        if let Ok(mut told) = TOLD.try_lock() {
            told.insert(path, (file, version.clone()));
        }
        Ok(version)
    }

    fn ask_version(self) -> io::Result<String> {
        let out = self.output(["--version"])?;
        let said = String::from_utf8_lossy(&out.stdout);
        let mut lines = said.lines().filter_map(|l| l.strip_prefix(self.name));
        let version = lines.find_map(|l| l.strip_prefix(": version "));
        version.map(|v| v.trim().to_owned()).ok_or_else(|| {
            let said = last_lines(&out, 4).join("; ");
            let why = format!("{} --version does not tell one: {said}", self.name);
            io::Error::new(io::ErrorKind::InvalidData, why)
        })
    }

    /// [`Program::output`], where any status but 0 is an error.
    ///
    /// # Errors
    /// Those of [`Program::output`]; the status and the last lines of what it said.
    pub fn run<S: AsRef<OsStr>>(self, arguments: impl IntoIterator<Item = S>) -> io::Result<()> {
        let out = self.output(arguments)?;
        if out.status.success() {
            return Ok(());
        }
        let said = last_lines(&out, 4).join("; ");
        Err(io::Error::other(format!(
            "{}: {}: {said}",
            self.name, out.status
        )))
    }
}

/// A file as it is now: what is written into it, or put in its place, is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    inode: (u64, u64),
    changed: (i64, i64),
}

impl FileId {
    fn of(path: &Path) -> io::Result<Self> {
        let found = path.metadata()?;
        Ok(Self {
            inode: (found.dev(), found.ino()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

/// The last lines that are not blank, of the output and then of the errors.
pub fn last_lines(out: &Output, count: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for stream in [&out.stdout, &out.stderr] {
        let text = String::from_utf8_lossy(stream);
        let said = text.lines().map(str::trim).filter(|l| !l.is_empty());
        lines.extend(said.map(str::to_string));
    }
    lines.split_off(lines.len().saturating_sub(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_told_with_its_package() {
        let program = Program::new("mkfs.no-such", "no-such-progs");
        let e = program.find().unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::NotFound);
        assert_eq!(
            e.to_string(),
            "mkfs.no-such is not installed; Debian's package is no-such-progs"
        );
        assert_eq!(program.run([""]).unwrap_err().to_string(), e.to_string());
    }

    #[test]
    fn what_a_failing_program_says_is_kept() {
        let sh = Program::new("sh", "dash");
        sh.run(["-c", "exit 0"]).unwrap();
        let e = sh
            .run(["-c", "echo one; echo two >&2; exit 3"])
            .unwrap_err();
        assert_eq!(e.to_string(), "sh: exit status: 3: one; two");
    }
}
