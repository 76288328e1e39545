//! `PageService`: the layer as a service.
//!
//! Invariant: the service that was ready is the one that is called. Tower calls this.

use std::fmt;
use std::mem;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::body::{BoxError, PageBody};
use super::page_cache::PageCache;
use super::serve::answer;

/// A service whose pages are kept in a cache: what [`PageCache`] makes of the service that it is
/// laid around.
#[derive(Clone)]
pub struct PageService<S> {
    inner: S,
    pages: PageCache,
}

impl<S> Layer<S> for PageCache {
    type Service = PageService<S>;

    fn layer(&self, inner: S) -> PageService<S> {
        let pages = self.clone();
        PageService { inner, pages }
    }
}

impl<S, B, R> Service<Request<B>> for PageService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body + Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<PageBody<R>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The clone is not ready, and stays here.
        let clone = self.inner.clone();
        let ready = mem::replace(&mut self.inner, clone);
        answer(self.pages.clone(), ready, request).boxed()
    }
}

impl<S> fmt::Debug for PageService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageService")
            .field("pages", &self.pages)
            .finish_non_exhaustive()
    }
}
