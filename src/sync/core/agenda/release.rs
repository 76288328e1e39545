//! `Release`: the release of what an owner has or may come to have, as the keeper owes it.
//!
//! Invariant: it says until when something of the owner may be left, so that it is tried until then
//! and no longer. The agenda keeps it. The keeper makes it from the notes of its callers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::client::Client;
use crate::sync::core::hold::Hold;
use crate::sync::core::keys::Keys;
use crate::sync::core::owner::{Owner, Secret};
use crate::time::Ttl;

/// The release of a lease, or of a position in the server's queue, that no caller uses any more.
#[derive(Debug, Clone)]
pub(in crate::sync) struct Release {
    pub(in crate::sync) owner: Owner,
    pub(in crate::sync) keys: Arc<Keys>,
    /// When everything that the owner could have has run out by itself.
    pub(in crate::sync) until: Instant,
    /// Whether a grant to the owner may still be in flight.
    pub(in crate::sync) answered: Answered,
    /// The waiter to which the grant was to be passed under this owner.
    pub(in crate::sync) successor: Option<Arc<dyn Reclaim>>,
    /// What the owner held, or what was to be passed to it. It counts the releases in the
    /// background, so that the guard's own release can tell whether one of them came first.
    pub(in crate::sync) hold: Option<Arc<Hold>>,
    /// Whether the release tells the owner's secret to the next holder.
    pub(in crate::sync) secret: Secret,
    /// How long to wait before the next try.
    pub(super) pause: Duration,
    /// Whether the release was taken to be sent.
    pub(super) tried: bool,
}

/// A waiter to which a grant was to be passed inside the process.
pub(in crate::sync) trait Reclaim: fmt::Debug + Send + Sync {
    /// Puts the waiter back into the local queue, if the hand-over has not reported its outcome.
    fn reclaim(self: Arc<Self>, client: &Client);
}

/// Whether the server has answered all questions of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sync) enum Answered {
    Yes,
    /// Its only question may still arrive and be granted.
    No,
    /// All but the last, which may still arrive. The answered ones may have left the owner a
    /// position in the server's queue. So it may be granted twice: by a hand-over, and by that
    /// question.
    AllButLast,
}

impl Release {
    fn new(owner: Owner, keys: &Arc<Keys>, until: Instant) -> Self {
        Self {
            owner,
            keys: keys.clone(),
            until,
            answered: Answered::Yes,
            successor: None,
            hold: None,
            secret: Secret::Kept,
            pause: FIRST_PAUSE,
            tried: false,
        }
    }

    /// The release of what an owner without a guard asked for: `lease` at most, by questions of
    /// which none was sent after `last`.
    pub(in crate::sync) fn of_question(
        owner: Owner,
        keys: &Arc<Keys>,
        (last, lease): (Instant, Ttl),
        answered: Answered,
    ) -> Self {
        Self {
            answered,
            ..Self::new(owner, keys, last + lease.duration())
        }
    }

    /// The release of what a waiter may come to have, to which the grant of `hold` is passed `now`.
    pub(in crate::sync) fn of_successor(
        hold: &Arc<Hold>,
        (owner, lease): (Owner, Ttl),
        successor: Arc<dyn Reclaim>,
        answered: Answered,
        now: Instant,
    ) -> Self {
        // The hand-over is sent after `now`, and may be in flight for a while.
        let until = now + lease.duration() + ON_ITS_WAY;
        Self {
            successor: Some(successor),
            hold: Some(hold.clone()),
            answered,
            secret: Secret::Said,
            ..Self::new(owner, &hold.keys, until)
        }
    }

    /// The release of what a guard holds, as of `now`.
    pub(in crate::sync) fn of(hold: &Arc<Hold>, now: Instant) -> Self {
        let until = now + hold.lease.duration();
        Self {
            hold: Some(hold.clone()),
            secret: Secret::Said,
            ..Self::new(hold.owner, &hold.keys, until)
        }
    }

    /// Returns whether nothing is left to be released once the server has answered `RELEASED`.
    pub(in crate::sync) fn ends_with_a_release(&self) -> bool {
        self.answered != Answered::AllButLast
    }

    /// Returns whether nothing is left to be released once the server has answered `NOT_HELD`.
    pub(in crate::sync) fn ends_without_a_release(&self) -> bool {
        self.answered == Answered::Yes
    }
}

impl Answered {
    /// The longest pause between two tries of a release.
    pub(super) fn longest_pause(self) -> Duration {
        match self {
            Self::Yes => LONGEST_PAUSE,
            Self::No | Self::AllButLast => LONGEST_PAUSE_FOR_A_GRANT,
        }
    }
}

/// How long a call that may grant a lease may be in flight.
const ON_ITS_WAY: Duration = Duration::from_secs(10);

/// The first pause between two tries to release. Each pause is four times as long as the one
/// before.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// The longest pause while a grant may still be in flight. It is short, because nobody uses such a
/// grant, and others wait for it to end.
const LONGEST_PAUSE_FOR_A_GRANT: Duration = Duration::from_secs(3);
