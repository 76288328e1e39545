//! `Asked`: what a request asks for, or why it passes.
//!
//! Invariant: a request that does not say clearly which page it is for, or asks for less or more
//! than the page, passes. Serving parses each request once.

use std::time::SystemTime;

use http::header::{self, HeaderMap};
use http::uri::Authority;
use http::{Method, Request};
use http_body::Body;

use super::directives::CacheControl;
use super::headers::{MAY_REPLACE_THE_TARGET, may_replace_the_method};
use super::key::{Beside, Credentials, PageKey, Place};
use super::page::Lives;
use super::query::decoded;
use super::settings::{Cookies, Directives, Settings};
use super::status::Forward;

/// A request for a page.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) place: Place,
    pub(super) key: PageKey,
    pub(super) credentials: Credentials,
    pub(super) want: Want,
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    control: CacheControl,
}

/// What is wanted of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// The page, rendered if need be.
    Page,
    /// The head of a page that is stored; otherwise the service answers.
    Head,
    /// A page that is stored, and nothing else.
    OnlyStored,
}

/// Why a request passes.
pub(super) type Passes = (Forward, &'static str);

impl Asked {
    /// Parses a request.
    ///
    /// # Errors
    /// If it passes.
    pub(super) fn of<B: Body>(request: &Request<B>, settings: &Settings) -> Result<Self, Passes> {
        let headers = request.headers();
        let is_head = match *request.method() {
            Method::GET => false,
            Method::HEAD => true,
            _ => return Err((Forward::Method, "method")),
        };
        if let Some(detail) = asks_for_more(request) {
            return Err((Forward::Bypass, detail));
        }
        let control = match settings.directives {
            Directives::Followed => CacheControl::of_request(headers),
            Directives::Ignored => CacheControl::default(),
        };
        for directive in ["no-store", "no-cache"] {
            if control.has(directive) {
                return Err((Forward::Request, directive));
            }
        }
        if cookies(headers).any(|name| is_one_of(&settings.pass_cookies, name)) {
            return Err((Forward::Bypass, "cookie"));
        }
        let place = place(request, settings).ok_or((Forward::Bypass, "host"))?;
        let credentials = credentials(headers, settings);
        let scheme = request.uri().scheme_str().unwrap_or("http");
        let targets = targets(headers, settings).ok_or((Forward::Bypass, "forwarded"))?;
        let targets: Vec<(&str, Vec<&[u8]>)> = targets
            .iter()
            .map(|(name, values)| (*name, values.iter().map(|it| &**it).collect()))
            .collect();
        let beside = Beside {
            scheme,
            credentials,
            headers: &targets,
        };
        Ok(Self {
            key: PageKey::new(&place, beside),
            place,
            credentials,
            want: match (control.has("only-if-cached"), is_head) {
                (true, _) => Want::OnlyStored,
                (false, true) => Want::Head,
                (false, false) => Want::Page,
            },
            method: request.method().clone(),
            headers: headers.clone(),
            control,
        })
    }

    /// Returns whether the client accepts a page that lives so. It says so by `max-age` and
    /// `min-fresh`; with `max-age`, it wants nothing stale.
    pub(super) fn accepts(&self, lives: &Lives, now: SystemTime) -> bool {
        if let Some(most) = self.control.seconds("max-age")
            && (lives.age(now) > most || lives.left(now).is_zero())
        {
            return false;
        }
        match self.control.seconds("min-fresh") {
            Some(least) => lives.left(now) >= least,
            None => true,
        }
    }

    /// The tags of the page that follow from its place.
    pub(super) fn tags(&self, settings: &Settings) -> Vec<String> {
        self.place.tags(settings.prefix_depth)
    }
}

/// Returns the place that a request names, whatever its method. `None` if it names none clearly, or
/// one of another host.
pub(super) fn place<B>(request: &Request<B>, settings: &Settings) -> Option<Place> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let named = match (hosts.next(), hosts.next()) {
        (Some(host), None) => Some(host.to_str().ok()?),
        (None, _) => None,
        (Some(_), Some(_)) => return None,
    };
    let in_target = request.uri().authority().map(Authority::as_str);
    let host = match (in_target, named) {
        // A service that looks at one of them must not be told apart from one that looks at the
        // other.
        (Some(one), Some(other)) if !one.eq_ignore_ascii_case(other) => return None,
        (Some(host), _) | (None, Some(host)) => host,
        (None, None) => "",
    };
    let is_host = |it: &str| {
        it.parse::<Authority>()
            .is_ok_and(|parsed| parsed.as_str() == it)
            && !it.contains('@')
    };
    if !host.is_empty() && !is_host(host) {
        return None;
    }
    let host = settings.hosts.shared(host);
    let place = Place::new(host, request.uri(), &settings.query);
    settings.hosts.has(host).then_some(place)
}

