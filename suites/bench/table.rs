//! Our archive code and drivers beside the tools that people know, run in turns; prints one table.
//!
//! `cargo bench --bench table [-- FILTER]`. Every contender runs as a process of its own, so that peak memory is its own; a round runs each
//! contender once, and medians of the rounds are compared, so that a busy machine slows both sides alike.

#[path = "socket.rs"]
mod socket;
#[path = "support.rs"]
mod support;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use graphtest::archive::{
    ApplyOptions, ChangesOptions, LayerStream, WriteOptions, apply, changes, changes_with,
};
use graphtest::graphdriver::CreateOpts;
use graphtest::lab::vm::{Accel, Emulator};
use graphtest::lab::{Backing, GivenBack, Register, provision};
use graphtest::sys;
use graphtest::tree::Timestamp;
use rustix::fs::{Mode, OFlags};

/// Set for the child that does one piece of work; holds its name.
const WORK: &str = "GRAPHTEST_BENCH_WORK";
/// How large the large file is.
const LARGE: u64 = 1 << 30;
/// How many changes one file of [`support::make_tree`] makes: itself and the two directories above.
const CHANGED: usize = 3;

/// One line of the table.
struct Line {
    name: String,
    ours: Contender,
    theirs: Contender,
    /// Gives back what was made for the line.
    end: Box<dyn FnOnce()>,
}

struct Contender {
    name: &'static str,
    command: Box<dyn Fn() -> Command>,
    /// Undoes what the last run left.
    reset: Box<dyn Fn()>,
}

impl Contender {
    fn reset_by(mut self, reset: impl Fn() + 'static) -> Self {
        self.reset = Box::new(reset);
        self
    }
}

fn main() {
    if let Ok(work) = std::env::var(WORK) {
        return child(&work);
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|a| a == "--test" || a == "--list") {
        return;
    }
    let filter = args.iter().find(|a| !a.starts_with('-'));
    let rounds = std::env::var("GRAPHTEST_BENCH_ROUNDS").ok();
    let rounds: usize = rounds.map_or(7, |r| {
        r.parse().expect("GRAPHTEST_BENCH_ROUNDS is a number")
    });
    let work = support::work_dir();
    println!(
        "{:<34} {:>22} {:>22} {:>7} {:>10}",
        "work", "ours", "theirs", "ratio", "peak KiB"
    );
    for make in LINES {
        let (name, make) = make;
        if filter.is_none_or(|f| name.contains(f.as_str())) {
            if let (true, Err(why)) = (name.starts_with("guest"), Emulator::find(Accel::Auto)) {
                println!("{name:<34} not run: {why}");
                continue;
            }
            let place = work.path().join(name);
            std::fs::create_dir(&place).expect("mkdir");
            let line = make(name, &place);
            measure(&line, rounds);
            (line.end)();
            std::fs::remove_dir_all(&place).expect("the bench's own directory");
        }
    }
}

type MakeLine = fn(&str, &Path) -> Line;
const LINES: &[(&str, MakeLine)] = &[
    ("write-20000-small-files", write_small),
    ("write-1-GiB-file", write_large),
    ("apply-20000-small-files", apply_small),
    ("apply-1-GiB-file", apply_large),
    ("vfs-create-20000-small-files", vfs_create),
    ("backing-ext4", backing),
    ("backing-xfs", backing),
    ("backing-btrfs", backing),
    ("btrfs-create-child", btrfs),
    ("btrfs-get-and-put", btrfs),
    ("btrfs-remove", btrfs),
    ("changes-100000-equal", |name, at| {
        changes_line(name, at, true)
    }),
    ("changes-100000-equal-by-content", |name, at| {
        changes_line(name, at, false)
    }),
    ("btrfs-changes-1-of-100000", btrfs_changes),
    ("plugin-10000-calls", plugin),
    ("plugin-diff-20000-small-files", plugin),
    ("plugin-diff-1-GiB-file", plugin),
    ("plugin-apply-20000-small-files", plugin),
    ("plugin-apply-1-GiB-file", plugin),
    ("guest-first-verdict", guest),
];

