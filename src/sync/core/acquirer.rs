//! `Acquirer`: how a call acquires, for the faces of all synchronizers.
//!
//! Invariant: a call that ends without its grant leaves no lease, however it ends. It asks the
//! server by itself if no call of its process has to wait, and otherwise waits in the local queue.
//! Each face has an `Acquirer`, with the settings of its caller.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, timeout_at};

use super::answer::{AcquireReply, LastBusy};
use super::first_try::FirstTry;
use super::held::Held;
use super::keeper_task::registry;
use super::keys::Keys;
use super::kind::{Holders, Kind};
use super::queue_task::LOOK;
use super::registry::Registry;
use super::request::{AcquireRequest, Queueing};
use super::ticket::Ticket;
use crate::client::{Client, Purpose};
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::name::Name;
use crate::pulse::TICK;
use crate::script::{LazyScript, Reply};
use crate::time::{Deadline, OnOutage, Patience, Ttl, jittered};

/// How calls for one name acquire.
#[derive(Clone)]
pub(in crate::sync) struct Acquirer {
    client: Client,
    registry: Arc<Registry>,
    pub(in crate::sync) name: Name,
    /// Spelt once. The first call returns `InvalidInput` if the name is invalid.
    keys: Result<Arc<Keys>>,
    pub(in crate::sync) lease: Duration,
    pub(in crate::sync) wait: Option<Duration>,
    pub(in crate::sync) max_hold: Option<Duration>,
    pub(in crate::sync) metadata: Arc<str>,
    pub(in crate::sync) patience: Patience,
}

impl Acquirer {
    pub(in crate::sync) fn new(client: &Client, kind: &'static Kind, name: &str) -> Self {
        let name = client.name(name);
        let keys = Keys::of(client, kind, &name).map(Arc::new);
        Self {
            keys: keys.map_err(|error| error.with_key(&name)),
            client: client.clone(),
            registry: registry(client),
            name,
            lease: Duration::from_secs(30),
            wait: None,
            max_hold: None,
            metadata: "".into(),
            patience: client.patience(),
        }
    }

    pub(in crate::sync) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Checks everything that a call needs. `detail` is what the server stores with the holder.
    pub(in crate::sync) fn request(&self, detail: Arc<str>) -> Result<AcquireRequest> {
        let lease = Ttl::new("the lease", self.lease)?;
        let invalid = |message| Err(Error::invalid(message).with_key(&self.name));
        if lease.duration() < SHORTEST_LEASE {
            return invalid("the lease is shorter than 10 ms; it must outlast a few round trips");
        }
        if self.metadata.len() > LONGEST_METADATA {
            return invalid("the metadata is longer than 1 KiB; store a reference instead");
        }
        let max_hold = self
            .max_hold
            .map(|limit| Ttl::new("the longest hold", limit))
            .transpose()?;
        Ok(AcquireRequest {
            keys: self.keys.clone()?,
            client: self.client.clone(),
            lease,
            max_hold: max_hold.map(Ttl::duration),
            detail,
        })
    }

    /// Acquires what `request` asks for, in the order of arrival. Waits up to `wait`.
    ///
    /// Cancel safety: a dropped call gives up its position in the queue and what it was granted.
    pub(in crate::sync) async fn acquire(&self, request: AcquireRequest) -> Result<Held> {
        let now = Instant::now();
        let until = match self.wait {
            Some(wait) => now + Ttl::new("the wait", wait)?.duration(),
            None => self.patience.deadline_from(now).at,
        };
        self.agree(&request, now, until).await?;
        let registry = &self.registry;
        let now = Instant::now();
        let deadline = self.patience.deadline_from(now).at_most(until);
        let Some(attempt) = self.attempt(&request, deadline, now) else {
            // The local queue waits out an outage, which this call must not do.
            if deadline.on_outage == OnOutage::FailFast
                && let Some(outage) = registry.outage(&request)
            {
                return Err(outage.with_key(&self.name));
            }
            return self.join(request, until).await;
        };
        let call = request.acquire(attempt.owner(), attempt.queueing());
        let Some(reply) = attempt.ask(call, deadline).await else {
            drop(attempt);
            return self.join(request, until).await;
        };
        match reply.and_then(|reply| AcquireReply::read(&reply, request.keys.kind)) {
            Ok(AcquireReply::Granted(fence, sent)) => match attempt.won(&request, fence, sent) {
                Some(held) => Ok(held),
                // The keeper had taken the question over, and has given the grant back.
                None => self.join(request, until).await,
            },
            Ok(AcquireReply::Busy {
                remaining,
                above,
                after,
                holder,
                sent,
            }) => {
                let last_busy = above.map(|above| LastBusy {
                    sent,
                    above,
                    after,
                    remaining,
                    asked: request.clone(),
                });
                let ticket = attempt.queued(request.clone(), last_busy, until, holder);
                self.waited(ticket, request, until).await
            }
            Err(error) => {
                attempt.failed(&error);
                if self.gives_up(&error) || Instant::now() >= until {
                    return Err(error.with_key(&self.name));
                }
                // Another question, under another owner, from the local queue. The first owner may
                // still be granted what it asked for, and is left to the keeper.
                let fate = error.fate();
                let ticket = Ticket::join_after(registry, error, request.clone(), until);
                let waited = self.waited(ticket, request, until).await;
                waited.map_err(|error| match error.fate() {
                    // The wait has sent nothing, but the first question may have been executed.
                    Fate::NotExecuted => error.with_fate(fate),
                    _ => error,
                })
            }
        }
    }

