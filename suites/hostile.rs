//! Every archive of `fixtures/` is applied in every form and on every built-in driver; nothing outside the layer may be read, written
//! or removed, and no other layer may change.
//!
//! Beside the layer stand a victim with a secret and a directory whose name begins like the layer's. Run as root.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use graphtest::archive::fixtures::{self, Expect, Fixture};
use graphtest::archive::manifest::{Manifest, to_bytes};
use graphtest::archive::{self, ApplyOptions, Form};
use graphtest::drivers::registry;
use graphtest::graphdriver::{CreateOpts, Driver, InitOptions};
use graphtest::harness::Homes;
use graphtest::sys::mount::{MountFlags, escape_overlay_path, mount, umount_detach};
use graphtest::sys::ns::enter_private_mount_ns;
use graphtest::tree::{Compare, Content, Kind, ScanOptions, Tree, compare, scan_path};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

const SECRET: &[u8] = b"the victim's secret";

/// Where an archive is applied.
#[derive(Clone)]
enum Place {
    /// To a layer of this driver, over a layer that holds the base.
    Driver(String),
    /// Over the base in one directory.
    Plain,
    /// Into a directory of its own, seen through an overlay mount over the base.
    Overlay,
}

fn main() {
    let args = Arguments::from_args();
    if !args.list && !rustix::process::geteuid().is_root() {
        eprintln!(
            "these tests make devices and mounts; run them as root: sudo -E cargo test --test hostile"
        );
        std::process::exit(1);
    }
    let fixtures = match fixtures::all() {
        Ok(fixtures) => fixtures,
        Err(e) => {
            eprintln!("{e}");
            std::process::exit(1);
        }
    };
    let homes = match Homes::make(&std::env::temp_dir(), false) {
        Ok(homes) => homes,
        Err(e) => {
            eprintln!("{e}");
            std::process::exit(1);
        }
    };
    let dir = homes.place().dir.clone();
    let mut trials = Vec::new();
    for (id, fixture) in fixtures {
        let forms = [
            ("in-directory", Place::Plain),
            ("over-lower", Place::Overlay),
        ];
        let drivers = registry().names().map(|d| (d, Place::Driver(d.into())));
        for (form, place) in forms.into_iter().chain(drivers) {
            let (fixture, dir) = (fixture.clone(), dir.clone());
            let name = format!("{form}/{id}");
            let defect = DEFECTS.iter().find(|(of, _)| *of == name);
            trials.push(Trial::ignorable_test(name, move || {
                // A thread of its own for its mount namespace, which it does not share.
                let run = thread::spawn(move || run(&fixture, &place, &dir));
                let ended = run.join().map_err(|_| Failed::from("panicked"))?;
                match (ended, defect) {
                    (Err(_), Some((_, why))) => Ok(Completion::ignored_with(*why)),
                    (Ok(Completion::Completed), Some((_, why))) => {
                        Err(format!("holds, and is listed as a defect: {why}").into())
                    }
                    (ended, _) => ended,
                }
            }));
        }
    }
    let conclusion = libtest_mimic::run(&args, trials);
    if let Err(e) = homes.close() {
        eprintln!("{e}");
        std::process::exit(1);
    }
    conclusion.exit();
}

/// What the program fuse-overlayfs cannot do, as suites/known has it for the scenarios.
const DEFECTS: &[(&str, &str)] = &[
    (
        "fuse-overlayfs/hostile/names/255-bytes",
        "the program makes no names longer than 251 bytes",
    ),
    (
        "fuse-overlayfs/hostile/names/long-path",
        "the program does not reach what lies deeper than 4096 bytes of path",
    ),
    (
        "fuse-overlayfs/hostile/xattrs/acl",
        "the program makes no pipe in a directory with a default access list: ENOENT",
    ),
];

