//! `Held`: one grant, as the call that received it has it.
//!
//! Invariant: its drop never blocks, spawns or waits. It leaves a note for the keeper. The registry
//! and first tries make it, and a guard wraps it.

use std::sync::Arc;

use super::hold::{End, Hold};
use super::keeper::Keeper;
use crate::client::Client;

/// A grant that is given up when this is dropped.
#[derive(Debug)]
pub(in crate::sync) struct Held {
    pub(in crate::sync) hold: Arc<Hold>,
    keeper: Arc<Keeper>,
    pub(in crate::sync) client: Client,
}

impl Held {
    pub(in crate::sync) fn new(hold: Arc<Hold>, keeper: Arc<Keeper>, client: Client) -> Self {
        tracing::debug!(target: "hedgerow::lock", lock = hold.keys.name.shown().as_str(), fence = %hold.fence, "acquired");
        Self {
            hold,
            keeper,
            client,
        }
    }

    /// Takes the grant for the waiter to which it was handed. Returns whether the waiter may keep
    /// it: the keeper takes back what is not taken in time.
    pub(in crate::sync) fn take(&self) -> bool {
        self.hold.take()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Only the first end counts: a guard that was released or lost has nothing left to give up.
        if self.hold.end(End::Released) {
            self.keeper.discard(&self.client, &self.hold);
        }
    }
}
