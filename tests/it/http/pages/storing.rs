//! Pages that may not be stored, and bodies that are streamed.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use bytes::Bytes;
use futures::channel::mpsc;
use futures::{SinkExt as _, StreamExt as _, stream};
use hedgerow::http::CacheTags;
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tower::Layer as _;

use super::site::{Site, answer, ask, cached, get, given_up, pages, read, respond};
use crate::support::server::Server;
use crate::support::wait::{bounded, until};

const FRESH: (&str, &str) = ("cache-control", "public, max-age=60");

#[tokio::test]
async fn a_response_for_one_client_reaches_it_untouched_and_no_other() {
    let server = Server::start().await;
    for line in [
        ("set-cookie", "sid=1"),
        ("cache-control", "no-store"),
        ("cache-control", "PRIVATE"),
        ("cache-control", "no-cache"),
        ("vary", "x, *"),
        ("content-range", "bytes 0-1/2"),
    ] {
        let site = Site::counting(&[FRESH, line]);
        let service = cached(&server, &site).await;
        let target = format!("/{}", line.1.replace(' ', ""));
        for page in ["1", "2", "3"] {
            let own = ask(&service, &target, &[]).await;
            assert_eq!(own.text(), page, "{line:?}");
            assert!(own.header(line.0).contains(line.1), "{line:?}");
            assert_eq!(own.header("etag"), "", "{line:?}");
        }
        assert_eq!(site.renders(), 3);
    }
    let stored: Vec<String> = server.keys("hr:v:*").await;
    for key in stored {
        let length: usize = server.run(&["STRLEN", &key]).await;
        assert!(length < 500, "{key} is a marker");
    }
}

#[tokio::test]
async fn the_first_request_of_a_page_that_may_not_be_stored_is_not_rendered_twice() {
    let server = Server::start().await;
    let site = Site::counting(&[("cache-control", "private")]);
    let service = cached(&server, &site).await;
    assert_eq!(ask(&service, "/", &[]).await.text(), "1");
    assert_eq!(site.renders(), 1);
}

#[tokio::test]
async fn trailers_are_passed_on_and_their_page_is_not_stored() {
    let server = Server::start().await;
    let site = Site::new(|_| async {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", HeaderValue::from_static("1"));
        let frames = [
            Ok::<_, Infallible>(Frame::data(Bytes::from("body"))),
            Ok(Frame::trailers(trailers)),
        ];
        answer(&[FRESH], Body::new(StreamBody::new(stream::iter(frames))))
    });
    let service = cached(&server, &site).await;
    for _ in 0..2 {
        let page = ask(&service, "/", &[]).await;
        assert_eq!(page.text(), "body");
        assert_eq!(page.trailers.expect("they are there")["x-checksum"], "1");
    }
    assert_eq!(site.renders(), 2);
}

#[tokio::test]
async fn a_body_above_the_limit_is_streamed_and_never_held() {
    let server = Server::start().await;
    let made = Arc::new(AtomicUsize::new(0));
    let counted = made.clone();
    let site = Site::new(move |_| {
        let made = counted.clone();
        let chunks = stream::iter(0..100).map(move |_| {
            made.fetch_add(1, Ordering::SeqCst);
            Ok::<_, Infallible>(Bytes::from(vec![1; 1024]))
        });
        async { answer(&[FRESH], Body::from_stream(chunks)) }
    });
    let pages = pages(&server).await.body_limit(10 * 1024);
    let service = pages.layer(site.clone());
    for _ in 0..2 {
        made.store(0, Ordering::SeqCst);
        let request = get("/").body(Body::empty()).expect("a request");
        let response = respond(&service, request).await;
        assert!(
            made.load(Ordering::SeqCst) <= 11,
            "the rest is not read before its client"
        );
        assert_eq!(read(response).await.body.len(), 100 * 1024);
    }
    assert_eq!(site.renders(), 2);
}

#[tokio::test]
async fn a_body_that_is_just_within_the_limit_is_stored() {
    let server = Server::start().await;
    let site = Site::new(|_| async { answer(&[FRESH], vec![1; 1024]) });
    let pages = pages(&server).await;
    let larger = pages.clone().body_limit(1024).layer(site.clone());
    ask(&larger, "/", &[]).await;
    assert!(ask(&larger, "/", &[]).await.is_hit());
    let smaller = pages.body_limit(1023).layer(site.clone());
    ask(&smaller, "/other", &[]).await;
    assert!(!ask(&smaller, "/other", &[]).await.is_hit());
}

