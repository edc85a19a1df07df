//! A streaming tar reader: ustar, GNU (long names, sparse) and PAX, in bounded memory, every fault with its offset.

use std::io::{self, Read};

use super::Error;
use super::header::{self, BLOCK, EntryHeader, EntryKind, Extent};
use super::pax::{self, Records};
use crate::tree::TreePath;

/// The most bytes that the headers of one entry may take (long names, PAX records, sparse maps, global headers before it).
/// Go's `archive/tar` has the same limit for each.
pub const MAX_HEADERS: usize = 1 << 20;

/// Bytes read at a time.
const BUFFER: usize = 256 << 10;

/// Reads the entries of an archive one after the other.
#[derive(Debug)]
pub struct Reader<R> {
    input: Input<R>,
    /// Data of the current entry that has not been read, and its padding.
    left: u64,
    padding: u64,
    entries: u64,
    ended: bool,
    current: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// Reads from here on; `inner` needs no buffer of its own.
    pub fn new(inner: R) -> Self {
        Self {
            input: Input::new(inner),
            left: 0,
            padding: 0,
            entries: 0,
            ended: false,
            current: Vec::new(),
        }
    }

    /// Keeps a copy of every byte that is not an entry's data from now on, for [`Reader::take_raw`].
    pub(super) fn keep_raw(&mut self) {
        self.input.raw = Some(Vec::new());
    }

    /// The bytes kept since the last call.
    pub(super) fn take_raw(&mut self) -> Vec<u8> {
        self.input.raw.replace(Vec::new()).unwrap_or_default()
    }

    /// Bytes of the stream consumed so far.
    pub fn offset(&self) -> u64 {
        self.input.offset
    }

    /// The next entry, past whatever of the current one's data was not read; `None` at the end of the archive (two blocks of
    /// zeros, or one, or the end of the stream after a whole entry).
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the stream is not tar or ends inside an entry, [`Error::Refused`] where headers pass
    /// [`MAX_HEADERS`], [`Error::Stream`] where reading fails.
    pub fn next_entry(&mut self) -> Result<Option<EntryHeader>, Error> {
        if self.ended {
            return Ok(None);
        }
        self.skip_data()?;
        let entry = self.read_headers()?;
        match &entry {
            Some(entry) => {
                self.entries += 1;
                self.current.clone_from(&entry.name);
                self.left = entry.stored;
                self.padding = padding(entry.stored);
            }
            None => self.ended = true,
        }
        Ok(entry)
    }

    /// The data of the current entry that is at hand, at most `limit` bytes and at least one until the end; empty at the end.
    /// Say with [`Reader::consume`] how much of it was taken.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the stream ends before the entry does, [`Error::Stream`] where reading fails.
    pub fn data(&mut self, limit: u64) -> Result<&[u8], Error> {
        let want = self.left.min(limit);
        if want == 0 {
            return Ok(&[]);
        }
        if self.input.buffered() == 0 && !self.input.fill(1)? {
            return Err(self.truncated());
        }
        let have = self.input.peek();
        let n = usize::try_from(want).map_or(have.len(), |w| w.min(have.len()));
        Ok(&have[..n])
    }

    /// Takes `n` bytes of what [`Reader::data`] gave.
    pub fn consume(&mut self, n: usize) {
        self.left -= n as u64;
        self.input.advance(n, false);
    }

    /// Bytes of the current entry's data that have not been read.
    pub fn data_left(&self) -> u64 {
        self.left
    }

    /// What follows the end of the archive, some bytes at a time; empty at the end of the stream.
    ///
    /// # Errors
    /// [`Error::Stream`] where reading fails.
    pub(super) fn trailing(&mut self, limit: usize) -> Result<Vec<u8>, Error> {
        if self.input.buffered() == 0 {
            self.input.fill(1)?;
        }
        let have = self.input.peek();
        let taken = have[..have.len().min(limit)].to_vec();
        self.input.advance(taken.len(), false);
        Ok(taken)
    }

    /// Reads the stream to its end, in bounded memory, whatever follows the archive.
    ///
    /// # Errors
    /// [`Error::Stream`] where reading fails.
    pub fn drain(&mut self) -> Result<(), Error> {
        loop {
            self.input.advance(self.input.buffered(), false);
            if !self.input.fill(1)? {
                return Ok(());
            }
        }
    }

    fn truncated(&self) -> Error {
        let name = TreePath(self.current.clone());
        let why = format!("the stream ends inside entry {name}");
        self.corrupt(self.input.offset, why)
    }

    fn corrupt(&self, offset: u64, why: impl Into<String>) -> Error {
        Error::Corrupt {
            offset,
            why: why.into(),
        }
    }

    fn skip_data(&mut self) -> Result<(), Error> {
        while self.left > 0 {
            let n = self.data(u64::MAX)?.len();
            self.consume(n);
        }
        while self.padding > 0 {
            if self.input.buffered() == 0 && !self.input.fill(1)? {
                return Err(self.truncated());
            }
            let n = self.padding.min(self.input.buffered() as u64);
            self.input.advance(n as usize, true);
            self.padding -= n;
        }
        Ok(())
    }

