//! Many requests at once, and renders that end otherwise than with a page.

use std::convert::Infallible;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use futures::FutureExt as _;
use futures::future::join_all;
use hedgerow::http::PageCache;
use http::{Request, Response, StatusCode};
use tokio::sync::Semaphore;
use tower::{Layer as _, ServiceExt as _, service_fn};

use super::site::{Site, answer, ask, cached, get, given_up, pages};
use crate::support::gate::Gate;
use crate::support::server::Server;
use crate::support::wait::{bounded, until};

const FRESH: (&str, &str) = ("cache-control", "public, max-age=60");

/// A service whose renders each wait until they are let go.
fn gated(gate: &Gate, lines: &'static [(&'static str, &'static str)]) -> Site {
    let gate = gate.clone();
    Site::new(move |request| {
        let gate = gate.clone();
        async move {
            let variant = format!("{:?}", request.headers().get("x"));
            let Ok(variant) = gate.load(variant).await;
            answer(lines, variant)
        }
    })
}

#[tokio::test]
async fn two_hundred_requests_of_two_instances_render_a_page_once() {
    let server = Server::start().await;
    let gate = Gate::closed();
    let site = gated(&gate, &[FRESH]);
    let one = pages(&server).await;
    let services = [
        one.clone().layer(site.clone()),
        cached(&server, &site).await,
    ];
    let requests = (0..200).map(|at| ask(&services[at % 2], "/", &[]));
    let opened = async {
        gate.begun(1).await;
        gate.open();
    };
    let (answers, ()) = futures::join!(join_all(requests), opened);
    assert_eq!(site.renders(), 1);
    for page in &answers {
        assert_eq!((page.status, page.text()), (StatusCode::OK, "None"));
    }
    let stats = one.stats();
    assert_eq!(
        stats.misses + stats.collapsed + stats.hits,
        100,
        "{stats:?}"
    );
    assert!(stats.collapsed >= 90, "{stats:?}");
    let told = answers
        .iter()
        .filter(|it| it.header("cache-status").ends_with("; collapsed"));
    assert!(told.count() >= 100);
}

#[tokio::test]
async fn a_herd_for_many_variants_renders_each_of_them_once() {
    let server = Server::start().await;
    let gate = Gate::closed();
    let site = gated(&gate, &[FRESH, ("vary", "x")]);
    let services = [cached(&server, &site).await, cached(&server, &site).await];
    (0..5).for_each(|_| gate.open());
    let variants = ["0", "1", "2", "3", "4"];
    let requests = (0..100).map(|at| {
        let line = [("x", variants[at % 5])];
        let service = &services[(at / 5) % 2];
        async move { (line, ask(service, "/", &line).await) }
    });
    let answers = bounded("five renders are enough", join_all(requests)).await;
    for (line, page) in answers {
        assert!(page.text().contains(line[0].1), "{line:?} {page}");
    }
    assert_eq!(site.renders(), 5);
}

#[tokio::test]
async fn requests_for_a_page_that_may_not_be_stored_do_not_wait_for_each_other() {
    let server = Server::start().await;
    let gate = Gate::closed();
    let site = gated(&gate, &[("cache-control", "private")]);
    let service = cached(&server, &site).await;
    gate.open();
    ask(&service, "/", &[]).await;
    // None of them is let go until all have begun.
    let requests = (0..20).map(|_| ask(&service, "/", &[]));
    let opened = async {
        gate.begun(21).await;
        (0..20).for_each(|_| gate.open());
    };
    futures::join!(join_all(requests), opened);
    assert_eq!(site.renders(), 21);
}

#[tokio::test]
async fn those_that_waited_for_a_page_that_may_not_be_stored_render_at_once() {
    let server = Server::start().await;
    let gate = Gate::closed();
    let site = gated(&gate, &[("cache-control", "private")]);
    let services = [cached(&server, &site).await, cached(&server, &site).await];
    let requests = (0..20).map(|at| ask(&services[at % 2], "/", &[]));
    let opened = async {
        gate.begun(1).await;
        gate.open();
        gate.begun(20).await;
        (0..19).for_each(|_| gate.open());
    };
    let (answers, ()) = futures::join!(join_all(requests), opened);
    assert!(answers.iter().all(|page| page.text() == "None"));
    assert_eq!(site.renders(), 20, "each has its own, and none two");
}

#[tokio::test]
async fn a_page_that_may_be_stored_by_now_is_stored_again() {
    let server = Server::start().await;
    let count = AtomicUsize::new(0);
    let site = Site::new(move |_| {
        let control = match count.fetch_add(1, Ordering::SeqCst) {
            0 => "private",
            _ => "public, max-age=60",
        };
        async move { answer(&[("cache-control", control)], "x") }
    });
    let marked = pages(&server).await.marker_ttl(Duration::from_millis(1));
    let service = marked.layer(site);
    ask(&service, "/", &[]).await;
    until("the page is stored", async || {
        ask(&service, "/", &[]).await.is_hit()
    })
    .await;
}

#[tokio::test]
async fn a_render_goes_on_when_its_client_leaves() {
    let server = Server::start().await;
    let gate = Gate::closed();
    let site = gated(&gate, &[FRESH]);
    let service = cached(&server, &site).await;
    let asking = tokio::spawn({
        let service = service.clone();
        async move { ask(&service, "/", &[]).await }
    });
    gate.begun(1).await;
    asking.abort();
    asking.await.expect_err("it is gone");
    gate.open();
    ask(&service, "/", &[]).await;
    assert_eq!(site.renders(), 1);
}

