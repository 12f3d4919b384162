//! A longest-prefix table, as the kernel's LPM tries are.

use std::collections::BTreeMap;

use zerocopy::{Immutable, IntoBytes};

/// Keys with the number of their bits that count, from the first byte in memory on, and a value each.
#[derive(Clone, Debug)]
pub struct Trie<K, V>(BTreeMap<(u32, Vec<u8>), (K, V)>);

impl<K, V> Default for Trie<K, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: IntoBytes + Immutable, V> Trie<K, V> {
    /// Adds an entry, in place of one with the same prefix.
    pub fn insert(&mut self, length: u32, key: K, value: V) {
        self.0.insert((length, prefix(&key, length)), (key, value));
    }

    /// The value of the longest prefix of a key.
    ///
    /// # Panics
    /// When keys are longer than any of the kernel's.
    pub fn get(&self, key: &K) -> Option<&V> {
        let bits = u32::try_from(size_of::<K>() * 8).expect("keys are short");
        let mut lengths = (0..=bits).rev();
        let (_, value) = lengths.find_map(|length| self.0.get(&(length, prefix(key, length))))?;
        Some(value)
    }

    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &K, &V)> {
        let entries = self.0.iter();
        entries.map(|((length, _), (key, value))| (*length, key, value))
    }
}

/// The bytes of a key with all bits cleared that do not count.
fn prefix<K: IntoBytes + Immutable>(key: &K, length: u32) -> Vec<u8> {
    let bytes = key.as_bytes().iter().zip(0_u32..);
    bytes
        .map(|(byte, index)| match length.saturating_sub(index * 8) {
            0 => 0,
            bits @ 1..=7 => byte & (0xff << (8 - bits)),
            _ => *byte,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins() {
        let mut trie = Trie::default();
        trie.insert(0, [0_u8, 0], "all");
        trie.insert(11, [0xab, 0xe0], "eleven");
        trie.insert(16, [0xab, 0xef], "whole");
        for (key, value) in [
            ([0xab, 0xef], "whole"),
            ([0xab, 0xee], "eleven"),
            ([0xab, 0xc0], "all"),
        ] {
            assert_eq!(trie.get(&key), Some(&value), "{key:x?}");
        }
        assert_eq!(Trie::<[u8; 2], ()>::default().get(&[0, 0]), None);
    }
}
