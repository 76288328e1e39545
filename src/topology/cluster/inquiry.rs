//! `SlotQuery`: several servers are asked for the slots at once. `RefreshTask`: the task that does so.
//!
//! Invariant: the inquiry belongs to the census, not to a caller. Callers wait for it together,
//! each with its own timer, and one that stands still with its runtime is replaced. All of them get
//! its outcome, also if it has failed.

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
use crate::error::{Error, Fate, Result};
use crate::net::address::Address;
use crate::net::address_map::Addresses;
use crate::pulse::TICK;
use crate::wire::fault::from_server;

/// An inquiry under way, or over.
pub(in crate::topology) struct RefreshTask {
    outcome: watch::Sender<Option<Result<Arc<SlotMap>>>>,
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

    /// The task, if it has ended without an outcome, or stands still.
    pub(in crate::topology) fn failed(&self) -> Option<&Task> {
        let task = self.task.get()?;
        let is_lost = task.is_finished() || task.pulse().stands_still_when_asked();
        (is_lost && !self.is_over()).then_some(task)
    }

    /// Waits a moment for the outcome.
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
            task.abort();
        }
    }
}

/// What several servers say of the slots.
pub(in crate::topology) struct SlotQuery<'c> {
    open: FuturesUnordered<BoxFuture<'c, Result<Vec<Range>>>>,
    pub(in crate::topology) deadline: Instant,
    /// Who was asked.
    pub(in crate::topology) asked: Vec<Arc<Address>>,
    /// Servers that were asked because others named them; they may be in use soon.
    pub(in crate::topology) named: SlotMap,
    pub(in crate::topology) heard: Vec<Vec<Range>>,
    /// Why one of those who said nothing did not: one that refuses before one that is silent, since
    /// a refusal is not over by waiting.
    pub(in crate::topology) worst: Option<Error>,
}

impl<'c> SlotQuery<'c> {
    pub(in crate::topology) fn new(deadline: Instant) -> Self {
        Self {
            open: FuturesUnordered::new(),
            deadline,
            asked: Vec::new(),
            named: SlotMap::default(),
            heard: Vec::new(),
            worst: None,
        }
    }

    pub(in crate::topology) fn ask(&mut self, addresses: &'c Addresses, witnesses: Vec<Primary>) {
        for witness in witnesses {
            self.asked.push(witness.address.clone());
            let said = fetch_slots(witness, addresses, self.deadline);
            self.open.push(said.boxed());
        }
    }

    /// Waits for a first answer until `until`, and for those of the others a little longer.
    pub(in crate::topology) async fn listen(&mut self, until: Instant) {
        let mut end = until;
        while let Ok(Some(answer)) = timeout_at(end, self.open.next()).await {
            match answer {
                Ok(ranges) => self.heard.push(ranges),
                Err(error) => {
                    let known = self.worst.as_ref().map(Error::fate);
                    if known != Some(Fate::Refused) || error.fate() == Fate::Refused {
                        self.worst = Some(error);
                    }
                }
            }
            if !self.heard.is_empty() {
                let most = 2 * self.heard.len() > self.asked.len();
                let patience = if most { GRACE } else { HEAD_START };
                end = end.min(Instant::now() + patience);
            }
        }
    }
}

/// Asks one server for the slots, and how new what it knows is. Nothing of a caller's is sent.
async fn fetch_slots(
    witness: Primary,
    addresses: &Addresses,
    deadline: Instant,
) -> Result<Vec<Range>> {
    let mut questions = Pipeline::with_capacity(2);
    questions.cmd("CLUSTER").arg("SLOTS");
    questions.cmd("CLUSTER").arg("NODES");
    let deadline = deadline.min(Instant::now() + SLOTS_TIMEOUT);
    let replies = witness.node.link.send_all(&questions, deadline).await;
    let replies = replies.map_err(Error::of_own_question)?;
    let [slots, nodes] = replies.try_into().unwrap_or([Value::Nil, Value::Nil]);
    if let Value::ServerError(error) = &slots {
        let is_none = error.details().unwrap_or_default();
        return Err(match is_none.contains("cluster support") {
            true => Error::invalid("the server is not part of a cluster; name it with `url`"),
            false => from_server(error),
        });
    }
    let asked = Asked {
        address: &witness.address,
        addresses,
    };
    match ranges(&slots, &nodes, asked) {
        Some(ranges) if !ranges.is_empty() => Ok(ranges),
        _ => Err(no_slots()),
    }
}

/// How long the primaries may take before others are asked, too; and the rest, once one has
/// answered.
pub(in crate::topology) const HEAD_START: Duration = Duration::from_millis(200);

/// How long the rest may take once most have answered.
pub(in crate::topology) const GRACE: Duration = Duration::from_millis(50);

/// How long a server may take to tell the slots.
pub(in crate::topology) const SLOTS_TIMEOUT: Duration = Duration::from_secs(1);