    /// Acquires what `request` asks for if it is free now. `None` if it is not, or if others wait.
    ///
    /// Cancel safety: as [`acquire`](Self::acquire).
    pub(in crate::sync) async fn try_acquire(
        &self,
        request: AcquireRequest,
    ) -> Result<Option<Held>> {
        let registry = &self.registry;
        let now = Instant::now();
        let deadline = self.patience.deadline_from(now);
        self.agree(&request, now, deadline.at).await?;
        loop {
            let now = Instant::now();
            let attempt = match FirstTry::begin(registry, &request, deadline, now) {
                Some(attempt) => attempt,
                None if registry.waited_for(&request)? => return Ok(None),
                // No recent answer says that others wait, so this call asks for itself.
                None => FirstTry::aside(registry, &request, deadline, now),
            };
            let call = request.acquire(attempt.owner(), Queueing::No);
            let Some(reply) = attempt.ask(call, deadline).await else {
                continue;
            };
            match reply.and_then(|reply| AcquireReply::read(&reply, request.keys.kind)) {
                Ok(AcquireReply::Granted(fence, sent)) => {
                    if let Some(held) = attempt.won(&request, fence, sent) {
                        return Ok(Some(held));
                    }
                    // The keeper had taken the question over, and has given the grant back. So this
                    // call asks again.
                }
                Ok(AcquireReply::Busy { .. }) => {
                    attempt.lost();
                    return Ok(None);
                }
                Err(error) => {
                    attempt.failed(&error);
                    return Err(error.with_key(&self.name));
                }
            }
        }
    }

    /// Runs a script of the kind that takes no arguments.
    pub(in crate::sync) async fn run(&self, script: &'static LazyScript) -> Result<Reply> {
        let request = self.request(self.metadata.clone())?;
        let call = request.keys.call(script);
        let reply = self.client.run(call, self.patience.deadline()).await;
        reply.map_err(|error| error.with_key(&self.name))
    }

    /// Lets the call ask the server by itself: the usual case, without a task. `None` if others of
    /// this process come first.
    fn attempt(
        &self,
        request: &AcquireRequest,
        deadline: Deadline,
        now: Instant,
    ) -> Option<FirstTry> {
        let (registry, keys) = (&self.registry, &request.keys);
        let first = FirstTry::begin(registry, request, deadline, now);
        // What several may hold may be free for all callers, so none waits for another's answer.
        let beside = keys.kind.holders == Holders::Several && !registry.is_contended(keys);
        first.or_else(|| beside.then(|| FirstTry::aside(registry, request, deadline, now)))
    }

    /// Agrees with all other clients on one format. Tries from `now` until `until`.
    async fn agree(
        &self,
        request: &AcquireRequest,
        mut now: Instant,
        until: Instant,
    ) -> Result<()> {
        let keys = &request.keys;
        let mut met = None;
        loop {
            let deadline = self.patience.deadline_from(now).at_most(until);
            let written = keys.kind.written;
            let agreed = self
                .client
                .agree(written, keys.holders(), Purpose::Write, deadline);
            let Err(error) = agreed.await else {
                return Ok(());
            };
            let error = match met {
                // The time was over before the server could be asked again. The earlier error says
                // more.
                Some(met) if error.kind() == ErrorKind::Timeout => met,
                _ => error,
            };
            if self.gives_up(&error) || Instant::now() >= until {
                return Err(error.with_key(&self.name));
            }
            met = Some(error);
            tokio::time::sleep(jittered(BREATH, 0.5..1.0)).await;
            now = Instant::now();
        }
    }

    /// Returns whether it is useless to wait for the server after `error`.
    fn gives_up(&self, error: &Error) -> bool {
        let fails_fast = self.patience.on_outage == OnOutage::FailFast && error.kind().is_outage();
        fails_fast || error.fate() == Fate::Refused
    }

    /// Waits in the local queue, behind others of this process.
    async fn join(&self, request: AcquireRequest, until: Instant) -> Result<Held> {
        let ticket = Ticket::join(&self.registry, request.clone(), until);
        self.waited(ticket, request, until).await
    }

    /// Waits for `ticket`. In a box, because it is large: a call that need not wait need not have
    /// room for it.
    fn waited(
        &self,
        mut ticket: Ticket,
        request: AcquireRequest,
        until: Instant,
    ) -> BoxFuture<'_, Result<Held>> {
        Box::pin(async move {
            let mut pause = LOOK;
            loop {
                let look = next_look(Instant::now(), until, pause);
                match timeout_at(look, ticket.granted()).await {
                    Ok(Ok(Some(held))) => return Ok(held),
                    // Granted while this was not polled, and taken back.
                    Ok(Ok(None)) => ticket = Ticket::join(&self.registry, request.clone(), until),
                    Ok(Err(error)) => return Err(error.with_key(&self.name)),
                    Err(_) if Instant::now() < until => pause = ticket.see_to_it(),
                    Err(_) => return Err(ticket.expired().with_key(&self.name)),
                }
            }
        })
    }
}

impl fmt::Debug for Acquirer {
    /// Without the keys: one of them names the process.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acquirer")
            .field("client", &self.client)
            .field("name", &self.name)
            .field("lease", &self.lease)
            .field("wait", &self.wait)
            .field("max_hold", &self.max_hold)
            .field("metadata", &self.metadata)
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

/// When a waiter looks next at the task that queues for it: after `pause`, or when it gives up. The
/// last look comes so early that at the end the waiter can tell whether the task runs.
fn next_look(now: Instant, until: Instant, pause: Duration) -> Instant {
    let before_last = until.saturating_duration_since(now + 2 * TICK);
    match before_last.is_zero() {
        true => until,
        false => now + before_last.min(pause),
    }
}

/// The pause after a question about the format that was not answered.
const BREATH: Duration = Duration::from_millis(50);

/// A lease must outlast a few round trips.
const SHORTEST_LEASE: Duration = Duration::from_millis(10);

/// In bytes.
const LONGEST_METADATA: usize = 1024;
