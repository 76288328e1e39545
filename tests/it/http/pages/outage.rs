//! Without Redis: pages are rendered, and no error of it reaches a client.

use http::{Method, StatusCode};
use tower::{Layer as _, ServiceExt as _};

use axum::body::Body;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use hedgerow::Client;
use hedgerow::http::PageCache;
use http_body_util::BodyExt as _;

use super::site::{Cached, Site, answer, ask, get, pages, send};
use crate::support::gate::Gate;
use crate::support::listener::Listener;
use crate::support::server::{Server, signal};
use crate::support::topology::Shards;
use crate::support::wait::{bounded, until};

const HOUR: std::time::Duration = std::time::Duration::from_secs(3600);

const FRESH: (&str, &str) = ("cache-control", "public, max-age=60");

#[tokio::test]
async fn pages_are_rendered_while_redis_is_out_and_stored_when_it_is_back() {
    let mut server = Server::start_single().await;
    let pages = pages(&server).await;
    let site = Site::counting(&[FRESH]);
    let service = pages.clone().layer(site.clone());
    ask(&service, "/", &[]).await;
    let killed = server.kill().await;
    for _ in 0..20 {
        let page = ask(&service, "/", &[]).await;
        assert_eq!(page.status, StatusCode::OK);
        let status = page.header("cache-status");
        assert!(!status.contains("stored"), "{status}");
    }
    let has = [("if-none-match", "*")];
    let unchanged = ask(&service, "/", &has).await;
    assert_eq!(unchanged.status, StatusCode::NOT_MODIFIED);
    let changed = send(&service, get("/").method(Method::POST)).await;
    assert_eq!(changed.status, StatusCode::OK);
    let head = send(&service, get("/").method(Method::HEAD)).await;
    assert_eq!(head.status, StatusCode::OK);
    server.start_again(killed).await;
    until("pages are stored again", async || {
        ask(&service, "/", &[]).await.is_hit()
    })
    .await;
}

#[tokio::test]
async fn a_herd_without_redis_renders_a_page_once_in_a_process() {
    let client = Client::open("redis://127.0.0.1:1").expect("a good URL");
    let gate = Gate::closed();
    let waits = gate.clone();
    let site = Site::new(move |_| {
        let gate = waits.clone();
        async move {
            let Ok(page) = gate.load("x").await;
            answer(&[FRESH], page)
        }
    });
    let service = PageCache::new(client.cache("pages")).layer(site.clone());
    let requests = (0..50).map(|_| ask(&service, "/", &[]));
    let opened = async {
        gate.begun(1).await;
        // Those that come late would wait for a render of their own.
        (0..50).for_each(|_| gate.open());
    };
    let (answers, ()) = futures::join!(join_all(requests), opened);
    assert!(answers.iter().all(|page| page.text() == "x"));
    assert!(site.renders() < 25, "{} renders", site.renders());
}

/// A layer whose Redis is out, never was there, and is known to be out.
async fn without_redis() -> PageCache {
    let client = Client::open("redis://127.0.0.1:1").expect("a good URL");
    let cache = client.cache("pages");
    breaker_opens(&cache).await;
    // Nobody who waits for the render of another gives up.
    PageCache::new(cache.max_load(HOUR))
}

async fn breaker_opens(cache: &hedgerow::Cache) {
    let asks = cache.clone().outage(hedgerow::Outage::Fail);
    until("the breaker is open", async || {
        let asked = asks.get::<String>("x").fail_fast().await;
        asked.is_err_and(|error| error.kind() == hedgerow::ErrorKind::CircuitOpen)
    })
    .await;
}

fn gated(gate: &Gate, control: &'static str) -> Site {
    let gate = gate.clone();
    Site::new(move |_| {
        let gate = gate.clone();
        async move {
            let Ok(page) = gate.load("x").await;
            answer(&[("cache-control", control)], page)
        }
    })
}

/// Asks for the page 20 times: first once, then by all at once, none of whom is let go before the
/// others have begun.
async fn are_side_by_side(service: &Cached, gate: &Gate) {
    gate.open();
    ask(service, "/", &[]).await;
    let requests = (0..20).map(|_| ask(service, "/", &[]));
    let opened = async {
        gate.begun(21).await;
        (0..20).for_each(|_| gate.open());
    };
    futures::join!(join_all(requests), opened);
    assert_eq!(gate.loads(), 21);
}

