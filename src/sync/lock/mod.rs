//! Locks with fences: [`Lock`], its [`Guard`], and what [`Lock::inspect`] reports.
//!
//! Invariant: while a [`Guard`] reports that it is held, it is held on the server, as long as the
//! two clocks run at the same rate within 1 %. Its local deadline counts from before the command
//! was sent that granted or renewed the lease. Whatever becomes of a call, the keeper releases a
//! lease that has no guard. The mechanism is in `sync/core`, and this is its face. [`Client::lock`]
//! makes locks.

mod guard;
mod inspect;
mod kind;

use std::fmt;
use std::pin::pin;
use std::time::Duration;

use tracing::Instrument as _;

pub use guard::Guard;
pub use inspect::{Holder, LockInfo, Waiter};
pub(in crate::sync) use kind::LOCK;

pub use super::fence::Fence;
pub use super::loss::LossReason;
use crate::client::Client;
use crate::error::{ErrorKind, Result};
use crate::script::script;
use crate::sync::core::acquirer::Acquirer;
use crate::sync::core::held::Held;
use crate::time::OnOutage;

script!(BREAK = "break.lua" after "../core/queue.lua", "holder.lua", "../core/grants.lua");
script!(INSPECT = "inspect.lua" after "../core/queue.lua", "holder.lua");

/// A named lock, made by [`Client::lock`]. It does nothing until it is acquired.
///
/// A clone is another handle on the same name. Locks of one name exclude each other over all
/// processes that use the same server and namespace.
#[derive(Clone)]
#[must_use = "a lock excludes nobody until it is acquired"]
pub struct Lock(Acquirer);

impl Client {
    /// Returns the lock with this name. The first call returns `InvalidInput` if the name is
    /// invalid.
    pub fn lock(&self, name: &str) -> Lock {
        Lock(Acquirer::new(self, &LOCK, name))
    }
}

impl Lock {
    /// Sets how long the server keeps the lock for a holder that no longer renews it: 30 s by
    /// default, at least 10 ms. A live guard renews the lease at a third of it.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.0.lease = lease;
        self
    }

    /// Sets how long [`acquire`](Self::acquire) waits for the lock. The default is
    /// [`deadline`](Self::deadline).
    pub fn wait(mut self, wait: Duration) -> Self {
        self.0.wait = Some(wait);
        self
    }

    /// Sets how long a call that does not wait for the lock may take in all, retries included. The
    /// default is that of the [client](crate::ClientBuilder::deadline). More than 100 years count
    /// as 100 years.
    ///
    /// [`acquire`](Self::acquire) ends by [`wait`](Self::wait); this limits each of its questions.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.0.patience = self.0.patience.within(deadline);
        self
    }

    /// Sets what calls of this lock do while its server is out. The default is that of the
    /// [client](crate::ClientBuilder::on_outage). Guards are renewed and released in any case. A
    /// call that waits for the lock already is limited by [`wait`](Self::wait) instead.
    pub fn on_outage(mut self, on_outage: OnOutage) -> Self {
        self.0.patience.on_outage = on_outage;
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
        self.0.max_hold = Some(limit);
        self
    }

    /// Sets a text of at most 1 KiB, with which [`inspect`](Self::inspect) tells people who holds
    /// the lock. The server stores it, so keep secrets out of it.
    pub fn metadata(mut self, text: &str) -> Self {
        self.0.metadata = text.into();
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
        let span = tracing::debug_span!(target: "hedgerow::lock", "acquire", lock = self.0.name.shown().as_str());
        // Pinned here, because it is large: the span around it would hold a copy.
        let acquired = pin!(self.acquired());
        acquired.instrument(span).await
    }

    async fn acquired(&self) -> Result<Guard> {
        let request = self.0.request(self.0.metadata.clone())?;
        Ok(self.guard(self.0.acquire(request).await?))
    }

    /// Acquires the lock if it is free now. Returns `None` if it is not, or if others wait for it.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), without `Contended`.
    ///
    /// # Cancel safety
    /// Safe, as [`acquire`](Self::acquire).
    pub async fn try_acquire(&self) -> Result<Option<Guard>> {
        let request = self.0.request(self.0.metadata.clone())?;
        let held = self.0.try_acquire(request).await?;
        Ok(held.map(|held| self.guard(held)))
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
            reason = guard.lost() => return Err(guard.error(reason)),
            output = body(guard.fence()) => output,
        };
        if let Some(reason) = guard.loss() {
            return Err(guard.error(reason));
        }
        if let Err(error) = guard.release().await {
            if error.kind() == ErrorKind::Lost {
                return Err(error);
            }
            // The body ended while the lock was held, so its output counts. The keeper goes on
            // releasing.
            tracing::debug!(target: "hedgerow::lock", lock = self.0.name.shown().as_str(), %error, "release is left to the keeper");
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
        let reply = self.0.run(&INSPECT).await?;
        if reply.status()? != "OK" {
            return Err(reply.unexpected().with_key(&self.0.name));
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

    /// Takes the lock away from its holder. The holder's guard is lost: a push reports that at
    /// once, or else its next renewal does. Returns whether the lock was held. The next waiter gets
    /// it.
    ///
    /// # Errors
    /// What kept the server from answering. After an indeterminate error, call
    /// [`inspect`](Self::inspect) before you try again: the next holder may have the lock by then.
    ///
    /// # Cancel safety
    /// If the call is dropped, the lock is broken or not.
    pub async fn break_lock(&self) -> Result<bool> {
        let reply = self.0.run(&BREAK).await?;
        match reply.status()? {
            "BROKEN" => Ok(true),
            "FREE" => Ok(false),
            _ => Err(reply.unexpected().with_key(&self.0.name)),
        }
    }

    fn guard(&self, held: Held) -> Guard {
        Guard::new(held, self.0.registry().clone())
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lock").field(&self.0).finish()
    }
}
