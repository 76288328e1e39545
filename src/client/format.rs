//! `Formats`: whether all clients of a namespace write its keys in one way.
//!
//! Invariant: a lock is not asked for, and a counter is not touched, before this client has heard
//! in which format such keys are written. A key of the namespace says so for each kind; the first
//! write sets it. Where that is refused to this user, it is only read. Caches need none: each entry
//! carries its version.
//!
//! What was heard counts while the connection to the server of the format key is the same, and is
//! asked for again before a call begins, not when the call is sent again. In a cluster that key may
//! be on another server than the caller's: while that one cannot be reached, what was heard before
//! still counts.
//!
//! What is known is found by a few atomic loads. Callers who do not know yet ask for themselves, so
//! that none depends on the future of another: after a new connection each of them sends a `GET`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::retry;
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::key::{Key, Namespace};
use crate::net::connection::changes::Count;
use crate::script::Retry;
use crate::time::Deadline;
use crate::topology::Topology;
use crate::wire::command::plain;

/// What is written in a format that clients must agree on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Written {
    Locks,
    Counters,
}

/// What a caller is about to do.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    Read,
    Write,
}

#[derive(Debug)]
pub(crate) struct Formats {
    locks: Vec<GroupFormat>,
    counters: Vec<GroupFormat>,
}

/// The format of the keys of one part, which are mostly on one server.
#[derive(Debug)]
struct GroupFormat {
    key: Key,
    /// When it was found to be ours.
    read: Heard,
    /// When it was found to be ours, or this client may not set it.
    written: Heard,
}

/// As of which connections to the server of the format key something was heard.
#[derive(Debug, Default)]
struct Heard {
    made: AtomicU64,
    changed: AtomicU64,
}

impl Written {
    fn format(self) -> &'static str {
        match self {
            Self::Locks => "2",
            Self::Counters => "1",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Locks => "lock",
            Self::Counters => "counter",
        }
    }

    /// What is to be said where `theirs` is the format that is found; nothing if it is ours.
    pub(crate) fn difference(self, theirs: &str) -> Option<String> {
        let (what, ours) = (self.name(), self.format());
        let theirs: String = theirs.chars().take(LONGEST).collect();
        (theirs != ours).then(|| {
            format!(
                "each {what} of this namespace is written in format {theirs:?} of another version of \
                 hedgerow, and this version writes format {ours:?}; run versions of one format in a \
                 namespace"
            )
        })
    }
}

impl Formats {
    pub(super) fn new(namespace: &Namespace, topology: &Topology) -> Self {
        let parts = |written: Written| {
            let keys = topology.for_slot_groups(&namespace.format(written.name()));
            let part = |key| GroupFormat {
                key,
                read: Heard::default(),
                written: Heard::default(),
            };
            keys.into_iter().map(part).collect()
        };
        Self {
            locks: parts(Written::Locks),
            counters: parts(Written::Counters),
        }
    }

    /// Returns when it is known that what `key` stands for is written in our format: at once, but
    /// for the first calls after a connection was made, and reads where nothing is written yet.
    ///
    /// Cancel safety: safe.
    pub(super) async fn agree(
        &self,
        topology: &Topology,
        written: Written,
        key: &Key,
        purpose: Purpose,
        deadline: Deadline,
    ) -> Result<()> {
        let parts = match written {
            Written::Locks => &self.locks,
            Written::Counters => &self.counters,
        };
        let part = match &parts[..] {
            [part] => part,
            parts => &parts[topology.slot_group(key)],
        };
        let now = topology.made(&part.key);
        let heard = part.heard(purpose);
        if now.is_some_and(|now| heard.is_as_of(now)) {
            return Ok(());
        }
        let elsewhere = !topology.share_server(key, &part.key);
        if elsewhere && now.is_some_and(|now| heard.is_as_of_last_made(now)) {
            return Ok(());
        }
        let asked = async {
            match elsewhere && heard.is_any() {
                false => part.ask(topology, written, purpose, deadline).await,
                true => {
                    let moment = (deadline.remaining() / 2).min(MOMENT);
                    let soon = deadline.at_most(Instant::now() + moment).fail_fast();
                    let asked = part.ask(topology, written, purpose, soon).await;
                    // That server is out, or loads, and the caller needs another.
                    asked.or_else(|error| match error.fate() {
                        Fate::Refused => Err(error),
                        _ => Ok(()),
                    })
                }
            }
        };
        Box::pin(asked).await
    }

