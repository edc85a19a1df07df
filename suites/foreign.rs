//! A lab that is killed at any moment, and what `graphtest clean` then gives back: all of it, and nothing of anybody else's.
//!
//! The test runs itself as the lab that is killed, told apart by a variable in its environment.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use graphtest::lab::{self, Backing, Fresh, Journal, Register};
use graphtest::sys;
use graphtest::sys::mount::{MountFlags, mount, mount_table, umount};
use libtest_mimic::{Arguments, Failed, Trial};

/// Names the backings of the child.
const BACKINGS: &str = "GRAPHTEST_TEST_BACKINGS";
/// Set for a child without a mount namespace of its own.
const IN_THE_OPEN: &str = "GRAPHTEST_TEST_IN_THE_OPEN";

/// The child: makes backings, uses them and gives them back, until it is killed.
fn child(backings: &str) -> Result<(), String> {
    let register = Register::begin().map_err(|e| e.to_string())?;
    if std::env::var_os(IN_THE_OPEN).is_none() {
        lab::enter_mount_namespace().map_err(|e| e.to_string())?;
    }
    loop {
        for name in backings.split(',') {
            let backing: Backing = name.parse()?;
            let made = lab::provision(&backing, &register).map_err(|e| e.to_string())?;
            fs::write(made.place.dir.join("file"), vec![7; 1 << 20]).map_err(|e| e.to_string())?;
            let wanted = Fresh {
                size: Some(64 << 20),
                inodes: None,
            };
            let own = made.place.fresh(&wanted).map_err(|e| e.to_string())?;
            if made.place.facts.has(lab::Fact::PowerCut) {
                own.cut_power(Journal::Lost, || ())
                    .map_err(|e| e.to_string())?;
            }
            for given in [own.give_back(), made.give_back(&register)] {
                if !given.left.is_empty() || !given.damage.is_empty() {
                    return Err(format!("{name}: {given:?}"));
                }
            }
        }
    }
}

/// Directories of the test's own, and the machine as it was before.
struct Bench {
    tmp: tempfile::TempDir,
}

impl Bench {
    fn new() -> Result<Self, Failed> {
        let tmp = tempfile::Builder::new().prefix("killed-lab-").tempdir()?;
        fs::create_dir(tmp.path().join("made"))?;
        Ok(Self { tmp })
    }

    fn state(&self) -> PathBuf {
        self.tmp.path().join("state")
    }

    fn made(&self) -> PathBuf {
        self.tmp.path().join("made")
    }

