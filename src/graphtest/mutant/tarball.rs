//! Archives taken apart and put together again, for mutants that break one entry of a stream.

use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::{EntryType, Header};

/// The prefix of PAX records that hold extended attributes.
pub(super) const XATTR: &str = "SCHILY.xattr.";

/// One entry, with its PAX records taken in.
#[derive(Clone, Debug)]
pub(super) struct TarEntry {
    pub(super) name: Vec<u8>,
    pub(super) kind: EntryType,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    /// Whole seconds of the header; a PAX record `mtime` goes over it.
    pub(super) mtime: u64,
    pub(super) dev: (u32, u32),
    /// All other records, `mtime` among them.
    pub(super) pax: BTreeMap<String, Vec<u8>>,
    pub(super) data: Vec<u8>,
}

impl TarEntry {
    /// An entry with nothing special about it.
    pub(super) fn new(name: &[u8], kind: EntryType) -> Self {
        Self {
            name: name.to_vec(),
            kind,
            link: Vec::new(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            dev: (0, 0),
            pax: BTreeMap::new(),
            data: Vec::new(),
        }
    }

    /// The name without a leading `./` and a final `/`.
    pub(super) fn path(&self) -> &[u8] {
        let name = self.name.strip_prefix(b"./").unwrap_or(&self.name);
        name.strip_suffix(b"/").unwrap_or(name)
    }

    /// The last component of the name.
    pub(super) fn base(&self) -> &[u8] {
        self.path()
            .rsplit(|b| *b == b'/')
            .next()
            .unwrap_or_default()
    }

    /// The directory part of the name; empty at the root.
    pub(super) fn dir(&self) -> &[u8] {
        let path = self.path();
        path.iter()
            .rposition(|b| *b == b'/')
            .map_or(b"", |i| &path[..i])
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind == EntryType::Directory
    }

    pub(super) fn is_file(&self) -> bool {
        matches!(self.kind, EntryType::Regular | EntryType::Continuous)
    }

    /// The name that a whiteout deletes.
    pub(super) fn whiteout(&self) -> Option<&[u8]> {
        self.base()
            .strip_prefix(b".wh.")
            .filter(|n| !n.starts_with(b".wh."))
    }

    pub(super) fn is_opaque(&self) -> bool {
        self.base() == b".wh..wh..opq"
    }
}

/// Reads a whole archive; `None` when it is not one.
pub(super) fn decode(input: &mut dyn Read) -> io::Result<Option<Vec<TarEntry>>> {
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes)?;
    Ok(decode_bytes(&bytes).map(|(entries, _)| entries))
}

/// The entries of an archive and how many bytes it has up to and with the end-of-archive blocks.
pub(super) fn decode_bytes(bytes: &[u8]) -> Option<(Vec<TarEntry>, usize)> {
    let mut entries = Vec::new();
    let mut pending: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut at = 0;
    loop {
        let block = bytes.get(at..at + 512)?;
        if block.iter().all(|b| *b == 0) {
            return Some((entries, (at + 1024).min(bytes.len())));
        }
        let header = Header::from_byte_slice(block);
        if !is_header(header) {
            return None;
        }
        let declared = pending
            .get("size")
            .and_then(|v| std::str::from_utf8(v).ok()?.parse().ok());
        let size = declared.or_else(|| header.entry_size().ok())?;
        let data = bytes
            .get(at + 512..at + 512 + usize::try_from(size).ok()?)?
            .to_vec();
        at += 512 + data.len().next_multiple_of(512);
        match header.entry_type() {
            EntryType::XHeader => pending.extend(records(&data)?),
            EntryType::GNULongName => drop(pending.insert("path".into(), without_nul(data))),
            EntryType::GNULongLink => drop(pending.insert("linkpath".into(), without_nul(data))),
            kind => entries.push(entry(header, kind, std::mem::take(&mut pending), data)?),
        }
    }
}

/// Whether a block is a header with a good checksum.
pub(super) fn is_header(header: &Header) -> bool {
    let sum: u32 = header
        .as_bytes()
        .iter()
        .enumerate()
        .map(|(i, b)| u32::from(if (148..156).contains(&i) { b' ' } else { *b }))
        .sum();
    header.cksum().is_ok_and(|c| c == sum)
}

fn without_nul(mut text: Vec<u8>) -> Vec<u8> {
    text.truncate(text.iter().position(|b| *b == 0).unwrap_or(text.len()));
    text
}

