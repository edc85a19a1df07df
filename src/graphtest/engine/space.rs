//! Steps on what the scenario's own backing has left: fill, free, full-at-each.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate, statvfs, syncfs};
use rustix::io::Errno;

use super::call::{Done, Fail};
use super::kill::{Crash, forget};
use super::own::Own;
use super::world::World;
use crate::graphdriver::{FsMagic, get_fs_magic};
use crate::graphtest::step::{FillStep, FreeStep, FullStep, Room};
use crate::sys::copy::write_all_at;
use crate::sys::remove::remove_tree;
use crate::tree::content::pseudo_random;

/// The files that take what is left, beside the driver's home.
const BALLAST: &str = "ballast";

/// The first piece that is taken; each next one is half of it, down to the least.
const FIRST_PIECE: u64 = 1 << 30;
const LEAST_PIECE: u64 = 4096;

/// The first piece where pieces are written.
const FIRST_WRITTEN: u64 = 1 << 20;

/// How long a filesystem may take until what was removed can be had again.
const PATIENCE: Duration = Duration::from_secs(5);

/// No sensible steps need more: bytes, and files.
const MOST_SPACE: u64 = 256 << 20;
const MOST_INODES: u64 = 4096;

fn ballast(own: &Own, what: Room) -> PathBuf {
    let name = match what {
        Room::Space => "space",
        Room::Inodes => "inodes",
    };
    own.dir().join(BALLAST).join(name)
}

/// Whether the kernel says that there is no room left, of the disk or of a quota.
pub(super) fn is_full(e: Errno) -> bool {
    matches!(e, Errno::NOSPC | Errno::DQUOT)
}

/// Takes all room but `leave`.
fn fill(own: &Own, what: Room, leave: u64) -> std::io::Result<()> {
    let dir = ballast(own, what);
    fs::create_dir_all(&dir)?;
    match what {
        Room::Space => fill_space(&dir, leave),
        Room::Inodes => fill_inodes(&dir, leave),
    }
}

/// What is to stay free is taken first, so that it is really there once it is given back: what statfs(2) tells is free is
/// not always to be had.
fn fill_space(dir: &Path, leave: u64) -> std::io::Result<()> {
    let written = get_fs_magic(dir).is_ok_and(|magic| magic == FsMagic::ZFS);
    let reserve = dir.join("reserve");
    if leave > 0 {
        let file = File::create(&reserve)?;
        take(&file, 0, leave, written)?;
    }
    let mut count = 0;
    // What is written and not on the disk yet is reckoned to take more than it will.
    let rounds = if written { 4 } else { 1 };
    for _ in 0..rounds {
        if take_pieces(dir, &mut count, written)? == 0 {
            break;
        }
        sync(dir)?;
    }
    if leave > 0 {
        empty(&reserve)?;
        fs::remove_file(&reserve)?;
    }
    sync(dir)
}

/// Takes room in ever smaller pieces, until there is none for the least; returns how much it took. Each size has a file, named by a count.
fn take_pieces(dir: &Path, count: &mut u64, written: bool) -> std::io::Result<u64> {
    let mut piece = if written { FIRST_WRITTEN } else { FIRST_PIECE };
    let mut all = 0;
    while piece >= LEAST_PIECE {
        let path = dir.join(count.to_string());
        *count += 1;
        let file = match File::create(&path) {
            Ok(file) => file,
            Err(e) if Errno::from_io_error(&e).is_some_and(is_full) => break,
            Err(e) => return Err(e),
        };
        let mut end = 0;
        loop {
            match take(&file, end, piece, written) {
                Ok(()) => end += piece,
                Err(Errno::INTR) => {}
                Err(e) if is_full(e) => break,
                Err(e) => return Err(e.into()),
            }
        }
        // Some filesystems keep a part of what they could not give whole; zfs has no room to cut off nothing.
        match file.set_len(end) {
            Err(e) if !Errno::from_io_error(&e).is_some_and(is_full) => return Err(e),
            _ => {}
        }
        all += end;
        piece /= 2;
    }
    Ok(all)
}

/// Takes room for a file. zfs agrees to fallocate(2) and sets nothing aside, so there it is `written`: what cannot be compressed.
fn take(file: &File, at: u64, len: u64, written: bool) -> Result<(), Errno> {
    if !written {
        return fallocate(file, FallocateFlags::empty(), at, len);
    }
    let mut bytes = vec![0; 64 << 10];
    let mut done = 0;
    while done < len {
        let n = bytes.len().min((len - done) as usize);
        pseudo_random(at, at + done, &mut bytes[..n]);
        write_all_at(file.as_fd(), &bytes[..n], at + done)?;
        done += n as u64;
    }
    Ok(())
}

fn fill_inodes(dir: &Path, leave: u64) -> std::io::Result<()> {
    let mut made = 0u64;
    loop {
        match File::create(dir.join(made.to_string())) {
            Ok(_) => made += 1,
            Err(e) if Errno::from_io_error(&e).is_some_and(is_full) => break,
            Err(e) => return Err(e),
        }
    }
    for n in made.saturating_sub(leave)..made {
        fs::remove_file(dir.join(n.to_string()))?;
    }
    sync(dir)?;
    wait_for_inodes(dir, leave)
}

