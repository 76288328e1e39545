//! The calls of the keeper: they renew leases, subscribe holders, and release in the background.
//!
//! Invariant: an answer counts from when its question was sent, however late it comes, and until
//! the local deadline. A question that is not answered blocks no other: the agenda has it asked
//! again meanwhile. The tasks in `keeper_task` make these calls.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use tokio::time::{Instant, timeout};

use super::agenda::Release;
use super::answer::had_no_effect;
use super::hold::Hold;
use super::inbox::Inboxes;
use super::keeper::Keeper;
use super::kind::parsed;
use crate::client::Client;
use crate::error::{ErrorKind, Result};
use crate::script::Reply;
use crate::time::{Deadline, OnOutage, Priority};

/// Asks for the renewal of leases that one script may renew.
pub(in crate::sync) async fn renew(keeper: Arc<Keeper>, client: Client, holds: Vec<Arc<Hold>>) {
    let deadlines = holds.iter().filter_map(|hold| hold.status().ok());
    let Some(until) = deadlines.max() else { return };
    let leases = holds.iter().map(|hold| hold.lease.duration());
    let shortest = leases.min().unwrap_or_default();
    let keys = holds[0].keys.clone();
    // While a lease is at stake, the connection is not left to the usual pauses of its backoff.
    client.urgent(keys.holders(), until, shortest / DIALS);
    let script = parsed(keys.kind.scripts.renew);
    let mut call = script.call_together(holds.iter().map(|hold| hold.keys.holders()));
    // A server without the script would cost a renewal one more round trip.
    if !keeper.script_is_known_at(&client, &keys) {
        call = call.in_full();
    }
    for hold in &holds {
        call = call
            .arg(hold.owner.id().as_bytes())
            .arg(hold.lease.millis());
    }
    let deadline = Deadline {
        at: until,
        on_outage: OnOutage::KeepTrying,
        priority: Priority::Timely,
    };
    let reply = match client.run(call, deadline).await {
        Ok(reply) => reply,
        Err(error) => {
            tracing::debug!(target: "hedgerow::sync", %error, leases = holds.len(), "renewal is tried again");
            keeper.script_may_be_unknown();
            if error.kind() == ErrorKind::CrossSlot {
                keeper.slot_by_slot();
            }
            if error.kind() == ErrorKind::Forbidden && holds.len() > 1 {
                // It may be about one of the names only. The other leases must not be lost with it.
                join_all(
                    holds
                        .into_iter()
                        .map(|hold| renew_one(&keeper, &client, hold)),
                )
                .await;
            }
            return;
        }
    };
    let sent = reply.sent();
    keeper.script_is_known_now(&client, &keys);
    for (index, hold) in holds.iter().enumerate() {
        match reply.int(index + 1) {
            Ok(1) => {
                hold.renewed(sent);
                keeper.renewed(hold.owner, sent);
            }
            Ok(_) => {
                // The server reports no lease, so nothing is left to release.
                hold.is_gone();
                keeper.forget(hold.owner);
            }
            // The agenda asks again.
            Err(_) => {}
        }
    }
}

fn renew_one(keeper: &Arc<Keeper>, client: &Client, hold: Arc<Hold>) -> BoxFuture<'static, ()> {
    Box::pin(renew(keeper.clone(), client.clone(), vec![hold]))
}

/// Subscribes the holders of leases to their common channel, so that they learn of `break_lock` by
/// push. A job beside the renewals, which must not wait for it.
pub(in crate::sync) async fn listen(
    inboxes: Arc<Inboxes>,
    keeper: Arc<Keeper>,
    client: Client,
    holds: Vec<Arc<Hold>>,
) {
    let leases = holds.iter().map(|hold| hold.lease.duration());
    let patience = leases.max().unwrap_or_default();
    let patience = patience.clamp(SHORTEST_LISTEN, LONGEST_LISTEN);
    match timeout(patience, inboxes.listen(&keeper, &client, &holds[0].keys)).await {
        Ok(true) => keeper.heard_from_now_on(&client, &holds),
        Ok(false) | Err(_) => keeper.listen_later(&holds),
    }
}

