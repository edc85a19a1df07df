//! Lists of names and values as the kernel's zfs takes them, in their form for the wire (`NV_ENCODE_XDR` of libnvpair): all numbers are
//! big-endian and texts padded to four bytes. Each pair is preceded by its size here and in the kernel's memory.

/// `NV_UNIQUE_NAME`.
const UNIQUE_NAMES: u32 = 1;

/// What comes before a list that stands by itself: `NV_ENCODE_XDR`, little-endian host (which nobody asks), and two bytes for nothing.
const HEADER: [u8; 4] = [1, 1, 0, 0];

/// The size of `nvpair_t` and of `nvlist_t` in the kernel's memory.
const PAIR_SIZE: usize = 16;
const LIST_SIZE: usize = 24;

/// Numbers of `data_type_t`.
const BOOLEAN: u32 = 1;
const INT32: u32 = 5;
const UINT64: u32 = 8;
const STRING: u32 = 9;
const LIST: u32 = 19;

/// A list being written.
#[derive(Clone, Debug)]
pub(super) struct NvList(Vec<u8>);

impl NvList {
    /// An empty one.
    pub fn new() -> Self {
        // Version 0.
        let mut list = Self(vec![0; 4]);
        list.0.extend(UNIQUE_NAMES.to_be_bytes());
        list
    }

    /// Adds a name that stands for itself.
    #[must_use]
    pub fn flag(self, name: &str) -> Self {
        self.pair(name, BOOLEAN, &[], 0)
    }

    /// Adds a number of 32 bits.
    #[must_use]
    pub fn int32(self, name: &str, value: i32) -> Self {
        self.pair(name, INT32, &value.to_be_bytes(), 4)
    }

    /// Adds a number of 64 bits.
    #[must_use]
    pub fn uint64(self, name: &str, value: u64) -> Self {
        self.pair(name, UINT64, &value.to_be_bytes(), 8)
    }

    /// Adds a text.
    #[must_use]
    pub fn string(self, name: &str, value: &str) -> Self {
        self.pair(name, STRING, &text(value), value.len() + 1)
    }

    /// Adds a list.
    #[must_use]
    pub fn list(self, name: &str, value: Self) -> Self {
        self.pair(name, LIST, &value.ended(), LIST_SIZE)
    }

    /// The whole list, as it is handed over.
    pub fn packed(self) -> Vec<u8> {
        [&HEADER[..], &self.ended()].concat()
    }

    fn ended(mut self) -> Vec<u8> {
        // A pair of no size.
        self.0.extend([0; 8]);
        self.0
    }

    /// Adds a pair, the value of which takes so many bytes in the kernel's memory.
    fn pair(mut self, name: &str, kind: u32, value: &[u8], in_memory: usize) -> Self {
        let name_here = text(name);
        // Both sizes, the kind and the number of elements.
        let here = 4 * 4 + name_here.len() + value.len();
        let there =
            (PAIR_SIZE + name.len() + 1).next_multiple_of(8) + in_memory.next_multiple_of(8);
        self.0.extend(number(here));
        self.0.extend(number(there));
        self.0.extend(name_here);
        self.0.extend(kind.to_be_bytes());
        self.0.extend(number(usize::from(kind != BOOLEAN)));
        self.0.extend(value);
        self
    }
}

/// Names and values are far from 4 GiB.
fn number(value: usize) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_be_bytes()
}

fn text(value: &str) -> Vec<u8> {
    let mut bytes = [&number(value.len())[..], value.as_bytes()].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts, taken apart by the rules of xdr(5): (name, kind, elements, size in memory, value).
    fn pairs(mut bytes: &[u8]) -> Vec<(String, u32, u32, u32, Vec<u8>)> {
        let number =
            |at: usize, bytes: &[u8]| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((number(0, bytes), number(4, bytes)), (0, UNIQUE_NAMES));
        bytes = &bytes[8..];
        let mut found = Vec::new();
        loop {
            let here = number(0, bytes) as usize;
            if here == 0 {
                assert_eq!(bytes, [0; 8]);
                return found;
            }
            let (pair, rest) = bytes.split_at(here);
            let length = number(8, pair) as usize;
            let after = 12 + length.next_multiple_of(4);
            found.push((
                String::from_utf8(pair[12..12 + length].to_vec()).unwrap(),
                number(after, pair),
                number(after + 4, pair),
                number(4, pair),
                pair[after + 8..].to_vec(),
            ));
            bytes = rest;
        }
    }

    #[test]
    fn lists_are_written_as_the_kernel_reads_them() {
        let inner = NvList::new()
            .string("mountpoint", "legacy")
            .uint64("quota", 1 << 33);
        let list = NvList::new()
            .int32("type", 2)
            .list("props", inner)
            .flag("pool/a@b");
        let packed = list.packed();
        assert_eq!(packed[..4], HEADER);
        let outer = pairs(&packed[4..]);
        assert_eq!(
            outer[0],
            ("type".to_owned(), INT32, 1, 32, vec![0, 0, 0, 2])
        );
        let (name, kind, count, size, value) = &outer[1];
        assert_eq!(
            (name.as_str(), *kind, *count, *size),
            ("props", LIST, 1, 24 + 24)
        );
        assert_eq!(
            outer[2],
            ("pool/a@b".to_owned(), BOOLEAN, 0, 32, Vec::new())
        );
        let inner = pairs(value);
        let legacy = [&[0, 0, 0, 6][..], b"legacy\0\0"].concat();
        assert_eq!(
            inner[0],
            ("mountpoint".to_owned(), STRING, 1, 32 + 8, legacy)
        );
        assert_eq!(inner[1].4, (1u64 << 33).to_be_bytes());
    }
}