#[tokio::test]
async fn without_redis_requests_for_a_page_that_may_not_be_stored_do_not_wait_for_each_other() {
    let gate = Gate::closed();
    let service = without_redis().await.layer(gated(&gate, "private"));
    are_side_by_side(&service, &gate).await;
}

#[tokio::test]
async fn without_redis_those_that_waited_for_a_page_that_may_not_be_stored_render_at_once() {
    let gate = Gate::closed();
    let service = without_redis().await.layer(gated(&gate, "private"));
    let first = ask(&service, "/", &[]);
    let others = async {
        // They come when it has begun, so it is of no use to them.
        gate.begun(1).await;
        let requests = (0..19).map(|_| ask(&service, "/", &[]));
        let opened = async {
            gate.open();
            gate.begun(20).await;
            (0..19).for_each(|_| gate.open());
        };
        futures::join!(join_all(requests), opened);
    };
    futures::join!(first, others);
    assert_eq!(gate.loads(), 20, "each has its own, and none two");
}

#[tokio::test]
async fn requests_for_a_page_that_cannot_be_written_do_not_wait_for_each_other() {
    let server = Server::start().await;
    let cache = server.client().await.cache("pages");
    let cache = cache.codec(hedgerow::Codec::Raw).max_load(HOUR);
    // The failure is not remembered by Redis.
    let cache = cache.error_ttl(std::time::Duration::ZERO);
    let gate = Gate::closed();
    let service = PageCache::new(cache).layer(gated(&gate, "max-age=60"));
    are_side_by_side(&service, &gate).await;
}

#[tokio::test]
async fn a_page_that_cannot_be_written_is_told_of_once_and_not_for_each_request() {
    let server = Server::start().await;
    let cache = server.client().await.cache("pages");
    let pages = PageCache::new(cache.codec(hedgerow::Codec::Raw));
    // So each request tries.
    let pages = pages.marker_ttl(std::time::Duration::ZERO);
    let service = pages.layer(Site::counting(&[FRESH]));
    let told = Listener::start();
    for _ in 0..9 {
        ask(&service, "/", &[]).await;
    }
    let warnings = told.told().matches("a page cannot be stored").count();
    assert_eq!(warnings, 1);
}

#[tokio::test]
async fn a_request_does_not_wait_for_a_place_without_redis_for_long() {
    let client = Client::builder().url("redis://127.0.0.1:1");
    let client = client.loads_without_redis(1).open().expect("a good URL");
    let gate = Gate::closed();
    let waits = gate.clone();
    let site = Site::new(move |request| {
        let gate = waits.clone();
        async move {
            if request.uri().path() == "/slow" {
                let Ok(()) = gate.load(()).await;
            }
            answer(&[FRESH], "x")
        }
    });
    let service = PageCache::new(client.cache("pages").max_load(HOUR)).layer(site);
    let slow = ask(&service, "/slow", &[]);
    let others = async {
        gate.begun(1).await;
        let others = ["/1", "/2", "/2"].map(|it| ask(&service, it, &[]));
        for page in join_all(others).await {
            assert_eq!(page.text(), "x");
        }
        // Nor if others keep coming for the same page.
        let mut first = std::pin::pin!(ask(&service, "/3", &[]));
        let mut more = FuturesUnordered::new();
        let answered = async {
            loop {
                tokio::select! {
                    page = &mut first => return page,
                    _ = more.next(), if !more.is_empty() => {}
                    () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {
                        more.push(ask(&service, "/3", &[]));
                    }
                }
            }
        };
        assert_eq!(bounded("it is answered", answered).await.text(), "x");
        gate.open();
    };
    futures::join!(slow, others);
}

#[tokio::test]
async fn a_page_that_another_process_renders_is_waited_for_whatever_else_finds_redis_out() {
    let server = Server::start().await;
    let gate = Gate::closed();
    let site = gated(&gate, "max-age=60");
    let one = pages(&server).await.layer(site.clone());
    let client = server.client().await;
    let other = PageCache::new(client.cache("pages")).layer(site.clone());
    let late = client.cache("rows").outage(hedgerow::Outage::Bypass);
    let late = late.deadline(std::time::Duration::from_nanos(1));
    let waits = async {
        gate.begun(1).await;
        let mut second = std::pin::pin!(ask(&other, "/", &[]));
        // Longer than a request waits for a place.
        let begun = std::time::Instant::now();
        while begun.elapsed().as_millis() < 1500 {
            tokio::select! {
                page = &mut second => panic!("it has not waited: {page}"),
                () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {}
            }
            let found = late.get::<String>("x").await;
            assert_eq!(found.expect("bypassed"), None);
        }
        assert!(late.bypassed().reads > 0);
        (0..9).for_each(|_| gate.open());
        second.await
    };
    let (first, second) = futures::join!(ask(&one, "/", &[]), waits);
    assert_eq!((first.text(), second.text()), ("x", "x"));
    assert_eq!(site.renders(), 1);
}

