//! `Decision`: the answer of a limit, and how it follows from what the server has said.
//!
//! Invariant: all of it is calculated without I/O and without a clock, so that it can be tested
//! against a model. Checks, peeks and groups make decisions; the process makes them from refusals
//! that it knows, and in an outage.

use std::time::Duration;

use super::quota::Terms;
use crate::error::Result;
use crate::script::Reply;

/// The answer of a limit to one request.
///
/// ```no_run
/// # async fn example(limiter: hedgerow::RateLimiter) -> hedgerow::Result<()> {
/// let decision = limiter.check("user:42").await?;
/// if !decision.allowed {
///     println!("come back in {:?}", decision.retry_after);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "the request may have been refused"]
pub struct Decision {
    /// Whether the request may go on. If not, it has taken nothing.
    pub allowed: bool,
    /// How many requests the limit lets through at once: its burst, or its limit in a window.
    pub limit: u32,
    /// How many more would be let through now. 0 if that is not known, as in an outage.
    pub remaining: u32,
    /// When the same request would be let through, if nobody else takes anything meanwhile; zero if
    /// it was.
    pub retry_after: Duration,
    /// When the limit has all of its capacity again, if nobody takes anything meanwhile.
    pub reset_after: Duration,
    /// Who has decided.
    pub decided_by: DecidedBy,
}

/// Who has made a [`Decision`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DecidedBy {
    /// The server.
    Server,
    /// This process: the server had refused the key, and the time that it gave is not over. No
    /// command was sent.
    KnownRefusal,
    /// The [`LimitOutage`](super::LimitOutage) of the limiter, because Redis was out.
    Outage,
}

/// What the server says of one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    /// The level in ns, or how much of a window is taken.
    taken: u64,
    /// When the cost fits in the window, and when the window is empty, in µs.
    ready: u64,
    reset: u64,
}

/// Whether the server lets a request through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// What the server has said includes the cost.
    Allowed,
    Refused,
    /// Nothing was to be taken.
    Peeked,
}

impl Standing {
    /// Reads the three numbers that a script answers of a limit, from `at` on.
    pub(super) fn read(reply: &Reply, at: usize) -> Result<Self> {
        Ok(Self {
            taken: reply.count(at)?,
            ready: reply.count(at + 1)?,
            reset: reply.count(at + 2)?,
        })
    }

    /// Of a limit that goes by GCRA.
    pub(super) fn level(taken: u64) -> Self {
        Self {
            taken,
            ready: 0,
            reset: 0,
        }
    }

    /// How long `cost`, which was not taken, does not fit yet.
    pub(super) fn wait(&self, terms: &Terms, cost: u32) -> Duration {
        match terms {
            Terms::Gcra { .. } => {
                let over = (self.taken + terms.amount(cost)).saturating_sub(terms.capacity());
                Duration::from_nanos(over)
            }
            Terms::Window { .. } => Duration::from_micros(self.ready),
        }
    }

    /// Returns the decision on a request of `cost`.
    pub(super) fn decision(&self, terms: &Terms, cost: u32, verdict: Verdict) -> Decision {
        let free = terms.capacity().saturating_sub(self.taken) / terms.amount(1);
        let (allowed, retry_after) = match verdict {
            Verdict::Allowed => (true, Duration::ZERO),
            Verdict::Refused => (false, self.wait(terms, cost)),
            Verdict::Peeked => (free > 0, self.wait(terms, 1)),
        };
        Decision {
            allowed,
            limit: terms.most(),
            remaining: u32::try_from(free).unwrap_or(u32::MAX),
            retry_after,
            reset_after: match terms {
                Terms::Gcra { .. } => Duration::from_nanos(self.taken),
                Terms::Window { .. } => Duration::from_micros(self.reset),
            },
            decided_by: DecidedBy::Server,
        }
    }
}

/// When a request may come again that is refused in an outage, for as long as that lasts.
pub(super) const CLOSED_FOR: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::Quota;

    const MILLI: u64 = 1_000_000;

    fn terms(quota: Quota) -> Terms {
        quota.terms().expect("a good quota")
    }

    #[test]
    fn a_refusal_by_gcra_says_when_the_cost_fits_and_what_is_left_for_smaller_ones() {
        let terms = terms(Quota::per_second(10).burst(5));
        let decision = Standing::level(350 * MILLI).decision(&terms, 3, Verdict::Refused);
        assert!(!decision.allowed);
        assert_eq!((decision.limit, decision.remaining), (5, 1));
        assert_eq!(decision.retry_after, Duration::from_millis(150));
        assert_eq!(decision.reset_after, Duration::from_millis(350));
    }

    #[test]
    fn a_peek_is_answered_as_a_request_of_one_would_be() {
        let terms = terms(Quota::per_second(10).burst(5));
        let peeked = |level| Standing::level(level).decision(&terms, 0, Verdict::Peeked);
        assert!(peeked(400 * MILLI).allowed);
        assert_eq!(peeked(400 * MILLI).retry_after, Duration::ZERO);
        let full = peeked(400 * MILLI + 1);
        assert!(!full.allowed);
        assert_eq!(
            (full.remaining, full.retry_after),
            (0, Duration::from_nanos(1))
        );
    }

    #[test]
    fn a_level_above_the_capacity_leaves_nothing() {
        // As reservations, or a larger quota before, have left it.
        let terms = terms(Quota::per_second(10).burst(5));
        let decision = Standing::level(900 * MILLI).decision(&terms, 1, Verdict::Refused);
        assert_eq!(decision.remaining, 0);
        assert_eq!(decision.retry_after, Duration::from_millis(500));
    }

    #[test]
    fn a_window_says_what_the_script_has_found() {
        let terms = terms(Quota::per_second(5).sliding_window());
        let standing = Standing {
            taken: 4,
            ready: 250,
            reset: 900,
        };
        let decision = standing.decision(&terms, 2, Verdict::Refused);
        assert_eq!((decision.limit, decision.remaining), (5, 1));
        assert_eq!(decision.retry_after, Duration::from_micros(250));
        assert_eq!(decision.reset_after, Duration::from_micros(900));
    }
}