fn measure(line: &Line, rounds: usize) {
    let (mut ours, mut theirs, mut peak) = (Vec::new(), Vec::new(), 0);
    // The first round warms the caches and does not count.
    for round in 0..=rounds {
        let mut turns = [(&line.ours, &mut ours), (&line.theirs, &mut theirs)];
        if round % 2 == 1 {
            // What one leaves to be written back, the next one waits for.
            turns.reverse();
        }
        for (contender, times) in turns {
            (contender.reset)();
            let (time, memory) = run(&mut (contender.command)());
            if round > 0 {
                times.push(time);
            }
            if std::ptr::eq(contender, &line.ours) {
                peak = peak.max(memory);
            }
        }
    }
    let (a, b) = (median(&mut ours), median(&mut theirs));
    println!(
        "{:<34} {:>22} {:>22} {:>7.2} {:>10}",
        line.name,
        format!("{} {:.4}s", line.ours.name, a.as_secs_f64()),
        format!("{} {:.4}s", line.theirs.name, b.as_secs_f64()),
        a.as_secs_f64() / b.as_secs_f64(),
        peak
    );
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Runs a command, throws its output away, and gives the time (the child's own, where it says one) and, where the child is this
/// program, its peak memory in KiB.
fn run(command: &mut Command) -> (Duration, u64) {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it can be run");
    support::drain(child.stdout.take().expect("piped"));
    let mut said = String::new();
    child
        .stderr
        .take()
        .expect("piped")
        .read_to_string(&mut said)
        .expect("read");
    let status = child.wait().expect("wait");
    let time = start.elapsed();
    assert!(status.success(), "{command:?}: {status}: {said}");
    let told = |what: &str| {
        let mut lines = said.lines();
        lines.find_map(|l| l.strip_prefix(what)?.parse().ok())
    };
    let time = told("nanoseconds ").map_or(time, Duration::from_nanos);
    (time, told("peak ").unwrap_or(0))
}

/// A child of this program that does `work` with these paths.
fn ours(work: &'static str, args: Vec<PathBuf>) -> Contender {
    let command = move || {
        let mut command = Command::new(std::env::current_exe().expect("our own path"));
        command.env(WORK, work).args(&args);
        command
    };
    Contender {
        name: "graphtest",
        command: Box::new(command),
        reset: Box::new(|| {}),
    }
}

fn theirs(name: &'static str, args: Vec<PathBuf>) -> Contender {
    let command = move || {
        let mut command = Command::new(name);
        command.args(&args);
        command
    };
    Contender {
        name,
        command: Box::new(command),
        reset: Box::new(|| {}),
    }
}

/// From nothing to the verdict on one scenario in a guest, beside a guest that only comes up and goes; both from a cache that has the
/// kernel. The first round fetches it.
fn guest(_: &str, at: &Path) -> Line {
    let state = at.join("state");
    let of = |name, words: &'static str| {
        let (at, state) = (at.to_path_buf(), state.clone());
        let command = move || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_graphtest"));
            command.args(words.split(' ')).current_dir(&at);
            command.env("GRAPHTEST_STATE", &state);
            command
        };
        Contender {
            name,
            command: Box::new(command),
            reset: Box::new(|| {}),
        }
    };
    Line {
        name: "guest-first-verdict".to_string(),
        ours: of(
            "graphtest",
            "run --kernel 6.1 --target overlay2 --on tmpfs whiteouts/delete-lower-file",
        ),
        theirs: of("bare guest", "vm run 6.1 -- /bin/busybox true"),
        end: Box::new(|| {}),
    }
}

