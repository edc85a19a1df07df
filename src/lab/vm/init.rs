//! The first process of a guest: it finds the root, mounts what every program expects, does the job, tells the host all of it, and turns
//! the machine off.

use crate::sync::lock;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::mount_move;
use rustix::process::{WaitOptions, chroot, wait};
use rustix::system::{RebootCommand, reboot};
use rustix::termios::{OptionalActions, tcdrain, tcgetattr, tcsetattr};

use super::image::PROGRAM;
use super::initrd::FIRST;
use super::wire::{JOB_DIR, Job, Message};
use crate::sys::mount::{MountFlags, bind, mount};

/// The line to the host, the console, and the disks by the serial numbers of the emulator's command line.
const LINE: &str = "/dev/ttyS1";
const CONSOLE: &str = "/dev/ttyS0";
const ROOT: &str = "root";
const WORK: &str = "work";
const JOB: &str = "job";

/// How long the kernel may take to find a disk, and how often it is looked for.
const DISK_PATIENCE: Duration = Duration::from_secs(30);
const DISK_PAUSE: Duration = Duration::from_millis(2);

/// How often the guest says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// The line to the host, for all threads.
type Line = Arc<Mutex<File>>;

fn say(line: &Line, message: &Message) -> io::Result<()> {
    message.write(&mut *lock(line))
}

/// Does everything; to be called in the first process of a guest and nowhere else.
///
/// # Errors
/// This is not the first process. In a guest it does not return.
pub fn main() -> io::Result<()> {
    if !rustix::process::getpid().is_init() {
        return Err(io::Error::other(
            "only the first process of a guest does this",
        ));
    }
    if let Err(e) = carry_out() {
        // The line may be what failed; the host shows the console's last lines.
        eprintln!("guest: {e}");
    }
    rustix::fs::sync();
    reboot(RebootCommand::PowerOff)?;
    loop {
        std::thread::park();
    }
}

fn carry_out() -> io::Result<()> {
    // Before anything else that can fail: the line.
    mount_if_needed("devtmpfs", "/dev")?;
    let line = OpenOptions::new().write(true).open(LINE)?;
    let mut attributes = tcgetattr(&line)?;
    attributes.make_raw();
    tcsetattr(&line, OptionalActions::Now, &attributes)?;
    let line: Line = Arc::new(Mutex::new(line));
    let release = rustix::system::uname();
    say(
        &line,
        &Message::Hello(release.release().to_string_lossy().into_owned()),
    )?;
    let job = enter_root().and_then(|()| settle());
    let last = match job.and_then(|job| work(&job, &line)) {
        Ok(status) => Message::Done(status),
        Err(e) => Message::Failed(e.to_string()),
    };
    say(&line, &last)?;
    let line = lock(&line);
    Ok(tcdrain(&*line)?)
}

fn mount_if_needed(fs_type: &str, path: &str) -> io::Result<()> {
    match mount(
        Path::new(fs_type),
        Path::new(path),
        fs_type,
        MountFlags::empty(),
        b"",
    ) {
        // The kernel has mounted it itself.
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => Ok(()),
        Err(e) => Err(io::Error::new(e.kind(), format!("mount {path}: {e}"))),
        Ok(()) => Ok(()),
    }
}

/// Makes the root's disk the root, with this program in it, and devices and the kernel's own tree as they are.
fn enter_root() -> io::Result<()> {
    let said = |what: &str| {
        let what = what.to_string();
        move |e: io::Error| io::Error::new(e.kind(), format!("{what}: {e}"))
    };
    mount_if_needed("sysfs", "/sys")?;
    let root = Path::new("/root");
    let flags = MountFlags::RDONLY;
    mount(&disk(ROOT)?, root, "ext4", flags, b"").map_err(said(
        "mount the root, for which the kernel must have CONFIG_EXT4_FS=y",
    ))?;
    let program = root.join(PROGRAM.trim_start_matches('/'));
    bind(Path::new(FIRST), &program).map_err(said("mount the program"))?;
    for kept in ["dev", "sys"] {
        mount_move(Path::new("/").join(kept), root.join(kept))?;
    }
    std::env::set_current_dir(root)?;
    mount_move(".", "/")?;
    chroot(".")?;
    std::env::set_current_dir("/")
}

/// Mounts everything, makes the files of the job, and returns it.
fn settle() -> io::Result<Job> {
    mount_if_needed("proc", "/proc")?;
    for path in ["/run", "/tmp", "/var", "/root"] {
        mount_if_needed("tmpfs", path)?;
    }
    fs::set_permissions("/tmp", std::os::unix::fs::PermissionsExt::from_mode(0o1777))?;
    for dir in [
        "/dev/shm",
        "/dev/pts",
        "/dev/mapper",
        "/var/tmp",
        "/var/lib",
        JOB_DIR,
    ] {
        fs::create_dir_all(dir)?;
    }
    mount_if_needed("devpts", "/dev/pts")?;
    mount_if_needed("tmpfs", "/dev/shm")?;
    make_nodes()?;
    // Tables that are not yet zeroed are of no use to zero on a disk that is thrown away.
    mount(
        &disk(WORK)?,
        Path::new("/work"),
        "ext4",
        MountFlags::NOATIME,
        b"noinit_itable",
    )
    .map_err(|e| io::Error::new(e.kind(), format!("mount the scratch disk: {e}")))?;
    let mut bytes = Vec::new();
    File::open(disk(JOB)?)?.read_to_end(&mut bytes)?;
    let job = Job::from_disk(&bytes)?;
    for (name, text) in &job.files {
        fs::write(Path::new(JOB_DIR).join(name), text)?;
    }
    Ok(job)
}

