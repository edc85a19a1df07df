//! The kernel log from a moment on (`/dev/kmsg`).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// A place in the kernel log; what came after it can be read.
#[derive(Debug)]
pub struct KernelLog {
    file: File,
}

/// A line of the kernel log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// From 0 (emergency) over 3 (error) and 4 (warning) to 7 (debug).
    pub level: u8,
    /// What it says, without the time.
    pub text: String,
}

impl KernelLog {
    /// The end of the log as it is now.
    ///
    /// # Errors
    /// `/dev/kmsg` is missing or may not be read (sysctl kernel.dmesg_restrict).
    pub fn from_now() -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open("/dev/kmsg")?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self { file })
    }

    /// What was logged since the last call, or since [`KernelLog::from_now`]. Lines that the kernel has thrown away are not there.
    ///
    /// # Errors
    /// The errno of reading.
    pub fn lines(&mut self) -> io::Result<Vec<LogLine>> {
        let mut lines = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.file.read(&mut record) {
                Ok(0) => return Ok(lines),
                Ok(len) => lines.extend(parse(&record[..len])),
                Err(e) => match Errno::from_io_error(&e) {
                    Some(Errno::AGAIN) => return Ok(lines),
                    // Overwritten before it was read: the next read is of the oldest there is.
                    Some(Errno::PIPE | Errno::INTR) => {}
                    _ => return Err(e),
                },
            }
        }
    }
}

/// A record is `PRIORITY,SEQUENCE,TIME,FLAGS;TEXT`, with further lines that begin with a blank.
fn parse(record: &[u8]) -> Option<LogLine> {
    let text = String::from_utf8_lossy(record);
    let (head, text) = text.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    Some(LogLine {
        level: (priority & 7) as u8,
        text: text.lines().next().unwrap_or_default().to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_taken_apart() {
        let line = parse(b"30,1234,5678901,-;EXT4-fs (loop0): mounted\n SUBSYSTEM=x\n").unwrap();
        assert_eq!(
            (line.level, line.text.as_str()),
            (6, "EXT4-fs (loop0): mounted")
        );
        assert_eq!(parse(b"no record"), None);
    }

    #[test]
    fn what_is_logged_is_read_once() {
        let mut log = KernelLog::from_now().expect("/dev/kmsg, as root");
        let mark = format!("graphtest {} reads the kernel log", std::process::id());
        std::fs::write("/dev/kmsg", format!("<7>{mark}\n")).expect("/dev/kmsg, as root");
        let of_mine = |lines: Vec<LogLine>| lines.iter().filter(|l| l.text.contains(&mark)).count();
        assert_eq!(of_mine(log.lines().unwrap()), 1);
        assert_eq!(of_mine(log.lines().unwrap()), 0);
    }
}
