//! Which part of a query belongs to a page.
//!
//! Invariant: what is left out of the key of a page is also left out of the request that it is
//! rendered from. Keys are made with this, and renders.

use std::borrow::Cow;

use super::settings::Query;

impl Query {
    /// Returns what of `query` belongs to a page. `None` if nothing does.
    ///
    /// Parameters are separated by `&`. Names are compared as they decode, so that `a%62` is `ab`;
    /// what is kept is kept as it was sent.
    pub(super) fn of_page<'q>(&self, query: Option<&'q str>) -> Option<Cow<'q, str>> {
        let query = query?;
        let mut kept: Vec<(Cow<'q, [u8]>, &'q str)> = Vec::new();
        let parameters = || {
            let all = query.split('&').filter(|it| !it.is_empty());
            all.map(|it| (name(it), it))
        };
        match self {
            Self::Whole => return Some(query.into()),
            Self::Only(names) => {
                kept.extend(parameters().filter(|(name, _)| is_among(names, name)));
                // Stable: of one name, the order counts.
                kept.sort_by(|(one, _), (other, _)| one.cmp(other));
            }
            Self::Without(names) => {
                kept.extend(parameters().filter(|(name, _)| !is_among(names, name)));
            }
        }
        if kept.is_empty() {
            return None;
        }
        let kept: Vec<&str> = kept.into_iter().map(|(_, it)| it).collect();
        Some(kept.join("&").into())
    }
}

/// The name of a parameter, decoded.
fn name(parameter: &str) -> Cow<'_, [u8]> {
    let name = parameter
        .split_once('=')
        .map_or(parameter, |(name, _)| name);
    decoded(name)
}

fn is_among(names: &[String], name: &[u8]) -> bool {
    names.iter().any(|it| it.as_bytes() == name)
}

/// Decodes a name or a value of a form. What is no escape is left as it is.
pub(super) fn decoded(text: &str) -> Cow<'_, [u8]> {
    if !text.contains(['%', '+']) {
        return text.as_bytes().into();
    }
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = bytes.get(at + 1..at + 3).and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            // `from_str_radix` would take a sign.
            let are_digits = digits.bytes().all(|it| it.is_ascii_hexdigit());
            are_digits.then(|| u8::from_str_radix(digits, 16).ok())?
        });
        match (bytes[at], escaped) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 3;
            }
            (byte, _) => {
                decoded.push(if byte == b'+' { b' ' } else { byte });
                at += 1;
            }
        }
    }
    decoded.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(names: &[&str]) -> Query {
        Query::Only(names.iter().map(|&it| it.to_owned()).collect())
    }

    fn without(names: &[&str]) -> Query {
        Query::Without(names.iter().map(|&it| it.to_owned()).collect())
    }

    #[test]
    fn the_whole_query_is_left_as_it_was_sent() {
        for query in [None, Some(""), Some("b=2&a=1&&a=0"), Some("%61")] {
            assert_eq!(Query::Whole.of_page(query).as_deref(), query);
        }
    }

    #[test]
    fn chosen_parameters_are_sorted_by_name_and_keep_their_own_order() {
        let kept = only(&["b", "a"]).of_page(Some("x=1&b=2&a=9&a=1&b"));
        assert_eq!(kept.as_deref(), Some("a=9&a=1&b=2&b"));
    }

    #[test]
    fn ignored_parameters_are_found_however_they_are_escaped() {
        let kept = without(&["utm source"]).of_page(Some("a=1&utm%20source=x&utm+source=y&b=%zz"));
        assert_eq!(kept.as_deref(), Some("a=1&b=%zz"));
    }

    #[test]
    fn a_query_of_which_nothing_belongs_to_the_page_is_none() {
        assert_eq!(only(&["a"]).of_page(Some("b=1")), None);
        assert_eq!(without(&["a"]).of_page(Some("a=1&a")), None);
    }

    #[test]
    fn a_sign_is_no_digit() {
        assert_eq!(&*decoded("%+1%2"), b"% 1%2");
    }
}
