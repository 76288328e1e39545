//! `Held`: one grant, as whoever got it holds it.
//!
//! Invariant: dropping it never blocks, spawns or waits: it leaves a note for the keeper.

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

    /// Whether a waiter that was handed this may keep it: the keeper takes back what is not taken
    /// in time.
    pub(in crate::sync) fn take(&self) -> bool {
        self.hold.take()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.hold.end(End::Released) {
            self.keeper.discard(&self.client, &self.hold);
        }
    }
}
