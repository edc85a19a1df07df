//! A guest that runs, as its host sees it: started, listened to, and ended; whatever becomes of it within its deadlines.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::cache::Cache;
use super::emulator::{Emulator, Files};
use super::error::{Result, at, cannot};
use super::kernel::Kernel;
use super::program::Program;
use super::userland::Userland;
use super::wire::{Job, Message};
use super::{image, initrd};
use crate::lab::Register;
use crate::sys::spawn::die_with_starter;

/// Everything that guests of one kernel are started with.
#[derive(Clone, Debug)]
pub struct Lab {
    /// The cache.
    pub cache: Cache,
    /// The emulator.
    pub emulator: Emulator,
    /// The programs in guests.
    pub userland: Userland,
    /// The graphtest program that guests run.
    pub program: Program,
    /// How much memory a guest has, in MiB.
    pub memory_mib: u32,
    /// For how long a guest may be silent once it is up, and how long it may take until then.
    pub deadlines: Deadlines,
    /// A file to which the console of each guest is added, of which kernels then say everything.
    pub console: Option<PathBuf>,
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// From the start of the emulator to the guest's greeting.
    pub boot: Duration,
    /// Between two signs of life of a guest.
    pub silence: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        // Kernels from 6.12 on take 5 s where 6.1 takes 3, and four times as long on a machine that has much else to do.
        Self {
            boot: Duration::from_secs(120),
            silence: Duration::from_secs(60),
        }
    }
}

/// How large a guest's scratch disk seems, in bytes.
const SCRATCH: u64 = 16 << 30;

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Its job ended with this status.
    Done(i32),
    /// The caller did not want it any longer; the last lines of its console.
    Stopped(Vec<String>),
    /// It broke.
    Broken(Broken),
}

/// A guest that did not come up, died or hung.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Whether it had come up.
    pub greeted: bool,
    /// In one line.
    pub why: String,
    /// The last lines of its console.
    pub console: Vec<String>,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)?;
        if self.console.is_empty() {
            return f.write_str("; its console is empty");
        }
        f.write_str("; the last lines of its console:")?;
        self.console
            .iter()
            .try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// What a guest says, as it comes.
#[derive(Debug)]
pub enum Said<'a> {
    /// It is up, after this long.
    Up(Duration),
    /// Its job wrote to standard output.
    Out(&'a [u8]),
    /// Its job wrote to standard error.
    Err(&'a [u8]),
}

/// A directory with a guest's files, given back when dropped; whoever is killed before leaves it to `graphtest clean`.
struct Made<'a> {
    register: &'a Register,
    dir: PathBuf,
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if let Err(why) = self.register.give_back(&self.dir) {
            eprintln!("note: a guest's files are left: {why}");
        }
    }
}

/// An emulator that ends when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Lab {
    /// Runs a job in a new guest until it ends. `on` is told what it says; as soon as `stop` says so, the guest is ended.
    ///
    /// # Errors
    /// The guest cannot be made: a disk is full, the emulator is missing. That it breaks is no error, see [`End::Broken`].
    pub fn run(
        &self,
        kernel: &Kernel,
        job: &Job,
        register: &Register,
        stop: &dyn Fn() -> bool,
        on: &mut dyn FnMut(Said<'_>),
    ) -> Result<End> {
        let root = image::root(&self.cache, &self.userland, kernel)?;
        let guests = self.cache.subdir("guests")?;
        let dir = register
            .make_dir(&guests)
            .map_err(at(&guests, "make a directory"))?;
        let made = Made { register, dir };
        let path = |name: &str| made.dir.join(name);
        let files = Files {
            initrd: &path("initrd"),
            root: &root,
            work: &path("work.ext4"),
            job: &path("job"),
            console: &path("console.log"),
            said: &path("said"),
            interactive: job.interactive,
            talkative: self.console.is_some(),
        };
        write(files.initrd, &initrd::make(&self.userland, &self.program)?)?;
        image::scratch(&self.userland, files.work, SCRATCH)?;
        write(files.job, &job.to_disk().map_err(at(files.job, "write"))?)?;
        let mut command = self.emulator.command(&files, kernel, self.memory_mib);
        die_with_starter(&mut command);
        if job.interactive {
            let child = command.spawn();
            let child = child.map_err(|e| cannot(format!("{:?}: {e}", command.get_program())))?;
            return Ok(attended(Running(child), files.said));
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let log = path("emulator.log");
        command.stderr(File::create_new(&log).map_err(at(&log, "make"))?);
        let mut child = command
            .spawn()
            .map(Running)
            .map_err(|e| cannot(format!("{:?}: {e}", command.get_program())))?;
        let Some(line) = child.0.stdout.take() else {
            return Err(cannot("the emulator has no standard output"));
        };
        let ended = listen(line, &self.deadlines, stop, on);
        // So that what it said last is written.
        drop(child);
        if let Some(to) = &self.console {
            append(files.console, to)?;
        }
        Ok(match ended {
            Ok(Some(status)) => End::Done(status),
            Ok(None) => End::Stopped(last_lines(files.console)),
            Err((greeted, why)) => {
                let mut console = last_lines(files.console);
                console.extend(last_lines(&log));
                End::Broken(Broken {
                    greeted,
                    why,
                    console,
                })
            }
        })
    }
}

/// Writes a file that is not there yet.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    File::create_new(path)
        .and_then(|mut f| f.write_all(bytes))
        .map_err(at(path, "write"))
}

