//! Whether a response may be stored, and for how long: RFC 9111.
//!
//! Invariant: pure. `http-cache-semantics` decides what may be stored and how long it is fresh;
//! what it reads differently from RFC 9111, or leaves to its caller, is decided here, and always
//! towards storing less. Renders call this.

use std::time::{Duration, SystemTime};

use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode};
use http_cache_semantics::{CacheOptions, CachePolicy};

use super::directives::CacheControl;
use super::key::Credentials;
use super::page::{Lives, millis};
use super::settings::Settings;

/// What becomes of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Store(Lives),
    /// It is for the one request only, and why.
    Unstorable(&'static str),
    /// The service has failed.
    Failure,
}

/// Judges a response to a `GET` that was rendered at `now`.
pub(super) fn judge(
    status: StatusCode,
    headers: &HeaderMap,
    credentials: Credentials,
    settings: &Settings,
    now: SystemTime,
) -> Verdict {
    if matches!(status.as_u16(), 500 | 502 | 503 | 504) {
        return Verdict::Failure;
    }
    if headers.contains_key(header::SET_COOKIE) {
        return Verdict::Unstorable("set-cookie");
    }
    if headers.contains_key(header::CONTENT_RANGE) {
        return Verdict::Unstorable("content-range");
    }
    let control = CacheControl::of_response(headers);
    let is_explicit =
        control.has("s-maxage") || control.has("max-age") || headers.contains_key(header::EXPIRES);
    if control.has("no-cache") {
        return Verdict::Unstorable("no-cache");
    }
    // Pragma is of no meaning in responses, and yet sent by those who want nothing stored.
    if control == CacheControl::default() && pragma_forbids(headers) {
        return Verdict::Unstorable("pragma");
    }
    let is_shared = control.has("public") || control.has("s-maxage");
    if credentials == Credentials::Some && !is_shared {
        return Verdict::Unstorable("credentials");
    }
    let policy = policy(status, headers, &control, now);
    if !policy.is_storable() {
        return Verdict::Unstorable("cache-control");
    }
    let said_age = age_header(headers);
    let aged = said_age.max(apparent_age(headers, now));
    let lifetime = match (is_explicit, settings.default_ttl) {
        (true, _) => policy.time_to_live(now) + said_age,
        (false, Some(ttl)) if credentials == Credentials::None && takes_default(status) => ttl,
        (false, _) => return Verdict::Unstorable("no explicit freshness"),
    };
    let fresh_for = lifetime.min(LONGEST).saturating_sub(aged);
    let window = |name, default: Duration| {
        let said = control.seconds(name).unwrap_or(default).min(LONGEST);
        match control.has("must-revalidate") || control.has("proxy-revalidate") {
            true => Duration::ZERO,
            false => said,
        }
    };
    let lives = Lives {
        rendered: millis(now),
        aged,
        fresh_for,
        stale_while_revalidate: window("stale-while-revalidate", settings.stale_while_revalidate),
        stale_if_error: window("stale-if-error", settings.stale_if_error),
    };
    match fresh_for.is_zero() && lives.window().is_zero() {
        true => Verdict::Unstorable("not fresh"),
        false => Verdict::Store(lives),
    }
}

