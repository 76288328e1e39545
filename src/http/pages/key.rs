//! Keys and tags of pages.
//!
//! Invariant: two requests have one key only if scheme, host, path, the page's part of the query,
//! the values of the key headers, and whether there are credentials are the same. Serving spells
//! keys, and purges spell tags.

use http::Uri;
use sha2::{Digest as _, Sha256};

use super::hosts::usual;
use super::settings::Query;

/// Where a page is: what a purge names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// In lower case, with the port if one was named.
    pub(super) host: String,
    pub(super) path: String,
    /// The part of the query that belongs to the page.
    pub(super) query: Option<String>,
}

/// The key of a page, without a variant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct PageKey(String);

/// What separates requests beside their place. Each header has all its values, in their order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beside<'a> {
    pub(super) scheme: &'a str,
    pub(super) credentials: Credentials,
    pub(super) headers: &'a [(&'a str, Vec<&'a [u8]>)],
}

/// Whether a request says who sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Credentials {
    None,
    Some,
}

impl Place {
    pub(super) fn new(host: &str, uri: &Uri, query: &Query) -> Self {
        Self {
            host: host.to_ascii_lowercase(),
            path: uri.path().to_owned(),
            query: query.of_page(uri.query()).map(Into::into),
        }
    }

    /// The segments of the path. Empty ones do not count.
    pub(super) fn segments(&self) -> impl Iterator<Item = &str> {
        self.path.split('/').filter(|it| !it.is_empty())
    }

    /// The tags of a page here: its own, and those of the first `depth` prefixes of its path.
    pub(super) fn tags(&self, depth: usize) -> Vec<String> {
        let segments: Vec<&str> = self.segments().take(depth).collect();
        let prefixes = (0..=segments.len()).map(|end| prefix_tag(&self.host, &segments[..end]));
        std::iter::once(url_tag(self)).chain(prefixes).collect()
    }
}

impl PageKey {
    pub(super) fn new(place: &Place, beside: Beside<'_>) -> Self {
        let mut flags = String::new();
        if beside.credentials == Credentials::Some {
            flags.push('c');
        }
        if !beside.headers.is_empty() {
            let mut digest = Sha256::new();
            for (name, values) in beside.headers {
                feed(&mut digest, name.as_bytes());
                digest.update((values.len() as u64).to_be_bytes());
                values.iter().for_each(|value| feed(&mut digest, value));
            }
            flags.push('h');
            flags.push_str(&hex(&digest.finalize()));
        }
        let mut parts = vec![beside.scheme, &place.host, &place.path];
        let query = query_part(place);
        parts.push(&query);
        if !flags.is_empty() {
            parts.push(&flags);
        }
        Self(spelt("page", &parts))
    }

    /// The key of the first variant of the page, which also says by which headers it varies.
    pub(super) fn first(&self) -> &str {
        &self.0
    }

    /// The key of the variant in a slot.
    pub(super) fn variant(&self, slot: usize) -> String {
        // No other key ends so: the last part of one is a query or flags, and begins with another
        // character, and a digest has no further part.
        format!("{} v{slot}", self.0)
    }
}

/// The tag of the page at `place`, whatever its scheme.
pub(super) fn url_tag(place: &Place) -> String {
    let parts = [usual(&place.host), &place.path, &query_part(place)];
    spelt("url", &parts)
}

/// The tag of all pages of a host whose paths begin with `segments`.
pub(super) fn prefix_tag(host: &str, segments: &[&str]) -> String {
    let path = format!("/{}", segments.join("/"));
    spelt("prefix", &[usual(host), &path])
}

/// A query in which none and an empty one differ.
fn query_part(place: &Place) -> String {
    match &place.query {
        Some(query) => format!("?{query}"),
        None => "-".to_owned(),
    }
}

/// Spells `parts`: with spaces between them, so that people can read it, or as a digest if that is
/// long, or if a part has a space itself.
fn spelt(kind: &str, parts: &[&str]) -> String {
    let length: usize = parts.iter().map(|part| part.len() + 1).sum();
    let is_plain = |part: &&str| !part.is_empty() && part.bytes().all(|it| it.is_ascii_graphic());
    if length <= LONGEST_READABLE && parts.iter().all(is_plain) {
        return format!("{kind} {}", parts.join(" "));
    }
    let mut digest = Sha256::new();
    parts
        .iter()
        .for_each(|part| feed(&mut digest, part.as_bytes()));
    format!("{kind}#{}", hex(&digest.finalize()))
}

