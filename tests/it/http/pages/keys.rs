//! Which requests share a page: hosts, targets, queries, headers, credentials, variants.

use http::Request;
use proptest::prelude::*;
use tower::Layer as _;

use super::site::{Cached, Site, answer, ask, cached, pages, send};
use crate::support::server::Server;
use crate::support::wait::until;

const FRESH: (&str, &str) = ("cache-control", "public, max-age=60");

/// A service that says all that it was asked, as one that trusts its clients does.
fn mirror(lines: &'static [(&'static str, &'static str)]) -> Site {
    Site::new(move |request| {
        let mut lines = lines.to_vec();
        lines.push(FRESH);
        let page = answer(&lines, format!("{} {:?}", request.uri(), request.headers()));
        async { page }
    })
}

#[tokio::test]
async fn nobody_can_put_a_page_in_place_of_another() {
    let server = Server::start().await;
    let site = mirror(&[]);
    let service = cached(&server, &site).await;
    let clean = |host: &'static str| Request::builder().uri("/page").header("host", host);
    let poisons: Vec<(&str, http::request::Builder)> = vec![
        (
            "x-forwarded-host",
            clean("a").header("x-forwarded-host", "evil"),
        ),
        (
            "x-forwarded-proto",
            clean("a").header("x-forwarded-proto", "evil"),
        ),
        (
            "x-forwarded-scheme",
            clean("a").header("x-forwarded-scheme", "evil"),
        ),
        (
            "x-forwarded-port",
            clean("a").header("x-forwarded-port", "evil"),
        ),
        (
            "x-forwarded-prefix",
            clean("a").header("x-forwarded-prefix", "evil"),
        ),
        (
            "x-original-url",
            clean("a").header("x-original-url", "/evil"),
        ),
        ("x-rewrite-url", clean("a").header("x-rewrite-url", "/evil")),
        (
            "x-http-method-override",
            clean("a").header("x-http-method-override", "evil"),
        ),
        (
            "forwarded",
            clean("a").header("forwarded", "for=1.2.3.4;host=evil"),
        ),
        (
            "a quote",
            clean("a").header("forwarded", "for=\"x;host=evil"),
        ),
        ("two hosts", clean("a").header("host", "evil")),
        ("two hosts turned", clean("evil").header("host", "a")),
        ("a user", clean("evil@a")),
        ("a port", clean("a:evil")),
        ("a space", clean("a /evil")),
        (
            "an absolute target",
            Request::builder()
                .uri("http://evil/page")
                .header("host", "a"),
        ),
        (
            "a target of its own",
            Request::builder()
                .uri("http://a/page")
                .header("host", "evil"),
        ),
        ("authorization", clean("a").header("authorization", "evil")),
        ("a cookie", clean("a").header("cookie", "evil")),
        ("a range", clean("a").header("range", "bytes=evil")),
    ];
    for (what, poison) in poisons {
        let evil = send(&service, poison).await;
        assert!(evil.text().contains("evil"), "{what}: {}", evil.text());
        let page = send(&service, clean("a")).await;
        assert!(!page.text().contains("evil"), "{what}: {}", page.text());
    }
    assert!(send(&service, clean("a")).await.is_hit());
}

#[tokio::test]
async fn pages_of_other_hosts_are_not_stored_if_the_hosts_are_named() {
    let server = Server::start().await;
    let site = mirror(&[]);
    let pages = pages(&server).await.hosts(["A", "b:8080"]);
    let service = pages.clone().layer(site);
    let page = |host| send(&service, Request::builder().uri("/").header("host", host));
    // A usual port may be named. Its pages are its own.
    let ours = ["a", "B:8080", "a:443", "A:80"].map(|it| (it, true));
    let others = ["b", "b:443", "a:8080", "c"].map(|it| (it, false));
    for (host, is_stored) in ours.into_iter().chain(others) {
        assert!(!page(host).await.is_hit(), "{host}");
        assert_eq!(page(host).await.is_hit(), is_stored, "{host}");
    }
    let purge = pages.purge_url("https://a/").expect("a URL");
    purge.await.expect("purged");
    for host in ["a", "a:443", "a:80"] {
        assert!(!page(host).await.is_hit(), "{host}");
    }
    let none = || send(&service, Request::builder().uri("/"));
    none().await;
    assert!(!none().await.is_hit());
}

