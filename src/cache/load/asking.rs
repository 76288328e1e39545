//! How a flight gets the lease: it asks until the lease is granted, or a value is found.
//!
//! Invariant: what a flight takes from Redis, a value or the record of a failure, was read after
//! the flight was closed, so that all who joined may have it. First step of a [`Load`].

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::admission::Admitted;
use super::failure::Failure;
use super::flight::Outcome;
use super::lease::Grant;
use super::wake::WakeUp;
use super::{Load, deserted};
use crate::cache::read::fetch;
use crate::cache::read::reading::{ReadFrom, Reading};
use crate::cache::store_request::StoreRequest;
use crate::error::{Error, Result};
use crate::tags::TagState;
use crate::time::Backoff;

/// The result of asking for the lease.
pub(super) enum Granted<V> {
    /// The lease is held. The value must be stamped with these generations.
    Lead(Vec<TagState>),
    /// A valid value was found in Redis.
    Found(Arc<V>),
    /// The loads of others were of no use, or took too long.
    Alone,
    /// No call waits for this flight any more.
    Deserted,
}

/// How old the snapshot of a flight is.
#[derive(Debug, Clone, Copy)]
enum Age {
    /// From the read that led to this request for the lease.
    Fresh,
    /// As old as the wait for the lease.
    Waited,
}

/// Why a flight that waits for another leader stops waiting.
enum Woken {
    /// A wake-up says that a value was stored.
    ByStore,
    /// The load may have ended, a wake-up may have been missed, or a timer has run out.
    Otherwise,
    /// No call waits for this flight any more.
    Deserted,
}