/// Says what a request has that asks for less or more than a page.
fn asks_for_more<B: Body>(request: &Request<B>) -> Option<&'static str> {
    if !request.body().is_end_stream() {
        return Some("body");
    }
    let headers = request.headers();
    if may_replace_the_method(headers) {
        return Some("method-override");
    }
    [
        (header::UPGRADE, "upgrade"),
        (header::RANGE, "range"),
        (header::IF_MATCH, "if-match"),
        (header::IF_UNMODIFIED_SINCE, "if-unmodified-since"),
        (header::EXPECT, "expect"),
    ]
    .into_iter()
    .find_map(|(name, detail)| headers.contains_key(name).then_some(detail))
}

fn credentials(headers: &HeaderMap, settings: &Settings) -> Credentials {
    let has_login = match &settings.login_cookies {
        Cookies::Any => headers.contains_key(header::COOKIE),
        Cookies::Named(names) => cookies(headers).any(|name| is_one_of(names, name)),
    };
    let mut more = settings.login_headers.iter();
    let has_login = has_login || more.any(|name| headers.contains_key(name));
    match has_login || headers.contains_key(header::AUTHORIZATION) {
        true => Credentials::Some,
        false => Credentials::None,
    }
}

/// The names of all cookies of a request.
fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let lines = headers.get_all(header::COOKIE).iter();
    let pairs = lines.flat_map(|line| line.as_bytes().split(|it| *it == b';'));
    pairs.map(|pair| {
        let name = pair.split(|it| *it == b'=').next().unwrap_or_default();
        name.trim_ascii()
    })
}

/// Whether a cookie of this name may be one of `names` for the service. Some parsers decode the
/// escapes of names, others do not.
fn is_one_of(names: &[String], name: &[u8]) -> bool {
    let is = |name: &[u8]| names.iter().any(|it| it.as_bytes() == name);
    if is(name) {
        return true;
    }
    let Ok(text) = std::str::from_utf8(name) else {
        return true;
    };
    // A `+` is no blank in a cookie.
    let plain = decoded(&text.replace('+', "%2B")).into_owned();
    text.contains('%') && (is(plain.trim_ascii()) || std::str::from_utf8(&plain).is_err())
}

/// The values of one header.
type Values = Vec<Box<[u8]>>;

/// The values of the headers that are a part of the key, by their names: of those only that are
/// there. `None` if `Forwarded` cannot be read.
fn targets<'s>(headers: &HeaderMap, settings: &'s Settings) -> Option<Vec<(&'s str, Values)>> {
    let more = settings.key_headers.iter().map(|it| it.as_str());
    let mut found: Vec<(&str, Values)> = Vec::new();
    for name in MAY_REPLACE_THE_TARGET.into_iter().chain(more) {
        if headers.contains_key(name) && !found.iter().any(|(it, _)| *it == name) {
            let values = headers.get_all(name).iter();
            found.push((name, values.map(|it| it.as_bytes().into()).collect()));
        }
    }
    let (mut said, mut hops) = (Vec::new(), 0_usize);
    for line in headers.get_all(header::FORWARDED) {
        for hop in line.to_str().ok()?.split(',') {
            for pair in hop.trim_matches([' ', '\t']).split(';') {
                let (name, value) = strict_pair(pair)?;
                // Who asks, and through whom, is no part of a page.
                if name == "host" || name == "proto" {
                    said.push(format!("{hops} {name}={value}").into_bytes().into());
                }
            }
            hops += 1;
        }
    }
    if !said.is_empty() {
        found.push(("forwarded", said));
    }
    Some(found)
}

