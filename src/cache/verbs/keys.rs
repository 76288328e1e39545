//! `keys` and `count`: which keys a cache has in Redis.
//!
//! Invariant: a key that is there from the beginning to the end is returned, as long as its slot
//! does not move meanwhile. A walk holds a bounded number of keys. Users call this, and
//! `remove_matching` walks, too.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::stream::{self, BoxStream, Stream, StreamExt as _, TryStreamExt as _};
use redis::Value;
use xxhash_rust::xxh3::xxh3_128;

use super::pattern::Pattern;
use crate::cache::Cache;
use crate::client::Request;
use crate::error::{Error, ErrorKind, Result};
use crate::key::name_of;
use crate::net::connection::changes::Count;
use crate::script::Retry;
use crate::topology::Server;

/// The keys of a cache that match a pattern, made by [`Cache::keys`]. A stream.
#[must_use = "nothing is asked for until it is polled"]
pub struct Keys(BoxStream<'static, Result<String>>);

impl Cache {
    /// Returns the keys that match `pattern` and have an entry in Redis, in no order. `*` stands for
    /// any text, `?` for one character, and a backslash takes the meaning of the character behind it
    /// away.
    ///
    /// This walks over all keys of all servers (`SCAN`), in steps of about 1,000, and is made for
    /// operators and clean-ups. An entry that was invalidated by tag is listed until it is gone. A
    /// key that comes or goes meanwhile may be listed or not. A key is listed once; after more than
    /// 262,144 keys one may come again. In a cluster, keys of a slot that moves meanwhile may be
    /// missed.
    ///
    /// ```no_run
    /// # async fn example(cache: hedgerow::Cache) -> hedgerow::Result<()> {
    /// let mut keys = cache.keys("user:*");
    /// while let Some(key) = keys.next().await {
    ///     println!("{}", key?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The stream yields `InvalidInput` if the pattern is invalid, and what a server refuses or does
    /// not answer, then ends. The [deadline](Self::deadline) is that of each step.
    pub fn keys(&self, pattern: &str) -> Keys {
        let walk = Walk::new(self, pattern, Versions::Own);
        let batches = stream::try_unfold(walk, |walk| async {
            let mut walk = walk?;
            let batch = walk.next().await?;
            Ok(batch.map(|batch| {
                let names = batch.found.into_iter().map(|found| Ok(found.name));
                (stream::iter(names), Ok(walk))
            }))
        });
        Keys(batches.try_flatten().boxed())
    }

    /// Returns how many entries the cache has in Redis. It walks as [`keys`](Self::keys) does, so
    /// the number is that of no single moment.
    ///
    /// # Errors
    /// As [`keys`](Self::keys).
    ///
    /// # Cancel safety
    /// Safe.
    pub fn count(&self) -> Request<'_, u64> {
        Request::new(self.setup.patience, move |patience| async move {
            let mut cache = self.clone();
            cache.set_patience(patience);
            let mut walk = Walk::new(&cache, "*", Versions::Own)?;
            let mut count = 0;
            while let Some(batch) = walk.next().await? {
                count += batch.found.len() as u64;
            }
            Ok(count)
        })
    }
}

impl Keys {
    /// Returns the next key. `None` at the end.
    ///
    /// # Cancel safety
    /// Safe: a key that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Option<Result<String>> {
        self.0.next().await
    }
}

impl Stream for Keys {
    type Item = Result<String>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

/// Which versions of a cache are walked over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Versions {
    Own,
    All,
}

/// A walk over the entries of a cache, on one server after the other.
#[derive(Debug)]
pub(super) struct Walk {
    cache: Cache,
    pattern: Pattern,
    glob: String,
    versions: Versions,
    /// The servers that are still to be walked over. `None` before they are known.
    servers: Option<VecDeque<Server>>,
    step: Step,
    seen: Seen,
}

/// Where a walk is on its server.
#[derive(Debug, Default)]
struct Step {
    /// `0` at the beginning.
    cursor: u64,
    /// The connections to the server that had been made when the walk over it began.
    made: Option<Count>,
    restarts: u32,
}

/// What one step has found.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) server: Server,
    pub(super) found: Vec<Entry>,
}