    /// The keys that say a format, and of what.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (Written, &Key)> {
        let locks = self.locks.iter().map(|part| (Written::Locks, &part.key));
        let counters = self.counters.iter();
        locks.chain(counters.map(|part| (Written::Counters, &part.key)))
    }
}

impl GroupFormat {
    fn heard(&self, purpose: Purpose) -> &Heard {
        match purpose {
            Purpose::Read => &self.read,
            Purpose::Write => &self.written,
        }
    }

    /// Asks the server of the format key, and sets it where nobody has.
    async fn ask(
        &self,
        topology: &Topology,
        written: Written,
        purpose: Purpose,
        deadline: Deadline,
    ) -> Result<()> {
        let ours = written.format();
        let get = plain("GET", &self.key);
        let may_not = |error: &Error| error.kind() == ErrorKind::Forbidden;
        let answer = retry::answer(topology, get, &self.key, Retry::Reads, deadline).await;
        let mut answer = answer.map_err(Error::of_own_question)?;
        let mut found = text(&answer.value)?;
        let mut is_said = found.is_some();
        if let (None, Purpose::Write) = (&found, purpose) {
            let mut set = plain("SET", &self.key);
            set.arg(ours).arg("NX").arg("GET");
            let set = retry::answer(topology, set, &self.key, Retry::Safe, deadline).await;
            match set {
                Ok(before) => {
                    found = text(&before.value)?;
                    answer = before;
                    is_said = true;
                }
                // It cannot be set by this user; what others say was heard.
                Err(error) if may_not(&error) => {}
                // Nor now, by anyone, as on a full server: the next call tries again.
                Err(error) if error.fate() == Fate::Refused => return Ok(()),
                Err(error) => return Err(error.of_own_question()),
            }
        }
        if let Some(difference) = found.as_deref().and_then(|it| written.difference(it)) {
            self.read.forget();
            self.written.forget();
            let message = format!("not sent: {difference}");
            return Err(Error::new(ErrorKind::WrongType, message));
        }
        if let (None, Purpose::Read) = (&found, purpose) {
            // The first write sets it, in whatever format.
            return Ok(());
        }
        if let Some(as_of) = topology.made_before(&self.key, answer.sent) {
            // Where this user may not say it, another may come to, in another format.
            if is_said {
                self.read.note(as_of);
            }
            self.written.note(as_of);
        }
        Ok(())
    }
}

impl Heard {
    /// Whether nothing has become of the connections since.
    fn is_as_of(&self, now: Count) -> bool {
        now.changed != 0 && self.changed.load(Ordering::Relaxed) == now.changed
    }

    /// Whether no connection was made since, though one may have been lost.
    fn is_as_of_last_made(&self, now: Count) -> bool {
        now.made != 0 && self.made.load(Ordering::Relaxed) == now.made
    }

    fn is_any(&self) -> bool {
        self.made.load(Ordering::Relaxed) != 0
    }

    fn forget(&self) {
        self.made.store(0, Ordering::Relaxed);
        self.changed.store(0, Ordering::Relaxed);
    }

    fn note(&self, as_of: Count) {
        self.made.store(as_of.made, Ordering::Relaxed);
        self.changed.store(as_of.changed, Ordering::Relaxed);
    }
}

/// The text of a string; `None` if there is none.
fn text(value: &Value) -> Result<Option<String>> {
    match value {
        Value::Nil => Ok(None),
        Value::BulkString(bytes) => Ok(Some(String::from_utf8_lossy(bytes).into_owned())),
        _ => Err(Error::new(
            ErrorKind::Server,
            "the server answered a format that is no text",
        )),
    }
}

/// How long a call waits for the server of the format key where that is not its own and the format
/// was heard before.
const MOMENT: Duration = Duration::from_millis(250);

/// How much of a format is shown that we have not written.
const LONGEST: usize = 16;
