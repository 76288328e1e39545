//! `RecentTags`: the tags that a client has named recently, so that a cache hit need not compute
//! the ids of its tags again.
//!
//! Invariant: a name gets the tag that [`Tag::named`] makes of it. The memory is bounded: a name
//! replaces an earlier one with the same hash. Names that are chosen to collide therefore cost as
//! much as without this. All caches of a client share it.

use std::sync::{Mutex, PoisonError};

use xxhash_rust::xxh3::xxh3_64;

use super::Tag;
use crate::client::Client;
use crate::error::Result;

/// Tags by the hash of their names.
#[derive(Debug)]
pub(crate) struct RecentTags {
    /// One lock each, so that hits on different tags do not wait for each other.
    places: Box<[Mutex<Option<Tag>>]>,
}

impl Default for RecentTags {
    fn default() -> Self {
        Self {
            places: (0..PLACES).map(|_| Mutex::default()).collect(),
        }
    }
}

impl RecentTags {
    /// Returns the tag that a user calls `name`. Its name is shown as the handle `client` says,
    /// since handles that share this may differ in that.
    pub(crate) fn named(&self, client: &Client, name: &str) -> Result<Tag> {
        let place = &self.places[xxh3_64(name.as_bytes()) as usize % PLACES];
        let mut known = place.lock().unwrap_or_else(PoisonError::into_inner);
        // Names are compared, since another may have the same hash.
        if let Some(tag) = known.as_ref().filter(|tag| tag.name.real() == name) {
            return Ok(Tag {
                name: tag.name.shown_as(client.hide_keys()),
                ..tag.clone()
            });
        }
        let tag = Tag::named(client, name)?;
        *known = Some(tag.clone());
        Ok(tag)
    }
}

/// How many tags are kept at most. With names of 1 KiB, the longest, they take about 1.3 MB.
const PLACES: usize = 1 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::HideKeys;

    #[test]
    fn a_name_gets_its_own_tag_whatever_others_have_stood_in_its_place() {
        let client = Client::open("redis://127.0.0.1:6379").expect("a good URL");
        let recent = RecentTags::default();
        for name in (0..4 * PLACES).chain(0..4 * PLACES) {
            let name = name.to_string();
            let expected = Tag::named(&client, &name).expect("a good name");
            for _ in 0..2 {
                let tag = recent.named(&client, &name).expect("a good name");
                assert_eq!((tag.id, &tag.key), (expected.id, &expected.key));
            }
        }
        assert!(recent.named(&client, "").is_err());
    }

    #[test]
    fn a_name_that_one_handle_shows_is_hidden_by_another() {
        let client = Client::open("redis://127.0.0.1:6379").expect("a good URL");
        let recent = RecentTags::default();
        for (hide, shown) in [
            (HideKeys::off(), r#"Tag("a")"#),
            (HideKeys::digest(), r#"Tag("ca978112")"#),
            (HideKeys::off(), r#"Tag("a")"#),
        ] {
            let tag = recent.named(&client.hiding(hide), "a");
            assert_eq!(format!("{:?}", tag.expect("a good name")), shown);
        }
    }
}
