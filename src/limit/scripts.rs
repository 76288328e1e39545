//! The scripts of limits, and what they answer.
//!
//! Invariant: a call that takes, or gives back, is sent a second time only if the first was proved
//! not executed. A lost reply leaves it unknown whether something was taken, and says so. Limiters,
//! groups and waits call these.

use std::time::Duration;

use tokio::time::Instant;

use super::decision::Standing;
use super::quota::Terms;
use crate::client::{Client, Purpose, Written};
use crate::error::Result;
use crate::key::Key;
use crate::script::{Call, Reply, script};
use crate::time::Deadline;

script!(TAKE = "take.lua" after "now.lua", "gcra.lua");
script!(SLIDE = "slide.lua" after "now.lua", "window.lua");
script!(TAKE_ALL = "take_all.lua" after "now.lua", "gcra.lua", "window.lua");
script!(PEEK = "peek.lua" after "now.lua", "gcra.lua", "window.lua");
script!(REFUND = "refund.lua" after "now.lua", "gcra.lua", "window.lua");

/// One limit of a call: the key, its terms, and what is asked of it.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) key: Key,
    pub(super) terms: Terms,
    pub(super) cost: u32,
}

/// What a call that takes has come to.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) allowed: bool,
    pub(super) standing: Standing,
    /// Not after the instant of the decision.
    pub(super) since: Instant,
    /// How long after the reply what was taken may be used.
    pub(super) ready: Duration,
    pub(super) mark: Mark,
}

/// When something was taken, to give exactly that back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    /// In µs of the server's clock.
    at: u64,
    /// The level with it, in ns.
    level: u64,
}

/// Takes the cost, or reserves it if it fits within `wait`.
pub(super) async fn take(
    client: &Client,
    asked: &Asked,
    wait: Duration,
    deadline: Deadline,
) -> Result<Taken> {
    let Asked { key, terms, cost } = asked;
    let (amount, capacity) = (terms.amount(*cost), terms.capacity());
    let (span, slice) = terms.span();
    let wait = wait.min(terms.longest_wait());
    let call = match terms {
        Terms::Gcra { .. } => {
            let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
            TAKE.call([key]).arg(amount).arg(capacity).arg(nanos)
        }
        Terms::Window { .. } => {
            let micros = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
            let call = SLIDE.call([key]).arg(amount).arg(capacity);
            call.arg(span).arg(slice).arg(micros)
        }
    };
    let reply = run(client, call, key, Purpose::Write, deadline).await?;
    let allowed = match reply.status()? {
        "ALLOWED" => true,
        "REFUSED" => false,
        _ => return Err(reply.unexpected()),
    };
    let taken = reply.count(1)?;
    let (standing, ready, at) = match terms {
        Terms::Gcra { .. } => {
            let over = Duration::from_nanos(taken.saturating_sub(capacity));
            (Standing::level(taken), over, reply.count(2)?)
        }
        Terms::Window { .. } => {
            let ready = Duration::from_micros(reply.count(2)?);
            (Standing::read(&reply, 1)?, ready, reply.count(4)?)
        }
    };
    Ok(Taken {
        allowed,
        standing,
        since: reply.sent(),
        ready,
        mark: Mark { at, level: taken },
    })
}

/// Takes the cost of all of these limits, which share a slot, or of none. Returns whether it was
/// taken, what each limit says, and an instant that is not after that of the decision.
pub(super) async fn take_all(
    client: &Client,
    all: &[Asked],
    deadline: Deadline,
) -> Result<(bool, Vec<Standing>, Instant)> {
    let Some(first) = all.first() else {
        return Ok((true, Vec::new(), Instant::now()));
    };
    let keys: Vec<&Key> = all.iter().map(|asked| &asked.key).collect();
    let mut call = TAKE_ALL.call(keys);
    for Asked { terms, cost, .. } in all {
        let (span, slice) = terms.span();
        call = call.arg(terms.kind()).arg(terms.amount(*cost));
        call = call.arg(terms.capacity()).arg(span).arg(slice);
    }
    let reply = run(client, call, &first.key, Purpose::Write, deadline).await?;
    let allowed = match reply.status()? {
        "ALLOWED" => true,
        "REFUSED" => false,
        _ => return Err(reply.unexpected()),
    };
    let standings = standings(&reply, all.len())?;
    Ok((allowed, standings, reply.sent()))
}

/// Returns what limits, which share a slot, say without taking anything. The cost is that of a
/// request that is judged.
pub(super) async fn peek(
    client: &Client,
    all: &[Asked],
    deadline: Deadline,
) -> Result<Vec<Standing>> {
    let Some(first) = all.first() else {
        return Ok(Vec::new());
    };
    let keys: Vec<&Key> = all.iter().map(|asked| &asked.key).collect();
    let mut call = PEEK.call(keys);
    for Asked { terms, cost, .. } in all {
        call = call.arg(terms.kind()).arg(terms.amount(*cost));
        call = call.arg(terms.capacity()).arg(terms.span().0);
    }
    let reply = run(client, call, &first.key, Purpose::Read, deadline).await?;
    match reply.status()? {
        "OK" => standings(&reply, all.len()),
        _ => Err(reply.unexpected()),
    }
}

/// Gives the cost back: what was taken at `mark`, or whatever is there if that is not known.
pub(super) async fn give_back(
    client: &Client,
    asked: &Asked,
    mark: Option<Mark>,
    deadline: Deadline,
) -> Result<()> {
    let Asked { key, terms, cost } = asked;
    let Mark { at, level } = mark.unwrap_or(Mark { at: 0, level: 0 });
    let call = REFUND.call([key]).arg(terms.kind());
    let call = call.arg(terms.amount(*cost)).arg(terms.span().0);
    let call = call.arg(at).arg(level).arg(terms.capacity());
    let reply = run(client, call, key, Purpose::Write, deadline).await?;
    match reply.status()? {
        "OK" => Ok(()),
        _ => Err(reply.unexpected()),
    }
}

/// Runs a script once it is known that all clients write limits in one format.
async fn run(
    client: &Client,
    call: Call,
    key: &Key,
    purpose: Purpose,
    deadline: Deadline,
) -> Result<Reply> {
    client
        .agree(Written::Limits, key, purpose, deadline)
        .await?;
    client.run(call, deadline).await
}

fn standings(reply: &Reply, count: usize) -> Result<Vec<Standing>> {
    let positions = (0..count).map(|number| 1 + 3 * number);
    positions.map(|at| Standing::read(reply, at)).collect()
}
