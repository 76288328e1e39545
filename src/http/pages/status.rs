//! `Cache-Status` (RFC 9211): how a response came about.
//!
//! Invariant: the header is appended to what other caches have said. Serving calls this.

use std::time::{Duration, SystemTime};

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::page::Lives;
use super::settings::{Settings, StatusKeys};

/// How a response came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// From the cache, and for how long it is fresh.
    Hit(Lives),
    /// By the render of another request.
    Collapsed(Forward, Lives),
    /// By a render of this request, and whether it was stored.
    Rendered(Forward, Option<Lives>),
    /// By the service, without a look at the cache or beside it, and why.
    Beside(Forward, &'static str),
    /// The client wants a stored page only, and there is none.
    NotHere,
}

/// Why the service was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Forward {
    Bypass,
    Method,
    UriMiss,
    VaryMiss,
    Request,
    Stale,
}

impl Forward {
    fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Request => "request",
            Self::Stale => "stale",
        }
    }
}

impl Status {
    /// Says it in the headers of the response, if the layer is to do so.
    pub(super) fn tell(
        self,
        headers: &mut HeaderMap,
        settings: &Settings,
        key: Option<&str>,
        now: SystemTime,
    ) {
        let Some(name) = &settings.status_name else {
            return;
        };
        let mut told = match name.is_empty() {
            true => "hedgerow".to_owned(),
            false => name.clone(),
        };
        // A token begins with a letter; anything else has to be quoted.
        if !told.starts_with(|c: char| c.is_ascii_alphabetic()) {
            told = format!("\"{told}\"");
        }
        told.push_str(&self.words(now));
        if settings.status_keys == StatusKeys::Shown
            && let Some(key) = key
        {
            let escaped = key.replace('\\', "\\\\").replace('"', "\\\"");
            told.push_str(&format!("; key=\"{escaped}\""));
        }
        if let Ok(told) = HeaderValue::from_str(&told) {
            headers.append(CACHE_STATUS, told);
        }
    }

    fn words(self, now: SystemTime) -> String {
        match self {
            Self::Hit(lives) => format!("; hit; ttl={}", ttl(&lives, now)),
            Self::Collapsed(why, lives) => {
                let (why, ttl) = (why.as_str(), ttl(&lives, now));
                format!("; fwd={why}; ttl={ttl}; collapsed")
            }
            Self::Rendered(why, Some(lives)) => {
                let (why, ttl) = (why.as_str(), ttl(&lives, now));
                format!("; fwd={why}; stored; ttl={ttl}")
            }
            Self::Rendered(why, None) => format!("; fwd={}", why.as_str()),
            Self::Beside(why, detail) => {
                format!("; fwd={}; detail=\"{detail}\"", why.as_str())
            }
            Self::NotHere => "; detail=\"only-if-cached\"".to_owned(),
        }
    }
}

/// The seconds for which a page is fresh; negative if it is stale.
fn ttl(lives: &Lives, now: SystemTime) -> i64 {
    let seconds = |it: Duration| i64::try_from(it.as_secs()).unwrap_or(i64::MAX);
    match lives.stale_for(now) {
        Duration::ZERO => seconds(lives.left(now)),
        stale => -seconds(stale),
    }
}

pub(super) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

#[cfg(test)]
mod tests {
    use super::*;

    fn told(status: Status, settings: &Settings) -> String {
        let mut headers = HeaderMap::new();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10);
        status.tell(&mut headers, settings, Some("a \"b\""), now);
        let told = headers
            .get(CACHE_STATUS)
            .map(|it| it.to_str().expect("text").to_owned());
        told.unwrap_or_default()
    }

    fn lives(rendered: u64) -> Lives {
        Lives {
            rendered,
            aged: Duration::ZERO,
            fresh_for: Duration::from_secs(5),
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
        }
    }

    #[test]
    fn what_is_told_has_the_form_of_the_rfc() {
        let mut settings = Settings::default();
        for (status, expected) in [
            (Status::Hit(lives(8000)), "hedgerow; hit; ttl=3"),
            (Status::Hit(lives(1000)), "hedgerow; hit; ttl=-4"),
            (
                Status::Rendered(Forward::VaryMiss, Some(lives(10_000))),
                "hedgerow; fwd=vary-miss; stored; ttl=5",
            ),
            (
                Status::Rendered(Forward::Stale, None),
                "hedgerow; fwd=stale",
            ),
            (
                Status::Collapsed(Forward::UriMiss, lives(10_000)),
                "hedgerow; fwd=uri-miss; ttl=5; collapsed",
            ),
            (
                Status::Beside(Forward::Bypass, "range"),
                "hedgerow; fwd=bypass; detail=\"range\"",
            ),
        ] {
            assert_eq!(told(status, &settings), expected);
        }
        settings.status_keys = StatusKeys::Shown;
        settings.status_name = Some("1".to_owned());
        let expected = "\"1\"; hit; ttl=3; key=\"a \\\"b\\\"\"";
        assert_eq!(told(Status::Hit(lives(8000)), &settings), expected);
        settings.status_name = None;
        assert_eq!(told(Status::Hit(lives(8000)), &settings), "");
    }
}
