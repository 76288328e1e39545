//! `RateLimits`: several limits that are asked in one call.
//!
//! Invariant: a request takes from all limits that it names, or from none. The keys of a group
//! share a slot, so one script decides. In an outage, requests take their turns at the local
//! limits. [`Client::rate_limits`] makes groups.

use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use super::decision::{DecidedBy, Decision, Verdict};
use super::locals::{Local, Locals};
use super::outage::LimitOutage;
use super::quota::{Quota, Terms};
use super::refund::returned;
use super::refusals::{Asked as Noted, Known};
use super::scripts::{Asked, peek, take_all};
use super::settings::{call_settings, handle_settings};
use super::state::LimitState;
use super::stats::{Counts, LimitStats};
use crate::client::{Client, Request};
use crate::error::{Error, Result};
use crate::key::LimitKeys;
use crate::name::Name;
use crate::time::Patience;

/// Several named limits, made by [`Client::rate_limits`], of which one call takes all or nothing.
///
/// ```no_run
/// use std::time::Duration;
/// use hedgerow::limit::Quota;
///
/// # async fn example(client: hedgerow::Client, ip: &str, user: &str) -> hedgerow::Result<()> {
/// let logins = client
///     .rate_limits("login")
///     .limit("address", Quota::per_minute(20))
///     .limit("account", Quota::new(5, Duration::from_secs(900)).sliding_window());
/// let decided = logins.check([("address", ip), ("account", user)]).await?;
/// if let Some(limit) = decided.refused_by() {
///     println!("{limit} says no: come back in {:?}", decided.retry_after());
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Where the keys are
/// All keys of a group are in one slot: in a cluster, or on shards, one server has the whole group.
/// Limits that each request asks are better spread: [`part`](Self::part) makes a group of its own,
/// with the same limits, of each tenant or user.
#[derive(Clone)]
#[must_use = "limits limit nothing until they are asked"]
pub struct RateLimits {
    setup: Arc<Setup>,
}

#[derive(Clone)]
struct Setup {
    client: Client,
    name: Arc<str>,
    part: Option<Name>,
    limits: Vec<(Arc<str>, Quota)>,
    outage: LimitOutage,
    patience: Patience,
    state: Arc<LimitState>,
    counts: Arc<Counts>,
}

impl Client {
    /// Returns a group of limits called `name`, which has none yet. If a name or a quota is
    /// invalid, the first call that uses it fails with `InvalidInput`.
    pub fn rate_limits(&self, name: &str) -> RateLimits {
        let state = self.shared(LimitState::default);
        let counts = state.group_counts.of(self.namespace().as_str(), name);
        RateLimits {
            setup: Arc::new(Setup {
                client: self.clone(),
                name: name.into(),
                part: None,
                limits: Vec::new(),
                outage: LimitOutage::default(),
                patience: self.cache_patience(),
                state,
                counts,
            }),
        }
    }
}

impl RateLimits {
    /// Adds a limit, or replaces the one of that name.
    pub fn limit(mut self, name: &str, quota: Quota) -> Self {
        let limits = &mut Arc::make_mut(&mut self.setup).limits;
        match limits.iter_mut().find(|(known, _)| **known == *name) {
            Some((_, known)) => *known = quota,
            None => limits.push((name.into(), quota)),
        }
        self
    }

    /// Returns a group of its own, with the same limits, for one part of what the group limits,
    /// such as a tenant. Its keys are in another slot.
    pub fn part(&self, part: &str) -> Self {
        let mut setup = (*self.setup).clone();
        setup.part = Some(setup.client.name(part));
        Self {
            setup: Arc::new(setup),
        }
    }

    /// Sets what the group decides while Redis is out: by default nothing, each call
    /// [fails](LimitOutage::Fail). A local limiter of each limit has its share. A request that one
    /// of them refuses takes nothing from the others.
    pub fn outage(mut self, outage: LimitOutage) -> Self {
        Arc::make_mut(&mut self.setup).outage = outage;
        self
    }

    handle_settings!();

    /// Returns the name of the group.
    pub fn name(&self) -> &str {
        &self.setup.name
    }

    /// Returns the limits of the group with their quotas, in the order in which
    /// [`check_all`](Self::check_all) asks them.
    pub fn limits(&self) -> impl ExactSizeIterator<Item = (&str, Quota)> {
        self.setup
            .limits
            .iter()
            .map(|(name, quota)| (&**name, *quota))
    }

