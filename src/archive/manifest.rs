//! Archives written down: what stands in a tar, however wrong, as YAML. The reference is `suites/README.md`, "Archive entries".
//!
//! Nothing is cleaned on the way: names, sizes and header fields go into the tar as they are written.

use std::collections::BTreeMap;
use std::io::{self, Write};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::header::BLOCK;
use super::write::{pax_record, put_octal};
use crate::tree::content::pseudo_random;
use crate::tree::op::{Bytes, Device, Mode, OwnerText, Size, Time, Xattrs};
use crate::tree::{Owner, Rdev, Timestamp};

/// A whole archive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Manifest {
    /// What stands in it.
    #[serde(default)]
    pub entries: Vec<Entry>,
    /// The blocks that end it.
    #[serde(default)]
    pub end: End,
    /// These bytes instead of entries and end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<Bytes>,
    /// These bytes behind the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub append: Option<Bytes>,
    /// Cut after this many bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncate: Option<Size>,
    /// Compressed as a whole.
    #[serde(default)]
    pub gzip: bool,
}

/// The blocks of zeros that end an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// Two, as POSIX says.
    #[default]
    Two,
    /// Only one.
    One,
    /// None: the stream ends after the last entry.
    None,
}

/// How a header holds what does not fit a plain ustar one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A ustar header, with PAX records only for what it cannot hold.
    #[default]
    Ustar,
    /// GNU tar's own: long-name entries and base-256 numbers; attributes still need PAX.
    Gnu,
    /// As ustar, but name and time always stand in PAX records.
    Pax,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A regular file.
    File(Data),
    /// A directory.
    Dir,
    /// A named pipe.
    Fifo,
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// A hard link to this name.
    Hardlink(Vec<u8>),
    /// A character device.
    Char(Rdev),
    /// A block device.
    Block(Rdev),
    /// A PAX global header; only `pax` counts.
    Global,
    /// Any type flag and link target, with data of any size.
    Raw(u8, Vec<u8>, Data),
}

/// The data behind a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// These bytes.
    Bytes(Vec<u8>),
    /// This many pseudo-random bytes, as the operation `file` makes them.
    Random {
        /// How many.
        size: u64,
        /// From this seed.
        seed: u64,
    },
}

impl Data {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(b) => b.len() as u64,
            Self::Random { size, .. } => *size,
        }
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name, byte for byte.
    pub name: Vec<u8>,
    /// What it is.
    pub what: What,
    /// Permission bits; left out, 0755 for directories and 0644 for the rest.
    pub mode: Option<u32>,
    /// Owner; left out, 0:0.
    pub owner: Owner,
    /// Modification time; left out, the epoch.
    pub mtime: Timestamp,
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// How it is written.
    pub format: Format,
    /// Further PAX records, in this order.
    pub pax: Vec<(Vec<u8>, Vec<u8>)>,
    /// The size that the header declares, when it is not that of the data.
    pub declare: Option<u64>,
    /// Bytes put into fields of the header as they are, the rest of the field zero; the checksum is made afterwards, unless it is
    /// one of them.
    pub fields: Vec<(Field, Vec<u8>)>,
    /// How many times it stands there, each time with `%i` in its name replaced by the number of the time, from 1.
    pub times: u64,
}

