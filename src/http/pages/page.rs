//! `Stored`: what is kept of a page.
//!
//! Invariant: the status, each header and the body are those of the response, byte for byte; only
//! what concerned its connection or its client is gone, and `ETag` and `Date` are there. Renders
//! make pages, and serving hands them out.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use super::selection::Selection;

/// What is stored under one key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Stored {
    /// For which requests it is.
    pub(super) selection: Selection,
    pub(super) content: Content,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "nearly all are pages")]
pub(super) enum Content {
    Page(Page),
    /// The page may not be stored.
    Marker,
}

/// A response that may be given to many.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Page {
    #[serde(with = "status")]
    pub(super) status: StatusCode,
    #[serde(with = "headers")]
    pub(super) headers: HeaderMap,
    #[serde(with = "body")]
    pub(super) body: Bytes,
    pub(super) lives: Lives,
    /// The tags that its handler has given it.
    pub(super) tags: Vec<String>,
}

/// When a page was rendered, and how long it may be served. Times are those of the process that has
/// rendered it: whether it is fresh is decided by Redis, and these say how old it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lives {
    /// Milliseconds since 1970.
    pub(super) rendered: u64,
    /// How old the response already was.
    pub(super) aged: Duration,
    /// How long it is fresh from `rendered` on.
    pub(super) fresh_for: Duration,
    pub(super) stale_while_revalidate: Duration,
    pub(super) stale_if_error: Duration,
}

/// How long a page may be served stale, from when it became so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Windows {
    pub(super) while_revalidate: Duration,
    pub(super) if_error: Duration,
}

impl Windows {
    /// The longer one.
    pub(super) fn longest(self) -> Duration {
        self.while_revalidate.max(self.if_error)
    }
}

impl Lives {
    /// How old the page is.
    pub(super) fn age(&self, now: SystemTime) -> Duration {
        // What comes from Redis may be anything.
        self.aged.saturating_add(self.since_rendered(now))
    }

    /// For how long it is fresh yet. Zero if it is stale.
    pub(super) fn left(&self, now: SystemTime) -> Duration {
        self.fresh_for.saturating_sub(self.since_rendered(now))
    }

    /// For how long it has been stale. Zero if it is fresh.
    pub(super) fn stale_for(&self, now: SystemTime) -> Duration {
        self.since_rendered(now).saturating_sub(self.fresh_for)
    }

    pub(super) fn windows(&self) -> Windows {
        Windows {
            while_revalidate: self.stale_while_revalidate,
            if_error: self.stale_if_error,
        }
    }

    /// The same page when its body has ended, and it is stored: what it has been stale for already
    /// is taken off both windows, which Redis counts from now on.
    pub(super) fn stored_at(self, now: SystemTime) -> Self {
        let late = self.stale_for(now);
        Self {
            stale_while_revalidate: self.stale_while_revalidate.saturating_sub(late),
            stale_if_error: self.stale_if_error.saturating_sub(late),
            ..self
        }
    }

    /// How long it may be served stale, for whatever reason.
    pub(super) fn window(&self) -> Duration {
        self.windows().longest()
    }

    /// The same page when it is known to be stale: it has no freshness left.
    pub(super) fn over(self, now: SystemTime) -> Self {
        let fresh_for = self.fresh_for.min(self.since_rendered(now));
        Self { fresh_for, ..self }
    }

    fn since_rendered(&self, now: SystemTime) -> Duration {
        Duration::from_millis(millis(now).saturating_sub(self.rendered))
    }
}

/// The milliseconds from 1970 to `time`.
pub(super) fn millis(time: SystemTime) -> u64 {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl std::fmt::Debug for Page {
    /// Leaves out what it says, which may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Page")
            .field("status", &self.status)
            .field("bytes", &self.body.len())
            .field("lives", &self.lives)
            .finish_non_exhaustive()
    }
}