fn child(work: &str) {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    match work {
        "write" => {
            let root = support::open_dir(&args[0]);
            let mut stream =
                LayerStream::full(root.as_fd(), WriteOptions::default()).expect("open");
            // Not through `Stdout`, which looks for line ends.
            let stdout = std::io::stdout().as_fd().try_clone_to_owned();
            let mut out = std::fs::File::from(stdout.expect("stdout"));
            let mut buffer = vec![0; 32 * 1024];
            loop {
                let n = stream.read(&mut buffer).expect("read");
                if n == 0 {
                    break;
                }
                out.write_all(&buffer[..n]).expect("write");
            }
        }
        "apply" => {
            let mut archive = std::fs::File::open(&args[0]).expect("open");
            let root = support::open_dir(&args[1]);
            apply(root.as_fd(), &mut archive, &ApplyOptions::default()).expect("apply");
        }
        "create" => {
            let driver = support::driver("vfs", &args[0]);
            let create = driver.create("child", Some("base"), &CreateOpts::default());
            create.expect("create");
        }
        "backing" => {
            let register = Register::open(&args[0].join("state")).expect("a register");
            let name = args[1].to_string_lossy();
            let backing: Backing = name.parse().expect("a backing");
            let made = provision(&backing, &register).expect("made");
            let given = made.give_back(&register);
            assert_eq!(given, GivenBack::default(), "{name}");
            register.close().expect("closed");
        }
        "btrfs" => {
            let took = btrfs_calls(&args[0], &args[1].to_string_lossy(), args.len() > 2);
            eprintln!("nanoseconds {}", took.as_nanos());
        }
        "plugin" => {
            let driver = match args.len() {
                3 => socket::through_socket(&args[0]),
                _ => support::driver(socket::DRIVER, &args[0]),
            };
            let name = args[1].to_string_lossy();
            let took = if name.contains("calls") {
                socket::calls(driver.as_ref())
            } else if name.contains("diff") {
                socket::diff(driver.as_ref())
            } else {
                socket::apply(driver.as_ref(), &args[0].join("layer.tar"))
            };
            eprintln!("nanoseconds {}", took.as_nanos());
        }
        "changes" => {
            let (new, old) = (support::open_dir(&args[0]), support::open_dir(&args[1]));
            let settled = args.get(2).map(|t| parse_time(&t.to_string_lossy()));
            let options = ChangesOptions {
                settled,
                touched: None,
            };
            let found = changes_with(new.as_fd(), Some(old.as_fd()), &options).expect("compare");
            assert!(found.is_empty(), "the trees are equal");
        }
        "layer-changes" => {
            let driver = support::driver("btrfs", &args[0]);
            let found = driver.changes("child", Some("base")).expect("compare");
            assert_eq!(found.len(), CHANGED, "{found:?}");
        }
        "walk-changes" => {
            let (new, old) = (support::open_dir(&args[0]), support::open_dir(&args[1]));
            let found = changes(new.as_fd(), Some(old.as_fd())).expect("compare");
            assert_eq!(found.len(), CHANGED, "{found:?}");
        }
        "statx" => {
            assert_eq!(support::bare_statx(&[&args[0], &args[1]]) % 2, 0);
        }
        other => panic!("unknown work {other}"),
    }
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let peak = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:")?.split_whitespace().next());
    eprintln!("peak {}", peak.expect("VmHWM"));
}

fn parse_time(text: &str) -> Timestamp {
    let (secs, nanos) = text.split_once('.').expect("SECS.NANOS");
    Timestamp {
        secs: secs.parse().expect("a number"),
        nanos: nanos.parse().expect("a number"),
    }
}

fn write_small(name: &str, at: &Path) -> Line {
    support::make_tree(&at.join("tree"), 20_000, 1000);
    write_line(name, at)
}

fn write_large(name: &str, at: &Path) -> Line {
    std::fs::create_dir(at.join("tree")).expect("mkdir");
    support::make_large_file(&at.join("tree/large"), LARGE);
    write_line(name, at)
}

fn write_line(name: &str, at: &Path) -> Line {
    let tree = at.join("tree");
    Line {
        name: name.into(),
        ours: ours("write", vec![tree.clone()]),
        theirs: theirs("tar", ["-c".into(), "-C".into(), tree, ".".into()].into()),
        end: Box::new(|| {}),
    }
}

fn apply_small(name: &str, at: &Path) -> Line {
    support::make_tree(&at.join("tree"), 20_000, 1000);
    apply_line(name, at)
}

fn apply_large(name: &str, at: &Path) -> Line {
    std::fs::create_dir(at.join("tree")).expect("mkdir");
    support::make_large_file(&at.join("tree/large"), LARGE);
    apply_line(name, at)
}