/// Adds a file to another.
fn append(from: &Path, to: &Path) -> Result<()> {
    let mut all = File::options();
    let mut to_file = all
        .create(true)
        .append(true)
        .open(to)
        .map_err(at(to, "open"))?;
    File::open(from)
        .and_then(|mut from| std::io::copy(&mut from, &mut to_file))
        .map(|_| ())
        .map_err(at(to, "write"))
}

/// How often `stop` is asked.
const TICK: Duration = Duration::from_millis(50);

/// Listens to a guest until its end, and returns its job's status, or `None` when `stop` turned true; an error says whether it was up, and
/// what went wrong.
fn listen(
    line: impl Read + Send + 'static,
    deadlines: &Deadlines,
    stop: &dyn Fn() -> bool,
    on: &mut dyn FnMut(Said<'_>),
) -> std::result::Result<Option<i32>, (bool, String)> {
    let messages = messages(line);
    let begun = Instant::now();
    let (mut greeted, mut last) = (false, begun);
    loop {
        if stop() {
            return Ok(None);
        }
        let message = match messages.recv_timeout(TICK) {
            Ok(Ok(message)) => message,
            Ok(Err(e)) => return Err((greeted, format!("the guest talks nonsense: {e}"))),
            Err(RecvTimeoutError::Disconnected) => {
                let when = if greeted {
                    "while it ran"
                } else {
                    "before it was up"
                };
                return Err((greeted, format!("the guest died {when}")));
            }
            Err(RecvTimeoutError::Timeout) => {
                let (limit, what) = match greeted {
                    true => (deadlines.silence, "gave no sign of life for"),
                    false => (deadlines.boot, "did not come up within"),
                };
                if last.elapsed() > limit {
                    let limit = humantime::format_duration(limit);
                    return Err((
                        greeted,
                        format!(
                            "the guest {what} {limit} (load of this machine: {})",
                            load()
                        ),
                    ));
                }
                continue;
            }
        };
        last = Instant::now();
        match message {
            Message::Hello(_) => {
                greeted = true;
                on(Said::Up(begun.elapsed()));
            }
            Message::Alive => {}
            Message::Out(bytes) => on(Said::Out(&bytes)),
            Message::Err(bytes) => on(Said::Err(&bytes)),
            Message::Done(status) => return Ok(Some(status)),
            Message::Failed(why) => return Err((greeted, format!("the guest says: {why}"))),
        }
    }
}

/// Reads messages on a thread that ends with the line.
fn messages(mut line: impl Read + Send + 'static) -> Receiver<std::io::Result<Message>> {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        while let Some(message) = Message::read(&mut line).transpose() {
            let last = message.is_err();
            if tell.send(message).is_err() || last {
                return;
            }
        }
    });
    told
}

