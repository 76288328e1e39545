//! Which headers are kept, and which a render is not shown.
//!
//! Invariant: what concerns one connection, one request or one client is never stored. Renders call
//! this.

use http::header::{self, HeaderMap, HeaderName};

/// Returns the headers of a response that may be stored: without those that concern a connection,
/// be it by their name or because `Connection` names them, and those that concern a client.
pub(super) fn kept(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|line| {
            let line = String::from_utf8_lossy(line.as_bytes()).into_owned();
            let names = line.split(',').map(|it| it.trim().to_ascii_lowercase());
            names.collect::<Vec<_>>()
        })
        .collect();
    let is_kept = |name: &HeaderName| {
        let name = name.as_str();
        let is_listed = OF_A_CONNECTION.contains(&name) || OF_A_CLIENT.contains(&name);
        !is_listed && !named.iter().any(|it| it == name)
    };
    let kept = headers.iter().filter(|(name, _)| is_kept(name));
    kept.map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Takes out of a request what asks for less than the whole page.
pub(super) fn make_unconditional(headers: &mut HeaderMap) {
    for name in [
        header::IF_NONE_MATCH,
        header::IF_MODIFIED_SINCE,
        header::IF_RANGE,
    ] {
        headers.remove(name);
    }
}

/// Whether a `GET` with these headers may ask for what another method does. Such a request passes.
pub(super) fn may_replace_the_method(headers: &HeaderMap) -> bool {
    MAY_REPLACE_THE_METHOD
        .iter()
        .any(|it| headers.contains_key(*it))
}

/// Headers that say where or how a page is to be found, in place of the request line and `Host`.
/// They are in every key, so that nobody can put a page in place of another.
pub(super) const MAY_REPLACE_THE_TARGET: [&str; 19] = [
    "front-end-https",
    "x-forwarded-host",
    "x-forwarded-path",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-forwarded-protocol",
    "x-forwarded-scheme",
    "x-forwarded-server",
    "x-forwarded-ssl",
    "x-forwarded-uri",
    "x-host",
    "x-http-host-override",
    "x-original-host",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
    "x-scheme",
    "x-url-scheme",
];

/// Headers by which a `GET` may ask for what another method does.
const MAY_REPLACE_THE_METHOD: [&str; 3] = [
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
];

/// Headers of a response that concern a connection (RFC 9110, section 7.6.1, and RFC 9111, section
/// 3.1).
const OF_A_CONNECTION: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Headers that tell the client of a request what is left of its quota. A `RateLimitLayer` inside
/// of the `PageCache` writes them.
const OF_A_CLIENT: [&str; 2] = ["ratelimit", "ratelimit-policy"];

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn headers_of_a_connection_are_not_kept() {
        let mut headers = HeaderMap::new();
        headers.append("connection", HeaderValue::from_static("close, X-Hop"));
        headers.append("connection", HeaderValue::from_static("x-other"));
        for name in ["x-hop", "x-other", "keep-alive", "transfer-encoding"] {
            headers.insert(name, HeaderValue::from_static("1"));
        }
        headers.append("link", HeaderValue::from_static("</a>"));
        headers.append("link", HeaderValue::from_static("</b>"));
        let kept: Vec<String> = kept(&headers)
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
            .collect();
        assert_eq!(kept, ["link: </a>", "link: </b>"]);
    }
}
