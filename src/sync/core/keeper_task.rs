//! The tasks of the keeper: what is due becomes calls.
//!
//! Invariant: a task keeps the registry alive only while it runs. It ends when there is nothing to
//! keep. The keeper spawns the tasks, and each `Acquirer` gets its registry here.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};

use super::agenda::Due;
use super::first_try::take_over;
use super::jobs::{listen, release, renew};
use super::keeper::{TaskGuard, Worker};
use super::keeper_state::Work;
use super::queue_task::QueueTask;
use super::registry::Registry;
use crate::client::Client;

/// Returns what the synchronizers of `client` share.
pub(in crate::sync) fn registry(client: &Client) -> Arc<Registry> {
    let locks = client.shared(Registry::default);
    locks.keeper().employ(|| {
        let worker: Arc<dyn Worker> = locks.clone();
        Arc::downgrade(&worker)
    });
    locks
}

impl Worker for Registry {
    fn keep(self: Arc<Self>, guard: TaskGuard) -> BoxFuture<'static, ()> {
        Box::pin(run(self, guard))
    }
}

/// A task of the keeper. Spawned by the first call in a runtime that may need it, it ends when
/// there is nothing to keep. If it panics or its runtime ends, the tasks of other runtimes go on,
/// or the next call that needs a task starts one. Without any task, guards expire by their local
/// deadlines, and what was to be released expires by its lease.
async fn run(locks: Arc<Registry>, guard: TaskGuard) {
    let keeper = locks.keeper();
    let mut work: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
    loop {
        let under_way = match work.is_empty() {
            true => Work::Done,
            false => Work::UnderWay,
        };
        // A task with work in flight must not end: nobody else polls that work.
        let Some(look) = keeper.look(guard.number, under_way) else {
            return;
        };
        for keys in look.unattended {
            QueueTask::adopt(&locks, &keys);
        }
        if look.look {
            look_after(&locks, look.client.as_ref());
        }
        if let Some(client) = look.client {
            work.extend(jobs(&locks, &client, look.due));
        }
        tokio::select! {
            () = tokio::time::sleep_until(look.next) => {}
            // Woken for a note that is due before the next look.
            () = guard.nudge.notified() => {}
            Some(()) = work.next(), if !work.is_empty() => {}
        }
    }
}

/// Takes over questions and offers whose callers no longer poll.
fn look_after(locks: &Arc<Registry>, client: Option<&Client>) {
    let keeper = locks.keeper();
    let found = keeper.unpolled();
    // Woken after unlocking, because a waker may run anything.
    for question in found.to_wake {
        question.pulse.knock();
    }
    let Some(client) = client else { return };
    for question in found.questions {
        take_over(locks, client, &question);
    }
    for hold in found.offers {
        if hold.take_back() {
            tracing::debug!(target: "hedgerow::sync", kind = hold.keys.kind.name, name = hold.keys.name.shown().as_str(), "acquire is not polled; its grant is given back");
            keeper.discard(client, &hold);
        }
    }
    keeper.settle_idle();
}

/// Returns what is due, as calls.
fn jobs(locks: &Arc<Registry>, client: &Client, due: Due) -> Vec<BoxFuture<'static, ()>> {
    let (keeper, inboxes) = (locks.keeper(), locks.inboxes());
    let mut jobs: Vec<BoxFuture<'static, ()>> = Vec::new();
    for holds in due.lasting {
        jobs.push(Box::pin(listen(
            inboxes.clone(),
            keeper.clone(),
            client.clone(),
            holds,
        )));
    }
    for mut holds in due.batches {
        holds.retain(|hold| {
            // An ended hold must not be renewed: its guard has reported the loss, and what it held
            // must become free.
            let ended = hold.status().is_err();
            if ended {
                keeper.retire(client, hold);
            }
            !ended
        });
        if !holds.is_empty() {
            jobs.push(Box::pin(renew(keeper.clone(), client.clone(), holds)));
        }
    }
    for it in due.releases {
        jobs.push(Box::pin(release(keeper.clone(), client.clone(), it)));
    }
    jobs
}
