//! Archives written down: what stands in a tar, however wrong, as YAML. The reference is `suites/README.md`, "Archive entries".
//!
//! Nothing is cleaned on the way: names, sizes and header fields go into the tar as they are written.

mod build;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

pub use build::{build, to_bytes};

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
