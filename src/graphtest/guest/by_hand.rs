//! What a scenario does, as a shell script without graphtest: for whoever is told of a kernel's bug and has never heard of graphtest.

use std::fmt::Write;

use crate::graphtest::Case;
use crate::graphtest::run::quote;
use crate::graphtest::step::{Action, Step};
use crate::tree::TreePath;
use crate::tree::op::{Bytes, Mode, Op, OwnerText, Time, Xattrs};

/// A script that does what a case does, for a driver whose layers can be made by a few commands; `None` for any other. It is run in
/// an empty directory on the filesystem in question, as root, and prints what there is to be seen; nothing in it passes or fails.
pub fn script(case: &Case, target: &str) -> Option<String> {
    let layers = match target {
        "overlay2" => OVERLAY,
        "btrfs" => BTRFS,
        "vfs" => VFS,
        _ => return None,
    };
    let mut text = String::from("#!/bin/sh\n");
    let _ = writeln!(text, "# {}: {}", case.label(), case.scenario.must.trim());
    text += "# To be run as root in an empty directory on the filesystem in question.\n";
    text += layers;
    text += SHOW;
    steps(&case.steps, &mut text);
    Some(text)
}

/// Everything below the directory that is the working directory.
const SHOW: &str = r#"show() { # layer: what is in it
    get "$1"
    find . -mindepth 1 -printf '%y %m %U:%G %n %s %p -> %l\n' | sort -k 6
    command -v getfattr >/dev/null && getfattr -R -h -m - -d . 2>/dev/null
    put "$1"
}
"#;

const OVERLAY: &str = r#"set -u
top=$PWD
create() { # layer, parent
    mkdir -p "$top/$1/diff" "$top/$1/work" "$top/$1/merged"
    if [ -n "${2-}" ]; then
        below=$(cat "$top/$2/below")
        echo "$2/diff${below:+:$below}" >"$top/$1/below"
    else
        : >"$top/$1/below"
    fi
}
get() {
    below=$(cat "$top/$1/below")
    cd "$top" || exit
    if [ -n "$below" ]; then
        mount -t overlay overlay -o "lowerdir=$below,upperdir=$1/diff,workdir=$1/work" "$1/merged" || exit
        cd "$1/merged" || exit
    else
        cd "$1/diff" || exit
    fi
}
put() { cd "$top" && if mountpoint -q "$1/merged"; then umount "$1/merged"; fi; }
remove() { rm -rf "${top:?}/$1"; }
upper() { (cd "$top/$1/diff" && find . -mindepth 1 -printf '%y %m %p\n'; getfattr -R -h -m - -d . 2>/dev/null); }
"#;

const BTRFS: &str = r#"set -u
top=$PWD
create() { # layer, parent
    if [ -n "${2-}" ]; then btrfs subvolume snapshot "$2" "$1"; else btrfs subvolume create "$1"; fi
}
get() { cd "$top/$1" || exit; }
put() { cd "$top" || exit; }
remove() { btrfs subvolume delete "$top/$1"; }
upper() { btrfs subvolume show "$top/$1"; }
"#;

const VFS: &str = r#"set -u
top=$PWD
create() { if [ -n "${2-}" ]; then cp -a "$2" "$1"; else mkdir "$1"; fi; }
get() { cd "$top/$1" || exit; }
put() { cd "$top" || exit; }
remove() { rm -rf "${top:?}/$1"; }
upper() { :; }
"#;

fn steps(all: &[Step], to: &mut String) {
    for step in all {
        let _ = writeln!(to, "# {}: {}", step.at, step.text);
        match &step.action {
            Action::Create(s) => match &s.parent {
                None => line(to, &["create", &s.id]),
                Some(parent) => line(to, &["create", &s.id, parent]),
            },
            Action::Remove(s) => line(to, &["remove", &s.id]),
            Action::In(s) => {
                line(to, &["get", &s.id]);
                operations(s.ops.iter().map(|o| &o.value), to);
                line(to, &["put", &s.id]);
            }
            Action::Tree(s) => line(to, &["show", &s.id]),
            Action::SameTree(s) => [&s.id, &s.other]
                .iter()
                .for_each(|id| line(to, &["show", id])),
            // What these look at is what the layer itself holds.
            Action::Changes(s) => line(to, &["upper", &s.id]),
            Action::Diff(s) => line(to, &["upper", &s.id]),
            Action::RoundTrip(s) => line(to, &["upper", &s.id]),
            Action::Size(s) => line(to, &["upper", &s.id]),
            Action::Repeat(s) => s.body.each.iter().for_each(|body| steps(body, to)),
            Action::Guard(s) => steps(&s.body, to),
            Action::Umask(s) => line(to, &["umask", &s.mask.to_string()]),
            _ => to.push_str("#   (not a matter of the kernel's, or of no command)\n"),
        }
    }
}

