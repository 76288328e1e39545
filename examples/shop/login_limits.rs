//! How often anyone may try to log in: by address, so that one machine cannot try many names, and
//! by name, so that many machines cannot try one.
//!
//! One call asks both. A try that one of them refuses takes nothing of the other.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use hedgerow::Client;
use hedgerow::http::NoAddress;
use hedgerow::limit::{LimitOutage, Quota, RateLimits};

use crate::problem::Problem;
use crate::state::Shop;

pub(crate) fn of(client: &Client, per_minute: u32) -> RateLimits {
    client
        .rate_limits("login")
        .limit("address", Quota::per_minute(per_minute))
        .limit(
            "name",
            Quota::new(8, Duration::from_secs(300)).sliding_window(),
        )
        // Guesses of passwords stay limited while Redis is out: of two instances, each lets half of
        // it through.
        .outage(LimitOutage::Local { share: 0.5 })
}

/// The tries of one visitor, by the address that the connection or a trusted proxy names.
pub(crate) struct Tries(String);

impl FromRequestParts<Shop> for Tries {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, shop: &Shop) -> Result<Self, Problem> {
        match shop.address.key(parts) {
            Ok(address) => Ok(Self(address)),
            Err(NoAddress::Unreadable) => Err(Problem::BadForm(
                "The proxy between us does not say who you are.",
            )),
            Err(error) => Err(Problem::Fault(error.into())),
        }
    }
}

impl Tries {
    /// Takes one try for `name`, or refuses it.
    pub(crate) async fn take_one(&self, shop: &Shop, name: &str) -> Result<(), Problem> {
        let keys = [("address", &*self.0), ("name", name)];
        let decided = shop.login_limits.check(keys).await?;
        match decided.allowed() {
            true => Ok(()),
            false => Err(Problem::TooOften(decided.retry_after())),
        }
    }
}
