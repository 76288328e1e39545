//! `Seeded`: hashing for maps that live in this process only.
//!
//! Invariant: the seed is random and never leaves the process, so a user who chooses names cannot
//! choose their hashes. For names of usual length it is several times cheaper than the hasher of
//! the standard library, which every lock and every read notices.
//!
//! The maps by names and keys on these paths use it ([`SeededMap`]).

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::LazyLock;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A map by names or keys.
pub(crate) type SeededMap<K, V> = HashMap<K, V, Seeded>;

/// Makes hashers that start from the seed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seeded(u64);

/// The hash of the bytes that were written so far.
#[derive(Debug)]
pub(crate) struct Xxh3(u64);

impl Default for Seeded {
    fn default() -> Self {
        // One seed for the process: `RandomState` is the random source of the standard library.
        static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0));
        Self(*SEED)
    }
}

impl BuildHasher for Seeded {
    type Hasher = Xxh3;

    fn build_hasher(&self) -> Xxh3 {
        Xxh3(self.0)
    }
}

impl Hasher for Xxh3 {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    /// `str` writes one byte after its text, to tell it from a longer one. The hash of the text
    /// does that already, so this only mixes the byte in.
    fn write_u8(&mut self, byte: u8) {
        self.0 = self.0.rotate_left(5) ^ u64::from(byte);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
