//! Reports: files that are written as a run goes, so that a crash leaves a valid one.

mod html;
mod junit;
mod merge;
mod model;
mod tap;
pub mod text;

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

pub use model::{Cell, Report, Totals, VERSION};

use super::event::Event;

/// A form of report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The whole report, for machines; the other forms can be made from it.
    Json,
    /// JUnit XML, as CI systems read it.
    Junit,
    /// The Test Anything Protocol, version 14.
    Tap,
    /// One HTML file: a table of scenarios and cells, and the failures.
    Html,
    /// What `run` prints.
    Text,
}

impl Kind {
    /// Every form with its name.
    const NAMES: &'static [(&'static str, Self)] = &[
        ("json", Self::Json),
        ("junit", Self::Junit),
        ("tap", Self::Tap),
        ("html", Self::Html),
        ("text", Self::Text),
    ];

    /// Writes a report in this form.
    pub fn render(self, report: &Report) -> String {
        match self {
            Self::Json => {
                // Serializing plain data to a string cannot fail; a map with keys that are not text could.
                let mut text = serde_json::to_string_pretty(report)
                    .unwrap_or_else(|e| format!("{{\"error\": \"{e}\"}}"));
                text.push('\n');
                text
            }
            Self::Junit => junit::render(report),
            Self::Tap => tap::render(report),
            Self::Html => html::render(report),
            Self::Text => text::render(report),
        }
    }
}

impl FromStr for Kind {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let found = Self::NAMES
            .iter()
            .find(|(name, _)| *name == s)
            .map(|(_, kind)| *kind);
        found.ok_or_else(|| {
            let names: Vec<_> = Self::NAMES.iter().map(|(name, _)| *name).collect();
            format!("unknown kind of report `{s}`; known: {}", names.join(", "))
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            Self::NAMES
                .iter()
                .find(|(_, kind)| kind == self)
                .map_or("", |(name, _)| name),
        )
    }
}

/// A report to be written: `KIND=PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The form.
    pub kind: Kind,
    /// The file.
    pub path: PathBuf,
}

impl FromStr for Wanted {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once('=') {
            Some((kind, path)) if !path.is_empty() => Ok(Self {
                kind: kind.parse()?,
                path: path.into(),
            }),
            _ => Err("expected KIND=PATH, such as json=report.json".to_string()),
        }
    }
}

/// How often a report's file is written anew while results come in, at the most.
const EVERY: Duration = Duration::from_millis(500);

/// So many times as long as the writing took is waited before the next one: that of a large report is not to keep scenarios waiting.
const SHARE: u32 = 20;

/// One report's file.
#[derive(Debug)]
pub struct File {
    wanted: Wanted,
    /// When it is due to be written anew while results come in.
    due: Option<Instant>,
}

impl File {
    /// A file to be written; nothing is done yet.
    pub fn new(wanted: Wanted) -> Self {
        Self { wanted, due: None }
    }

    /// Brings the file up to date: at once when something begins or ends, and while results come in every half second, or as much
    /// more seldom as keeps a twentieth of the time from being spent on it.
    ///
    /// # Errors
    /// The file cannot be written; the message names it.
    pub fn update(&mut self, report: &Report, event: &Event) -> io::Result<()> {
        let begun = Instant::now();
        let due = match event {
            Event::RunFinished { .. } => true,
            // What was written to a pipe cannot be written anew, so it gets the whole report once.
            _ if is_stream(&self.wanted.path) => false,
            Event::CaseStarted { .. } => false,
            Event::CaseFinished { .. } => self.due.is_none_or(|due| begun >= due),
            _ => true,
        };
        if !due {
            return Ok(());
        }
        let path = &self.wanted.path;
        write_whole(path, &self.wanted.kind.render(report)).map_err(|e| {
            io::Error::new(
                e.kind(),
                format!("cannot write the report {}: {e}", path.display()),
            )
        })?;
        self.due = Some(begun + EVERY.max(begun.elapsed() * SHARE));
        Ok(())
    }
}

/// Whether a path leads to something that is written to, not replaced: no regular file (a pipe, a terminal), or one that a process
/// has open under a name such as `/dev/stdout`, whatever that is at the moment.
fn is_stream(path: &Path) -> bool {
    path.starts_with("/dev/fd")
        || path.starts_with("/proc")
        || ["/dev/stdout", "/dev/stderr"]
            .iter()
            .any(|p| path == Path::new(p))
        || std::fs::metadata(path).is_ok_and(|m| !m.is_file())
}

/// Writes a file so that a reader, or a crash, sees the old text or the new one, never a part. A stream (`/dev/stdout`, a pipe) is
/// written to as it is.
///
/// # Errors
/// The errno of the call that failed.
pub fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    // Opened anew, a file that these lead to would have an offset of its own, and each would overwrite the other.
    match path.to_str() {
        Some("/dev/stdout") => return io::stdout().lock().write_all(text.as_bytes()),
        Some("/dev/stderr") => return io::stderr().lock().write_all(text.as_bytes()),
        _ => {}
    }
    if is_stream(path) {
        return std::fs::OpenOptions::new()
            .append(true)
            .open(path)?
            .write_all(text.as_bytes());
    }
    // A symbolic link stays one: its target is what is replaced.
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let dir = match target.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    let mut file = tempfile::Builder::new()
        .prefix(".graphtest-report-")
        .permissions(mode)
        .tempfile_in(dir)?;
    file.write_all(text.as_bytes())?;
    file.persist(&target)?;
    Ok(())
}

#[cfg(test)]
mod tests;