    /// Returns whether this is a [part](Self::part) of a group.
    pub fn is_part(&self) -> bool {
        self.setup.part.is_some()
    }

    /// Checks the settings of the group, without I/O: its names, its limits and the share of a
    /// [local](LimitOutage::Local) limiter. While this fails for a limit, each check of that limit
    /// fails.
    ///
    /// # Errors
    /// `InvalidInput` if one of them is invalid, or if the group has no limit.
    pub fn verify(&self) -> Result<()> {
        if self.setup.limits.is_empty() {
            return Err(Error::invalid(
                "the group has no limit; add one with RateLimits::limit",
            ));
        }
        for (limit, quota) in &self.setup.limits {
            let (_, terms) = self.parsed(limit, *quota)?;
            self.setup.outage.verify(&terms)?;
        }
        Ok(())
    }

    /// Returns what groups of this name have decided in this process so far. A decision on several
    /// limits counts once.
    pub fn stats(&self) -> LimitStats {
        self.setup.counts.so_far()
    }

    /// Asks the named limits, each for a key of its own, and takes 1 of each if all of them allow.
    /// Limits of the group that are not named are not asked.
    pub fn check<L: AsRef<str>, K: AsRef<str>>(
        &self,
        keys: impl IntoIterator<Item = (L, K)>,
    ) -> CheckAll {
        let client = &self.setup.client;
        let keys = keys
            .into_iter()
            .map(|(limit, key)| (limit.as_ref().into(), client.name(key.as_ref())));
        self.asking(keys.collect())
    }

    /// Asks all limits of the group for the same key, and takes 1 of each if all of them allow.
    pub fn check_all(&self, key: &str) -> CheckAll {
        let key = self.setup.client.name(key);
        let limits = self.setup.limits.iter();
        let keys = limits.map(|(limit, _)| (limit.clone(), key.clone()));
        self.asking(keys.collect())
    }

    /// Returns what the named limits have left, each for a key of its own, and takes nothing. Their
    /// decisions are those of a request of cost 1.
    ///
    /// # Errors
    /// As [`RateLimiter::peek`](super::RateLimiter::peek). `InvalidInput` also if a limit is not of
    /// the group, or is named twice for one key.
    ///
    /// # Cancel safety
    /// Safe: reads only.
    pub fn peek<L: AsRef<str>, K: AsRef<str>>(
        &self,
        keys: impl IntoIterator<Item = (L, K)>,
    ) -> Request<'_, Decisions> {
        let check = self.check(keys);
        Request::new(self.setup.patience, move |patience| async move {
            let asked = check.asked()?;
            let standings = peek(&self.setup.client, &asked, patience.deadline()).await?;
            let each = check.keys.into_iter().zip(asked.iter().zip(standings));
            let each = each.map(|((limit, _), (asked, standing))| {
                (limit, standing.decision(&asked.terms, 0, Verdict::Peeked))
            });
            let each: Vec<_> = each.collect();
            let allowed = each.iter().all(|(_, decision)| decision.allowed);
            Ok(Decisions { allowed, each })
        })
    }

    /// Gives back `cost` to each of the named limits, such as the try of a login that succeeded:
    /// see [`RateLimiter::refund`](super::RateLimiter::refund). They are given back one after the
    /// other.
    ///
    /// # Errors
    /// As [`peek`](Self::peek), and if `cost` is 0. After an
    /// [indeterminate](Error::is_indeterminate) error, some limits were given back to, and one may
    /// have been. Do not repeat it: a limit could be passed.
    ///
    /// # Cancel safety
    /// A dropped call has given back to some of the limits.
    pub fn refund<L: AsRef<str>, K: AsRef<str>>(
        &self,
        keys: impl IntoIterator<Item = (L, K)>,
        cost: u32,
    ) -> Request<'_, ()> {
        let check = self.check(keys).cost(cost);
        Request::new(self.setup.patience, move |patience| async move {
            let (asked, deadline) = (check.asked()?, patience.deadline());
            let Setup { client, state, .. } = &*self.setup;
            for (at, it) in asked.iter().enumerate() {
                let given = returned(client, &state.refusals, it, None, deadline).await;
                given.map_err(|error| match at {
                    0 => error,
                    _ => error.after_a_part(),
                })?;
            }
            Ok(())
        })
    }

    /// Checks one limit of the group.
    fn parsed(&self, limit: &str, quota: Quota) -> Result<(LimitKeys, Terms)> {
        let Setup { client, name, .. } = &*self.setup;
        let part = self.setup.part.as_ref().map(Name::real);
        let terms = quota.terms()?;
        let keys = client
            .namespace()
            .grouped_limit((name, part), limit, &terms.room())?;
        Ok((keys, terms))
    }

    fn asking(&self, keys: Vec<(Arc<str>, Name)>) -> CheckAll {
        CheckAll {
            limits: self.clone(),
            keys,
            cost: 1,
            patience: self.setup.patience,
        }
    }
}