/// The operations in a layer, which is the working directory.
fn operations<'a>(all: impl Iterator<Item = &'a Op>, to: &mut String) {
    for op in all {
        let expected = match (op.fails(), op.may_fail()) {
            ([], []) => String::new(),
            ([], may) => format!(" # may fail: {}", may.join(", ")),
            (must, _) => format!(" # must fail: {}", must.join(", ")),
        };
        let done = match command(op) {
            Some(command) if op.as_owner().is_none() => command,
            _ => format!("#   {} {} (of no command)", op.verb(), op.path()),
        };
        let _ = writeln!(to, "{done}{expected}");
    }
}

fn command(op: &Op) -> Option<String> {
    let at = path(op.path());
    Some(match op {
        Op::File(o) => {
            let made = match (&o.text, &o.size, &o.islands) {
                (Some(text), _, _) => format!("{} >{at}", printf(text)),
                (None, Some(size), None) => format!("head -c {} /dev/urandom >{at}", size.0),
                (None, Some(size), Some(islands)) => {
                    let runs = islands
                        .iter()
                        .map(|i| "; ".to_string() + &put(&at, &i.text, i.at.0));
                    format!(
                        ": >{at}; truncate -s {} {at}{}",
                        size.0,
                        runs.collect::<String>()
                    )
                }
                (None, None, _) => format!(": >{at}"),
            };
            made + &attributes(
                &at,
                o.mode.as_ref(),
                o.owner.as_ref(),
                o.mtime.as_ref(),
                &o.xattrs,
            )
        }
        Op::Dir(o) => {
            format!("mkdir {at}")
                + &attributes(
                    &at,
                    o.mode.as_ref(),
                    o.owner.as_ref(),
                    o.mtime.as_ref(),
                    &o.xattrs,
                )
        }
        Op::Symlink(o) => format!("ln -s -- {} {at}", bytes(&o.to.0)),
        Op::Hardlink(o) => format!("ln -P {} {at}", path(&o.to.0)),
        Op::Clone(o) => format!("cp --reflink=always {} {at}", path(&o.from.0)),
        Op::Unnamed(o) => {
            let make = "xfs_io -T -c \"flink $name\" \"${name%/*}\"";
            format!("name={at} && {make} && {} >{at}", printf(&o.text))
        }
        Op::Fifo(_) => format!("mkfifo {at}"),
        Op::Char(o) => format!("mknod {at} c {} {}", o.dev.0.major, o.dev.0.minor),
        Op::Block(o) => format!("mknod {at} b {} {}", o.dev.0.major, o.dev.0.minor),
        Op::Remove(_) => format!("rm -r {at}"),
        Op::Unlink(_) => format!("unlink {at}"),
        Op::Rmdir(_) => format!("rmdir {at}"),
        Op::Rename(o) if o.exchange => format!("mv --exchange -T {at} {}", path(&o.to.0)),
        Op::Rename(o) if o.noreplace => format!("mv -n -T {at} {}", path(&o.to.0)),
        Op::Rename(o) => format!("mv -T {at} {}", path(&o.to.0)),
        Op::Chmod(o) => format!("chmod {} {at}", o.mode),
        Op::Chown(o) if o.recursive => format!("chown -R -h {} {at}", o.owner),
        Op::Chown(o) => format!("chown -h {} {at}", o.owner),
        Op::Touch(o) => format!("touch -h -d @{} {at}", o.mtime),
        Op::Write(o) => {
            let offset = o.at.as_ref().map_or(0, |s| s.0);
            put(&at, &o.text, offset)
        }
        Op::Append(o) => format!("{} >>{at}", printf(&o.text)),
        Op::Truncate(o) => format!("truncate -s {} {at}", o.size.0),
        Op::Setxattr(o) => {
            let value: String = o.value.0.iter().map(|b| format!("{b:02x}")).collect();
            format!("setfattr -h -n {} -v 0x{value} {at}", quote(&o.name))
        }
        Op::Rmxattr(o) => format!("setfattr -h -x {} {at}", quote(&o.name)),
        Op::Read(_) => format!("cat {at}"),
        Op::List(_) => format!("ls -A {at}"),
        Op::Space(_) | Op::Inode(_) => format!("stat -c '%i %b %n' {at}"),
        Op::Shared(_) => format!("filefrag -v {at}"),
        Op::Socket(_) | Op::Open(_) => return None,
    })
}

