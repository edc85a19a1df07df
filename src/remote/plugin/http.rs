//! What both sides share of a connection: the socket, a buffer of what came in, and limits on how long to wait.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::Address;

/// The most that the head of a request or of an answer may take, in bytes.
pub(super) const MAX_HEAD: usize = 64 << 10;

/// How much of a body is sent at once: whole chunks of the size that `ureq-proto` makes (10 KiB and 8 bytes around each).
pub(super) const PIECE: usize = 8 * (10 << 10);
/// The room that a piece takes as chunks.
pub(super) const PIECE_AS_CHUNKS: usize = PIECE + 8 * 8;

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
}

impl Connection {
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            bytes: vec![0; MAX_HEAD].into(),
            start: 0,
            end: 0,
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
        loop {
            if let Some(limit) = limit {
                self.stream.set_timeouts(limit.left()?)?;
            }
            match self.stream.read(&mut self.bytes[self.end..]) {
                Ok(n) => {
                    self.end += n;
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    return Err(match limit {
                        Some(limit) => limit.of(e),
                        None => e,
                    });
                }
            }
        }
    }

    /// Writes all of it within the limit.
    pub fn send(&mut self, bytes: &[u8], limit: Limit) -> io::Result<()> {
        self.stream.set_timeouts(limit.left()?)?;
        self.stream.write_all(bytes).map_err(|e| limit.of(e))
    }
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