#[tokio::test]
async fn a_host_and_its_aliases_share_pages_and_purges() {
    let server = Server::start().await;
    let pages = pages(&server).await.hosts(["a", "b"]);
    let pages = pages.host_aliases("A", ["www.A", "a:8080"]);
    let service = pages.clone().layer(Site::counting(&[FRESH]));
    let request = |host| Request::builder().uri("/x?q").header("host", host);
    let are_hits = async || {
        let mut hits = Vec::new();
        for host in ["a", "www.a", "WWW.a", "a:8080", "www.a:443", "www.a:80"] {
            let only = request(host).header("cache-control", "only-if-cached");
            hits.push(send(&service, only).await.is_hit());
        }
        let all = hits[0];
        assert!(hits.iter().all(|hit| *hit == all), "{hits:?}");
        all
    };
    let hosts = ["https://a", "http://www.A", "https://a:8080", ""];
    let from = ["www.a", "a", "www.a:443", "www.a:80"];
    for (purged, from) in hosts.into_iter().zip(from) {
        send(&service, request(from)).await;
        assert!(are_hits().await, "one has stored it for all");
        let purge = pages.purge_url(&format!("{purged}/x?q"));
        purge.expect("a URL").await.expect("purged");
        assert!(!are_hits().await, "{purged}");
        send(&service, request(from)).await;
        let purge = pages.purge_prefix(&format!("{purged}/x"));
        purge.expect("a URL").await.expect("purged");
        assert!(!are_hits().await, "{purged}");
    }
    for changed in ["www.a", "www.a:443", "www.a:80", "a:443", "a:80"] {
        send(&service, request("a")).await;
        assert!(are_hits().await);
        send(&service, request(changed).method("POST")).await;
        assert!(!are_hits().await, "a change at {changed}");
    }
    // Another host, and one that is not ours, are as they are without aliases.
    send(&service, request("a")).await;
    for (host, is_stored) in [("b", true), ("c", false), ("www.b", false)] {
        assert!(!send(&service, request(host)).await.is_hit(), "{host}");
        let again = send(&service, request(host)).await;
        assert_eq!(again.is_hit(), is_stored, "{host}");
    }
}

#[tokio::test]
async fn an_alias_of_an_alias_is_one_of_its_host_and_the_last_setting_of_an_alias_holds() {
    let server = Server::start().await;
    let pages = pages(&server).await.hosts(["host"]);
    let pages = pages.host_aliases("a", ["b"]).host_aliases("host", ["a"]);
    let pages = pages.host_aliases("a", ["c"]);
    let pages = pages.host_aliases("x", ["d"]);
    let pages = pages.host_aliases("host", ["D:443"]);
    // This one would lead in a circle, and changes nothing.
    let service = pages.host_aliases("b", ["host"]);
    let service = service.layer(Site::counting(&[FRESH]));
    for host in ["a", "b", "c", "d", "host"] {
        let page = send(&service, Request::builder().uri("/").header("host", host)).await;
        assert_eq!(page.text(), "1", "{host}");
    }
}

#[tokio::test]
async fn parameters_that_do_not_belong_to_a_page_are_not_shown_to_the_service() {
    let server = Server::start().await;
    let site = mirror(&[]);
    let pages = pages(&server).await;
    let only = pages.clone().only_query(["a", "b"]).layer(site.clone());
    let first = ask(&only, "/only?b=2&evil=1&a=1&a=0", &[]).await;
    assert!(
        first.text().starts_with("/only?a=1&a=0&b=2 "),
        "{}",
        first.text()
    );
    assert!(ask(&only, "/only?a=1&b=2&a=0", &[]).await.is_hit());
    assert!(
        !ask(&only, "/only?a=0&a=1&b=2", &[]).await.is_hit(),
        "their order counts"
    );
    let ignoring = pages
        .clone()
        .ignore_query(["utm_source"])
        .layer(site.clone());
    let first = ask(&ignoring, "/ignoring?%75tm_source=evil&a=1", &[]).await;
    assert!(
        first.text().starts_with("/ignoring?a=1 "),
        "{}",
        first.text()
    );
    assert!(ask(&ignoring, "/ignoring?a=1", &[]).await.is_hit());
    assert!(!ask(&ignoring, "/ignoring", &[]).await.is_hit());
    let whole = pages.layer(site);
    for target in [
        "/whole?a&b",
        "/whole?b&a",
        "/whole?",
        "/whole",
        "/whole/",
        "//whole",
    ] {
        assert!(!ask(&whole, target, &[]).await.is_hit(), "{target}");
    }
}