/// Shards do not agree on who is out: the tag of a page may be on one, and its page on another.
#[tokio::test]
async fn a_change_waits_for_the_server_of_its_tag_whatever_other_servers_are_out() {
    let shards = Shards::start(2).await;
    let patience = std::time::Duration::from_millis(100);
    let named = ["a", "b"].into_iter().zip(shards.nodes());
    let client = Client::builder().shards(named.map(|(name, node)| (name, node.url(), 1)));
    let client = client.cache_deadline(patience).open().expect("good URLs");
    let cache = client.cache("pages");
    let pages = PageCache::new(cache.clone());
    let service = pages.clone().layer(Site::counting(&[FRESH]));
    shards.nodes()[1].kill().await;
    let asks = cache.clone().outage(hedgerow::Outage::Fail);
    let mut waited = 0;
    for number in 0..40 {
        let (path, tag) = (format!("/{number}"), format!("url a /{number} -"));
        let purge = pages.purge_url(&format!("http://a{path}")).expect("a URL");
        let tag_is_there = purge.await.is_ok();
        // Another key of that name is on the server that is out.
        let other_is_there = asks.contains(&tag).fail_fast().await.is_ok();
        if !tag_is_there || other_is_there {
            continue;
        }
        let pause = ["CLIENT", "PAUSE", "60000", "WRITE"];
        let _: () = shards.nodes()[0].run(&pause).await;
        let begun = std::time::Instant::now();
        let changed = send(&service, get(&path).method(Method::POST)).await;
        assert_eq!(changed.status, StatusCode::OK);
        assert!(begun.elapsed() > patience / 2, "{:?}", begun.elapsed());
        let _: () = shards.nodes()[0].run(&["CLIENT", "UNPAUSE"]).await;
        waited += 1;
        if waited == 3 {
            return;
        }
    }
    panic!("too few tags are where the test needs them: {waited}");
}

#[tokio::test]
async fn a_change_waits_for_no_server_that_is_known_to_be_out_and_its_purge_is_delivered() {
    let server = Server::start_single().await;
    let client = server
        .builder()
        .cache_deadline(std::time::Duration::from_millis(200));
    let client = client.connect().await.expect("it is there");
    let cache = client.cache("pages");
    let pages = PageCache::new(cache.clone());
    let service = pages.clone().layer(Site::counting(&[FRESH]));
    ask(&service, "/", &[]).await;
    let pid = server.pid().await;
    signal(pid, "STOP");
    breaker_opens(&cache).await;
    let mut soonest = std::time::Duration::MAX;
    for _ in 0..20 {
        let begun = std::time::Instant::now();
        let changed = send(&service, get("/").method(Method::POST)).await;
        soonest = soonest.min(begun.elapsed());
        assert_eq!(changed.status, StatusCode::OK);
    }
    let begun = std::time::Instant::now();
    let purge = pages.purge_url("http://a/").expect("a URL");
    let patience = std::time::Duration::from_millis(100);
    purge.deadline(patience).await.expect_err("it is out");
    assert!(soonest < begun.elapsed() / 2, "{soonest:?}");
    assert!(cache.undelivered().waiting > 0);
    signal(pid, "CONT");
    until("the purge is delivered", async || {
        let only = [("cache-control", "only-if-cached")];
        cache.undelivered().waiting == 0 && !ask(&service, "/", &only).await.is_hit()
    })
    .await;
}

/// As many tags as a client keeps to deliver their purges later.
const MOST_OWED: usize = 10_000;

