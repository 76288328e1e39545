//! How often anyone may try to log in: by address, so that one machine cannot try many names, and
//! by name, so that many machines cannot try one.
//!
//! One call asks both. A try that one of them refuses takes nothing of the other.

use std::time::Duration;

use hedgerow::Client;
use hedgerow::limit::{LimitOutage, Quota, RateLimits};

use crate::problem::Problem;

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

/// Takes one try, or refuses it. `address` is that of the connection: behind a proxy, take the one
/// that the proxy names, or all its clients share one limit.
pub(crate) async fn take_one(
    limits: &RateLimits,
    address: &str,
    name: &str,
) -> Result<(), Problem> {
    let decided = limits.check([("address", address), ("name", name)]).await?;
    match decided.allowed() {
        true => Ok(()),
        false => Err(Problem::TooOften(decided.retry_after())),
    }
}
