//! The page that the benchmarks of pages ask for: its bytes, the bare handler that returns them,
//! and the layer around that handler.
//!
//! Invariant: all who serve the page serve the same bytes under the same path.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::Request;
use axum::http::request::Parts;
use axum::routing::get;
use hedgerow::cache::NearCache;
use hedgerow::http::{PageCache, PageStats};
use hedgerow::{Cache, Client};

use crate::site::Site;
use crate::slices::Result;

/// What a browser sends, without cookies.
pub(crate) const REQUEST: &str = "GET /product/42 HTTP/1.1\r\n\
    Host: shop.example\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate, br\r\n\r\n";

/// How many bytes the page has: 10 KB.
pub(crate) const LENGTH: usize = 10_000;

pub(crate) fn bytes() -> &'static Bytes {
    &PAGE
}

/// The same request as [`REQUEST`], for services that are called in this process. It is a copy:
/// nothing is parsed here.
pub(crate) fn request() -> Request<Body> {
    Request::from_parts(HEAD.clone(), Body::empty())
}

fn parsed() -> Parts {
    let mut lines = REQUEST.lines();
    let path = lines.next().and_then(|line| line.split(' ').nth(1));
    let mut request = Request::get(path.expect("a request line"));
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        request = request.header(name, value);
    }
    request.body(()).expect("a request").into_parts().0
}

/// The handler with the layer around it. Its page is stored.
#[derive(Clone)]
pub(crate) struct Kept {
    pub(crate) app: Router,
    pages: PageCache,
}

impl Kept {
    fn new(cache: Cache) -> Self {
        let pages = PageCache::new(cache).hosts(["shop.example"]);
        let app = handler().layer(pages.clone());
        Self { app, pages }
    }

    /// Runs slices of a benchmark. Checks that each answer of the layer was a stored page.
    pub(crate) async fn hits<T>(&self, slices: impl Future<Output = T>) -> T {
        let before = self.pages.stats();
        let measured = slices.await;
        let after = self.pages.stats();
        assert!(after.hits > before.hits, "nothing was asked for");
        let others = |it: PageStats| [it.stale, it.collapsed, it.misses, it.passed, it.beside];
        assert_eq!(others(after), others(before), "each was a stored page");
        measured
    }
}

/// The bare handler.
pub(crate) fn handler() -> Router {
    let headers = [
        ("content-type", "text/html; charset=utf-8"),
        ("cache-control", "public, s-maxage=3600"),
    ];
    let page = async move || {
        RENDERS.fetch_add(1, Ordering::Relaxed);
        (headers, PAGE.clone())
    };
    Router::new().route("/product/42", get(page))
}

/// How often the handler has been called.
pub(crate) fn renders() -> u64 {
    RENDERS.load(Ordering::Relaxed)
}

/// The handler with its page in Redis, in the cache called `name`.
pub(crate) async fn in_redis(client: &Client, name: &str) -> Result<Kept> {
    let kept = Kept::new(client.cache(name));
    let site = Site::serve(kept.app.clone()).await?;
    loop {
        let before = renders();
        site.ask().await?;
        if renders() == before {
            return Ok(kept);
        }
    }
}

/// The handler with its page in Redis, in the cache called `name`, and in a near cache.
pub(crate) async fn near(client: &Client, name: &str) -> Result<Kept> {
    let cache = client.cache(name).near(NearCache::new());
    let kept = Kept::new(cache.clone());
    let site = Site::serve(kept.app.clone()).await?;
    let before = cache.stats().near_hits;
    while cache.stats().near_hits == before {
        site.ask().await?;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(kept)
}

static RENDERS: AtomicU64 = AtomicU64::new(0);

static HEAD: LazyLock<Parts> = LazyLock::new(parsed);

static PAGE: LazyLock<Bytes> = LazyLock::new(|| {
    let mut page = String::from("<!doctype html>\n<title>Product 42</title>\n<ul>\n");
    for number in 0.. {
        let line = format!("<li><a href=\"/product/{number}\">Product {number}</a></li>\n");
        if page.len() + line.len() > LENGTH {
            break;
        }
        page.push_str(&line);
    }
    page.extend(std::iter::repeat_n('\n', LENGTH - page.len()));
    page.into()
});
