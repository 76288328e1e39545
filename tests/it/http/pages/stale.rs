//! Stale pages: when one is served, and who renders anew meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use hedgerow::cache::Verdict;
use http::StatusCode;
use tower::Layer as _;

use super::site::{Answer, Cached, Site, answer, ask, cached, pages};
use crate::support::gate::Gate;
use crate::support::server::Server;
use crate::support::wait::until;

const KEY: &str = "hr:v:{pages:page http a / -}";
const MINUTE: Duration = Duration::from_secs(60);

/// How the service is, after its first page.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Health {
    Well,
    Fails,
    Panics,
}

/// Renders "old" at once, and then "new" when it is let go, or fails.
fn site(control: &'static str, gate: &Gate, health: &Arc<Mutex<Health>>) -> Site {
    let (gate, health) = (gate.clone(), health.clone());
    let is_first = Arc::new(AtomicBool::new(true));
    Site::new(move |_| {
        let (gate, health, is_first) = (gate.clone(), health.clone(), is_first.clone());
        async move {
            let page = match is_first.swap(false, Ordering::SeqCst) {
                true => "old",
                false => {
                    let Ok(page) = gate.load("new").await;
                    page
                }
            };
            let health = *health.lock().expect("no panic holds it");
            assert_ne!(health, Health::Panics, "on purpose");
            let mut page = answer(&[("cache-control", control)], page);
            if health == Health::Fails {
                *page.status_mut() = StatusCode::BAD_GATEWAY;
            }
            page
        }
    })
}

fn well() -> Arc<Mutex<Health>> {
    Arc::new(Mutex::new(Health::Well))
}

/// Waits until the page is not fresh any more.
async fn stale(service: &Cached) {
    until("the page is stale", async || {
        let only = [("cache-control", "only-if-cached")];
        !ask(service, "/", &only).await.is_hit()
    })
    .await;
}

fn all(gate: &Gate) {
    (0..99).for_each(|_| gate.open());
}

#[tokio::test]
async fn a_stale_page_is_served_while_one_render_replaces_it() {
    let server = Server::start().await;
    let gate = Gate::closed();
    let site = site("max-age=1, stale-while-revalidate=600", &gate, &well());
    let services = [cached(&server, &site).await, cached(&server, &site).await];
    ask(&services[0], "/", &[]).await;
    stale(&services[0]).await;
    let requests = (0..50).map(|at| ask(&services[at % 2], "/", &[]));
    for page in join_all(requests).await {
        assert_eq!(page.text(), "old");
        assert!(page.is_hit());
        assert_eq!(fresh_for(&page), 0);
    }
    gate.begun(1).await;
    all(&gate);
    until("the new page is there", async || {
        ask(&services[1], "/", &[]).await.text() == "new"
    })
    .await;
    assert_eq!(site.renders(), 2);
}

/// The seconds for which `Cache-Status` says that the page is fresh yet.
fn fresh_for(page: &Answer) -> i64 {
    let status = page.header("cache-status");
    let (_, ttl) = status.split_once("ttl=").expect("it says so");
    let ttl: i64 = ttl
        .split(';')
        .next()
        .expect("a number")
        .parse()
        .expect("a number");
    ttl.max(0)
}

#[tokio::test]
async fn a_page_that_is_never_fresh_is_served_stale_and_says_so() {
    let server = Server::start().await;
    let gate = Gate::closed();
    let site = site("max-age=0, stale-while-revalidate=600", &gate, &well());
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
    let gate = Gate::closed();
    let site = site("max-age=1, stale-while-revalidate=600", &gate, &well());
    let service = cached(&server, &site).await;
    ask(&service, "/", &[]).await;
    stale(&service).await;
    all(&gate);
    let page = ask(&service, "/", &[("cache-control", "max-age=60")]).await;
    assert_eq!(page.text(), "new");
}

