//! Purges: what they reach, and that nothing older is served once they have returned.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::body::Body;
use bytes::Bytes;
use futures::future::join_all;
use hedgerow::http::{CacheTags, PageCache, PurgeEndpoint};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use tower::{Layer as _, ServiceExt as _};

use super::site::{Answer, Cached, Site, answer, ask, cached, get, pages, send};
use crate::support::gate::Gate;
use crate::support::server::Server;
use crate::support::wait::{bounded, until};

const FRESH: (&str, &str) = ("cache-control", "public, max-age=600");

const TARGETS: [&str; 8] = [
    "/",
    "/blog",
    "/blog?page=2",
    "/blog/",
    "/blog/2026/may/1",
    "/blogs",
    "/a%2Fb",
    "/x?utm=1&a=2",
];

/// Stores all targets, in two variants, and purges. Returns which are gone.
async fn gone<F, Fut>(pages: &PageCache, service: &Cached, purge: F) -> BTreeSet<&'static str>
where
    F: FnOnce(PageCache) -> Fut,
    Fut: Future<Output = ()>,
{
    for target in TARGETS {
        for language in ["de", "en"] {
            ask(service, target, &[("x", language)]).await;
        }
    }
    purge(pages.clone()).await;
    let mut gone = BTreeSet::new();
    for target in TARGETS {
        let hits = join_all(["de", "en"].map(|it| async move {
            ask(
                service,
                target,
                &[("x", it), ("cache-control", "only-if-cached")],
            )
            .await
            .is_hit()
        }));
        let hits = hits.await;
        assert_eq!(hits[0], hits[1], "both variants of {target}");
        if !hits[0] {
            gone.insert(target);
        }
    }
    gone
}

#[tokio::test]
async fn a_purge_reaches_what_it_names_and_nothing_else() {
    let server = Server::start().await;
    let site = Site::new(|_| async { answer(&[FRESH, ("vary", "x")], "x") });
    let pages = pages(&server).await.hosts(["a"]).ignore_query(["utm"]);
    let service = pages.clone().layer(site);
    for (url, expected) in [
        ("https://a/blog", &["/blog"][..]),
        ("http://A:80/blog?page=2", &["/blog?page=2"]),
        ("/x?a=2", &["/x?utm=1&a=2"]),
        ("/x?utm=7&a=2", &["/x?utm=1&a=2"]),
        ("/a%2Fb", &["/a%2Fb"]),
        ("https://b/blog", &[]),
        // Nothing of this query belongs to a page.
        ("/blog?utm=1", &["/blog"]),
    ] {
        let gone = gone(&pages, &service, |it| async move {
            it.purge_url(url).expect("a URL").await.expect("purged");
        })
        .await;
        assert_eq!(gone, expected.iter().copied().collect(), "{url}");
    }
    for (prefix, expected) in [
        (
            "/blog",
            &["/blog", "/blog?page=2", "/blog/", "/blog/2026/may/1"][..],
        ),
        ("https://a/blog/2026", &["/blog/2026/may/1"]),
        ("/blog/2026/may", &["/blog/2026/may/1"]),
        ("/", &TARGETS),
        ("https://b/", &[]),
    ] {
        let gone = gone(&pages, &service, |it| async move {
            it.purge_prefix(prefix)
                .expect("a URL")
                .await
                .expect("purged");
        })
        .await;
        assert_eq!(gone, expected.iter().copied().collect(), "{prefix}");
    }
    let all = gone(&pages, &service, |it| async move {
        it.purge_all().await.expect("purged");
    })
    .await;
    assert_eq!(all.len(), TARGETS.len());
}

#[tokio::test]
async fn a_url_that_names_no_page_is_refused() {
    let server = Server::start().await;
    let pages = pages(&server).await;
    for url in ["", "blog", "/blog", "https://", "a/b", "https://a b/"] {
        let refused = pages.purge_url(url).expect_err("it is refused");
        assert!(
            refused.to_string().contains("https://host/path"),
            "{url}: {refused}"
        );
    }
    let refused = pages
        .purge_prefix("https://a/1/2/3/4")
        .expect_err("it is refused");
    assert!(refused.to_string().contains("prefix_depth"), "{refused}");
}

