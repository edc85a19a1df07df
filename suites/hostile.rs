//! Every archive of `fixtures/` is applied in every form; nothing outside the layer may be read, written or removed.
//!
//! Beside the layer stand a victim with a secret and a directory whose name begins like the layer's. Run as root.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

use graphtest::archive::fixtures::{self, Expect, Fixture};
use graphtest::archive::manifest::{Manifest, to_bytes};
use graphtest::archive::{self, ApplyOptions, Form};
use graphtest::sys::mount::{MountFlags, escape_overlay_path, mount, umount};
use graphtest::sys::ns::enter_private_mount_ns;
use graphtest::tree::{Compare, Content, Kind, ScanOptions, Tree, compare, scan_path};
use libtest_mimic::{Arguments, Failed, Trial};

const SECRET: &[u8] = b"the victim's secret";

/// Where an archive is applied.
#[derive(Clone, Copy)]
enum Place {
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
    let mut trials = Vec::new();
    for (id, fixture) in fixtures {
        for (form, place) in [("plain", Place::Plain), ("overlay", Place::Overlay)] {
            let fixture = fixture.clone();
            trials.push(Trial::test(format!("{form}/{id}"), move || {
                // A thread of its own for its mount namespace, which it does not share.
                let run = thread::spawn(move || run(&fixture, place));
                run.join().map_err(|_| Failed::from("panicked"))?
            }));
        }
    }
    libtest_mimic::run(&args, trials).exit();
}

fn run(fixture: &Fixture, place: Place) -> Result<(), Failed> {
    enter_private_mount_ns()?;
    let dir = tempfile::tempdir()?;
    let outside = outside(dir.path())?;
    let base = Manifest {
        entries: fixture.base.clone().unwrap_or_default(),
        ..Manifest::default()
    };
    let (applied, tree) = apply(
        place,
        dir.path(),
        &to_bytes(&base),
        &to_bytes(&fixture.archive),
    )?;
    judge(fixture, &applied, &tree)?;
    for (name, before) in outside {
        let after = scan_path(&dir.path().join(name), &ScanOptions::default())?;
        let diff = compare(&before, &after, &Compare::default());
        if !diff.is_empty() {
            return Err(
                format!("{name}, which lies outside the layer, was changed: {diff}").into(),
            );
        }
    }
    let secret = Content::of_bytes(SECRET).digest;
    for (path, entry) in &tree.entries {
        if matches!(&entry.kind, Kind::File(Some(c)) if c.digest == secret) {
            return Err(format!("{path} holds the secret").into());
        }
    }
    Ok(())
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
        trees.push((name, scan_path(&dir.join(name), &ScanOptions::default())?));
    }
    Ok(trees)
}

/// Applies the base and the archive; the outcome, and what the layer shows.
fn apply(
    place: Place,
    dir: &Path,
    base: &[u8],
    archive: &[u8],
) -> Result<(Result<u64, archive::Error>, Tree), Failed> {
    let layer = dir.join("layer");
    fs::create_dir(&layer)?;
    let root = File::open(&layer)?;
    let options = |form| ApplyOptions {
        form,
        ..ApplyOptions::default()
    };
    let scan_options = ScanOptions::default();
    let alone = base.iter().all(|b| *b == 0);
    let size_holds = |applied: &Result<u64, archive::Error>| -> Result<(), Failed> {
        match applied {
            Ok(size) if alone && *size != archive::layer_size(root.as_fd())? => {
                let holds = archive::layer_size(root.as_fd())?;
                Err(format!("returned size {size}, the layer holds {holds}").into())
            }
            _ => Ok(()),
        }
    };
    match place {
        Place::Plain => {
            archive::apply(root.as_fd(), &mut &base[..], &options(Form::Plain))?;
            let applied = archive::apply(root.as_fd(), &mut &archive[..], &options(Form::Plain));
            let applied = applied.map(|a| a.size);
            size_holds(&applied)?;
            Ok((applied, scan_path(&layer, &scan_options)?))
        }
        Place::Overlay => {
            let [lower, work, merged] = ["lower", "work", "merged"].map(|name| dir.join(name));
            for made in [&lower, &work, &merged] {
                fs::create_dir(made)?;
            }
            let below = File::open(&lower)?;
            archive::apply(below.as_fd(), &mut &base[..], &options(Form::Overlay))?;
            let before = scan_path(&lower, &scan_options)?;
            let options = options(Form::Overlay);
            let applied =
                archive::apply_layer(root.as_fd(), &[below.as_fd()], &mut &archive[..], &options);
            let applied = applied.map(|a| a.size);
            size_holds(&applied)?;
            let after = scan_path(&lower, &scan_options)?;
            let diff = compare(&before, &after, &Compare::default());
            if !diff.is_empty() {
                return Err(format!("the layer below was changed: {diff}").into());
            }
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
            let tree = scan_path(&merged, &scan_options);
            umount(&merged)?;
            Ok((applied, tree?))
        }
    }
}

fn judge(
    fixture: &Fixture,
    applied: &Result<u64, archive::Error>,
    tree: &Tree,
) -> Result<(), Failed> {
    match (fixture.expect, applied) {
        (Expect::Applied, Err(e)) => return Err(format!("must be applied, but: {e}").into()),
        (Expect::Refused, Ok(_)) => return Err("must be refused, but was applied".into()),
        (_, Err(e)) => {
            let text = e.to_string();
            if let Some(says) = fixture.says.as_ref().filter(|says| !text.contains(*says)) {
                return Err(format!("the error must say {says:?}: {text}").into());
            }
        }
        _ => {}
    }
    let how = Compare {
        ignore_xattrs: false,
        ..Compare::default()
    };
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
