//! Writing the tar that a manifest describes.

use std::io::{self, Write};

use super::{Data, End, Entry, Field, Format, Manifest, What};
use crate::archive::header::BLOCK;
use crate::archive::write::{pax_record, put_octal};
use crate::tree::Timestamp;
use crate::tree::content::pseudo_random;
use crate::tree::op::Time;

/// Writes the archive that a manifest describes.
///
/// # Errors
/// Those of `out`.
pub fn build(manifest: &Manifest, out: &mut dyn Write) -> io::Result<()> {
    let left = manifest.truncate.as_ref().map_or(u64::MAX, |t| t.0);
    let mut out = Cut { out, left };
    if manifest.gzip {
        let mut gz = flate2::write::GzEncoder::new(out, flate2::Compression::fast());
        write_all(manifest, &mut gz)?;
        gz.finish()?;
        return Ok(());
    }
    write_all(manifest, &mut out)
}

/// The archive as bytes, for small ones.
pub fn to_bytes(manifest: &Manifest) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Memory does not fail to be written.
    build(manifest, &mut bytes).unwrap_or_default();
    bytes
}

fn write_all(manifest: &Manifest, out: &mut dyn Write) -> io::Result<()> {
    if let Some(raw) = &manifest.raw {
        out.write_all(&raw.0)?;
    } else {
        for entry in &manifest.entries {
            if entry.times == 1 {
                write_entry(entry, out)?;
                continue;
            }
            let mut one = entry.clone();
            for time in 1..=entry.times {
                one.name = numbered(&entry.name, time);
                write_entry(&one, out)?;
            }
        }
        let blocks = match manifest.end {
            End::Two => 2,
            End::One => 1,
            End::None => 0,
        };
        out.write_all(&[0; 2 * BLOCK][..blocks * BLOCK])?;
    }
    out.write_all(manifest.append.as_ref().map_or(&[][..], |b| &b.0))
}

/// `%i` in a name replaced.
fn numbered(name: &[u8], number: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len() + 8);
    let mut rest = name;
    while let Some(at) = rest.windows(2).position(|w| w == b"%i") {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(number.to_string().as_bytes());
        rest = &rest[at + 2..];
    }
    out.extend_from_slice(rest);
    out
}

/// Takes everything and passes on the first `left` bytes.
struct Cut<'a> {
    out: &'a mut dyn Write,
    left: u64,
}

impl Write for Cut<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let n = usize::try_from(self.left).map_or(data.len(), |left| left.min(data.len()));
        self.out.write_all(&data[..n])?;
        self.left -= n as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn write_entry(entry: &Entry, out: &mut dyn Write) -> io::Result<()> {
    let mut header = Header::new(entry.format);
    let mut records = Vec::new();
    if entry.what == What::Global {
        add_pax(&mut records, entry);
        return write_extension(b'g', &entry.name, &records, out);
    }
    let empty = Data::Bytes(Vec::new());
    let (flag, link, data) = flag_link_data(&entry.what, &empty);
    header.put(Field::Type, &[flag]);
    let forced = entry.format == Format::Pax;
    if !header.name(&entry.name) || forced {
        match entry.format {
            Format::Gnu => write_extension(
                b'L',
                b"././@LongLink",
                &[&entry.name[..], b"\0"].concat(),
                out,
            )?,
            _ => pax_record(&mut records, b"path", &entry.name),
        }
    }
    if !header.text(Field::Link, link) {
        match entry.format {
            Format::Gnu => write_extension(b'K', b"././@LongLink", &[link, b"\0"].concat(), out)?,
            _ => pax_record(&mut records, b"linkpath", link),
        }
    }
    put_numbers(&mut header, &mut records, entry, data.len());
    if let What::Char(dev) | What::Block(dev) = entry.what {
        header.number(Field::Major, dev.major.into());
        header.number(Field::Minor, dev.minor.into());
    }
    for (name, value) in &entry.xattrs {
        pax_record(
            &mut records,
            format!("SCHILY.xattr.{name}").as_bytes(),
            &value.0,
        );
    }
    add_pax(&mut records, entry);
    if !records.is_empty() {
        write_extension(b'x', b"PaxHeaders.0/entry", &records, out)?;
    }
    for (field, bytes) in entry.fields.iter().filter(|(f, _)| *f != Field::Checksum) {
        header.put(*field, bytes);
    }
    let checksum = entry.fields.iter().find(|(f, _)| *f == Field::Checksum);
    out.write_all(&header.finish(checksum.map(|(_, b)| b.as_slice())))?;
    write_data(data, out)
}

/// The type flag, the link's target and the content of an entry that is no global header; `empty` is the content of what has none.
fn flag_link_data<'a>(what: &'a What, empty: &'a Data) -> (u8, &'a [u8], &'a Data) {
    match what {
        What::File(data) => (b'0', &[], data),
        What::Hardlink(to) => (b'1', to, empty),
        What::Symlink(to) => (b'2', to, empty),
        What::Char(_) => (b'3', &[], empty),
        What::Block(_) => (b'4', &[], empty),
        What::Dir => (b'5', &[], empty),
        What::Fifo => (b'6', &[], empty),
        What::Global => (b'g', &[], empty),
        What::Raw(flag, to, data) => (*flag, to, data),
    }
}

