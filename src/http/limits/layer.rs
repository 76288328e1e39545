//! `RateLimitLayer`: which limiter is asked, and for which key.
//!
//! Invariant: a request without a key is decided by [`Keyless`], never forgotten. The service asks
//! here for the key of each request.

use std::fmt;
use std::sync::Arc;

use http::StatusCode;
use http::request::Parts;
use tower_layer::Layer;

use super::address::{ClientAddress, NoAddress};
use super::service::RateLimiting;
use crate::limit::RateLimiter;

/// A tower layer that asks a [`RateLimiter`] before each request.
///
/// - A request that is refused gets `429 Too Many Requests` with `Retry-After` and a line of text.
/// - Each response has `RateLimit-Policy` and `RateLimit`, as the IETF draft
///   `draft-ietf-httpapi-ratelimit-headers-10` has them.
/// - If the limiter fails, as in an outage with the policy
///   [`Fail`](crate::limit::LimitOutage::Fail), the request gets `503 Service Unavailable`. Choose
///   another policy with [`RateLimiter::outage`].
///
/// The body of the service's responses is made from a `String` for these answers: those of axum and
/// of `http-body-util` can be.
///
/// ```
/// use std::net::SocketAddr;
/// use hedgerow::http::{ClientAddress, RateLimitLayer};
/// use hedgerow::limit::{LimitOutage, Quota};
///
/// # fn example(client: hedgerow::Client) {
/// let limiter = client
///     .rate_limiter("api", Quota::per_second(20))
///     .outage(LimitOutage::Local { share: 0.25 });
/// let address = ClientAddress::peer(|extensions| {
///     extensions.get::<SocketAddr>().map(SocketAddr::ip)
/// });
/// let layer = RateLimitLayer::by_address(limiter, address);
/// # let _ = layer;
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a layer does nothing until a service is wrapped in it"]
pub struct RateLimitLayer {
    pub(super) setup: Arc<Setup>,
}

#[derive(Clone)]
pub(super) struct Setup {
    pub(super) limiter: RateLimiter,
    key: Arc<KeyOf>,
    cost: Option<Arc<dyn Fn(&Parts) -> u32 + Send + Sync>>,
    keyless: Keyless,
}

type KeyOf = dyn Fn(&Parts) -> Result<String, NoKey> + Send + Sync;

/// What is done with a request that has no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Keyless {
    /// It is refused. By address: with `500` if the server does not say who its peer is, and with
    /// `400` if a trusted proxy names no client. By another key: with `400`.
    #[default]
    Refuse,
    /// All such requests are limited together, as one client.
    Share,
    /// It is let through without being asked about.
    Allow,
}

/// Why a request has no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NoKey {
    Address(NoAddress),
    Key,
}

/// What is to be done with a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The limiter is asked for this key and cost.
    Ask(String, u32),
    /// The request goes on.
    Allow,
    /// It is answered so.
    Refuse(StatusCode),
}

impl RateLimitLayer {
    /// Limits each client by its address.
    pub fn by_address(limiter: RateLimiter, address: ClientAddress) -> Self {
        Self::new(limiter, move |request| {
            address.key(request).map_err(NoKey::Address)
        })
    }

    /// Limits by a key that is made from the request, such as an API key or the user of a session.
    ///
    /// The layer does not know whether the key is true: authenticate first, or a client limits
    /// others by their names.
    pub fn by_key(
        limiter: RateLimiter,
        key: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        Self::new(limiter, move |request| key(request).ok_or(NoKey::Key))
    }

    fn new(
        limiter: RateLimiter,
        key: impl Fn(&Parts) -> Result<String, NoKey> + Send + Sync + 'static,
    ) -> Self {
        Self {
            setup: Arc::new(Setup {
                limiter,
                key: Arc::new(key),
                cost: None,
                keyless: Keyless::default(),
            }),
        }
    }

    /// Sets what a request costs: 1 by default. A request of cost 0 is not asked about.
    pub fn cost(mut self, cost: impl Fn(&Parts) -> u32 + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.setup).cost = Some(Arc::new(cost));
        self
    }

    /// Sets what is done with a request that has no key: it is [refused](Keyless::Refuse) by
    /// default.
    pub fn keyless(mut self, keyless: Keyless) -> Self {
        Arc::make_mut(&mut self.setup).keyless = keyless;
        self
    }
}

impl Setup {
    /// Decides what is to be done with a request.
    pub(super) fn wanted(&self, request: &Parts) -> Wanted {
        let cost = self.cost.as_ref().map_or(1, |cost| cost(request));
        if cost == 0 {
            return Wanted::Allow;
        }
        let why = match (self.key)(request) {
            Ok(key) => return Wanted::Ask(key, cost),
            Err(why) => why,
        };
        match self.keyless {
            Keyless::Share => Wanted::Ask(SHARED.to_owned(), cost),
            Keyless::Allow => Wanted::Allow,
            Keyless::Refuse => {
                let status = why.status();
                tracing::debug!(target: "hedgerow::limit", limiter = self.limiter.name(), status = status.as_u16(), "no key to limit by");
                Wanted::Refuse(status)
            }
        }
    }
}

impl NoKey {
    fn status(self) -> StatusCode {
        match self {
            // A mistake in the setup of the server, which the client can do nothing about.
            Self::Address(NoAddress::NoPeer) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Address(NoAddress::Unreadable) | Self::Key => StatusCode::BAD_REQUEST,
        }
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimiting<S>;

    fn layer(&self, inner: S) -> RateLimiting<S> {
        RateLimiting::new(inner, self.setup.clone())
    }
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup")
            .field("limiter", &self.limiter)
            .field("keyless", &self.keyless)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RateLimitLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitLayer")
            .field("setup", &self.setup)
            .finish()
    }
}

/// The key of all requests without one. No address is spelt so.
const SHARED: &str = "(no key)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_there_is_no_key_says_whose_fault_it_is() {
        let status = |why: NoKey| why.status().as_u16();
        assert_eq!(status(NoKey::Address(NoAddress::NoPeer)), 500);
        assert_eq!(status(NoKey::Address(NoAddress::Unreadable)), 400);
        assert_eq!(status(NoKey::Key), 400);
    }
}
