//! Weighted semaphores: [`Semaphore`] and its [`Permits`].
//!
//! Invariant: as far as leases are alive, no more permits are held than the semaphore has. Waiters
//! are granted in the order of arrival: the first one holds up those behind it until it fits. The
//! mechanism is in `sync/core`, and this is its face. [`Client::semaphore`] makes semaphores.

mod permits;

use std::pin::pin;
use std::time::Duration;

use tracing::Instrument as _;

pub use super::loss::LossReason;
pub use permits::Permits;

use crate::client::{Client, Written};
use crate::error::{Error, Result};
use crate::script::script;
use crate::sync::core::acquirer::Acquirer;
use crate::sync::core::held::Held;
use crate::sync::core::kind::{Breaking, Holders, Kind, Scripts, Words};
use crate::sync::core::request::AcquireRequest;
use crate::time::OnOutage;

script!(ACQUIRE = "../core/acquire.lua" after "../core/queue.lua", "holders.lua", "../core/grants.lua");
script!(RELEASE = "../core/release.lua" after "../core/queue.lua", "holders.lua", "../core/grants.lua");
script!(RENEW = "renew.lua");

static SEMAPHORE: Kind = Kind {
    name: "semaphore",
    queue: "semaphore-queue",
    words: Words::new("semaphore name", "the permits", ["are", "were"]),
    held_by: |_, held| match held {
        "" => "others wait for them".to_owned(),
        _ => format!("{held} permits are held"),
    },
    written: Written::Semaphores,
    holders: Holders::Several,
    breaking: Breaking::Never,
    scripts: Scripts {
        acquire: &ACQUIRE,
        release: &RELEASE,
        release_alone: None,
        pass: None,
        renew: &RENEW,
    },
};

/// A named number of permits, made by [`Client::semaphore`]. It does nothing until some are
/// acquired.
///
/// All processes of a namespace share the permits of a name. At most 10,000 calls hold some at a
/// time.
#[derive(Debug, Clone)]
#[must_use = "a semaphore limits nobody until permits are acquired"]
pub struct Semaphore {
    acquirer: Acquirer,
    permits: u32,
    weight: u32,
}

impl Client {
    /// Returns the semaphore with this name, of which all processes together may hold `permits`.
    /// The first call returns `InvalidInput` if the name is invalid.
    ///
    /// Give all processes the same number. While they differ, as during a deployment, each call
    /// gets its permits if no more than its own number are held then, its own permits included.
    pub fn semaphore(&self, name: &str, permits: u32) -> Semaphore {
        Semaphore {
            acquirer: Acquirer::new(self, &SEMAPHORE, name),
            permits,
            weight: 1,
        }
    }
}

impl Semaphore {
    /// Sets how many permits one call takes: 1 by default.
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets how long the server keeps the permits for a holder that no longer renews them: 30 s by
    /// default, at least 10 ms. Live [`Permits`] renew the lease at a third of it.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.acquirer.lease = lease;
        self
    }

    /// Sets how long [`acquire`](Self::acquire) waits for the permits. The default is
    /// [`deadline`](Self::deadline).
    pub fn wait(mut self, wait: Duration) -> Self {
        self.acquirer.wait = Some(wait);
        self
    }

    /// Sets how long a call that does not wait for permits may take in all, retries included. The
    /// default is that of the [client](crate::ClientBuilder::deadline).
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.acquirer.patience = self.acquirer.patience.within(deadline);
        self
    }

    /// Sets what calls do while the server is out. The default is that of the
    /// [client](crate::ClientBuilder::on_outage). Permits are renewed and released in any case.
    pub fn on_outage(mut self, on_outage: OnOutage) -> Self {
        self.acquirer.patience.on_outage = on_outage;
        self
    }

    /// Short for [`on_outage`](Self::on_outage) with [`OnOutage::FailFast`].
    pub fn fail_fast(self) -> Self {
        self.on_outage(OnOutage::FailFast)
    }

    /// Sets the longest time that permits may be held, renewals included. No limit by default.
    /// After that time they are lost and released, so that a hung holder does not block others.
    pub fn max_hold(mut self, limit: Duration) -> Self {
        self.acquirer.max_hold = Some(limit);
        self
    }

    /// Sets a text of at most 1 KiB that the server stores beside the permits. Keep secrets out.
    pub fn metadata(mut self, text: &str) -> Self {
        self.acquirer.metadata = text.into();
        self
    }

    /// Acquires [`weight`](Self::weight) permits, in the order of arrival. Waits up to
    /// [`wait`](Self::wait).
    ///
    /// ```no_run
    /// # async fn example(client: hedgerow::Client) -> hedgerow::Result<()> {
    /// let exports = client.semaphore("exports", 20);
    /// let permits = exports.clone().weight(5).acquire().await?;
    /// permits.release().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Contended` if the server says that the permits were not free in time. `InvalidInput` if the
    /// name or a duration is invalid, or the weight is zero or above the permits of the semaphore.
    /// `WrongType` if another version of hedgerow writes semaphores in another format. Otherwise,
    /// what kept the server from answering. After any error nothing is held. If the server has
    /// granted the permits and the answer was lost, they are released in the background.
    ///
    /// # Cancel safety
    /// Safe: a dropped call gives up its position in the queue and what it was granted. A call that
    /// is kept and not polled loses them, too, after about half a second. When it is polled again,
    /// it joins the end of the local queue.
    pub async fn acquire(&self) -> Result<Permits> {
        let name = self.acquirer.name.shown();
        let span = tracing::debug_span!(target: "hedgerow::semaphore", "acquire", semaphore = name.as_str(), weight = self.weight);
        // Pinned here, because it is large: the span around it would hold a copy.
        let acquired = pin!(self.acquirer.acquire(self.request()?));
        Ok(self.held(acquired.instrument(span).await?))
    }

    /// Acquires [`weight`](Self::weight) permits if they are free now. Returns `None` if they are
    /// not, or if others wait.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), without `Contended`.
    ///
    /// # Cancel safety
    /// Safe, as [`acquire`](Self::acquire).
    pub async fn try_acquire(&self) -> Result<Option<Permits>> {
        let held = self.acquirer.try_acquire(self.request()?).await?;
        Ok(held.map(|held| self.held(held)))
    }

    fn held(&self, held: Held) -> Permits {
        Permits::new(held, self.acquirer.registry().clone(), self.weight)
    }

    fn request(&self) -> Result<AcquireRequest> {
        let (weight, permits) = (self.weight, self.permits);
        if weight == 0 || weight > permits {
            let asked = format!("{weight} of {permits} permits were asked for");
            let error = Error::invalid(asked + "; a call takes at least 1, and at most all");
            return Err(error.with_key(&self.acquirer.name));
        }
        let detail = format!("{weight} {permits} {}", self.acquirer.metadata);
        self.acquirer.request(detail.into())
    }
}