#[tokio::test]
async fn very_long_urls_have_pages_of_their_own() {
    let server = Server::start().await;
    let service = cached(&server, &mirror(&[])).await;
    let long = "x".repeat(5000);
    for end in ["a", "b"] {
        let target = format!("/{long}{end}?{long}");
        let page = ask(&service, &target, &[]).await;
        assert!(page.text().starts_with(&target) && !page.is_hit());
        assert!(ask(&service, &target, &[]).await.is_hit());
    }
}

#[tokio::test]
async fn each_variant_is_given_to_those_that_ask_for_it() {
    let server = Server::start().await;
    let site = Site::new(|request| async move {
        let language = request.headers().get("accept-language");
        let language = language
            .map_or("none", |it| it.to_str().expect("text"))
            .to_owned();
        answer(&[FRESH, ("vary", "Accept-Language")], language)
    });
    let (first, second) = (cached(&server, &site).await, cached(&server, &site).await);
    let languages = ["de", "en", "fr", "", "de;q=0.5", "de, en"];
    for language in languages {
        let page = ask(&first, "/", &[("accept-language", language)]).await;
        assert_eq!(page.text(), language);
    }
    assert_eq!(ask(&first, "/", &[]).await.text(), "none");
    assert_eq!(site.renders(), 7);
    for service in [&first, &second] {
        for language in languages {
            let page = ask(service, "/", &[("accept-language", language)]).await;
            assert_eq!(page.text(), language);
            assert!(page.is_hit());
        }
        let spaced = ask(service, "/", &[("accept-language", " de ,  en")]).await;
        assert!(spaced.is_hit());
        assert_eq!(ask(service, "/", &[]).await.text(), "none");
    }
    assert_eq!(site.renders(), 7);
}

#[tokio::test]
async fn the_number_of_variants_is_bounded() {
    let server = Server::start().await;
    let site = Site::new(|request| async move {
        let page = format!("{:?}", request.headers().get("x"));
        answer(&[FRESH, ("vary", "x")], page)
    });
    let service = pages(&server).await.variants(3).layer(site.clone());
    for variant in 0..100 {
        let variant = variant.to_string();
        let page = ask(&service, "/", &[("x", &variant)]).await;
        assert!(page.text().contains(&variant), "{page}");
    }
    let stored: Vec<String> = server.keys("hr:v:{pages:*").await;
    assert_eq!(
        stored.len(),
        4,
        "the first one and three others: {stored:?}"
    );
    let first = ask(&service, "/", &[("x", "0")]).await;
    assert!(first.is_hit());
}

#[tokio::test]
async fn pages_for_those_that_say_who_they_are_are_kept_apart() {
    let server = Server::start().await;
    let site = Site::new(|request| async move {
        let control = match request.uri().path() {
            "/public" => "public, max-age=60",
            _ => "max-age=60",
        };
        answer(
            &[("cache-control", control)],
            format!("{:?}", request.headers()),
        )
    });
    let service = cached(&server, &site).await;
    for line in [("authorization", "Bearer secret"), ("cookie", "sid=secret")] {
        for target in ["/mine", "/public"] {
            ask(&service, target, &[line]).await;
            let page = ask(&service, target, &[]).await;
            assert!(!page.text().contains("secret"), "{target} {line:?}");
            let own = ask(&service, target, &[line]).await;
            assert_eq!(own.is_hit(), target == "/public", "{target} {line:?}");
        }
    }
    let stored = pages(&server).await.login_cookies(["sid"]).layer(site);
    let page = ask(&stored, "/mine", &[("cookie", "theme=dark")]).await;
    assert!(page.is_hit(), "this cookie is no credential");
}

