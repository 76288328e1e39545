//! `CacheControl`: the directives of a `Cache-Control` header.
//!
//! Invariant: a header that cannot be read forbids more than it allows: it counts as `no-store`.
//! Requests and responses are judged with it.

use http::header::{CACHE_CONTROL, HeaderMap, HeaderValue, PRAGMA};
use std::time::Duration;

/// The directives of one message. Names are in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CacheControl(Vec<(String, Option<String>)>);

impl CacheControl {
    /// Reads the directives of a response.
    pub(super) fn of_response(headers: &HeaderMap) -> Self {
        let mut all = Vec::new();
        for line in headers.get_all(CACHE_CONTROL) {
            match parsed(line.as_bytes()) {
                Some(directives) => all.extend(directives),
                None => return Self(vec![("no-store".to_owned(), None)]),
            }
        }
        Self(all)
    }

    /// Reads those of a request. `Pragma: no-cache` counts if there is no `Cache-Control`.
    pub(super) fn of_request(headers: &HeaderMap) -> Self {
        if headers.contains_key(CACHE_CONTROL) {
            return Self::of_response(headers);
        }
        let mut pragmas = headers.get_all(PRAGMA).iter();
        let is_no_cache = |it: &HeaderValue| {
            let directives = parsed(it.as_bytes()).unwrap_or_default();
            directives.iter().any(|(name, _)| name == "no-cache")
        };
        match pragmas.any(is_no_cache) {
            true => Self(vec![("no-cache".to_owned(), None)]),
            false => Self::default(),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(it, _)| it == name)
    }

    /// Returns the seconds that a directive gives: the fewest if it is there several times, and
    /// none at all if it gives no number.
    pub(super) fn seconds(&self, name: &str) -> Option<Duration> {
        let given = self.0.iter().filter(|(it, _)| it == name);
        let seconds = given.map(|(_, value)| value.as_deref().map_or(0, number));
        seconds.min().map(Duration::from_secs)
    }

    /// Returns the same directives as one header that a simple parser reads right: each of those
    /// that say whether a response may be stored, and for how long it is fresh, once.
    pub(super) fn plain(&self) -> HeaderValue {
        let mut parts = Vec::new();
        for name in [
            "no-store",
            "no-cache",
            "private",
            "public",
            "must-revalidate",
        ] {
            if self.has(name) {
                parts.push(name.to_owned());
            }
        }
        for name in ["s-maxage", "max-age"] {
            if let Some(seconds) = self.seconds(name) {
                parts.push(format!("{name}={}", seconds.as_secs()));
            }
        }
        HeaderValue::from_str(&parts.join(", ")).expect("names and digits")
    }
}

/// Reads one line. `None` if it is none of that header.
fn parsed(line: &[u8]) -> Option<Vec<(String, Option<String>)>> {
    let mut rest = std::str::from_utf8(line).ok()?;
    let mut directives = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return Some(directives);
        }
        let end = rest.find(|c| !is_token(c)).unwrap_or(rest.len());
        let name = rest[..end].to_ascii_lowercase();
        if name.is_empty() {
            return None;
        }
        rest = rest[end..].trim_start_matches([' ', '\t']);
        let mut value = None;
        if let Some(after) = rest.strip_prefix('=') {
            let after = after.trim_start_matches([' ', '\t']);
            let (read, left) = match after.strip_prefix('"') {
                Some(quoted) => unquoted(quoted)?,
                None => {
                    let end = after.find(|c| !is_token(c)).unwrap_or(after.len());
                    (after[..end].to_owned(), &after[end..])
                }
            };
            value = Some(read);
            rest = left.trim_start_matches([' ', '\t']);
        }
        if !rest.is_empty() && !rest.starts_with(',') {
            return None;
        }
        directives.push((name, value));
    }
}

/// Reads a quoted text behind its opening quote, and returns what comes after it.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut read = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((read, &text[at + 1..])),
            '\\' => read.push(chars.next()?.1),
            c => read.push(c),
        }
    }
    None
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// The number of seconds that `text` says: 0 if it says none, and 2^31 if it says more, as RFC 9111
/// asks for.
fn number(text: &str) -> u64 {
    if text.is_empty() || !text.bytes().all(|it| it.is_ascii_digit()) {
        return 0;
    }
    text.parse()
        .map_or(MOST_SECONDS, |it: u64| it.min(MOST_SECONDS))
}

/// More seconds count as so many (RFC 9111, section 1.2.2).
const MOST_SECONDS: u64 = 1 << 31;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&str]) -> CacheControl {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CACHE_CONTROL, line.parse().expect("a value"));
        }
        CacheControl::of_response(&headers)
    }

    #[test]
    fn names_are_read_in_any_case_and_over_several_lines() {
        let directives = of(&["Private , MAX-AGE=60", "No-Store"]);
        assert!(directives.has("private") && directives.has("no-store"));
        assert_eq!(directives.seconds("max-age"), Some(Duration::from_secs(60)));
    }

    #[test]
    fn what_is_quoted_is_no_directive() {
        let directives = of(&["private=\"set-cookie, no-store\", max-age=\"5\""]);
        assert!(directives.has("private") && !directives.has("no-store"));
        assert_eq!(directives.seconds("max-age"), Some(Duration::from_secs(5)));
    }

    #[test]
    fn of_several_numbers_the_least_counts_and_none_is_zero() {
        for (line, expected) in [
            ("max-age=60, max-age=5", 5),
            ("max-age", 0),
            ("max-age=", 0),
            ("max-age=-1", 0),
            ("max-age=1.5", 0),
            ("max-age=99999999999999999999", 1 << 31),
        ] {
            let expected = Some(Duration::from_secs(expected));
            assert_eq!(of(&[line]).seconds("max-age"), expected, "{line}");
        }
        assert_eq!(of(&["public"]).seconds("max-age"), None);
    }

    #[test]
    fn what_cannot_be_read_counts_as_no_store() {
        for line in [
            "max-age=60, a=\"b",
            "max-age 60",
            "@",
            "max-age=60; public",
            "a=\"b\"c",
        ] {
            assert!(of(&[line]).has("no-store"), "{line}");
        }
    }

    #[test]
    fn the_plain_form_says_the_same() {
        let plain = of(&["PUBLIC, private=\"x\", max-age=\"7\", max-age=9, proxy-revalidate"]);
        assert_eq!(plain.plain(), "private, public, max-age=7");
    }

    #[test]
    fn pragma_counts_in_requests_without_cache_control() {
        let mut headers = HeaderMap::new();
        headers.insert(PRAGMA, HeaderValue::from_static("No-Cache"));
        assert!(CacheControl::of_request(&headers).has("no-cache"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=1"));
        assert!(!CacheControl::of_request(&headers).has("no-cache"));
    }
}
