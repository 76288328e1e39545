//! `Client::close`: waits until the client has nothing under way.
//!
//! Invariant: it only looks. Whatever has to be done is done by the tasks whose work it is, also if
//! nobody closes the client. A service that ends calls it.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::cache::work_under_way;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Fate, Result};
#[cfg(feature = "limit")]
use crate::limit::turns_under_way;
use crate::sync::leases_under_way;
use crate::time::FOREVER;

impl Client {
    /// Waits until this client has nothing under way in the background: at most for `deadline`.
    /// Call it when a service ends, after the last call, and before its runtime is dropped.
    ///
    /// These are waited for:
    ///
    /// - locks and permits that are held, or were dropped and not yet released. Otherwise others
    ///   would wait for the end of their leases;
    /// - loads, also those that no call waits for any more, and refreshes behind stale values;
    /// - turns of [limits](crate::Client::rate_limiter) that are reserved, or were dropped and not
    ///   yet given back. Otherwise others would wait behind turns that nobody uses;
    /// - invalidations that could not be delivered: see
    ///   [`Cache::undelivered`](crate::Cache::undelivered).
    ///
    /// All clones of the client are one client. It refuses nothing: a call that is made later is
    /// served, and is waited for by the next `close`. Connections end with the last clone.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn example(client: hedgerow::Client) {
    /// if let Err(left) = client.close(Duration::from_secs(5)).await {
    ///     eprintln!("{left}");
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Timeout` if something is left at the deadline. The text says how much of what.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn close(&self, deadline: Duration) -> Result<()> {
        let until = Instant::now() + deadline.min(FOREVER);
        let settled = async {
            let mut pause = SHORTEST_PAUSE;
            while Left::of(self).is_some() {
                sleep(pause).await;
                pause = LONGEST_PAUSE.min(pause * 2);
            }
        };
        if timeout_at(until, settled).await.is_ok() {
            return Ok(());
        }
        match Left::of(self) {
            Some(left) => Err(left.error()),
            None => Ok(()),
        }
    }
}

/// What a client has under way.
struct Left {
    leases: usize,
    loads: usize,
    turns: usize,
    tags: u64,
}

impl Left {
    fn of(client: &Client) -> Option<Self> {
        let (loads, tags) = work_under_way(client);
        let leases = leases_under_way(client);
        let turns = turns_under_way(client);
        let left = Self {
            leases,
            loads,
            turns,
            tags,
        };
        (leases > 0 || loads > 0 || turns > 0 || tags > 0).then_some(left)
    }

    fn error(&self) -> Error {
        let Self {
            leases,
            loads,
            turns,
            tags,
        } = self;
        let message = format!(
            "the client has work under way: {leases} locks or permits to be released, {loads} \
             loads, {turns} turns of limits to be used or given back, {tags} tags to be \
             invalidated; release what is held, or close it later"
        );
        Error::new(ErrorKind::Timeout, message).with_fate(Fate::NotExecuted)
    }
}

/// Without limits, there are no turns.
#[cfg(not(feature = "limit"))]
fn turns_under_way(_: &Client) -> usize {
    0
}

/// How often it looks. Work of a moment is seen to end at once, and a long wait costs little.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
