//! The two keys of one cached value.
//!
//! Invariant: a removal of the value ends a load of it that is under way, in the same script. The
//! verbs and the load of a flight use these keys.

use crate::client::Client;
use crate::error::Result;
use crate::key::Key;
use crate::name::Name;
use crate::script::{Call, script};
use crate::time::Deadline;

script!(REMOVE = "remove.lua" after "entry.lua");

/// The two keys of one cached value, and the name that its user gave it.
#[derive(Debug, Clone)]
pub(super) struct EntryKeys {
    pub(super) value: Key,
    pub(super) lease: Key,
    pub(super) name: Name,
}

impl EntryKeys {
    pub(super) fn keys(&self) -> [&Key; 2] {
        [&self.value, &self.lease]
    }

    /// The same keys on the other ring of shards. `None` unless keys move and the other ring places
    /// these on another server.
    pub(super) fn on_other_ring(&self, client: &Client) -> Option<Self> {
        Some(Self {
            value: client.copies(&self.value).other?,
            lease: self.lease.on_other_ring(),
            name: self.name.clone(),
        })
    }

    /// Removes the value and ends a load of it that is under way. Keeps trying until the deadline:
    /// a value that stays would be stale.
    pub(super) async fn clear(&self, client: &Client, deadline: Deadline) -> Result<()> {
        let call = REMOVE.call(self.keys());
        // The breaker must not stop this: a removal that is dropped leaves a stale value.
        self.cleared(client, call, deadline.keep_trying()).await
    }

    /// As [`clear`](Self::clear), for a caller that can do without the removal while the server is
    /// out.
    pub(super) async fn clear_if_served(&self, client: &Client, deadline: Deadline) -> Result<()> {
        let call = REMOVE.call(self.keys());
        self.cleared(client, call, deadline.fail_fast()).await
    }

    async fn cleared(&self, client: &Client, call: Call, deadline: Deadline) -> Result<()> {
        // A full queue must not stop a removal while its reserve lasts.
        let reply = client.change(call, deadline.reserved()).await;
        let reply = reply.map_err(|error| error.with_key(&self.name))?;
        match reply.status()? {
            "OK" => Ok(()),
            _ => Err(reply.unexpected().with_key(&self.name)),
        }
    }
}
