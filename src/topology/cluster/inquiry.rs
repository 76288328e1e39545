//! `SlotQuery`: asks several servers for the slots at once. `RefreshTask`: the task that runs one
//! such query.
//!
//! Invariant: the task belongs to the [`Refresher`](super::refresh::Refresher), not to a caller.
//! Callers wait for it together, each with its own timer. A task that stands still with its runtime
//! is replaced. All callers get its outcome, also if it has failed.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use redis::{Pipeline, Value};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::slot_map::{Primary, SlotMap, no_slots};
use super::wire::{Asked, Range, ranges};
use crate::background::Task;
use crate::error::{Error, Result};
use crate::net::address::Address;
use crate::net::address_map::Addresses;
use crate::net::breaker::is_refusal;
use crate::pulse::TICK;
use crate::wire::fault::from_server;

/// A query that is running or has ended.
pub(in crate::topology) struct RefreshTask {
    /// A `watch` channel and not a oneshot: any number of callers read the same outcome.
    outcome: watch::Sender<Option<Result<Arc<SlotMap>>>>,
    /// Set after this struct is shared, since the task needs a reference to the struct.
    task: OnceLock<Task>,
}

impl RefreshTask {
    pub(in crate::topology) fn new() -> Arc<Self> {
        Arc::new(Self {
            outcome: watch::Sender::new(None),
            task: OnceLock::new(),
        })
    }

    pub(in crate::topology) fn spawned(&self, task: Task) {
        let _ = self.task.set(task);
    }

    pub(in crate::topology) fn ends(&self, outcome: Result<Arc<SlotMap>>) {
        self.outcome.send_replace(Some(outcome));
    }

    pub(in crate::topology) fn is_over(&self) -> bool {
        self.outcome.borrow().is_some()
    }

    /// Returns the task if it has ended without an outcome, or stands still.
    pub(in crate::topology) fn failed(&self) -> Option<&Task> {
        let task = self.task.get()?;
        let is_lost = task.is_finished() || task.pulse().stands_still_when_asked();
        (is_lost && !self.is_over()).then_some(task)
    }

    /// Waits for the outcome, for one `TICK` at most. The caller checks in between whether the task
    /// stands still.
    ///
    /// Cancel safety: safe.
    pub(in crate::topology) async fn outcome(
        &self,
        deadline: Instant,
    ) -> Option<Result<Arc<SlotMap>>> {
        let mut outcome = self.outcome.subscribe();
        let until = deadline.min(Instant::now() + TICK);
        let outcome = timeout_at(until, outcome.wait_for(Option::is_some)).await;
        outcome.ok()?.ok()?.clone()
    }
}

impl Drop for RefreshTask {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            // The task owns the refresher, which would otherwise live until the query ends.
            task.abort();
        }
    }
}

/// The answers of several servers to the question which slots they know.
pub(in crate::topology) struct SlotQuery<'c> {
    /// The questions that have no answer yet.
    open: FuturesUnordered<BoxFuture<'c, Result<Vec<Range>>>>,
    pub(in crate::topology) deadline: Instant,
    /// The servers that were asked.
    pub(in crate::topology) asked: Vec<Arc<Address>>,
    /// Servers that were asked because others named them as primaries. Their nodes are kept, since
    /// the next slot map probably uses them.
    pub(in crate::topology) named: SlotMap,
    /// One entry for each answer.
    pub(in crate::topology) heard: Vec<Vec<Range>>,
    /// The errors of the servers that gave no answer.
    failed: Vec<Error>,
}

impl<'c> SlotQuery<'c> {
    pub(in crate::topology) fn new(deadline: Instant) -> Self {
        Self {
            open: FuturesUnordered::new(),
            deadline,
            asked: Vec::new(),
            named: SlotMap::default(),
            heard: Vec::new(),
            failed: Vec::new(),
        }
    }

    pub(in crate::topology) fn ask(&mut self, addresses: &'c Addresses, peers: Vec<Primary>) {
        for peer in peers {
            self.asked.push(peer.address.clone());
            let said = fetch_slots(peer, addresses, self.deadline);
            self.open.push(said.boxed());
        }
    }

    /// Waits until `until` for a first answer, and then a little longer for the other answers.
    pub(in crate::topology) async fn listen(&mut self, until: Instant) {
        let mut end = until;
        while let Ok(Some(answer)) = timeout_at(end, self.open.next()).await {
            match answer {
                Ok(ranges) => self.heard.push(ranges),
                Err(error) => self.failed.push(error),
            }
            if !self.heard.is_empty() {
                // A server that is slow or out must not delay the refresh. The more servers have
                // answered, the less can the others change.
                let most = 2 * self.heard.len() > self.asked.len();
                let patience = if most { GRACE } else { HEAD_START };
                end = end.min(Instant::now() + patience);
            }
        }
    }

    /// The error of a query that no server has answered. It is a refusal only if all servers that
    /// were asked have refused: otherwise one of them may yet answer. Returns `None` if the only
    /// errors are refusals, and other servers are silent.
    pub(in crate::topology) fn failure(&self) -> Option<Error> {
        let refusal = self.failed.iter().find(|error| is_refusal(error));
        match (self.failed.iter().find(|error| !is_refusal(error)), refusal) {
            (Some(worst), Some(refusal)) => {
                let also = format!("another server says: {}", refusal.brief());
                Some(worst.clone().advising(&also))
            }
            (Some(worst), None) => Some(worst.clone()),
            (None, refusal) if self.failed.len() == self.asked.len() => refusal.cloned(),
            (None, _) => None,
        }
    }
}

/// Asks one server for the slots and for the configuration epochs. Sends nothing of a caller's.
async fn fetch_slots(
    peer: Primary,
    addresses: &Addresses,
    deadline: Instant,
) -> Result<Vec<Range>> {
    let mut questions = Pipeline::with_capacity(2);
    questions.cmd("CLUSTER").arg("SLOTS");
    questions.cmd("CLUSTER").arg("NODES");
    let deadline = deadline.min(Instant::now() + SLOTS_TIMEOUT);
    let replies = peer.node.link.send_all(&questions, deadline).await;
    let replies = replies.map_err(Error::of_own_question)?;
    let [slots, nodes] = replies.try_into().unwrap_or([Value::Nil, Value::Nil]);
    if let Value::ServerError(error) = &slots {
        let is_none = error.details().unwrap_or_default();
        // The server says so if it runs with `cluster-enabled no`.
        return Err(match is_none.contains("cluster support") {
            true => Error::invalid("the server is not part of a cluster; name it with `url`"),
            false => from_server(error),
        });
    }
    let asked = Asked {
        address: &peer.address,
        addresses,
    };
    match ranges(&slots, &nodes, asked) {
        Some(ranges) if !ranges.is_empty() => Ok(ranges),
        _ => Err(no_slots()),
    }
}

/// How long the primaries have before other servers are asked as well. After the first answer, the
/// other servers have the same time to answer.
pub(in crate::topology) const HEAD_START: Duration = Duration::from_millis(200);

/// How long the other servers have to answer once most have answered.
pub(in crate::topology) const GRACE: Duration = Duration::from_millis(50);

/// How long one server may take to report the slots.
pub(in crate::topology) const SLOTS_TIMEOUT: Duration = Duration::from_secs(1);