/// The three numbers of `/proc/loadavg`.
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Waits for the end of a guest with which a person talks, and reads what it said.
fn attended(mut child: Running, said: &Path) -> End {
    let _ = child.0.wait();
    let mut end = None;
    if let Ok(mut line) = File::open(said) {
        while let Ok(Some(message)) = Message::read(&mut line) {
            if let Message::Done(status) = message {
                end = Some(End::Done(status));
            }
        }
    }
    end.unwrap_or_else(|| {
        End::Broken(Broken {
            greeted: false,
            why: "the guest ended without a word".to_string(),
            console: Vec::new(),
        })
    })
}

/// How many lines of a console are worth reading.
const LINES: usize = 12;

/// The last lines of a file that are not blank, without what moves a cursor or colours text; of a kernel's panic, its first ones.
fn last_lines(file: &Path) -> Vec<String> {
    let bytes = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let plain = |line: &str| -> String {
        let mut escape = false;
        let kept = line.chars().filter(|c| {
            let was = escape;
            escape = match c {
                '\x1b' => true,
                c if c.is_ascii_alphabetic() => false,
                _ => escape,
            };
            !was && !escape && !c.is_control()
        });
        kept.collect::<String>().trim().to_string()
    };
    let lines: Vec<String> = text.lines().map(plain).filter(|l| !l.is_empty()).collect();
    let signs = [
        "BUG: ",
        "Oops",
        "Kernel panic",
        "general protection fault",
        "double fault",
    ];
    let panic = lines
        .iter()
        .position(|l| signs.iter().any(|s| l.contains(s)));
    let begin = panic.unwrap_or_else(|| lines.len().saturating_sub(LINES));
    lines.into_iter().skip(begin).take(LINES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Deadlines = Deadlines {
        boot: Duration::from_millis(200),
        silence: Duration::from_millis(200),
    };

    fn heard(said: &[Message]) -> std::result::Result<Option<i32>, (bool, String)> {
        let mut line = Vec::new();
        said.iter().for_each(|m| m.write(&mut line).unwrap());
        listen(std::io::Cursor::new(line), &SOON, &|| false, &mut |_| {})
    }

    #[test]
    fn a_guest_that_dies_is_told_from_one_that_ends() {
        let hello = Message::Hello("6.1".to_string());
        let end = heard(&[hello.clone(), Message::Alive, Message::Done(3)]);
        assert_eq!(end, Ok(Some(3)));
        let (greeted, why) = heard(&[]).unwrap_err();
        assert!(!greeted && why.contains("before it was up"), "{why}");
        let (greeted, why) = heard(&[hello, Message::Alive]).unwrap_err();
        assert!(greeted && why.contains("while it ran"), "{why}");
    }

    #[test]
    fn a_guest_that_hangs_has_a_deadline() {
        let (line, _far) = std::io::pipe().unwrap();
        let (greeted, why) = listen(line, &SOON, &|| false, &mut |_| {}).unwrap_err();
        assert!(
            !greeted && why.contains("did not come up within 200ms"),
            "{why}"
        );
        let (line, mut far) = std::io::pipe().unwrap();
        Message::Hello("6.1".to_string()).write(&mut far).unwrap();
        let (greeted, why) = listen(line, &SOON, &|| false, &mut |_| {}).unwrap_err();
        assert!(greeted && why.contains("no sign of life"), "{why}");
        let (line, _far) = std::io::pipe().unwrap();
        assert_eq!(listen(line, &SOON, &|| true, &mut |_| {}), Ok(None));
    }

    #[test]
    fn of_a_console_the_lines_that_tell_are_kept() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("console");
        let many: String = (0..50)
            .map(|i| format!("\x1b[0mline {i}\r\n\r\n"))
            .collect();
        fs::write(&path, &many).unwrap();
        let lines = last_lines(&path);
        assert_eq!((lines.len(), lines[LINES - 1].as_str()), (LINES, "line 49"));
        fs::write(
            &path,
            format!("{many}[ 1.0] Kernel panic - not syncing: x\n{many}"),
        )
        .unwrap();
        assert_eq!(last_lines(&path)[0], "[ 1.0] Kernel panic - not syncing: x");
        assert_eq!(last_lines(&tmp.path().join("none")), Vec::<String>::new());
    }
}
