//! `LayerLimits`: what a layer asks before each request, one limiter or a group.
//!
//! Invariant: each request asks with one call, so a request that is refused takes nothing of any
//! limit. The service asks here, and tells the answer to the client.

use std::time::Duration;

use crate::Result;
use crate::limit::{DecidedBy, Decision, Quota, RateLimiter, RateLimits};

/// What a [`RateLimitLayer`](super::RateLimitLayer) asks before each request: a [`RateLimiter`], or
/// all limits of a group, [`RateLimits`]. Both can be given to the layer as they are.
///
/// Each client is a [part](RateLimits::part) of a group, so clients are spread over the servers of
/// a cluster. To ask, or to give back, what the layer counts for `key`, use
/// `limits.part(key).check_all(key)` and its relatives. A group that is a part already stays that
/// part, and all of its clients are on one server.
#[derive(Debug, Clone)]
pub struct LayerLimits(Asked);

#[derive(Debug, Clone)]
enum Asked {
    One(RateLimiter),
    All(RateLimits),
}

/// What the limits say of one request.
pub(super) struct Answer {
    pub(super) allowed: bool,
    /// The longest, if several refuse the request. In an outage, at most [`UNKNOWN`].
    pub(super) retry_after: Duration,
    pub(super) policies: Vec<Policy>,
}

/// What one limit says, and what it is.
pub(super) struct Policy {
    /// The group of the limit. Other groups may have limits of the same name.
    pub(super) group: Option<String>,
    pub(super) name: String,
    pub(super) quota: Quota,
    pub(super) decision: Decision,
}

impl From<RateLimiter> for LayerLimits {
    fn from(limiter: RateLimiter) -> Self {
        Self(Asked::One(limiter))
    }
}

impl From<RateLimits> for LayerLimits {
    fn from(limits: RateLimits) -> Self {
        Self(Asked::All(limits))
    }
}

impl LayerLimits {
    /// The name of the limiter, or of the group.
    pub(super) fn name(&self) -> &str {
        match &self.0 {
            Asked::One(limiter) => limiter.name(),
            Asked::All(limits) => limits.name(),
        }
    }

    /// Checks what does not depend on the request.
    pub(super) fn verify(&self) -> Result<()> {
        match &self.0 {
            Asked::One(limiter) => limiter.verify(),
            Asked::All(limits) => limits.verify(),
        }
    }

    /// Asks all limits for `key`.
    pub(super) async fn ask(&self, key: &str, cost: u32) -> Result<Answer> {
        let limits = match &self.0 {
            Asked::One(limiter) => {
                let decision = limiter.check(key).cost(cost).await?;
                let policy = Policy {
                    group: None,
                    name: limiter.name().to_owned(),
                    quota: limiter.quota(),
                    decision,
                };
                return Ok(Answer {
                    allowed: decision.allowed,
                    retry_after: shown(decision.retry_after, &decision),
                    policies: vec![policy],
                });
            }
            Asked::All(limits) if limits.is_part() => limits.clone(),
            Asked::All(limits) => limits.part(key),
        };
        let decisions = limits.check_all(key).cost(cost).await?;
        // In the order of the limits: all of them are asked.
        let policies = limits.limits().zip(decisions.iter());
        let policies = policies.map(|((limit, quota), (_, decision))| Policy {
            group: Some(limits.name().to_owned()),
            name: limit.to_owned(),
            quota,
            decision: *decision,
        });
        // All are decided without Redis, or none.
        let waits = decisions.iter();
        let waits = waits.map(|(_, decision)| shown(decisions.retry_after(), decision));
        Ok(Answer {
            allowed: decisions.allowed(),
            retry_after: waits.min().unwrap_or_default(),
            policies: policies.collect(),
        })
    }
}

/// The wait of `Retry-After` for `decision`. A limit of this process alone may let the request
/// through in hours only, and Redis may be back in seconds.
fn shown(wait: Duration, decision: &Decision) -> Duration {
    match decision.decided_by {
        DecidedBy::Outage => wait.min(UNKNOWN),
        _ => wait,
    }
}

/// How long a client should wait if nothing is known.
pub(super) const UNKNOWN: Duration = Duration::from_secs(1);
