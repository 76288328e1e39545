//! `LargeKeys`: which keys were large when they were last seen.
//!
//! Invariant: this is only a hint. If a key was forgotten, or is mistaken for another, it is read
//! over the less suitable connection, and the answer is still right.
//!
//! [`Pipeline`](super::Pipeline) asks it to choose the connection of a read; the pipeliners fill
//! it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use xxhash_rust::xxh3::xxh3_64;

use super::replies::{KeyReply, size};
use super::request::LARGE;
use crate::key::Key;

/// A fixed table of hashes of large keys. A key that was overwritten is read once over the shared
/// connection, and is known again then.
// Empty until the first large value, so that a server without any costs no memory.
#[derive(Debug, Default)]
pub(crate) struct LargeKeys(OnceLock<Box<[AtomicU32]>>);

impl LargeKeys {
    /// Whether any of `keys` was large when it was last seen.
    pub(crate) fn knows(&self, keys: &[Key]) -> bool {
        match self.0.get() {
            None => false,
            Some(table) => keys.iter().any(|key| Self::contains(table, key)),
        }
    }

    /// Notes which keys are large, and which are no longer.
    pub(crate) fn learn<'k>(&self, cells: impl Iterator<Item = (&'k Key, &'k KeyReply)>) {
        for (key, cell) in cells {
            match size(cell) >= LARGE {
                true => self.insert(key),
                false => self.remove(key),
            }
        }
    }

    fn contains(table: &[AtomicU32], key: &Key) -> bool {
        let (place, mark) = Self::place(key);
        table[place].load(Ordering::Relaxed) == mark
    }

    fn insert(&self, key: &Key) {
        let table = self.0.get_or_init(|| {
            let empty = std::iter::repeat_with(AtomicU32::default);
            empty.take(REMEMBERED).collect()
        });
        let (place, mark) = Self::place(key);
        table[place].store(mark, Ordering::Relaxed);
    }

    fn remove(&self, key: &Key) {
        let Some(table) = self.0.get() else { return };
        let (place, mark) = Self::place(key);
        // Only its own mark: another key may share the index.
        let _ = table[place].compare_exchange(mark, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The index of a key in the table, and the mark that stands there if the key is remembered. A
    /// mark is never 0, which means empty.
    fn place(key: &Key) -> (usize, u32) {
        let hash = xxh3_64(key.as_str().as_bytes());
        (hash as usize % REMEMBERED, (hash >> 32) as u32 | 1)
    }
}

/// How many large keys of one server are remembered at most. The table takes as much memory as one
/// large value.
const REMEMBERED: usize = LARGE / size_of::<AtomicU32>();

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Namespace;

    #[test]
    fn a_key_is_large_until_it_is_seen_to_be_small() {
        let space = Namespace::new("hr").expect("a good one");
        let key = |number: usize| space.counter(&number.to_string()).expect("a good one");
        let keys = LargeKeys::default();
        keys.remove(&key(0));
        assert!(
            keys.0.get().is_none(),
            "no room is taken before it is needed"
        );
        for number in 0..100 {
            keys.insert(&key(number));
        }
        let table = keys.0.get().expect("there are large ones");
        let known = (0..100).filter(|number| LargeKeys::contains(table, &key(*number)));
        assert!(known.count() > 90, "few share a place");
        keys.remove(&key(99));
        assert!(!LargeKeys::contains(table, &key(99)));
        let strangers = (100..10_000).filter(|number| LargeKeys::contains(table, &key(*number)));
        assert_eq!(strangers.count(), 0);
    }
}
