//! A real multi-layer root filesystem through every built-in driver.
//!
//! The layers are made from this machine's own installed system at test time: several thousand files with symbolic and hard
//! links, setuid programs and a file capability. Two further layers delete, replace and add. `cp`, `rm` and GNU tar make the trees and
//! the archives, so that nothing of ours is judged by itself. Each driver applies them, and must show the same trees, name
//! the same changes, give back diffs that apply to the same trees, and the archives byte for byte through tar-split.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, OnceLock};

use graphtest::archive::{self, Change, split};
use graphtest::graphdriver::{Capability, CreateOpts, Driver, InitOptions, layer_files};
use graphtest::harness::Homes;
use graphtest::tree::{self, Compare, Tree};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// What is taken from the installed system; a directory that is not there is left out.
const SOURCES: &[&str] = &[
    "etc",
    "usr/bin",
    "usr/sbin",
    "usr/share/perl",
    "usr/share/zoneinfo",
    "usr/lib/x86_64-linux-gnu/perl-base",
];
/// Fewer files than this would not be the "real" input that the test promises.
const FEWEST: usize = 2000;
/// Larger files are left out: they add time, not shapes.
const LARGEST: u64 = 512 * 1024;

/// One layer: its archive, and the whole tree that must be seen once it is applied.
struct Layer {
    tar: PathBuf,
    tree: Tree,
}

struct Input {
    layers: Vec<Layer>,
}

