//! The step `tar-split`: an applied archive comes back byte for byte.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

use super::call::{Done, Fail, describe};
use super::differ::first_difference;
use super::world::World;
use crate::archive::split::{Getter, Recorder, assemble};
use crate::graphtest::step::TarSplitStep;
use crate::sys::fs::open_in_root;

impl World<'_> {
    pub fn tar_split(&mut self, s: &TarSplitStep) -> Done {
        let archive = self.archive_named(&s.from)?;
        let parent = self.parent_meant(&s.id, None);
        let wrong = |what: &str, e: &dyn std::fmt::Display| Fail::new(format!("{what}: {e}"));
        let metadata = self.scratch_path("split");
        let out = File::create(&metadata).map_err(|e| wrong("the metadata", &e))?;
        let mut recorder = Recorder::new(archive.open()?, out);
        let what = format!("apply {} to {}", s.from, s.id);
        self.driver()?
            .apply_diff(&s.id, parent.as_deref(), &mut recorder)
            .map_err(|e| wrong(&what, &format!("expected success, found: {}", describe(&e))))?;
        recorder
            .finish()
            .map_err(|e| wrong("recording the archive", &e))?;
        self.after_apply(&s.id, archive.effect.as_ref(), &what)?;
        let again = self.scratch_path("again");
        self.give_back(&s.id, &metadata, &again)?;
        match first_difference(&archive.path, &again)? {
            None => Ok(()),
            Some(at) => Err(Fail::new(format!(
                "expected the archive {} back byte for byte, found a difference at byte {at}",
                s.from
            ))),
        }
    }

    /// Rebuilds the archive from its metadata and the layer.
    fn give_back(&mut self, id: &str, metadata: &Path, again: &Path) -> Done {
        let driver = self.driver()?;
        if let Some(getter) = driver.diff_getter() {
            let files = getter.diff_getter(id).map_err(|e| {
                Fail::new(format!(
                    "diff getter of {id}: expected success, found: {}",
                    describe(&e)
                ))
            })?;
            return rebuild(metadata, again, &|name: &[u8]| files.get(name));
        }
        let (metadata, again): (PathBuf, PathBuf) = (metadata.into(), again.into());
        self.must_inside(id, |_, root| {
            rebuild(&metadata, &again, &|name: &[u8]| open_file(root, name))
        })
    }
}

fn rebuild(metadata: &Path, again: &Path, get: &Getter<'_>) -> Done {
    let wrong = |e: &dyn std::fmt::Display| Fail::new(format!("giving the archive back: {e}"));
    let metadata = File::open(metadata).map_err(|e| wrong(&e))?;
    let mut out = File::create(again).map_err(|e| wrong(&e))?;
    assemble(BufReader::new(metadata), get, &mut out).map_err(|e| wrong(&e))
}

/// A regular file of a layer by the name it has in an archive.
fn open_file(root: BorrowedFd<'_>, name: &[u8]) -> io::Result<Box<dyn Read + Send>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = open_in_root(root, name, flags, Mode::empty())?;
    let st = rustix::fs::fstat(file.as_fd())?;
    if FileType::from_raw_mode(st.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(Box::new(File::from(file)))
}