/// A request that asks several limits when it is awaited; made by [`RateLimits::check`].
///
/// # Errors
/// As [`Check`](super::Check). `InvalidInput` also if a limit is not of the group, or is named
/// twice for one key.
///
/// # Cancel safety
/// A dropped check has taken from all limits or from none.
#[derive(Debug, Clone)]
#[must_use = "nothing is asked until it is awaited"]
pub struct CheckAll {
    limits: RateLimits,
    keys: Vec<(Arc<str>, Name)>,
    cost: u32,
    patience: Patience,
}

/// The answer of several limits to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "the request may have been refused"]
pub struct Decisions {
    allowed: bool,
    /// In the order in which they were asked.
    each: Vec<(Arc<str>, Decision)>,
}

impl Decisions {
    /// Returns whether the request may go on. If not, it has taken nothing from any limit.
    pub fn allowed(&self) -> bool {
        self.allowed
    }

    /// Returns the name of the limit that refuses the request: the one that does so for longest, if
    /// there are several, and the first of these.
    pub fn refused_by(&self) -> Option<&str> {
        self.longest().map(|(name, _)| &**name)
    }

    /// Returns when the same request would be let through, if nobody else takes anything meanwhile;
    /// zero if it was. A limit that was [not asked](Self::iter) may refuse it for longer.
    pub fn retry_after(&self) -> Duration {
        self.longest()
            .map(|(_, decision)| decision.retry_after)
            .unwrap_or_default()
    }

    /// Returns what each limit says, in the order in which they were asked. A limit that would have
    /// let the request through says so, also if another has refused it.
    ///
    /// If the process [knows](DecidedBy::KnownRefusal) that some limits refuse, the other limits
    /// are not asked. A limit that was not asked is shown as one that lets the request through and
    /// has nothing left.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Decision)> {
        self.each.iter().map(|(name, decision)| (&**name, decision))
    }

    fn longest(&self) -> Option<&(Arc<str>, Decision)> {
        let refusing = self.each.iter().filter(|(_, decision)| !decision.allowed);
        refusing
            .rev()
            .max_by_key(|(_, decision)| decision.retry_after)
    }
}

impl CheckAll {
    /// Sets how much the request takes of each limit: 1 by default.
    pub fn cost(mut self, cost: u32) -> Self {
        self.cost = cost;
        self
    }

    call_settings!();

    async fn run(&self) -> Result<Decisions> {
        let asked = self.asked()?;
        let noted = match self.look(&asked) {
            Ok(noted) => noted,
            Err(refused) => return Ok(self.counted(refused)),
        };
        // Before the server is asked: a share that is invalid is an error, and takes nothing.
        let locals = self.locals(&asked)?;
        let setup = &*self.limits.setup;
        let deadline = self.patience.deadline();
        let answered = take_all(&setup.client, &asked, deadline).await;
        let (allowed, standings, since) = match answered {
            Ok(answered) => answered,
            Err(error) if setup.outage.decides(&error) => {
                setup.state.does_without(&setup.name, &error);
                let each = locals.decide(&setup.state, setup.outage, &asked);
                return Ok(self.counted(self.decisions(each)));
            }
            Err(error) => return Err(error),
        };
        if allowed {
            locals.feed(&setup.state, self.cost);
        }
        let mut each = Vec::with_capacity(asked.len());
        for (at, (it, standing)) in asked.iter().zip(&standings).enumerate() {
            let verdict = match allowed || standing.wait(&it.terms, it.cost).is_zero() {
                true => Verdict::Allowed,
                false => Verdict::Refused,
            };
            let decision = standing.decision(&it.terms, it.cost, verdict);
            if verdict == Verdict::Refused {
                let of = (&it.terms, it.cost);
                let refusals = &setup.state.refusals;
                refusals.note(&it.key, of, &decision, since, noted[at]);
            }
            each.push((self.keys[at].0.clone(), decision));
        }
        Ok(self.counted(Decisions { allowed, each }))
    }

