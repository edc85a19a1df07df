//! What the driver says of itself, under moby's keys.

use std::path::Path;

use rustix::fs::statvfs;

use super::devices::Set;
use super::pool::RECORD_BLOCK;
use super::records::Key;

/// All pairs, in moby's order. What a pool that is not there cannot tell is empty.
pub(super) fn of(set: &Set, home: &Path) -> Vec<(String, String)> {
    let usage = set.pool.usage(&set.control).ok();
    let block = set.pool.block_size(&set.control).ok();
    let base = set.device(&Key::Base).map(|d| size(d.size));
    let mut pairs = vec![
        ("Pool Name", set.pool.name.clone()),
        ("Pool Blocksize", block.map(size).unwrap_or_default()),
        ("Base Device Size", base.unwrap_or_default()),
        (
            "Backing Filesystem",
            set.filesystem()
                .map_or_else(|_| String::new(), |f| f.to_string()),
        ),
        ("Udev Sync Supported", false.to_string()),
    ];
    if let Some([metadata, data]) = set.pool.parts() {
        let (metadata, data) = (metadata.display().to_string(), data.display().to_string());
        if set.pool.is_sparse() {
            pairs.push(("Data loop file", data));
            pairs.push(("Metadata loop file", metadata));
        } else {
            pairs.push(("Data file", data));
            pairs.push(("Metadata file", metadata));
        }
    }
    // Sparse files cannot become larger than what the filesystem below has.
    let below = set.pool.is_sparse().then(|| statvfs(home).ok()).flatten();
    let below = below.map(|st| st.f_bavail * st.f_frsize);
    let data = usage.as_ref().zip(block).map(|(u, b)| (u.data, b));
    let metadata = usage.as_ref().map(|u| (u.metadata, RECORD_BLOCK));
    for (what, space) in [("Data", data), ("Metadata", metadata)] {
        let [used, all, available] = space.map_or_else(Default::default, |([used, all], block)| {
            let free = all.saturating_sub(used) * block;
            let available = below.map_or(free, |below| free.min(below));
            [used * block, all * block, available].map(size)
        });
        let keys = match what {
            "Data" => [
                "Data Space Used",
                "Data Space Total",
                "Data Space Available",
            ],
            _ => [
                "Metadata Space Used",
                "Metadata Space Total",
                "Metadata Space Available",
            ],
        };
        pairs.extend(keys.into_iter().zip([used, all, available]));
    }
    let least =
        data.map(|([_, all], block)| size(all * set.options.min_free_percent / 100 * block));
    pairs.extend([
        ("Thin Pool Minimum Free Space", least.unwrap_or_default()),
        (
            "Deferred Removal Enabled",
            set.options.deferred_removal.to_string(),
        ),
        (
            "Deferred Deletion Enabled",
            set.options.deferred_deletion.to_string(),
        ),
        ("Deferred Deleted Device Count", set.deleted().to_string()),
    ]);
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

/// A size as moby writes it: four significant digits, decimal units.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit < UNITS.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        v if v >= 1000.0 => 0,
        v if v >= 100.0 => 1,
        v if v >= 10.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => &text,
    };
    format!("{text}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_four_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (512, "512B"),
            (65536, "65.54kB"),
            (10 << 30, "10.74GB"),
            (107_400_000_000, "107.4GB"),
            (1_000_000, "1MB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
