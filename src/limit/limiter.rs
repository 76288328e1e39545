//! `RateLimiter`: its settings, and the way of a decision.
//!
//! Invariant: a decision is made by exactly one of three: by a refusal that the process knows, by
//! the server, or, in an outage, by the policy. Only the server takes from the limit.
//! [`Client::rate_limiter`] makes limiters; checks and waits go through here.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::decision::{Decision, Verdict};
use super::local::LocalLimit;
use super::outage::LimitOutage;
use super::quota::{Quota, Terms};
use super::refund::returned;
use super::refusals::Known;
use super::scripts::{Asked, peek, take};
use super::settings::handle_settings;
use super::state::LimitState;
use super::stats::{Counts, LimitStats};
use crate::client::{Client, Request};
use crate::error::{Error, Result};
use crate::key::LimitKeys;
use crate::name::Name;
use crate::time::Patience;

/// A named limit on how often something may happen, made by [`Client::rate_limiter`]: separately
/// for each key, and together for all processes of a namespace.
///
/// A handle is cheap to make and to clone. All handles of one name on one client share what the
/// process knows of refused keys, the [counts](Self::stats), and the limiter that decides in an
/// outage.
///
/// ```no_run
/// use hedgerow::limit::{LimitOutage, Quota};
///
/// # async fn example(client: hedgerow::Client, user: &str) -> hedgerow::Result<()> {
/// let searches = client
///     .rate_limiter("search", Quota::per_minute(60).burst(10))
///     .outage(LimitOutage::Open);
/// if searches.check(user).await?.allowed {
///     println!("searching");
/// }
/// # Ok(())
/// # }
/// ```
///
/// # A reply that is lost
/// A check is not sent again if it may have been executed: it would take twice. It fails as
/// [indeterminate](Error::is_indeterminate), or the [policy](Self::outage) decides. What it may
/// have taken comes back with time. So in doubt less is let through than the limit, never more.
#[derive(Clone)]
#[must_use = "a limiter limits nothing until it is asked"]
pub struct RateLimiter {
    setup: Arc<Setup>,
}

#[derive(Clone)]
struct Setup {
    client: Client,
    name: Arc<str>,
    quota: Quota,
    /// Built once. The first call returns `InvalidInput` if the name or the quota is invalid.
    parsed: Result<(LimitKeys, Terms)>,
    outage: LimitOutage,
    /// The limiter of `LimitOutage::Local`; none if there are too many. The first call returns
    /// `InvalidInput` if it cannot be.
    local: Result<Option<Arc<LocalLimit>>>,
    patience: Patience,
    state: Arc<LimitState>,
    counts: Arc<Counts>,
}

impl Client {
    /// Returns the limiter called `name`. If the name or the quota is invalid, the first call that
    /// uses the limiter fails with `InvalidInput`.
    ///
    /// Give all processes the same quota. While they differ, as during a deployment, each call is
    /// judged by its own quota, on what all of them have taken. Another
    /// [algorithm](Quota::sliding_window), or a sliding window of another length, begins anew.
    ///
    /// By default, a call that meets an outage [fails](LimitOutage::Fail), and does so at once
    /// while the circuit breaker is open: calls have the deadline and the setting for outages of
    /// [caches](crate::ClientBuilder::cache_deadline).
    pub fn rate_limiter(&self, name: &str, quota: Quota) -> RateLimiter {
        let state = self.shared(LimitState::default);
        let parsed = quota.terms().and_then(|terms| {
            let keys = self.namespace().limiter(name, &terms.room())?;
            Ok((keys, terms))
        });
        let counts = state.counts.of(self.namespace().as_str(), name);
        RateLimiter {
            setup: Arc::new(Setup {
                client: self.clone(),
                name: name.into(),
                quota,
                parsed,
                outage: LimitOutage::default(),
                local: Ok(None),
                patience: self.cache_patience(),
                state,
                counts,
            }),
        }
    }
}

impl RateLimiter {
    /// Sets what the limiter decides while Redis is out: by default nothing, each call
    /// [fails](LimitOutage::Fail).
    pub fn outage(mut self, outage: LimitOutage) -> Self {
        let setup = Arc::make_mut(&mut self.setup);
        setup.outage = outage;
        setup.local = match (outage, &setup.parsed) {
            (LimitOutage::Local { share }, Ok((_, terms))) => {
                let name = (&*setup.name, None);
                setup.state.local(name, terms, share)
            }
            _ => Ok(None),
        };
        self
    }

    handle_settings!();

    /// Returns the name of the limiter.
    pub fn name(&self) -> &str {
        &self.setup.name
    }

    /// Returns the quota of the limiter.
    pub fn quota(&self) -> Quota {
        self.setup.quota
    }

    /// Checks the settings of the limiter, without I/O: its name, its quota and the share of a
    /// [local](LimitOutage::Local) limiter. While this fails, each check fails.
    ///
    /// # Errors
    /// `InvalidInput` if one of them is invalid.
    pub fn verify(&self) -> Result<()> {
        let (parsed, local) = (self.setup.parsed.as_ref(), self.setup.local.as_ref());
        parsed.map_err(Clone::clone)?;
        local.map_err(Clone::clone)?;
        Ok(())
    }

    /// Returns what limiters of this name have decided in this process so far.
    pub fn stats(&self) -> LimitStats {
        self.setup.counts.so_far()
    }