#[tokio::test]
async fn pages_carry_the_tags_of_their_handlers() {
    let server = Server::start().await;
    let site = Site::new(|request| async move {
        let mut page = answer(&[FRESH, ("cache-tag", "all, b c")], "x");
        let path = request.uri().path().to_owned();
        page.extensions_mut().insert(CacheTags::new([path]));
        page
    });
    let pages = pages(&server).await;
    let service = pages.clone().layer(site);
    let warm = |target: &'static str| {
        let service = service.clone();
        async move {
            // The first page with a new tag is not stored.
            until("the page is stored", async || {
                ask(&service, target, &[]).await.is_hit()
            })
            .await;
        }
    };
    for (tag, gone) in [
        ("/one", [true, false]),
        ("all", [true; 2]),
        ("b c", [true; 2]),
    ] {
        warm("/one").await;
        warm("/two").await;
        pages.purge_tags([tag]).await.expect("purged");
        for (target, gone) in ["/one", "/two"].into_iter().zip(gone) {
            let only = [("cache-control", "only-if-cached")];
            assert_eq!(
                !ask(&service, target, &only).await.is_hit(),
                gone,
                "{tag} {target}"
            );
        }
    }
    // Other caches of the namespace share the tags.
    warm("/one").await;
    let other = server.client().await.cache("rows");
    other.invalidate_tags(["/one"]).await.expect("invalidated");
    assert!(!ask(&service, "/one", &[]).await.is_hit());
}

#[tokio::test]
async fn tags_that_follow_from_the_request_are_stored_with_the_first_page() {
    let server = Server::start().await;
    let site = Site::counting(&[FRESH]);
    let pages = pages(&server)
        .await
        .tags_by(|head| vec![format!("page:{}", head.uri.path())]);
    let service = pages.clone().layer(site);
    ask(&service, "/1", &[]).await;
    assert!(ask(&service, "/1", &[]).await.is_hit());
    pages.purge_tags(["page:/1"]).await.expect("purged");
    assert!(!ask(&service, "/1", &[]).await.is_hit());
}

#[tokio::test]
async fn a_soft_purge_leaves_a_page_to_be_served_while_it_is_rendered() {
    let server = Server::start().await;
    let lines = [("cache-control", "max-age=600, stale-while-revalidate=600")];
    let pages = pages(&server).await;
    let service = pages.clone().layer(Site::counting(&lines));
    ask(&service, "/", &[]).await;
    let purge = pages.purge_url("http://a/").expect("a URL");
    purge.soft().await.expect("purged");
    assert_eq!(ask(&service, "/", &[]).await.text(), "1");
    until("the new page is there", async || {
        ask(&service, "/", &[]).await.text() == "2"
    })
    .await;
}

#[tokio::test]
async fn a_soft_purge_lets_a_page_be_served_for_its_windows_from_the_purge_on() {
    let server = Server::start().await;
    for (control, first, at_last) in [
        // Only a failure would allow it.
        ("max-age=600, stale-if-error=600", "200 2", "200 2"),
        ("max-age=600", "200 2", "200 2"),
        // Long enough for all requests below to be sent within it.
        ("max-age=600, stale-while-revalidate=3", "200 1", "502 2"),
    ] {
        // The second instance has never met the page.
        for at in 0..2 {
            let fails = Arc::new(AtomicBool::new(false));
            let (count, ill) = (AtomicUsize::new(0), fails.clone());
            let site = Site::new(move |_| {
                let page = count.fetch_add(1, Ordering::SeqCst).min(1) + 1;
                let mut page = answer(&[("cache-control", control)], page.to_string());
                if ill.load(Ordering::SeqCst) {
                    *page.status_mut() = StatusCode::BAD_GATEWAY;
                }
                async { page }
            });
            let pages = pages(&server).await;
            let services = [
                pages.clone().layer(site.clone()),
                cached(&server, &site).await,
            ];
            ask(&services[0], "/", &[]).await;
            let purge = pages.purge_url("http://a/").expect("a URL");
            purge.soft().await.expect("purged");
            fails.store(at_last.starts_with("502"), Ordering::SeqCst);
            let service = &services[at];
            let seen = |it: &Answer| format!("{} {}", it.status.as_u16(), it.text());
            let at_once = join_all((0..9).map(|_| ask(service, "/", &[]))).await;
            for page in &at_once {
                assert_eq!(seen(page), first, "{control} {page}");
            }
            if at_once[0].is_hit() && first != at_last {
                // Nobody is told that it is fresh.
                for _ in 0..9 {
                    let page = ask(service, "/", &[]).await;
                    let status = page.header("cache-status");
                    assert!(!page.is_hit() || status.contains("ttl=0"), "{status}");
                    let own = ask(service, "/", &[("cache-control", "max-age=99")]).await;
                    assert_eq!(seen(&own), at_last, "{own}");
                }
                until("the window has ended", async || {
                    let page = ask(service, "/", &[]).await;
                    assert!([first, at_last].contains(&&*seen(&page)), "{page}");
                    seen(&page) == at_last
                })
                .await;
            }
            pages.purge_all().await.expect("purged");
        }
    }
}

