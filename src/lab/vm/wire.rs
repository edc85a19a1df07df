//! What a guest says to its host, over a serial line of its own: frames of a kind, a length and bytes. And what the host has for
//! the guest: a job, on a disk of its own.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// What a guest is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Files that it finds in [`JOB_DIR`], by name.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Whether it talks with a person, on the console.
    #[serde(default)]
    pub interactive: bool,
}

/// Where a guest has a job's files.
pub const JOB_DIR: &str = "/run/job";

impl Job {
    /// As it stands on the disk: JSON, and zeros up to a whole number of blocks.
    pub(super) fn to_disk(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self)?;
        let blocks = (bytes.len() + 1).div_ceil(BLOCK);
        bytes.resize(blocks * BLOCK, 0);
        Ok(bytes)
    }

    /// Reads it back from a disk.
    pub(super) fn from_disk(bytes: &[u8]) -> serde_json::Result<Self> {
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        serde_json::from_slice(&bytes[..end])
    }
}

const BLOCK: usize = 1 << 16;

/// What a guest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// It is up; the kernel's release.
    Hello(String),
    /// It is still there.
    Alive,
    /// The job's program wrote this to its standard output.
    Out(Vec<u8>),
    /// The job's program wrote this to its standard error.
    Err(Vec<u8>),
    /// The job's program ended with this status.
    Done(i32),
    /// The guest could not carry its job out.
    Failed(String),
}

/// The longest frame's content.
const LONGEST: usize = 1 << 20;

impl Message {
    /// Writes it as one frame.
    ///
    /// # Errors
    /// Those of the line.
    pub fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        let done;
        let (kind, content): (u8, &[u8]) = match self {
            Self::Hello(release) => (b'H', release.as_bytes()),
            Self::Alive => (b'A', &[]),
            Self::Out(bytes) => (b'O', bytes),
            Self::Err(bytes) => (b'E', bytes),
            Self::Done(status) => {
                done = status.to_le_bytes();
                (b'D', &done)
            }
            Self::Failed(why) => (b'F', why.as_bytes()),
        };
        let content = &content[..content.len().min(LONGEST)];
        let mut frame = vec![kind];
        // At most LONGEST, which 32 bits hold.
        frame.extend((content.len() as u32).to_le_bytes());
        frame.extend(content);
        to.write_all(&frame)?;
        to.flush()
    }

    /// Reads one frame; `None` at the end of the line, also in the middle of a frame.
    ///
    /// # Errors
    /// Those of the line; `InvalidData` when it is no frame.
    pub fn read(from: &mut dyn Read) -> io::Result<Option<Self>> {
        let mut head = [0; 5];
        let mut content = Vec::new();
        let whole = from.read_exact(&mut head).and_then(|()| {
            let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
            if length > LONGEST {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a frame too long",
                ));
            }
            content.resize(length, 0);
            from.read_exact(&mut content)
        });
        match whole {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let text = || String::from_utf8_lossy(&content).into_owned();
        Ok(Some(match head[0] {
            b'H' => Self::Hello(text()),
            b'A' => Self::Alive,
            b'O' => Self::Out(content),
            b'E' => Self::Err(content),
            b'F' => Self::Failed(text()),
            b'D' if content.len() == 4 => Self::Done(i32::from_le_bytes([
                content[0], content[1], content[2], content[3],
            ])),
            other => {
                let what = format!("a frame of kind {other}, which there is not");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let said = [
            Message::Hello("6.1.0".to_string()),
            Message::Alive,
            Message::Out(vec![0, 255, 10]),
            Message::Err(Vec::new()),
            Message::Failed("no".to_string()),
            Message::Done(-9),
        ];
        let mut line = Vec::new();
        for message in &said {
            message.write(&mut line).unwrap();
        }
        let mut from = &line[..];
        for message in said {
            assert_eq!(Message::read(&mut from).unwrap(), Some(message));
        }
        assert_eq!(Message::read(&mut from).unwrap(), None);
        // A guest that dies in the middle of a word.
        assert_eq!(Message::read(&mut &line[..3]).unwrap(), None);
        assert_eq!(Message::read(&mut &line[..8]).unwrap(), None);
        for junk in [&b"Z\0\0\0\0"[..], b"O\xff\xff\xff\xff", b"D\x01\0\0\0x"] {
            let e = Message::read(&mut &junk[..]).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn a_job_survives_its_disk() {
        let job = Job {
            argv: vec!["true".to_string(), "\"\n".to_string()],
            files: BTreeMap::from([("a.yaml".to_string(), "x".repeat(70_000))]),
            interactive: true,
        };
        let disk = job.to_disk().unwrap();
        assert_eq!(disk.len() % BLOCK, 0);
        assert_eq!(Job::from_disk(&disk).unwrap(), job);
        assert!(Job::from_disk(&[0; 512]).is_err());
    }
}