/// Removes the files that `fill` made, and returns when what they took can be had again.
fn give_back(dir: &Path) -> std::io::Result<()> {
    let files = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        files => files?,
    };
    let mut count = 0;
    for file in files {
        empty(&file?.path())?;
        count += 1;
    }
    remove_tree(dir)?;
    let beside = dir.parent().unwrap_or(dir);
    sync(beside)?;
    wait_for_inodes(beside, count)
}

/// Takes the space from a file that is about to be removed: a program that serves a filesystem may keep the file until the kernel tells
/// it, some time later, that nobody has it open.
fn empty(path: &Path) -> std::io::Result<()> {
    if fs::metadata(path)?.len() == 0 {
        return Ok(());
    }
    match OpenOptions::new().write(true).open(path)?.set_len(0) {
        // btrfs has room left to remove it, but not for this.
        Err(e) if Errno::from_io_error(&e).is_some_and(is_full) => Ok(()),
        done => done,
    }
}

/// Waits until so many files can be made again, for the same reason.
fn wait_for_inodes(dir: &Path, count: u64) -> std::io::Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let has = statvfs(dir)?;
        // One that has no limit of inodes tells of none.
        if has.f_files == 0 || has.f_ffree >= count || Instant::now() > until {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Filesystems with a journal or a log give back what was deleted only with the next commit.
fn sync(dir: &Path) -> std::io::Result<()> {
    Ok(syncfs(File::open(dir)?)?)
}

/// The amounts of room to try, the least first: in steps that an allocation is made of, and then in greater ones, since what a
/// driver does with much room differs less.
fn amounts(what: Room) -> impl Iterator<Item = u64> {
    let (most, step) = match what {
        Room::Space => (MOST_SPACE, LEAST_PIECE),
        Room::Inodes => (MOST_INODES, 1),
    };
    let next = move |n: &u64| Some(n + (n / 4 / step * step).max(step));
    std::iter::successors(Some(0), next).take_while(move |n| *n <= most)
}

impl World<'_> {
    pub fn fill(&mut self, s: &FillStep) -> Done {
        self.take_room(s.what, s.leave.as_ref().map_or(0, |leave| leave.0))
    }

    fn take_room(&self, what: Room, leave: u64) -> Done {
        fill(self.own()?, what, leave)
            .map_err(|e| Fail::new(format!("the backing cannot be filled: {e}")))
    }

    pub fn free(&mut self, s: &FreeStep) -> Done {
        self.give_room(s.what)
    }

    fn give_room(&self, what: Room) -> Done {
        let own = self.own()?;
        give_back(&ballast(own, what))
            .map_err(|e| Fail::new(format!("the backing cannot be emptied: {e}")))
    }

    pub fn full(&mut self, s: &FullStep) -> Done {
        let what = s.of.unwrap_or(Room::Space);
        let crash = self.crash(&s.body, &s.then)?;
        for (failed, room) in amounts(what).enumerate() {
            let words = match what {
                Room::Space => format!("with {room} bytes left"),
                Room::Inodes => format!("with {room} files left"),
            };
            self.give_room(what)?;
            self.restore(&crash)?;
            if self
                .full_at(&crash, what, room, failed)
                .map_err(|f| f.context(&words))?
            {
                self.give_room(what)?;
                forget(&crash)?;
                return self.run(&s.then);
            }
        }
        Err(Fail::new(
            "expected the steps to succeed once there is room, they failed with ever more of it",
        ))
    }

    /// One try with so much room; whether the steps succeeded.
    fn full_at(&mut self, crash: &Crash<'_>, what: Room, room: u64, failed: usize) -> Done<bool> {
        self.init(&Default::default())?;
        self.take_room(what, room)?;
        match self.run(crash.body) {
            Ok(()) => return Ok(true),
            Err(f) if f.no_room => {}
            Err(f) => return Err(f),
        }
        self.layers = crash.before.clone();
        // What was made in part is to be removable when there is no room at all, and usable when there is; both cannot be asked at once.
        if failed % 2 == 1 && self.running.is_some() {
            self.remove_made(crash)
                .map_err(|f| f.context("while it is full"))?;
        }
        self.give_room(what)?;
        if self.running.is_none() {
            self.init(&Default::default())?;
        }
        if let Some(driver) = self.running.clone() {
            self.put_held(&*driver)?;
        }
        self.look_after(crash)?;
        self.again(crash)?;
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_is_written_takes_its_room() {
        const LEN: u64 = 200_000;
        let tmp = tempfile::tempdir().unwrap();
        let file = File::create(tmp.path().join("f")).unwrap();
        take(&file, 4096, LEN, true).unwrap();
        file.sync_all().unwrap();
        let found = file.metadata().unwrap();
        assert_eq!(found.len(), 4096 + LEN);
        assert!(found.blocks() * 512 >= LEN, "{} blocks", found.blocks());
    }
}
