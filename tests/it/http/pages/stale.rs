//! Stale pages: when one is served, and who renders anew meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use http::StatusCode;
use tower::Layer as _;

use super::site::{Site, answer, ask, cached, pages};
use crate::support::aging::aged;
use crate::support::gate::Gate;
use crate::support::server::Server;
use crate::support::wait::until;

const KEY: &str = "hr:v:{pages:page http a / -}";
const MINUTE: Duration = Duration::from_secs(60);

/// Renders "old" at once, and then "new" when it is let go. With `fails`, a failure.
fn site(control: &'static str, gate: &Gate, fails: &Arc<AtomicBool>) -> Site {
    let (gate, fails) = (gate.clone(), fails.clone());
    let is_first = Arc::new(AtomicBool::new(true));
    Site::new(move |_| {
        let (gate, fails, is_first) = (gate.clone(), fails.clone(), is_first.clone());
        async move {
            let page = match is_first.swap(false, Ordering::SeqCst) {
                true => "old",
                false => {
                    let Ok(page) = gate.load("new").await;
                    page
                }
            };
            let mut page = answer(&[("cache-control", control)], page);
            if fails.load(Ordering::SeqCst) {
                *page.status_mut() = StatusCode::BAD_GATEWAY;
            }
            page
        }
    })
}

#[tokio::test]
async fn a_stale_page_is_served_while_one_render_replaces_it() {
    let server = Server::start().await;
    let (gate, fails) = (Gate::closed(), Arc::default());
    let site = site("max-age=60, stale-while-revalidate=600", &gate, &fails);
    let services = [cached(&server, &site).await, cached(&server, &site).await];
    ask(&services[0], "/", &[]).await;
    aged(&server, KEY, MINUTE + MINUTE / 2).await;
    let requests = (0..50).map(|at| ask(&services[at % 2], "/", &[]));
    for page in join_all(requests).await {
        assert_eq!(page.text(), "old");
        assert!(page.is_hit());
    }
    gate.begun(1).await;
    gate.open();
    until("the new page is there", async || {
        ask(&services[1], "/", &[]).await.text() == "new"
    })
    .await;
    assert_eq!(site.renders(), 2);
}

#[tokio::test]
async fn a_page_that_is_never_fresh_is_served_stale_and_says_so() {
    let server = Server::start().await;
    let (gate, fails) = (Gate::closed(), Arc::default());
    let site = site("max-age=0, stale-while-revalidate=600", &gate, &fails);
    let pages = pages(&server).await;
    let service = pages.layer(site.clone());
    ask(&service, "/", &[]).await;
    until("it is stale", async || {
        let page = ask(&service, "/", &[]).await;
        assert_eq!(page.text(), "old");
        page.header("cache-status").contains("ttl=-")
    })
    .await;
    assert!(pages.stats().stale > 0);
}

#[tokio::test]
async fn a_client_that_says_how_old_a_page_may_be_gets_no_stale_one() {
    let server = Server::start().await;
    let (gate, fails) = (Gate::closed(), Arc::default());
    let site = site("max-age=0, stale-while-revalidate=600", &gate, &fails);
    let service = cached(&server, &site).await;
    ask(&service, "/", &[]).await;
    (0..9).for_each(|_| gate.open());
    until("it is stale", async || {
        ask(&service, "/", &[("cache-control", "max-age=60")])
            .await
            .text()
            == "new"
    })
    .await;
}

#[tokio::test]
async fn a_stale_page_is_served_when_the_service_fails_and_only_then() {
    let server = Server::start().await;
    let (gate, fails) = (Gate::closed(), Arc::<AtomicBool>::default());
    let site = site("max-age=60, stale-if-error=600", &gate, &fails);
    let services = [cached(&server, &site).await, cached(&server, &site).await];
    ask(&services[0], "/", &[]).await;
    aged(&server, KEY, MINUTE + MINUTE / 2).await;
    (0..9).for_each(|_| gate.open());
    fails.store(true, Ordering::SeqCst);
    for service in &services {
        let page = ask(service, "/", &[]).await;
        assert_eq!((page.status, page.text()), (StatusCode::OK, "old"));
    }
    assert_eq!(
        site.renders(),
        2,
        "the second instance knows of the failure"
    );
    fails.store(false, Ordering::SeqCst);
    until("the new page is there", async || {
        ask(&services[1], "/", &[]).await.text() == "new"
    })
    .await;
}

#[tokio::test]
async fn the_request_that_renders_is_given_the_stale_page_too_if_its_render_fails() {
    let server = Server::start().await;
    let (gate, fails) = (Gate::closed(), Arc::<AtomicBool>::default());
    let site = site("max-age=0, stale-if-error=600", &gate, &fails);
    let service = cached(&server, &site).await;
    ask(&service, "/", &[]).await;
    (0..9).for_each(|_| gate.open());
    fails.store(true, Ordering::SeqCst);
    // The failure is remembered for a second, and then the next request renders.
    until("three renders have failed", async || {
        let page = ask(&service, "/", &[]).await;
        assert_eq!((page.status, page.text()), (StatusCode::OK, "old"));
        site.renders() >= 4
    })
    .await;
}

#[tokio::test]
async fn the_windows_of_the_layer_are_for_pages_that_say_nothing() {
    let server = Server::start().await;
    for (control, status) in [
        ("max-age=60", StatusCode::OK),
        ("max-age=60, stale-if-error=0", StatusCode::BAD_GATEWAY),
        ("max-age=60, must-revalidate", StatusCode::BAD_GATEWAY),
    ] {
        let (gate, fails) = (Gate::closed(), Arc::<AtomicBool>::default());
        let site = site(control, &gate, &fails);
        let pages = pages(&server).await.stale_if_error(MINUTE * 10);
        pages.purge_all().await.expect("purged");
        let service = pages.layer(site);
        ask(&service, "/", &[]).await;
        if status == StatusCode::OK {
            aged(&server, KEY, MINUTE + MINUTE / 2).await;
        } else {
            let _: i64 = server.run(&["DEL", KEY]).await;
        }
        gate.open();
        fails.store(true, Ordering::SeqCst);
        assert_eq!(ask(&service, "/", &[]).await.status, status, "{control}");
    }
}

#[tokio::test]
async fn a_page_without_windows_is_kept_no_longer_than_it_is_fresh() {
    let server = Server::start().await;
    for (control, least, most) in [
        ("max-age=60", 50_000, 60_000),
        ("max-age=60, stale-while-revalidate=30", 80_000, 90_000),
        (
            "max-age=60, stale-while-revalidate=30, stale-if-error=90",
            140_000,
            150_000,
        ),
    ] {
        let site = Site::counting(&[("cache-control", control)]);
        let pages = pages(&server).await;
        let service = pages.clone().layer(site);
        ask(&service, "/", &[]).await;
        let lives = server.lives(KEY).await;
        assert_eq!(lives.len(), 1);
        assert!((least..=most).contains(&lives[0].1), "{control}: {lives:?}");
        // Not for as long as a call may serve a page: a tag must not live for ever.
        for (tag, lives) in server.lives("hr:t:*").await {
            assert!((0..86_400_000).contains(&lives), "{tag} {lives}");
        }
        pages.purge_all().await.expect("purged");
    }
}