/// A pair of `Forwarded`, with its name in small letters. `None` if two parsers may read it
/// differently: one of them could see a page for another host.
fn strict_pair(pair: &str) -> Option<(String, &str)> {
    let (name, value) = pair.split_once('=')?;
    let bare = value.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
    let is_plain = |text: &str| {
        let mut bytes = text.bytes();
        bytes.all(|it| it.is_ascii_graphic() && !matches!(it, b'"' | b'\\' | b'='))
    };
    let value = bare.unwrap_or(value);
    let is_strict = !name.is_empty() && is_plain(name) && !value.is_empty() && is_plain(value);
    is_strict.then(|| (name.to_ascii_lowercase(), value))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use http_body_util::{Empty, Full};

    use super::super::page::millis;
    use super::*;

    fn request(target: &str, lines: &[(&str, &str)]) -> Request<Empty<Bytes>> {
        let mut request = Request::builder().uri(target);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        request.body(Empty::new()).expect("a request")
    }

    fn asked(target: &str, lines: &[(&str, &str)]) -> Result<Asked, Passes> {
        Asked::of(&request(target, lines), &Settings::default())
    }

    fn key(target: &str, lines: &[(&str, &str)]) -> String {
        let asked = asked(target, lines);
        asked.expect("a page").key.first().to_owned()
    }

    #[test]
    fn requests_that_ask_for_more_than_a_page_pass() {
        for (lines, detail) in [
            (("range", "bytes=0-1"), "range"),
            (("upgrade", "websocket"), "upgrade"),
            (("if-match", "\"a\""), "if-match"),
            (("x-http-method-override", "DELETE"), "method-override"),
            (("x-method-override", "PUT"), "method-override"),
            (("cache-control", "No-Store"), "no-store"),
            (("cache-control", "no-cache"), "no-cache"),
            (("pragma", "no-cache"), "no-cache"),
            (("forwarded", "host=\"a"), "forwarded"),
            (("forwarded", "for=\"a;host=evil\""), "forwarded"),
            (("forwarded", "for=1.2.3.4; host=evil"), "forwarded"),
            (("forwarded", "host =evil"), "forwarded"),
            (("forwarded", "host= evil"), "forwarded"),
            (("forwarded", "for=1.2.3.4;"), "forwarded"),
        ] {
            let passes = asked("/", &[lines]).expect_err("it passes");
            assert_eq!(passes.1, detail);
        }
        let body = Request::new(Full::new(Bytes::from("x")));
        let passes = Asked::of(&body, &Settings::default()).expect_err("it passes");
        assert_eq!(passes.1, "body");
    }

    #[test]
    fn each_host_that_a_proxy_names_is_a_part_of_the_key_with_its_hop() {
        let of = |said: &str| key("/", &[("host", "shop"), ("forwarded", said)]);
        let plain = key("/", &[("host", "shop")]);
        assert_eq!(of("for=1.2.3.4, for=\"[2001:db8::1]:80\";by=_a"), plain);
        let told = [
            "host=shop",
            "host=evil;host=shop",
            "host=shop;host=evil",
            "for=a,host=shop",
            "host=shop;proto=https",
            "host=shop,proto=https",
        ];
        let keys: std::collections::HashSet<String> = told.iter().map(|said| of(said)).collect();
        assert_eq!(keys.len(), told.len());
        assert!(!keys.contains(&plain));
        assert_eq!(of("For=x;HOST=shop"), of("host=\"shop\""));
    }

    #[test]
    fn a_cookie_is_one_of_those_that_are_named_however_its_name_is_spelt() {
        let names = ["sid".to_owned(), "a+b".to_owned()];
        for name in ["sid", "s%69d", "%73%69%64", "a+b", "a%2Bb", "%ff"] {
            assert!(is_one_of(&names, name.as_bytes()), "{name}");
        }
        for name in ["theme", "sid2", "s%2569d", "a b", ""] {
            assert!(!is_one_of(&names, name.as_bytes()), "{name}");
        }
        assert!(is_one_of(&names, b"\xff"));
    }

    #[test]
    fn a_host_that_is_not_clear_passes() {
        for (target, lines) in [
            ("/", &[("host", "a"), ("host", "b")][..]),
            ("/", &[("host", "a"), ("host", "a")]),
            ("http://a/", &[("host", "b")]),
            ("http://a@b/", &[]),
            ("/", &[("host", "a b")]),
            ("/", &[("host", "a/b")]),
            ("/", &[("host", "a,b/")]),
            ("/", &[("host", "x@a")]),
        ] {
            assert!(asked(target, lines).is_err(), "{target} {lines:?}");
        }
        assert_eq!(
            key("http://A/x", &[("host", "a")]),
            key("/x", &[("host", "a")])
        );
        assert_ne!(key("https://a/x", &[]), key("/x", &[("host", "a")]));
    }

    #[test]
    fn headers_that_may_replace_the_target_are_in_the_key() {
        let plain = key("/x", &[("host", "a")]);
        for name in MAY_REPLACE_THE_TARGET {
            assert_ne!(key("/x", &[("host", "a"), (name, "evil")]), plain, "{name}");
        }
        let forwarded = |it| key("/x", &[("host", "a"), ("forwarded", it)]);
        assert_ne!(forwarded("host=evil"), plain);
        assert_ne!(forwarded("host=evil"), forwarded("host=other"));
        assert_eq!(forwarded("for=192.0.2.1"), plain);
    }

    #[test]
    fn credentials_are_in_the_key_and_their_values_are_not() {
        let plain = key("/", &[]);
        let with = key("/", &[("authorization", "Basic eA==")]);
        assert_ne!(plain, with);
        assert_eq!(with, key("/", &[("authorization", "Basic eQ==")]));
        assert_eq!(with, key("/", &[("cookie", "a=b")]));
        let settings = Settings {
            login_cookies: Cookies::Named(vec!["sid".to_owned()]),
            login_headers: vec![http::HeaderName::from_static("x-api-key")],
            ..Settings::default()
        };
        let known = request("/", &[("x-api-key", "1")]);
        let known = Asked::of(&known, &settings).expect("a page").credentials;
        assert_eq!(known, Credentials::Some);
        let credentials = |cookie| {
            let request = request("/", &[("cookie", cookie)]);
            Asked::of(&request, &settings).expect("a page").credentials
        };
        assert_eq!(credentials("a=sid; b=1"), Credentials::None);
        assert_eq!(credentials("a=1;sid=2"), Credentials::Some);
    }

    #[test]
    fn a_client_says_how_old_a_page_may_be() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let lives = Lives {
            rendered: millis(now) - 10_000,
            aged: Duration::from_secs(5),
            fresh_for: Duration::from_secs(30),
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
        };
        for (control, accepted) in [
            ("max-age=15", true),
            ("max-age=14", false),
            ("max-age=0", false),
            ("min-fresh=20", true),
            ("min-fresh=21", false),
            ("max-stale=5", true),
        ] {
            let asked = asked("/", &[("cache-control", control)]).expect("a page");
            assert_eq!(asked.accepts(&lives, now), accepted, "{control}");
        }
        let stale = Lives {
            fresh_for: Duration::from_secs(1),
            ..lives
        };
        let asked = asked("/", &[("cache-control", "max-age=60")]).expect("a page");
        assert!(!asked.accepts(&stale, now));
    }
}
