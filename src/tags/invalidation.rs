//! `invalidate`: gives tags new generations.
//!
//! Invariant: each copy of a tag has an outcome of its own, and no error hides another. So a caller
//! can repeat what has failed and nothing else: a second invalidation of a copy that was reached
//! would end what was stored there since. `invalidate_tags`, `clear` and the queue of what was not
//! delivered call this.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;

use super::{Tag, seed};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::key::TagId;
use crate::name::Shown;
use crate::script::{Call, Reply, Retry, script};
use crate::time::Deadline;
use crate::wire::command::plain;

script!(INVALIDATE = "invalidate.lua" after "generation.lua");

/// How tags are invalidated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Invalidation {
    pub(crate) mode: Mode,
    /// Loads that begin before this are not stored. A late delivery does not move it: what was
    /// loaded before that has an older generation anyhow.
    pub(crate) hold_until: Option<Instant>,
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
            hold_until: self.hold_until.max(other.hold_until),
            keep: self.keep.max(other.keep),
            replicas: self.replicas.max(other.replicas),
        }
    }

    /// The call that invalidates `tag` at its key.
    fn call(self, tag: &Tag) -> Call {
        let now = Instant::now();
        let hold = self
            .hold_until
            .map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        INVALIDATE
            .call([&tag.key])
            .arg(&seed())
            .arg(tag.readable())
            .arg((self.keep + hold).as_millis() as u64)
            .arg(hold.as_millis() as u64)
            .arg(match self.mode {
                Mode::Hard => "hard",
                Mode::Soft => "soft",
            })
            // Only a write that changes something can be waited for.
            .arg(match self.replicas {
                0 => "skip",
                _ => "make",
            })
    }
}

/// Copies of tags that were not invalidated, or perhaps not.
#[derive(Debug)]
pub(crate) struct NotInvalidated {
    /// The error of the call: it names them.
    pub(crate) error: Error,
    pub(crate) copies: Vec<(Tag, Error)>,
}

/// Gives each of these copies of tags a new generation, in parallel. That is one command for each,
/// however many entries carry the tag.
///
/// If some fail, all others are still invalidated. The error names all tags that failed. It is that
/// of the first copy that may still be invalidated later, if there is one: the caller must learn
/// that stale values are about. It says that nothing was executed only if that is true of all.
pub(crate) async fn invalidate(
    client: &Client,
    copies: &[Tag],
    how: Invalidation,
    deadline: Deadline,
) -> Result<(), NotInvalidated> {
    let mut nothing_ran = true;
    let mut names = Failed::default();
    let mut failed = Vec::new();
    // In chunks: other calls use the connection, too, and this task yields in between.
    for some in copies.chunks(AT_ONCE) {
        let renewed = some.iter().map(|tag| renewed(client, tag, how, deadline));
        // `join_all` and not `try_join_all`: one failure must not cancel the others.
        for (tag, outcome) in some.iter().zip(join_all(renewed).await) {
            nothing_ran &= matches!(&outcome, Err(error) if error.is_retryable());
            if let Err(error) = outcome {
                names.push(tag.id, &tag.name.shown());
                failed.push((tag.clone(), error));
            }
        }
        tokio::task::yield_now().await;
    }
    let Some((_, worst)) = failed.iter().min_by_key(|(_, error)| rank(error)) else {
        return Ok(());
    };
    let error = match nothing_ran {
        true => worst.clone(),
        false => worst.clone().in_part(),
    };
    Err(NotInvalidated {
        error: error.with_key(names.names()),
        copies: failed,
    })
}

/// Invalidates one copy for a caller that repeats it later. It is not sent again where it is not
/// known whether it ran.
///
/// The server is asked first whether it answers at all. A server that executes but does not answer
/// in time would otherwise be invalidated again and again, and nothing stored there would live.
pub(crate) async fn invalidate_late(
    client: &Client,
    copy: &Tag,
    how: Invalidation,
    deadline: Deadline,
) -> Result<()> {
    // Any command that the script uses, so that no other right is needed.
    let asks = client.command(plain("PTTL", &copy.key), &copy.key, Retry::Reads, deadline);
    asks.await.map_err(Error::of_own_question)?;
    let call = how.on_primary().call(copy).once();
    answered(&client.change(call, deadline.reserved()).await?)
}

/// Whether the same call is still to be delivered, and may succeed later. Where a key of another
/// type is in the way, it never will.
pub(crate) fn may_pass(error: &Error) -> bool {
    error.kind().is_outage() && error.fate() != Fate::Executed
}

/// Whether the server refuses the call for a reason that someone must look at: missing rights,
/// credentials, a certificate, or an error that the crate does not know. An open circuit breaker
/// speaks for what was learnt of the server last.
pub(crate) fn needs_someone(error: &Error) -> bool {
    matches!(
        error.reason(),
        ErrorKind::Forbidden | ErrorKind::Unauthenticated | ErrorKind::Tls | ErrorKind::Server
    )
}

/// The error with the lowest rank is the one that the caller gets.
fn rank(error: &Error) -> u8 {
    match error.fate() {
        // Says no more than that replicas are missing.
        Fate::Executed => 2,
        _ => u8::from(!may_pass(error)),
    }
}

/// The names of tags that could not be renewed, as many as fit in an error.
#[derive(Debug, Default)]
struct Failed {
    names: String,
    more: usize,
    hidden: bool,
    /// The tag that came last. The copies of a tag follow each other, and its name is shown once.
    last: Option<TagId>,
}

impl Failed {
    fn push(&mut self, tag: TagId, name: &Shown<'_>) {
        if self.last.replace(tag) == Some(tag) {
            return;
        }
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

/// Gives `tag` a new generation at its key.
async fn renewed(client: &Client, tag: &Tag, how: Invalidation, deadline: Deadline) -> Result<()> {
    let call = how.call(tag);
    // In the reserved part of the queue: an invalidation that is dropped leaves stale values to be
    // served.
    let deadline = deadline.reserved();
    answered(&match how.replicas {
        0 => client.change(call, deadline).await?,
        replicas => client.change_durably(call, replicas, deadline).await?,
    })
}

fn answered(reply: &Reply) -> Result<()> {
    match reply.status()? {
        "OK" => Ok(()),
        _ => Err(reply.unexpected()),
    }
}

/// How many copies are renewed at once.
const AT_ONCE: usize = 256;

/// The most bytes in the list of names in an error, unless the first name alone is longer.
const LONGEST_LIST: usize = 256;
