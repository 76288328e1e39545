//! Conditional requests: whether the client has what it asks for.
//!
//! Invariant: pure. `If-None-Match` decides alone where it is given, by weak comparison, and
//! `If-Modified-Since` only where it is not (RFC 9110, section 13.2.2). Serving calls this.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest as _, Sha256};

use super::key::hex;

/// Returns whether a client that asks with `request` has the response with these headers.
pub(super) fn has_already(request: &HeaderMap, response: &HeaderMap) -> bool {
    if request.contains_key(header::IF_NONE_MATCH) {
        let Some(ours) = text(response, &header::ETAG) else {
            return false;
        };
        let lines = request.get_all(header::IF_NONE_MATCH).iter();
        let mut lines = lines.filter_map(|it| it.to_str().ok());
        return lines.any(|line| line.trim() == "*" || tags(line).any(|it| it == opaque(ours)));
    }
    let since = text(request, &header::IF_MODIFIED_SINCE);
    let modified = text(response, &header::LAST_MODIFIED);
    let (Some(since), Some(modified)) = (since, modified) else {
        return false;
    };
    let since = httpdate::parse_http_date(since);
    let modified = httpdate::parse_http_date(modified);
    matches!((since, modified), (Ok(since), Ok(modified)) if modified <= since)
}

/// Returns the headers of a 304 in place of the response with these headers: those that describe
/// the body are gone.
pub(super) fn of_not_modified(response: &HeaderMap) -> HeaderMap {
    let mut headers = response.clone();
    for name in [
        header::CONTENT_ENCODING,
        header::CONTENT_LANGUAGE,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
    ] {
        headers.remove(name);
    }
    headers
}

/// An entity-tag for a body whose handler gives it none. It is a weak one: a layer further out may
/// compress the body, and then two different bodies have it.
pub(super) fn entity_tag(body: &Bytes) -> HeaderValue {
    let digest = Sha256::digest(body);
    let tag = format!("W/\"{}\"", hex(&digest[..16]));
    HeaderValue::from_str(&tag).expect("quoted digits")
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// The tag without the mark of a weak one.
fn opaque(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

/// The entity-tags of a list, without the marks of weak ones, with their quotes. A tag may have
/// commas in it.
fn tags(list: &str) -> impl Iterator<Item = &str> {
    let mut rest = list;
    std::iter::from_fn(move || {
        let start = rest.find('"')?;
        let end = start + 1 + rest[start + 1..].find('"')? + 1;
        let tag = &rest[start..end];
        rest = &rest[end..];
        Some(tag)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let lines = lines.iter().map(|(name, value)| {
            let name: HeaderName = name.parse().expect("a name");
            (name, value.parse().expect("a value"))
        });
        lines.collect()
    }

    #[test]
    fn an_entity_tag_is_compared_weakly() {
        for (asked, ours, has) in [
            ("\"a\"", "\"a\"", true),
            ("W/\"a\"", "\"a\"", true),
            ("\"a\"", "W/\"a\"", true),
            ("\"b\", W/\"a,b\"", "\"a,b\"", true),
            ("\"b\",\"c\"", "\"a\"", false),
            ("*", "\"a\"", true),
            ("a", "\"a\"", false),
            ("\"A\"", "\"a\"", false),
            ("\"a", "\"a\"", false),
        ] {
            let has_it = has_already(
                &headers(&[("if-none-match", asked)]),
                &headers(&[("etag", ours)]),
            );
            assert_eq!(has_it, has, "{asked} {ours}");
        }
    }

    #[test]
    fn a_date_counts_only_without_an_entity_tag() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        let later = "Sunday, 06-Nov-94 08:49:38 GMT";
        let ours = headers(&[("etag", "\"a\""), ("last-modified", date)]);
        for (asked, has) in [
            (&[("if-modified-since", date)][..], true),
            (&[("if-modified-since", later)], true),
            (
                &[("if-modified-since", "Sun, 06 Nov 1994 08:49:36 GMT")],
                false,
            ),
            (&[("if-modified-since", "yesterday")], false),
            (
                &[("if-modified-since", date), ("if-none-match", "\"b\"")],
                false,
            ),
            (
                &[("if-modified-since", "x"), ("if-none-match", "\"a\"")],
                true,
            ),
            (&[], false),
        ] {
            assert_eq!(has_already(&headers(asked), &ours), has, "{asked:?}");
        }
        let asked = headers(&[("if-modified-since", date)]);
        assert!(!has_already(&asked, &headers(&[("etag", "\"a\"")])));
    }
}
