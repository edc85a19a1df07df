//! Messages of HTTP as they are on the wire, read without any help: for scenarios that call a plugin themselves, and for plugins with
//! a bug.
//!
//! What a library would mend or refuse is what is judged here, so there is none in between.

use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// The most that the head of a message may take, in bytes.
const MAX_HEAD: u64 = 64 << 10;

/// A new connection to a plugin.
#[derive(Debug)]
pub struct Wire {
    /// A connected socket.
    pub socket: OwnedFd,
    /// How long the plugin may take to answer.
    pub limit: Duration,
}

/// A request or an answer.
#[derive(Debug, Default)]
pub(super) struct Message {
    /// The first line.
    pub start: String,
    /// The other lines of the head, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body; what of it came.
    pub body: Vec<u8>,
    /// Whether all of it came.
    pub whole: bool,
    /// How much of it came at once: with the first read, or as the first chunk.
    pub at_once: usize,
}

/// Which of the two a message is: they end differently where they do not say how long they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Answer,
}

impl Message {
    /// Reads one; `None` when there is none before the end.
    ///
    /// # Errors
    /// It is no HTTP, its body is longer than `most`, or the connection breaks before the end of its head.
    pub fn read(stream: impl Read, kind: Kind, most: u64) -> io::Result<Option<Self>> {
        let mut stream = BufReader::new(stream);
        let mut head = (&mut stream).take(MAX_HEAD);
        let Some(start) = line(&mut head)? else {
            return Ok(None);
        };
        let mut message = Self {
            start,
            ..Self::default()
        };
        loop {
            match line(&mut head)? {
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(line) if line.is_empty() => break,
                Some(line) => {
                    let (name, value) = line.split_once(':').ok_or_else(|| no_http(&line))?;
                    let pair = (name.to_ascii_lowercase(), value.trim().to_owned());
                    message.headers.push(pair);
                }
            }
        }
        let came = match (message.header("transfer-encoding"), message.length()?) {
            (Some(_), _) => message.chunks(&mut stream, most),
            (None, Some(length)) => message.exactly(&mut stream, length, most),
            (None, None) if kind == Kind::Request => Ok(true),
            (None, None) => message.rest(&mut stream, most),
        };
        message.whole = match came {
            Ok(whole) => whole,
            // Nothing more comes of what broke, or took too long.
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(e),
            Err(_) => false,
        };
        Ok(Some(message))
    }

    /// The value of a line of the head.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.headers.iter().filter(|(n, _)| n == name);
        lines.next().map(|(_, value)| value.as_str())
    }

    /// The number in the first line of an answer.
    pub fn status(&self) -> io::Result<u16> {
        let mut words = self.start.split(' ');
        let http = words.next().is_some_and(|w| w.starts_with("HTTP/1."));
        let status = words.next().and_then(|w| w.parse().ok());
        status.filter(|_| http).ok_or_else(|| no_http(&self.start))
    }

    fn length(&self) -> io::Result<Option<u64>> {
        let parse = |text: &str| text.parse().map_err(|_| no_http(text));
        self.header("content-length").map(parse).transpose()
    }

    fn exactly(&mut self, stream: &mut impl BufRead, length: u64, most: u64) -> io::Result<bool> {
        let mut left = length;
        while left > 0 {
            let got = stream.fill_buf()?;
            let n = got.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if n == 0 {
                return Ok(false);
            }
            self.body.extend_from_slice(&got[..n]);
            stream.consume(n);
            left -= n as u64;
            if self.at_once == 0 {
                self.at_once = n;
            }
            self.no_more_than(most)?;
        }
        Ok(true)
    }

    fn rest(&mut self, stream: &mut impl BufRead, most: u64) -> io::Result<bool> {
        // Without a length the end of the connection is that of the body.
        self.exactly(stream, u64::MAX, most).map(|_| true)
    }

    fn chunks(&mut self, stream: &mut impl BufRead, most: u64) -> io::Result<bool> {
        loop {
            let Some(size) = line(stream)? else {
                return Ok(false);
            };
            let digits = size.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(digits, 16).map_err(|_| no_http(&size))?;
            let came = self.body.len();
            if !self.exactly(stream, size, most)? {
                return Ok(false);
            }
            if came == 0 {
                self.at_once = self.body.len();
            }
            // The line's end after a chunk; after the last one an empty line.
            match line(stream)? {
                Some(end) if end.is_empty() => {}
                Some(other) => return Err(no_http(&other)),
                None => return Ok(false),
            }
            if size == 0 {
                return Ok(true);
            }
        }
    }

    fn no_more_than(&self, most: u64) -> io::Result<()> {
        if self.body.len() as u64 > most {
            let what = format!("its body is more than {} MiB", most >> 20);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(())
    }
}

/// A line without its end; `None` when there is none before the end.
fn line(stream: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    let n = stream.take(MAX_HEAD).read_until(b'\n', &mut bytes)?;
    if n == 0 {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&bytes);
    let ended = text.strip_suffix('\n').ok_or_else(|| no_http(&text))?;
    Ok(Some(ended.strip_suffix('\r').unwrap_or(ended).to_owned()))
}

fn no_http(what: &str) -> io::Error {
    let shown: String = what.chars().take(60).collect();
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("it is no HTTP: {shown:?}"),
    )
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(Kind::Request, "POST / HTTP/1.1\r\nHost:\r\n\r\nrest", "", true)]
    #[case(Kind::Answer, "HTTP/1.1 200 OK\r\n\r\nrest", "rest", true)]
    #[case(
        Kind::Answer,
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc",
        "ab",
        true
    )]
    #[case(
        Kind::Answer,
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc",
        "abc",
        false
    )]
    #[case(
        Kind::Request,
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2;x=y\r\nbc\r\n0\r\n\r\n",
        "abc",
        true
    )]
    #[case(
        Kind::Request,
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nb",
        "ab",
        false
    )]
    #[case(
        Kind::Request,
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
        "a",
        false
    )]
    fn bodies_end_as_they_say(
        #[case] kind: Kind,
        #[case] text: &str,
        #[case] body: &str,
        #[case] whole: bool,
    ) {
        let message = Message::read(text.as_bytes(), kind, 100).unwrap().unwrap();
        assert_eq!(message.body, body.as_bytes());
        assert_eq!(message.whole, whole);
    }

    #[rstest]
    #[case("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n")]
    #[case("HTTP/1.1 200 OK\r\nno header\r\n\r\n")]
    #[case("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxy\r\n")]
    #[case("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123456789")]
    #[case("HTTP/1.1 200 OK\r\nContent-Le")]
    fn what_is_no_message_is_an_error(#[case] text: &str) {
        assert!(Message::read(text.as_bytes(), Kind::Answer, 5).is_err());
    }
}
