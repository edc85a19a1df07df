//! The options `dm.*`.

use crate::graphdriver::{Error, Result, parse_bool, parse_key_value, parse_size};

/// What a home is started with; each is described in the module's own documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    /// The size of the filesystems that layers begin with, in bytes; `None`: as it is, or 10G.
    pub base_size: Option<u64>,
    /// The size of the sparse file that holds the data, in bytes.
    pub loop_data_size: u64,
    /// The size of the sparse file that holds what the pool knows, in bytes.
    pub loop_metadata_size: u64,
    /// The filesystem that layers are; `None`: the first that can be made.
    pub filesystem: Option<String>,
    /// More arguments for the program that makes it.
    pub mkfs_arguments: Vec<String>,
    /// More mount options.
    pub mount_options: Vec<String>,
    /// The device of the data, instead of a sparse file.
    pub data_device: Option<String>,
    /// The device of what the pool knows, instead of a sparse file.
    pub metadata_device: Option<String>,
    /// The name of a pool that somebody else has made.
    pub pool: Option<String>,
    /// The size of the pool's blocks, in bytes.
    pub block_size: u64,
    /// Whether blocks of removed layers are given back to what is below the pool; `None`: only to sparse files.
    pub discard: Option<bool>,
    /// Whether a device in use goes with its last user.
    pub deferred_removal: bool,
    /// Whether a removed layer that is in use goes with its last user.
    pub deferred_deletion: bool,
    /// Which part of the pool must be free for a new layer, in percent.
    pub min_free_percent: u64,
    /// How often xfs tries again to write what finds no room; `None`: for ever, the kernel's default.
    pub xfs_retries: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            base_size: None,
            loop_data_size: 100 << 30,
            loop_metadata_size: 2 << 30,
            filesystem: None,
            mkfs_arguments: Vec::new(),
            mount_options: Vec::new(),
            data_device: None,
            metadata_device: None,
            pool: None,
            block_size: 64 << 10,
            discard: None,
            deferred_removal: true,
            deferred_deletion: true,
            min_free_percent: 10,
            xfs_retries: None,
        }
    }
}

/// dm-thin's limits: 64 KiB to 1 GiB, in steps of 64 KiB.
const BLOCK_STEP: u64 = 64 << 10;
const BLOCK_MOST: u64 = 1 << 30;

/// Options of moby's for things that are not done here, and why.
const NOT_HERE: &[(&str, &str)] = &[
    (
        "dm.directlvm",
        "no volumes are made of whole disks here; name a pool with dm.thinpooldev",
    ),
    (
        "dm.thinp_",
        "no volumes are made of whole disks here; name a pool with dm.thinpooldev",
    ),
];

