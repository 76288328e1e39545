//! `Client`: the way to the servers, shared by all primitives.
//!
//! Invariant: a client makes at most three connections to a server, one for commands, one for
//! pushes and one for large values, all lazily and all made anew when they are lost. `preflight`
//! has one more while it runs, a seed that is a primary has one more while it is asked for the
//! slots, and a connection that is replaced lives until its callers are answered. While a lease is
//! at stake up to 24 attempts to connect run beside each other. The primitives reach Redis through
//! the few `pub(crate)` calls here; they add their own constructors (`client.lock(..)`) beside
//! their code.

mod acl;
mod address_map;
mod attempt;
mod backoff;
mod batch;
mod bounded;
mod breaker;
mod builder;
mod carriers;
mod cells;
mod credentials;
mod dial;
#[cfg(feature = "embedded")]
pub mod embedded;
mod endpoint;
mod format;
mod gather;
mod health;
mod lane;
mod large;
mod link;
mod node;
mod preflight;
mod push;
mod queue;
mod race;
mod request;
mod retry;
mod source;
mod tapped;
#[cfg(feature = "tls")]
mod tls;
mod topology;
mod traffic;
mod trials;
mod url;

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use address_map::AddressMap;
pub use builder::ClientBuilder;
pub use credentials::Credentials;
use format::Formats;
pub(crate) use format::{Purpose, Written};
pub use preflight::{Finding, FindingCode, Preflight, Severity};
pub(crate) use push::{Hub, Missed, Notice};
pub(crate) use queue::LARGE;
pub use request::Request;
#[cfg(feature = "tls")]
pub use tls::Tls;
use tokio::time::Instant;
use topology::{Topology, Values};

use crate::background::Spawner;
use crate::error::{Error, Result};
use crate::key::{Key, Namespace};
use crate::name::{HideKeys, Name, Shown};
use crate::script::{Call, Reply, Retry};
use crate::time::{Deadline, Patience};

/// A client of one Redis or Valkey server, or of several that belong together.
///
/// Cheap to clone; all clones share its connections, three to each server at most. They are made
/// when first needed and made again when they are lost, so a service starts while Redis is down and
/// recovers when it comes back. Every call has a total deadline.
///
/// ```no_run
/// # async fn example() -> hedgerow::Result<()> {
/// let client = hedgerow::Client::connect("redis://127.0.0.1:6379").await?;
/// let views = client.counter("views:42").add(1).await?;
/// println!("{} views", views.value);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    core: Arc<Core>,
    /// How names are shown: the client's setting, or the one of a cache.
    hide: HideKeys,
}

struct Core {
    namespace: Namespace,
    process: String,
    deadlines: Deadlines,
    loads_without_redis: usize,
    max_value_size: usize,
    spawner: Spawner,
    topology: Topology,
    formats: Formats,
    /// What the primitives share among all handles of this client, one value a type.
    rooms: Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
    #[cfg(feature = "embedded")]
    server: Option<embedded::Server>,
}

/// How long a whole call may take, retries included.
#[derive(Debug, Clone, Copy)]
struct Deadlines {
    command: Patience,
    cache: Patience,
}

impl Client {
    /// A client of the server at `url`: `redis://[[user]:password@]host[:port][/db]` or
    /// `unix:///path/to/socket`; with the feature `tls` also `rediss://..`, which trusts the roots
    /// of the system (see [`ClientBuilder::tls`](ClientBuilder) for others).
    ///
    /// Behind a `?` any of them takes `db=3`, `user=` (or `username=`), `password=` (or `pass=`),
    /// and `tls=true` (or `tls=required`, `ssl=true`), which is what `rediss://` says. Other
    /// parameters are refused, since they would have no effect; so is a user without a password.
    /// Percent-encode characters with a meaning in URLs in users and passwords: `%40` for `@`,
    /// `%2F` for `/`, `%3F` for `?`.
    ///
    /// Does no I/O and needs no runtime: the client connects with the first call that needs the
    /// server, so a service may start while Redis is down, and the client may live in a `static`.
    /// [`connect`](Self::connect) also asks whether the server answers.
    ///
    /// ```no_run
    /// use std::sync::LazyLock;
    ///
    /// use hedgerow::Client;
    ///
    /// static CLIENT: LazyLock<Client> =
    ///     LazyLock::new(|| Client::open("redis://127.0.0.1:6379").expect("the URL is well formed"));
    /// ```
    ///
    /// # Errors
    /// `InvalidInput` when the URL is not understood. An unreachable server is no error here.
    pub fn open(url: &str) -> Result<Self> {
        Self::builder().url(url).open()
    }

    /// [`open`](Self::open), then a [`ping`](Self::ping): the client is returned when the server
    /// has answered. For services that must not start without Redis.
    ///
    /// # Errors
    /// `InvalidInput` when the URL is not understood. Otherwise the reason why the server did not
    /// answer within the [deadline](ClientBuilder::deadline), 5 s by default. Wrong credentials
    /// in the URL fail at once; those of a provider
    /// ([`ClientBuilder::credentials_from`]) are asked for again until the deadline.
    ///
    /// # Cancel safety
    /// Safe: dropping the future closes the connection.
    pub async fn connect(url: &str) -> Result<Self> {
        Self::builder().url(url).connect().await
    }