    /// The next header block; `None` at the end of the archive.
    fn block(&mut self, inside: bool) -> Result<Option<[u8; BLOCK]>, Error> {
        let start = self.input.offset;
        if !self.input.fill(BLOCK)? {
            let have = self.input.buffered();
            let first = self.entries == 0 && start == 0;
            return match have {
                0 if first => Err(self.corrupt(0, "the stream is empty")),
                0 if !inside => Ok(None),
                _ if first => Err(self.corrupt(0, header::describe_garbage(self.input.peek()))),
                _ => Err(self.corrupt(start + have as u64, "the stream ends inside a header")),
            };
        }
        let mut block = [0; BLOCK];
        block.copy_from_slice(&self.input.peek()[..BLOCK]);
        if header::is_zero(&block) {
            if inside {
                return Err(self.corrupt(start, "the archive ends between an entry's headers"));
            }
            self.input.advance(BLOCK, true);
            // The second block of zeros may be missing; anything else there is trailing data.
            if self.input.fill(BLOCK)? && header::is_zero(&self.input.peek()[..BLOCK]) {
                self.input.advance(BLOCK, true);
            }
            return Ok(None);
        }
        if !header::checksum_holds(&block) {
            return Err(self.corrupt(start, header::describe_garbage(&block)));
        }
        self.input.advance(BLOCK, true);
        Ok(Some(block))
    }

    fn read_headers(&mut self) -> Result<Option<EntryHeader>, Error> {
        let start = self.input.offset;
        let mut budget = MAX_HEADERS;
        let (mut name, mut link, mut records) = (None, None, Records::default());
        let mut inside = false;
        loop {
            let at = self.input.offset;
            let Some(block) = self.block(inside)? else {
                return Ok(None);
            };
            let mut entry = header::parse(&block, start).map_err(|why| self.corrupt(at, why))?;
            let EntryKind::Other(flag @ (b'x' | b'g' | b'L' | b'K' | b'X')) = entry.kind else {
                self.finish(&mut entry, &block, (name, link, records), budget)?;
                return Ok(Some(entry));
            };
            let data = self.extension(&entry, &mut budget)?;
            match flag {
                b'L' => name = Some(header::text(&data).to_vec()),
                b'K' => link = Some(header::text(&data).to_vec()),
                // Global headers are read over, as Go's reader and so every container engine does.
                b'g' => drop(Records::parse(&data).map_err(|why| self.corrupt(at, why))?),
                _ => records = Records::parse(&data).map_err(|why| self.corrupt(at, why))?,
            }
            inside = inside || flag != b'g';
        }
    }

    /// The data of an extension header, within the budget.
    fn extension(&mut self, entry: &EntryHeader, budget: &mut usize) -> Result<Vec<u8>, Error> {
        let whole = entry
            .size
            .saturating_add(padding(entry.size))
            .saturating_add(BLOCK as u64);
        *budget = usize::try_from(whole)
            .ok()
            .and_then(|whole| budget.checked_sub(whole))
            .ok_or_else(|| Error::Refused {
                name: TreePath(entry.name.clone()),
                why: format!("the headers of one entry take more than {MAX_HEADERS} bytes"),
            })?;
        let mut data = Vec::new();
        let size = entry.size as usize;
        while data.len() < size + padding(entry.size) as usize {
            if self.input.buffered() == 0 && !self.input.fill(1)? {
                return Err(self.corrupt(self.input.offset, "the stream ends inside a header"));
            }
            let left = size + padding(entry.size) as usize - data.len();
            let n = left.min(self.input.buffered());
            data.extend_from_slice(&self.input.peek()[..n]);
            self.input.advance(n, true);
        }
        data.truncate(size);
        Ok(data)
    }

    /// Puts overrides in and reads the sparse map.
    fn finish(
        &mut self,
        entry: &mut EntryHeader,
        block: &[u8; BLOCK],
        (name, link, records): (Option<Vec<u8>>, Option<Vec<u8>>, Records),
        budget: usize,
    ) -> Result<(), Error> {
        let at = entry.offset;
        let corrupt = |why: String| Error::Corrupt { offset: at, why };
        entry.name = name.unwrap_or(std::mem::take(&mut entry.name));
        entry.link = link.unwrap_or(std::mem::take(&mut entry.link));
        records.override_header(entry).map_err(corrupt)?;
        if entry.size > i64::MAX as u64 {
            return Err(corrupt(format!("a file cannot have {} bytes", entry.size)));
        }
        let has_data = matches!(entry.kind, EntryKind::File | EntryKind::Other(_));
        if !has_data {
            // As Go's reader: the size of a link or directory means nothing, and no data follows.
            (entry.size, entry.stored) = (0, 0);
        }
        let old_gnu = tar::Header::from_byte_slice(block).as_old().linkflag[0] == b'S';
        let (map, size) = if old_gnu {
            self.gnu_sparse(block, budget)?
        } else if records.sparse_map_in_data() {
            (
                self.sparse_map_in_data(entry, budget)?,
                records.sparse_size().map_err(corrupt)?,
            )
        } else if let Some(map) = records.sparse_map().map_err(corrupt)? {
            (map, records.sparse_size().map_err(corrupt)?)
        } else {
            return Ok(());
        };
        let size = size.ok_or_else(|| corrupt("a sparse file without its size".to_string()))?;
        if size > i64::MAX as u64 {
            return Err(corrupt(format!("a file cannot have {size} bytes")));
        }
        pax::set_sparse(entry, map, size).map_err(corrupt)
    }