impl Entry {
    /// An entry with all else left out.
    pub fn new(name: impl Into<Vec<u8>>, what: What) -> Self {
        Self {
            name: name.into(),
            what,
            mode: None,
            owner: Owner::default(),
            mtime: Timestamp::default(),
            xattrs: Xattrs::new(),
            format: Format::default(),
            pax: Vec::new(),
            declare: None,
            fields: Vec::new(),
            times: 1,
        }
    }
}

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident = $key:literal at $range:expr;)*) => {
        /// A field of the header block.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "kebab-case")]
        pub enum Field { $($(#[$doc])* $name,)* }

        impl Field {
            fn range(self) -> std::ops::Range<usize> {
                match self { $(Self::$name => $range,)* }
            }
        }
    };
}

fields! {
    /// Name.
    Name = "name" at 0..100;
    /// Mode.
    Mode = "mode" at 100..108;
    /// User id.
    Uid = "uid" at 108..116;
    /// Group id.
    Gid = "gid" at 116..124;
    /// Size.
    Size = "size" at 124..136;
    /// Modification time.
    Mtime = "mtime" at 136..148;
    /// Checksum.
    Checksum = "checksum" at 148..156;
    /// Type flag.
    Type = "type" at 156..157;
    /// Link target.
    Link = "link" at 157..257;
    /// Magic and version.
    Magic = "magic" at 257..265;
    /// User name.
    Uname = "uname" at 265..297;
    /// Group name.
    Gname = "gname" at 297..329;
    /// Device major.
    Major = "major" at 329..337;
    /// Device minor.
    Minor = "minor" at 337..345;
    /// Prefix of the name; of a GNU header: times and the sparse map.
    Prefix = "prefix" at 345..512;
}

/// Entries as they are written: the keys of all verbs, of which [`Entry`] takes only those that belong together.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Keys {
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dir: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fifo: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    symlink: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hardlink: Option<Bytes>,
    #[serde(rename = "char", skip_serializing_if = "Option::is_none")]
    char_device: Option<Bytes>,
    #[serde(rename = "block", skip_serializing_if = "Option::is_none")]
    block_device: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    whiteout: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    global: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<Size>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dev: Option<Device>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    flag: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<Mode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<OwnerText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtime: Option<Time>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: Xattrs,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<Format>,
    #[serde(skip_serializing_if = "Vec::is_empty", with = "pairs")]
    #[schemars(with = "BTreeMap<String, String>")]
    pax: Vec<(Bytes, Bytes)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    declare: Option<Size>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    header: BTreeMap<Field, Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    times: Option<u64>,
}

/// A mapping whose order counts.
mod pairs {
    use super::*;
    use serde::ser::SerializeMap as _;

    pub fn serialize<S: Serializer>(pairs: &[(Bytes, Bytes)], s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(pairs.len()))?;
        for (k, v) in pairs {
            map.serialize_entry(k, v)?;
        }
        map.end()
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<(Bytes, Bytes)>, D::Error> {
        let map = serde_yaml::Mapping::deserialize(d)?;
        let scalar = |v| serde_yaml::from_value(v).map_err(D::Error::custom);
        map.into_iter()
            .map(|(k, v)| Ok((scalar(k)?, scalar(v)?)))
            .collect()
    }
}

impl Keys {
    /// The verb, the name and what it is; takes the keys that belong to it.
    fn what(&mut self) -> Result<(Vec<u8>, What), String> {
        let verbs = [
            ("file", self.file.take()),
            ("dir", self.dir.take()),
            ("fifo", self.fifo.take()),
            ("symlink", self.symlink.take()),
            ("hardlink", self.hardlink.take()),
            ("char", self.char_device.take()),
            ("block", self.block_device.take()),
            ("whiteout", self.whiteout.take()),
            ("global", self.global.take()),
            ("raw", self.raw.take()),
        ];
        let mut given = verbs
            .into_iter()
            .filter_map(|(verb, name)| Some((verb, name?)));
        let (verb, name) = given.next().ok_or(
            "expected one of the keys file, dir, fifo, symlink, hardlink, char, block, whiteout, global, raw",
        )?;
        if let Some((other, _)) = given.next() {
            return Err(format!("`{verb}` and `{other}` in one entry"));
        }
        let need = |key: &str| format!("`{verb}` needs `{key}`");
        let what = match verb {
            "file" => What::File(self.data()?),
            "dir" => What::Dir,
            "fifo" => What::Fifo,
            "symlink" => What::Symlink(self.to.take().ok_or_else(|| need("to"))?.0),
            "hardlink" => What::Hardlink(self.to.take().ok_or_else(|| need("to"))?.0),
            "char" => What::Char(self.dev.take().ok_or_else(|| need("dev"))?.0),
            "block" => What::Block(self.dev.take().ok_or_else(|| need("dev"))?.0),
            "whiteout" => What::File(Data::Bytes(Vec::new())),
            "global" => What::Global,
            _ => {
                let flag = self.flag.take().ok_or_else(|| need("type"))?.0;
                let [flag] = flag[..] else {
                    return Err("`type` is one byte".to_string());
                };
                let to = self.to.take().map(|t| t.0).unwrap_or_default();
                // `size` of a raw entry is what its header says.
                self.declare = self.declare.take().or(self.size.take());
                What::Raw(flag, to, self.data()?)
            }
        };
        let left = [
            ("text", self.text.is_some()),
            ("size", self.size.is_some()),
            ("seed", self.seed.is_some()),
            ("to", self.to.is_some()),
            ("dev", self.dev.is_some()),
            ("type", self.flag.is_some()),
        ];
        match left.iter().find(|(_, left)| *left) {
            Some((key, _)) => Err(format!("`{key}` has no meaning for `{verb}`")),
            None => Ok((name.0, what)),
        }
    }

    fn data(&mut self) -> Result<Data, String> {
        let seed = self.seed.take();
        match (self.text.take(), self.size.take()) {
            (Some(_), Some(_)) => Err("`text` and `size` in one entry".to_string()),
            (Some(text), None) if seed.is_none() => Ok(Data::Bytes(text.0)),
            (None, None) if seed.is_none() => Ok(Data::Bytes(Vec::new())),
            (_, None) => Err("`seed` needs `size`".to_string()),
            (None, Some(size)) => Ok(Data::Random {
                size: size.0,
                seed: seed.unwrap_or(0),
            }),
        }
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let mut keys = Keys::deserialize(d)?;
        let (name, what) = keys.what().map_err(D::Error::custom)?;
        Ok(Self {
            name,
            what,
            mode: keys.mode.map(|m| m.0),
            owner: keys.owner.map(|o| o.0).unwrap_or_default(),
            mtime: keys.mtime.map(|t| t.0).unwrap_or_default(),
            xattrs: keys.xattrs,
            format: keys.format.unwrap_or_default(),
            pax: keys.pax.into_iter().map(|(k, v)| (k.0, v.0)).collect(),
            declare: keys.declare.map(|s| s.0),
            fields: keys.header.into_iter().map(|(f, b)| (f, b.0)).collect(),
            times: keys.times.unwrap_or(1),
        })
    }
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let name = Some(Bytes(self.name.clone()));
        let mut keys = Keys::default();
        let put_data = |data: &Data, keys: &mut Keys| match data {
            Data::Bytes(b) => keys.text = Some(Bytes(b.clone())),
            Data::Random { size, seed } => {
                (keys.size, keys.seed) = (Some(Size(*size)), Some(*seed))
            }
        };
        match &self.what {
            What::File(data) => {
                keys.file = name;
                put_data(data, &mut keys);
            }
            What::Dir => keys.dir = name,
            What::Fifo => keys.fifo = name,
            What::Symlink(to) => (keys.symlink, keys.to) = (name, Some(Bytes(to.clone()))),
            What::Hardlink(to) => (keys.hardlink, keys.to) = (name, Some(Bytes(to.clone()))),
            What::Char(dev) => (keys.char_device, keys.dev) = (name, Some(Device(*dev))),
            What::Block(dev) => (keys.block_device, keys.dev) = (name, Some(Device(*dev))),
            What::Global => keys.global = name,
            What::Raw(flag, to, data) => {
                (keys.raw, keys.flag) = (name, Some(Bytes(vec![*flag])));
                keys.to = (!to.is_empty()).then(|| Bytes(to.clone()));
                put_data(data, &mut keys);
            }
        }
        keys.mode = self.mode.map(Mode);
        keys.owner = (self.owner != Owner::default()).then_some(OwnerText(self.owner));
        keys.mtime = (self.mtime != Timestamp::default()).then_some(Time(self.mtime));
        keys.xattrs = self.xattrs.clone();
        keys.format = (self.format != Format::default()).then_some(self.format);
        let pax = self
            .pax
            .iter()
            .map(|(k, v)| (Bytes(k.clone()), Bytes(v.clone())));
        keys.pax = pax.collect();
        keys.declare = self.declare.map(Size);
        keys.header = self
            .fields
            .iter()
            .map(|(f, b)| (*f, Bytes(b.clone())))
            .collect();
        keys.times = (self.times != 1).then_some(self.times);
        keys.serialize(s)
    }
}

