//! `Add`: one addition, with its settings.
//!
//! Invariant: without settings it is the server's own `INCRBY`, one command and no script.
//! [`Counter::add`] makes it.

use std::future::IntoFuture;
use std::ops::RangeInclusive;
use std::time::Duration;

use futures::future::BoxFuture;

use super::{ADD, ADD_ONCE, Counter};
use crate::client::Purpose;
use crate::error::{Error, Result};
use crate::name::Name;
use crate::script::{Call, Retry};
use crate::time::{OnOutage, Patience, Ttl};
use crate::wire::fault::no_integer;
use crate::wire::{command::plain, value::integer};

/// An addition that happens when it is awaited; made by [`Counter::add`].
///
/// # Errors
/// `Overflow` if the value would pass an end of `i64`, `OutOfRange` if it would leave
/// [`within`](Self::within): nothing is changed then. `WrongType` if the key of the counter holds
/// something else. After an indeterminate error the delta was applied once or not at all.
///
/// # Cancel safety
/// A dropped addition was applied once or not at all. With [`once`](Self::once) it can be made
/// again.
#[derive(Debug, Clone)]
#[must_use = "nothing is added until it is awaited"]
pub struct Add {
    counter: Counter,
    delta: i64,
    range: Option<RangeInclusive<i64>>,
    saturating: bool,
    ttl: Option<Duration>,
    once: Option<(Name, Duration)>,
    patience: Patience,
}

/// The result of an addition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Added {
    /// The value after the addition.
    pub value: i64,
    /// The delta that was added: less than was asked for only with [`saturating`](Add::saturating).
    pub applied: i64,
    /// Whether another call has added for this [`once`](Add::once) id before. Then nothing was
    /// added now, and `value` and `applied` are those of the first call.
    pub repeated: bool,
    /// The remaining time to live of the counter; `None` if it does not expire. A plain add does
    /// not ask for it, so that it costs no more than `INCRBY`: it returns `None`.
    pub expires_in: Option<Duration>,
}

impl Counter {
    /// Adds `delta`, which may be negative. Await the result, or change its settings first.
    ///
    /// ```no_run
    /// # async fn example(client: hedgerow::Client) -> hedgerow::Result<()> {
    /// let views = client.counter("views:42").add(1).await?;
    /// let stock = client.counter("stock:42").add(-1).within(0..=i64::MAX).await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn add(&self, delta: i64) -> Add {
        Add::new(self.clone(), delta)
    }
}

impl Add {
    fn new(counter: Counter, delta: i64) -> Self {
        Self {
            patience: counter.client.patience(),
            counter,
            delta,
            range: None,
            saturating: false,
            ttl: None,
            once: None,
        }
    }

    /// Refuses to leave `range`: the counter is unchanged then.
    pub fn within(mut self, range: RangeInclusive<i64>) -> Self {
        self.range = Some(range);
        self
    }

    /// Adds as much as the range (by default all of `i64`) allows, instead of refusing. A counter
    /// that is outside the range already is not moved against the sign of the delta.
    pub fn saturating(mut self) -> Self {
        self.saturating = true;
        self
    }

    /// Lets the counter expire after `ttl`: counted from its creation, or from this call if it has
    /// no TTL yet (because it was [`set`](Counter::set), or created without one). Later adds do not
    /// extend the TTL; this makes fixed windows. The TTL is set even if the addition is refused, so
    /// that a full counter does not stay full for ever.
    pub fn expire(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Applies the addition at most once for `id` within `window`. A repeat returns the result of
    /// the first call, except for the remaining time to live, and says that it is a
    /// [repeat](Added::repeated). Choose an id that names the event, such as a request id. A
    /// refused addition is not recorded: a repeat may be applied. An addition with an id takes at
    /// most one hour, whatever its deadline.
    pub fn once(mut self, id: &str, window: Duration) -> Self {
        self.once = Some((self.counter.client.name(id), window));
        self
    }

    /// Sets how long this addition may take in all, retries included: by default as the client
    /// [says](crate::ClientBuilder::deadline). More than 100 years count as 100 years.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.patience = self.patience.within(deadline);
        self
    }

    /// Sets what this addition does while its server is out: by default as the client
    /// [says](crate::ClientBuilder::on_outage).
    pub fn on_outage(mut self, on_outage: OnOutage) -> Self {
        self.patience.on_outage = on_outage;
        self
    }