fn entry(
    header: &Header,
    kind: EntryType,
    mut pax: BTreeMap<String, Vec<u8>>,
    data: Vec<u8>,
) -> Option<TarEntry> {
    let number =
        |v: Option<Vec<u8>>| v.and_then(|v| std::str::from_utf8(&v).ok()?.parse::<u64>().ok());
    pax.remove("size");
    Some(TarEntry {
        name: pax
            .remove("path")
            .unwrap_or_else(|| header.path_bytes().into_owned()),
        link: pax.remove("linkpath").unwrap_or_else(|| {
            header
                .link_name_bytes()
                .map(|l| l.into_owned())
                .unwrap_or_default()
        }),
        uid: number(pax.remove("uid")).or_else(|| header.uid().ok())?,
        gid: number(pax.remove("gid")).or_else(|| header.gid().ok())?,
        mode: header.mode().ok()? & 0o7777,
        mtime: header.mtime().unwrap_or(0),
        dev: (
            header.device_major().ok().flatten().unwrap_or(0),
            header.device_minor().ok().flatten().unwrap_or(0),
        ),
        kind,
        pax,
        data,
    })
}

/// The records of a PAX header. The crate's own parser cuts values at newlines, so this is a length-driven one.
fn records(mut data: &[u8]) -> Option<BTreeMap<String, Vec<u8>>> {
    let mut out = BTreeMap::new();
    while !data.is_empty() {
        let space = data.iter().position(|b| *b == b' ')?;
        let len: usize = std::str::from_utf8(&data[..space]).ok()?.parse().ok()?;
        let record = data.get(space + 1..len.checked_sub(1)?)?;
        let eq = record.iter().position(|b| *b == b'=')?;
        out.insert(
            String::from_utf8_lossy(&record[..eq]).into_owned(),
            record[eq + 1..].to_vec(),
        );
        data = &data[len..];
    }
    Some(out)
}

/// Writes an archive; all that a plain header may not hold goes into PAX records.
pub(super) fn encode(entries: &[TarEntry]) -> Vec<u8> {
    let mut out = Vec::new();
    for e in entries {
        let mut pax = e.pax.clone();
        pax.insert("path".into(), e.name.clone());
        if !e.link.is_empty() {
            pax.insert("linkpath".into(), e.link.clone());
        }
        pax.insert("uid".into(), e.uid.to_string().into_bytes());
        pax.insert("gid".into(), e.gid.to_string().into_bytes());
        let mut data = Vec::new();
        for (key, value) in &pax {
            data.extend(record(key, value));
        }
        // A global header stands for itself: records before it would belong to the entry after it.
        if e.kind != EntryType::XGlobalHeader {
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::XHeader);
            header.as_mut_bytes()[..3].copy_from_slice(b"pax");
            header.set_size(data.len() as u64);
            push(&mut out, header, &data);
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(e.kind);
        let short = &e.name[..e.name.len().min(99)];
        header.as_mut_bytes()[..short.len()].copy_from_slice(short);
        header.set_mode(e.mode);
        header.set_uid(e.uid.min(0o7_777_777));
        header.set_gid(e.gid.min(0o7_777_777));
        header.set_mtime(e.mtime);
        header.set_size(e.data.len() as u64);
        // Only devices carry these, and a ustar header always has the fields.
        let _ = header
            .set_device_major(e.dev.0)
            .and_then(|()| header.set_device_minor(e.dev.1));
        push(&mut out, header, &e.data);
    }
    out.extend([0; 1024]);
    out
}

fn push(out: &mut Vec<u8>, mut header: Header, data: &[u8]) {
    header.set_cksum();
    out.extend(header.as_bytes());
    out.extend(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    let mut out = format!("{len} {key}=").into_bytes();
    out.extend(value);
    out.push(b'\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_comes_back_as_it_went_in() {
        let mut e = TarEntry::new(b"dir/a\nb\xff", EntryType::Regular);
        e.pax.insert(format!("{XATTR}user.k"), b"v\0\nw".to_vec());
        e.pax.insert("mtime".into(), b"-1.5".to_vec());
        (e.uid, e.data) = (4_294_967_294, b"hello".to_vec());
        let bytes = encode(&[TarEntry::new(b"dir/", EntryType::Directory), e.clone()]);
        let (back, len) = decode_bytes(&bytes).expect("our own archive");
        assert_eq!((len, back.len()), (bytes.len(), 2));
        assert_eq!(
            (&back[1].name, &back[1].pax, back[1].uid, &back[1].data),
            (&e.name, &e.pax, e.uid, &e.data)
        );
        assert_eq!(
            (back[0].path(), back[1].dir(), back[1].base()),
            (&b"dir"[..], &b"dir"[..], &b"a\nb\xff"[..])
        );
    }

    #[test]
    fn a_record_counts_itself() {
        assert_eq!(record("k", b"v"), b"6 k=v\n");
        assert_eq!(record("k", &[b'x'; 94]).len(), 100 + 1);
        assert!(records(b"6 k=v\n").is_some_and(|r| r["k"] == b"v"));
    }
}
