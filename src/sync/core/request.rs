//! `AcquireRequest`: what one call needs to acquire a lock, and how it asks the server.
//!
//! Invariant: this process counts on no more from a grant than the script was asked for. `Lock`
//! makes requests. First tries and queue tasks send them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::hold::Hold;
use super::keys::{ACQUIRE, Keys};
use super::owner::Owner;
use crate::client::Client;
use crate::script::{Call, Script};
use crate::sync::fence::Fence;
use crate::time::Ttl;

/// What one call needs to acquire a lock.
#[derive(Debug, Clone)]
pub(in crate::sync) struct AcquireRequest {
    pub(in crate::sync) client: Client,
    pub(in crate::sync) keys: Arc<Keys>,
    pub(in crate::sync) lease: Ttl,
    pub(in crate::sync) max_hold: Option<Duration>,
    pub(in crate::sync) metadata: Arc<str>,
}

/// What an owner does in the queue of the server.
#[derive(Debug, Clone, Copy)]
pub(in crate::sync) enum Queueing {
    /// It takes no position.
    No,
    /// It takes a position and receives no pushes. It asks every now and then whether it was
    /// granted the lock.
    Asking,
    /// It takes a position, and is told of its grant by push.
    Listening,
}

impl AcquireRequest {
    pub(in crate::sync) fn call(&self, script: &'static Script) -> Call {
        self.keys.call(script)
    }

    /// Returns the call that asks the server for the lock, and for a position in its queue if
    /// `queueing` says so.
    pub(in crate::sync) fn acquire(&self, owner: Owner, queueing: Queueing) -> Call {
        let told = match queueing {
            Queueing::No => b" 0",
            Queueing::Asking => b" 1",
            Queueing::Listening => b" 2",
        };
        // The id of a fresh owner is also its seal.
        let id = owner.id();
        // In one argument, as the value of the lock has it, because each argument costs the server
        // time.
        let holder = [
            &b" 2 "[..],
            id.as_bytes(),
            b" ",
            id.as_bytes(),
            told,
            self.client.process().as_bytes(),
            b" ",
            self.metadata.as_bytes(),
        ];
        self.call(&ACQUIRE)
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
        self.lease == other.lease && self.metadata == other.metadata
    }
}

/// The longest lease that a hand-over grants before the new holder renews it, as in `prelude.lua`.
const CLAIM: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    /// The offsets in a lock's value, as scripts that do not take it apart spell them.
    #[test]
    fn scripts_look_where_the_value_of_a_lock_has_what_they_want() {
        let fence = "0".repeat(16) + " ";
        let owner = Owner::random().unqueued();
        let (begins, ends) = (fence.len(), fence.len() + owner.len() - 1);
        let acquire = include_str!("acquire.lua");
        assert!(acquire.contains(&format!("'SETRANGE', KEYS[1], {ends}, '+'")));
        let release = include_str!("release.lua");
        for text in [release, include_str!("release_alone.lua")] {
            assert!(text.contains(&format!("'GETRANGE', KEYS[1], '{begins}', '{ends}'")));
        }
        let id = owner.len() - 1;
        assert!(release.contains(&format!("string.sub(ARGV[1], 3, {id})")));
        // Lua counts from 1; the blank behind the id is left out.
        let renew = include_str!("renew.lua");
        assert!(renew.contains(&format!("string.sub(value, {}, {ends})", begins + 1)));
    }

    /// A guard counts by its own claim until it has renewed the one that the script has granted.
    #[test]
    fn scripts_grant_the_claim_that_guards_count_on() {
        let prelude = include_str!("prelude.lua");
        let granted = format!("local CLAIM = {} ", CLAIM.as_millis());
        assert!(prelude.contains(&granted), "{granted}");
    }
}