fn run(fixture: &Fixture, place: &Place, dir: &Path) -> Result<Completion, Failed> {
    enter_private_mount_ns()?;
    let dir = tempfile::tempdir_in(dir)?;
    let outside = outside(dir.path())?;
    let base = Manifest {
        entries: fixture.base.clone().unwrap_or_default(),
        ..Manifest::default()
    };
    let (base, archive) = (to_bytes(&base), to_bytes(&fixture.archive));
    let (applied, tree) = match place {
        Place::Plain => in_directory(dir.path(), &base, &archive)?,
        Place::Overlay => over_lower(dir.path(), &base, &archive)?,
        Place::Driver(name) => {
            let home = dir.path().join("home");
            match registry().get_driver(name, &home, &InitOptions::default()) {
                Ok(driver) => on_driver(&driver, &base, &archive)?,
                Err(e) if e.is_driver_not_supported() => {
                    return Ok(Completion::ignored_with(e.to_string()));
                }
                Err(e) => return Err(e.into()),
            }
        }
    };
    judge(fixture, &applied, tree.as_ref())?;
    for (name, before) in outside {
        let after = scan(&dir.path().join(name))?;
        unchanged(
            &format!("{name}, which lies outside the layer,"),
            &before,
            &after,
        )?;
    }
    let secret = Content::of_bytes(SECRET).digest;
    for (path, entry) in tree.iter().flat_map(|t| &t.entries) {
        if matches!(&entry.kind, Kind::File(Some(c)) if c.digest == secret) {
            return Err(format!("{path} holds the secret").into());
        }
    }
    Ok(Completion::Completed)
}

/// Makes what must not be touched; how it is.
fn outside(dir: &Path) -> io::Result<Vec<(&'static str, Tree)>> {
    let mut trees = Vec::new();
    for name in ["victim", "layer-evil"] {
        fs::create_dir(dir.join(name))?;
        fs::write(dir.join(name).join("hello"), SECRET)?;
        rustix::fs::setxattr(
            dir.join(name).join("hello"),
            "user.sentinel",
            b"stands",
            rustix::fs::XattrFlags::empty(),
        )?;
        trees.push((name, scan(&dir.join(name))?));
    }
    Ok(trees)
}

/// What applying came to, and what the layer shows then; nothing when a refused archive was undone as a whole, so that there is nothing
/// more to ask for.
type Outcome = (Result<u64, Failed>, Option<Tree>);

fn options(form: Form) -> ApplyOptions {
    ApplyOptions {
        form,
        ..ApplyOptions::default()
    }
}

/// The tree at `path`.
fn scan(path: &Path) -> io::Result<Tree> {
    scan_path(path, &ScanOptions::default())
}

/// A layer whose base is empty holds what the call returned.
fn size_holds(
    root: &File,
    base: &[u8],
    applied: &Result<u64, archive::Error>,
) -> Result<(), Failed> {
    match applied {
        Ok(size) if base.iter().all(|b| *b == 0) && *size != archive::layer_size(root.as_fd())? => {
            let holds = archive::layer_size(root.as_fd())?;
            Err(format!("returned size {size}, the layer holds {holds}").into())
        }
        _ => Ok(()),
    }
}

fn in_directory(dir: &Path, base: &[u8], archive: &[u8]) -> Result<Outcome, Failed> {
    let layer = dir.join("layer");
    fs::create_dir(&layer)?;
    let root = File::open(&layer)?;
    archive::apply(root.as_fd(), &mut &base[..], &options(Form::Plain))?;
    let applied = archive::apply(root.as_fd(), &mut &archive[..], &options(Form::Plain));
    let applied = applied.map(|a| a.size);
    size_holds(&root, base, &applied)?;
    Ok((applied.map_err(Failed::from), Some(scan(&layer)?)))
}

