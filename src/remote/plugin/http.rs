//! What both sides share of a connection: the socket, a buffer of what came in, and limits on how long to wait.

use std::io::{self, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_send_buffer_size;

use super::Address;

/// The most that the head of a request or of an answer may take, in bytes.
pub(super) const MAX_HEAD: usize = 64 << 10;

/// How much of a stream is sent at once, as one chunk: as much as an archive's reader takes in at once.
pub(super) const PIECE: usize = 256 << 10;

/// The size of a chunk whose data is not read here, but sent from where it is.
pub(super) const LARGE_PIECE: u64 = 1 << 20;

/// A read of less than this takes in what comes after it, too.
const DIRECT: usize = 8 << 10;

/// How long the end of a line is.
const LINE_END: usize = 2;

/// The buffer of a socket that streams go through, as far as the system allows it.
const SOCKET_BUFFER: usize = 1 << 20;

/// A connected socket.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    pub fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Unix(path) => UnixStream::connect(path).map(Self::Unix),
            Address::Tcp(host) => {
                let stream = TcpStream::connect(host)?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
        }
    }

    fn set_timeouts(&self, time: Duration) -> io::Result<()> {
        match self {
            Self::Unix(s) => s
                .set_read_timeout(Some(time))
                .and_then(|()| s.set_write_timeout(Some(time))),
            Self::Tcp(s) => s
                .set_read_timeout(Some(time))
                .and_then(|()| s.set_write_timeout(Some(time))),
        }
    }
}

impl From<Stream> for OwnedFd {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Unix(s) => s.into(),
            Stream::Tcp(s) => s.into(),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(s) => s.as_fd(),
            Self::Tcp(s) => s.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(s) => s.read(buf),
            Self::Tcp(s) => s.read(buf),
        }
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Unix(s) => s.read_vectored(bufs),
            Self::Tcp(s) => s.read_vectored(bufs),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(s) => s.write(buf),
            Self::Tcp(s) => s.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How long a call may still wait for the other side.
#[derive(Clone, Copy, Debug)]
pub(super) enum Limit {
    /// Until then, whatever comes.
    Until(Instant, Duration),
    /// So long for each piece of a stream.
    Each(Duration),
}

impl Limit {
    /// All of it within this time.
    pub fn whole(time: Duration) -> Self {
        let now = Instant::now();
        // A limit beyond what a clock can say is none that is met.
        let far = now + Duration::from_secs(365 * 24 * 60 * 60);
        Self::Until(now.checked_add(time).unwrap_or(far), time)
    }

    /// The time that is left; the error says that there is none.
    pub fn left(self) -> io::Result<Duration> {
        match self {
            Self::Each(time) => Ok(time),
            Self::Until(then, _) => {
                let left = then.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(self.passed());
                }
                Ok(left)
            }
        }
    }

    /// The error of a limit that was passed.
    pub fn passed(self) -> io::Error {
        let (Self::Until(_, time) | Self::Each(time)) = self;
        let time = humantime::format_duration(time);
        io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {time}"))
    }

    fn of(self, e: io::Error) -> io::Error {
        match e.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.passed(),
            _ => e,
        }
    }
}

/// A connection with what came in and was not used yet.
#[derive(Debug)]
pub(super) struct Connection {
    pub stream: Stream,
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// The time limit that the socket was given last.
    given: Option<Duration>,
}

impl Connection {
    pub fn new(stream: Stream) -> Self {
        // A smaller one is slower, no more.
        let _ = set_socket_send_buffer_size(&stream, SOCKET_BUFFER);
        Self {
            stream,
            bytes: vec![0; MAX_HEAD].into(),
            start: 0,
            end: 0,
            given: None,
        }
    }

