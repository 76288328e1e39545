//! Without Redis: pages are rendered, and no error of it reaches a client.

use http::{Method, StatusCode};
use tower::{Layer as _, ServiceExt as _};

use axum::body::Body;
use futures::future::join_all;
use hedgerow::Client;
use hedgerow::http::PageCache;

use super::site::{Site, answer, ask, get, pages, send};
use crate::support::gate::Gate;
use crate::support::server::Server;
use crate::support::wait::{bounded, until};

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
    }
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
