//! Locks with fences: [`Lock`], its [`Guard`], and what [`Lock::inspect`] reports.
//!
//! Invariant: while a [`Guard`] reports that it is held, it is held on the server, as long as the
//! two clocks run at the same rate within 1 %. Its local deadline counts from before the command
//! was sent that granted or renewed the lease. Whatever becomes of a call, the keeper releases a
//! lease that has no guard. The mechanism is in `sync/core`, and this is its face. [`Client::lock`]
//! makes locks.

mod guard;
mod inspect;

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;

pub use guard::Guard;
pub use inspect::{Holder, LockInfo, Waiter};

pub use super::fence::Fence;
pub use super::loss::LossReason;
use crate::client::{Client, Purpose, Written};
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::name::Name;
use crate::script::script;
use crate::sync::core::answer::{AcquireReply, LastBusy};
use crate::sync::core::first_try::FirstTry;
use crate::sync::core::held::Held;
use crate::sync::core::keeper_task::registry;
use crate::sync::core::keys::Keys;
use crate::sync::core::registry::Registry;
use crate::sync::core::request::{AcquireRequest, Queueing};
use crate::sync::core::ticket::Ticket;
use crate::time::{OnOutage, Patience, Ttl, jittered};

script!(BREAK = "break.lua" after "../core/prelude.lua");
script!(INSPECT = "inspect.lua" after "../core/prelude.lua");

/// A named lock, made by [`Client::lock`]. It does nothing until it is acquired.
///
/// A clone is another handle on the same name. Locks of one name exclude each other over all
/// processes that use the same server and namespace.
#[derive(Clone)]
#[must_use = "a lock excludes nobody until it is acquired"]
pub struct Lock {
    client: Client,
    locks: Arc<Registry>,
    name: Name,
    /// Spelt once. The first call returns `InvalidInput` if the name is invalid.
    keys: Result<Arc<Keys>>,
    lease: Duration,
    wait: Option<Duration>,
    max_hold: Option<Duration>,
    metadata: Arc<str>,
    patience: Patience,
}

impl Client {
    /// Returns the lock with this name. The first call returns `InvalidInput` if the name is
    /// invalid.
    pub fn lock(&self, name: &str) -> Lock {
        let name = self.name(name);
        let keys = Keys::of(self, &name).map(Arc::new);
        Lock {
            keys: keys.map_err(|error| error.with_key(&name)),
            client: self.clone(),
            locks: registry(self),
            name,
            lease: Duration::from_secs(30),
            wait: None,
            max_hold: None,
            metadata: "".into(),
            patience: self.patience(),
        }
    }
}