    /// What came in and was not used yet.
    pub fn data(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Forgets the first bytes of it.
    pub fn consume(&mut self, n: usize) {
        self.start += n;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads more; 0 is the end. What is kept must be less than the buffer holds.
    ///
    /// # Errors
    /// Nothing came within the limit; what is kept fills the buffer; the socket's.
    pub fn fill(&mut self, limit: Option<Limit>) -> io::Result<usize> {
        self.fill_with(usize::MAX, limit)
    }

    /// The same, of at most so many bytes.
    fn fill_with(&mut self, most: usize, limit: Option<Limit>) -> io::Result<usize> {
        if self.end == self.bytes.len() {
            if self.start == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "it is no HTTP: more than 64 KiB without an end",
                ));
            }
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        self.receive(&mut [], most, limit)
    }

    /// Reads into a buffer of the caller's and, once that is full, at most `beyond` bytes to what is kept. Gives the number of all; what
    /// is kept comes before what the caller gets, so with a buffer there must be none.
    fn receive(
        &mut self,
        out: &mut [u8],
        beyond: usize,
        limit: Option<Limit>,
    ) -> io::Result<usize> {
        loop {
            if let Some(limit) = limit {
                self.limit(limit)?;
            }
            let end = self.bytes.len().min(self.end.saturating_add(beyond));
            let own = &mut self.bytes[self.end..end];
            let mut both = [IoSliceMut::new(out), IoSliceMut::new(own)];
            match self.stream.read_vectored(&mut both) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    return Err(match limit {
                        Some(limit) => limit.of(e),
                        None => e,
                    });
                }
                Ok(n) => {
                    self.end += n.saturating_sub(out.len());
                    return Ok(n);
                }
            }
        }
    }

    /// Has the socket keep to a limit; streams have the same for each piece.
    fn limit(&mut self, limit: Limit) -> io::Result<()> {
        let left = limit.left()?;
        if self.given != Some(left) {
            self.stream.set_timeouts(left)?;
            self.given = Some(left);
        }
        Ok(())
    }

    /// Writes all of it within the limit.
    pub fn send(&mut self, bytes: &[u8], limit: Limit) -> io::Result<()> {
        self.limit(limit)?;
        self.stream.write_all(bytes).map_err(|e| limit.of(e))
    }
}

/// A body in chunks. `ureq-proto` would copy it once more on either side, which halves the rate of an archive.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    at: At,
    /// What is still to come of the chunk.
    left: u64,
    /// How long the line was that said the size. Most chunks of a stream are of one size, so the next line is as long, and who reads no
    /// more than it leaves the data after it for the caller's buffer.
    line: usize,
}

/// What comes next of a body in chunks.
#[derive(Debug, Default, PartialEq)]
enum At {
    #[default]
    Size,
    Data,
    /// The end of the line after the data.
    Line,
    /// Lines up to an empty one.
    Trailer,
    Over,
}

impl Chunks {
    /// Reads some of it; 0 is its end.
    ///
    /// # Errors
    /// `UnexpectedEof` when the other side ends before it; it is none; the connection's.
    pub fn read(
        &mut self,
        connection: &mut Connection,
        out: &mut [u8],
        limit: Option<Limit>,
    ) -> io::Result<usize> {
        loop {
            match self.at {
                At::Over => return Ok(0),
                At::Data => {
                    let n = self.data(connection, out, limit)?;
                    self.left -= n as u64;
                    if self.left == 0 {
                        self.at = At::Line;
                    }
                    return Ok(n);
                }
                At::Size | At::Line | At::Trailer => self.line(connection, limit)?,
            }
        }
    }