#[tokio::test]
async fn headers_that_are_named_belong_to_the_key() {
    let server = Server::start().await;
    let site = mirror(&[]);
    let name = http::HeaderName::from_static("x-tenant");
    let service = pages(&server).await.key_headers([name]).layer(site);
    for tenant in ["one", "two"] {
        let page = ask(&service, "/", &[("x-tenant", tenant)]).await;
        assert!(page.text().contains(tenant) && !page.is_hit());
        assert!(ask(&service, "/", &[("x-tenant", tenant)]).await.is_hit());
    }
}

/// One request of the property: what may be a part of the key, from few values.
fn request() -> impl Strategy<Value = (String, Vec<(&'static str, String)>)> {
    let target = "/[ab]{0,2}(\\?[ab&=]{0,3})?";
    let header = prop_oneof![
        Just("x-forwarded-host"),
        Just("x-original-url"),
        Just("accept-language"),
        Just("x-vary"),
        Just("cookie"),
        Just("authorization"),
    ];
    (
        target,
        proptest::collection::vec((header, "[ab, ]{1,3}"), 0..3),
    )
}

/// What a page may depend on: all of the request that is in the key, or that it varies by.
fn seen(target: &str, lines: &[(&'static str, String)]) -> String {
    let mut seen = target.to_owned();
    for name in [
        "x-forwarded-host",
        "x-original-url",
        "accept-language",
        "x-vary",
    ] {
        let values = lines.iter().filter(|(it, _)| *it == name);
        let values: Vec<String> = values.map(|(_, value)| value.trim().to_owned()).collect();
        let items = || values.iter().flat_map(|it| it.split(',')).map(str::trim);
        match name {
            "accept-language" if !values.is_empty() => {
                let items: Vec<&str> = items().filter(|it| !it.is_empty()).collect();
                seen += &format!("|{name}={items:?}");
            }
            _ => seen += &format!("|{name}={values:?}"),
        }
    }
    let is_known = lines
        .iter()
        .any(|(it, _)| ["cookie", "authorization"].contains(it));
    format!("{seen}|{is_known}")
}

async fn asked(service: &Cached, target: &str, lines: &[(&'static str, String)]) -> String {
    let lines: Vec<(&str, &str)> = lines.iter().map(|(name, it)| (*name, it.trim())).collect();
    ask(service, target, &lines).await.text().to_owned()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn every_request_is_given_the_page_that_would_be_rendered_for_it(
        requests in proptest::collection::vec(request(), 20..60),
    ) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let server = Server::start().await;
            let site = Site::new(|request| async move {
                let lines: Vec<(&'static str, String)> = request
                    .headers()
                    .iter()
                    .filter_map(|(name, value)| {
                        let names = ["x-forwarded-host", "x-original-url", "accept-language",
                            "x-vary", "cookie", "authorization"];
                        let name = names.into_iter().find(|it| name == it)?;
                        Some((name, value.to_str().expect("text").to_owned()))
                    })
                    .collect();
                let target = request.uri().to_string();
                answer(&[FRESH, ("vary", "accept-language, X-Vary")], seen(&target, &lines))
            });
            let service = cached(&server, &site).await;
            for (target, lines) in requests {
                let page = asked(&service, &target, &lines).await;
                let expected = seen(&target, &lines);
                assert_eq!(page, expected, "{target} {lines:?}");
            }
        });
    }
}

#[tokio::test]
async fn a_first_variant_that_is_gone_does_not_hide_the_others() {
    let server = Server::start().await;
    let site = Site::new(|request| async move {
        let control = match request.headers().get("x").is_some() {
            true => "max-age=60",
            false => "max-age=1",
        };
        answer(&[("cache-control", control), ("vary", "x")], "")
    });
    let service = cached(&server, &site).await;
    ask(&service, "/", &[]).await;
    ask(&service, "/", &[("x", "1")]).await;
    until("the first variant has expired", async || {
        let stored: Vec<String> = server.keys("hr:v:{pages:*").await;
        stored.len() == 1
    })
    .await;
    ask(&service, "/", &[]).await;
    assert!(ask(&service, "/", &[("x", "1")]).await.is_hit());
    assert_eq!(site.renders(), 3);
}