    /// Checks the request.
    fn asked(&self) -> Result<Vec<Asked>> {
        let setup = &*self.limits.setup;
        if self.keys.is_empty() || self.cost == 0 {
            return Err(Error::invalid(
                "the check asks no limit, or for nothing; name at least one, and a cost of at \
                 least 1",
            ));
        }
        let mut all: Vec<Asked> = Vec::with_capacity(self.keys.len());
        for (limit, key) in &self.keys {
            let known = setup.limits.iter().find(|(name, _)| name == limit);
            let Some((_, quota)) = known else {
                return Err(Error::invalid(format!(
                    "the group has no limit {limit:?}; add it with RateLimits::limit"
                )));
            };
            let (keys, terms) = self.limits.parsed(limit, *quota)?;
            terms.check(self.cost)?;
            let key = keys.of(key.real()).map_err(|error| error.with_key(key))?;
            if all.iter().any(|it| it.key == key) {
                return Err(Error::invalid(format!(
                    "the check asks the limit {limit:?} twice for one key; ask once, with the sum"
                )));
            }
            all.push(Asked {
                key,
                terms,
                cost: self.cost,
            });
        }
        Ok(all)
    }

    /// Looks which of the keys are known to be refused.
    fn look(&self, asked: &[Asked]) -> Result<Vec<Noted>, Decisions> {
        let refusals = &self.limits.setup.state.refusals;
        let (now, mut noted) = (Instant::now(), Vec::with_capacity(asked.len()));
        let mut refused = Vec::new();
        for (at, it) in asked.iter().enumerate() {
            match refusals.look(&it.key, &it.terms, it.cost, now) {
                Known::Ask(ask) => noted.push(ask),
                Known::Refused(decision) => refused.push((at, decision)),
            }
        }
        if refused.is_empty() {
            return Ok(noted);
        }
        // All of them: the caller gets the longest.
        let mut decisions = self.unasked(asked);
        decisions.allowed = false;
        for (at, decision) in refused {
            decisions.each[at].1 = decision;
        }
        Err(decisions)
    }

    /// The local limits that are asked in an outage, and fed before one.
    fn locals(&self, asked: &[Asked]) -> Result<Locals> {
        let setup = &*self.limits.setup;
        let LimitOutage::Local { share } = setup.outage else {
            return Ok(Locals::new(Vec::new()));
        };
        let mut each = Vec::with_capacity(asked.len());
        for ((limit, key), it) in self.keys.iter().zip(asked) {
            let name = (&*setup.name, Some(&**limit));
            each.push(Local {
                limit: setup.state.local(name, &it.terms, share)?,
                key: self.local_key(key),
            });
        }
        Ok(Locals::new(each))
    }

    /// The answer, of the decision on each limit.
    fn decisions(&self, each: Vec<Decision>) -> Decisions {
        let names = self.keys.iter().map(|(limit, _)| limit.clone());
        Decisions {
            allowed: each.iter().all(|decision| decision.allowed),
            each: names.zip(each).collect(),
        }
    }

    /// What the limits say that were not asked, because another is known to refuse.
    fn unasked(&self, asked: &[Asked]) -> Decisions {
        let each = self.keys.iter().zip(asked).map(|((limit, _), it)| {
            let decision = Decision::without_redis(LimitOutage::Open, &it.terms);
            let decision = Decision {
                decided_by: DecidedBy::KnownRefusal,
                ..decision
            };
            (limit.clone(), decision)
        });
        Decisions {
            allowed: true,
            each: each.collect(),
        }
    }

    /// The key that a local limit counts. The length tells where the part ends.
    fn local_key(&self, key: &Name) -> String {
        let part = self.limits.setup.part.as_ref().map_or("", Name::real);
        format!("{}:{part}{}", part.len(), key.real())
    }

    fn counted(&self, decisions: Decisions) -> Decisions {
        let refusing = decisions.longest();
        let decision = refusing.or(decisions.each.first());
        if let Some((_, decision)) = decision {
            self.limits.setup.counts.note(decision);
        }
        decisions
    }
}

impl IntoFuture for CheckAll {
    type Output = Result<Decisions>;
    type IntoFuture = BoxFuture<'static, Result<Decisions>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.run().await })
    }
}

impl fmt::Debug for RateLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimits")
            .field("client", &self.setup.client)
            .field("name", &self.setup.name)
            .field("part", &self.setup.part)
            .field("limits", &self.setup.limits)
            .field("outage", &self.setup.outage)
            .field("patience", &self.setup.patience)
            .finish_non_exhaustive()
    }
}