    /// Fails at once while the server is out, instead of waiting for it until the deadline: the
    /// same as [`on_outage`](Self::on_outage) with [`OnOutage::FailFast`].
    pub fn fail_fast(self) -> Self {
        self.on_outage(OnOutage::FailFast)
    }

    async fn run(self) -> Result<Added> {
        // The usual case costs one command and no script.
        if self.range.is_none() && !self.saturating && self.ttl.is_none() && self.once.is_none() {
            return self.plain().await;
        }
        // Boxed: it is large, and the future of a plain addition need not have room for it.
        Box::pin(self.scripted()).await
    }

    async fn scripted(&self) -> Result<Added> {
        let call = self.call().map_err(|error| self.counter.named(error))?;
        let reply = self.counter.run(call, self.bounded()).await?;
        match reply.status()? {
            status @ ("ADDED" | "REPEATED") => Ok(Added {
                value: reply.int(1)?,
                applied: reply.int(2)?,
                repeated: status == "REPEATED",
                expires_in: remaining(reply.int(3)?),
            }),
            _ => Err(self.counter.refused(&reply)),
        }
    }

    /// Sends the server's own `INCRBY`: it is exact, and refuses to overflow.
    async fn plain(&self) -> Result<Added> {
        let key = self.counter.key()?;
        let mut command = plain("INCRBY", key);
        command.arg(self.delta);
        let deadline = self.patience.deadline();
        self.counter.agree(Purpose::Write, deadline).await?;
        let client = &self.counter.client;
        // Not sent again without proof that it did not run: a second `INCRBY` would count twice.
        let value = client.command(command, key, Retry::Unsafe, deadline).await;
        let value = value
            .and_then(integer)
            .and_then(|value| value.ok_or_else(no_integer))
            .map_err(|error| self.counter.named(error))?;
        Ok(Added {
            value,
            applied: self.delta,
            repeated: false,
            expires_in: None,
        })
    }

    /// Returns how long this may take. Bounded with `once`, since its record must outlive the call.
    fn bounded(&self) -> Patience {
        match self.once {
            Some(_) => self
                .patience
                .within(self.patience.limit().min(LONGEST_ONCE)),
            None => self.patience,
        }
    }

    /// Checks the settings and builds the script call.
    fn call(&self) -> Result<Call> {
        let range = self.range.clone().unwrap_or(i64::MIN..=i64::MAX);
        if range.is_empty() {
            return Err(Error::invalid(
                "the range is empty; put the smaller end first",
            ));
        }
        let ttl = self
            .ttl
            .map(|ttl| Ttl::new("the time to live", ttl))
            .transpose()?;
        let key = self.counter.key()?;
        let mut token = String::new();
        let call = match &self.once {
            None => ADD.call([key]),
            Some((id, _)) => {
                // Made once for the call: a retry finds its own token in the record, and answers as
                // the first run did.
                token = format!("{:016x}", rand::random::<u64>());
                let (space, name) = (self.counter.client.namespace(), self.counter.name.real());
                let record = space.counter_once(name, id.real())?;
                let sent = space.counter_sent(name, &token)?;
                ADD_ONCE.call([key, &record, &sent])
            }
        };
        let call = call
            .arg(self.delta)
            .arg(*range.start())
            .arg(*range.end())
            .arg(if self.saturating {
                "saturate"
            } else {
                "reject"
            })
            .arg(ttl.map_or(0, Ttl::millis));
        let Some((_, window)) = &self.once else {
            return Ok(call);
        };
        let window = Ttl::new("the window", *window)?;
        // While this call may be sent again, it must find what it has done, however short the
        // window is.
        let resent = self.bounded().limit() + GRACE;
        let kept = match window.duration() < resent {
            true => resent.as_millis() as u64,
            false => 0,
        };
        Ok(call.arg(window.millis()).arg(token).arg(kept))
    }
}

impl IntoFuture for Add {
    type Output = Result<Added>;
    type IntoFuture = BoxFuture<'static, Result<Added>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// Converts the reply of `PTTL`: -1 means no expiry, -2 an absent key.
fn remaining(millis: i64) -> Option<Duration> {
    u64::try_from(millis).ok().map(Duration::from_millis)
}

/// The longest that an addition with an id may take.
const LONGEST_ONCE: Duration = Duration::from_secs(3600);

/// How much longer the record of a call lives than the call.
const GRACE: Duration = Duration::from_secs(1);
