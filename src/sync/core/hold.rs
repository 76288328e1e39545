//! `Hold`: what this process knows of one grant.
//!
//! Invariant: the local deadline only ever comes from an instant before a command was sent, plus
//! the lease that the command set, less a margin for clocks of different rate. Once ended, a hold
//! stays ended. Guards read it without I/O; the keeper writes it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::keys::Keys;
use super::owner::Owner;
use crate::sync::fence::Fence;
use crate::sync::loss::LossReason;
use crate::time::Ttl;

/// One grant of a lock.
#[derive(Debug)]
pub(in crate::sync) struct Hold {
    pub(in crate::sync) keys: Arc<Keys>,
    pub(in crate::sync) owner: Owner,
    pub(in crate::sync) fence: Fence,
    pub(in crate::sync) lease: Ttl,
    /// How often the lock has been passed on inside the process to get here, since the server's
    /// queue last had a say. It travels with the lock, for the line may be empty in between.
    pub(in crate::sync) local_handovers: u32,
    /// When `max_hold` ends it.
    pub(in crate::sync) limit: Option<Instant>,
    /// When the command was sent that granted it, or that granted the first part of it.
    since: Instant,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    deadline: Instant,
    end: Option<End>,
    offer: Offer,
    /// When a push said that it was broken, if the server has not said otherwise since.
    said_to_be_broken: Option<Instant>,
    /// How many releases in the background may have given it up, or what it was passed on to, as
    /// far as is known.
    releases: u32,
}

/// Whether a hold went to a waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Offer {
    /// It answered its caller's own question.
    Never,
    /// The waiter has not taken it yet.
    Open,
    Over,
}

/// How a hold ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sync) enum End {
    Released,
    Lost(LossReason),
}

impl Hold {
    /// A hold whose lease of `granted` was set by a command sent not before `sent`. Of a longer one
    /// than its own only that counts: the next renewal sets it.
    pub(in crate::sync) fn new(
        keys: Arc<Keys>,
        owner: Owner,
        fence: Fence,
        lease: Ttl,
        limit: Option<Duration>,
        (sent, granted): (Instant, Ttl),
        local_handovers: u32,
    ) -> Arc<Self> {
        let limit = limit.map(|limit| Instant::now() + limit);
        let granted = granted.min(lease);
        Arc::new(Self {
            keys,
            owner,
            fence,
            lease,
            local_handovers,
            limit,
            since: sent,
            state: Mutex::new(State {
                deadline: before(limit, sure_until(sent, granted)),
                end: None,
                offer: Offer::Never,
                said_to_be_broken: None,
                releases: 0,
            }),
            changed: Notify::new(),
        })
    }

    /// The renewal sent at `sent` was acknowledged.
    pub(in crate::sync) fn renewed(&self, sent: Instant) {
        let mut state = self.state();
        let sure = before(self.limit, sure_until(sent, self.lease));
        state.deadline = state.deadline.max(sure);
        state.said_to_be_broken.take_if(|said| *said <= sent);
    }

    /// The server does not know the lease any more.
    pub(in crate::sync) fn is_gone(&self) {
        let reason = match self.is_in_doubt() {
            true => LossReason::Broken,
            false => LossReason::Taken,
        };
        self.end(End::Lost(reason));
    }

    /// A push says that it was broken, which is not believed before the server confirms it.
    pub(in crate::sync) fn doubt(&self) {
        self.state().said_to_be_broken = Some(Instant::now());
    }

    /// Whether a push says that it was broken, and the server was not asked since.
    pub(in crate::sync) fn is_in_doubt(&self) -> bool {
        self.state().said_to_be_broken.is_some()
    }

    /// Whether a waiter was handed this and has not taken it.
    pub(in crate::sync) fn is_offered(&self) -> bool {
        let state = self.state();
        state.offer == Offer::Open && state.end.is_none()
    }

    /// Hands it to a waiter.
    pub(in crate::sync) fn offer(&self) {
        self.state().offer = Offer::Open;
    }

    /// The waiter takes it; says whether there is anything to take.
    pub(in crate::sync) fn take(&self) -> bool {
        self.state().offer = Offer::Over;
        self.status().is_ok()
    }