#[tokio::test]
async fn a_purge_that_finds_no_room_to_wait_is_lost_and_counted_and_its_answer_is_given() {
    let mut server = Server::start_single().await;
    let patience = std::time::Duration::from_millis(200);
    let client = server.builder().cache_deadline(patience);
    let client = client.connect().await.expect("it is there");
    let cache = client.cache("pages");
    let pages = PageCache::new(cache.clone());
    let service = pages.clone().layer(Site::counting(&[FRESH]));
    let killed = server.kill().await;
    breaker_opens(&cache).await;
    let told = Listener::start();
    let change = async |number: usize| {
        let changed = get(&format!("/{number}")).method(Method::POST);
        assert_eq!(send(&service, changed).await.status, StatusCode::OK);
    };
    // All that there is room for, but ten.
    let others = (0..MOST_OWED - 10).map(|number| format!("t{number}"));
    let purge = cache.invalidate_tags(others).fail_fast();
    assert!(purge.await.expect_err("it is out").goes_on());
    for number in 0..30 {
        change(number).await;
    }
    // One that waits already needs no further room.
    change(0).await;
    let lost = || (pages.stats().lost_purges, cache.undelivered().refused);
    assert_eq!(lost(), (20, 20));
    assert_eq!(cache.undelivered().waiting, MOST_OWED as u64);
    let warnings = || told.told().matches("a purge is lost").count();
    assert_eq!(warnings(), 1, "not one for each request");
    let kept = ["a purge is owed", "not purged"];
    let kept = kept.map(|it| told.told().matches(it).count());
    assert_eq!(kept.iter().sum::<usize>(), 11);
    // A change whose answer nobody gets.
    let left = get("/30").method(Method::POST);
    assert!(send(&never(&pages), left).now_or_never().is_none());
    assert_eq!(lost(), (20, 21));
    // A caller of a purge gets an error.
    let purge = pages.purge_url("http://a/31").expect("a URL").fail_fast();
    let error = purge.await.expect_err("it is out");
    assert!(!error.goes_on(), "{error}");
    assert!(error.to_string().contains("call again"), "{error}");
    let endpoint = pages.purge_endpoint("0123456789abcdef").expect("a token");
    let purges = http::Request::post("/purge?tag=t0&url=http://a/31");
    let purges = purges.header("authorization", "Bearer 0123456789abcdef");
    let purges = purges.body(Body::empty()).expect("a request");
    let Ok(answered) = bounded("it answers", endpoint.oneshot(purges)).await;
    assert_eq!(answered.status(), StatusCode::SERVICE_UNAVAILABLE);
    let text = answered.into_body().collect().await.expect("whole");
    assert_eq!(text.to_bytes(), "not all is purged; ask again");
    assert_eq!(warnings(), 1);
    server.start_again(killed).await;
    until("all that was kept is delivered", async || {
        cache.undelivered().waiting == 0
    })
    .await;
    assert_eq!(cache.undelivered().delivered, MOST_OWED as u64);
    let before = lost();
    change(31).await;
    assert_eq!(lost(), before);
}

/// A service that never answers.
fn never(pages: &PageCache) -> Cached {
    pages.layer(Site::new(|_| std::future::pending()))
}

/// This does not pass by itself, so no load without Redis stands in for it.
#[tokio::test]
async fn while_redis_refuses_the_client_each_request_is_rendered_by_itself() {
    let server = Server::start_single().await;
    let pages = PageCache::new(server.client().await.cache("pages").max_load(HOUR));
    let gate = Gate::closed();
    let service = pages.clone().layer(gated(&gate, "max-age=60"));
    let _: () = server
        .run(&["ACL", "SETUSER", "default", "-@all", "+acl"])
        .await;
    // More than there are places without Redis.
    let requests = (0..70).map(|_| ask(&service, "/", &[]));
    let opened = async {
        gate.begun(70).await;
        (0..70).for_each(|_| gate.open());
    };
    let (answers, ()) = futures::join!(join_all(requests), opened);
    assert!(answers.iter().all(|it| it.status == StatusCode::OK));
    assert_eq!(pages.stats().beside, 70);
}

#[tokio::test]
async fn a_page_that_redis_does_not_take_is_served() {
    let server = Server::start_with(&["--maxmemory", "1mb", "--maxmemory-policy", "noeviction"]);
    let service = pages(&server.await)
        .await
        .layer(Site::new(|_| async { answer(&[FRESH], vec![1; 900_000]) }));
    for _ in 0..3 {
        let page = ask(&service, "/", &[]).await;
        assert_eq!((page.status, page.body.len()), (StatusCode::OK, 900_000));
    }
}

#[tokio::test]
async fn a_page_that_the_codec_cannot_write_is_served() {
    let server = Server::start().await;
    let cache = server
        .client()
        .await
        .cache("pages")
        .codec(hedgerow::Codec::Raw);
    let service = PageCache::new(cache).layer(Site::counting(&[FRESH]));
    for page in ["1", "2", "3"] {
        let request = get("/").body(Body::empty()).expect("a request");
        let answered = bounded("it answers", service.clone().oneshot(request)).await;
        let Ok(answered) = answered;
        assert_eq!(super::site::read(answered).await.text(), page);
    }
}