/// Releases what an owner has. The release stays on the agenda until nothing of the owner can be
/// left.
pub(in crate::sync) async fn release(keeper: Arc<Keeper>, client: Client, release: Release) {
    if let Some(successor) = &release.successor {
        successor.clone().reclaim(&client);
    }
    if let Some(hold) = &release.hold {
        // Counted before it is sent: the guard's own release may find nothing left, and asks for
        // the reason.
        hold.releasing();
    }
    let call = release.keys.release(release.owner, release.secret);
    let deadline = client.deadline().keep_trying().reserved();
    let reply = client.run(call, deadline).await;
    let outcome = Outcome::of(&reply);
    if let Some(hold) = &release.hold
        && !matches!(outcome, Outcome::Released | Outcome::Unknown)
    {
        hold.was_not_released();
    }
    if let Outcome::Released = outcome {
        tracing::debug!(target: "hedgerow::sync", kind = release.keys.kind.name, name = release.keys.name.shown().as_str(), "released in the background");
    }
    let settled = match outcome {
        Outcome::Released => release.ends_with_a_release(),
        Outcome::NotHeld => release.ends_without_a_release(),
        Outcome::NoEffect | Outcome::Unknown => false,
    };
    if settled || Instant::now() >= release.until {
        keeper.settled(release.owner);
    } else {
        // A server that was out may be back soon. A grant in flight rarely stays in flight for
        // long.
        let longest = match &reply {
            Ok(_) => Duration::MAX,
            Err(_) => OUTAGE_PAUSE,
        };
        keeper.unsettled(release.owner, longest);
    }
}

/// The outcome of a release.
#[derive(Clone, Copy)]
enum Outcome {
    Released,
    /// The owner has nothing. Another owner may hold the name, also one that is not a client of
    /// this format.
    NotHeld,
    /// The owner may still have what it had.
    NoEffect,
    Unknown,
}

impl Outcome {
    fn of(reply: &Result<Reply>) -> Self {
        match reply {
            Ok(reply) => match (reply.status(), reply.text(1)) {
                (Ok("RELEASED"), _) => Self::Released,
                (Ok("NOT_HELD" | "FORMAT"), _) | (Ok("WRONGTYPE"), Ok("holder")) => Self::NotHeld,
                // The script says so ahead of its first write, about the fence counter or the
                // queue.
                (Ok("WRONGTYPE"), _) => Self::NoEffect,
                _ => Self::Unknown,
            },
            // The server says so about the key of the holders, which the script reads before all
            // others.
            Err(error) if error.kind() == ErrorKind::WrongType => Self::NotHeld,
            Err(error) if had_no_effect(error) => Self::NoEffect,
            Err(_) => Self::Unknown,
        }
    }
}

/// While a lease is at stake, its server is dialled each `1 / DIALS` of the length of the lease.
const DIALS: u32 = 20;

/// The longest pause of a release whose server does not answer.
const OUTAGE_PAUSE: Duration = Duration::from_secs(1);

/// How long a subscription may take: as long as the lease, within these limits.
const SHORTEST_LISTEN: Duration = Duration::from_secs(1);
const LONGEST_LISTEN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::core::keeper_task::registry;
    use crate::sync::core::keys::Keys;
    use crate::sync::core::owner::Owner;
    use crate::sync::fence::Fence;
    use crate::sync::lock::LOCK;
    use crate::time::Ttl;

    #[tokio::test]
    async fn a_release_that_was_not_sent_has_given_nothing_up() {
        let client = Client::builder().url("redis://127.0.0.1:1");
        let client = client.deadline(Duration::from_millis(100)).open();
        let client = client.expect("a good URL");
        let keys = Keys::of(&client, &LOCK, &client.name("a")).expect("a good name");
        let lease = Ttl::new("the lease", Duration::from_secs(30)).expect("in range");
        let granted = (Instant::now(), lease);
        let owner = Owner::random();
        let hold = Hold::new(keys.into(), owner, Fence(1), lease, None, granted, 0);
        release(
            registry(&client).keeper().clone(),
            client,
            Release::of(&hold, Instant::now()),
        )
        .await;
        assert!(!hold.may_be_released());
    }
}