/// The policy of the response to a plain `GET`. Credentials were looked at, and `Vary` is
/// the matter of [`Selection`](super::selection::Selection).
fn policy(
    status: StatusCode,
    headers: &HeaderMap,
    control: &CacheControl,
    now: SystemTime,
) -> CachePolicy {
    let mut response = Response::new(());
    *response.status_mut() = status;
    let plain = control.plain();
    if !plain.is_empty() {
        response.headers_mut().insert(header::CACHE_CONTROL, plain);
    }
    for name in [header::EXPIRES, header::DATE] {
        if let Some(value) = headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    let said_age = age_header(headers).as_secs();
    response
        .headers_mut()
        .insert(header::AGE, HeaderValue::from(said_age));
    let options = CacheOptions {
        shared: true,
        cache_heuristic: 0.0,
        immutable_min_time_to_live: Duration::ZERO,
        ignore_cargo_cult: false,
    };
    CachePolicy::new_options(&Request::new(()), &response, now, options)
}

/// What `Age` says. Of several the first counts, as RFC 9111 asks for.
fn age_header(headers: &HeaderMap) -> Duration {
    let said = headers.get(header::AGE).and_then(|it| it.to_str().ok());
    let first = said.and_then(|it| it.split(',').next()?.trim().parse().ok());
    Duration::from_secs(first.unwrap_or(0)).min(LONGEST)
}

/// How long ago the response says that it was made.
fn apparent_age(headers: &HeaderMap, now: SystemTime) -> Duration {
    let date = headers.get(header::DATE).and_then(|it| it.to_str().ok());
    let date = date.and_then(|it| httpdate::parse_http_date(it).ok());
    let age = date.and_then(|date| now.duration_since(date).ok());
    // `Date` has whole seconds, so a response of this moment looks up to a second old.
    age.filter(|age| *age >= Duration::from_secs(1))
        .unwrap_or_default()
}

fn pragma_forbids(headers: &HeaderMap) -> bool {
    let pragmas = headers.get_all(header::PRAGMA).iter();
    pragmas
        .map(HeaderValue::as_bytes)
        .any(|it| it.to_ascii_lowercase().starts_with(b"no-cache"))
}

/// Whether a response of this status is stored for the default TTL.
fn takes_default(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 301 | 308 | 404 | 410)
}

