//! Storing several values by few scripts, for `set_many`.
//!
//! Invariant: each value is stored as `set` stores it. The script checks the types at its keys, and
//! ends a load of it that is under way. What goes wrong with a call is the outcome of the values of
//! that call, and of no other. Values are encoded when their call is made, so only few of them are
//! in memory twice.

use std::collections::BTreeMap;
use std::iter;

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _};

use super::set::store;
use crate::cache::entry_keys::{EntryKeys, clear_all};
use crate::cache::stats::Timed;
use crate::cache::store_request::StoreRequest;
use crate::client::Client;
use crate::codec::DEADLINES;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::net::pipeline::request::LARGE;
use crate::script::script;
use crate::time::Deadline;
use crate::wire::fault::another_type;

script!(SET_MANY = "set_many.lua" after "../entry.lua");

/// The outcome of the value at a position.
type Outcome = (usize, Result<()>);

/// Stores the values of `requests`, and returns an outcome for each. `encode` makes the entry for
/// the request at a position.
pub(super) async fn store_all(
    client: &Client,
    requests: &[StoreRequest],
    encode: impl Fn(usize) -> Result<Vec<u8>> + Send + Sync,
    deadline: Deadline,
) -> Vec<Result<()>> {
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, request) in requests.iter().enumerate() {
        let group = client.script_group(&request.place.value);
        groups.entry(group).or_default().push(at);
    }
    let mut stores = Vec::with_capacity(groups.len());
    for group in groups.into_values() {
        stores.push(stored_together(client, requests, group, &encode, deadline).boxed());
    }
    let mut stores = stream::iter(stores).buffer_unordered(MOST_GROUPS);
    let mut outcomes = BTreeMap::new();
    while let Some(stored) = stores.next().await {
        outcomes.extend(stored);
    }
    debug_assert_eq!(outcomes.len(), requests.len(), "each is in one group");
    for (at, _) in outcomes.iter().filter(|(_, outcome)| outcome.is_err()) {
        requests[*at].forget_near();
    }
    outcomes.into_values().collect()
}

/// Stores the values at the positions `group`, which one script may name.
async fn stored_together(
    client: &Client,
    requests: &[StoreRequest],
    group: Vec<usize>,
    encode: &(impl Fn(usize) -> Result<Vec<u8>> + Send + Sync),
    deadline: Deadline,
) -> Vec<Outcome> {
    let encoded = group.into_iter().map(|at| (at, encode(at)));
    let stores = parts(encoded).map(|part| stored_part(client, requests, part, deadline).boxed());
    let mut stores = stream::iter(stores).buffer_unordered(MOST_CALLS);
    let mut outcomes = Vec::new();
    while let Some(stored) = stores.next().await {
        outcomes.extend(stored);
    }
    outcomes
}

async fn stored_part(
    client: &Client,
    requests: &[StoreRequest],
    part: Part,
    deadline: Deadline,
) -> Vec<Outcome> {
    match part {
        Part::Together(entries) => stored_by_one(client, requests, entries, deadline).await,
        Part::Alone(at, Ok(entry)) => vec![(at, store(&requests[at], entry, deadline).await)],
        Part::Alone(at, Err(error)) => vec![(at, Err(error))],
    }
}

/// Stores the entries by one script.
async fn stored_by_one(
    client: &Client,
    requests: &[StoreRequest],
    entries: Vec<(usize, Vec<u8>)>,
    deadline: Deadline,
) -> Vec<Outcome> {
    let places: Vec<&EntryKeys> = entries.iter().map(|(at, _)| &requests[*at].place).collect();
    for (at, _) in &entries {
        // Calls that come from now on must not join a load that is about to be ended.
        let request = &requests[*at];
        request.state.flights.detach(&request.place.value);
    }
    let values = places.iter().map(|place| &place.value);
    let leases = places.iter().map(|place| &place.lease);
    let keys: Vec<&Key> = values.clone().chain(leases).collect();
    let mut call = SET_MANY.call_together(keys);
    for (at, entry) in &entries {
        // Without the place of the deadlines: so the script need not take the entry apart.
        call = call
            .arg(&entry[..DEADLINES.start])
            .arg(&entry[DEADLINES.end..])
            .arg(requests[*at].jittered_ttl().millis());
    }
    let timer = requests[0].cache.setup.counts.time(Timed::Store);
    let reply = client.change_all(call, values, deadline).await;
    timer.stop();
    let foreign = reply.and_then(|reply| match reply.status()? {
        "OK" => (1..reply.len()).map(|at| reply.count(at)).collect(),
        _ => Err(reply.unexpected()),
    });
    let foreign: Result<Vec<u64>> = foreign;
    let mut outcomes: Vec<Outcome> = Vec::with_capacity(entries.len());
    for (number, (at, _)) in entries.iter().enumerate() {
        let stored = match &foreign {
            Ok(foreign) if foreign.contains(&(number as u64 + 1)) => {
                Err(another_type(SET_MANY.name()))
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error.clone()),
        };
        let request = &requests[*at];
        if stored.is_ok() {
            request.cache.setup.counts.stores.one_more();
        }
        outcomes.push((*at, stored.map_err(|error| request.named(error))));
    }
    clear_on_other_ring(client, requests, &mut outcomes, deadline).await;
    outcomes
}

