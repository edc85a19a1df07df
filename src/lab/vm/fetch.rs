//! Getting files from a mirror, and checking that they are what they should be.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::error::{Result, at, cannot};

/// How long a mirror may take to answer, and to send the next bytes.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a file is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// SHA-256, in hexadecimal digits.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
}

impl Known {
    /// Checks what was read.
    pub(super) fn check(&self, uri: &str, found: &Self) -> Result<()> {
        if self == found {
            return Ok(());
        }
        Err(cannot(format!(
            "{uri}: not what its index says: expected {} bytes with SHA-256 {}, found {} bytes with {}",
            self.size, self.sha256, found.size, found.sha256
        )))
    }
}

/// Opens what a URI names: `http:` or `file:`.
fn open(uri: &str) -> Result<Box<dyn Read>> {
    if let Some(path) = uri.strip_prefix("file:") {
        let path = Path::new("/").join(path.trim_start_matches('/'));
        return Ok(Box::new(File::open(&path).map_err(at(&path, "open"))?));
    }
    if !uri.starts_with("http://") {
        return Err(cannot(format!(
            "{uri}: only http: and file: mirrors can be read (what they send is checked by signature and digest); name one: \
             --mirror URI, or GRAPHTEST_MIRROR"
        )));
    }
    let agent = ureq::Agent::config_builder()
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .user_agent(concat!("graphtest/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent();
    let answer = agent
        .get(uri)
        .call()
        .map_err(|e| cannot(format!("{uri}: {e}")))?;
    Ok(Box::new(answer.into_body().into_reader()))
}

/// Copies what a URI names to `to`, and returns what it is.
fn copy(uri: &str, limit: u64, to: &mut dyn Write) -> Result<Known> {
    let said = |e: std::io::Error| cannot(format!("{uri}: {e}"));
    let mut from = open(uri)?.take(limit + 1);
    let mut hash = Sha256::new();
    let mut size = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = from.read(&mut buffer).map_err(said)?;
        if n == 0 {
            break;
        }
        size += n as u64;
        if size > limit {
            return Err(cannot(format!("{uri}: more than {limit} bytes")));
        }
        hash.update(&buffer[..n]);
        to.write_all(&buffer[..n]).map_err(said)?;
    }
    let sha256 = hex(&hash.finalize());
    Ok(Known { sha256, size })
}

/// The bytes of a small file, of at most `limit` bytes.
pub(super) fn bytes(uri: &str, limit: u64) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    copy(uri, limit, &mut all)?;
    Ok(all)
}

/// Fetches a file that is known to `path`, and checks it.
pub(super) fn file(uri: &str, known: &Known, path: &Path) -> Result<()> {
    let mut to = File::create(path).map_err(at(path, "make"))?;
    known.check(uri, &copy(uri, known.size, &mut to)?)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The SHA-256 of a text, in hexadecimal digits.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_as_known_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let from = tmp.path().join("from");
        std::fs::write(&from, "abc").unwrap();
        let uri = format!("file:{}", from.display());
        // FIPS 180-4's own example.
        let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let mut known = Known {
            sha256: sha.to_string(),
            size: 3,
        };
        file(&uri, &known, &tmp.path().join("to")).unwrap();
        assert_eq!(std::fs::read(tmp.path().join("to")).unwrap(), b"abc");
        std::fs::write(&from, "abd").unwrap();
        let e = file(&uri, &known, &tmp.path().join("to")).unwrap_err();
        assert!(e.to_string().contains("not what its index says"), "{e}");
        known.size = 2;
        let e = file(&uri, &known, &tmp.path().join("to")).unwrap_err();
        assert!(e.to_string().contains("more than 2 bytes"), "{e}");
        let e = bytes("https://mirror.example/debian", 1).unwrap_err();
        assert!(e.to_string().contains("--mirror"), "{e}");
    }
}
