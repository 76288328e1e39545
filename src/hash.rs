//! `Seeded`: hashing for maps that live in this process only.
//!
//! Invariant: the seed is random and never leaves the process, so nobody who chooses names can
//! choose where they go. Several times cheaper than the standard library's for names of usual
//! length, which the paths of every lock and read notice.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::LazyLock;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A map by names or keys.
pub(crate) type SeededMap<K, V> = HashMap<K, V, Seeded>;

/// Makes hashers that begin with the seed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seeded(u64);

/// The hash of what was written so far.
#[derive(Debug)]
pub(crate) struct Xxh3(u64);

impl Default for Seeded {
    fn default() -> Self {
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

    /// What ends a text tells it from a longer one; the hash of it alone does so already.
    fn write_u8(&mut self, byte: u8) {
        self.0 = self.0.rotate_left(5) ^ u64::from(byte);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