#[derive(Debug)]
pub(super) struct Entry {
    /// The Redis key of the value.
    pub(super) key: String,
    pub(super) version: u32,
    pub(super) name: String,
}

impl Walk {
    pub(super) fn new(cache: &Cache, pattern: &str, versions: Versions) -> Result<Self> {
        // The first error of a setting is the error of the walk.
        cache.names()?;
        let pattern = Pattern::parse(pattern)?;
        let space = cache.client.namespace();
        Ok(Self {
            glob: space.cached_like(&cache.setup.name, &pattern.glob()),
            cache: cache.clone(),
            pattern,
            versions,
            servers: None,
            step: Step::default(),
            seen: Seen::default(),
        })
    }

    /// Returns the entries of the next step. `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Batch>> {
        let client = self.cache.client.clone();
        let deadline = self.cache.deadline_now();
        if self.servers.is_none() {
            self.servers = Some(client.servers(deadline).await?.into());
        }
        let Some(server) = self.servers.as_ref().and_then(VecDeque::front).cloned() else {
            return Ok(None);
        };
        let made = client.made_to(&server);
        if self.step.cursor == 0 {
            self.step.made = made;
        } else if self.step.made != made {
            // Perhaps another process is there now, to which the cursor means nothing.
            self.step.restart(made)?;
        }
        let mut scan = redis::cmd("SCAN");
        scan.arg(self.step.cursor)
            .arg("MATCH")
            .arg(&self.glob)
            .arg("COUNT")
            .arg(STEP)
            // What is of another type under such a key was not written by a cache.
            .arg("TYPE")
            .arg("string");
        let reply = client.command_to(&server, scan, Retry::Reads, deadline).await?;
        let (cursor, keys) = parsed(reply)?;
        self.step.cursor = cursor;
        if cursor == 0 {
            self.step = Step::default();
            self.servers.get_or_insert_default().pop_front();
        }
        let found = keys.into_iter().filter_map(|key| self.entry(key)).collect();
        Ok(Some(Batch { server, found }))
    }

    /// Returns the entry at `key`, if it is meant and was not returned before.
    fn entry(&mut self, key: String) -> Option<Entry> {
        let space = self.cache.client.namespace();
        let (version, name) = space.cached(&self.cache.setup.name, &key)?;
        let name = name_of(name);
        let own = self.versions == Versions::All || version == self.cache.setup.version;
        let meant = own && self.pattern.matches(&name) && self.seen.is_new(&key);
        meant.then_some(Entry { key, version, name })
    }
}

impl Step {
    fn restart(&mut self, made: Option<Count>) -> Result<()> {
        if self.restarts == MOST_RESTARTS {
            return Err(Error::new(
                ErrorKind::Disconnected,
                "the connection was lost again and again while keys were listed; list them again",
            ));
        }
        *self = Self {
            cursor: 0,
            made,
            restarts: self.restarts + 1,
        };
        Ok(())
    }
}

/// The keys that were returned last, as digests.
#[derive(Debug, Default)]
struct Seen {
    known: HashSet<u128>,
    order: VecDeque<u128>,
}

impl Seen {
    /// Notes `key`. Returns whether it is not among the last ones.
    fn is_new(&mut self, key: &str) -> bool {
        let digest = xxh3_128(key.as_bytes());
        if !self.known.insert(digest) {
            return false;
        }
        self.order.push_back(digest);
        if self.order.len() > MOST_SEEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

/// Reads the reply of `SCAN`. Keys that are no text were not written by a cache.
fn parsed(reply: Value) -> Result<(u64, Vec<String>)> {
    if let Value::Array(parts) = reply
        && let [cursor, Value::Array(keys)] = &parts[..]
        && let Ok(cursor) = redis::from_redis_value_ref::<String>(cursor)
        && let Ok(cursor) = cursor.parse()
    {
        let text = |key: &Value| redis::from_redis_value_ref::<String>(key).ok();
        return Ok((cursor, keys.iter().filter_map(text).collect()));
    }
    Err(Error::new(
        ErrorKind::Server,
        "the server answered SCAN in an unknown form",
    ))
}

/// How many keys of its server one step looks at, about.
const STEP: usize = 1000;

const MOST_SEEN: usize = 1 << 18;

/// How often the walk over one server begins anew, because the connection to it was lost.
const MOST_RESTARTS: u32 = 10;
