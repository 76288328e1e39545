//! `Hold`: what this process knows of one grant.
//!
//! Invariant: the local deadline only ever comes from an instant before a command was sent, plus
//! the lease that the command set, less a margin for clocks of different rate. A hold that has
//! ended stays ended. Guards and permits read it without I/O. The keeper writes it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::keys::Keys;
use super::owner::Owner;
use crate::error::Error;
use crate::sync::fence::Fence;
use crate::sync::loss::LossReason;
use crate::time::Ttl;

/// One grant.
#[derive(Debug)]
pub(in crate::sync) struct Hold {
    pub(in crate::sync) keys: Arc<Keys>,
    pub(in crate::sync) owner: Owner,
    pub(in crate::sync) fence: Fence,
    pub(in crate::sync) lease: Ttl,
    /// How often the grant has been passed on inside the process since the server's queue last
    /// decided. It travels with the grant, because the local queue may be empty in between.
    pub(in crate::sync) local_handovers: u32,
    /// When `max_hold` ends the hold.
    pub(in crate::sync) limit: Option<Instant>,
    /// When the command was sent that granted it, or that granted its claim.
    since: Instant,
    state: Mutex<State>,
    /// Wakes `lost` when the hold ends. A later deadline needs no wake: `lost` reads it again.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// Until when the lease is surely held, without another renewal.
    deadline: Instant,
    /// How the hold ended. Set once, and never changed.
    end: Option<End>,
    offer: Offer,
    /// When a push said that the lock was broken, if the server has not denied it since.
    said_to_be_broken: Option<Instant>,
    /// How many releases in the background may have given up the grant, or what it was passed on
    /// to, as far as known.
    releases: u32,
}

/// Whether a hold was handed to a waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Offer {
    /// It was not: it answered its caller's own question.
    Never,
    /// It was, and the waiter has not taken it yet.
    Open,
    /// The waiter has taken it, or the keeper has taken it back.
    Over,
}

/// How a hold ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sync) enum End {
    Released,
    Lost(LossReason),
}

impl Hold {
    /// Makes a hold whose lease of `granted` was set by a command sent not before `sent`. If that
    /// is longer than `lease`, only `lease` counts, because the next renewal sets `lease`.
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
        // A renewal may shorten the lease on the server to `lease` at any time.
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

    /// Notes that the renewal sent at `sent` was acknowledged.
    pub(in crate::sync) fn renewed(&self, sent: Instant) {
        let mut state = self.state();
        let sure = before(self.limit, sure_until(sent, self.lease));
        // Answers may come out of order. An older one must not shorten the deadline.
        state.deadline = state.deadline.max(sure);
        // An answer to an older question says nothing about a push that came after it was sent.
        state.said_to_be_broken.take_if(|said| *said <= sent);
    }

    /// Ends the hold, because the server does not know its lease any more.
    pub(in crate::sync) fn is_gone(&self) {
        let reason = match self.is_in_doubt() {
            true => LossReason::Broken,
            false => LossReason::Taken,
        };
        self.end(End::Lost(reason));
    }

    /// Notes that a push says that the lock was broken. This is not believed before the server
    /// confirms it.
    pub(in crate::sync) fn doubt(&self) {
        self.state().said_to_be_broken = Some(Instant::now());
    }

    /// Returns whether a push says that the lock was broken, and the server has not denied it
    /// since.
    pub(in crate::sync) fn is_in_doubt(&self) -> bool {
        self.state().said_to_be_broken.is_some()
    }

    /// Returns whether a waiter was handed this and has not taken it.
    pub(in crate::sync) fn is_offered(&self) -> bool {
        let state = self.state();
        state.offer == Offer::Open && state.end.is_none()
    }

    /// Notes that the hold is handed to a waiter.
    pub(in crate::sync) fn offer(&self) {
        self.state().offer = Offer::Open;
    }

    /// Takes the hold for the waiter. Returns whether it still holds.
    pub(in crate::sync) fn take(&self) -> bool {
        self.state().offer = Offer::Over;
        self.status().is_ok()
    }

    /// Takes the hold back, unless the waiter has taken it. Returns whether it was taken back.
    pub(in crate::sync) fn take_back(&self) -> bool {
        let mut state = self.state();
        // Decided and ended under one lock, so that the waiter and the keeper never both have it.
        let offer = std::mem::replace(&mut state.offer, Offer::Over);
        let offered = offer == Offer::Open && state.end.is_none();
        if offered {
            // As if the waiter had dropped it: the keeper then releases the lease.
            state.end = Some(End::Released);
        }
        offered
    }