/// Both unpack one archive into an empty directory of their own.
fn apply_line(name: &str, at: &Path) -> Line {
    let (archive, out) = (at.join("layer.tar"), at.join("out"));
    support::write_archive(&at.join("tree"), &archive);
    let reset = {
        let out = out.clone();
        move || support::empty_dir(&out)
    };
    let args = vec![
        "-x".into(),
        "-f".into(),
        archive.clone(),
        "-C".into(),
        out.clone(),
    ];
    Line {
        name: name.into(),
        ours: ours("apply", vec![archive, out]).reset_by(reset.clone()),
        theirs: theirs("tar", args).reset_by(reset),
        end: Box::new(|| {}),
    }
}

fn vfs_create(name: &str, at: &Path) -> Line {
    let driver = support::driver("vfs", at);
    let base = support::filled_layer(driver.as_ref(), "base", |root| {
        support::make_tree(root, 20_000, 1000);
    });
    let copy = at.join("copy");
    let args = vec!["-a".into(), base, copy.clone()];
    Line {
        name: name.into(),
        ours: ours("create", vec![at.into()])
            .reset_by(move || driver.remove("child").expect("remove")),
        theirs: theirs("cp", args).reset_by(move || {
            if copy.exists() {
                std::fs::remove_dir_all(&copy).expect("the last copy");
            }
        }),
        end: Box::new(|| {}),
    }
}

/// A filesystem in a loop device, made, probed, checked and taken away; beside the same by the tools, without probing.
fn backing(name: &str, at: &Path) -> Line {
    const BY_HAND: &str = "cd $0 && rm -f image && truncate -s 4G image && mkfs.$1 -q $2 image && mkdir -p on && \
        mount -o loop image on && umount on && $3 image";
    let kind = name.trim_start_matches("backing-");
    let (options, check) = match kind {
        "ext4" => ("-Fb4096", "e2fsck -fn"),
        "xfs" => ("-fK", "xfs_repair -n -f"),
        _ => ("-fK", "btrfs check --readonly"),
    };
    let mut by_hand = theirs(
        "sh",
        vec![
            "-c".into(),
            BY_HAND.into(),
            at.into(),
            kind.into(),
            options.into(),
            check.into(),
        ],
    );
    by_hand.name = "mkfs, mount, fsck";
    Line {
        name: name.into(),
        ours: ours("backing", vec![at.into(), kind.into()]),
        theirs: by_hand,
        end: Box::new(|| {}),
    }
}

/// How many layers are made and removed, and how often one is got.
const LAYERS: usize = 50;
const GETS: usize = 20_000;

/// Calls of our driver beside the bare system calls, on one filesystem in a loop device.
fn btrfs(name: &str, at: &Path) -> Line {
    let register = Register::open(&at.join("state")).expect("a register");
    let made = provision(&"btrfs".parse().expect("a backing"), &register).expect("made");
    let root = made.place.dir.clone();
    let driver = support::driver("btrfs", &root);
    support::filled_layer(driver.as_ref(), "base", |base| {
        support::make_tree(base, 1000, 1000);
    });
    drop(driver);
    let mut bare = ours("btrfs", vec![root.clone(), name.into(), "bare".into()]);
    bare.name = "bare calls";
    Line {
        name: name.into(),
        ours: ours("btrfs", vec![root, name.into()]),
        theirs: bare,
        end: Box::new(move || {
            assert_eq!(made.give_back(&register), GivenBack::default());
            register.close().expect("closed");
        }),
    }
}

