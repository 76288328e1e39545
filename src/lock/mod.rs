//! Fenced locks.
//!
//! Invariant: a [`Guard`] that says it is held is held on the server, as long as the two clocks
//! run at the same rate within 1 %: its local deadline counts from before the command was sent
//! that granted or renewed the lease. Whatever becomes of a call, a lease that no guard stands for
//! is released by the [`keeper`].
//!
//! One idea a file: [`guard`] the public face of a grant, [`hold`] what this process knows of it,
//! [`keeper`] the tasks that renew and release in the background, [`agenda`] what they have to do
//! and when, [`renewal`] their calls, [`watch`] the callers that they look after, [`attempt`] a
//! caller's own question to the server, [`line`] the waiters of this process, [`campaign`] their
//! one place in the queue on the server, [`place`] grants by push, [`release`](mod@release) the
//! next holder.

mod agenda;
mod attempt;
mod campaign;
mod guard;
mod hold;
mod keeper;
mod line;
mod place;
mod release;
mod renewal;
mod watch;

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;

pub use guard::Guard;
pub use hold::LossReason;

use crate::client::{Client, Purpose, Written};
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::key::{Bucket, Key};
use crate::name::Name;
use crate::script::{Call, Script, script};
use crate::time::{OnOutage, Patience, Ttl, jittered};
use agenda::Secret;
use attempt::Attempt;
use campaign::Standing;
use hold::{Owner, Seal};
use line::{Entry, Locks, Queueing};

script!(ACQUIRE = "acquire.lua" after "prelude.lua");
script!(RELEASE = "release.lua" after "prelude.lua");
script!(RELEASE_ALONE = "release_alone.lua");
script!(PASS = "pass.lua" after "prelude.lua");
script!(RENEW = "renew.lua");
script!(BREAK = "break.lua" after "prelude.lua");
script!(INSPECT = "inspect.lua" after "prelude.lua");

/// A number that rises with every grant of a lock.
///
/// Send it along with every write that the lock protects, and let the resource refuse a fence
/// smaller than one it has seen: that is what makes a holder harmless that was stopped past its
/// lease (Kleppmann, "How to do distributed locking", 2016). It fits an `i64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(u64);