/// Removes what the other ring has of the values that were stored. Stored here first, then cleared
/// there: of two such calls on two rings, one value stays, or none.
async fn clear_on_other_ring(
    client: &Client,
    requests: &[StoreRequest],
    outcomes: &mut [Outcome],
    deadline: Deadline,
) {
    let mut there = Vec::new();
    let mut stored = Vec::new();
    for (at, outcome) in outcomes.iter_mut().filter(|(_, outcome)| outcome.is_ok()) {
        if let Some(place) = requests[*at].place.on_other_ring(client) {
            there.push(place);
            stored.push(outcome);
        }
    }
    if there.is_empty() {
        return;
    }
    let cleared = clear_all(client, &there, deadline).await;
    for (outcome, cleared) in stored.into_iter().zip(cleared) {
        *outcome = cleared.map(drop).map_err(Error::in_part);
    }
}

/// A value at a position, as it was encoded.
type Encoded = (usize, Result<Vec<u8>>);

/// What is sent by itself.
#[derive(Debug)]
enum Part {
    /// Entries that one script stores.
    Together(Vec<(usize, Vec<u8>)>),
    /// A large entry, which is uploaded first, or the error of a value that cannot be encoded.
    Alone(usize, Result<Vec<u8>>),
}

/// Returns the parts of a group. Takes the entries of a part when the part is asked for.
fn parts(encoded: impl Iterator<Item = Encoded>) -> impl Iterator<Item = Part> {
    let mut encoded = encoded.peekable();
    iter::from_fn(move || {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while entries.len() < MOST_AT_ONCE {
            let joins = |(_, entry): &Encoded| match entry {
                Ok(entry) => entry.len() < LARGE && bytes + entry.len() <= MOST_BYTES,
                Err(_) => false,
            };
            let Some((at, Ok(entry))) = encoded.next_if(joins) else {
                break;
            };
            bytes += entry.len();
            entries.push((at, entry));
        }
        match entries.is_empty() {
            true => encoded.next().map(|(at, entry)| Part::Alone(at, entry)),
            false => Some(Part::Together(entries)),
        }
    })
}

/// How many values one script stores at most, and how many bytes they have, so that other calls do
/// not wait long behind it.
const MOST_AT_ONCE: usize = 100;
const MOST_BYTES: usize = 1 << 20;

/// How many parts of a group are under way at a time.
const MOST_CALLS: usize = 4;

/// How many groups are stored at a time: the servers, or in a cluster the slots.
const MOST_GROUPS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    /// The parts of entries of these lengths, as the positions in them. `None` fails to encode.
    fn cut(lengths: impl IntoIterator<Item = Option<usize>>) -> Vec<Vec<usize>> {
        let encoded = lengths.into_iter().enumerate().map(|(at, length)| {
            let refused = || Error::new(ErrorKind::Encode, "told by the test");
            (at, length.map(|it| vec![0; it]).ok_or_else(refused))
        });
        let positions = parts(encoded).map(|part| match part {
            Part::Together(entries) => entries.into_iter().map(|(at, _)| at).collect(),
            Part::Alone(at, _) => vec![at],
        });
        positions.collect()
    }

    #[test]
    fn a_part_has_no_more_than_a_hundred_entries_and_a_mebibyte() {
        let sizes = |lengths: Vec<Option<usize>>| -> Vec<usize> {
            cut(lengths).iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(vec![Some(100); 250]), [100, 100, 50]);
        assert_eq!(sizes(vec![Some(50 << 10); 45]), [20, 20, 5]);
        assert!(sizes(Vec::new()).is_empty());
    }

    #[test]
    fn what_is_large_or_cannot_be_encoded_is_a_part_of_its_own() {
        let lengths = [Some(10), Some(LARGE), Some(LARGE - 1), None, None, Some(10)];
        let expected = [vec![0], vec![1], vec![2], vec![3], vec![4], vec![5]];
        assert_eq!(cut(lengths), expected);
    }
}