    /// Takes it back, unless the waiter has taken it; says whether it was taken back.
    pub(in crate::sync) fn take_back(&self) -> bool {
        let mut state = self.state();
        let offer = std::mem::replace(&mut state.offer, Offer::Over);
        let offered = offer == Offer::Open && state.end.is_none();
        if offered {
            state.end = Some(End::Released);
        }
        offered
    }

    /// Whether others may queue for the lock, as far as can be told without asking: it was
    /// contended when it was granted, or was held for a while until `now`.
    pub(in crate::sync) fn may_be_queued_for(&self, now: Instant) -> bool {
        let held = now.saturating_duration_since(self.since);
        held >= A_WHILE || self.state().offer != Offer::Never
    }

    /// Ends the hold, unless it has ended; returns whether this call did it.
    pub(in crate::sync) fn end(&self, end: End) -> bool {
        let mut state = self.state();
        if state.end.is_some() {
            return false;
        }
        state.end = Some(end);
        drop(state);
        self.changed.notify_waiters();
        let fence = self.fence;
        match end {
            End::Released => {
                tracing::debug!(target: "hedgerow::lock", lock = self.keys.name.shown().as_str(), %fence, "given up");
            }
            End::Lost(reason) => {
                tracing::warn!(target: "hedgerow::lock", lock = self.keys.name.shown().as_str(), %fence, ?reason, "lost");
            }
        }
        true
    }

    /// How it ended, or until when it is surely held. A hold past its deadline ends here.
    pub(in crate::sync) fn status(&self) -> Result<Instant, End> {
        self.status_at(Instant::now())
    }

    /// The same, `now`.
    pub(in crate::sync) fn status_at(&self, now: Instant) -> Result<Instant, End> {
        let state = self.state();
        if let Some(end) = state.end {
            return Err(end);
        }
        if now < state.deadline {
            return Ok(state.deadline);
        }
        let reason = match self.limit {
            Some(limit) if limit <= state.deadline => LossReason::MaxHold,
            _ => LossReason::Expired,
        };
        drop(state);
        // Somebody may end it meanwhile, for another reason: what is stored first counts.
        self.end(End::Lost(reason));
        Err(self.state().end.unwrap_or(End::Lost(reason)))
    }

    /// It is about to be released in the background.
    pub(in crate::sync) fn releasing(&self) {
        self.state().releases += 1;
    }

    /// A release in the background has surely given up nothing.
    pub(in crate::sync) fn was_not_released(&self) {
        self.state().releases -= 1;
    }

    /// Whether a release in the background may have given it up.
    pub(in crate::sync) fn may_be_released(&self) -> bool {
        self.state().releases > 0
    }

    /// Waits for the loss. A hold that is released is not lost.
    pub(in crate::sync) async fn lost(&self) -> LossReason {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            match self.status() {
                Err(End::Lost(reason)) => return reason,
                Err(End::Released) => std::future::pending().await,
                Ok(deadline) => {
                    let _ = tokio::time::timeout_at(deadline, changed).await;
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The longest hold ends a hold whatever its lease.
fn before(limit: Option<Instant>, deadline: Instant) -> Instant {
    limit.map_or(deadline, |limit| limit.min(deadline))
}

/// Until when a lease that was set by a command sent not before `sent` surely lives: 1 % and 2 ms
/// less than its length, for a server clock that runs faster.
pub(in crate::sync) fn sure_until(sent: Instant, lease: Ttl) -> Instant {
    let lease = lease.duration();
    sent + lease.saturating_sub(lease / 100 + Duration::from_millis(2))
}

/// After this others have had time to come.
const A_WHILE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_that_was_granted_more_than_its_lease_says_no_more_than_that() {
        let client = crate::client::Client::open("redis://127.0.0.1:1").expect("a good URL");
        let keys = Keys::of(&client, &client.name("a")).expect("a good name");
        let ttl = |seconds| Ttl::new("the lease", Duration::from_secs(seconds)).expect("in range");
        let (sent, owner) = (Instant::now(), Owner::random());
        let granted = (sent, ttl(30));
        let hold = Hold::new(keys.into(), owner, Fence(1), ttl(1), None, granted, 0);
        assert_eq!(hold.status(), Ok(sure_until(sent, ttl(1))));
    }
}