/// A year: what is longer is as good as for ever.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + SECOND * 784_111_777
    }

    fn judged(status: u16, lines: &[(&str, &str)], credentials: Credentials) -> Verdict {
        judged_by(status, lines, credentials, &Settings::default())
    }

    fn judged_by(
        status: u16,
        lines: &[(&str, &str)],
        credentials: Credentials,
        settings: &Settings,
    ) -> Verdict {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name: http::HeaderName = name.parse().expect("a name");
            headers.append(name, value.parse().expect("a value"));
        }
        let status = StatusCode::from_u16(status).expect("a status");
        judge(status, &headers, credentials, settings, now())
    }

    /// Seconds for which the response is fresh, if it is stored.
    fn fresh(lines: &[(&str, &str)]) -> Option<u64> {
        match judged(200, lines, Credentials::None) {
            Verdict::Store(lives) => Some(lives.fresh_for.as_secs()),
            _ => None,
        }
    }

    #[test]
    fn a_response_says_how_long_it_is_fresh() {
        for (lines, expected) in [
            (&[("cache-control", "max-age=60")][..], Some(60)),
            (&[("cache-control", "max-age=60, s-maxage=5")], Some(5)),
            (&[("cache-control", "MAX-AGE=60")], Some(60)),
            (&[("cache-control", "max-age=60, max-age=7")], Some(7)),
            (
                &[
                    ("cache-control", "max-age=60"),
                    ("cache-control", "s-maxage=3"),
                ],
                Some(3),
            ),
            (&[("expires", "Sun, 06 Nov 1994 08:50:37 GMT")], Some(60)),
            (&[("expires", "0")], None),
            (&[("cache-control", "max-age=5"), ("expires", "0")], Some(5)),
            (&[("cache-control", "max-age=60"), ("age", "20")], Some(40)),
            (&[("cache-control", "max-age=60"), ("age", "60")], None),
            (
                &[
                    ("cache-control", "max-age=60"),
                    ("date", "Sun, 06 Nov 1994 08:49:07 GMT"),
                ],
                Some(30),
            ),
            (
                &[
                    ("cache-control", "max-age=60"),
                    ("age", "50"),
                    ("date", "Sun, 06 Nov 1994 08:49:07 GMT"),
                ],
                Some(10),
            ),
            (
                &[("cache-control", "max-age=99999999999999")],
                Some(365 * 24 * 3600),
            ),
            (
                &[("cache-control", "max-age=60, proxy-revalidate")],
                Some(60),
            ),
            (
                &[("cache-control", "max-age=60, must-revalidate")],
                Some(60),
            ),
            (&[("last-modified", "Sun, 06 Nov 1983 08:49:37 GMT")], None),
            (&[("cache-control", "public")], None),
            (&[("cache-control", "immutable")], None),
            (&[], None),
        ] {
            assert_eq!(fresh(lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn what_is_meant_for_one_user_is_not_stored() {
        for lines in [
            [("cache-control", "max-age=60, private")],
            [("cache-control", "max-age=60, Private")],
            [("cache-control", "max-age=60, private=\"x-name\"")],
            [("cache-control", "max-age=60, NO-STORE")],
            [("cache-control", "max-age=60, no-cache")],
            [("cache-control", "max-age=60, no-cache=\"x\"")],
            [("cache-control", "max-age=60, x=\"")],
        ] {
            assert_eq!(fresh(&lines), None, "{lines:?}");
        }
        for more in [("set-cookie", "a=b"), ("content-range", "bytes 0-1/2")] {
            assert_eq!(
                fresh(&[("cache-control", "public, s-maxage=60"), more]),
                None
            );
        }
        assert_eq!(fresh(&[("pragma", "No-Cache"), ("expires", "x")]), None);
    }

    #[test]
    fn with_credentials_only_what_says_that_it_is_shared_is_stored() {
        for (control, is_stored) in [
            ("max-age=60", false),
            ("max-age=60, must-revalidate", false),
            ("max-age=60, public", true),
            ("s-maxage=60", true),
            ("s-maxage=60, private", false),
        ] {
            let verdict = judged(200, &[("cache-control", control)], Credentials::Some);
            assert_eq!(matches!(verdict, Verdict::Store(_)), is_stored, "{control}");
        }
    }

    #[test]
    fn failures_are_never_stored() {
        let lines = [("cache-control", "public, max-age=60")];
        for status in [500, 502, 503, 504] {
            assert_eq!(judged(status, &lines, Credentials::None), Verdict::Failure);
        }
        for status in [201, 206, 304, 400, 401, 403, 418, 429, 505] {
            let verdict = judged(status, &lines, Credentials::None);
            assert!(matches!(verdict, Verdict::Unstorable(_)), "{status}");
        }
        for status in [200, 203, 301, 302, 307, 308, 404, 410, 501] {
            let verdict = judged(status, &lines, Credentials::None);
            assert!(matches!(verdict, Verdict::Store(_)), "{status}");
        }
    }

    #[test]
    fn the_default_ttl_is_for_what_says_nothing() {
        let settings = Settings {
            default_ttl: Some(SECOND * 9),
            ..Settings::default()
        };
        let fresh = |status, lines: &[(&str, &str)], credentials| match judged_by(
            status,
            lines,
            credentials,
            &settings,
        ) {
            Verdict::Store(lives) => Some(lives.fresh_for.as_secs()),
            _ => None,
        };
        assert_eq!(fresh(200, &[], Credentials::None), Some(9));
        assert_eq!(fresh(404, &[], Credentials::None), Some(9));
        assert_eq!(
            fresh(200, &[("cache-control", "public")], Credentials::None),
            Some(9)
        );
        assert_eq!(
            fresh(200, &[("cache-control", "max-age=0")], Credentials::None),
            None
        );
        assert_eq!(
            fresh(200, &[("cache-control", "no-cache")], Credentials::None),
            None
        );
        assert_eq!(
            fresh(200, &[("cache-control", "private")], Credentials::None),
            None
        );
        assert_eq!(fresh(302, &[], Credentials::None), None);
        assert_eq!(
            fresh(200, &[("cache-control", "public")], Credentials::Some),
            None
        );
    }

    #[test]
    fn windows_are_those_of_the_response_or_of_the_layer() {
        let settings = Settings {
            stale_while_revalidate: SECOND * 7,
            stale_if_error: SECOND * 8,
            ..Settings::default()
        };
        let windows = |control: &str| {
            let lines = [("cache-control", control)];
            match judged_by(200, &lines, Credentials::None, &settings) {
                Verdict::Store(it) => Some((
                    it.stale_while_revalidate.as_secs(),
                    it.stale_if_error.as_secs(),
                )),
                _ => None,
            }
        };
        assert_eq!(windows("max-age=1"), Some((7, 8)));
        let both = "max-age=1, stale-while-revalidate=2, stale-if-error=3";
        assert_eq!(windows(both), Some((2, 3)));
        assert_eq!(windows("max-age=0, stale-while-revalidate=2"), Some((2, 8)));
        assert_eq!(windows(&format!("{both}, must-revalidate")), Some((0, 0)));
        assert_eq!(windows(&format!("{both}, proxy-revalidate")), Some((0, 0)));
    }
}
