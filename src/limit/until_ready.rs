//! `UntilReady`: a request that waits for its turn.
//!
//! Invariant: a wait that is dropped, at whatever point, takes nothing for good. A task of the
//! client makes the reservation, and holds it until the caller says that it was used. If the caller
//! is gone, the task gives back exactly what was reserved and has not drained yet. A reservation
//! whose reply was lost is not given back, since it may never have been made: then the limit could
//! be passed. [`RateLimiter::until_ready`] makes waits.

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::Instrument as _;

use super::decision::{DecidedBy, Decision, Verdict};
use super::limiter::RateLimiter;
use super::local::{Fits, LocalLimit};
use super::outage::LimitOutage;
use super::refund::returned;
use super::scripts::{Asked, Taken, take};
use super::settings::call_settings;
use super::state::{LimitState, Turn};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::name::Name;
use crate::time::{Deadline, FOREVER, Patience};

/// A request that is let through when it is its turn; made by [`RateLimiter::until_ready`].
///
/// # Errors
/// `Contended` if its turn would come later than [`wait`](Self::wait) allows: it fails at once, and
/// has taken nothing. Otherwise as [`Check`](super::Check). In an outage, the
/// [policy](RateLimiter::outage) `Open` lets it through, `Closed` fails with what kept the server
/// from answering, and `Local` waits for the limiter of this process. A cost above its share fails
/// as under `Closed`.
///
/// # Cancel safety
/// Safe: a wait that is dropped gives back what it has reserved, in the background. By GCRA, turns
/// that others have reserved behind it keep their times, and the dropped turn is not used. If the
/// reply to the reservation was lost, or the client's runtime ends, what was reserved comes back
/// with time.
#[derive(Debug, Clone)]
#[must_use = "nothing is reserved until it is awaited"]
pub struct UntilReady {
    limiter: RateLimiter,
    key: Name,
    cost: u32,
    wait: Duration,
    patience: Patience,
}

impl RateLimiter {
    /// Waits until a request for `key` may go on. It reserves its turn with one command and sleeps
    /// once. Turns are given in the order in which they are asked for.
    ///
    /// While turns are reserved, [checks](Self::check) of the key are refused.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn example(limiter: hedgerow::RateLimiter) -> hedgerow::Result<()> {
    /// limiter.until_ready("api.example.com").wait(Duration::from_secs(30)).await?;
    /// println!("calling the API");
    /// # Ok(())
    /// # }
    /// ```
    pub fn until_ready(&self, key: &str) -> UntilReady {
        UntilReady {
            key: self.client().name(key),
            cost: 1,
            wait: self.client().patience().limit(),
            patience: self.patience(),
            limiter: self.clone(),
        }
    }
}

impl UntilReady {
    /// Sets how much of the limit the request takes: 1 by default.
    pub fn cost(mut self, cost: u32) -> Self {
        self.cost = cost;
        self
    }