    /// Data of a chunk; what was not read yet goes straight to the caller.
    fn data(
        &mut self,
        connection: &mut Connection,
        out: &mut [u8],
        limit: Option<Limit>,
    ) -> io::Result<usize> {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let most = left.min(out.len());
        let out = &mut out[..most];
        if !connection.data().is_empty() {
            let n = connection.data().len().min(most);
            out[..n].copy_from_slice(&connection.data()[..n]);
            connection.consume(n);
            return Ok(n);
        }
        let beyond = match most {
            _ if most < DIRECT => MAX_HEAD,
            _ if most == left => LINE_END + self.line,
            _ => 0,
        };
        match connection.receive(out, beyond, limit)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => Ok(n.min(most)),
        }
    }

    /// The line that is due.
    fn line(&mut self, connection: &mut Connection, limit: Option<Limit>) -> io::Result<()> {
        let most = match self.at {
            _ if self.line == 0 => MAX_HEAD,
            At::Line => LINE_END + self.line,
            _ => self.line,
        };
        while !connection.data().contains(&b'\n') {
            if connection.fill_with(most, limit)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let data = connection.data();
        let len = data.iter().position(|b| *b == b'\n').unwrap_or_default();
        let line = data[..len].trim_ascii_end();
        self.at = match self.at {
            At::Size => {
                let digits = line.split(|b| *b == b';').next().unwrap_or_default();
                let digits = std::str::from_utf8(digits.trim_ascii()).unwrap_or_default();
                // Signs are none of a size's.
                let size = u64::from_str_radix(digits, 16).ok();
                match size.filter(|_| !digits.starts_with('+')) {
                    Some(0) => At::Trailer,
                    Some(size) => {
                        (self.left, self.line) = (size, len + 1);
                        At::Data
                    }
                    None => return Err(no_chunk()),
                }
            }
            At::Line if !line.is_empty() => return Err(no_chunk()),
            At::Trailer if line.is_empty() => At::Over,
            At::Trailer => At::Trailer,
            _ => At::Size,
        };
        connection.consume(len + 1);
        Ok(())
    }
}

fn no_chunk() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "it is no HTTP: a chunk that is none",
    )
}

/// A buffer for a piece of a stream with room for what makes a chunk of it.
pub(super) struct Frame(Vec<u8>);

impl Frame {
    /// Room for the size, in at most eight digits, and the end of its line.
    const HEAD: usize = 10;

    pub fn new() -> Self {
        Self(vec![0; Self::HEAD + PIECE + 2])
    }

    /// Where the piece goes.
    pub fn piece(&mut self) -> &mut [u8] {
        &mut self.0[Self::HEAD..Self::HEAD + PIECE]
    }

    /// The first `n` bytes of the piece as a chunk; of none, the last chunk.
    pub fn chunk(&mut self, n: usize) -> &[u8] {
        if n == 0 {
            return b"0\r\n\r\n";
        }
        let head = chunk_head(n as u64);
        let start = Self::HEAD - head.len();
        self.0[start..Self::HEAD].copy_from_slice(head.as_bytes());
        let end = Self::HEAD + n;
        self.0[end..end + 2].copy_from_slice(b"\r\n");
        &self.0[start..end + 2]
    }
}

/// The line before the data of a chunk; the end of a line follows the data.
pub(super) fn chunk_head(size: u64) -> String {
    format!("{size:x}\r\n")
}

/// An error of the protocol, as one of the connection.
pub(super) fn malformed(e: &ureq_proto::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it is no HTTP: {e}"))
}

/// What stands in a URL's query for these bytes.
pub(super) fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(b.into());
            }
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

/// The bytes that a part of a query stands for; `None` when it stands for none.
pub(super) fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&b, tail)) = rest.split_first() {
        rest = tail;
        match b {
            b'+' => out.push(b' '),
            b'%' => {
                let hex = rest.get(..2).and_then(|h| std::str::from_utf8(h).ok())?;
                out.push(u8::from_str_radix(hex, 16).ok()?);
                rest = &rest[2..];
            }
            b => out.push(b),
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("abc-1.2_3~")]
    #[case("a b:c,d\\e\"f@g%h#i&j=k+l/ä")]
    fn what_is_encoded_is_decoded(#[case] text: &str) {
        let encoded = percent_encode(text);
        assert!(encoded.is_ascii() && !encoded.contains(['&', '#', ' ', '+']));
        assert_eq!(percent_decode(&encoded).as_deref(), Some(text));
    }

    #[rstest]
    #[case("%")]
    #[case("%4")]
    #[case("%zz")]
    #[case("%ff")]
    fn what_is_no_encoding_is_refused(#[case] text: &str) {
        assert_eq!(percent_decode(text), None);
    }
}
