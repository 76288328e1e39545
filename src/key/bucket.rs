//! `Bucket` and `TagId`: numbers that stand for names, and are the same in all processes.
//!
//! Invariant: both are part of the format. Processes that disagreed on a bucket would not exclude
//! each other, and processes that disagreed on a tag id would not see each other's invalidations.
//!
//! [`Namespace`](super::Namespace) spells keys with them.

use std::fmt;

use sha2::{Digest as _, Sha256};
use xxhash_rust::xxh3::xxh3_64;

use super::escape::checked;
use crate::error::Result;

/// One of 256 fixed groups of names that share a hash tag, and so a slot, a fence counter and a
/// wake channel. The number is part of the format: processes that disagreed on it would not
/// exclude each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Bucket(u8);

impl Bucket {
    /// The bucket of a name.
    pub(crate) fn of(name: &str) -> Self {
        // Unseeded, because all processes must agree.
        Self((xxh3_64(name.as_bytes()) & 0xff) as u8)
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b{:02x}", self.0)
    }
}

/// The identity of a tag, which entries carry: 128 bits of a SHA-256.
///
/// A cryptographic hash, so that a user who chooses names cannot find two tags with one id, or a
/// tag with the id of a cache. Invalidating one would invalidate the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TagId(pub(crate) u128);

impl TagId {
    /// The id of a tag that a user names.
    pub(crate) fn named(tag: &str) -> Result<Self> {
        checked("tag", tag)?;
        Ok(Self::digest(b"tag:", tag))
    }

    /// The implicit tag that every entry of a cache carries, for `clear`.
    pub(crate) fn whole_cache(cache: &str) -> Self {
        Self::digest(b"cache:", cache)
    }

    /// Hashes a name of one kind. The kinds differ from the first byte on, so no tag and no cache
    /// hash the same text.
    fn digest(kind: &[u8], name: &str) -> Self {
        let mut digest = Sha256::new();
        digest.update(kind);
        digest.update(name.as_bytes());
        let digest: [u8; 32] = digest.finalize().into();
        let first = digest.first_chunk::<16>().copied().unwrap_or_default();
        Self(u128::from_be_bytes(first))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Frozen: a change of any of these numbers would split running fleets in two.
    #[test]
    fn buckets_and_tag_ids_are_frozen() {
        let buckets: Vec<String> = ["invoice:7", "a", "", "naïve", "x".repeat(300).as_str()]
            .iter()
            .map(|name| Bucket::of(name).to_string())
            .collect();
        assert_eq!(buckets, ["b12", "b1f", "bc2", "b08", "b54"]);
        // The first half of `printf tag:country:FR | sha256sum`, and of `printf cache:catalogue`.
        let spelt = |id: TagId| format!("{:032x}", id.0);
        let named = TagId::named("country:FR").expect("a tag");
        assert_eq!(spelt(named), "ce91f4f6de21e1cb5df87f5b594ceac8");
        assert_eq!(
            spelt(TagId::whole_cache("catalogue")),
            "fabebc23528ba7347a4cbbfb167b2abc"
        );
    }

    #[test]
    fn names_fill_all_256_buckets_evenly() {
        let mut counts: HashMap<Bucket, u32> = HashMap::new();
        for number in 0..256_000 {
            *counts
                .entry(Bucket::of(&format!("lock:{number}")))
                .or_default() += 1;
        }
        assert_eq!(counts.len(), 256);
        for (bucket, count) in counts {
            assert!(
                (800..1200).contains(&count),
                "{bucket} has {count} of about 1000"
            );
        }
    }
}
