//! `Selection`: for which requests a response was selected, by its `Vary`.
//!
//! Invariant: a response is given only to requests whose values of all headers that it names are
//! those of the request that it was rendered for. Values are kept as a digest: some are secret.

use http::header::{self, HeaderMap, HeaderName};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::key::feed;

/// The headers that a response varies by, and a digest of the values that they had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Selection {
    /// In lower case, sorted, each once.
    names: Vec<String>,
    digest: [u8; 32],
}

impl Selection {
    /// Returns the selection of a response to a request. `None` if no other request can be given
    /// the response.
    pub(super) fn of(response: &HeaderMap, request: &HeaderMap) -> Option<Self> {
        let mut names = Vec::new();
        for line in response.get_all(header::VARY) {
            for name in line.to_str().ok()?.split(',') {
                let name = name.trim();
                if name.is_empty() {
                    continue;
                }
                // `*` is a valid name of a header, and none that was ever sent.
                if name == "*" {
                    return None;
                }
                let name: HeaderName = name.parse().ok()?;
                names.push(name.as_str().to_owned());
            }
        }
        names.sort_unstable();
        names.dedup();
        if names.len() > MOST_NAMES {
            return None;
        }
        let digest = digest(&names, request);
        Some(Self { names, digest })
    }

    /// Returns the selection of a response that does not vary.
    pub(super) fn of_all() -> Self {
        let digest = digest(&[], &HeaderMap::new());
        Self {
            names: Vec::new(),
            digest,
        }
    }

    /// Returns the selection of a response to `request` by the same headers.
    pub(super) fn for_request(&self, request: &HeaderMap) -> Self {
        let digest = digest(&self.names, request);
        Self {
            names: self.names.clone(),
            digest,
        }
    }

    /// Returns whether the response may be given to `request`.
    pub(super) fn selects(&self, request: &HeaderMap) -> bool {
        self.names.is_empty() || digest(&self.names, request) == self.digest
    }

    /// Returns the slots among `slots` in which the response may be, in the order in which they are
    /// looked at.
    pub(super) fn slots(&self, slots: usize) -> impl Iterator<Item = usize> + use<> {
        let digest = self.digest;
        let places = (0..4).filter_map(move |at| {
            let eight = digest.get(at * 8..at * 8 + 8)?.first_chunk()?;
            u64::from_be_bytes(*eight).checked_rem(slots as u64)
        });
        let mut seen = Vec::new();
        places
            .map(|it| it as usize)
            .filter(move |it| match seen.contains(it) {
                true => false,
                false => {
                    seen.push(*it);
                    true
                }
            })
    }
}

/// A digest of the values that the headers called `names` have in `request`.
fn digest(names: &[String], request: &HeaderMap) -> [u8; 32] {
    let mut digest = Sha256::new();
    for name in names {
        feed(&mut digest, name.as_bytes());
        let lines = request.get_all(name.as_str());
        match LISTS.contains(&name.as_str()) && request.contains_key(name.as_str()) {
            // Several lines are one list, and the spaces in it mean nothing.
            true => {
                let items = lines
                    .iter()
                    .flat_map(|line| line.as_bytes().split(|it| *it == b','));
                let items = items.map(<[u8]>::trim_ascii).filter(|it| !it.is_empty());
                let items: Vec<&[u8]> = items.collect();
                digest.update([1]);
                feed(&mut digest, &items.join(&b","[..]));
            }
            false => {
                digest.update((lines.iter().count() as u64).to_be_bytes());
                lines
                    .iter()
                    .for_each(|line| feed(&mut digest, line.as_bytes()));
            }
        }
    }
    digest.finalize().into()
}

/// Headers that are lists of what the client accepts.
const LISTS: [&str; 4] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
];

/// The most headers by which a page may vary.
const MOST_NAMES: usize = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let lines = lines.iter().map(|(name, value)| {
            let name: HeaderName = name.parse().expect("a name");
            (name, value.parse().expect("a value"))
        });
        lines.collect()
    }

    fn varying(by: &[&str]) -> HeaderMap {
        headers(&by.iter().map(|&it| ("vary", it)).collect::<Vec<_>>())
    }

    #[test]
    fn a_star_anywhere_selects_no_request() {
        for vary in [&["*"][..], &["a, *"], &["a", " * "], &["a b"], &["\u{e9}"]] {
            assert_eq!(
                Selection::of(&varying(vary), &HeaderMap::new()),
                None,
                "{vary:?}"
            );
        }
    }

    #[test]
    fn a_header_that_is_missing_is_not_one_that_is_empty() {
        let selection = Selection::of(&varying(&["X-A"]), &HeaderMap::new()).expect("selects");
        assert!(selection.selects(&headers(&[("x-b", "1")])));
        assert!(!selection.selects(&headers(&[("x-a", "")])));
        let language = Selection::of(&varying(&["accept-language"]), &HeaderMap::new());
        assert!(
            !language
                .expect("selects")
                .selects(&headers(&[("accept-language", "")]))
        );
    }

    #[test]
    fn spaces_count_in_no_list_of_what_is_accepted() {
        let selection = |it: &HeaderMap| Selection::of(&varying(&["accept-language", "x"]), it);
        let one = headers(&[("accept-language", "de,  en;q=0.5")]);
        let two = headers(&[("accept-language", "de"), ("accept-language", "en;q=0.5")]);
        assert_eq!(selection(&one), selection(&two));
        let (one, two) = (headers(&[("x", "a,b")]), headers(&[("x", "a, b")]));
        assert_ne!(selection(&one), selection(&two));
    }

    proptest! {
        #[test]
        fn a_response_is_selected_by_equal_values_only(
            one in proptest::collection::vec((0..2_usize, "[ab, ]{0,3}"), 0..4),
            two in proptest::collection::vec((0..2_usize, "[ab, ]{0,3}"), 0..4),
        ) {
            let names = ["x-a", "x-b"];
            let request = |lines: &[(usize, String)]| -> HeaderMap {
                let lines: Vec<(&str, &str)> = lines
                    .iter()
                    .map(|(name, value)| (names[*name], value.as_str()))
                    .collect();
                headers(&lines)
            };
            let (one, two) = (request(&one), request(&two));
            let selection = Selection::of(&varying(&["x-a, x-b"]), &one).expect("selects");
            let values = |it: &HeaderMap| -> Vec<Vec<Vec<u8>>> {
                let all = names.iter().map(|name| it.get_all(*name));
                let all = all.map(|it| it.iter().map(|it| it.as_bytes().to_vec()).collect());
                all.collect()
            };
            prop_assert_eq!(selection.selects(&two), values(&one) == values(&two));
            prop_assert!(selection.selects(&one));
        }
    }

    #[test]
    fn slots_are_few_and_within_their_number() {
        let selection = Selection::of(&varying(&["x"]), &HeaderMap::new()).expect("selects");
        assert_eq!(selection.slots(0).count(), 0);
        assert_eq!(selection.slots(1).collect::<Vec<_>>(), [0]);
        assert!(selection.slots(64).all(|slot| slot < 64));
        assert!((1..=4).contains(&selection.slots(64).count()));
    }
}