fn run(cmd: &mut Command) -> Result<(), Failed> {
    let out = cmd.output().map_err(|e| format!("{cmd:?}: {e}"))?;
    if !out.status.success() {
        return Err(format!(
            "{cmd:?}: {}: {}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        )
        .into());
    }
    Ok(())
}

fn sh(script: &str, dir: &Path) -> Result<(), Failed> {
    run(Command::new("sh")
        .args(["-euc", script])
        .current_dir(dir)
        .env("LC_ALL", "C"))
}

fn scan(dir: &Path) -> Result<Tree, Failed> {
    Ok(tree::scan_path(dir, &tree::ScanOptions::default())?)
}

/// Copies the installed system into `root`, and gives it what a small installation may lack.
fn first_root(root: &Path) -> Result<(), Failed> {
    let have: Vec<_> = SOURCES
        .iter()
        .filter(|s| Path::new("/").join(s).is_dir())
        .collect();
    let list = have
        .iter()
        .map(|s| s.to_string())
        .collect::<Vec<_>>()
        .join(" ");
    // A cpio-like copy by GNU tar: links, owners, modes, times and attributes as they are.
    sh(
        &format!(
            "find {list} -xdev \\( -type f -size -{kib}k -o -type l -o -type d \\) -print0 \
             | tar -C / --null --no-recursion -T - --xattrs '--xattrs-include=*' -c | tar -x -p --xattrs '--xattrs-include=*' -C {root}",
            kib = LARGEST / 1024,
            root = root.display()
        ),
        Path::new("/"),
    )?;
    sh(
        "ln usr/bin/env usr/bin/env-too
         ln -s env usr/bin/env-link
         mkfifo etc/initctl
         mkdir -p var/tmp var/log; chmod 1777 var/tmp; chown 33:4 var/log
         cp usr/bin/env usr/bin/ping; chmod 4755 usr/bin/ping; cp usr/bin/env usr/bin/capable
         printf 'name with newline' > 'var/log/odd\nname'",
        root,
    )?;
    // cap_net_raw=ep, as setcap writes it (linux/capability.h, vfs_cap_data revision 2).
    let cap = [
        1u8, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    rustix::fs::lsetxattr(
        root.join("usr/bin/capable"),
        "security.capability",
        &cap,
        rustix::fs::XattrFlags::empty(),
    )?;
    Ok(())
}

/// What the second and third layer do to the tree, and the whiteouts that say so in an archive.
const EDITS: [(&str, &[&str]); 2] = [
    (
        "rm -r usr/share/zoneinfo/[AE]*
         rm usr/bin/env-too
         rm -r etc/default; mkdir etc/default; echo new > etc/default/only
         echo replaced > usr/bin/env-link.new; mv usr/bin/env-link.new usr/bin/env-link
         chmod 0700 usr/sbin; chown 12:34 etc/hostname
         mkdir -p opt/app/deep/er; for i in $(seq 300); do echo $i > opt/app/deep/er/f$i; done
         ln opt/app/deep/er/f1 opt/app/linked",
        &["etc/default/.wh..wh..opq", "usr/bin/.wh.env-too"],
    ),
    (
        "rm -r opt/app/deep
         rm -r usr/share/perl; echo gone > usr/share/perl
         mkdir usr/share/zoneinfo/America; echo back > usr/share/zoneinfo/America/Here
         chmod 2755 var/log",
        &["opt/app/.wh.deep"],
    ),
];

/// Whether an entry stayed as it was; numbers of link groups have no meaning from one scan to the next.
fn same(old: &tree::Entry, new: &tree::Entry) -> bool {
    let old = tree::Entry {
        link: new.link,
        ..old.clone()
    };
    old == *new
}

/// Makes the archive of what changed since the marker file: GNU tar on the paths that `find` names, and explicit whiteouts.
fn delta(
    root: &Path,
    before: &Tree,
    after: &Tree,
    whiteouts: &[&str],
    tar: &Path,
) -> Result<(), Failed> {
    let stage = tar.with_extension("stage");
    fs::create_dir(&stage)?;
    let mut names: Vec<Vec<u8>> = Vec::new();
    for (path, entry) in &after.entries {
        if !path.is_root() && !before.entries.get(path).is_some_and(|old| same(old, entry)) {
            names.push(path.as_bytes().to_vec());
        }
    }
    let mut whiteouts: Vec<String> = whiteouts.iter().map(|w| w.to_string()).collect();
    for path in before.entries.keys() {
        let parent = path.parent().unwrap_or_default();
        let parent_stays = after
            .entries
            .get(&parent)
            .is_some_and(|e| e.kind == tree::Kind::Dir);
        if !after.entries.contains_key(path) && parent_stays {
            let text = String::from_utf8(path.as_bytes().to_vec()).map_err(|e| e.to_string())?;
            let (dir, base) = text.rsplit_once('/').unwrap_or(("", &text));
            whiteouts.push(format!(
                "{dir}{}.wh.{base}",
                if dir.is_empty() { "" } else { "/" }
            ));
        }
    }
    whiteouts.sort();
    whiteouts.dedup();
    for w in &whiteouts {
        let path = stage.join(w);
        fs::create_dir_all(path.parent().ok_or("whiteout without directory")?)?;
        fs::write(path, b"")?;
    }
    let list = |file: &Path, items: &[Vec<u8>]| fs::write(file, items.join(&0u8));
    let (a, b) = (tar.with_extension("names"), tar.with_extension("whiteouts"));
    list(&a, &names)?;
    list(
        &b,
        &whiteouts
            .iter()
            .map(|w| w.clone().into_bytes())
            .collect::<Vec<_>>(),
    )?;
    run(Command::new("tar")
        .args([
            "--format=pax",
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
            "--null",
            "--no-recursion",
            "-c",
        ])
        .arg("-f")
        .arg(tar)
        .arg("-C")
        .arg(&stage)
        .arg("-T")
        .arg(&b)
        .arg("-C")
        .arg(root)
        .arg("-T")
        .arg(&a))
}

fn make_input(dir: &Path) -> Result<Input, Failed> {
    let root = dir.join("root");
    fs::create_dir(&root)?;
    run(Command::new("chmod").arg("0755").arg(&root))?;
    first_root(&root)?;
    let mut before = Tree::default();
    let mut layers = Vec::new();
    let no_edit = ("", &[][..]);
    for (n, (edit, whiteouts)) in std::iter::once(no_edit).chain(EDITS).enumerate() {
        sh(edit, &root)?;
        let mut after = scan(&root)?;
        // The root's own entry is not in the archives, so its time is the driver's.
        if let Some(entry) = after.entries.get_mut(&tree::TreePath::root()) {
            entry.mtime = None;
        }
        let tar = dir.join(format!("layer{n}.tar"));
        delta(&root, &before, &after, whiteouts, &tar)?;
        before = after.clone();
        layers.push(Layer { tar, tree: after });
    }
    if layers[0].tree.entries.len() < FEWEST {
        return Err(format!(
            "only {} files installed here; at least {FEWEST} are needed",
            layers[0].tree.entries.len()
        )
        .into());
    }
    Ok(Input { layers })
}

/// The layers, made in `dir` by who asks first.
fn input(dir: &Path) -> Result<&'static Input, Failed> {
    static INPUT: OnceLock<Result<Input, String>> = OnceLock::new();
    INPUT
        .get_or_init(|| make_input(dir).map_err(|e| e.message().unwrap_or("no input").to_string()))
        .as_ref()
        .map_err(|e| e.as_str().into())
}

/// The view of a layer is `expected`.
fn sees(driver: &dyn Driver, id: &str, expected: &Tree) -> Result<(), Failed> {
    let path = driver.get(id, "")?;
    let found = scan(&path);
    driver.put(id)?;
    let diff = tree::compare(expected, &found?, &Compare::default());
    if diff.is_empty() {
        Ok(())
    } else {
        Err(format!("{id}:\n{diff}").into())
    }
}

/// What differs between two trees, by our own rule, on trees that other programs made.
fn expected_changes(new: &Tree, old: &Tree) -> Vec<Change> {
    archive::model_changes(new, old)
}

fn through(driver: &Arc<dyn Driver>, input: &Input) -> Result<(), Failed> {
    let empty = Tree {
        entries: [(
            tree::TreePath::root(),
            input.layers[0].tree.entries[&tree::TreePath::root()].clone(),
        )]
        .into(),
    };
    let mut parent: Option<String> = None;
    let mut before = &empty;
    for (n, layer) in input.layers.iter().enumerate() {
        let (id, again) = (format!("layer{n}"), format!("again{n}"));
        driver.create(&id, parent.as_deref(), &CreateOpts::default())?;
        let mut tar = std::io::BufReader::new(fs::File::open(&layer.tar)?);
        let mut metadata = Vec::new();
        let mut recorded = split::Recorder::new(&mut tar, &mut metadata);
        let size = driver.apply_diff(&id, parent.as_deref(), &mut recorded)?;
        recorded.finish()?;
        sees(driver.as_ref(), &id, &layer.tree)?;

        let changes = driver.changes(&id, parent.as_deref())?;
        assert_changes(&changes, &expected_changes(&layer.tree, before))?;
        let diff_size = driver.diff_size(&id, parent.as_deref())?;
        if diff_size != size {
            return Err(
                format!("{id}: apply_diff said {size} bytes, diff_size {diff_size}").into(),
            );
        }

        driver.create(&again, parent.as_deref(), &CreateOpts::default())?;
        let mut diff = driver.diff(&id, parent.as_deref())?;
        driver.apply_diff(&again, parent.as_deref(), &mut diff)?;
        drop(diff);
        sees(driver.as_ref(), &again, &layer.tree)?;
        assert_changes(&driver.changes(&again, parent.as_deref())?, &changes)?;
        driver.remove(&again)?;

        byte_for_byte(driver, &id, &metadata, &layer.tar)?;
        parent = Some(id);
        before = &layer.tree;
    }
    Ok(())
}

fn assert_changes(found: &[Change], expected: &[Change]) -> Result<(), Failed> {
    let odd: Vec<String> = expected
        .iter()
        .filter(|c| !found.contains(c))
        .map(|c| format!("missing {c}"))
        .chain(
            found
                .iter()
                .filter(|c| !expected.contains(c))
                .map(|c| format!("unexpected {c}")),
        )
        .take(10)
        .collect();
    if odd.is_empty() {
        Ok(())
    } else {
        Err(odd.join("\n").into())
    }
}

/// The archive comes back from its metadata and the layer's files, byte for byte.
fn byte_for_byte(
    driver: &Arc<dyn Driver>,
    id: &str,
    metadata: &[u8],
    tar: &Path,
) -> Result<(), Failed> {
    let mut rebuilt = Vec::new();
    let files = layer_files(driver, id)?;
    split::assemble(metadata, &|name| files.get(name), &mut rebuilt)?;
    if rebuilt != fs::read(tar)? {
        return Err(format!("{id}: tar-split gave back another archive than was applied").into());
    }
    Ok(())
}

/// Starts a built-in driver on a home of its own; the reason where it cannot run here.
fn start(name: &str, home: &Path) -> Result<Result<Arc<dyn Driver>, String>, Failed> {
    match graphtest::drivers::registry().get_driver(name, home, &InitOptions::default()) {
        // A defect of the program behind fuse-overlayfs, with others that this input meets; suites/known has them one by one.
        Ok(driver) if !driver.capabilities().has(Capability::DirTimes) => {
            driver.cleanup()?;
            Ok(Err(format!(
                "{name} keeps neither times of directories nor hard links over a remount"
            )))
        }
        Ok(driver) => Ok(Ok(driver)),
        Err(e) if e.is_driver_not_supported() => Ok(Err(format!("{name}: {e}"))),
        Err(e) => Err(e.into()),
    }
}

const NEEDS_ROOT: &str = "needs root: files of many owners, setuid programs, a file capability";

/// `dir` is where everything is made; `None` where this is not root.
fn trial(name: &str, dir: Option<PathBuf>) -> Trial {
    let name = name.to_string();
    Trial::ignorable_test(format!("real-input/{name}"), move || {
        let Some(dir) = dir else {
            return Ok(Completion::ignored_with(NEEDS_ROOT));
        };
        let home = tempfile::tempdir_in(&dir)?;
        let driver = match start(&name, home.path())? {
            Ok(driver) => driver,
            Err(why) => return Ok(Completion::ignored_with(why)),
        };
        let result = through(&driver, input(&dir)?);
        driver.cleanup()?;
        result.map(|()| Completion::Completed)
    })
}

/// What one driver exports, another shows: catalogue row `diff-apply-cross-driver` (moby#9093, moby#9690).
fn cross(from: &str, to: &str, dir: Option<PathBuf>) -> Trial {
    let (from, to) = (from.to_string(), to.to_string());
    Trial::ignorable_test(format!("real-input/from-{from}-to-{to}"), move || {
        let Some(dir) = dir else {
            return Ok(Completion::ignored_with(NEEDS_ROOT));
        };
        let input = input(&dir)?;
        let homes = tempfile::tempdir_in(&dir)?;
        let started = (
            start(&from, &homes.path().join("from"))?,
            start(&to, &homes.path().join("to"))?,
        );
        let (from, to) = match started {
            (Ok(from), Ok(to)) => (from, to),
            (Err(why), _) | (_, Err(why)) => return Ok(Completion::ignored_with(why)),
        };
        let result = hand_over(from.as_ref(), to.as_ref(), input);
        from.cleanup()?;
        to.cleanup()?;
        result.map(|()| Completion::Completed)
    })
}

fn hand_over(from: &dyn Driver, to: &dyn Driver, input: &Input) -> Result<(), Failed> {
    let mut parent: Option<String> = None;
    for (n, layer) in input.layers.iter().enumerate() {
        let id = format!("layer{n}");
        for driver in [from, to] {
            driver.create(&id, parent.as_deref(), &CreateOpts::default())?;
        }
        let mut tar = std::io::BufReader::new(fs::File::open(&layer.tar)?);
        from.apply_diff(&id, parent.as_deref(), &mut tar)?;
        let mut diff = from.diff(&id, parent.as_deref())?;
        to.apply_diff(&id, parent.as_deref(), &mut diff)?;
        drop(diff);
        sees(to, &id, &layer.tree)?;
        parent = Some(id);
    }
    Ok(())
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let root = rustix::process::geteuid().is_root() && !args.list;
    let homes = match root.then(|| Homes::make(&std::env::temp_dir(), false)) {
        Some(Ok(homes)) => Some(homes),
        None => None,
        Some(Err(e)) => {
            eprintln!("{e}");
            return ExitCode::from(3);
        }
    };
    let dir = homes.as_ref().map(|h| h.place().dir.clone());
    let names: Vec<&str> = graphtest::drivers::registry().names().collect();
    let pairs = names
        .iter()
        .flat_map(|a| names.iter().map(move |b| (a, b)))
        .filter(|(a, b)| a != b);
    let trials = names
        .iter()
        .map(|name| trial(name, dir.clone()))
        .chain(pairs.map(|(a, b)| cross(a, b, dir.clone())))
        .collect();
    let conclusion = libtest_mimic::run(&args, trials);
    if let Some(Err(e)) = homes.map(Homes::close) {
        eprintln!("{e}");
        return ExitCode::from(3);
    }
    conclusion.exit_code()
}