/// Writes into a file that is there.
fn put(at: &str, text: &Bytes, offset: u64) -> String {
    let text = printf(text);
    format!("{text} | dd of={at} bs=1 seek={offset} conv=notrunc status=none")
}

/// What follows the command that makes something.
fn attributes(
    at: &str,
    mode: Option<&Mode>,
    owner: Option<&OwnerText>,
    mtime: Option<&Time>,
    xattrs: &Xattrs,
) -> String {
    let mut text = String::new();
    if let Some(owner) = owner {
        let _ = write!(text, " && chown -h {owner} {at}");
    }
    if let Some(mode) = mode {
        let _ = write!(text, " && chmod {mode} {at}");
    }
    for (name, value) in xattrs {
        let value: String = value.0.iter().map(|b| format!("{b:02x}")).collect();
        let _ = write!(text, " && setfattr -h -n {} -v 0x{value} {at}", quote(name));
    }
    if let Some(mtime) = mtime {
        let _ = write!(text, " && touch -h -d @{mtime} {at}");
    }
    text
}

/// A command that writes bytes.
fn printf(text: &Bytes) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b" -_.,:/".contains(b);
    let escaped = text.0.iter().map(|b| match plain(b) {
        true => char::from(*b).to_string(),
        false => format!("\\{b:03o}"),
    });
    format!("printf '{}'", escaped.collect::<String>())
}

/// One command.
fn line(to: &mut String, words: &[&str]) {
    let words: Vec<String> = words.iter().map(|w| quote(w)).collect();
    let _ = writeln!(to, "{}", words.join(" "));
}

/// A word of bytes, which may be no text.
fn bytes(word: &[u8]) -> String {
    match std::str::from_utf8(word) {
        Ok(text) if !text.contains(|c: char| c.is_control()) => quote(text),
        _ => format!("\"$({})\"", printf(&Bytes(word.to_vec()))),
    }
}

/// Relative to the working directory, also the root.
fn path(path: &TreePath) -> String {
    bytes(&[b"./", &path.0[..]].concat())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::graphtest::load;

    const SUITE: &str = r#"
suite: by-hand
about: What is told of a bug.
scenarios:
  - id: all
    proves: [LIFE-1]
    level: must
    must: It is as it ought to be.
    from: [here]
    catches: [whiteout-lost]
    steps:
      - create: base
      - in: base
        do:
          - {dir: d, mode: "0750"}
          - {file: d/a, text: "it's\n100%", mode: "0640", mtime: "1700000000.5"}
          - {symlink: "d/odd name", to: a}
          - {hardlink: d/b, to: d/a}
          - {file: 'x\xff', size: 5}
          - {fifo: p}
          - {file: s, size: 64k, islands: [{at: 8k, text: data}]}
      - create: top
        parent: base
      - in: top
        do:
          - {remove: d/b}
          - {append: d/a, text: more}
          - {write: d/a, text: IT, at: 0}
          - {rename: p, to: q}
          - {rmdir: none, fails: [ENOENT]}
      - tree: top
      - restart: clean
"#;

    #[test]
    fn a_shell_does_what_the_scenario_does() {
        let texts = [("by-hand.yaml".to_string(), SUITE.to_string())];
        let library = load::from_texts(texts).unwrap();
        let case = library.cases().next().unwrap();
        assert_eq!(script(case, "fuse-overlayfs"), None);
        let overlay = script(case, "overlay2").unwrap();
        assert!(overlay.contains("mount -t overlay overlay -o"), "{overlay}");
        let script = script(case, "vfs").unwrap();
        let tmp = tempfile::tempdir().unwrap();
        let out = Command::new("sh")
            .arg("-c")
            .arg(&script)
            .current_dir(tmp.path())
            .output()
            .unwrap();
        let (said, top) = (String::from_utf8_lossy(&out.stdout), tmp.path().join("top"));
        assert!(out.status.success(), "{script}\n{out:?}");
        assert_eq!(std::fs::read(top.join("d/a")).unwrap(), b"IT's\n100%more");
        let sparse = std::fs::read(top.join("s")).unwrap();
        assert_eq!((sparse.len(), &sparse[8192..8196]), (65536, &b"data"[..]));
        assert!(!top.join("d/b").exists() && tmp.path().join("base/d/b").exists());
        assert!(
            said.contains("l 777 ") && said.contains("./d/odd name -> a"),
            "{said}"
        );
        assert!(said.contains("p 644 ") && said.contains("./q"), "{said}");
        assert!(
            script.contains("rmdir ./none # must fail: ENOENT"),
            "{script}"
        );
        assert!(script.contains("by-hand.yaml:"), "{script}");
    }
}