impl JsonSchema for Entry {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ArchiveEntry".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        Keys::json_schema(generator)
    }
}

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
    let empty = Data::Bytes(Vec::new());
    let (flag, link, data) = match &entry.what {
        What::File(data) => (b'0', &[][..], data),
        What::Hardlink(to) => (b'1', &to[..], &empty),
        What::Symlink(to) => (b'2', &to[..], &empty),
        What::Char(_) => (b'3', &[][..], &empty),
        What::Block(_) => (b'4', &[][..], &empty),
        What::Dir => (b'5', &[][..], &empty),
        What::Fifo => (b'6', &[][..], &empty),
        What::Global => {
            entry
                .pax
                .iter()
                .for_each(|(k, v)| pax_record(&mut records, k, v));
            return write_extension(b'g', &entry.name, &records, out);
        }
        What::Raw(flag, to, data) => (*flag, &to[..], data),
    };
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
    let default_mode = if entry.what == What::Dir {
        0o755
    } else {
        0o644
    };
    header.number(Field::Mode, entry.mode.unwrap_or(default_mode).into());
    let size = entry.declare.unwrap_or(data.len());
    let Timestamp { secs, nanos } = entry.mtime;
    for (field, key, n, must) in [
        (Field::Uid, "uid", i128::from(entry.owner.uid), false),
        (Field::Gid, "gid", entry.owner.gid.into(), false),
        (Field::Size, "size", size.into(), false),
        (Field::Mtime, "mtime", secs.into(), forced || nanos != 0),
    ] {
        let fits = header.number(field, n);
        if entry.format != Format::Gnu && (!fits || must) {
            let text = if field == Field::Mtime {
                decimal(entry.mtime)
            } else {
                n.to_string()
            };
            pax_record(&mut records, key.as_bytes(), text.as_bytes());
        }
    }
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
    entry
        .pax
        .iter()
        .for_each(|(k, v)| pax_record(&mut records, k, v));
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
        let slashes = name
            .iter()
            .enumerate()
            .filter(|(_, b)| **b == b'/')
            .map(|(i, _)| i);
        let cut = slashes
            .filter(|i| (1..=155).contains(i) && (1..=100).contains(&(name.len() - i - 1)))
            .next_back();
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
