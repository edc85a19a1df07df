//! tar-split: what an applied archive needs besides the layer's files to be given back byte for byte.
//!
//! The metadata is that of vbatts/tar-split as moby keeps it (`tar-split.json.gz`): gzip of one JSON object a line, either a segment of raw
//! bytes (headers, padding, the end) or a file, whose content is left in the layer and checked by a CRC-64.

use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, Read, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crc::{CRC_64_GO_ISO, Crc, Digest, Table};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

use super::read::{MAX_HEADERS, Reader};
use super::{EntryKind, Error};
use crate::tree::TreePath;

/// The most bytes of raw data in one segment behind the end of the archive, as tar-split cuts it.
const CHUNK: usize = 1 << 20;

/// The longest line of metadata that is read: a segment as long as the reader lets one get, in base64, and then some.
const MAX_LINE: u64 = 4 * (MAX_HEADERS + CHUNK) as u64;

static CRC: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_GO_ISO);

const FILE: u8 = 1;
const SEGMENT: u8 = 2;

/// One line of the metadata.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    /// The name in base64, where it is not UTF-8.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name_raw: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    size: u64,
    payload: Option<String>,
    position: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Hands on an archive while it is being applied and writes its metadata. Read it to its end, then call [`Recorder::finish`].
///
/// The content of sparse files goes into the metadata: what is stored of them cannot be told from the file that they make.
pub struct Recorder<R, W: Write> {
    reader: Reader<R>,
    lines: Lines<W>,
    /// Names of files, as 128 keyed bits each.
    names: HashSet<u128>,
    hashers: [std::hash::RandomState; 2],
    /// Bytes that were read but not handed on yet.
    pending: Vec<u8>,
    handed: usize,
    state: State,
}

enum State {
    /// The next bytes are headers.
    Header,
    /// In a file whose content stays in the layer.
    File(Line, Digest<'static, u64, Table<16>>),
    /// In data that goes into the metadata.
    Kept,
    /// Behind the end of the archive.
    Trailing,
    Done,
}

impl<R, W: Write> std::fmt::Debug for Recorder<R, W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder")
            .field("position", &self.lines.position)
            .finish_non_exhaustive()
    }
}

impl<R: Read, W: Write> Recorder<R, W> {
    /// Reads the archive from `input` and writes its metadata, compressed, to `metadata`.
    pub fn new(input: R, metadata: W) -> Self {
        let mut reader = Reader::new(input);
        reader.keep_raw();
        Self {
            reader,
            lines: Lines {
                out: GzEncoder::new(metadata, Compression::default()),
                position: 0,
            },
            names: HashSet::new(),
            hashers: Default::default(),
            pending: Vec::new(),
            handed: 0,
            state: State::Header,
        }
    }

    /// Reads what is left of the archive, ends the metadata and returns where it was written to.
    ///
    /// # Errors
    /// Those of reading the archive, as for [`super::apply`], and [`Error::Split`] when metadata cannot be written or two entries have
    /// one name, so that the first one's content cannot be given back.
    pub fn finish(mut self) -> Result<W, Error> {
        io::copy(&mut self, &mut io::sink()).map_err(Error::stream)?;
        self.lines.out.finish().map_err(split)
    }

    /// Makes more bytes pending; false at the end.
    fn advance(&mut self) -> Result<bool, Error> {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Header => self.headers()?,
            State::File(mut line, crc) => {
                line.payload = Some(STANDARD.encode(crc.finalize().to_be_bytes()));
                self.lines.write(line)?;
                self.state = State::Header;
            }
            State::Kept => self.state = State::Header,
            State::Trailing => {
                let chunk = self.reader.trailing(CHUNK)?;
                if chunk.is_empty() {
                    return Ok(false);
                }
                self.lines.segment(&chunk)?;
                self.pending = chunk;
                self.state = State::Trailing;
            }
            State::Done => return Ok(false),
        }
        Ok(true)
    }

    fn headers(&mut self) -> Result<(), Error> {
        let entry = self.reader.next_entry()?;
        let raw = self.reader.take_raw();
        if !raw.is_empty() {
            self.lines.segment(&raw)?;
        }
        self.pending = raw;
        let Some(entry) = entry else {
            self.state = State::Trailing;
            return Ok(());
        };
        self.remember(&entry.name)?;
        let file = entry.kind == EntryKind::File && entry.sparse.is_none() && entry.size > 0;
        let mut line = Line::file(&entry.name);
        if file {
            line.size = entry.size;
            self.state = State::File(line, CRC.digest());
        } else {
            self.lines.write(line)?;
            self.state = State::Kept;
        }
        Ok(())
    }

    /// tar-split itself refuses archives in which a name comes twice, for reading as well.
    fn remember(&mut self, name: &[u8]) -> Result<(), Error> {
        use std::hash::BuildHasher as _;
        let parts = name
            .split(|b| *b == b'/')
            .filter(|part| !matches!(*part, b"" | b"."));
        let clean = parts.collect::<Vec<_>>().join(&b'/');
        let [a, b] = &self.hashers;
        let key = u128::from(a.hash_one(&clean)) << 64 | u128::from(b.hash_one(&clean));
        if self.names.insert(key) {
            return Ok(());
        }
        Err(Error::Split(format!(
            "the name {} comes twice",
            TreePath(name.to_vec())
        )))
    }
}

