//! `AcquireRequest`: what one call asks for, and how it asks the server.
//!
//! Invariant: this process counts on no more from a grant than the script was asked for. The faces
//! make requests. First tries and queue tasks send them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::hold::Hold;
use super::keys::Keys;
use super::owner::Owner;
use crate::client::Client;
use crate::script::Call;
use crate::sync::fence::Fence;
use crate::time::Ttl;

/// What one call asks for.
#[derive(Debug, Clone)]
pub(in crate::sync) struct AcquireRequest {
    pub(in crate::sync) client: Client,
    pub(in crate::sync) keys: Arc<Keys>,
    pub(in crate::sync) lease: Ttl,
    pub(in crate::sync) max_hold: Option<Duration>,
    /// What the server stores with the holder, and with the waiter: see [`kind`](super::kind).
    pub(in crate::sync) detail: Arc<str>,
}

/// What an owner does in the queue of the server.
#[derive(Debug, Clone, Copy)]
pub(in crate::sync) enum Queueing {
    /// It takes no position.
    No,
    /// It takes a position and receives no pushes. It asks every now and then whether it has
    /// received a grant.
    Asking,
    /// It takes a position, and is told of its grant by push.
    Listening,
}

impl AcquireRequest {
    /// Returns the call that asks the server for a grant, and for a position in its queue if
    /// `queueing` says so.
    pub(in crate::sync) fn acquire(&self, owner: Owner, queueing: Queueing) -> Call {
        let told = match queueing {
            Queueing::No => b" 0",
            Queueing::Asking => b" 1",
            Queueing::Listening => b" 2",
        };
        // The id of a fresh owner is also its seal.
        let id = owner.id();
        // In one argument, as the value of a lock has it, because each argument costs the server
        // time.
        let holder = [
            &b" 2 "[..],
            id.as_bytes(),
            b" ",
            id.as_bytes(),
            told,
            self.client.process().as_bytes(),
            b" ",
            self.detail.as_bytes(),
        ];
        self.keys
            .call(self.keys.kind.scripts.acquire)
            .arg(holder.concat())
            .arg(self.lease.millis())
    }

    /// Returns the lease that a hand-over grants at first. The keeper then renews it to its full
    /// length.
    pub(in crate::sync) fn claim(&self) -> Ttl {
        self.lease.at_most(CLAIM)
    }

    /// Returns the hold of a grant to `owner`.
    pub(in crate::sync) fn hold(
        &self,
        owner: Owner,
        fence: Fence,
        granted: (Instant, Ttl),
        local_handovers: u32,
    ) -> Arc<Hold> {
        let (keys, lease, limit) = (self.keys.clone(), self.lease, self.max_hold);
        Hold::new(keys, owner, fence, lease, limit, granted, local_handovers)
    }

    /// Returns whether a grant made for `other` fits this call unchanged.
    pub(in crate::sync) fn same_terms(&self, other: &Self) -> bool {
        // What the server stores. `max_hold` is kept by this process alone.
        self.lease == other.lease && self.detail == other.detail
    }
}

/// The longest lease that a hand-over grants before the new holder renews it, as in `grants.lua`.
const CLAIM: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    /// A guard counts by its own claim until it has renewed the one that the script has granted.
    #[test]
    fn scripts_grant_the_claim_that_guards_count_on() {
        let grants = include_str!("grants.lua");
        let granted = format!("local CLAIM = {} ", CLAIM.as_millis());
        assert!(grants.contains(&granted), "{granted}");
    }
}