impl Lock {
    /// Sets how long the server keeps the lock for a holder that no longer renews it: 30 s by
    /// default, at least 10 ms. A live guard renews the lease at a third of it.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Sets how long [`acquire`](Self::acquire) waits for the lock. The default is
    /// [`deadline`](Self::deadline).
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// Sets how long a call that does not wait for the lock may take in all, retries included. The
    /// default is that of the [client](crate::ClientBuilder::deadline). More than 100 years count
    /// as 100 years.
    ///
    /// [`acquire`](Self::acquire) ends by [`wait`](Self::wait); this limits each of its questions.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.patience = self.patience.within(deadline);
        self
    }

    /// Sets what calls of this lock do while its server is out. The default is that of the
    /// [client](crate::ClientBuilder::on_outage). Guards are renewed and released in any case. A
    /// call that waits for the lock already is limited by [`wait`](Self::wait) instead.
    pub fn on_outage(mut self, on_outage: OnOutage) -> Self {
        self.patience.on_outage = on_outage;
        self
    }

    /// Fails at once while the server is out, instead of waiting for it. Short for
    /// [`on_outage`](Self::on_outage) with [`OnOutage::FailFast`].
    pub fn fail_fast(self) -> Self {
        self.on_outage(OnOutage::FailFast)
    }

    /// Sets the longest time that one guard may hold the lock, renewals included. No limit by
    /// default. After it, the guard is lost and the lock is released, so a hung holder blocks no
    /// other.
    pub fn max_hold(mut self, limit: Duration) -> Self {
        self.max_hold = Some(limit);
        self
    }

    /// Sets a text of at most 1 KiB, with which [`inspect`](Self::inspect) tells people who holds
    /// the lock. The server stores it, so keep secrets out of it.
    pub fn metadata(mut self, text: &str) -> Self {
        self.metadata = text.into();
        self
    }

    /// Acquires the lock, in the order of arrival. Waits up to [`wait`](Self::wait).
    ///
    /// # Errors
    /// `Contended` if the server says that the lock was not free in time. `InvalidInput` if the
    /// name or a duration is invalid. `WrongType` if another version of hedgerow writes the locks
    /// of the namespace in another format. Otherwise, what kept the server from answering. After
    /// any error the lock is not held. If the server has granted it and the answer was lost, it is
    /// released in the background.
    ///
    /// # Cancel safety
    /// Safe: a dropped call gives up its position in the queue and, if the lock was granted, the
    /// lock. A call that is kept and not polled loses them, too, after about half a second. When it
    /// is polled again, it joins the end of the local queue.
    pub async fn acquire(&self) -> Result<Guard> {
        let span = tracing::debug_span!(target: "hedgerow::lock", "acquire", lock = self.name.shown().as_str());
        // Pinned here, because it is large: the span around it would hold a copy.
        let acquired = pin!(self.acquired());
        acquired.instrument(span).await
    }

    async fn acquired(&self) -> Result<Guard> {
        let request = self.request()?;
        let now = Instant::now();
        let until = match self.wait {
            Some(wait) => now + Ttl::new("the wait", wait)?.duration(),
            None => self.patience.deadline_from(now).at,
        };
        self.agree(&request, now, until).await?;
        let locks = &self.locks;
        let now = Instant::now();
        let deadline = self.patience.deadline_from(now).at_most(until);
        // The uncontended case: the caller asks by itself, without a task.
        let Some(attempt) = FirstTry::begin(locks, &request, deadline, now) else {
            // The local queue waits out an outage, which this call must not do.
            if deadline.on_outage == OnOutage::FailFast
                && let Some(outage) = locks.outage(&request)
            {
                return Err(outage.with_key(&self.name));
            }
            return self.waited(locks, request, until).await;
        };
        let call = request.acquire(attempt.owner(), attempt.queueing());
        let Some(reply) = attempt.ask(call, deadline).await else {
            drop(attempt);
            return self.waited(locks, request, until).await;
        };
        match reply.and_then(|reply| AcquireReply::read(&reply)) {
            Ok(AcquireReply::Granted(fence, sent)) => match attempt.won(&request, fence, sent) {
                Some(held) => Ok(self.guard(held)),
                // The keeper had taken the question over, and has given the lock back.
                None => self.waited(locks, request, until).await,
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
                self.waiting(locks, ticket, request, until).await
            }
            Err(error) => {
                attempt.failed(&error);
                if self.gives_up(&error) || Instant::now() >= until {
                    return Err(error.with_key(&self.name));
                }
                // Another question, under another owner, from the local queue. The first owner may
                // still be granted the lock, and is left to the keeper.
                let fate = error.fate();
                let ticket = Ticket::join_after(locks, error, request.clone(), until);
                let waited = self.waiting(locks, ticket, request, until).await;
                waited.map_err(|error| match error.fate() {
                    // The wait has sent nothing, but the first question may have been executed.
                    Fate::NotExecuted => error.with_fate(fate),
                    _ => error,
                })
            }
        }
    }

    /// Acquires the lock if it is free now. Returns `None` if it is not, or if others wait for it.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), without `Contended`.
    ///
    /// # Cancel safety
    /// Safe, as [`acquire`](Self::acquire).
    pub async fn try_acquire(&self) -> Result<Option<Guard>> {
        let request = self.request()?;
        let locks = &self.locks;
        let now = Instant::now();
        let deadline = self.patience.deadline_from(now);
        self.agree(&request, now, deadline.at).await?;
        loop {
            let now = Instant::now();
            let attempt = match FirstTry::begin(locks, &request, deadline, now) {
                Some(attempt) => attempt,
                None if locks.waited_for(&request)? => return Ok(None),
                // No recent answer says that others wait for the lock, so this call asks for
                // itself.
                None => FirstTry::aside(locks, &request, deadline, now),
            };
            let call = request.acquire(attempt.owner(), Queueing::No);
            let Some(reply) = attempt.ask(call, deadline).await else {
                continue;
            };
            match reply.and_then(|reply| AcquireReply::read(&reply)) {
                Ok(AcquireReply::Granted(fence, sent)) => {
                    if let Some(held) = attempt.won(&request, fence, sent) {
                        return Ok(Some(self.guard(held)));
                    }
                    // The keeper had taken the question over, and has given the lock back: asks
                    // again.
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

    /// Runs `body` while holding the lock. If the lock is lost, drops `body` at once where it
    /// waits, and otherwise at its next await point.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire). `Lost` if the lock was lost before `body` ended, also if that
    /// is found only by the release. What the body has done until then stays done: let the resource
    /// check the fence.
    ///
    /// # Cancel safety
    /// Safe: the body is dropped and the lock released.
    pub async fn with<F, B>(&self, body: F) -> Result<B::Output>
    where
        F: FnOnce(Fence) -> B,
        B: Future,
    {
        let guard = self.acquire().await?;
        let output = tokio::select! {
            // The loss comes first: once it is known, the body must not be polled again.
            biased;
            reason = guard.lost() => return Err(reason.error(&self.name)),
            output = body(guard.fence()) => output,
        };
        if let Some(reason) = guard.loss() {
            return Err(reason.error(&self.name));
        }
        if let Err(error) = guard.release().await {
            if error.kind() == ErrorKind::Lost {
                return Err(error);
            }
            // The body ended while the lock was held, so its output counts. The keeper goes on
            // releasing.
            tracing::debug!(target: "hedgerow::lock", lock = self.name.shown().as_str(), %error, "release is left to the keeper");
        }
        Ok(output)
    }

    /// Returns who holds the lock and who waits for it, as the server reports.
    ///
    /// # Errors
    /// What kept the server from answering.
    ///
    /// # Cancel safety
    /// Safe: reads only.
    pub async fn inspect(&self) -> Result<LockInfo> {
        let request = self.request()?;
        let reply = self
            .client
            .run(request.call(&INSPECT), self.patience.deadline())
            .await
            .map_err(|error| error.with_key(&self.name))?;
        if reply.status()? != "OK" {
            return Err(reply.unexpected().with_key(&self.name));
        }
        let holder = match reply.text(1)? {
            "" => None,
            fence => Some(Holder {
                fence: Fence::parse(fence)?,
                remaining: Duration::from_millis(u64::try_from(reply.int(2)?).unwrap_or(0)),
                metadata: reply.text(3)?.to_owned(),
            }),
        };
        let waiters = (4..reply.len()).step_by(2).map(|index| {
            Ok(Waiter {
                waiting: Duration::from_millis(reply.count(index)?),
                metadata: reply.text(index + 1)?.to_owned(),
            })
        });
        Ok(LockInfo {
            holder,
            queue: waiters.collect::<Result<_>>()?,
        })
    }

    /// Takes the lock away from its holder. The holder's guard is told at once. Returns whether the
    /// lock was held. The next waiter gets it.
    ///
    /// # Errors
    /// What kept the server from answering. After an indeterminate error, call
    /// [`inspect`](Self::inspect) before you try again: the next holder may have the lock by then.
    ///
    /// # Cancel safety
    /// If the call is dropped, the lock is broken or not.
    pub async fn break_lock(&self) -> Result<bool> {
        let request = self.request()?;
        let reply = self
            .client
            .run(request.call(&BREAK), self.patience.deadline())
            .await;
        let reply = reply.map_err(|error| error.with_key(&self.name))?;
        match reply.status()? {
            "BROKEN" => Ok(true),
            "FREE" => Ok(false),
            _ => Err(reply.unexpected().with_key(&self.name)),
        }
    }

    /// Agrees with all other clients on one format of locks. Tries from `now` until `until`.
    async fn agree(
        &self,
        request: &AcquireRequest,
        mut now: Instant,
        until: Instant,
    ) -> Result<()> {
        let mut met = None;
        loop {
            let deadline = self.patience.deadline_from(now).at_most(until);
            let key = request.keys.lock();
            let agreed = self
                .client
                .agree(Written::Locks, key, Purpose::Write, deadline);
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
    async fn waited(
        &self,
        locks: &Arc<Registry>,
        request: AcquireRequest,
        until: Instant,
    ) -> Result<Guard> {
        let ticket = Ticket::join(locks, request.clone(), until);
        self.waiting(locks, ticket, request, until).await
    }

    /// Waits for `ticket`. In a box, because it is large: the acquire of a free lock need not have
    /// room for it.
    fn waiting<'l>(
        &'l self,
        locks: &'l Arc<Registry>,
        mut ticket: Ticket,
        request: AcquireRequest,
        until: Instant,
    ) -> BoxFuture<'l, Result<Guard>> {
        Box::pin(async move {
            loop {
                let look = Instant::now() + LOOK;
                match timeout_at(until.min(look), ticket.granted()).await {
                    Ok(Ok(Some(held))) => return Ok(self.guard(held)),
                    // The lock was granted while this was not polled, and taken back.
                    Ok(Ok(None)) => ticket = Ticket::join(locks, request.clone(), until),
                    Ok(Err(error)) => return Err(error.with_key(&self.name)),
                    Err(_) if Instant::now() < until => ticket.see_to_it(),
                    Err(_) => return Err(ticket.expired().with_key(&self.name)),
                }
            }
        })
    }

    fn guard(&self, held: Held) -> Guard {
        Guard::new(held, self.locks.clone())
    }

    /// Checks everything that a call needs.
    fn request(&self) -> Result<AcquireRequest> {
        let lease = Ttl::new("the lease", self.lease)?;
        if lease.duration() < SHORTEST_LEASE {
            return Err(Error::invalid(
                "the lease is shorter than 10 ms; it must outlast a few round trips",
            )
            .with_key(&self.name));
        }
        if self.metadata.len() > LONGEST_METADATA {
            return Err(Error::invalid(
                "the metadata is longer than 1 KiB; store a reference instead",
            )
            .with_key(&self.name));
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
            metadata: self.metadata.clone(),
        })
    }
}

impl fmt::Debug for Lock {
    /// Without the keys: one of them names the process.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock")
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

/// The pause after a question about the format that was not answered.
const BREATH: Duration = Duration::from_millis(50);

/// How often a waiter checks that a task of its process still queues for it.
const LOOK: Duration = Duration::from_secs(1);

/// A lease must outlast a few round trips.
const SHORTEST_LEASE: Duration = Duration::from_millis(10);
/// In bytes.
const LONGEST_METADATA: usize = 1024;
