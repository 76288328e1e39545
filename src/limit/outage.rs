//! `LimitOutage`: what a limiter does while Redis is out.
//!
//! Invariant: only an outage is decided by the policy. What is wrong with the input, with the key
//! or with the rights of the user is an error under every policy: it does not pass by itself.
//! Checks and waits ask here.

use std::time::Duration;

use super::decision::{CLOSED_FOR, DecidedBy, Decision};
use super::local::LocalLimit;
use super::quota::Terms;
use crate::error::{Error, ErrorKind, Result};

/// What a limiter decides when Redis is out, is overloaded or does not answer in time.
///
/// While the circuit breaker is open, each of these decisions is made at once and without a
/// command. One call at a time is let through to find out whether the server is back. It takes up
/// to its [`deadline`](super::Check::deadline).
///
/// Not an outage: input that is invalid, a key that holds something else, wrong credentials or
/// certificates, a missing right, and an error that the crate does not know (`InvalidInput`,
/// `WrongType`, `Unauthenticated`, `Tls`, `Forbidden`, `Server`). They are errors under every
/// policy.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum LimitOutage {
    /// The call fails, and the caller decides.
    #[default]
    Fail,
    /// Every request is let through. For limits that share out what there is plenty of.
    Open,
    /// Every request is refused, with a `retry_after` of one second. For limits that protect:
    /// guesses of a password, or something that costs money.
    Closed,
    /// A limiter in this process decides, by GCRA, from its share of the limit.
    ///
    /// While Redis answers, what it lets through is counted here, too. So the process does not
    /// begin an outage with a full burst for everybody.
    ///
    /// 65,536 keys have a share each, and keep it until they are as good as new. Further keys
    /// divide 1,024 shares among them. In the same way, a client has 1,024 local limiters by their
    /// names. Those of further names count together if they have the same quota, for up to 64
    /// quotas, and those of groups apart from others. Beyond that, requests are refused as under
    /// `Closed`.
    ///
    /// A request that costs more than the share is refused as under `Closed`.
    ///
    /// `retry_after` is when this process lets the request through on its own. That may be hours
    /// away, although Redis may be back in seconds. So the layer of services tells its clients to
    /// come back after a second at most.
    Local {
        /// The part of the limit that this process lets through on its own, above 0 and at most 1.
        /// With ten processes behind one balancer, 0.1 keeps the sum at the limit. It is at least
        /// one request at once.
        share: f64,
    },
}

impl LimitOutage {
    /// What the policy says of a request of this cost for `key`: `local`, if it has a limiter of
    /// this process.
    pub(super) fn decision(
        self,
        local: Option<&LocalLimit>,
        key: &str,
        (terms, cost): (&Terms, u32),
    ) -> Decision {
        match local {
            Some(local) => local.decide(key, cost),
            None => Decision::without_redis(self, terms),
        }
    }

    /// Checks the share of a local limiter for `terms`.
    pub(super) fn verify(self, terms: &Terms) -> Result<()> {
        match self {
            Self::Local { share } => LocalLimit::verify(terms, share),
            _ => Ok(()),
        }
    }

    /// Whether the policy, and not the caller, decides after `error`.
    pub(super) fn decides(self, error: &Error) -> bool {
        self != Self::Fail && is_outage(error.reason())
    }
}

impl Decision {
    /// What `outage` says, if it is not local.
    pub(super) fn without_redis(outage: LimitOutage, terms: &Terms) -> Self {
        let allowed = outage == LimitOutage::Open;
        Self {
            allowed,
            limit: terms.most(),
            remaining: 0,
            retry_after: match allowed {
                true => Duration::ZERO,
                false => CLOSED_FOR,
            },
            reset_after: Duration::ZERO,
            decided_by: DecidedBy::Outage,
        }
    }
}

/// Whether it passes by itself, or by what operators do about the servers.
fn is_outage(kind: ErrorKind) -> bool {
    // These are outages for a cache, which must not stand in the way. Here they are mistakes in the
    // setup, which an open limiter would hide.
    let is_setup = matches!(
        kind,
        ErrorKind::Unauthenticated | ErrorKind::Tls | ErrorKind::Forbidden | ErrorKind::Server
    );
    kind.is_outage() && !is_setup
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_an_error_under_every_policy_and_an_outage_only_under_fail() {
        let open = LimitOutage::Open;
        for kind in [
            ErrorKind::InvalidInput,
            ErrorKind::WrongType,
            ErrorKind::Forbidden,
            ErrorKind::Unauthenticated,
            ErrorKind::Tls,
            ErrorKind::Server,
        ] {
            let error = Error::new(kind, "of the test");
            assert!(!open.decides(&error), "{kind:?}");
            let refused = Error::new(ErrorKind::CircuitOpen, "not sent").with_source(error);
            assert!(!open.decides(&refused), "{kind:?}");
        }
        for kind in [
            ErrorKind::Unreachable,
            ErrorKind::Timeout,
            ErrorKind::Disconnected,
            ErrorKind::CircuitOpen,
            ErrorKind::Overloaded,
            ErrorKind::OutOfMemory,
            ErrorKind::ReadOnly,
            ErrorKind::Loading,
            ErrorKind::ClusterDown,
        ] {
            let error = Error::new(kind, "of the test");
            assert!(open.decides(&error), "{kind:?}");
            let refused = Error::new(ErrorKind::CircuitOpen, "not sent").with_source(error.clone());
            assert!(open.decides(&refused), "{kind:?}");
            assert!(!LimitOutage::Fail.decides(&error), "{kind:?}");
        }
    }
}
