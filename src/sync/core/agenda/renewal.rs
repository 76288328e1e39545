//! `Renewal`: the lease of a live guard, and when its holder is to be heard from.
//!
//! Invariant: it is pure. It says what is due when, and the agenda moves it. The agenda keeps it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::sync::core::hold::Hold;

/// The lease of a live guard.
#[derive(Debug)]
pub(super) struct Renewal {
    pub(super) hold: Arc<Hold>,
    /// When to renew the lease.
    pub(super) at: Instant,
    pub(super) listening: Listening,
    /// How long to wait after the next failed subscription.
    pub(super) pause: Duration,
    /// When the renewal was last taken to be sent. `None` before the first time.
    pub(super) asked: Option<Instant>,
}

/// Whether a holder learns of `break_lock` by push.
#[derive(Debug, Clone, Copy)]
pub(super) enum Listening {
    /// It does, as far as known.
    Told,
    /// Its channel is to be subscribed at this time.
    Due(Instant),
    /// Its channel is being subscribed. If there is no outcome by this time, the task that does it
    /// stands still.
    UnderWay(Instant),
}

impl Renewal {
    /// Returns when the first of these is due: the renewal, the subscription, or the end by
    /// `max_hold`.
    pub(super) fn due(&self) -> Instant {
        let listen = self.listening.next();
        let at = listen.map_or(self.at, |listen| listen.min(self.at));
        self.hold.limit.map_or(at, |limit| limit.min(at))
    }

    /// Returns whether the lease is renewed early, because others are renewed now. One whose
    /// renewal is in flight is not.
    pub(super) fn goes_along(&self, now: Instant) -> bool {
        let lease = self.hold.lease.duration();
        let under_way = self
            .asked
            .is_some_and(|asked| self.at < asked + lease / ALONG);
        !under_way && self.at <= now + lease / ALONG
    }
}

impl Listening {
    /// Returns when to subscribe next.
    pub(super) fn next(self) -> Option<Instant> {
        match self {
            Self::Told => None,
            Self::Due(at) | Self::UnderWay(at) => Some(at),
        }
    }
}

/// After how long a renewal that was not answered is sent again, beside the question in flight. The
/// first is not given up: its answer counts, however late it comes.
pub(super) fn again(lease: Duration) -> Duration {
    (lease / 24).max(SHORTEST_PAUSE)
}

/// A lease is renewed up to `1 / ALONG` of its length early, together with others.
pub(super) const ALONG: u32 = 6;

/// The shortest pause between two questions for one lease.
pub(super) const SHORTEST_PAUSE: Duration = Duration::from_millis(5);

/// The first pause after a subscription that failed. Each pause is twice as long as the one before.
pub(super) const FIRST_PAUSE_OF_LISTENING: Duration = Duration::from_secs(1);
pub(super) const LONGEST_PAUSE_OF_LISTENING: Duration = Duration::from_secs(30);