#[tokio::test]
async fn a_page_that_was_purged_softly_is_stale_for_each_request_of_each_process() {
    let server = Server::start().await;
    let (renders, gate) = (Arc::new(AtomicUsize::new(0)), Gate::closed());
    let (count, waits) = (renders.clone(), gate.clone());
    let site = Site::new(move |_| {
        let (number, gate) = (count.fetch_add(1, Ordering::SeqCst), waits.clone());
        async move {
            let lines = [("cache-control", "max-age=600, stale-while-revalidate=600")];
            let mut page = answer(&lines, number.to_string());
            if number > 0 {
                let Ok(()) = gate.load(()).await;
                *page.status_mut() = StatusCode::BAD_GATEWAY;
            }
            page
        }
    });
    // A render that has failed is remembered by Redis, for all processes.
    let hour = std::time::Duration::from_secs(3600);
    let pages = async || PageCache::new(server.client().await.cache("pages").error_ttl(hour));
    let layers = [pages().await, pages().await, pages().await];
    let services = layers.each_ref().map(|it| it.clone().layer(site.clone()));
    ask(&services[0], "/", &[]).await;
    // The third instance has never met the page.
    for service in &services[..2] {
        let page = ask(service, "/", &[]).await;
        assert!(!page.header("cache-status").contains("ttl=0"), "{page}");
    }
    let purge = layers[0].purge_url("http://a/").expect("a URL");
    purge.soft().await.expect("purged");
    let are_stale = async || {
        for service in &services {
            for page in join_all((0..20).map(|_| ask(service, "/", &[]))).await {
                let status = page.header("cache-status");
                assert!(page.is_hit() && status.ends_with("ttl=0"), "{status}");
                assert_eq!(page.text(), "0");
            }
        }
    };
    // While one renders it, and after that has failed.
    are_stale().await;
    gate.begun(1).await;
    assert_eq!(layers.each_ref().map(|it| it.stats().failed), [0; 3]);
    (0..99).for_each(|_| gate.open());
    until("the render has failed", async || {
        layers.iter().any(|it| it.stats().failed == 1)
    })
    .await;
    are_stale().await;
    assert_eq!(renders.load(Ordering::SeqCst), 2);
    let stale = layers.each_ref().map(|it| it.stats().stale);
    assert_eq!(stale, [40; 3]);
    for service in &services {
        let own = ask(service, "/", &[("cache-control", "max-age=60")]).await;
        assert_eq!(own.status, StatusCode::BAD_GATEWAY, "{own}");
    }
}

