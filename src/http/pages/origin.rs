//! `Origin`: the services that a layer can be laid around, as the bounds of one trait.
//!
//! Invariant: every service that tower can call from another task is one, and nothing else is. All
//! that serves and renders asks for it.

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::body::BoxError;

/// A service that makes pages of requests with bodies `B`, and answers with bodies `R`.
pub(super) trait Origin<B, R>:
    Service<Request<B>, Response = Response<R>, Future: Send + 'static, Error: Send + 'static>
    + Send
    + 'static
{
}

impl<S, B, R> Origin<B, R> for S where
    S: Service<Request<B>, Response = Response<R>, Future: Send + 'static, Error: Send + 'static>
        + Send
        + 'static
{
}

/// The body of a response of such a service.
pub(super) trait OriginBody:
    Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static
{
}

impl<R> OriginBody for R where R: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static {}
