//! `invalidate`: gives tags new generations.
//!
//! Invariant: a tag counts as invalidated only if each of its keys has answered. Whatever fails is
//! reported with its tag, so that the caller can try it again: a second invalidation only
//! invalidates more. `invalidate_tags`, `clear` and the queue of what was not delivered call this.

use std::time::Duration;

use futures::future::join_all;

use super::{Tag, seed};
use crate::client::Client;
use crate::error::{Error, Fate, Result};
use crate::key::Key;
use crate::name::Shown;
use crate::script::script;
use crate::time::Deadline;

script!(INVALIDATE = "invalidate.lua" after "generation.lua");

/// How tags are invalidated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Invalidation {
    pub(crate) mode: Mode,
    /// For how long loads that begin from now on are not stored.
    pub(crate) hold: Duration,
    /// How long the tags live at least, beside the hold.
    pub(crate) keep: Duration,
    /// How many replicas must have acknowledged it.
    pub(crate) replicas: usize,
}

/// What becomes of the entries that an invalidation reaches. The stronger comes last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// They are stale, and may be served within their stale window.
    Soft,
    /// None is found any more.
    Hard,
}

impl Invalidation {
    /// The same, without waiting for replicas.
    pub(crate) fn on_primary(self) -> Self {
        Self {
            replicas: 0,
            ..self
        }
    }

    /// An invalidation that does what either of them does.
    pub(crate) fn joined(self, other: Self) -> Self {
        Self {
            mode: self.mode.max(other.mode),
            hold: self.hold.max(other.hold),
            keep: self.keep.max(other.keep),
            replicas: self.replicas.max(other.replicas),
        }
    }
}

/// Tags that were not invalidated, or perhaps not.
#[derive(Debug)]
pub(crate) struct NotInvalidated {
    /// The error of the call: it names them.
    pub(crate) error: Error,
    pub(crate) tags: Vec<(Tag, Error)>,
}

/// Gives each tag a new generation, in parallel. That is one command per tag, however many entries
/// carry it.
///
/// During a migration between two rings of shards, a tag that is on two servers is renewed on both.
/// The tag of a whole cache is renewed for each slot group. If some tags fail, all others are still
/// invalidated. The error is that of the first that failed, and names all that failed. It says that
/// nothing was executed only if that is true of all of them.
pub(crate) async fn invalidate(
    client: &Client,
    tags: &[Tag],
    how: Invalidation,
    deadline: Deadline,
) -> Result<(), NotInvalidated> {
    let mut nothing_ran = true;
    let mut names = Failed::default();
    let mut failed = Vec::new();
    // In chunks: other calls use the connection, too, and this task yields in between.
    for some in tags.chunks(AT_ONCE) {
        let mut all = Vec::with_capacity(some.len());
        for tag in some {
            let places = tag.places(client).into_iter();
            let renewed = places.map(|key| renewed(client, tag, key, how, deadline));
            // `join_all` and not `try_join_all`: one failure must not cancel the others.
            all.push(join_all(renewed));
        }
        for (tag, outcomes) in some.iter().zip(join_all(all).await) {
            let ran = |outcome: &Result<()>| !matches!(outcome, Err(e) if e.is_retryable());
            nothing_ran &= !outcomes.iter().any(ran);
            if let Err(error) = outcomes.into_iter().collect::<Result<()>>() {
                names.push(&tag.name.shown());
                failed.push((tag.clone(), error));
            }
        }
        tokio::task::yield_now().await;
    }
    // Rather one that says more than that replicas are missing.
    let worse = |failed: &&(Tag, Error)| failed.1.fate() != Fate::Executed;
    let Some((_, first)) = failed.iter().find(worse).or(failed.first()) else {
        return Ok(());
    };
    let error = match nothing_ran {
        true => first.clone(),
        false => first.clone().in_part(),
    };
    Err(NotInvalidated {
        error: error.with_key(names.names()),
        tags: failed,
    })
}

/// The names of tags that could not be renewed, as many as fit in an error.
#[derive(Debug, Default)]
struct Failed {
    names: String,
    more: usize,
    hidden: bool,
}

impl Failed {
    fn push(&mut self, name: &Shown<'_>) {
        self.hidden |= name.is_hidden();
        let name = name.as_str();
        if !self.names.is_empty() && self.names.len() + name.len() > LONGEST_LIST {
            self.more += 1;
            return;
        }
        if !self.names.is_empty() {
            self.names.push_str(", ");
        }
        self.names.push_str(name);
    }

    fn names(self) -> Shown<'static> {
        let text = match self.more {
            0 => self.names,
            more => format!("{} and {more} more", self.names),
        };
        match self.hidden {
            true => Shown::hidden_list(text),
            false => Shown::plain_list(text),
        }
    }
}

/// Gives `tag` a new generation at `key`.
async fn renewed(
    client: &Client,
    tag: &Tag,
    key: Key,
    how: Invalidation,
    deadline: Deadline,
) -> Result<()> {
    let call = INVALIDATE
        .call([&key])
        .arg(&seed())
        .arg(tag.readable())
        .arg((how.keep + how.hold).as_millis() as u64)
        .arg(how.hold.as_millis() as u64)
        .arg(match how.mode {
            Mode::Hard => "hard",
            Mode::Soft => "soft",
        })
        // Only a write that changes something can be waited for.
        .arg(match how.replicas {
            0 => "skip",
            _ => "make",
        });
    // In the reserved part of the queue: an invalidation that is dropped leaves stale values to be
    // served.
    let deadline = deadline.reserved();
    let reply = match how.replicas {
        0 => client.change(call, deadline).await?,
        replicas => client.change_durably(call, replicas, deadline).await?,
    };
    match reply.status()? {
        "OK" => Ok(()),
        _ => Err(reply.unexpected()),
    }
}

/// How many tags are renewed at once.
const AT_ONCE: usize = 256;

/// The most bytes in the list of names in an error, unless the first name alone is longer.
const LONGEST_LIST: usize = 256;