impl Options {
    /// Reads `key=value` options.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub fn parse(options: &[String]) -> Result<Self> {
        let mut parsed = Self::default();
        for option in options {
            let (key, value) = parse_key_value(option)?;
            parsed.set(&key, value)?;
        }
        let invalid = |key: &str, why: &str| {
            Err(Error::InvalidOption {
                key: key.to_owned(),
                why: why.to_owned(),
            })
        };
        if parsed.deferred_deletion && !parsed.deferred_removal {
            return invalid(
                "dm.use_deferred_deletion",
                "it needs dm.use_deferred_removal",
            );
        }
        if parsed.data_device.is_some() != parsed.metadata_device.is_some() {
            return invalid("dm.datadev", "it and dm.metadatadev go together");
        }
        if parsed.pool.is_some() && parsed.data_device.is_some() {
            return invalid("dm.thinpooldev", "a pool that is there has its devices");
        }
        Ok(parsed)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let invalid = |why: String| Error::InvalidOption {
            key: key.to_owned(),
            why,
        };
        let text = || match value {
            "" => Err(invalid("it has no value".to_owned())),
            text => Ok(Some(text.to_owned())),
        };
        match key {
            "dm.basesize" => self.base_size = Some(parse_size(key, value)?),
            "dm.loopdatasize" => self.loop_data_size = parse_size(key, value)?,
            "dm.loopmetadatasize" => self.loop_metadata_size = parse_size(key, value)?,
            "dm.fs" if super::filesystem::NAMES.contains(&value) => self.filesystem = text()?,
            "dm.fs" => return Err(invalid(format!("{value:?} is neither ext4 nor xfs"))),
            "dm.mkfsarg" => self.mkfs_arguments.extend(text()?),
            "dm.mountopt" => self.mount_options.extend(text()?),
            "dm.datadev" => self.data_device = text()?,
            "dm.metadatadev" => self.metadata_device = text()?,
            "dm.thinpooldev" => {
                let name = value.strip_prefix("/dev/mapper/").unwrap_or(value);
                self.pool = text()?.map(|_| name.to_owned());
            }
            "dm.blocksize" => {
                self.block_size = parse_size(key, value)?;
                let fits = self.block_size.is_multiple_of(BLOCK_STEP)
                    && (BLOCK_STEP..=BLOCK_MOST).contains(&self.block_size);
                if !fits {
                    let why = "blocks are 64K to 1G large, in steps of 64K".to_owned();
                    return Err(invalid(why));
                }
            }
            "dm.blkdiscard" => self.discard = Some(parse_bool(key, value)?),
            // Nodes do not wait for udev here, so there is nothing to override.
            "dm.override_udev_sync_check" => drop(parse_bool(key, value)?),
            "dm.libdm_log_level" => drop(text()?),
            "dm.use_deferred_removal" => {
                self.deferred_removal = parse_bool(key, value)?;
                self.deferred_deletion &= self.deferred_removal;
            }
            "dm.use_deferred_deletion" => self.deferred_deletion = parse_bool(key, value)?,
            "dm.min_free_space" => {
                let percent = value.strip_suffix('%').and_then(|n| n.trim().parse().ok());
                self.min_free_percent = percent
                    .filter(|p| *p < 100)
                    .ok_or_else(|| invalid(format!("{value:?} is not a percentage below 100%")))?;
            }
            "dm.xfs_nospace_max_retries" => {
                let retries = value.parse();
                self.xfs_retries =
                    Some(retries.map_err(|_| invalid(format!("{value:?} is not a number")))?);
            }
            _ => {
                let known = NOT_HERE.iter().find(|(start, _)| key.starts_with(start));
                let why = known.map_or("devicemapper does not know it", |(_, why)| why);
                return Err(invalid(why.to_owned()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn parse(text: &str) -> Result<Options> {
        let options: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        Options::parse(&options)
    }

    #[test]
    fn options_are_read_as_moby_reads_them() {
        let o = parse(
            "dm.basesize=20G DM.fs=xfs dm.mkfsarg=-K dm.mkfsarg=-f dm.mountopt=noatime dm.blocksize=512K \
             dm.thinpooldev=/dev/mapper/pool dm.min_free_space=0% dm.blkdiscard=false dm.xfs_nospace_max_retries=0",
        )
        .unwrap();
        assert_eq!(o.base_size, Some(20 << 30));
        assert_eq!(o.filesystem.as_deref(), Some("xfs"));
        assert_eq!(o.mkfs_arguments, ["-K", "-f"]);
        assert_eq!(o.pool.as_deref(), Some("pool"));
        assert_eq!((o.block_size, o.min_free_percent), (512 << 10, 0));
        assert_eq!((o.discard, o.xfs_retries), (Some(false), Some(0)));
        let off = parse("dm.use_deferred_removal=false").unwrap();
        assert!(!off.deferred_deletion);
    }

    #[rstest]
    #[case("dm.fs=btrfs")]
    #[case("dm.basesize=")]
    #[case("dm.blocksize=100K")]
    #[case("dm.blocksize=0")]
    #[case("dm.min_free_space=10")]
    #[case("dm.min_free_space=100%")]
    #[case("dm.use_deferred_removal=false dm.use_deferred_deletion=true")]
    #[case("dm.datadev=/dev/x")]
    #[case("dm.thinpooldev=p dm.datadev=/dev/x dm.metadatadev=/dev/y")]
    #[case("dm.directlvm_device=/dev/x")]
    #[case("dm.no_such=1")]
    #[case("size=1G")]
    fn what_is_not_an_option_is_refused(#[case] text: &str) {
        assert!(
            matches!(parse(text), Err(Error::InvalidOption { .. })),
            "{text}"
        );
    }
}
