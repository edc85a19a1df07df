//! The content of a file in a stream.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::Statx;

use crate::archive::Error;
use crate::archive::compare::has_holes;
use crate::sys::copy::{next_extent, read_at, send_at};
use crate::tree::TreePath;

/// Content that is read straight into the reader's buffer.
#[derive(Debug)]
pub(super) struct Body {
    path: TreePath,
    file: OwnedFd,
    at: u64,
    /// As the header says it, whatever becomes of the file.
    pub size: u64,
    /// The run of data at or after `at`, when the file has holes.
    data: Option<(u64, u64)>,
    ended: bool,
}

/// What is at a place of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Span {
    /// Data up to here.
    Data(u64),
    /// Zeros up to here, which are not in the file.
    Zeros(u64),
}

impl Body {
    pub fn new(path: TreePath, file: OwnedFd, st: &Statx) -> Self {
        Self {
            path,
            file,
            at: 0,
            size: st.stx_size,
            data: has_holes(st).then_some((0, 0)),
            ended: false,
        }
    }

    /// Bytes that are still to come.
    pub fn left(&self) -> u64 {
        self.size - self.at
    }

    /// Reads the next bytes; zeros in holes, and past the end of a file that shrank. The buffer must not be empty.
    pub fn read(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let span = self.span()?;
        let (Span::Data(end) | Span::Zeros(end)) = span;
        let want = usize::try_from(end - self.at).map_or(out.len(), |n| n.min(out.len()));
        let out = &mut out[..want];
        let mut read = 0;
        if let Span::Data(_) = span {
            read = read_at(self.file.as_fd(), out, self.at)
                .map_err(|e| Error::io("read", &self.path, e))?;
            self.ended = read == 0;
        }
        if read == 0 {
            out.fill(0);
            read = want;
        }
        self.at += read as u64;
        Ok(read)
    }

    /// The data that comes next, when it is in the file; what is wrong with the file is for reading to find.
    pub fn run(&mut self) -> Option<FileRun<'_>> {
        match self.span() {
            Ok(Span::Data(end)) if self.at < end => Some(FileRun {
                file: self.file.as_fd(),
                at: &mut self.at,
                end,
            }),
            _ => None,
        }
    }

    fn span(&mut self) -> Result<Span, Error> {
        if self.ended {
            return Ok(Span::Zeros(self.size));
        }
        let Some(data) = &mut self.data else {
            return Ok(Span::Data(self.size));
        };
        if data.1 <= self.at {
            *data = next_extent(self.file.as_fd(), self.at, self.size)
                .map_err(|e| Error::io("read", &self.path, e))?;
        }
        Ok(if self.at < data.0 {
            Span::Zeros(data.0.min(self.size))
        } else {
            Span::Data(data.1.min(self.size))
        })
    }
}

/// Data of a file that comes next in a stream, for those who can pass it on without reading it.
#[derive(Debug)]
pub struct FileRun<'a> {
    file: BorrowedFd<'a>,
    at: &'a mut u64,
    end: u64,
}

impl FileRun<'_> {
    /// How many bytes there are, or were when the file was looked at.
    #[allow(clippy::len_without_is_empty)] // An empty one is not handed out.
    pub fn len(&self) -> u64 {
        self.end - *self.at
    }

    /// Puts the first of the bytes into a socket or pipe, at most `most`, and gives their number; the stream then goes on after them. 0
    /// when the file has shrunk: reading the stream gives what stands for them.
    ///
    /// # Errors
    /// The errno of sendfile(2), which not every filesystem has; nothing was put in then, and reading the stream gives the bytes.
    pub fn send(&mut self, to: BorrowedFd<'_>, most: u64) -> io::Result<u64> {
        let most = most.min(self.len());
        send_at(to, self.file, self.at, most)
    }
}