    /// The map of the old GNU form: four runs in the header, 21 in each block after it.
    fn gnu_sparse(
        &mut self,
        block: &[u8; BLOCK],
        mut budget: usize,
    ) -> Result<(Vec<Extent>, Option<u64>), Error> {
        let at = self.input.offset;
        let malformed = || Error::Corrupt {
            offset: at,
            why: "the GNU sparse map is malformed".to_string(),
        };
        let field = |bytes: &[u8]| {
            let n = header::number(bytes)
                .map_err(|()| malformed())?
                .unwrap_or(0);
            u64::try_from(n).map_err(|_| malformed())
        };
        let runs = |bytes: &[u8], map: &mut Vec<Extent>| {
            for run in bytes.chunks_exact(24).filter(|run| run[0] != 0) {
                let (at, len) = (field(&run[..12])?, field(&run[12..])?);
                map.push(Extent { at, len });
            }
            Ok::<_, Error>(())
        };
        let mut map = Vec::new();
        runs(&block[386..482], &mut map)?;
        let size = field(&block[483..495])?;
        let mut more = block[482] != 0;
        while more {
            if !self.input.fill(BLOCK)? {
                return Err(self.corrupt(self.input.offset, "the stream ends inside a header"));
            }
            budget = budget.checked_sub(BLOCK).ok_or_else(malformed)?;
            let block = self.input.peek();
            runs(&block[..504], &mut map)?;
            more = block[504] != 0;
            self.input.advance(BLOCK, true);
        }
        Ok((map, Some(size)))
    }

    /// The map of the PAX form 1.0: decimal lines at the head of the data, padded to a block.
    fn sparse_map_in_data(
        &mut self,
        entry: &mut EntryHeader,
        mut budget: usize,
    ) -> Result<Vec<Extent>, Error> {
        let at = self.input.offset;
        let malformed = || Error::Corrupt {
            offset: at,
            why: "the GNU sparse map is malformed".to_string(),
        };
        let mut text = Vec::new();
        let mut numbers: Vec<u64> = Vec::new();
        loop {
            if entry.stored < BLOCK as u64 || budget < BLOCK {
                return Err(malformed());
            }
            if !self.input.fill(BLOCK)? {
                return Err(self.corrupt(self.input.offset, "the stream ends inside a header"));
            }
            text.extend_from_slice(&self.input.peek()[..BLOCK]);
            self.input.advance(BLOCK, true);
            entry.stored -= BLOCK as u64;
            budget -= BLOCK;
            let mut used = 0;
            while let Some(end) = text[used..].iter().position(|b| *b == b'\n') {
                numbers.push(pax::decimal(&text[used..used + end]).ok_or_else(malformed)?);
                used += end + 1;
                let wanted = (numbers[0] as usize).checked_mul(2).ok_or_else(malformed)?;
                if numbers.len() > wanted {
                    return pax::pair_up(&numbers[1..]).map_err(|_| malformed());
                }
            }
            text.drain(..used);
        }
    }
}

/// Bytes from the end of `size` bytes of data to the next block.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// A buffered input that knows its offset, and keeps what is not data when asked to.
#[derive(Debug)]
struct Input<R> {
    inner: R,
    buf: Vec<u8>,
    start: usize,
    end: usize,
    offset: u64,
    raw: Option<Vec<u8>>,
}

impl<R: Read> Input<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            buf: vec![0; BUFFER],
            start: 0,
            end: 0,
            offset: 0,
            raw: None,
        }
    }

    fn buffered(&self) -> usize {
        self.end - self.start
    }

    fn peek(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    fn advance(&mut self, n: usize, keep: bool) {
        if keep && let Some(raw) = &mut self.raw {
            raw.extend_from_slice(&self.buf[self.start..self.start + n]);
        }
        self.start += n;
        self.offset += n as u64;
    }

    /// Reads until at least `n` bytes (at most one block) are at hand; false when the stream ends before.
    fn fill(&mut self, n: usize) -> Result<bool, Error> {
        if self.buffered() < n {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        while self.buffered() < n {
            match self.inner.read(&mut self.buf[self.end..]) {
                Ok(0) => return Ok(false),
                Ok(got) => self.end += got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::stream(e)),
            }
        }
        Ok(true)
    }
}