/// As if the clock of the process that has rendered it were ahead.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_was_purged_softly_is_stale_though_it_seems_newer_than_the_request() {
    let server = Server::start().await;
    let lines = [("cache-control", "max-age=600, stale-while-revalidate=600")];
    let site = Site::counting(&lines);
    let first = pages(&server).await;
    let rendered = first.clone().layer(site.clone());
    let runtime = tokio::runtime::Handle::current();
    // The hook runs once the request has begun, and before it looks for the page.
    let second = pages(&server).await.tags_by(move |_| {
        let purged = async {
            let began = std::time::Instant::now();
            until("the clock goes on", async || {
                began.elapsed().as_millis() > 1
            })
            .await;
            ask(&rendered, "/", &[]).await;
            let purge = first.purge_url("http://a/").expect("a URL");
            purge.soft().await.expect("purged");
        };
        tokio::task::block_in_place(|| runtime.block_on(purged));
        Vec::new()
    });
    let service = second.clone().layer(site);
    let page = ask(&service, "/", &[]).await;
    let status = page.header("cache-status");
    assert!(page.is_hit() && status.ends_with("ttl=0"), "{status}");
    assert_eq!((page.text(), second.stats().stale), ("1", 1));
}

#[tokio::test]
async fn a_page_whose_many_tags_change_is_stored_again() {
    let server = Server::start().await;
    let version = Arc::new(AtomicUsize::new(0));
    let shown = version.clone();
    let site = Site::new(move |_| {
        let version = shown.load(Ordering::SeqCst);
        let mut page = answer(&[FRESH], version.to_string());
        let tags = (0..150).map(|tag| format!("{version}:{tag}"));
        page.extensions_mut().insert(CacheTags::new(tags));
        async { page }
    });
    let pages = pages(&server).await;
    let service = pages.clone().layer(site);
    for now in 0..4 {
        version.store(now, Ordering::SeqCst);
        pages
            .purge_url("http://a/")
            .expect("a URL")
            .await
            .expect("purged");
        until("the page is stored", async || {
            let page = ask(&service, "/", &[]).await;
            assert_eq!(page.text(), now.to_string());
            page.is_hit()
        })
        .await;
        pages
            .purge_tags([format!("{now}:149")])
            .await
            .expect("purged");
        let only = [("cache-control", "only-if-cached")];
        assert!(!ask(&service, "/", &only).await.is_hit());
    }
}

#[tokio::test]
async fn a_page_that_was_purged_while_it_was_rendered_is_not_said_to_be_stored() {
    let server = Server::start().await;
    let gate = Gate::closed();
    let waits = gate.clone();
    let site = Site::new(move |_| {
        let gate = waits.clone();
        async move {
            let Ok(page) = gate.load("x").await;
            answer(&[FRESH], page)
        }
    });
    let pages = pages(&server).await;
    let service = pages.clone().layer(site);
    let purged = async {
        gate.begun(1).await;
        let purge = pages.purge_url("http://a/").expect("a URL");
        purge.await.expect("purged");
        (0..9).for_each(|_| gate.open());
    };
    let (page, ()) = futures::join!(ask(&service, "/", &[]), purged);
    assert_eq!(page.header("cache-status"), "hedgerow; fwd=uri-miss");
    let page = ask(&service, "/", &[]).await;
    assert!(page.header("cache-status").contains("; stored"), "{page}");
}

/// A service whose `POST` has changed the page and then waits, panics or fails.
#[tokio::test]
async fn a_change_whose_answer_nobody_gets_purges_its_page() {
    let server = Server::start().await;
    let gate = Gate::closed();
    let waits = gate.clone();
    let site = Site::new(move |request: Request<Body>| {
        let gate = waits.clone();
        async move {
            if request.method() != Method::POST {
                return answer(&[FRESH], "x");
            }
            assert_ne!(request.headers()["x-ends"], "panic", "on purpose");
            let mut page = answer(&[], "x");
            match request.headers()["x-ends"].as_bytes() {
                b"500" => *page.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
                _ => {
                    let Ok(()) = gate.load(()).await;
                }
            }
            page
        }
    });
    let service = pages(&server).await.layer(site);
    for ends in ["leave", "panic", "500"] {
        ask(&service, "/", &[]).await;
        assert!(ask(&service, "/", &[]).await.is_hit(), "{ends}");
        let other = service.clone();
        let changing = tokio::spawn(async move {
            send(&other, get("/").method(Method::POST).header("x-ends", ends)).await;
        });
        if ends == "leave" {
            gate.begun(1).await;
            changing.abort();
        }
        let _ = bounded("it ends", changing).await;
        until("the page is purged", async || {
            let only = [("cache-control", "only-if-cached")];
            !ask(&service, "/", &only).await.is_hit()
        })
        .await;
    }
}

