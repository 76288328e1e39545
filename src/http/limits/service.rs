//! `RateLimiting`: a service behind a limit, or several.
//!
//! Invariant: the wrapped service is called only after all limits have let the request through, and
//! only the clone of it that was ready. [`RateLimitLayer`](super::RateLimitLayer) makes it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::future::BoxFuture;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, StatusCode};
use tower_service::Service;

use super::fields::{describe, retry_after, wait_of};
use super::keys::{Setup, Wanted};
use super::layer_limits::{Answer, UNKNOWN};
use crate::ErrorKind;

/// A service behind a [`RateLimiter`](crate::RateLimiter), or a group of limits; made by
/// [`RateLimitLayer`](super::RateLimitLayer).
#[derive(Debug, Clone)]
pub struct RateLimiting<S> {
    inner: S,
    setup: Arc<Setup>,
}

/// The response of a [`RateLimiting`] service.
#[must_use = "nothing happens until it is polled"]
pub struct RateLimited<B, E>(BoxFuture<'static, Result<Response<B>, E>>);

impl<S> RateLimiting<S> {
    pub(super) fn new(inner: S, setup: Arc<Setup>) -> Self {
        Self { inner, setup }
    }
}

impl<S, B, R> Service<Request<B>> for RateLimiting<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: 'static,
    B: Send + 'static,
    R: From<String> + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = RateLimited<R, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The one that was made ready; the clone is not.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let setup = self.setup.clone();
        RateLimited(Box::pin(async move {
            let (parts, body) = request.into_parts();
            let (key, cost) = match setup.wanted(&parts) {
                Wanted::Ask(key, cost) => (key, cost),
                Wanted::Allow => return inner.call(Request::from_parts(parts, body)).await,
                Wanted::Refuse(status) => {
                    return Ok(answer(
                        status,
                        "the request has no client to limit\n".into(),
                    ));
                }
            };
            let answered = match setup.limits.ask(&key, cost).await {
                Ok(answered) => answered,
                // No time helps.
                Err(error) if error.kind() == ErrorKind::InvalidInput => {
                    let status = match setup.limits.verify() {
                        // The key is empty or too long, or the cost never fits.
                        Ok(()) => StatusCode::BAD_REQUEST,
                        // No request can be limited: a mistake of the service.
                        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
                    };
                    if let Some(count) = setup.warnings.one_more(status, Instant::now()) {
                        tracing::warn!(target: "hedgerow::limit", limiter = setup.limits.name(), status = status.as_u16(), count, %error, "requests cannot be limited");
                    }
                    return Ok(answer(status, "the request cannot be limited\n".into()));
                }
                Err(error) => {
                    let status = StatusCode::SERVICE_UNAVAILABLE;
                    if let Some(count) = setup.warnings.one_more(status, Instant::now()) {
                        tracing::warn!(target: "hedgerow::limit", limiter = setup.limits.name(), count, %error, "requests are answered 503");
                    }
                    let mut unavailable = answer(
                        status,
                        "the service cannot check its limits now; try again\n".into(),
                    );
                    retry_after(unavailable.headers_mut(), UNKNOWN);
                    return Ok(unavailable);
                }
            };
            let mut response = match answered.allowed {
                true => inner.call(Request::from_parts(parts, body)).await?,
                false => refusal(&answered),
            };
            for policy in &answered.policies {
                describe(response.headers_mut(), policy);
            }
            Ok(response)
        }))
    }
}

fn refusal<R: From<String>>(answered: &Answer) -> Response<R> {
    let wait = wait_of(answered.retry_after);
    let text = format!("too many requests; try again in {wait} s\n");
    let mut response = answer(StatusCode::TOO_MANY_REQUESTS, text);
    retry_after(response.headers_mut(), answered.retry_after);
    response
}

fn answer<R: From<String>>(status: StatusCode, text: String) -> Response<R> {
    let mut response = Response::new(R::from(text));
    *response.status_mut() = status;
    let fields = response.headers_mut();
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    fields.insert(CONTENT_TYPE, plain);
    // It is the answer to this client, at this moment.
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

impl<B, E> Future for RateLimited<B, E> {
    type Output = Result<Response<B>, E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context)
    }
}

impl<B, E> fmt::Debug for RateLimited<B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimited").finish_non_exhaustive()
    }
}