/// Makes the device nodes for which the kernel loads a module when they are opened; without udev nobody else does: modules.devname, as
/// depmod(8) writes it.
fn make_nodes() -> io::Result<()> {
    let release = rustix::system::uname();
    let lists = Path::new("/lib/modules").join(&*release.release().to_string_lossy());
    let list = match fs::read_to_string(lists.join("modules.devname")) {
        // A kernel without modules: what it has, it has nodes for.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for (name, kind, device) in list.lines().filter_map(node) {
        let path = Path::new("/dev").join(name);
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        match mknodat(CWD, &path, kind, Mode::from_raw_mode(0o600), device) {
            Err(rustix::io::Errno::EXIST) | Ok(()) => {}
            Err(e) => {
                let what = format!("make {}: {e}", path.display());
                return Err(io::Error::new(e.kind(), what));
            }
        }
    }
    Ok(())
}

/// A line of modules.devname: `fuse fuse c10:229`.
fn node(line: &str) -> Option<(&str, FileType, u64)> {
    let mut words = line.split(' ');
    let (_, name, device) = (words.next()?, words.next()?, words.next()?);
    let kind = match device.get(..1)? {
        "c" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        _ => return None,
    };
    let (major, minor) = device[1..].split_once(':')?;
    Some((
        name,
        kind,
        makedev(major.parse().ok()?, minor.parse().ok()?),
    ))
}

/// The disk with this serial number: kernels from 6.12 on number disks in whatever order they find them, and none waits with starting
/// its first process until it has.
fn disk(serial: &str) -> io::Result<PathBuf> {
    let begun = Instant::now();
    loop {
        for entry in fs::read_dir("/sys/block")? {
            let name = entry?.file_name();
            let said =
                fs::read_to_string(Path::new("/sys/block").join(&name).join("device/serial"));
            let node = Path::new("/dev").join(name);
            if said.is_ok_and(|s| s.trim() == serial) && node.exists() {
                return Ok(node);
            }
        }
        if begun.elapsed() > DISK_PATIENCE {
            let what = "the kernel must have CONFIG_BLK_DEV_NVME=y";
            return Err(io::Error::other(format!("no disk {serial}: {what}")));
        }
        std::thread::sleep(DISK_PAUSE);
    }
}

/// Runs the job's program to its end, and returns its status; 128 and the signal's number when one killed it.
fn work(job: &Job, line: &Line) -> io::Result<i32> {
    let [program, arguments @ ..] = &job.argv[..] else {
        return Err(io::Error::other("a job without a program"));
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("TERM", std::env::var("TERM").as_deref().unwrap_or("linux"))
        .current_dir("/work");
    let (mut out, mut err) = (None, None);
    if job.interactive {
        let console = OpenOptions::new().read(true).write(true).open(CONSOLE)?;
        command
            .stdin(console.try_clone()?)
            .stdout(console.try_clone()?)
            .stderr(console);
        // So that keys can interrupt it.
        crate::sys::spawn::with_own_terminal(&mut command);
    } else {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.process_group(0);
    }
    let mut child = command
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("start {program}: {e}")))?;
    if let (Some(o), Some(e)) = (child.stdout.take(), child.stderr.take()) {
        out = Some(forward(OwnedFd::from(o), line, Message::Out));
        err = Some(forward(OwnedFd::from(e), line, Message::Err));
    }
    let beat = Arc::clone(line);
    std::thread::spawn(move || {
        while say(&beat, &Message::Alive).is_ok() {
            std::thread::sleep(HEARTBEAT);
        }
    });
    let status = status_of(child.id())?;
    // What the program wrote is still on its way; a process that it left behind may hold the pipes open for ever.
    for thread in [out, err].into_iter().flatten() {
        let begun = Instant::now();
        while !thread.is_finished() && begun.elapsed() < HEARTBEAT {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(status)
}

/// Tells the host what comes out of a pipe, on a thread.
fn forward(
    from: OwnedFd,
    line: &Line,
    message: fn(Vec<u8>) -> Message,
) -> std::thread::JoinHandle<()> {
    let (mut from, line) = (File::from(from), Arc::clone(line));
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(n) = from.read(&mut buffer) {
            if n == 0 || say(&line, &message(buffer[..n].to_vec())).is_err() {
                return;
            }
        }
    })
}

/// Waits for a child, and for every orphan that ends in the meantime, as only the first process can.
fn status_of(child: u32) -> io::Result<i32> {
    loop {
        let Some((pid, status)) = wait(WaitOptions::empty())? else {
            continue;
        };
        if pid.as_raw_nonzero().get().cast_unsigned() == child {
            let killed = status.terminating_signal().map(|s| 128 + s);
            return Ok(status.exit_status().or(killed).unwrap_or(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_made_as_the_list_says() {
        let c = |name, minor| Some((name, FileType::CharacterDevice, makedev(10, minor)));
        assert_eq!(node("fuse fuse c10:229"), c("fuse", 229));
        assert_eq!(
            node("dm_mod mapper/control c10:236"),
            c("mapper/control", 236)
        );
        let block = Some(("loop0", FileType::BlockDevice, makedev(7, 0)));
        assert_eq!(node("loop loop0 b7:0"), block);
        for other in [
            "# Device nodes to trigger on-demand module loading.",
            "",
            "a b",
            "a b cx:1",
            "a b c1",
        ] {
            assert_eq!(node(other), None, "{other}");
        }
    }
}