impl Fence {
    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl From<Fence> for i64 {
    fn from(fence: Fence) -> Self {
        // Fences stay below 2^53 until the year 2255.
        i64::try_from(fence.0).unwrap_or(i64::MAX)
    }
}

/// A named lock, made by [`Client::lock`]. It does nothing until it is acquired.
///
/// Cloning gives another handle on the same name. Locks of one name exclude each other over all
/// processes that use the same server and namespace.
#[derive(Clone)]
#[must_use = "a lock excludes nobody until it is acquired"]
pub struct Lock {
    client: Client,
    locks: Arc<Locks>,
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
    /// The lock called `name`. The first call returns `InvalidInput` if the name is invalid.
    pub fn lock(&self, name: &str) -> Lock {
        let name = self.name(name);
        let keys = Keys::of(self, &name).map(Arc::new);
        Lock {
            keys: keys.map_err(|error| error.with_key(&name)),
            client: self.clone(),
            locks: Locks::of(self),
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
    /// How long the server keeps the lock for a holder it no longer hears from: 30 s by default,
    /// at least 10 ms. A live guard renews itself at a third of it.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// How long [`acquire`](Self::acquire) waits for the lock; by default as long as
    /// [`deadline`](Self::deadline).
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// How long a call may take in all that does not wait for the lock, retries included: by
    /// default as the client [says](crate::ClientBuilder::deadline). More than 100 years count as
    /// 100 years.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.patience = self.patience.within(deadline);
        self
    }

    /// What calls of this lock do while its server is out: by default as the client
    /// [says](crate::ClientBuilder::on_outage). Guards go on being renewed, and are released,
    /// whatever this says; and a call that waits for the lock already goes by [`wait`](Self::wait).
    pub fn on_outage(mut self, on_outage: OnOutage) -> Self {
        self.patience.on_outage = on_outage;
        self
    }

    /// Fails at once while the server is out, instead of waiting for it: the same as
    /// [`on_outage`](Self::on_outage) with [`OnOutage::FailFast`].
    pub fn fail_fast(self) -> Self {
        self.on_outage(OnOutage::FailFast)
    }

    /// The longest time that one guard may hold the lock, renewals included; no limit by default.
    /// Past it the guard is lost and the lock released, so that a hung holder blocks nobody.
    pub fn max_hold(mut self, limit: Duration) -> Self {
        self.max_hold = Some(limit);
        self
    }

    /// A text for [`inspect`](Self::inspect), to tell people who holds the lock: at most 1 KiB.
    /// It is stored on the server; keep secrets out of it.
    pub fn metadata(mut self, text: &str) -> Self {
        self.metadata = text.into();
        self
    }

    /// Acquires the lock, in the order of arrival, waiting up to [`wait`](Self::wait).
    ///
    /// # Errors
    /// `Contended` when the server says that it was not free in time; `InvalidInput` for a bad name
    /// or duration; `WrongType` when another version of hedgerow writes the locks of the namespace
    /// in another format; else what kept the server from answering. After any error the lock is not
    /// held: should the server have granted it unheard, it is released behind the scenes.
    ///
    /// # Cancel safety
    /// Safe: a dropped call gives up its place in the queue and, if it was granted, the lock. A
    /// call that is kept and not polled loses them, too, after about half a second; polled again,
    /// it joins the end of the line.
    pub async fn acquire(&self) -> Result<Guard> {
        let span = tracing::debug_span!(target: "hedgerow::lock", "acquire", lock = self.name.shown().as_str());
        // Pinned here, for it is large: the span around it would hold a copy.
        let acquired = pin!(self.acquired());
        acquired.instrument(span).await
    }

    async fn acquired(&self) -> Result<Guard> {
        let entry = self.entry()?;
        let now = Instant::now();
        let until = match self.wait {
            Some(wait) => now + Ttl::new("the wait", wait)?.duration(),
            None => self.patience.deadline_from(now).at,
        };
        self.agree(&entry, now, until).await?;
        let locks = &self.locks;
        let now = Instant::now();
        let deadline = self.patience.deadline_from(now).at_most(until);
        let Some(attempt) = locks.attempt(&entry, deadline, now) else {
            if deadline.on_outage == OnOutage::FailFast
                && let Some(outage) = locks.outage(&entry)
            {
                return Err(outage.with_key(&self.name));
            }
            return self.waited(locks, entry, until).await;
        };
        let call = entry.acquire(attempt.owner(), attempt.queueing());
        let Some(reply) = attempt.ask(call, deadline).await else {
            drop(attempt);
            return self.waited(locks, entry, until).await;
        };
        match reply.and_then(|reply| Answer::read(&reply)) {
            Ok(Answer::Granted(fence, sent)) => match attempt.won(&entry, fence, sent) {
                Some(guard) => Ok(guard),
                // Nobody was there to take it, and so it was given back.
                None => self.waited(locks, entry, until).await,
            },
            Ok(Answer::Busy {
                remaining,
                above,
                after,
                holder,
                sent,
            }) => {
                let standing = above.map(|above| Standing {
                    sent,
                    above,
                    after,
                    remaining,
                    asked: entry.clone(),
                });
                let ticket = attempt.queued(entry.clone(), standing, until, holder);
                self.waiting(locks, ticket, entry, until).await
            }
            Err(error) => {
                attempt.failed(&error);
                if self.gives_up(&error) || Instant::now() >= until {
                    return Err(error.with_key(&self.name));
                }
                // Another question, under another owner, from the line.
                let fate = error.fate();
                let ticket = locks.join_after(error, entry.clone(), until);
                let waited = self.waiting(locks, ticket, entry, until).await;
                waited.map_err(|error| match error.fate() {
                    Fate::NotExecuted => error.with_fate(fate),
                    _ => error,
                })
            }
        }
    }

    /// Acquires the lock if it is free now; `None` if it is not, or if others wait for it.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), without `Contended`.
    ///
    /// # Cancel safety
    /// Safe, as [`acquire`](Self::acquire).
    pub async fn try_acquire(&self) -> Result<Option<Guard>> {
        let entry = self.entry()?;
        let locks = &self.locks;
        let now = Instant::now();
        let deadline = self.patience.deadline_from(now);
        self.agree(&entry, now, deadline.at).await?;
        loop {
            let now = Instant::now();
            let attempt = match locks.attempt(&entry, deadline, now) {
                Some(attempt) => attempt,
                None if locks.waited_for(&entry)? => return Ok(None),
                None => Attempt::aside(locks, &entry, deadline, now),
            };
            let call = entry.acquire(attempt.owner(), Queueing::No);
            let Some(reply) = attempt.ask(call, deadline).await else {
                continue;
            };
            match reply.and_then(|reply| Answer::read(&reply)) {
                Ok(Answer::Granted(fence, sent)) => {
                    let guard = attempt.won(&entry, fence, sent);
                    if guard.is_some() {
                        return Ok(guard);
                    }
                    // Nobody was there to take it, and so it was given back: asks again.
                }
                Ok(Answer::Busy { .. }) => {
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

    /// Runs `body` while holding the lock, and drops it in mid-flight if the lock is lost.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire); `Lost` when the lock was lost before `body` ended, also if
    /// that is found only when it is released. What the body did until then stays done: let the
    /// resource check the fence.
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
            // The body ended while the lock was held; the keeper goes on releasing it.
            tracing::debug!(target: "hedgerow::lock", lock = self.name.shown().as_str(), %error, "release is left to the keeper");
        }
        Ok(output)
    }

    /// Who holds the lock and who waits for it, as the server knows.
    ///
    /// # Errors
    /// What kept the server from answering.
    ///
    /// # Cancel safety
    /// Safe: reads only.
    pub async fn inspect(&self) -> Result<LockInfo> {
        let entry = self.entry()?;
        let reply = self
            .client
            .run(entry.call(&INSPECT), self.patience.deadline())
            .await
            .map_err(|error| error.with_key(&self.name))?;
        if reply.status()? != "OK" {
            return Err(reply.unexpected().with_key(&self.name));
        }
        let holder = match reply.text(1)? {
            "" => None,
            fence => Some(Holder {
                fence: parsed_fence(fence)?,
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

    /// Takes the lock away from whoever holds it; their guard is told at once. Returns whether
    /// anybody held it. The next waiter gets it.
    ///
    /// # Errors
    /// What kept the server from answering. After an indeterminate error,
    /// [`inspect`](Self::inspect) before you try again: the next holder may have it by then.
    ///
    /// # Cancel safety
    /// The lock is broken or not.
    pub async fn break_lock(&self) -> Result<bool> {
        let entry = self.entry()?;
        let reply = self
            .client
            .run(entry.call(&BREAK), self.patience.deadline())
            .await;
        let reply = reply.map_err(|error| error.with_key(&self.name))?;
        match reply.status()? {
            "BROKEN" => Ok(true),
            "FREE" => Ok(false),
            _ => Err(reply.unexpected().with_key(&self.name)),
        }
    }

    /// Sees to it that all clients write locks in one format, trying from `now` until `until`.
    async fn agree(&self, entry: &Entry, mut now: Instant, until: Instant) -> Result<()> {
        let mut met = None;
        loop {
            let deadline = self.patience.deadline_from(now).at_most(until);
            let key = entry.keys.lock();
            let agreed = self
                .client
                .agree(Written::Locks, key, Purpose::Write, deadline);
            let Err(error) = agreed.await else {
                return Ok(());
            };
            let error = match met {
                // The time was over before it could be asked again: what it has met says more.
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

    /// Whether there is no use in waiting for the server after `error`.
    fn gives_up(&self, error: &Error) -> bool {
        let fails_fast = self.patience.on_outage == OnOutage::FailFast && error.kind().is_outage();
        fails_fast || error.fate() == Fate::Refused
    }

    /// Waits behind others of this process.
    async fn waited(&self, locks: &Arc<Locks>, entry: Entry, until: Instant) -> Result<Guard> {
        let ticket = locks.join(entry.clone(), until);
        self.waiting(locks, ticket, entry, until).await
    }

    /// Waits in line. In a box, for it is large: a lock that is free need not have room for it.
    fn waiting<'l>(
        &'l self,
        locks: &'l Arc<Locks>,
        mut ticket: line::Ticket,
        entry: Entry,
        until: Instant,
    ) -> BoxFuture<'l, Result<Guard>> {
        Box::pin(async move {
            loop {
                let look = Instant::now() + LOOK;
                match timeout_at(until.min(look), ticket.granted()).await {
                    Ok(Ok(Some(guard))) => return Ok(guard),
                    // It was granted while nobody polled this, and taken back.
                    Ok(Ok(None)) => ticket = locks.join(entry.clone(), until),
                    Ok(Err(error)) => return Err(error.with_key(&self.name)),
                    Err(_) if Instant::now() < until => ticket.see_to_it(),
                    Err(_) => return Err(ticket.expired().with_key(&self.name)),
                }
            }
        })
    }

    /// Checks everything that a call needs.
    fn entry(&self) -> Result<Entry> {
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
        Ok(Entry {
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

/// What [`Lock::inspect`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockInfo {
    /// Who holds the lock; `None` when it is free.
    pub holder: Option<Holder>,
    /// Who waits, in order: one entry for each process, not for each task; at most 100.
    pub queue: Vec<Waiter>,
}

/// The holder of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// The fence of its grant.
    pub fence: Fence,
    /// What is left of its lease, unless it renews it.
    pub remaining: Duration,
    /// What it says of itself.
    pub metadata: String,
}

/// A process in the queue of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waiter {
    /// How long it has waited.
    pub waiting: Duration,
    /// What its first waiter says of itself.
    pub metadata: String,
}

/// The keys of one lock.
#[derive(Clone)]
struct Keys {
    name: Name,
    all: [Key; 3],
    /// The channel on which this process is told of grants and losses in the bucket.
    channel: Key,
}

impl Keys {
    fn of(client: &Client, name: &Name) -> Result<Self> {
        let space = client.namespace();
        let bucket = Bucket::of(name.real());
        let wake = space.bucket_wake(bucket);
        Ok(Self {
            all: [
                space.synchronizer("lock", name.real())?,
                space.fence(bucket),
                space.synchronizer("queue", name.real())?,
            ],
            channel: wake.ending_in(client.process()),
            name: name.clone(),
        })
    }

    fn lock(&self) -> &Key {
        &self.all[0]
    }

    fn call(&self, script: &'static Script) -> Call {
        script.call(&self.all)
    }

    /// The call that gives up what `owner` has if nobody queues, and says so if it may not be so.
    fn release_alone(&self, owner: Owner) -> Call {
        RELEASE_ALONE.call([self.lock()]).arg(&owner.unqueued()[..])
    }

    /// The call that gives up what `owner` has.
    fn release(&self, owner: Owner, secret: Secret) -> Call {
        let call = self.call(&RELEASE).arg(&owner.unqueued()[..]);
        match secret {
            Secret::Said => call.arg(owner.secret().as_bytes()),
            Secret::Kept => call.arg(""),
        }
    }
}

impl fmt::Debug for Keys {
    /// By the name: the keys show it as it is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keys").field(&self.name).finish()
    }
}

/// What `acquire.lua` answered.
enum Answer {
    /// The fence, and when the question had not been sent yet.
    Granted(Fence, Instant),
    Busy {
        /// What is left of the holder's lease.
        remaining: Option<Duration>,
        /// The holder's fence: every later grant is above it.
        above: Option<Fence>,
        /// The seal of whoever hands over to the caller, if that is known.
        after: Option<Seal>,
        /// The holder, for people.
        holder: String,
        /// When the question had not been sent yet.
        sent: Instant,
    },
}

impl Answer {
    fn read(reply: &crate::script::Reply) -> Result<Self> {
        match reply.status()? {
            fence if fence.starts_with(|c: char| c.is_ascii_digit()) => {
                Ok(Self::Granted(parsed_fence(fence)?, reply.sent()))
            }
            "BUSY" => Ok(Self::Busy {
                remaining: u64::try_from(reply.int(1)?).ok().map(Duration::from_millis),
                above: parsed_fence(reply.text(2)?).ok(),
                after: Seal::parse(reply.text(4)?),
                holder: match (reply.text(2)?, reply.text(3)?) {
                    (fence, "") => format!("fence {fence}"),
                    (fence, metadata) => format!("fence {fence}, {metadata:?}"),
                },
                sent: reply.sent(),
            }),
            _ => Err(reply.unexpected()),
        }
    }
}

/// Whether a call that ended with `error` has surely changed nothing on the server.
fn had_no_effect(error: &Error) -> bool {
    match error.fate() {
        Fate::NotExecuted => true,
        // The server has said so itself. An answer that cannot be read was perhaps a grant.
        Fate::Refused => error.kind() != ErrorKind::Server,
        _ => false,
    }
}

fn parsed_fence(text: &str) -> Result<Fence> {
    let fence = text.parse().map_err(|_| {
        Error::new(
            ErrorKind::Server,
            "the server answered a fence that is not a number",
        )
    })?;
    Ok(Fence(fence))
}

/// The pause after a question about the format that was not answered.
const BREATH: Duration = Duration::from_millis(50);

/// How often a waiter looks whether its process still queues for it.
const LOOK: Duration = Duration::from_secs(1);

const SHORTEST_LEASE: Duration = Duration::from_millis(10);
const LONGEST_METADATA: usize = 1024;