#[tokio::test]
async fn a_method_that_changes_a_page_purges_it_if_it_succeeds() {
    let server = Server::start().await;
    let site = Site::new(|request| async move {
        let mut page = answer(&[FRESH], "x");
        if let Some(status) = request.headers().get("x-status") {
            *page.status_mut() = status.to_str().expect("text").parse().expect("a status");
        }
        page
    });
    let service = pages(&server).await.layer(site);
    for (method, status, purges) in [
        (Method::POST, "200", true),
        (Method::POST, "303", true),
        (Method::PUT, "204", true),
        (Method::DELETE, "200", true),
        (Method::POST, "422", false),
        // It may have failed after its change.
        (Method::POST, "500", true),
        (Method::OPTIONS, "200", false),
    ] {
        ask(&service, "/", &[]).await;
        ask(&service, "/other", &[]).await;
        let changed = get("/").method(method.clone()).header("x-status", status);
        send(&service, changed).await;
        let page = ask(&service, "/", &[]).await;
        assert_eq!(!page.is_hit(), purges, "{method} {status}");
        assert!(ask(&service, "/other", &[]).await.is_hit());
    }
}

#[tokio::test]
async fn a_request_that_names_another_method_by_a_header_purges_its_page() {
    let server = Server::start().await;
    let service = pages(&server).await.layer(Site::counting(&[FRESH]));
    for method in [Method::GET, Method::HEAD] {
        for name in [
            "x-http-method",
            "x-http-method-override",
            "x-method-override",
        ] {
            ask(&service, "/", &[]).await;
            let changed = get("/").method(method.clone()).header(name, "DELETE");
            send(&service, changed).await;
            let page = ask(&service, "/", &[]).await;
            assert!(!page.is_hit(), "{method} {name}");
        }
    }
}

#[tokio::test]
async fn no_page_that_was_rendered_before_a_purge_is_served_after_it() {
    let server = Server::start().await;
    let truth = Arc::new(AtomicUsize::new(0));
    let shown = truth.clone();
    let site = Site::new(move |request| {
        let shown = shown.clone();
        async move {
            let version = shown.load(Ordering::SeqCst).to_string();
            // Room for a purge between what was read and what is stored.
            for _ in 0..7 {
                tokio::task::yield_now().await;
            }
            let vary = match request.uri().path() {
                "/varies" => "x",
                _ => "",
            };
            let lines = [FRESH, ("vary", vary), ("cache-tag", "late")];
            answer(&lines, version)
        }
    });
    let tagged = |it: PageCache| it.tags_by(|_| vec!["truth".to_owned()]);
    let layers = [pages(&server).await, pages(&server).await].map(tagged);
    let services: Vec<Cached> = layers
        .iter()
        .map(|it| it.clone().layer(site.clone()))
        .collect();
    let ended = Arc::new(AtomicUsize::new(0));
    let readers = (0..8).map(|at| {
        let (service, truth, ended) = (services[at % 2].clone(), truth.clone(), ended.clone());
        let target = if at < 4 { "/plain" } else { "/varies" };
        // `purged` is set after a purge has returned.
        async move {
            let mut read = 0;
            while ended.load(Ordering::SeqCst) == 0 {
                let purged = truth.load(Ordering::SeqCst);
                let purged = purged.min(PURGED.load(Ordering::SeqCst));
                let line = [("x", if at % 2 == 0 { "1" } else { "2" })];
                let page = ask(&service, target, &line).await;
                let version: usize = page.text().parse().expect("a number");
                assert!(
                    version >= purged,
                    "{version} was served after {purged}: {page}"
                );
                read += 1;
            }
            read
        }
    });
    let readers: Vec<_> = readers.map(tokio::spawn).collect();
    for version in 1..=60 {
        truth.store(version, Ordering::SeqCst);
        let pages = &layers[version % 2];
        match version % 4 {
            0 => pages.purge_tags(["truth"]).await.expect("purged"),
            3 => pages.purge_tags(["late"]).await.expect("purged"),
            1 => pages
                .purge_prefix("http://a/")
                .expect("a URL")
                .await
                .expect("purged"),
            _ => {
                let purges = ["http://a/plain", "http://a/varies"];
                for url in purges {
                    pages.purge_url(url).expect("a URL").await.expect("purged");
                }
            }
        }
        PURGED.store(version, Ordering::SeqCst);
        // Pages of this version come out of the cache, or the next purge would have none to end.
        let hits = pages.stats().hits;
        until("pages are served from the cache", async || {
            pages.stats().hits > hits
        })
        .await;
    }
    ended.store(1, Ordering::SeqCst);
    for reader in readers {
        assert!(
            bounded("the reader ends", reader)
                .await
                .expect("no stale page")
                > 0
        );
    }
}

