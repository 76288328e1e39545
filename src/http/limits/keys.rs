//! `Setup`: which limits are asked, and for which key.
//!
//! Invariant: a request without a key is decided by [`Keyless`], never forgotten. The service asks
//! here for the key of each request.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use http::request::Parts;

use super::address::NoAddress;
use super::layer_limits::LayerLimits;
use crate::http::warnings::Warnings;

/// What all services of one layer share.
#[derive(Clone)]
pub(super) struct Setup {
    pub(super) limits: LayerLimits,
    key: Arc<KeyOf>,
    pub(super) cost: Option<Arc<CostOf>>,
    pub(super) keyless: Keyless,
    /// Of requests for which the limits could not be asked.
    pub(super) warnings: Arc<WarningsByStatus>,
}

pub(super) type CostOf = dyn Fn(&Parts) -> u32 + Send + Sync;
type KeyOf = dyn Fn(&Parts) -> Result<String, NoKey> + Send + Sync;

/// What is done with a request that has no key. One for which a trusted proxy names no address that
/// can be read is refused in any case, since a client can bring that about.
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
pub(super) enum NoKey {
    Address(NoAddress),
    Key,
}

/// What is to be done with a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The limits are asked for this key and cost.
    Ask(String, u32),
    /// The request goes on.
    Allow,
    /// It is answered so.
    Refuse(StatusCode),
}

impl Setup {
    pub(super) fn new(
        limits: LayerLimits,
        key: impl Fn(&Parts) -> Result<String, NoKey> + Send + Sync + 'static,
    ) -> Self {
        Self {
            limits,
            key: Arc::new(key),
            cost: None,
            keyless: Keyless::default(),
            warnings: Arc::default(),
        }
    }

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
        let keyless = match why {
            // A client can bring this about, and must not choose by it how it is limited.
            NoKey::Address(NoAddress::Unreadable) => Keyless::Refuse,
            NoKey::Address(NoAddress::NoPeer) | NoKey::Key => self.keyless,
        };
        match keyless {
            Keyless::Share => Wanted::Ask(SHARED.to_owned(), cost),
            Keyless::Allow => Wanted::Allow,
            Keyless::Refuse => {
                let status = why.status();
                tracing::debug!(target: "hedgerow::limit", limiter = self.limits.name(), status = status.as_u16(), "no key to limit by");
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

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup")
            .field("limits", &self.limits)
            .field("keyless", &self.keyless)
            .finish_non_exhaustive()
    }
}

/// Warnings by the status that the requests are answered, so that what clients do hides no mistake
/// of the service.
#[derive(Debug, Default)]
pub(super) struct WarningsByStatus {
    of_clients: Warnings,
    of_outages: Warnings,
    others: Warnings,
}

impl WarningsByStatus {
    /// Counts a request that is answered `status`. Returns how many there were since the last
    /// warning, if another is due.
    pub(super) fn one_more(&self, status: StatusCode, now: Instant) -> Option<u64> {
        let warnings = match status {
            StatusCode::BAD_REQUEST => &self.of_clients,
            StatusCode::SERVICE_UNAVAILABLE => &self.of_outages,
            _ => &self.others,
        };
        warnings.one_more(now)
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

    #[test]
    fn what_a_client_makes_unreadable_is_refused_whatever_is_chosen() {
        let client = crate::Client::open("redis://127.0.0.1:1").expect("a good URL");
        let limiter = client.rate_limiter("site", crate::limit::Quota::per_second(1));
        let wanted = |why: NoAddress, keyless| {
            let mut setup = Setup::new(limiter.clone().into(), move |_| Err(NoKey::Address(why)));
            setup.keyless = keyless;
            setup.wanted(&http::Request::new(()).into_parts().0)
        };
        let refused = Wanted::Refuse(StatusCode::BAD_REQUEST);
        for keyless in [Keyless::Refuse, Keyless::Share, Keyless::Allow] {
            assert_eq!(wanted(NoAddress::Unreadable, keyless), refused);
        }
        assert_eq!(wanted(NoAddress::NoPeer, Keyless::Allow), Wanted::Allow);
    }

    #[test]
    fn what_clients_do_hides_no_mistake_of_the_service() {
        let (warnings, now) = (WarningsByStatus::default(), Instant::now());
        for status in [400, 500, 503] {
            let status = StatusCode::from_u16(status).expect("a status");
            let counts = [now, now].map(|at| warnings.one_more(status, at));
            assert_eq!(counts, [Some(1), None], "{status}");
        }
    }
}