/// Mode, owner, size and time, in PAX records where the header's fields cannot hold them.
fn put_numbers(header: &mut Header, records: &mut Vec<u8>, entry: &Entry, data_len: u64) {
    let default_mode = if entry.what == What::Dir {
        0o755
    } else {
        0o644
    };
    header.number(Field::Mode, entry.mode.unwrap_or(default_mode).into());
    let size = entry.declare.unwrap_or(data_len);
    let Timestamp { secs, nanos } = entry.mtime;
    for (field, key, n, must) in [
        (Field::Uid, "uid", i128::from(entry.owner.uid), false),
        (Field::Gid, "gid", entry.owner.gid.into(), false),
        (Field::Size, "size", size.into(), false),
        (
            Field::Mtime,
            "mtime",
            secs.into(),
            entry.format == Format::Pax || nanos != 0,
        ),
    ] {
        let fits = header.number(field, n);
        if entry.format != Format::Gnu && (!fits || must) {
            let text = if field == Field::Mtime {
                decimal(entry.mtime)
            } else {
                n.to_string()
            };
            pax_record(records, key.as_bytes(), text.as_bytes());
        }
    }
}

fn add_pax(records: &mut Vec<u8>, entry: &Entry) {
    for (key, value) in &entry.pax {
        pax_record(records, key, value);
    }
}

fn write_extension(flag: u8, name: &[u8], data: &[u8], out: &mut dyn Write) -> io::Result<()> {
    let mut header = Header::new(if flag == b'L' || flag == b'K' {
        Format::Gnu
    } else {
        Format::Ustar
    });
    header.put(Field::Type, &[flag]);
    header.put(Field::Name, name);
    for field in [Field::Mode, Field::Uid, Field::Gid, Field::Mtime] {
        header.number(field, 0);
    }
    header.number(Field::Size, data.len() as i128);
    out.write_all(&header.finish(None))?;
    write_padded(data, out)
}

fn write_data(data: &Data, out: &mut dyn Write) -> io::Result<()> {
    match data {
        Data::Bytes(bytes) => write_padded(bytes, out),
        Data::Random { size, seed } => {
            let mut buf = vec![0; 64 << 10];
            let mut at = 0;
            while at < *size {
                let n = (size - at).min(buf.len() as u64) as usize;
                pseudo_random(*seed, at, &mut buf[..n]);
                out.write_all(&buf[..n])?;
                at += n as u64;
            }
            pad(*size, out)
        }
    }
}

fn write_padded(bytes: &[u8], out: &mut dyn Write) -> io::Result<()> {
    out.write_all(bytes)?;
    pad(bytes.len() as u64, out)
}

fn pad(size: u64, out: &mut dyn Write) -> io::Result<()> {
    let n = (size.wrapping_neg() % BLOCK as u64) as usize;
    out.write_all(&[0; BLOCK][..n])
}

/// `mtime` as a PAX record holds it.
fn decimal(t: Timestamp) -> String {
    let text = Time(t).to_string();
    if t.secs < 0 && t.nanos > 0 {
        return format!("-{}.{:09}", -(t.secs + 1), 1_000_000_000 - t.nanos);
    }
    text
}

struct Header {
    block: [u8; BLOCK],
    gnu: bool,
}

impl Header {
    fn new(format: Format) -> Self {
        let gnu = format == Format::Gnu;
        let mut header = Self {
            block: [0; BLOCK],
            gnu,
        };
        header.put(
            Field::Magic,
            if gnu { b"ustar  \0" } else { b"ustar\x0000" },
        );
        header
    }

    fn put(&mut self, field: Field, bytes: &[u8]) {
        let to = &mut self.block[field.range()];
        let n = bytes.len().min(to.len());
        to.fill(0);
        to[..n].copy_from_slice(&bytes[..n]);
    }

    /// False when it does not fit.
    fn text(&mut self, field: Field, bytes: &[u8]) -> bool {
        self.put(field, bytes);
        bytes.len() <= field.range().len() && !bytes.contains(&0)
    }

    /// Splits a long name over the prefix of a ustar header where a `/` allows it.
    fn name(&mut self, name: &[u8]) -> bool {
        if self.text(Field::Name, name) {
            return true;
        }
        let fits = |i: &usize| (1..=155).contains(i) && (1..=100).contains(&(name.len() - i - 1));
        let slashes = name.iter().enumerate().filter(|(_, b)| **b == b'/');
        let cut = slashes.map(|(i, _)| i).rfind(fits);
        match cut {
            Some(cut) if !self.gnu && !name.contains(&0) => {
                self.put(Field::Prefix, &name[..cut]);
                self.put(Field::Name, &name[cut + 1..]);
                true
            }
            _ => false,
        }
    }

    /// False when octal digits cannot hold it; a GNU header then gets base-256, another one zero.
    fn number(&mut self, field: Field, n: i128) -> bool {
        let gnu = self.gnu;
        let to = &mut self.block[field.range()];
        if u64::try_from(n).is_ok_and(|n| put_octal(to, n)) {
            return true;
        }
        put_octal(to, 0);
        if gnu {
            let bytes = n.to_be_bytes();
            let len = to.len();
            to.copy_from_slice(&bytes[bytes.len() - len..]);
            to[0] |= 0x80;
        }
        false
    }

    fn finish(mut self, checksum: Option<&[u8]>) -> [u8; BLOCK] {
        self.block[Field::Checksum.range()].fill(b' ');
        let sum: u64 = self.block.iter().map(|b| u64::from(*b)).sum();
        match checksum {
            Some(bytes) => self.put(Field::Checksum, bytes),
            None => {
                put_octal(&mut self.block[148..155], sum);
            }
        }
        self.block
    }
}