/// A page whose body is sent by the test.
fn streaming() -> (
    Site,
    mpsc::UnboundedReceiver<mpsc::Sender<io::Result<Bytes>>>,
) {
    streaming_with("max-age=60")
}

fn streaming_with(
    control: &'static str,
) -> (
    Site,
    mpsc::UnboundedReceiver<mpsc::Sender<io::Result<Bytes>>>,
) {
    let (opened, streams) = mpsc::unbounded();
    let site = Site::new(move |_| {
        let (parts, body) = mpsc::channel(0);
        opened.unbounded_send(parts).expect("the test listens");
        async move { answer(&[("cache-control", control)], Body::from_stream(body)) }
    });
    (site, streams)
}

#[tokio::test]
async fn a_body_that_comes_slowly_reaches_its_client_as_it_comes_and_is_stored() {
    let server = Server::start().await;
    let (site, mut streams) = streaming();
    let service = cached(&server, &site).await;
    let request = get("/").body(Body::empty()).expect("a request");
    let mut response = respond(&service, request).await;
    let mut parts = streams.next().await.expect("rendered");
    for part in ["one", "two"] {
        parts.send(Ok(Bytes::from(part))).await.expect("read");
        let frame = bounded("the part comes", response.body_mut().frame()).await;
        let data = frame.expect("a frame").expect("no error").into_data();
        assert_eq!(data.expect("data"), part);
    }
    drop(parts);
    assert!(
        bounded("the end comes", response.body_mut().frame())
            .await
            .is_none()
    );
    let page = ask(&service, "/", &[]).await;
    assert_eq!((page.text(), site.renders()), ("onetwo", 1));
}

#[tokio::test]
async fn a_page_is_stored_for_what_is_left_of_its_freshness_when_its_body_has_ended() {
    let server = Server::start().await;
    for (control, longest) in [
        ("max-age=60", Some(59_000)),
        ("max-age=60, stale-while-revalidate=60", Some(119_000)),
        ("max-age=1, stale-while-revalidate=60", Some(60_000)),
        ("max-age=1", None),
        ("max-age=0, stale-while-revalidate=1", None),
    ] {
        let (site, mut streams) = streaming_with(control);
        let pages = pages(&server).await;
        let service = pages.clone().layer(site);
        let request = get("/").body(Body::empty()).expect("a request");
        let response = respond(&service, request).await;
        let mut parts = streams.next().await.expect("rendered");
        parts.send(Ok(Bytes::from("one"))).await.expect("read");
        let begun = std::time::Instant::now();
        until("a second has passed", async || {
            begun.elapsed().as_millis() > 1100
        })
        .await;
        drop(parts);
        assert_eq!(read(response).await.text(), "one");
        given_up(&server).await;
        let lives: Vec<i64> = server
            .lives("hr:v:*")
            .await
            .into_iter()
            .map(|it| it.1)
            .collect();
        match longest {
            None => assert!(lives.is_empty(), "{control}: {lives:?}"),
            Some(longest) => {
                let [lives] = lives[..] else {
                    panic!("{control}: {lives:?}")
                };
                assert!(
                    (longest - 30_000..longest).contains(&lives),
                    "{control}: {lives}"
                );
            }
        }
        for (key, _) in server.lives("hr:v:*").await {
            let _: i64 = server.run(&["DEL", &key]).await;
        }
    }
}

#[tokio::test]
async fn a_body_that_is_shorter_than_it_says_is_not_stored() {
    let server = Server::start().await;
    let site = Site::new(|_| async { answer(&[FRESH, ("content-length", "7")], "short") });
    let service = cached(&server, &site).await;
    for _ in 0..2 {
        assert!(!ask(&service, "/", &[]).await.is_hit());
    }
    assert_eq!(server.keys("hr:v:*").await.len(), 1, "a marker");
    assert_eq!(site.renders(), 2);
}

#[tokio::test]
async fn a_page_without_a_body_has_no_length_in_its_head() {
    let server = Server::start().await;
    let site = Site::new(|_| async {
        let mut page = answer(&[FRESH], Body::empty());
        *page.status_mut() = http::StatusCode::NO_CONTENT;
        page
    });
    let pages = pages(&server).await;
    let service = pages.layer(site);
    // 204 may be stored if the response says how long it is fresh.
    ask(&service, "/", &[]).await;
    let head = super::site::send(&service, get("/").method(http::Method::HEAD)).await;
    assert_eq!(head.status, http::StatusCode::NO_CONTENT);
    assert_eq!(head.header("content-length"), "");
}