/// Feeds bytes with their length, so that no two lists of them are fed alike.
pub(super) fn feed(digest: &mut Sha256, bytes: &[u8]) {
    digest.update((bytes.len() as u64).to_be_bytes());
    digest.update(bytes);
}

pub(super) fn hex(bytes: &[u8]) -> String {
    let digit = |at: u8| char::from(b"0123456789abcdef"[usize::from(at & 15)]);
    let digits = bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(*byte)]);
    digits.collect()
}

/// The most bytes of a key that is readable. Names may have 1,024 when escaped.
const LONGEST_READABLE: usize = 200;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    type Headers = Vec<(&'static str, Vec<Vec<u8>>)>;
    type Request = (Place, bool, bool, Headers);

    fn key((place, https, credentials, headers): &Request) -> PageKey {
        let headers: Vec<(&str, Vec<&[u8]>)> = headers
            .iter()
            .map(|(name, values)| (*name, values.iter().map(Vec::as_slice).collect()))
            .collect();
        let beside = Beside {
            scheme: if *https { "https" } else { "http" },
            credentials: match credentials {
                true => Credentials::Some,
                false => Credentials::None,
            },
            headers: &headers,
        };
        PageKey::new(place, beside)
    }

    /// Few characters, among them all that the spelling uses itself, so that collisions are likely.
    fn text() -> impl Strategy<Value = String> {
        "[a ?/v1#-]{0,3}|[a/ ]{190,205}"
    }

    fn request() -> impl Strategy<Value = Request> {
        let place = (text(), text(), proptest::option::of(text()));
        let place = place.prop_map(|(host, path, query)| Place { host, path, query });
        let values = proptest::collection::vec("[a, ]{0,2}".prop_map(String::into_bytes), 0..3);
        let header = (prop_oneof![Just("a"), Just("b")], values);
        let headers = proptest::collection::vec(header, 0..3);
        (place, any::<bool>(), any::<bool>(), headers)
    }

    proptest! {
        #[test]
        fn different_requests_have_different_keys(all in proptest::collection::vec(request(), 2..40)) {
            let mut seen: HashMap<String, (Request, Option<usize>)> = HashMap::new();
            for request in all {
                let key = key(&request);
                let mut keys = vec![(key.first().to_owned(), None)];
                keys.extend([1, 11].map(|slot| (key.variant(slot), Some(slot))));
                for (key, slot) in keys {
                    let this = (request.clone(), slot);
                    if let Some(other) = seen.insert(key, this.clone()) {
                        prop_assert_eq!(other, this);
                    }
                }
            }
        }

        #[test]
        fn keys_and_tags_are_short(request in request()) {
            let key = key(&request);
            prop_assert!(key.variant(usize::MAX).len() <= 300);
            for tag in request.0.tags(16) {
                prop_assert!(tag.len() <= 300, "{}", tag);
            }
        }
    }

    fn place(host: &str, url: &str) -> Place {
        Place::new(host, &url.parse().expect("a URL"), &Query::Whole)
    }

    #[test]
    fn an_ordinary_key_can_be_read() {
        let request = (place("Shop.example", "/a?b=1"), true, false, Vec::new());
        assert_eq!(key(&request).first(), "page https shop.example /a ?b=1");
        assert_eq!(
            key(&request).variant(7),
            "page https shop.example /a ?b=1 v7"
        );
    }

    #[test]
    fn a_page_carries_the_tags_of_the_prefixes_of_its_path() {
        let tags = place("a", "/x/y//z/?q").tags(2);
        let expected = [
            "url a /x/y//z/ ?q",
            "prefix a /",
            "prefix a /x",
            "prefix a /x/y",
        ];
        assert_eq!(tags, expected);
    }

    #[test]
    fn tags_do_not_depend_on_a_usual_port() {
        assert_eq!(url_tag(&place("a:443", "/")), url_tag(&place("a", "/")));
        assert_ne!(url_tag(&place("a:4430", "/")), url_tag(&place("a", "/")));
    }
}