/// The last version whose purge has returned.
static PURGED: AtomicUsize = AtomicUsize::new(0);

const TOKEN: &str = "0123456789abcdef-secret";

async fn purged(endpoint: &PurgeEndpoint, request: Request<Body>) -> (StatusCode, String) {
    let answered = bounded("it answers", endpoint.clone().oneshot(request)).await;
    let Ok(answer) = answered;
    let status = answer.status();
    let body: Bytes = answer
        .into_body()
        .collect()
        .await
        .expect("whole")
        .to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

fn post(target: &str, authorization: &str) -> Request<Body> {
    let request = Request::builder().method(Method::POST).uri(target);
    let request = request.header("authorization", authorization);
    request.body(Body::empty()).expect("a request")
}

#[tokio::test]
async fn the_endpoint_purges_for_those_that_know_its_token() {
    let server = Server::start().await;
    let pages = pages(&server).await;
    let service = pages.clone().layer(Site::counting(&[FRESH]));
    let endpoint = pages.purge_endpoint(TOKEN).expect("a good token");
    let bearer = format!("Bearer {TOKEN}");
    for query in [
        "url=http%3A%2F%2Fa%2Fx",
        "tag=y&prefix=http://a/x",
        "url=http://a/x",
    ] {
        ask(&service, "/x", &[]).await;
        assert!(ask(&service, "/x", &[]).await.is_hit());
        let (status, _) = purged(&endpoint, post(&format!("/purge?{query}"), &bearer)).await;
        assert_eq!(status, StatusCode::NO_CONTENT, "{query}");
        assert!(!ask(&service, "/x", &[]).await.is_hit(), "{query}");
    }
    ask(&service, "/x", &[]).await;
    for (authorization, status) in [
        ("", StatusCode::UNAUTHORIZED),
        ("Bearer", StatusCode::UNAUTHORIZED),
        ("Bearer ", StatusCode::UNAUTHORIZED),
        ("Bearer 0123456789abcdef-secreT", StatusCode::UNAUTHORIZED),
        ("Bearer 0123456789abcdef-secret2", StatusCode::UNAUTHORIZED),
        ("Basic 0123456789abcdef-secret", StatusCode::UNAUTHORIZED),
        ("bearer 0123456789abcdef-secret", StatusCode::NO_CONTENT),
    ] {
        let answer = purged(&endpoint, post("/purge?tag=other", authorization)).await;
        assert_eq!(answer.0, status, "{authorization}");
    }
    for query in [
        "",
        "tag=",
        "what=1",
        "url=nonsense",
        "url=%ff",
        "prefix=http://a/1/2/3/4",
    ] {
        let (status, why) = purged(&endpoint, post(&format!("/purge?{query}"), &bearer)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}: {why}");
        assert!(!why.contains(TOKEN));
    }
    let mut get = post("/purge?url=http://a/x", &bearer);
    *get.method_mut() = Method::GET;
    assert_eq!(
        purged(&endpoint, get).await.0,
        StatusCode::METHOD_NOT_ALLOWED
    );
    assert!(
        ask(&service, "/x", &[]).await.is_hit(),
        "nothing of this has purged it"
    );
    assert!(pages.purge_endpoint("short").is_err());
    assert!(!format!("{endpoint:?}").contains("secret"));
}