/// Makes [`LAYERS`] children of the layer `base`, gets one, and removes them, by our driver or by the system calls that it cannot do
/// without. Gives the time of the calls that `what` names.
fn btrfs_calls(root: &Path, what: &str, bare: bool) -> Duration {
    let driver = support::driver("btrfs", root);
    let layers = support::open_dir(&root.join("btrfs/subvolumes"));
    let base = support::open_dir(&root.join("btrfs/subvolumes/base"));
    let ids: Vec<String> = (0..LAYERS).map(|n| format!("layer-{n}")).collect();
    let mut times = Vec::new();
    let mut timed = |name: &str, calls: &dyn Fn()| {
        let start = Instant::now();
        calls();
        times.push((name.to_string(), start.elapsed()));
        // What the one leaves to be written is not the other's to wait for.
        sys::btrfs::sync(layers.as_fd()).expect("sync");
    };
    timed("btrfs-create-child", &|| {
        for id in &ids {
            if bare {
                sys::btrfs::snapshot(layers.as_fd(), id.as_bytes(), base.as_fd()).expect("made");
            } else {
                let create = driver.create(id, Some("base"), &CreateOpts::default());
                create.expect("create");
            }
        }
    });
    timed("btrfs-get-and-put", &|| {
        for _ in 0..GETS {
            if bare {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let dir = rustix::fs::openat(&layers, ids[0].as_str(), flags, Mode::empty());
                let dir = dir.expect("open");
                assert!(sys::btrfs::is_subvolume(dir.as_fd()).expect("fstat"));
            } else {
                driver.get(&ids[0], "").expect("get");
                driver.put(&ids[0]).expect("put");
            }
        }
    });
    timed("btrfs-remove", &|| {
        for id in &ids {
            if bare {
                sys::btrfs::destroy(layers.as_fd(), id.as_bytes()).expect("removed");
            } else {
                driver.remove(id).expect("remove");
            }
        }
    });
    let (_, took) = times
        .into_iter()
        .find(|(name, _)| name == what)
        .expect("it was timed");
    took
}

/// A driver through the socket of a server, beside the same in this process, on one home.
fn plugin(name: &str, at: &Path) -> Line {
    let driver = support::driver(socket::DRIVER, at);
    let base = support::filled_layer(driver.as_ref(), "base", |root| {
        if name.contains("20000") {
            support::make_tree(root, 20_000, 1000);
        } else if name.contains("GiB") {
            support::make_large_file(&root.join("large"), LARGE);
        }
    });
    if name.contains("apply") {
        support::write_archive(&base, &at.join("layer.tar"));
    }
    drop(driver);
    let served = socket::Served::start(at);
    let mut here = ours("plugin", vec![at.into(), name.into()]);
    here.name = "in process";
    let mut there = ours("plugin", vec![at.into(), name.into(), "socket".into()]);
    there.name = "socket";
    Line {
        name: name.into(),
        ours: there,
        theirs: here,
        end: Box::new(move || drop(served)),
    }
}

fn changes_line(name: &str, at: &Path, settled: bool) -> Line {
    let (new, old) = (at.join("new"), at.join("old"));
    support::make_tree(&old, 100_000, 100);
    let mark = support::copy_tree(&old, &new);
    let mut args = vec![new.clone(), old.clone()];
    if settled {
        args.push(format!("{}.{}", mark.secs, mark.nanos).into());
    }
    let mut bare = ours("statx", vec![new, old]);
    bare.name = "bare statx";
    Line {
        name: name.into(),
        ours: ours("changes", args),
        theirs: bare,
        end: Box::new(|| {}),
    }
}

/// The changes of a layer in which one file of many was written since the last round, by the driver and by a walk over all.
fn btrfs_changes(name: &str, at: &Path) -> Line {
    let mounted = Mounted::btrfs(at);
    let driver = support::driver("btrfs", &mounted.0);
    let base = support::filled_layer(driver.as_ref(), "base", |root| {
        support::make_tree(root, 100_000, 100);
    });
    let status = Command::new("sync").arg("-f").arg(&mounted.0).status();
    assert!(status.expect("sync can be run").success());
    let opts = CreateOpts::default();
    driver.create("child", Some("base"), &opts).expect("create");
    let child = driver.get("child", "").expect("get");
    let file = child.join("group-000/dir-0000/file-000000");
    let write = move || std::fs::write(&file, "changed").expect("write");
    let mut walk = ours("walk-changes", vec![child, base]).reset_by(write.clone());
    walk.name = "walk";
    let native = ours("layer-changes", vec![mounted.0.clone()]).reset_by(write);
    Line {
        end: Box::new(move || drop(mounted)),
        name: name.into(),
        ours: native,
        theirs: walk,
    }
}

/// A filesystem in an image, unmounted when it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn btrfs(at: &Path) -> Self {
        let script = "cd $0 && truncate -s 4G image && mkfs.btrfs -qK image && mkdir on && mount -o loop image on";
        let status = Command::new("sh").args(["-c", script]).arg(at).status();
        assert!(status.expect("sh can be run").success(), "a btrfs is made");
        Self(at.join("on"))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(status.expect("umount can be run").success());
    }
}