#[tokio::test]
async fn a_stale_page_is_served_when_the_service_fails_and_only_then() {
    let server = Server::start().await;
    for (ill, page) in [
        (Health::Well, "new"),
        (Health::Fails, "old"),
        (Health::Panics, "old"),
    ] {
        let (gate, health) = (Gate::closed(), well());
        let site = site("max-age=1, stale-if-error=600", &gate, &health);
        let pages = pages(&server).await;
        let services = [
            pages.clone().layer(site.clone()),
            cached(&server, &site).await,
        ];
        ask(&services[0], "/", &[]).await;
        stale(&services[0]).await;
        all(&gate);
        *health.lock().expect("no panic") = ill;
        for service in &services {
            let answer = ask(service, "/", &[]).await;
            assert_eq!((answer.status, answer.text()), (StatusCode::OK, page));
        }
        assert_eq!(site.renders(), 2, "the second instance knows of it");
        *health.lock().expect("no panic") = Health::Well;
        until("the new page is there", async || {
            ask(&services[1], "/", &[]).await.text() == "new"
        })
        .await;
        pages.purge_all().await.expect("purged");
    }
}

#[tokio::test]
async fn an_instance_that_has_not_met_a_page_serves_it_too_when_the_service_fails() {
    let server = Server::start().await;
    for ill in [Health::Fails, Health::Panics] {
        let (gate, health) = (Gate::closed(), well());
        let site = site("max-age=1, stale-if-error=600", &gate, &health);
        let pages = pages(&server).await;
        let first = pages.clone().layer(site.clone());
        ask(&first, "/", &[]).await;
        stale(&first).await;
        all(&gate);
        *health.lock().expect("no panic") = ill;
        let other = cached(&server, &site).await;
        let answer = ask(&other, "/", &[]).await;
        assert_eq!((answer.status, answer.text()), (StatusCode::OK, "old"));
        assert_eq!(site.renders(), 2, "its own render has failed");
        pages.purge_all().await.expect("purged");
    }
}

#[tokio::test]
async fn an_instance_that_has_not_met_a_page_does_not_serve_it_beyond_its_window() {
    let server = Server::start().await;
    let (gate, health) = (Gate::closed(), well());
    let site = site("max-age=600, stale-if-error=1", &gate, &health);
    let pages = pages(&server).await;
    let first = pages.clone().layer(site.clone());
    ask(&first, "/", &[]).await;
    // Redis keeps the page for the rest of its TTL, however long ago it was purged softly.
    let purge = pages.purge_url("http://a/").expect("a URL");
    purge.soft().await.expect("purged");
    let cache = server.client().await.cache("pages");
    until("the window has ended", async || {
        let explained = cache.explain("page http a / -").await.expect("an answer");
        let Verdict::Stale(age) = explained.verdict else {
            panic!("it is not stale: {explained:?}");
        };
        age.as_millis() > 1000
    })
    .await;
    all(&gate);
    *health.lock().expect("no panic") = Health::Fails;
    let other = cached(&server, &site).await;
    let answer = ask(&other, "/", &[]).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert_eq!(site.renders(), 2, "its own render has failed");
}

#[tokio::test]
async fn the_request_that_renders_is_given_the_stale_page_too_if_its_render_fails() {
    let server = Server::start().await;
    let (gate, health) = (Gate::closed(), well());
    let site = site("max-age=0, stale-if-error=600", &gate, &health);
    let service = cached(&server, &site).await;
    ask(&service, "/", &[]).await;
    all(&gate);
    *health.lock().expect("no panic") = Health::Fails;
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
        ("max-age=1", StatusCode::OK),
        // It is kept, and yet not for failures.
        (
            "max-age=1, stale-while-revalidate=1, stale-if-error=0",
            StatusCode::BAD_GATEWAY,
        ),
        ("max-age=1, must-revalidate", StatusCode::BAD_GATEWAY),
    ] {
        let (gate, health) = (Gate::closed(), well());
        let site = site(control, &gate, &health);
        let pages = pages(&server).await.stale_if_error(MINUTE * 10);
        let service = pages.clone().layer(site);
        ask(&service, "/", &[]).await;
        stale(&service).await;
        all(&gate);
        *health.lock().expect("no panic") = Health::Fails;
        // The window of the second case ends in a second.
        until("the windows have ended", async || {
            let answer = ask(&service, "/", &[]).await.status;
            assert!(
                answer == status || answer == StatusCode::OK,
                "{answer} {control}"
            );
            answer == status
        })
        .await;
        pages.purge_all().await.expect("purged");
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