fn over_lower(dir: &Path, base: &[u8], archive: &[u8]) -> Result<Outcome, Failed> {
    let [layer, lower, work, merged] = ["layer", "lower", "work", "merged"].map(|n| dir.join(n));
    for made in [&layer, &lower, &work, &merged] {
        fs::create_dir(made)?;
    }
    let (root, below) = (File::open(&layer)?, File::open(&lower)?);
    archive::apply(below.as_fd(), &mut &base[..], &options(Form::Overlay))?;
    let before = scan(&lower)?;
    let options = options(Form::Overlay);
    let applied = archive::apply_layer(root.as_fd(), &[below.as_fd()], &mut &archive[..], &options);
    let applied = applied.map(|a| a.size);
    size_holds(&root, base, &applied)?;
    unchanged("the layer below", &before, &scan(&lower)?)?;
    let mut data = Vec::new();
    for (key, path) in [
        ("lowerdir=", &lower),
        (",upperdir=", &layer),
        (",workdir=", &work),
    ] {
        data.extend_from_slice(key.as_bytes());
        data.extend_from_slice(&escape_overlay_path(path));
    }
    mount(
        Path::new("overlay"),
        &merged,
        "overlay",
        MountFlags::empty(),
        &data,
    )?;
    let tree = scan(&merged);
    // A process that another thread starts may hold it for a moment.
    umount_detach(&merged)?;
    Ok((applied.map_err(Failed::from), Some(tree?)))
}

fn on_driver(driver: &Arc<dyn Driver>, base: &[u8], archive: &[u8]) -> Result<Outcome, Failed> {
    for (id, parent) in [
        ("base", None),
        ("layer", Some("base")),
        ("sibling", Some("base")),
    ] {
        driver.create(id, parent, &CreateOpts::default())?;
        if id != "layer" {
            driver.apply_diff(id, parent, &mut &base[..])?;
        }
    }
    let others = [
        ("base", show(driver, "base")?),
        ("sibling", show(driver, "sibling")?),
    ];
    let applied = driver.apply_diff("layer", Some("base"), &mut &archive[..]);
    for (id, before) in others {
        unchanged(id, &before, &show(driver, id)?)?;
    }
    let tree = show(driver, "layer")?;
    let no_times = Compare {
        ignore_mtime: true,
        ..Compare::default()
    };
    let undone =
        applied.is_err() && compare(&show(driver, "sibling")?, &tree, &no_times).is_empty();
    driver.remove("layer")?;
    driver.cleanup()?;
    Ok((applied.map_err(Failed::from), (!undone).then_some(tree)))
}

/// What a layer shows.
fn show(driver: &Arc<dyn Driver>, id: &str) -> Result<Tree, Failed> {
    let tree = scan(&driver.get(id, "")?);
    driver.put(id)?;
    Ok(tree?)
}

fn unchanged(what: &str, before: &Tree, after: &Tree) -> Result<(), Failed> {
    let diff = compare(before, after, &Compare::default());
    if diff.is_empty() {
        return Ok(());
    }
    Err(format!("{what} was changed: {diff}").into())
}

fn text(e: &Failed) -> &str {
    e.message().unwrap_or("an error without a text")
}

fn judge(
    fixture: &Fixture,
    applied: &Result<u64, Failed>,
    tree: Option<&Tree>,
) -> Result<(), Failed> {
    match (fixture.expect, applied) {
        (Expect::Applied, Err(e)) => {
            return Err(format!("must be applied, but: {}", text(e)).into());
        }
        (Expect::Refused, Ok(_)) => return Err("must be refused, but was applied".into()),
        (_, Err(e)) => {
            let text = text(e);
            if let Some(says) = fixture.says.as_ref().filter(|says| !text.contains(*says)) {
                return Err(format!("the error must say {says:?}: {text}").into());
            }
        }
        _ => {}
    }
    let Some(tree) = tree else {
        return Ok(());
    };
    let how = Compare::default();
    if let Some(is) = &fixture.is {
        let diff = compare(&Tree::from_entries(is)?, tree, &how);
        if !diff.is_empty() {
            return Err(diff.to_string().into());
        }
    }
    let holds = Compare {
        subset: true,
        ..how
    };
    let diff = compare(&Tree::from_entries(&fixture.must_hold)?, tree, &holds);
    if !diff.is_empty() {
        return Err(diff.to_string().into());
    }
    match fixture
        .must_lack
        .iter()
        .find(|path| tree.entries.contains_key(&path.0))
    {
        Some(path) => Err(format!("{path} must not be there").into()),
        None => Ok(()),
    }
}
