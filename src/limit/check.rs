//! `Check`: one request that asks its limiter.
//!
//! Invariant: nothing happens before the first poll. [`RateLimiter::check`] makes it.

use std::future::IntoFuture;

use futures::future::BoxFuture;

use super::decision::Decision;
use super::limiter::RateLimiter;
use super::settings::call_settings;
use crate::error::Result;
use crate::name::Name;
use crate::time::Patience;

/// A request that asks its limiter when it is awaited; made by [`RateLimiter::check`].
///
/// # Errors
/// `InvalidInput` if a name or the quota is invalid, or the cost never fits. `WrongType` if the key
/// holds something else, or another version of hedgerow writes limits in another format. Otherwise
/// the reason why the server did not answer, unless the [policy](RateLimiter::outage) decides.
/// After an indeterminate error the cost was taken once or not at all.
///
/// # Cancel safety
/// A dropped check has taken its cost once or not at all. What it has taken comes back with time.
#[derive(Debug, Clone)]
#[must_use = "nothing is asked until it is awaited"]
pub struct Check {
    limiter: RateLimiter,
    key: Name,
    cost: u32,
    patience: Patience,
}

impl RateLimiter {
    /// Asks whether a request for `key` may go on, and takes 1 of the limit if so. Await the
    /// result, or change its settings first.
    ///
    /// A key that the server has refused is refused again by this process, without a command, until
    /// the time is over that the server gave.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn example(limiter: hedgerow::RateLimiter) -> hedgerow::Result<()> {
    /// let upload = limiter.check("user:42").cost(25).deadline(Duration::from_millis(50)).await?;
    /// println!("{} left", upload.remaining);
    /// # Ok(())
    /// # }
    /// ```
    pub fn check(&self, key: &str) -> Check {
        Check {
            key: self.client().name(key),
            cost: 1,
            patience: self.patience(),
            limiter: self.clone(),
        }
    }
}

impl Check {
    /// Sets how much of the limit the request takes: 1 by default. A cost of 0 takes nothing and is
    /// answered as [`peek`](RateLimiter::peek) does.
    pub fn cost(mut self, cost: u32) -> Self {
        self.cost = cost;
        self
    }

    call_settings!();
}

impl IntoFuture for Check {
    type Output = Result<Decision>;
    type IntoFuture = BoxFuture<'static, Result<Decision>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let decided = self.limiter.decide(&self.key, self.cost, self.patience);
            decided.await.map_err(|error| error.with_key(&self.key))
        })
    }
}
