//! Pages that are stored and handed out: what they look like.

use axum::body::Body;
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;

use super::site::{Site, answer, ask, cached, get, pages, send};
use crate::support::server::Server;
use tower::Layer as _;

const FRESH: (&str, &str) = ("cache-control", "max-age=60");

#[tokio::test]
async fn a_page_is_rendered_once_and_handed_out_byte_for_byte() {
    let server = Server::start().await;
    let body: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let sent = body.clone();
    let site = Site::new(move |_| {
        let lines = [
            FRESH,
            ("content-encoding", "gzip"),
            ("x-one", "1"),
            ("x-one", "2"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
        ];
        let page = answer(&lines, sent.clone());
        async { page }
    });
    let (first, second) = (cached(&server, &site).await, cached(&server, &site).await);
    let rendered = ask(&first, "/a?b=1", &[]).await;
    let told = rendered.header("cache-status");
    assert!(
        told.starts_with("hedgerow; fwd=uri-miss; stored; ttl="),
        "{told}"
    );
    assert_eq!(rendered.header("age"), "");
    for service in [&first, &second] {
        let page = ask(service, "/a?b=1", &[]).await;
        assert!(page.is_hit(), "{}", page.header("cache-status"));
        assert_eq!(page.status, StatusCode::OK);
        assert_eq!(page.body, body);
        assert_eq!(page.header("content-encoding"), "gzip");
        assert_eq!(page.header("x-one"), "1, 2");
        assert_ne!(page.header("age"), "");
        assert_eq!(page.header("etag"), rendered.header("etag"));
        assert_eq!(page.header("date"), rendered.header("date"));
        for of_a_connection in ["connection", "x-hop", "keep-alive"] {
            assert_eq!(page.header(of_a_connection), "", "{of_a_connection}");
        }
    }
    assert_eq!(site.renders(), 1);
}

/// What a layer that compresses does: it encodes the body for those that accept it, and says so.
async fn encoded<B>(accepts: bool, page: http::Response<B>) -> http::Response<Body>
where
    B: http_body::Body<Data = bytes::Bytes>,
    B::Error: std::fmt::Debug,
{
    let (mut parts, body) = page.into_parts();
    let body = body.collect().await.expect("whole").to_bytes();
    parts
        .headers
        .append("vary", "accept-encoding".parse().expect("a value"));
    let body = match accepts && !body.is_empty() {
        true => {
            parts
                .headers
                .insert("content-encoding", "shout".parse().expect("a value"));
            parts.headers.remove("content-length");
            Body::from(body.to_ascii_uppercase())
        }
        false => Body::from(body),
    };
    http::Response::from_parts(parts, body)
}

#[tokio::test]
async fn a_layer_that_compresses_may_be_inside() {
    let server = Server::start().await;
    let site = Site::new(|request| async move {
        let accepts = request.headers().contains_key("accept-encoding");
        encoded(accepts, answer(&[FRESH], "page")).await
    });
    let service = cached(&server, &site).await;
    for is_hit in [false, true] {
        for (line, page, coding) in [
            (&[("accept-encoding", "shout")][..], "PAGE", "shout"),
            (&[], "page", ""),
        ] {
            let answer = ask(&service, "/", line).await;
            assert_eq!((answer.text(), answer.is_hit()), (page, is_hit));
            assert_eq!(answer.header("content-encoding"), coding);
        }
    }
    assert_eq!(site.renders(), 2, "one for each encoding");
}

#[tokio::test]
async fn a_layer_that_compresses_may_be_outside() {
    let server = Server::start().await;
    let site = Site::new(|_| async { answer(&[FRESH], "page") });
    let service = cached(&server, &site).await;
    let ask = async |accepts: bool, tag: &str| {
        let request = get("/").header("if-none-match", tag);
        let request = request.body(Body::empty()).expect("a request");
        let page = super::site::respond(&service, request).await;
        let page = encoded(accepts, page).await;
        let (parts, body) = page.into_parts();
        let body = body.collect().await.expect("whole").to_bytes();
        (parts, body)
    };
    let (first, body) = ask(true, "\"none\"").await;
    assert_eq!(&*body, b"PAGE");
    // Two encodings have one tag, so it must not be a strong one.
    let tag = first.headers["etag"].to_str().expect("text");
    assert!(tag.starts_with("W/"), "{tag}");
    let (_, body) = ask(false, "\"none\"").await;
    assert_eq!(&*body, b"page");
    for accepts in [true, false] {
        let (known, body) = ask(accepts, tag).await;
        assert_eq!((known.status, body.len()), (StatusCode::NOT_MODIFIED, 0));
    }
    assert_eq!(site.renders(), 1);
}

#[tokio::test]
async fn a_page_is_stored_for_as_long_as_it_says() {
    let server = Server::start().await;
    let site = Site::counting(&[("cache-control", "max-age=1, s-maxage=100"), ("age", "40")]);
    let service = cached(&server, &site).await;
    ask(&service, "/", &[]).await;
    let page = ask(&service, "/", &[]).await;
    assert!(page.is_hit());
    let age: u64 = page.header("age").parse().expect("a number");
    assert!((40..60).contains(&age), "{age}");
    let lives = server.lives("hr:v:{pages:*").await;
    assert_eq!(lives.len(), 1, "{lives:?}");
    assert!((50_000..=60_000).contains(&lives[0].1), "{lives:?}");
}

#[tokio::test]
async fn a_page_that_says_nothing_is_stored_only_where_the_layer_says_so() {
    let server = Server::start().await;
    let site = Site::counting(&[]);
    let plain = cached(&server, &site).await;
    assert_eq!(ask(&plain, "/a", &[]).await.text(), "1");
    assert_eq!(ask(&plain, "/a", &[]).await.text(), "2");
    let hour = std::time::Duration::from_secs(3600);
    let told = pages(&server).await.default_ttl(hour).layer(site.clone());
    assert_eq!(ask(&told, "/b", &[]).await.text(), "3");
    assert_eq!(ask(&told, "/b", &[]).await.text(), "3");
}

#[tokio::test]
async fn a_head_is_answered_from_the_page() {
    let server = Server::start().await;
    let site = Site::counting(&[FRESH]);
    let service = cached(&server, &site).await;
    let head = || send(&service, get("/").method(Method::HEAD));
    assert!(
        !head().await.is_hit(),
        "the service answers, and nothing is stored"
    );
    assert!(!head().await.is_hit());
    let page = ask(&service, "/", &[]).await;
    let head = head().await;
    assert!(head.is_hit());
    assert!(head.body.is_empty());
    assert_eq!(head.header("content-length"), page.body.len().to_string());
    assert_eq!(head.header("etag"), page.header("etag"));
    assert_eq!(site.renders(), 3);
}

#[tokio::test]
async fn a_head_is_answered_from_the_variant_that_is_for_it_and_with_304_if_it_is_known() {
    let server = Server::start().await;
    let site = Site::new(|request| async move {
        let language = request.headers()["accept-language"].to_str().expect("text");
        let lines = [FRESH, ("vary", "accept-language")];
        answer(
            &lines,
            language.repeat(if language == "de" { 1 } else { 9 }),
        )
    });
    let service = cached(&server, &site).await;
    for (language, length) in [("de", "2"), ("en", "18"), ("fr", "18")] {
        let page = ask(&service, "/", &[("accept-language", language)]).await;
        let head = |tag: String| {
            let request = get("/").method(Method::HEAD);
            let request = request.header("accept-language", language);
            send(&service, request.header("if-none-match", tag))
        };
        let whole = head("\"other\"".to_owned()).await;
        assert!(whole.is_hit() && whole.body.is_empty(), "{whole}");
        assert_eq!(whole.status, StatusCode::OK);
        assert_eq!(whole.header("content-length"), length);
        let known = head(page.header("etag")).await;
        assert!(known.is_hit() && known.body.is_empty(), "{known}");
        assert_eq!(known.status, StatusCode::NOT_MODIFIED);
        assert_eq!(known.header("content-length"), "");
    }
    assert_eq!(site.renders(), 3);
}

#[tokio::test]
async fn a_request_of_http_2_has_the_page_of_its_scheme_and_authority() {
    let server = Server::start().await;
    let site = Site::new(|request| async move { answer(&[FRESH], request.uri().to_string()) });
    let pages = pages(&server).await.hosts(["a"]);
    let service = pages.clone().layer(site);
    let second = |target: &str| {
        // What hyper makes of `:scheme`, `:authority` and `:path`.
        let request = http::Request::builder().version(http::Version::HTTP_2);
        request.uri(target)
    };
    for target in ["https://a/x", "http://a/x"] {
        for is_hit in [false, true] {
            let page = send(&service, second(target)).await;
            assert_eq!((page.text(), page.is_hit()), (target, is_hit));
        }
    }
    // That of HTTP/1, which has no scheme.
    assert_eq!(ask(&service, "/x", &[]).await.text(), "http://a/x");
    pages
        .purge_url("https://a/x")
        .expect("a URL")
        .await
        .expect("purged");
    assert!(!send(&service, second("https://a/x")).await.is_hit());
    assert!(!send(&service, second("https://b/x")).await.is_hit());
    let two = second("https://a/x").header("host", "b");
    assert!(
        send(&service, two)
            .await
            .header("cache-status")
            .contains("host")
    );
}

#[tokio::test]
async fn a_client_that_has_the_page_is_told_so() {
    let server = Server::start().await;
    let modified = "Sun, 06 Nov 1994 08:49:37 GMT";
    let lines = [
        FRESH,
        ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("vary", "x"),
    ];
    let site = Site::counting(&lines);
    let pages = pages(&server).await;
    let service = pages.layer(site.clone());
    let tag = ask(&service, "/", &[]).await.header("etag");
    // Weak: another layer may compress the body.
    assert!(tag.starts_with("W/\"") && tag.len() > 16, "{tag}");
    let strong = tag.trim_start_matches("W/");
    for (asked, status) in [
        (("if-none-match", &*tag), 304),
        (("if-none-match", strong), 304),
        (("if-none-match", &*format!("\"x\", {tag}")), 304),
        (("if-none-match", "\"x\""), 200),
        (("if-modified-since", modified), 304),
        (("if-modified-since", "Sun, 06 Nov 1994 08:49:36 GMT"), 200),
    ] {
        let page = ask(&service, "/", &[asked]).await;
        assert_eq!(page.status.as_u16(), status, "{asked:?}");
        assert_eq!(page.body.is_empty(), status == 304);
        assert!(page.is_hit());
        for kept in ["cache-control", "etag", "vary", "date", "age"] {
            assert_ne!(page.header(kept), "", "{kept}");
        }
    }
    assert_eq!(pages.stats().not_modified, 4);
    assert_eq!(site.renders(), 1);
}

#[tokio::test]
async fn the_service_is_asked_for_the_whole_page_and_its_client_for_what_it_has() {
    let server = Server::start().await;
    let site = Site::new(|request| async move {
        // A handler that knows conditions itself.
        match request.headers().contains_key("if-none-match") {
            true => answer(&[FRESH], "wrong"),
            false => answer(&[FRESH, ("etag", "\"mine\"")], "whole"),
        }
    });
    let service = cached(&server, &site).await;
    let page = ask(&service, "/", &[("if-none-match", "\"mine\"")]).await;
    assert_eq!(page.status, StatusCode::NOT_MODIFIED);
    let page = ask(&service, "/", &[]).await;
    assert_eq!((page.text(), page.is_hit()), ("whole", true));
}

#[tokio::test]
async fn a_client_may_ask_for_a_stored_page_only() {
    let server = Server::start().await;
    let site = Site::counting(&[FRESH]);
    let service = cached(&server, &site).await;
    let only = [("cache-control", "only-if-cached")];
    assert_eq!(
        ask(&service, "/", &only).await.status,
        StatusCode::GATEWAY_TIMEOUT
    );
    ask(&service, "/", &[]).await;
    assert_eq!(ask(&service, "/", &only).await.text(), "1");
    assert_eq!(site.renders(), 1);
}

#[tokio::test]
async fn a_client_that_accepts_no_stored_page_has_its_own_rendered_and_changes_nothing() {
    let server = Server::start().await;
    let site = Site::counting(&[FRESH]);
    let pages = pages(&server).await;
    let service = pages.layer(site.clone());
    ask(&service, "/", &[]).await;
    let controls = ["no-cache", "no-store", "max-age=0", "min-fresh=61"];
    for (control, page) in controls.into_iter().zip(["2", "3", "4", "5"]) {
        // `max-age=0` may be too long ago already, or not yet.
        if control == "max-age=0" {
            crate::support::wait::until("a second has passed", async || {
                ask(&service, "/", &[]).await.header("age") != "0"
            })
            .await;
        }
        let own = ask(&service, "/", &[("cache-control", control)]).await;
        assert_eq!(own.text(), page, "{control}");
        assert!(
            own.header("cache-status").contains("fwd=request"),
            "{control}"
        );
    }
    assert_eq!(ask(&service, "/", &[]).await.text(), "1");
    let deaf = pages.ignore_request_directives().layer(site);
    assert_eq!(
        ask(&deaf, "/", &[("cache-control", "no-cache")])
            .await
            .text(),
        "1"
    );
}

#[tokio::test]
async fn requests_for_more_than_a_page_pass() {
    let server = Server::start().await;
    let site = Site::counting(&[FRESH]);
    let pages = pages(&server).await.pass_cookies(["sid"]);
    let service = pages.layer(site.clone());
    ask(&service, "/", &[]).await;
    for (line, detail) in [
        (("range", "bytes=0-0"), "range"),
        (("upgrade", "websocket"), "upgrade"),
        (("cookie", "a=1; sid=2"), "cookie"),
    ] {
        let page = ask(&service, "/", &[line]).await;
        let status = format!("hedgerow; fwd=bypass; detail=\"{detail}\"");
        assert_eq!(page.header("cache-status"), status);
    }
    let posted = send(&service, get("/other").method(Method::POST)).await;
    assert_eq!(
        posted.header("cache-status"),
        "hedgerow; fwd=method; detail=\"method\""
    );
    let with_body = get("/").body(Body::from("x")).expect("a request");
    let with_body = super::site::respond(&service, with_body).await;
    assert!(
        with_body.headers()["cache-status"]
            .to_str()
            .expect("text")
            .contains("body")
    );
    assert_eq!(pages.stats().passed, 5);
    assert_eq!(ask(&service, "/", &[]).await.text(), "1");
}

#[tokio::test]
async fn each_request_is_counted_once() {
    let server = Server::start().await;
    let site = Site::counting(&[FRESH]);
    let pages = pages(&server).await;
    let service = pages.clone().layer(site);
    ask(&service, "/", &[]).await;
    ask(&service, "/", &[]).await;
    ask(&service, "/", &[("range", "bytes=0-0")]).await;
    ask(&service, "/", &[("cache-control", "min-fresh=61")]).await;
    let stats = pages.stats();
    let counts = [
        stats.misses,
        stats.hits,
        stats.passed,
        stats.beside,
        stats.collapsed,
    ];
    assert_eq!(counts, [1, 1, 1, 1, 0]);
    assert_eq!((stats.rendered, stats.unstorable, stats.failed), (1, 0, 0));
}

#[tokio::test]
async fn what_the_layer_tells_of_itself_can_be_chosen() {
    let server = Server::start().await;
    let lines = [FRESH, ("cache-status", "origin; hit")];
    let pages = pages(&server).await;
    let site = Site::counting(&lines);
    let named = pages
        .clone()
        .status_name("my \"shop")
        .keys_in_cache_status();
    let named = named.layer(site.clone());
    ask(&named, "/", &[]).await;
    let told = ask(&named, "/", &[]).await.header("cache-status");
    assert!(told.starts_with("origin; hit, myshop; hit; ttl="), "{told}");
    assert!(told.ends_with("; key=\"page http a / -\""), "{told}");
    let silent = pages.without_cache_status().layer(site);
    assert_eq!(
        ask(&silent, "/", &[]).await.header("cache-status"),
        "origin; hit"
    );
}
