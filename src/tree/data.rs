//! The bytes of a file in memory, without its zeros.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use super::Content;
use super::content::{BLOCK, HEAD, Hasher, pseudo_random};
use super::op::FileOp;

/// The content of a file: its size and every block that was written. Holes take no memory.
#[derive(Clone, Debug, Default)]
pub struct Data {
    size: u64,
    blocks: BTreeMap<u64, Box<[u8]>>,
    /// Digesting is dear and contents seldom change.
    content: OnceLock<Content>,
}

impl Data {
    /// What a `file` operation writes.
    pub fn of_op(op: &FileOp) -> Self {
        let mut data = Self::default();
        let size = op.size.as_ref().map_or(0, |s| s.0);
        match (&op.text, &op.islands) {
            (Some(text), _) => data.write(0, &text.0),
            (None, Some(islands)) => {
                data.set_len(size);
                for island in islands {
                    data.write(island.at.0, &island.text.0);
                }
            }
            (None, None) => {
                for index in 0..size.div_ceil(BLOCK as u64) {
                    let mut block = vec![0; BLOCK].into_boxed_slice();
                    pseudo_random(op.seed, index * BLOCK as u64, &mut block);
                    data.blocks.insert(index, block);
                }
                data.size = size.next_multiple_of(BLOCK as u64);
                data.set_len(size);
            }
        }
        data
    }

    /// The size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes bytes at an offset; the file grows as needed.
    pub fn write(&mut self, at: u64, mut bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.content = OnceLock::new();
        self.size = self.size.max(at + bytes.len() as u64);
        let mut at = at;
        while !bytes.is_empty() {
            let within = (at % BLOCK as u64) as usize;
            let len = bytes.len().min(BLOCK - within);
            let block = self
                .blocks
                .entry(at / BLOCK as u64)
                .or_insert_with(|| vec![0; BLOCK].into());
            block[within..within + len].copy_from_slice(&bytes[..len]);
            bytes = &bytes[len..];
            at += len as u64;
        }
    }

    /// Cuts the file off, or lets it grow by a hole.
    pub fn set_len(&mut self, size: u64) {
        self.content = OnceLock::new();
        if size < self.size {
            self.blocks.split_off(&size.div_ceil(BLOCK as u64));
            let within = (size % BLOCK as u64) as usize;
            if within > 0
                && let Some(last) = self.blocks.get_mut(&(size / BLOCK as u64))
            {
                // What grows again later reads as zeros.
                last[within..].fill(0);
            }
        }
        self.size = size;
    }

    /// What a scan of such a file finds.
    pub fn content(&self) -> Content {
        self.content.get_or_init(|| self.digest()).clone()
    }

    fn digest(&self) -> Content {
        let mut hasher = Hasher::new();
        for (index, block) in &self.blocks {
            hasher.block(*index, block);
        }
        let mut head = self
            .blocks
            .get(&0)
            .map_or_else(Vec::new, |b| b[..HEAD].to_vec());
        head.resize(
            usize::try_from(self.size).unwrap_or(usize::MAX).min(HEAD),
            0,
        );
        Content {
            size: self.size,
            digest: hasher.finish(self.size),
            head,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Edit {
        Write(u64, Vec<u8>),
        SetLen(u64),
    }

    fn edit() -> impl Strategy<Value = Edit> {
        let bytes = prop::collection::vec(any::<u8>(), 0..200);
        prop_oneof![
            (0u64..10_000, bytes).prop_map(|(at, b)| Edit::Write(at, b)),
            (0u64..12_000).prop_map(Edit::SetLen),
        ]
    }

    proptest! {
        #[test]
        fn blocks_behave_like_a_plain_vector(edits in prop::collection::vec(edit(), 0..20)) {
            let (mut data, mut plain) = (Data::default(), Vec::<u8>::new());
            for edit in edits {
                match edit {
                    Edit::Write(at, bytes) => {
                        data.write(at, &bytes);
                        let (at, end) = (at as usize, at as usize + bytes.len());
                        if !bytes.is_empty() {
                            plain.resize(plain.len().max(end), 0);
                            plain[at..end].copy_from_slice(&bytes);
                        }
                    }
                    Edit::SetLen(size) => {
                        data.set_len(size);
                        plain.resize(size as usize, 0);
                    }
                }
                prop_assert_eq!(data.content(), Content::of_bytes(&plain));
            }
        }
    }
}