    /// [`connect`](Self::connect) to the server that the environment variable `REDIS_URL` names.
    /// For a client that does not ask the server first, use
    /// `Client::builder().`[`url_from_env()`](ClientBuilder::url_from_env)`.open()`.
    ///
    /// # Errors
    /// `InvalidInput` when the variable is missing or its value is not understood; else as
    /// [`connect`](Self::connect).
    ///
    /// # Cancel safety
    /// Safe: dropping the future closes the connection.
    pub async fn from_env() -> Result<Self> {
        Self::builder().url_from_env().connect().await
    }

    /// Sets a client up step by step.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// A client over a connection that the caller made, with all settings at their defaults;
    /// [`ClientBuilder::connection`] takes others.
    ///
    /// Such a client has no push connection, so that waiting for locks and for loads in other
    /// processes falls back to timers, and it does not reconnect: when the connection is gone,
    /// every call fails and says so.
    pub fn from_connection(connection: redis::aio::MultiplexedConnection) -> Self {
        match Self::builder().connection(connection).open() {
            Ok(client) => client,
            Err(_) => unreachable!("the defaults are valid"),
        }
    }

    /// A client of a private server that is started for it and ends with its last clone.
    ///
    /// For examples, tests and local development.
    ///
    /// # Errors
    /// `Embedded` when no `redis-server` or `valkey-server` is found, or it does not start.
    ///
    /// # Cancel safety
    /// Dropping the future ends the server.
    #[cfg(feature = "embedded")]
    pub async fn embedded() -> Result<Self> {
        let server = embedded::Server::start().await?;
        let url = server.url().to_owned();
        Self::builder().url(&url).owning(server).open()
    }