#[tokio::test]
async fn the_services_own_error_reaches_its_client_and_nothing_is_stored() {
    let server = Server::start().await;
    let pages = pages(&server).await;
    let renders = Arc::new(AtomicUsize::new(0));
    let service = pages.layer(service_fn({
        let renders = renders.clone();
        move |_: Request<Body>| {
            renders.fetch_add(1, Ordering::SeqCst);
            async { Err::<Response<Body>, _>(io::Error::new(io::ErrorKind::NotFound, "mine")) }
        }
    }));
    let ask = || async {
        let request = get("/").body(Body::empty()).expect("a request");
        let answered = bounded("it answers", service.clone().oneshot(request)).await;
        answered.expect_err("the error").kind()
    };
    for _ in 0..3 {
        assert_eq!(ask().await, io::ErrorKind::NotFound);
    }
    let errors = join_all((0..20).map(|_| ask())).await;
    assert!(errors.iter().all(|it| *it == io::ErrorKind::NotFound));
    assert_eq!(renders.load(Ordering::SeqCst), 23);
    let stored: Vec<String> = server.keys("hr:v:*").await;
    assert_eq!(stored.len(), 0);
}

#[tokio::test]
async fn a_panic_of_the_service_is_one_for_its_client_and_poisons_nothing() {
    let server = Server::start().await;
    let count = AtomicUsize::new(0);
    let site = Site::new(move |_| {
        let is_first = count.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            assert!(!is_first, "on purpose");
            answer(&[FRESH], "x")
        }
    });
    let service = cached(&server, &site).await;
    let panicked = AssertUnwindSafe(ask(&service, "/", &[]))
        .catch_unwind()
        .await;
    let panicked = panicked.expect_err("it panics");
    let said = panicked.downcast_ref::<&str>().expect("its own words");
    assert!(said.contains("on purpose"), "{said}");
    assert_eq!(ask(&service, "/", &[]).await.text(), "x");
}

#[tokio::test]
async fn a_failure_is_answered_with_and_not_stored() {
    let server = Server::start().await;
    let count = AtomicUsize::new(0);
    let site = Site::new(move |_| {
        let page = count.fetch_add(1, Ordering::SeqCst).to_string();
        async {
            let mut failure = answer(&[FRESH, ("retry-after", "7")], page);
            *failure.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            failure
        }
    });
    let pages = pages(&server).await;
    let service = pages.layer(site);
    for page in ["0", "1", "2"] {
        let failure = ask(&service, "/", &[]).await;
        assert_eq!((failure.status.as_u16(), failure.text()), (503, page));
        assert_eq!(failure.header("retry-after"), "7");
    }
    assert_eq!(
        pages.stats().failed,
        1,
        "the others were not asked for the cache"
    );
}

#[tokio::test]
async fn a_render_that_takes_too_long_for_the_cache_still_reaches_its_client() {
    let server = Server::start().await;
    let gate = Gate::closed();
    let site = gated(&gate, &[FRESH]);
    let cache = server.client().await.cache("pages");
    let pages = PageCache::new(cache.max_load(Duration::from_millis(50)));
    let service = pages.layer(site.clone());
    let opened = async {
        gate.begun(1).await;
        given_up(&server).await;
        gate.open();
    };
    let (page, ()) = futures::join!(ask(&service, "/", &[]), opened);
    assert_eq!((page.text(), site.renders()), ("None", 1));
    assert_eq!(pages.stats().misses, 1);
}

#[tokio::test]
async fn a_page_that_asks_for_itself_is_rendered() {
    let server = Server::start().await;
    let inner = Arc::new(std::sync::OnceLock::<super::site::Cached>::new());
    let own = inner.clone();
    let depth = Arc::new(AtomicUsize::new(0));
    let site = Site::new(move |_| {
        let (own, depth) = (own.clone(), depth.clone());
        async move {
            let page = match depth.fetch_add(1, Ordering::SeqCst) {
                0 => {
                    let service = own.get().expect("it is set");
                    ask(service, "/", &[]).boxed().await.text().to_owned() + "+outer"
                }
                _ => "inner".to_owned(),
            };
            answer(&[FRESH], page)
        }
    });
    let service = cached(&server, &site).await;
    let _ = inner.set(service.clone());
    let page = bounded("it does not wait for itself", ask(&service, "/", &[])).await;
    assert_eq!(page.text(), "inner+outer");
}

/// A service that admits so many calls at a time, and is ready only when it has room.
#[tokio::test]
async fn the_service_that_was_ready_is_the_one_that_is_called() {
    let server = Server::start().await;
    let pages = pages(&server).await;
    let room = Arc::new(Semaphore::new(1));
    let site = OneReady {
        room: room.clone(),
        ready: None,
    };
    let service = pages.layer(site);
    for target in ["/a", "/a", "/b"] {
        let request = get(target).body(Body::empty()).expect("a request");
        let answered = bounded("it answers", service.clone().oneshot(request)).await;
        let Ok(answered) = answered;
        assert_eq!(answered.status(), StatusCode::OK);
    }
    until("all room is given back", async || {
        room.available_permits() == 1
    })
    .await;
}

/// A service that must be ready before it is called.
struct OneReady {
    room: Arc<Semaphore>,
    ready: Option<tokio::sync::OwnedSemaphorePermit>,
}

impl Clone for OneReady {
    fn clone(&self) -> Self {
        Self {
            room: self.room.clone(),
            ready: None,
        }
    }
}

impl tower::Service<Request<Body>> for OneReady {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = futures::future::Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        if self.ready.is_none() {
            let permit = self.room.clone().try_acquire_owned();
            self.ready = Some(permit.expect("it is free: calls come one after the other"));
        }
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        let _permit = self.ready.take().expect("it was ready");
        futures::future::ready(Ok(answer(&[FRESH], "x")))
    }
}