    /// Sets how long the turn may be away. The default is the client's
    /// [deadline](crate::ClientBuilder::deadline), 5 s. A turn is never more than 50 days away;
    /// with a sliding window, never more than one window.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait.min(FOREVER);
        self
    }

    call_settings!();

    async fn run(&self) -> Result<()> {
        let asked = self.limiter.asked(&self.key, self.cost)?;
        let local = self.limiter.local()?;
        if self.cost == 0 {
            return Ok(());
        }
        let deadline = self.patience.deadline();
        match self.reserved(&asked, deadline).await {
            Ok((ready, used)) => {
                sleep_until(ready).await;
                // Fails if the task has ended, which has nothing to give back then.
                let _ = used.send(());
                if let Some(local) = local {
                    local.feed(self.key.real(), self.cost);
                }
                Ok(())
            }
            Err(error) if self.limiter.policy().decides(&error) => {
                self.without_redis(error, &asked, local.as_deref()).await
            }
            Err(error) => Err(error),
        }
    }

    /// Returns when the turn comes, and what tells the task that it was used.
    async fn reserved(
        &self,
        asked: &Asked,
        deadline: Deadline,
    ) -> Result<(Instant, oneshot::Sender<()>)> {
        let (tell, mut told) = oneshot::channel();
        let (used, is_used) = oneshot::channel();
        let client = self.limiter.client();
        let reservation = Reservation {
            client: client.clone(),
            state: self.limiter.state().clone(),
            // From here on, so that a client that is closed sees the turn at once.
            _turn: Turn::of(self.limiter.state()),
            limiter: self.limiter.name().into(),
            asked: asked.clone(),
            wait: self.wait,
            deadline,
        };
        let mut task = client.spawner().launch(reservation.keep(tell, is_used));
        // Beside the deadline of the call: the task may stand still with its runtime.
        let late = deadline.at + LATE;
        let taken = loop {
            tokio::select! {
                taken = &mut told => break taken.unwrap_or_else(|_| Err(silent())),
                () = sleep_until(late) => break Err(silent()),
                () = sleep(LOOK) => task.look(),
            }
        }?;
        let answered = Instant::now();
        let verdict = match taken.allowed {
            true => Verdict::Allowed,
            false => Verdict::Refused,
        };
        let decision = taken.standing.decision(&asked.terms, self.cost, verdict);
        self.limiter.counts().note(&decision);
        if !taken.allowed {
            return Err(contended(self.wait, decision.retry_after));
        }
        // From the answer on, not from the question: so it is never before its turn.
        Ok((answered + taken.ready, used))
    }

    async fn without_redis(
        &self,
        error: Error,
        asked: &Asked,
        local: Option<&LocalLimit>,
    ) -> Result<()> {
        let limiter = &self.limiter;
        limiter.state().does_without(limiter.name(), &error);
        let decided = |allowed| Decision {
            allowed,
            decided_by: DecidedBy::Outage,
            ..Decision::without_redis(LimitOutage::Open, &asked.terms)
        };
        let Some(local) = local else {
            let is_open = limiter.policy() == LimitOutage::Open;
            limiter.counts().note(&decided(is_open));
            return if is_open { Ok(()) } else { Err(error) };
        };
        let until = Instant::now() + self.wait;
        loop {
            let pause = match local.take(self.key.real(), self.cost) {
                Fits::Now => break,
                Fits::After(pause) => pause,
                Fits::Never => {
                    limiter.counts().note(&decided(false));
                    return Err(error);
                }
            };
            let left = until.saturating_duration_since(Instant::now());
            if pause > left {
                limiter.counts().note(&decided(false));
                return Err(contended(self.wait, pause));
            }
            sleep(pause).await;
        }
        limiter.counts().note(&decided(true));
        Ok(())
    }
}

impl IntoFuture for UntilReady {
    type Output = Result<()>;
    type IntoFuture = BoxFuture<'static, Result<()>>;

    fn into_future(self) -> Self::IntoFuture {
        let span = tracing::debug_span!(target: "hedgerow::limit", "until_ready", limiter = self.limiter.name(), cost = self.cost);
        Box::pin(
            async move { self.run().await.map_err(|error| error.with_key(&self.key)) }
                .instrument(span),
        )
    }
}

/// What the task of a wait needs.
struct Reservation {
    client: Client,
    state: Arc<LimitState>,
    limiter: Box<str>,
    asked: Asked,
    wait: Duration,
    deadline: Deadline,
    _turn: Turn,
}

impl Reservation {
    /// Makes the reservation, and gives it back unless it was used. The wait spawns this task. It
    /// ends when the turn was used or given back. If it panics, or its runtime ends, the wait fails
    /// if it has no answer yet, and what was reserved comes back with time.
    async fn keep(self, tell: oneshot::Sender<Result<Taken>>, is_used: oneshot::Receiver<()>) {
        let taken = take(&self.client, &self.asked, self.wait, self.deadline).await;
        let mark = match &taken {
            Ok(taken) if taken.allowed => Some(taken.mark),
            _ => None,
        };
        let told = tell.send(taken);
        let Some(mark) = mark else { return };
        // An error of `is_used` means that the caller was dropped.
        if told.is_ok() && is_used.await.is_ok() {
            return;
        }
        let deadline = self.client.deadline().reserved().keep_trying();
        let (client, refusals) = (&self.client, &self.state.refusals);
        let given = returned(client, refusals, &self.asked, Some(mark), deadline).await;
        let limiter = &*self.limiter;
        match given {
            Ok(()) => {
                tracing::debug!(target: "hedgerow::limit", limiter, cost = self.asked.cost, "given back");
            }
            Err(error) => {
                tracing::debug!(target: "hedgerow::limit", limiter, %error, "not given back");
            }
        }
    }
}

fn contended(wait: Duration, away: Duration) -> Error {
    Error::new(
        ErrorKind::Contended,
        format!(
            "the turn is {away:.1?} away, and the call waits {wait:.1?}; nothing was taken; wait \
             longer, or ask less often"
        ),
    )
}

/// The error of a wait whose task does not answer.
fn silent() -> Error {
    Error::new(
        ErrorKind::Timeout,
        "the task that reserves the turn does not run; what it may have taken comes back with time",
    )
    .with_fate(Fate::Unknown)
}

/// How often the caller looks for its task, and how much longer than its deadline it waits for it.
const LOOK: Duration = Duration::from_millis(250);
const LATE: Duration = Duration::from_secs(1);