    /// Sends a `PING` and waits for the answer.
    ///
    /// # Errors
    /// The reason why the server did not answer within the deadline.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn ping(&self) -> Result<()> {
        let deadline = self.deadline();
        let ping = redis::cmd("PING");
        retry::command(&self.core.topology, ping, None, Retry::Reads, deadline)
            .await
            .map(drop)
    }

    /// Returns when the servers have answered: the primary of each shard, any primary of a cluster.
    async fn answered(self) -> Result<Self> {
        retry::greet(&self.core.topology, self.deadline()).await?;
        Ok(self)
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.core.namespace
    }

    /// The name that a caller gave to something of this client.
    pub(crate) fn name(&self, real: &str) -> Name {
        Name::new(real, &self.hide)
    }

    /// `name` as it may be shown.
    pub(crate) fn shown<'n>(&self, name: &'n str) -> Shown<'n> {
        self.hide.show(name)
    }

    /// How names are shown.
    pub(crate) fn hide_keys(&self) -> &HideKeys {
        &self.hide
    }

    /// The same client with names shown in another way.
    pub(crate) fn hiding(&self, hide: HideKeys) -> Self {
        Self {
            core: self.core.clone(),
            hide,
        }
    }

    /// `error` as the caller gets it: without what may quote a name, where names are hidden.
    pub(crate) fn told(&self, error: Error) -> Error {
        match self.hide.is_off() {
            true => error,
            false => error.without_quotes(),
        }
    }

    /// 128 random bits in hex, this client's own: its wake channels end in them.
    pub(crate) fn process(&self) -> &str {
        &self.core.process
    }

    /// How long calls may take, those of caches excepted.
    pub(crate) fn patience(&self) -> Patience {
        self.core.deadlines.command
    }

    /// The deadline of a call that starts now.
    pub(crate) fn deadline(&self) -> Deadline {
        self.patience().deadline()
    }

    /// How long calls of caches may take. `remove`, `clear` and invalidations keep trying for as
    /// long as there is time.
    pub(crate) fn cache_patience(&self) -> Patience {
        self.core.deadlines.cache
    }

    /// The deadline of a cache call that starts now.
    pub(crate) fn cache_deadline(&self) -> Deadline {
        self.cache_patience().deadline()
    }

    /// How many loads run at once while caches do without Redis.
    pub(crate) fn loads_without_redis(&self) -> usize {
        self.core.loads_without_redis
    }

    /// The most bytes that a value of a cache may have.
    pub(crate) fn max_value_size(&self) -> usize {
        self.core.max_value_size
    }

    /// Where the tasks of this client live.
    pub(crate) fn spawner(&self) -> &Spawner {
        &self.core.spawner
    }

    /// Until `until`, the server that serves `key` must be reached in time: while there is no
    /// connection to it that answers, one is tried for every `every`, but never within 10 ms of the
    /// last. The limit of ten connections a second does not hold then.
    pub(crate) fn urgent(&self, key: &Key, until: Instant, every: Duration) {
        self.core.topology.urgent(key, until, every);
    }

    pub(crate) async fn run(&self, call: Call, deadline: Deadline) -> Result<Reply> {
        let reply = retry::run(&self.core.topology, call, deadline).await;
        reply.map_err(|error| self.told(error))
    }

    /// Runs a call that changes what caches read at its first key: what this client reads there
    /// afterwards is not older.
    ///
    /// Cancel safety: as [`run`](Self::run); a dropped call counts as one that may be applied yet.
    pub(crate) async fn change(&self, call: Call, deadline: Deadline) -> Result<Reply> {
        let topology = &self.core.topology;
        let writing = call.key().and_then(|key| topology.writing(key));
        let outcome = self.run(call, deadline).await;
        if let Some(writing) = writing {
            writing.ended(&outcome);
        }
        outcome
    }

    /// Runs a plain command on `key`.
    pub(crate) async fn command(
        &self,
        command: redis::Cmd,
        key: &Key,
        retry: Retry,
        deadline: Deadline,
    ) -> Result<redis::Value> {
        let value = retry::command(&self.core.topology, command, Some(key), retry, deadline).await;
        value.map_err(|error| self.told(error))
    }

    /// Reads string keys; a missing key, or one of another type, is `None`.
    pub(crate) async fn read(&self, keys: &[Key], deadline: Deadline) -> Result<Values> {
        let values = retry::read(&self.core.topology, keys, deadline).await;
        values.map_err(|error| self.told(error))
    }

    /// Reads string keys at a replica: all of them at one moment, which is before no
    /// [`change`](Self::change) of theirs by this client, but may be before one by another. `None`
    /// where no replica can be asked.
    pub(crate) async fn peek(&self, keys: &[Key], deadline: Deadline) -> Option<Values> {
        self.core.topology.peek(keys, deadline.at).await
    }

    /// The pushes of the server that serves `key` now; a client over a brought connection has none.
    pub(crate) fn hub(&self, key: &Key) -> Option<Arc<Hub>> {
        self.core.topology.hub(key)
    }

    /// While keys move from one ring of shards to another: the key of a cache as the other ring
    /// places it, if that is another server. Whatever invalidates does so there, too.
    pub(crate) fn twin(&self, key: &Key) -> Option<Key> {
        self.core.topology.twin(key)
    }

    /// A key like `key` for each [`part`](Self::part) of the keys, also while keys move from one
    /// ring of shards to another. The key of a part is usually on the server of the part's other
    /// keys, so both are out together.
    pub(crate) fn for_parts(&self, key: &Key) -> Vec<Key> {
        self.core.topology.for_parts(key)
    }

    /// The part that `key` is in.
    pub(crate) fn part(&self, key: &Key) -> usize {
        self.core.topology.part(key)
    }

    /// Keys for which this is the same number may stand in one script, though they are of several
    /// slots: the same server serves them. In a cluster, the slot.
    pub(crate) fn together(&self, key: &Key) -> usize {
        self.core.topology.together(key)
    }

    /// What keeps the server that serves `key` from being connected, as far as known.
    pub(crate) fn trouble(&self, key: &Key) -> Option<Error> {
        self.core.topology.trouble(key)
    }

    /// Why a call on `key` that does not wait out an outage fails now, while that is known: the
    /// breaker of its server is open. Sends nothing.
    pub(crate) fn outage(&self, key: &Key) -> Option<Error> {
        self.core.topology.outage(key)
    }

    /// Whether a missing value may still be where it was before keys began to move.
    pub(crate) fn looks_back(&self) -> bool {
        self.core.topology.looks_back()
    }

    /// The channel on which this client hears of the ends of loads of `value`; `None` while the
    /// server of `value` is not known.
    pub(crate) fn load_wake(&self, value: &Key) -> Option<Key> {
        let core = &self.core;
        let channels = (0..).map(|number| core.namespace.load_wake(number, &core.process));
        core.topology.channel(value, channels)
    }

    /// Reports, from now on, that a push of the server that serves `key` may have been missed: its
    /// push connection was made anew, or channels have moved to another server. The waiter then
    /// re-checks, and subscribes where its key is served by then.
    pub(crate) fn missed(&self, key: &Key) -> Missed {
        self.hub(key).map_or_else(Missed::never, |hub| hub.missed())
    }

    /// The value of type `T` that all handles of this client share, made on first use.
    pub(crate) fn room<T: Send + Sync + 'static>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut rooms = self
            .core
            .rooms
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let room = rooms
            .entry(TypeId::of::<T>())
            .or_insert_with(|| Arc::new(make()));
        match room.clone().downcast() {
            Ok(room) => room,
            Err(_) => unreachable!("rooms are filed under their own type"),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = &self.core;
        let mut debug = f.debug_struct("Client");
        debug
            .field("address", &core.topology.address())
            .field("namespace", &core.namespace)
            .field("deadlines", &core.deadlines)
            .field("hide_keys", &self.hide);
        #[cfg(feature = "embedded")]
        debug.field("embedded", &core.server.is_some());
        debug.finish_non_exhaustive()
    }
}