mod status {
    use super::*;
    use serde::{Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(it: &StatusCode, to: S) -> Result<S::Ok, S::Error> {
        it.as_u16().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<StatusCode, D::Error> {
        StatusCode::from_u16(u16::deserialize(from)?).map_err(D::Error::custom)
    }
}

mod headers {
    use super::*;
    use http::{HeaderName, HeaderValue};
    use serde::{Deserializer, Serializer, de::Error};

    /// A value, of which not every one is a text.
    #[derive(Serialize, Deserialize)]
    struct Line(String, #[serde(with = "body")] Bytes);

    pub(super) fn serialize<S: Serializer>(it: &HeaderMap, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(it.iter().map(|(name, value)| {
            Line(
                name.as_str().to_owned(),
                Bytes::copy_from_slice(value.as_bytes()),
            )
        }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<HeaderMap, D::Error> {
        let lines = Vec::<Line>::deserialize(from)?;
        let mut headers = HeaderMap::with_capacity(lines.len());
        for Line(name, value) in lines {
            let name = HeaderName::try_from(name).map_err(D::Error::custom)?;
            let value = HeaderValue::from_maybe_shared(value).map_err(D::Error::custom)?;
            headers.append(name, value);
        }
        Ok(headers)
    }
}

mod body {
    use super::*;
    use serde::de::{Deserializer, Error, SeqAccess, Visitor};
    use serde::ser::Serializer;

    pub(super) fn serialize<S: Serializer>(it: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(it)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        from.deserialize_byte_buf(Run)
    }

    struct Run;

    impl<'de> Visitor<'de> for Run {
        type Value = Bytes;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("bytes")
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
            Ok(Bytes::copy_from_slice(bytes))
        }

        fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
            Ok(bytes.into())
        }

        /// JSON has no bytes.
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Bytes, A::Error> {
            let mut bytes = Vec::with_capacity(list.size_hint().unwrap_or(0).min(4096));
            while let Some(byte) = list.next_element()? {
                bytes.push(byte);
            }
            Ok(bytes.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_body_that_takes_longer_than_the_page_is_fresh_shortens_both_windows() {
        let seconds = Duration::from_secs;
        let lives = Lives {
            rendered: 0,
            aged: Duration::ZERO,
            fresh_for: seconds(2),
            stale_while_revalidate: seconds(3),
            stale_if_error: seconds(600),
        };
        for (taken, while_revalidate, if_error) in [(1, 3, 600), (4, 1, 598), (9, 0, 593)] {
            let windows = lives
                .stored_at(SystemTime::UNIX_EPOCH + seconds(taken))
                .windows();
            let expected = Windows {
                while_revalidate: seconds(while_revalidate),
                if_error: seconds(if_error),
            };
            assert_eq!(windows, expected, "{taken} s");
        }
    }

    #[test]
    fn a_page_is_read_back_byte_for_byte() {
        let mut headers = HeaderMap::new();
        headers.append("x", HeaderValue::from_static("1"));
        headers.append("x", HeaderValue::from_bytes(b"\xff\xfe").expect("allowed"));
        let page = Page {
            status: StatusCode::NOT_FOUND,
            headers,
            body: Bytes::from([0, 255].repeat(5000)),
            lives: Lives {
                rendered: 1,
                aged: Duration::ZERO,
                fresh_for: Duration::from_millis(1500),
                stale_while_revalidate: Duration::ZERO,
                stale_if_error: Duration::from_secs(1),
            },
            tags: vec!["t".to_owned()],
        };
        let json = serde_json::to_vec(&page).expect("encoded");
        let mut cbor = Vec::new();
        ciborium::into_writer(&page, &mut cbor).expect("encoded");
        let read: [Page; 2] = [
            serde_json::from_slice(&json).expect("decoded"),
            ciborium::from_reader(&*cbor).expect("decoded"),
        ];
        for read in read {
            assert_eq!(
                (read.status, read.headers, read.body, read.lives, read.tags),
                (
                    page.status,
                    page.headers.clone(),
                    page.body.clone(),
                    page.lives,
                    page.tags.clone()
                )
            );
        }
    }
}
