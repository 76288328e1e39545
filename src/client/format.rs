//! `Formats`: checks that all clients of a namespace write its keys in the same format.
//!
//! Invariant: no lock is asked for, and no counter touched, before this client knows the format of
//! such keys. For each kind, a key of the namespace holds the format. The first write sets that
//! key; a user who is not permitted to set it only reads it. Caches need none: each entry carries
//! its version.
//!
//! An answer counts while the connection to the server of the format key stays the same. It is
//! renewed before a call starts, not when a call is sent again. In a cluster the format key may be
//! on another server than the caller's key. While that server cannot be reached, the last answer
//! still counts.
//!
//! A known format is found by a few atomic loads. Callers that do not know it yet ask by
//! themselves, so that none depends on the future of another. After a new connection each of them
//! sends a `GET`. `Client::agree` is the only caller.

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

/// A kind of key whose format clients must agree on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Written {
    Locks,
    Semaphores,
    Counters,
    Limits,
}

/// What a call is about to do.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    Read,
    Write,
}

#[derive(Debug)]
pub(crate) struct Formats {
    /// In the order of [`Written`], and of each kind one for each slot group.
    groups: [Vec<GroupFormat>; 4],
}

/// The format of the keys of one slot group, which are mostly on one server.
#[derive(Debug)]
struct GroupFormat {
    key: Key,
    /// When the format was found to be ours.
    read: Heard,
    /// When the format was found to be ours, or this client was found not permitted to set it.
    written: Heard,
}

/// When something was found out, as counts of the connections to the server of the format key.
#[derive(Debug, Default)]
struct Heard {
    /// 0: never.
    made: AtomicU64,
    changed: AtomicU64,
}

impl Written {
    /// In the order in which they are declared.
    const ALL: [Self; 4] = [Self::Locks, Self::Semaphores, Self::Counters, Self::Limits];

    fn format(self) -> &'static str {
        match self {
            Self::Locks => "2",
            Self::Semaphores => "1",
            Self::Counters => "1",
            Self::Limits => "1",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Locks => "lock",
            Self::Semaphores => "semaphore",
            Self::Counters => "counter",
            Self::Limits => "limit",
        }
    }

    /// Returns the text of the error if `theirs`, the format that was found, is not ours.
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
            groups: Written::ALL.map(parts),
        }
    }

    /// Returns once it is known that keys such as `key` are written in our format. Returns at once,
    /// except for the first calls after a connection was made, and for reads while nothing is
    /// written yet.
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
        let parts = &self.groups[written as usize];
        let part = match &parts[..] {
            [part] => part,
            parts => &parts[topology.slot_group(key)],
        };
        let now = topology.made(&part.key);
        let heard = part.heard(purpose);
        if now.is_some_and(|now| heard.is_as_of(now)) {
            return Ok(());
        }
        // The caller does not need the server of the format key, so an outage there must not fail
        // the call.
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
                    // The server of the format key is out or still loading, and the caller needs
                    // another one.
                    asked.or_else(|error| match error.fate() {
                        Fate::Refused => Err(error),
                        _ => Ok(()),
                    })
                }
            }
        };
        Box::pin(asked).await
    }

    /// Returns the keys that hold a format, and the kind that each is about.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (Written, &Key)> {
        let kinds = Written::ALL.into_iter().zip(&self.groups);
        kinds.flat_map(|(written, parts)| parts.iter().map(move |part| (written, &part.key)))
    }
}

impl GroupFormat {
    fn heard(&self, purpose: Purpose) -> &Heard {
        match purpose {
            Purpose::Read => &self.read,
            Purpose::Write => &self.written,
        }
    }

    /// Reads the format key. A write sets it if no client has.
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
            // `GET` returns what another client has set in the meantime.
            set.arg(ours).arg("NX").arg("GET");
            let set = retry::answer(topology, set, &self.key, Retry::Safe, deadline).await;
            match set {
                Ok(before) => {
                    found = text(&before.value)?;
                    answer = before;
                    is_said = true;
                }
                // This user may not set it. Formats that others set are still read.
                Err(error) if may_not(&error) => {}
                // Refused to everyone for now, for example by a full server. The next call tries
                // again.
                Err(error) if error.fate() == Fate::Refused => return Ok(()),
                Err(error) => return Err(error.of_own_question()),
            }
        }
        if let Some(difference) = found.as_deref().and_then(|it| written.difference(it)) {
            // Both, so that no call after this one relies on an older answer.
            self.read.forget();
            self.written.forget();
            let message = format!("not sent: {difference}");
            return Err(Error::new(ErrorKind::WrongType, message));
        }
        if let (None, Purpose::Read) = (&found, purpose) {
            // Nothing is written yet, and the first write may set any format. So nothing is
            // recorded.
            return Ok(());
        }
        if let Some(as_of) = topology.made_before(&self.key, answer.sent) {
            // If this user may not set it, another may set another format later. Reads must ask
            // again then.
            if is_said {
                self.read.note(as_of);
            }
            self.written.note(as_of);
        }
        Ok(())
    }
}

impl Heard {
    /// Returns whether no connection was made or lost since.
    fn is_as_of(&self, now: Count) -> bool {
        now.changed != 0 && self.changed.load(Ordering::Relaxed) == now.changed
    }

    /// Returns whether no connection was made since. One may have been lost.
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

/// Returns the text of a string reply; `None` for a nil reply.
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

/// How long a call waits for the server of the format key, if that is not its own server and the
/// format is known from before.
const MOMENT: Duration = Duration::from_millis(250);

/// How many characters of an unknown format an error shows.
const LONGEST: usize = 16;
