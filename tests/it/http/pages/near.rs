//! Pages in a near cache.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use futures::task::{ArcWake, waker};
use hedgerow::cache::NearCache;
use hedgerow::http::PageCache;
use tower::{Layer as _, ServiceExt as _};

use super::site::{Site, ask, get, pages};
use crate::support::server::Server;
use crate::support::wait::until;

#[tokio::test]
async fn a_page_that_was_read_is_served_without_a_command_until_it_is_purged() {
    let server = Server::start().await;
    for control in ["max-age=600", "max-age=600, stale-while-revalidate=60"] {
        let writer = pages(&server).await;
        let hour = Duration::from_secs(3600);
        let cache = server.client().await.cache("pages");
        let cache = cache.near(NearCache::new().max_staleness(hour));
        let lines = [("cache-control", control)];
        let service = PageCache::new(cache.clone()).layer(Site::counting(&lines));
        ask(&service, "/", &[]).await;
        until("the page is near", async || {
            let before = cache.stats().near_hits;
            assert_eq!(ask(&service, "/", &[]).await.text(), "1");
            cache.stats().near_hits > before
        })
        .await;
        writer
            .purge_url("http://a/")
            .expect("a URL")
            .await
            .expect("purged");
        until("the purge is seen", async || {
            ask(&service, "/", &[]).await.text() == "2"
        })
        .await;
        writer.purge_all().await.expect("purged");
    }
}

/// Counts how often a task is woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl ArcWake for Woken {
    fn wake_by_ref(woken: &Arc<Self>) {
        woken.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// The call of the cache sends back the render that it has no use for. That must not make the task
/// run once more.
#[tokio::test]
async fn a_near_hit_is_answered_at_once_and_wakes_nobody() {
    let server = Server::start().await;
    let cache = server.client().await.cache("pages");
    let cache = cache.near(NearCache::new().max_staleness(Duration::from_secs(3600)));
    let site = Site::counting(&[("cache-control", "max-age=600")]);
    let service = PageCache::new(cache.clone()).layer(site);
    until("the page is near", async || {
        let before = cache.stats().near_hits;
        ask(&service, "/", &[]).await;
        cache.stats().near_hits > before
    })
    .await;
    let request = get("/").body(Body::empty()).expect("a request");
    let woken = Arc::new(Woken::default());
    let waker = waker(woken.clone());
    let mut answered = pin!(service.oneshot(request));
    let polled = answered.as_mut().poll(&mut Context::from_waker(&waker));
    let Poll::Ready(Ok(page)) = polled else {
        panic!("it waits for something");
    };
    let status = page.headers()["cache-status"].to_str().expect("text");
    assert!(status.contains("; hit"), "{status}");
    assert_eq!(woken.0.load(Ordering::SeqCst), 0);
}