#[tokio::test]
async fn a_page_whose_client_leaves_in_mid_body_is_rendered_and_stored() {
    let server = Server::start().await;
    let (site, mut streams) = streaming();
    let service = cached(&server, &site).await;
    let request = get("/").body(Body::empty()).expect("a request");
    let response = respond(&service, request).await;
    let mut parts = streams.next().await.expect("rendered");
    parts.send(Ok(Bytes::from("one"))).await.expect("read");
    drop(response);
    parts.send(Ok(Bytes::from("two"))).await.expect("read");
    drop(parts);
    let page = ask(&service, "/", &[]).await;
    assert_eq!((page.text(), site.renders()), ("onetwo", 1));
}

#[tokio::test]
async fn a_body_that_fails_is_not_stored_and_its_client_hears_of_it() {
    let server = Server::start().await;
    let (site, mut streams) = streaming();
    let service = cached(&server, &site).await;
    let request = get("/").body(Body::empty()).expect("a request");
    let mut response = respond(&service, request).await;
    let mut parts = streams.next().await.expect("rendered");
    parts.send(Ok(Bytes::from("one"))).await.expect("read");
    parts
        .send(Err(io::Error::other("on purpose")))
        .await
        .expect("read");
    let first = response.body_mut().frame().await.expect("a frame");
    assert_eq!(first.expect("no error").into_data().expect("data"), "one");
    let second = bounded("the error comes", response.body_mut().frame()).await;
    let error = second.expect("a frame").expect_err("an error");
    assert!(error.to_string().contains("on purpose"), "{error}");
    let stored: Vec<String> = server.keys("hr:v:*").await;
    assert_eq!(stored.len(), 0);
}

#[tokio::test]
async fn a_body_whose_load_is_given_up_still_reaches_its_client() {
    let server = Server::start().await;
    let (site, mut streams) = streaming();
    let cache = server.client().await.cache("pages");
    let cache = cache.max_load(std::time::Duration::from_millis(50));
    let service = hedgerow::http::PageCache::new(cache).layer(site);
    let request = get("/").body(Body::empty()).expect("a request");
    let mut response = respond(&service, request).await;
    let mut parts = streams.next().await.expect("rendered");
    parts.send(Ok(Bytes::from("one"))).await.expect("read");
    let first = response.body_mut().frame().await.expect("a frame");
    assert_eq!(first.expect("no error").into_data().expect("data"), "one");
    given_up(&server).await;
    // Nobody but the client reads it now.
    let sent = async move { parts.send(Ok(Bytes::from("two"))).await };
    let (sent, page) = futures::join!(sent, read(response));
    sent.expect("read");
    assert_eq!(page.text(), "two");
}

#[tokio::test]
async fn tags_of_handlers_stay_in_the_service() {
    let server = Server::start().await;
    let site = Site::new(|request| async move {
        let control = match request.uri().path() {
            "/stored" => "max-age=60",
            _ => "private",
        };
        let mut page = answer(
            &[("cache-control", control), ("cache-tag", "one, two")],
            "x",
        );
        page.extensions_mut().insert(CacheTags::new(["three"]));
        page
    });
    let service = cached(&server, &site).await;
    for target in ["/stored", "/stored", "/private", "/private"] {
        let page = ask(&service, target, &[]).await;
        assert_eq!(page.header("cache-tag"), "", "{target}");
    }
    let ranged = ask(&service, "/stored", &[("range", "bytes=0-1")]).await;
    assert_eq!(ranged.header("cache-tag"), "");
}

#[tokio::test]
async fn a_page_with_more_tags_than_it_has_room_for_is_served_and_not_stored() {
    let server = Server::start().await;
    let site = Site::new(|_| async {
        let mut page = answer(&[FRESH], "x");
        let tags = CacheTags::new((0..300).map(|it| it.to_string()));
        page.extensions_mut().insert(tags);
        page
    });
    let service = cached(&server, &site).await;
    for _ in 0..2 {
        assert_eq!(ask(&service, "/", &[]).await.text(), "x");
    }
    assert_eq!(site.renders(), 2);
}

#[tokio::test]
async fn a_page_with_a_tag_that_cannot_be_is_served_and_not_stored() {
    let server = Server::start().await;
    let site = Site::new(|_| async {
        let mut page = answer(&[FRESH], "x");
        page.extensions_mut()
            .insert(CacheTags::new(["x".repeat(5000)]));
        page
    });
    let service = cached(&server, &site).await;
    for _ in 0..3 {
        assert_eq!(ask(&service, "/", &[]).await.text(), "x");
    }
    let stored: Vec<String> = server.keys("hr:v:*").await;
    assert_eq!(stored.len(), 0);
}