impl<V: DeserializeOwned + Send + Sync + 'static> Load<V> {
    /// Asks for the lease until it is granted, a value or the record of a failure is found, or no
    /// call wants either.
    pub(super) async fn lease(
        &mut self,
        creator: &mut oneshot::Sender<Result<Arc<V>>>,
    ) -> Result<Granted<V>> {
        let client = self.request.cache.client.clone();
        let key = self.request.place.name.clone();
        // Opened before the first request, so that no end of the lease is missed.
        let mut listener = self.request.state.listeners.open(&self.request.place.value);
        let mut promised = Backoff::new(SHORTEST_PROMISED, LONGEST_PROMISED, SPREAD);
        let mut unheard = Backoff::new(SHORTEST_UNHEARD, LONGEST_UNHEARD, SPREAD);
        for attempt in 0u32.. {
            if self.rounds.alone() {
                return Ok(Granted::Alone);
            }
            if Instant::now() >= self.rounds.over() {
                return self.out_of_time();
            }
            // Before the lease is asked for: a lease that is held meanwhile would stop others.
            let admitted = self.admitted(creator).await?;
            if admitted == Admitted::Deserted {
                return Ok(Granted::Deserted);
            }
            // Subscribe first: then whatever ends the lease after the request is heard.
            let value = &self.request.place.value;
            let mut missed = client.resync(value);
            let listeners = &self.request.state.listeners;
            let question = self.ask();
            let channel = listeners.channel(&client, value, question.deadline).await;
            drop(question);
            // Older messages say nothing: the request that follows sees the state that they
            // announced.
            listener.clear();
            // Read before the request: a record proves something for all followers only if the
            // flight was closed by then.
            let closed = self.leader.is_closed();
            let question = self.ask();
            let (channel, deadline) = (channel.as_ref(), question.deadline);
            let grant = self
                .lease
                .acquire(&self.seen, self.dead, channel, deadline, self.longest())
                .await;
            drop(question);
            let (takeover, noted, fence) = match grant {
                Ok(Grant::Lead { fence, takes_over }) => {
                    tracing::debug!(target: "hedgerow::cache", key = key.shown().as_str(), fence, attempt, takes_over, "lead");
                    if takes_over {
                        self.request.cache.setup.counts.takeovers.one_more();
                    }
                    let generations = self
                        .stamps(match (attempt, admitted) {
                            (0, Admitted::AtOnce) => Age::Fresh,
                            _ => Age::Waited,
                        })
                        .await?;
                    return Ok(Granted::Lead(generations));
                }
                Ok(Grant::Changed) => match self.take().await? {
                    Some(value) => return Ok(Granted::Found(value)),
                    None => continue,
                },
                Ok(Grant::Failed { fence, record }) => {
                    if !closed {
                        self.leader.close();
                        // This record was read before the flight was closed, so it proves nothing
                        // for the last calls that joined. It is asked for again.
                        if self.leader.has_joined() {
                            continue;
                        }
                    }
                    match self.failed_elsewhere(record).await? {
                        Some(error) => return Err(error),
                        None => self.dead = Some(fence),
                    }
                    continue;
                }
                Ok(Grant::Busy {
                    takeover,
                    noted,
                    fence,
                }) => {
                    if let Some(member) = &self.member {
                        // The others of the batch do not wait for a load elsewhere.
                        member.decide();
                    }
                    // Others may load while this waits.
                    self.permit = None;
                    (takeover, noted, fence)
                }
                Err(error) => return Err(error),
            };
            if self
                .awaited
                .replace(fence)
                .is_some_and(|before| before != fence)
            {
                // A new fence shows that the load before has ended, and without a value.
                self.rounds.another();
                if self.rounds.alone() {
                    return Ok(Granted::Alone);
                }
            }
            tracing::debug!(target: "hedgerow::cache", key = key.shown().as_str(), attempt, noted, "wait");
            // With a wake-up promised, the timer only covers lost messages and can be slow.
            let pause = match noted {
                true => promised.pause(),
                false => unheard.pause(),
            };
            let until = Instant::now() + pause.min(takeover);
            let until = until.min(self.rounds.patience());
            let woken = async {
                tokio::select! {
                    hint = listener.hint() => match hint {
                        WakeUp::Stored => Woken::ByStore,
                        WakeUp::Ended => Woken::Otherwise,
                    },
                    () = tokio::time::sleep_until(until) => Woken::Otherwise,
                    () = missed.needed() => Woken::Otherwise,
                    () = deserted(creator, &self.leader) => Woken::Deserted,
                }
            };
            match woken.await {
                Woken::ByStore => {
                    if let Some(value) = self.take().await? {
                        return Ok(Granted::Found(value));
                    }
                }
                Woken::Otherwise => {}
                Woken::Deserted => return Ok(Granted::Deserted),
            }
        }
        unreachable!("a flight asks until it is answered")
    }

    /// Takes what another leader has stored. The flight is closed first, so the value is read after
    /// all calls that joined began.
    async fn take(&mut self) -> Result<Option<Arc<V>>> {
        let closed = self.leader.close();
        let StoreRequest { cache, place, .. } = &self.request;
        let (tags, question) = (self.request.declared(), self.ask());
        // A replica may not have the new entry yet.
        let (from, deadline) = (ReadFrom::Primary, question.deadline);
        let reading = fetch::read::<Arc<V>>(cache, &place.value, tags, from, deadline).await;
        drop(question);
        match reading? {
            Reading::Hit(value) => {
                closed.settle(Outcome::Value {
                    value: value.clone(),
                    proved: true,
                });
                Ok(Some(value))
            }
            Reading::Old(_, miss) | Reading::Miss(miss) => {
                // Any client may publish a wake-up, so a load has ended only if the entry shows it.
                // If the entry was removed at once, the next fence shows that the load has ended.
                if miss.seen == self.seen {
                    closed.settle(Outcome::NoLoad);
                } else {
                    closed.settle(Outcome::Again);
                    self.rounds.another();
                    self.awaited = None;
                }
                self.seen = miss.seen;
                self.snapshot = miss.snapshot;
                self.others = miss.others;
                Ok(None)
            }
        }
    }

    /// Returns the error that `record` describes, if the record is still valid. Then the followers
    /// get the error, too. The flight is closed. It was closed when the record was asked for, too,
    /// or no call had joined.
    async fn failed_elsewhere(&self, record: Bytes) -> Result<Option<Error>> {
        let StoreRequest { cache, tags, .. } = &self.request;
        let question = self.ask();
        let judged = fetch::record::<Failure>(
            cache,
            &self.request.place.lease,
            record,
            tags,
            question.deadline,
        )
        .await?;
        let error = judged.map(|failure| self.request.named(failure.error()));
        if let Some(error) = &error {
            self.leader.close().settle(Outcome::Failed {
                error: error.clone(),
                proved: true,
            });
        }
        Ok(error)
    }

    /// Returns the generations that the value will be stamped with. The lease is held. If this
    /// fails and the cache does not bypass the error, the flight is closed and the lease is given
    /// up.
    async fn stamps(&self, snapshot: Age) -> Result<Vec<TagState>> {
        let question = self.ask();
        let deadline = question.deadline;
        let generations = match snapshot {
            // An entry that is stamped with generations from before the wait could be invalid on
            // arrival.
            Age::Waited => self.request.generations(deadline).await,
            Age::Fresh => self.request.settled(&self.snapshot, deadline).await,
        };
        if let Err(error) = &generations
            && !self.request.cache.setup.outage.bypasses(error)
        {
            // Closed first: a call that this wakes must not join a flight that has failed.
            self.leader.close();
            drop(question);
            let question = self.ask();
            self.lease.abandon(question.deadline).await;
        }
        generations
    }
}

/// The pauses of a flight that was promised a wake-up. The wake-up may be lost.
const SHORTEST_PROMISED: Duration = Duration::from_secs(1);
const LONGEST_PROMISED: Duration = Duration::from_secs(10);

/// The pauses of a flight that gets no wake-up.
const SHORTEST_UNHEARD: Duration = Duration::from_millis(50);
const LONGEST_UNHEARD: Duration = Duration::from_secs(1);

/// Spreads the pauses so that processes do not ask in step.
const SPREAD: Range<f64> = 0.75..1.25;