impl<R: Read, W: Write> Read for Recorder<R, W> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if buf.is_empty() {
                return Ok(0);
            }
            if self.handed < self.pending.len() {
                let n = (&self.pending[self.handed..]).read(buf)?;
                self.handed += n;
                return Ok(n);
            }
            (self.pending, self.handed) = (Vec::new(), 0);
            if matches!(self.state, State::File(..) | State::Kept) {
                let data = self
                    .reader
                    .data(buf.len() as u64)
                    .map_err(io::Error::other)?;
                let n = data.len();
                if n > 0 {
                    buf[..n].copy_from_slice(data);
                    match &mut self.state {
                        State::File(_, crc) => crc.update(data),
                        _ => self.lines.segment(data).map_err(io::Error::other)?,
                    }
                    self.reader.consume(n);
                    return Ok(n);
                }
            }
            if !self.advance().map_err(io::Error::other)? {
                return Ok(0);
            }
        }
    }
}

struct Lines<W: Write> {
    out: GzEncoder<W>,
    position: u64,
}

impl<W: Write> Lines<W> {
    fn segment(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.write(Line {
            kind: SEGMENT,
            name: String::new(),
            name_raw: String::new(),
            size: 0,
            payload: Some(STANDARD.encode(bytes)),
            position: 0,
        })
    }

    fn write(&mut self, mut line: Line) -> Result<(), Error> {
        line.position = self.position;
        self.position += 1;
        serde_json::to_writer(&mut self.out, &line).map_err(split)?;
        self.out.write_all(b"\n").map_err(split)
    }
}

impl Line {
    fn file(name: &[u8]) -> Self {
        let (name, name_raw) = match std::str::from_utf8(name) {
            Ok(name) => (name.to_string(), String::new()),
            Err(_) => (String::new(), STANDARD.encode(name)),
        };
        Self {
            kind: FILE,
            name,
            name_raw,
            size: 0,
            payload: None,
            position: 0,
        }
    }

    fn name(&self) -> Result<Vec<u8>, Error> {
        match self.name_raw.as_str() {
            "" => Ok(self.name.as_bytes().to_vec()),
            raw => STANDARD.decode(raw).map_err(split),
        }
    }

    fn payload(&self) -> Result<Vec<u8>, Error> {
        STANDARD
            .decode(self.payload.as_deref().unwrap_or_default())
            .map_err(split)
    }
}

fn split(e: impl std::fmt::Display) -> Error {
    Error::Split(e.to_string())
}

/// Opens a layer's file by its name in the archive.
pub type Getter<'a> = dyn Fn(&[u8]) -> io::Result<Box<dyn Read + Send>> + 'a;

/// Writes the archive that the metadata describes, taking the content of files from `get`. Both are read as they are needed.
///
/// # Errors
/// [`Error::Split`] where the metadata is damaged or a file is missing or is not what it was; `out` then has the archive up to there.
/// [`Error::Stream`] where writing fails.
pub fn assemble(metadata: impl Read, get: &Getter<'_>, out: &mut dyn Write) -> Result<(), Error> {
    let mut lines = BufReader::new(MultiGzDecoder::new(metadata));
    let (mut text, mut position) = (Vec::new(), 0);
    loop {
        text.clear();
        lines
            .by_ref()
            .take(MAX_LINE)
            .read_until(b'\n', &mut text)
            .map_err(split)?;
        if text.trim_ascii().is_empty() {
            return if text.is_empty() {
                Ok(())
            } else {
                Err(split("an empty line"))
            };
        }
        let line: Line = serde_json::from_slice(&text).map_err(split)?;
        if line.position != position {
            return Err(split(format!("entry {position} is missing")));
        }
        position += 1;
        match line.kind {
            SEGMENT => out.write_all(&line.payload()?).map_err(Error::Stream)?,
            FILE if line.size == 0 => {}
            FILE => copy_file(&line, get, out)?,
            other => return Err(split(format!("an entry of type {other}"))),
        }
    }
}

fn copy_file(line: &Line, get: &Getter<'_>, out: &mut dyn Write) -> Result<(), Error> {
    let name = line.name()?;
    let on_file =
        |e: &dyn std::fmt::Display| Error::Split(format!("{}: {e}", TreePath(name.clone())));
    let mut file = get(&name)
        .map_err(|e| on_file(&e))?
        .take(line.size.saturating_add(1));
    let (mut crc, mut size) = (CRC.digest(), 0u64);
    let mut buf = vec![0; 64 << 10];
    loop {
        let n = match file.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(on_file(&e)),
        };
        size += n as u64;
        if size > line.size {
            return Err(on_file(&"the file is longer than it was"));
        }
        crc.update(&buf[..n]);
        out.write_all(&buf[..n]).map_err(Error::Stream)?;
    }
    if size != line.size {
        return Err(on_file(&"the file is shorter than it was"));
    }
    if line.payload()? != crc.finalize().to_be_bytes() {
        return Err(on_file(&"the file's content is not what it was"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