    /// Returns what the limit has left for `key`, and takes nothing. `allowed` and `retry_after`
    /// are those of a request of cost 1.
    ///
    /// # Errors
    /// `InvalidInput` if a name or the quota is invalid. `WrongType` if the key holds something
    /// else. Otherwise the reason why the server did not answer, under every
    /// [policy](Self::outage).
    ///
    /// # Cancel safety
    /// Safe: reads only.
    pub fn peek(&self, key: &str) -> Request<'_, Decision> {
        let key = self.setup.client.name(key);
        Request::new(self.setup.patience, move |patience| async move {
            let peeked = self.peek_at(&key, patience).await;
            peeked.map_err(|error| error.with_key(&key))
        })
    }

    /// Gives back `cost` that was taken for `key` and not used, for example because the request was
    /// refused elsewhere. The limit never has more than all of its capacity.
    ///
    /// Give back only what a check has taken, and soon. What is given back counts as free from now
    /// on: in any time, what was let through less what was given back is within the promise of the
    /// [algorithm](super::Algorithm). This process forgets that the key was refused; other
    /// processes that know it go on to refuse until the time is over that the server gave them.
    ///
    /// # Errors
    /// As [`peek`](Self::peek). After an [indeterminate](Error::is_indeterminate) error it was
    /// given back once or not at all. Do not repeat it: the limit could be passed.
    ///
    /// # Cancel safety
    /// A dropped call has given back once or not at all.
    pub fn refund(&self, key: &str, cost: u32) -> Request<'_, ()> {
        let key = self.setup.client.name(key);
        Request::new(self.setup.patience, move |patience| async move {
            let given = async {
                let asked = self.asked(&key, cost)?;
                let Setup { client, state, .. } = &*self.setup;
                let deadline = patience.deadline();
                returned(client, &state.refusals, &asked, None, deadline).await
            };
            given.await.map_err(|error| error.with_key(&key))
        })
    }

    /// Decides on a request of `cost`.
    pub(super) async fn decide(
        &self,
        key: &Name,
        cost: u32,
        patience: Patience,
    ) -> Result<Decision> {
        if cost == 0 {
            return self.peek_at(key, patience).await;
        }
        let asked = self.asked(key, cost)?;
        let local = self.setup.local.clone()?;
        let Setup { state, client, .. } = &*self.setup;
        let known = state
            .refusals
            .look(&asked.key, &asked.terms, cost, Instant::now());
        let noted = match known {
            Known::Refused(decision) => return Ok(self.counted(decision)),
            Known::Ask(noted) => noted,
        };
        let taken = take(client, &asked, Duration::ZERO, patience.deadline()).await;
        let taken = match taken {
            Ok(taken) => taken,
            Err(error) => return self.without_redis(&error, key, &asked, local.as_deref()),
        };
        let verdict = match taken.allowed {
            true => Verdict::Allowed,
            false => Verdict::Refused,
        };
        let decision = taken.standing.decision(&asked.terms, cost, verdict);
        match (taken.allowed, &local) {
            (true, None) => {}
            (true, Some(local)) => local.feed(key.real(), cost),
            (false, _) => {
                let of = (&asked.terms, cost);
                state
                    .refusals
                    .note(&asked.key, of, &decision, taken.since, noted);
            }
        }
        Ok(self.counted(decision))
    }

    /// Decides by the policy, unless `error` is the caller's.
    fn without_redis(
        &self,
        error: &Error,
        key: &Name,
        asked: &Asked,
        local: Option<&LocalLimit>,
    ) -> Result<Decision> {
        let setup = &*self.setup;
        if !setup.outage.decides(error) {
            return Err(error.clone());
        }
        setup.state.does_without(&setup.name, error);
        let of = (&asked.terms, asked.cost);
        Ok(self.counted(setup.outage.decision(local, key.real(), of)))
    }

    async fn peek_at(&self, key: &Name, patience: Patience) -> Result<Decision> {
        let asked = self.asked(key, 1)?;
        let client = &self.setup.client;
        let standings = peek(client, std::slice::from_ref(&asked), patience.deadline()).await?;
        let decision = standings[0].decision(&asked.terms, 0, Verdict::Peeked);
        Ok(decision)
    }

    fn counted(&self, decision: Decision) -> Decision {
        self.setup.counts.note(&decision);
        decision
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.setup.counts
    }

    pub(super) fn client(&self) -> &Client {
        &self.setup.client
    }

    pub(super) fn patience(&self) -> Patience {
        self.setup.patience
    }

    pub(super) fn policy(&self) -> LimitOutage {
        self.setup.outage
    }

    pub(super) fn local(&self) -> Result<Option<Arc<LocalLimit>>> {
        self.setup.local.clone()
    }

    pub(super) fn state(&self) -> &Arc<LimitState> {
        &self.setup.state
    }

    /// Checks a request.
    pub(super) fn asked(&self, key: &Name, cost: u32) -> Result<Asked> {
        let (keys, terms) = self.setup.parsed.as_ref().map_err(Clone::clone)?;
        terms.check(cost)?;
        Ok(Asked {
            key: keys.of(key.real())?,
            terms: *terms,
            cost,
        })
    }
}

impl fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimiter")
            .field("client", &self.setup.client)
            .field("name", &self.setup.name)
            .field("quota", &self.setup.quota)
            .field("outage", &self.setup.outage)
            .field("patience", &self.setup.patience)
            .finish_non_exhaustive()
    }
}
