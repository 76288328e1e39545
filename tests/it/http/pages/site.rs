//! A service that answers as a test says, and counts how often it was asked.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use hedgerow::http::{PageBody, PageCache, PageService};
use http::request::Builder;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use tower::{Layer as _, Service, ServiceExt as _};

use crate::support::server::Server;
use crate::support::wait::{bounded, until};

/// The service.
#[derive(Clone)]
pub struct Site {
    renders: Arc<AtomicUsize>,
    handler: Arc<Handler>,
}

type Handler = dyn Fn(Request<Body>) -> BoxFuture<'static, Response<Body>> + Send + Sync;

/// The service with the layer around it.
pub type Cached = PageService<Site>;

/// An answer, read to its end.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Site {
    pub fn new<F>(handler: impl Fn(Request<Body>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        Self {
            renders: Arc::default(),
            handler: Arc::new(move |request| handler(request).boxed()),
        }
    }

    /// Answers each request with these headers, and a number that rises.
    pub fn counting(lines: &[(&'static str, &'static str)]) -> Self {
        let (lines, count) = (lines.to_vec(), AtomicUsize::new(0));
        Self::new(move |_| {
            let page = count.fetch_add(1, Ordering::SeqCst) + 1;
            let answer = answer(&lines, page.to_string());
            async { answer }
        })
    }

    pub fn renders(&self) -> usize {
        self.renders.load(Ordering::SeqCst)
    }
}

impl Service<Request<Body>> for Site {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.renders.fetch_add(1, Ordering::SeqCst);
        (self.handler)(request).map(Ok).boxed()
    }
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    /// The values of a header, joined.
    pub fn header(&self, name: &str) -> String {
        let values = self.headers.get_all(name).iter();
        let values: Vec<&str> = values.map(|it| it.to_str().expect("text")).collect();
        values.join(", ")
    }

    /// Whether the page came out of the cache.
    pub fn is_hit(&self) -> bool {
        self.header("cache-status").contains("; hit")
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {:?}", self.status, self.headers, self.body)
    }
}

/// A response with these headers.
pub fn answer(lines: &[(&str, &str)], body: impl Into<Body>) -> Response<Body> {
    let mut builder = Response::builder();
    for (name, value) in lines {
        builder = builder.header(*name, *value);
    }
    builder.body(body.into()).expect("a response")
}

/// A layer on a client of its own, as another process has.
pub async fn pages(server: &Server) -> PageCache {
    PageCache::new(server.client().await.cache("pages"))
}

/// The same, around `site`.
pub async fn cached(server: &Server, site: &Site) -> Cached {
    pages(server).await.layer(site.clone())
}

/// A request for `target` at the host `a`.
pub fn get(target: &str) -> Builder {
    Request::builder().uri(target).header("host", "a")
}

/// Sends a request without a body.
pub async fn send(service: &Cached, request: Builder) -> Answer {
    read(respond(service, request.body(Body::empty()).expect("a request")).await).await
}

/// Sends a request, and returns before the body is read.
pub async fn respond(service: &Cached, request: Request<Body>) -> Response<PageBody<Body>> {
    let answered = service.clone().oneshot(request);
    bounded("the service answers", answered)
        .await
        .expect("it cannot fail")
}

pub async fn read(response: Response<PageBody<Body>>) -> Answer {
    let (parts, body) = response.into_parts();
    let read = bounded("the body is read", body.collect()).await;
    let read = read.expect("the body has no error");
    let trailers = read.trailers().cloned();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: read.to_bytes(),
        trailers,
    }
}

/// Sends a `GET` of `target` with these headers.
pub async fn ask(service: &Cached, target: &str, lines: &[(&str, &str)]) -> Answer {
    let request = lines
        .iter()
        .fold(get(target), |it, (name, value)| it.header(*name, *value));
    send(service, request).await
}

/// Waits until no load is under way: each that has begun was given up, and its lease says so.
pub async fn given_up(server: &Server) {
    until("the load is given up", async || {
        for lease in server.keys("hr:l:*").await {
            let is_over: bool = server.run(&["HEXISTS", &lease, "failed"]).await;
            if !is_over {
                return false;
            }
        }
        true
    })
    .await;
}