    /// Returns whether others may queue for the name, as far as can be told without I/O: it was
    /// contended when this was granted, or this was held for a while until `now`.
    pub(in crate::sync) fn may_be_queued_for(&self, now: Instant) -> bool {
        let held = now.saturating_duration_since(self.since);
        held >= A_WHILE || self.state().offer != Offer::Never
    }

    /// Returns the error for a loss.
    pub(in crate::sync) fn error(&self, reason: LossReason) -> Error {
        reason.error(&self.keys.kind.words, &self.keys.name)
    }

    /// Ends the hold, unless it has ended. Returns whether this call did it.
    pub(in crate::sync) fn end(&self, end: End) -> bool {
        let mut state = self.state();
        if state.end.is_some() {
            return false;
        }
        state.end = Some(end);
        drop(state);
        // All of them: any number of callers may wait for the loss of one guard.
        self.changed.notify_waiters();
        let fence = self.fence;
        match end {
            End::Released => {
                tracing::debug!(target: "hedgerow::sync", kind = self.keys.kind.name, name = self.keys.name.shown().as_str(), %fence, "given up");
            }
            End::Lost(reason) => {
                tracing::warn!(target: "hedgerow::sync", kind = self.keys.kind.name, name = self.keys.name.shown().as_str(), %fence, ?reason, "lost");
            }
        }
        true
    }

    /// Returns until when the grant is surely held, or how the hold ended. A hold past its deadline
    /// ends here.
    pub(in crate::sync) fn status(&self) -> Result<Instant, End> {
        self.status_at(Instant::now())
    }

    /// Does the same for a caller that read the clock at `now`.
    pub(in crate::sync) fn status_at(&self, now: Instant) -> Result<Instant, End> {
        let state = self.state();
        if let Some(end) = state.end {
            return Err(end);
        }
        if now < state.deadline {
            return Ok(state.deadline);
        }
        // The deadline is the earlier of the two, so equality means that `max_hold` came first.
        let reason = match self.limit {
            Some(limit) if limit <= state.deadline => LossReason::MaxHold,
            _ => LossReason::Expired,
        };
        drop(state);
        // Another call may end it meanwhile, for another reason. The end that is stored first
        // counts.
        self.end(End::Lost(reason));
        Err(self.state().end.unwrap_or(End::Lost(reason)))
    }

    /// Notes that the grant is about to be released in the background.
    pub(in crate::sync) fn releasing(&self) {
        self.state().releases += 1;
    }

    /// Notes that a release in the background has surely given up nothing.
    pub(in crate::sync) fn was_not_released(&self) {
        self.state().releases -= 1;
    }

    /// Returns whether a release in the background may have given up the grant.
    pub(in crate::sync) fn may_be_released(&self) -> bool {
        self.state().releases > 0
    }

    /// Waits for the loss. A hold that is released is never lost.
    pub(in crate::sync) async fn lost(&self) -> LossReason {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Enabled before the status is read, or an end in between would wake nothing.
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

/// Returns the earlier of the two: `max_hold` ends a hold whatever its lease.
fn before(limit: Option<Instant>, deadline: Instant) -> Instant {
    limit.map_or(deadline, |limit| limit.min(deadline))
}

/// Returns until when a lease surely lives that was set by a command sent not before `sent`. That
/// is 1 % and 2 ms less than its length, for a server clock that runs faster.
pub(in crate::sync) fn sure_until(sent: Instant, lease: Ttl) -> Instant {
    let lease = lease.duration();
    sent + lease.saturating_sub(lease / 100 + Duration::from_millis(2))
}

/// How long a grant is held before others may have come to queue for its name.
const A_WHILE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::lock::LOCK;

    #[test]
    fn a_hold_that_was_granted_more_than_its_lease_says_no_more_than_that() {
        let client = crate::client::Client::open("redis://127.0.0.1:1").expect("a good URL");
        let keys = Keys::of(&client, &LOCK, &client.name("a")).expect("a good name");
        let ttl = |seconds| Ttl::new("the lease", Duration::from_secs(seconds)).expect("in range");
        let (sent, owner) = (Instant::now(), Owner::random());
        let granted = (sent, ttl(30));
        let hold = Hold::new(keys.into(), owner, Fence(1), ttl(1), None, granted, 0);
        assert_eq!(hold.status(), Ok(sure_until(sent, ttl(1))));
    }
}
