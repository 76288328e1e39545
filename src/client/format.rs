//! `Formats`: whether all clients of a namespace write its keys in one way.
//!
//! Invariant: a lock is not asked for, and a counter is not touched, before this client has heard, since
//! it made its present connections, in which format such keys are written. A key of the namespace says
//! so for each kind; whoever writes first sets it. Where that is refused (by a full server, or to a user
//! without the right) it is only read. Caches need none: each entry carries its version.
//!
//! What is known is found by two atomic loads. Callers who do not know yet ask for themselves, so that
//! none depends on the future of another.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redis::Value;
use tokio::time::Instant;

use super::topology::Topology;
use super::{Client, retry};
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::key::{Key, Namespace};
use crate::script::{Retry, plain};
use crate::time::Deadline;

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
    locks: Vec<Part>,
    counters: Vec<Part>,
    made: Arc<Made>,
}

/// The format of the keys of one part, which are mostly on one server.
#[derive(Debug)]
struct Part {
    key: Key,
    /// As of which count it is known to be ours, or to be missing.
    read: AtomicU64,
    /// As of which count it is known to be ours, or not to be ours to say.
    written: AtomicU64,
}

/// How often a client has made a connection for commands, or lost one.
#[derive(Debug)]
pub(crate) struct Made {
    /// And one more, so that nothing is known as of 0.
    count: AtomicU64,
    last: Mutex<Option<Instant>>,
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
    pub(super) fn difference(self, theirs: &str) -> Option<String> {
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
    pub(super) fn new(namespace: &Namespace, topology: &Topology, made: Arc<Made>) -> Self {
        let parts = |written: Written| {
            let keys = topology.for_parts(&namespace.format(written.name()));
            let part = |key| Part {
                key,
                read: AtomicU64::new(0),
                written: AtomicU64::new(0),
            };
            keys.into_iter().map(part).collect()
        };
        Self {
            locks: parts(Written::Locks),
            counters: parts(Written::Counters),
            made,
        }
    }

    /// The keys that say a format, and of what.
    pub(super) fn keys(&self) -> impl Iterator<Item = (Written, &Key)> {
        let locks = self.locks.iter().map(|part| (Written::Locks, &part.key));
        let counters = self.counters.iter();
        locks.chain(counters.map(|part| (Written::Counters, &part.key)))
    }
}

impl Client {
    /// Returns when it is known that what `key` stands for is written in our format: at once, but for
    /// the first calls after a connection was made.
    ///
    /// Cancel safety: safe.
    pub(crate) async fn agree(
        &self,
        written: Written,
        key: &Key,
        purpose: Purpose,
        deadline: Deadline,
    ) -> Result<()> {
        let formats = &self.core.formats;
        let parts = match written {
            Written::Locks => &formats.locks,
            Written::Counters => &formats.counters,
        };
        let part = match &parts[..] {
            [part] => part,
            parts => &parts[self.part(key)],
        };
        if part.is_known(purpose, formats.made.count()) {
            return Ok(());
        }
        let agreed = Box::pin(self.ask_format(written, part, purpose, deadline)).await;
        agreed.map_err(|error| self.told(error))
    }

    async fn ask_format(
        &self,
        written: Written,
        part: &Part,
        purpose: Purpose,
        deadline: Deadline,
    ) -> Result<()> {
        let (topology, ours) = (&self.core.topology, written.format());
        let get = plain("GET", &part.key);
        let answer = retry::answer(topology, get, &part.key, Retry::Reads, deadline).await;
        let mut answer = answer.map_err(Error::of_own_question)?;
        let mut found = text(&answer.value)?;
        if let (None, Purpose::Write) = (&found, purpose) {
            let mut set = plain("SET", &part.key);
            set.arg(ours).arg("NX").arg("GET");
            let set = retry::answer(topology, set, &part.key, Retry::Safe, deadline).await;
            match set {
                Ok(before) => {
                    found = text(&before.value)?;
                    answer = before;
                }
                // It cannot be said here; what others say was heard.
                Err(error) if error.fate() == Fate::Refused => {}
                Err(error) => return Err(error.of_own_question()),
            }
        }
        let as_of = self.core.formats.made.as_of(answer.sent);
        if let Some(difference) = found.as_deref().and_then(|it| written.difference(it)) {
            let message = format!("not sent: {difference}");
            return Err(Error::new(ErrorKind::WrongType, message));
        }
        // Where nothing is said yet, whoever writes will have to.
        if found.is_some() || matches!(purpose, Purpose::Write) {
            part.written.fetch_max(as_of, Ordering::Relaxed);
        }
        part.read.fetch_max(as_of, Ordering::Relaxed);
        Ok(())
    }
}

impl Part {
    fn is_known(&self, purpose: Purpose, made: u64) -> bool {
        let as_of = match purpose {
            Purpose::Read => &self.read,
            Purpose::Write => &self.written,
        };
        as_of.load(Ordering::Relaxed) == made
    }
}

impl Default for Made {
    fn default() -> Self {
        Self {
            count: AtomicU64::new(1),
            last: Mutex::new(None),
        }
    }
}

impl Made {
    /// A connection was made, and nothing sent on it yet; or one is not used any more.
    pub(super) fn note(&self) {
        let mut last = self.last();
        *last = Some(Instant::now());
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// As of which count an answer is true to a question sent at `sent`.
    fn as_of(&self, sent: Instant) -> u64 {
        let last = self.last();
        match *last {
            Some(last) if last > sent => 0,
            _ => self.count.load(Ordering::SeqCst),
        }
    }

    fn last(&self) -> MutexGuard<'_, Option<Instant>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
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

/// How much of a format is shown that we have not written.
const LONGEST: usize = 16;
