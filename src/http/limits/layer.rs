//! `RateLimitLayer`: its settings.
//!
//! Invariant: it only makes the settings that its services share. A router, or whatever takes tower
//! layers, calls it.

use std::fmt;
use std::sync::Arc;

use http::request::Parts;
use tower_layer::Layer;

use super::address::ClientAddress;
use super::keys::{Keyless, NoKey, Setup};
use super::layer_limits::LayerLimits;
use super::service::RateLimiting;

/// A tower layer that asks a [`RateLimiter`](crate::RateLimiter), or all limits of a group
/// ([`RateLimits`](crate::RateLimits)), before each request.
///
/// - A request that is refused gets `429 Too Many Requests` with `Retry-After` and a line of text.
///   If a group refuses it, it has taken nothing from any limit, and `Retry-After` is the longest
///   wait of the limits that were asked. While Redis is out, `Retry-After` is one second at most.
/// - Each response has `RateLimit-Policy` and `RateLimit`, as the IETF draft
///   `draft-ietf-httpapi-ratelimit-headers-10` has them, with an item for each limit.
/// - If the limits fail, as in an outage with the policy
///   [`Fail`](crate::limit::LimitOutage::Fail), the request gets `503 Service Unavailable`. Choose
///   another policy with [`RateLimiter::outage`](crate::RateLimiter::outage) or
///   [`RateLimits::outage`](crate::RateLimits::outage).
/// - If the key is empty or too long, or the cost never fits, the request gets `400 Bad Request`.
///   If the limits themselves are invalid, each request gets `500 Internal Server Error`: check
///   them with [`RateLimiter::verify`](crate::RateLimiter::verify) or
///   [`RateLimits::verify`](crate::RateLimits::verify) when the service starts.
///
/// Lay it around a [`PageCache`](crate::http::PageCache), not inside: then it counts requests that
/// get a stored page, too. A stored page has none of its fields, which are for one client.
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
/// let layer = RateLimitLayer::by_address(limiter, address.clone());
///
/// // Two limits of each client in one step:
/// let limits = client
///     .rate_limits("site")
///     .limit("second", Quota::per_second(10))
///     .limit("hour", Quota::per_hour(1000))
///     .outage(LimitOutage::Open);
/// let both = RateLimitLayer::by_address(limits, address);
/// # let _ = (layer, both);
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a layer does nothing until a service is wrapped in it"]
pub struct RateLimitLayer {
    setup: Arc<Setup>,
}

impl RateLimitLayer {
    /// Limits each client by its address.
    pub fn by_address(limits: impl Into<LayerLimits>, address: ClientAddress) -> Self {
        Self::new(limits.into(), move |request| {
            address.key(request).map_err(NoKey::Address)
        })
    }

    /// Limits by a key that is made from the request, such as an API key or the user of a session.
    ///
    /// The layer does not know whether the key is true. Authenticate first: otherwise a client can
    /// send the key of another client, and use up the limit of that client.
    pub fn by_key(
        limits: impl Into<LayerLimits>,
        key: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        Self::new(limits.into(), move |request| key(request).ok_or(NoKey::Key))
    }

    fn new(
        limits: LayerLimits,
        key: impl Fn(&Parts) -> Result<String, NoKey> + Send + Sync + 'static,
    ) -> Self {
        Self {
            setup: Arc::new(Setup::new(limits, key)),
        }
    }

    /// Sets what a request costs, of each limit: 1 by default. A request of cost 0 is not asked
    /// about.
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

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimiting<S>;

    fn layer(&self, inner: S) -> RateLimiting<S> {
        RateLimiting::new(inner, self.setup.clone())
    }
}

impl fmt::Debug for RateLimitLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitLayer")
            .field("setup", &self.setup)
            .finish()
    }
}