    fn start(&self, backings: &str, in_the_open: bool) -> Result<Child, Failed> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .env(BACKINGS, backings)
            .env("GRAPHTEST_STATE", self.state())
            .env("TMPDIR", self.made())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if in_the_open {
            command.env(IN_THE_OPEN, "1");
        }
        Ok(command.spawn()?)
    }

    /// Gives back what dead runs left, while that many go on.
    fn clean_but(&self, running: usize) -> Result<(), Failed> {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let cleaned = lab::clean(&self.state())?;
            expect("not given back", cleaned.left, Vec::new())?;
            // A program that was about to be started holds the lock of a dead run until it is.
            if cleaned.running <= running || Instant::now() > until {
                return expect("still running", cleaned.running, running);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Gives back what dead runs left, and looks that nothing is left.
    fn clean(&self) -> Result<(), Failed> {
        self.clean_but(0)?;
        let until = Instant::now() + Duration::from_secs(5);
        let made: Vec<_> = fs::read_dir(self.made())?.flatten().collect();
        expect("left", made.len(), 0)?;
        expect("runs", fs::read_dir(self.state())?.count(), 0)?;
        let of_it = |path: &Path| path.starts_with(self.tmp.path());
        let mounts: Vec<_> = mount_table()?
            .into_iter()
            .map(|m| m.path)
            .filter(|p| of_it(p))
            .collect();
        expect("mounts", mounts, Vec::new())?;
        expect("programs", programs_below(self.tmp.path()), Vec::new())?;
        loop {
            let loops: Vec<_> = sys::loopdev::attached()?
                .into_iter()
                .filter(|(_, p)| of_it(p))
                .collect();
            if loops.is_empty() || Instant::now() > until {
                return expect("loop devices", loops, Vec::new());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The processes with an argument that names something in `dir`, this one aside.
fn programs_below(dir: &Path) -> Vec<String> {
    let dir = dir.as_os_str().to_string_lossy().into_owned();
    let arguments = |e: fs::DirEntry| fs::read_to_string(e.path().join("cmdline")).ok();
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(arguments)
        .filter(|a| a.contains(&dir))
        .collect()
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Result<(), Failed> {
    if found == wanted {
        return Ok(());
    }
    Err(format!("{what}: {wanted:?} expected, {found:?} found").into())
}

/// Milliseconds after which the child is killed: spread over one round of it, by a sequence that never repeats a step.
fn moments(count: u64, within: u64) -> impl Iterator<Item = Duration> {
    let seed = u64::from(std::process::id());
    // Steps of the golden section fall evenly however many there are.
    (0..count)
        .map(move |i| Duration::from_micros((seed + i).wrapping_mul(618_034) % (within * 1000)))
}

fn kill_at_many_moments(backings: &str, in_the_open: bool, count: u64) -> Result<(), Failed> {
    let bench = Bench::new()?;
    for moment in moments(count, 400) {
        let mut child = bench.start(backings, in_the_open)?;
        std::thread::sleep(moment);
        let ended = child.try_wait()?;
        child.kill()?;
        let out = child.wait_with_output()?;
        if ended.is_some() {
            return Err(format!(
                "it ended by itself: {}",
                String::from_utf8_lossy(&out.stderr)
            )
            .into());
        }
        if !bench.state().exists() {
            // Killed before it did anything.
            continue;
        }
        bench.clean().map_err(|e| {
            format!(
                "killed after {moment:?}: {}",
                e.message().unwrap_or_default()
            )
        })?;
    }
    Ok(())
}

/// Loop devices, mounts and subvolumes that look a little like ours, beside dead runs of ours.
fn nothing_foreign_is_touched() -> Result<(), Failed> {
    sys::ns::enter_private_mount_ns()?;
    let bench = Bench::new()?;
    let foreign = tempfile::Builder::new()
        .prefix(".graphtest-foreign-")
        .tempdir()?;
    let at = |name: &str| foreign.path().join(name);
    let image = at("image0");
    fs::File::create(&image)?.set_len(256 << 20)?;
    let made = Command::new("mkfs.btrfs")
        .args(["-q", "-f"])
        .arg(&image)
        .output();
    expect("mkfs.btrfs", made?.status.code(), Some(0))?;
    // One loop device that is mounted, one that is only held, one on a file in a directory of ours that is not an image of ours.
    let mounted = sys::loopdev::attach(&image, foreign.path())?;
    fs::create_dir(at("on"))?;
    mount(&mounted.node, &at("on"), "btrfs", MountFlags::empty(), b"")?;
    let subvolume = Command::new("btrfs")
        .args(["-q", "subvolume", "create"])
        .arg(at("on/subvolume"))
        .output();
    expect("btrfs subvolume create", subvolume?.status.code(), Some(0))?;
    fs::write(at("on/subvolume/file"), "precious")?;
    fs::File::create(at("held"))?.set_len(1 << 20)?;
    let held = sys::loopdev::attach(&at("held"), foreign.path())?;
    fs::create_dir(at("tmpfs"))?;
    mount(
        Path::new("foreign"),
        &at("tmpfs"),
        "tmpfs",
        MountFlags::empty(),
        b"",
    )?;
    let program = Command::new("sleep")
        .arg("60")
        .current_dir(at("on"))
        .spawn()?;
    let before = foreign_state(foreign.path())?;

    // One is dead, one goes on.
    let dead = bench.start("btrfs,ext4", true)?;
    std::thread::sleep(Duration::from_millis(150));
    let alive = bench.start("btrfs,ext4", true)?;
    std::thread::sleep(Duration::from_millis(150));
    end(dead)?;
    let cleaned = bench.clean_but(1);
    std::thread::sleep(Duration::from_millis(300));
    expect("the run that went on ended", end(alive)?, None)?;
    cleaned?;
    bench.clean()?;
    let after = foreign_state(foreign.path())?;
    let running = end(program)?;
    expect("what is foreign", after, before)?;
    expect("the foreign program ended", running, None)?;
    expect(
        "a file in a subvolume",
        fs::read(at("on/subvolume/file"))?,
        b"precious".to_vec(),
    )?;
    umount(&at("tmpfs"))?;
    umount(&at("on"))?;
    drop((mounted, held));
    Ok(())
}

/// Kills a child; says with what status it had ended by itself.
fn end(mut child: Child) -> std::io::Result<Option<ExitStatus>> {
    let ended = child.try_wait();
    let killed = child.kill();
    child.wait()?;
    killed.and(ended)
}

/// The loop devices and mounts below a directory.
fn foreign_state(dir: &Path) -> Result<BTreeSet<String>, Failed> {
    let dir = dir.canonicalize()?;
    let loops = sys::loopdev::attached()?.into_iter();
    let loops = loops
        .filter(|(_, p)| p.starts_with(&dir))
        .map(|l| format!("{l:?}"));
    let mounts = mount_table()?.into_iter();
    let mounts = mounts
        .filter(|m| m.path.starts_with(&dir))
        .map(|m| format!("{m:?}"));
    Ok(loops.chain(mounts).collect())
}

fn main() -> ExitCode {
    if let Ok(backings) = std::env::var(BACKINGS) {
        return match child(&backings) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("{e}");
                ExitCode::from(3)
            }
        };
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("run as root: sudo -E env PATH=\"$PATH\" cargo test");
        return ExitCode::FAILURE;
    }
    let killed = |name: &'static str, backings: &'static str, in_the_open: bool, count: u64| {
        Trial::test(name, move || {
            kill_at_many_moments(backings, in_the_open, count)
        })
    };
    let trials = vec![
        killed("a_killed_lab_is_given_back", "ext4,xfs,btrfs", false, 24),
        killed(
            "one_with_two_devices_and_programs",
            "btrfs+two,fuse,overlay",
            false,
            16,
        ),
        killed(
            "one_without_a_mount_namespace",
            "fuse,ext4,btrfs+two",
            true,
            24,
        ),
        Trial::test("nothing_foreign_is_touched", nothing_foreign_is_touched),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
