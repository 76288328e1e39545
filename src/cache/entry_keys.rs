//! The two keys of one cached value.
//!
//! Invariant: a removal of the value ends a load of it that is under way, in the same script. The
//! verbs and the load of a flight use these keys.

use std::collections::BTreeMap;

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _};

use crate::client::Client;
use crate::error::Result;
use crate::key::Key;
use crate::name::Name;
use crate::script::{Call, script};
use crate::time::Deadline;
use crate::wire::fault::another_type;

script!(REMOVE = "remove.lua" after "entry.lua");
script!(REMOVE_MANY = "remove_many.lua");

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

/// What became of the removal of one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cleared {
    Removed,
    /// There was no value. A load of it may have been ended.
    Absent,
}

/// Removes several values, and ends loads of them that are under way, as
/// [`clear`](EntryKeys::clear) does for one. One script removes up to a hundred on a server, or
/// those of one slot in a cluster.
pub(super) async fn clear_all(
    client: &Client,
    places: &[EntryKeys],
    deadline: Deadline,
) -> Vec<Result<Cleared>> {
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, place) in places.iter().enumerate() {
        let group = client.script_group(&place.value);
        groups.entry(group).or_default().push(at);
    }
    let mut calls = Vec::new();
    for group in groups.values() {
        for part in group.chunks(MOST_AT_ONCE) {
            calls.push(cleared_together(client, places, part, deadline).boxed());
        }
    }
    let mut calls = stream::iter(calls).buffer_unordered(MOST_CALLS);
    let mut outcomes = BTreeMap::new();
    while let Some(cleared) = calls.next().await {
        outcomes.extend(cleared);
    }
    debug_assert_eq!(outcomes.len(), places.len(), "each place is in one group");
    outcomes.into_values().collect()
}

/// Removes the values at the positions `part`, which one script may name. Returns the outcome of
/// each by its position.
async fn cleared_together(
    client: &Client,
    places: &[EntryKeys],
    part: &[usize],
    deadline: Deadline,
) -> Vec<(usize, Result<Cleared>)> {
    let keys: Vec<&Key> = part.iter().flat_map(|at| places[*at].keys()).collect();
    let call = REMOVE_MANY.call_together(keys);
    let values = part.iter().map(|at| &places[*at].value);
    let reply = client.change_all(call, values, deadline.keep_trying().reserved());
    let outcomes = reply.await.and_then(|reply| match reply.status()? {
        "OK" => (1..=part.len()).map(|at| reply.int(at)).collect(),
        _ => Err(reply.unexpected()),
    });
    let outcomes: Result<Vec<i64>> = outcomes;
    let outcome = |number: usize| match &outcomes {
        Ok(outcomes) => match outcomes[number] {
            1 => Ok(Cleared::Removed),
            0 => Ok(Cleared::Absent),
            _ => Err(another_type(REMOVE_MANY.name())),
        },
        Err(error) => Err(error.clone()),
    };
    let named = part.iter().enumerate().map(|(number, at)| {
        let named = outcome(number).map_err(|error| error.with_key(&places[*at].name));
        (*at, named)
    });
    named.collect()
}

/// How many values one script removes at most, so that other calls do not wait long behind it.
const MOST_AT_ONCE: usize = 100;

/// How many such scripts run at a time.
const MOST_CALLS: usize = 64;
