//! The client: [`Client`], its settings, and how it reaches and trusts servers.
//!
//! Invariant: a client has at most three connections to a server: one for commands, one for pushes
//! and one for large values. All are made when first needed, and again after they are lost. There
//! are exceptions. A value that may be too large for the server is tried over one more. `preflight`
//! has one more while it runs. A seed that is a primary has one more while it is asked for the
//! slots. Calls that wait for replicas use one more. A connection that is replaced lives until its
//! callers are answered. While a lease is at stake, up to 24 attempts to connect run at once.
//!
//! The primitives reach Redis through the few `pub(crate)` calls here. Their constructors
//! (`client.lock(..)`) are beside their own code.

mod builder;
mod extensions;
mod format;
mod request;
mod retry;

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

pub use builder::ClientBuilder;
use bytes::Bytes;
use extensions::Extensions;
pub(crate) use format::{Formats, Purpose, Written};
use futures::future::join_all;
pub use request::Request;
use tokio::time::Instant;

use crate::background::Spawner;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, Namespace};
pub use crate::name::HideKeys;
use crate::name::{Name, Shown};
pub use crate::net::address_map::AddressMap;
pub use crate::net::credentials::Credentials;
use crate::net::pipeline::replies::Values;
use crate::net::pubsub::{PubSub, Resync};
#[cfg(feature = "tls")]
pub use crate::net::tls::Tls;
#[cfg(feature = "near")]
use crate::net::tracking::Tracking;
use crate::script::{Call, Reply, Retry};
use crate::time::{Deadline, Patience};
use crate::topology::placement::Copies;
use crate::topology::{Server, Topology};
use crate::wire::command::plain;
use crate::wire::scan::{self, KeyType, Page};
use crate::wire::value::integer;

/// A client of one Redis or Valkey server, or of several that belong together.
///
/// Cheap to clone. All clones share its connections: at most three to each server, and one more
/// while a value is tried that may be too large for the server. They are made
/// when first needed, and again after they are lost. So a service starts while Redis is down, and
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
    /// How names are shown: the setting of the client, or that of a cache.
    hide: HideKeys,
}

/// A client for a task of its own: it does not keep the client alive.
#[derive(Clone)]
pub(crate) struct WeakClient {
    core: Weak<Core>,
    hide: HideKeys,
}

/// What all clones of a client share.
struct Core {
    namespace: Namespace,
    /// See [`Client::process`].
    process: String,
    deadlines: Deadlines,
    loads_without_redis: usize,
    max_value_size: usize,
    /// Where tasks are spawned: on the runtime of the builder, or on that of the call that needs
    /// one.
    spawner: Spawner,
    topology: Topology,
    formats: Formats,
    /// What the primitives share, so that this module need not know them.
    extensions: Extensions,
    #[cfg(feature = "embedded")]
    /// Held for its drop, which ends the embedded server with the last clone of the client.
    server: Option<crate::embedded::Server>,
}

/// How long a whole call may take, retries included, and what it does during an outage.
#[derive(Debug, Clone, Copy)]
struct Deadlines {
    command: Patience,
    /// Apart from `command`: the caller of a cache has a source to ask, so a slow answer is of no
    /// use.
    cache: Patience,
}

impl Client {
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

    /// Returns once the servers have answered: every shard, one primary of a cluster, or the only
    /// server.
    async fn answered(self) -> Result<Self> {
        retry::greet(&self.core.topology, self.deadline()).await?;
        Ok(self)
    }

    /// Returns the servers, for code that asks each of them. Calls on keys have their own methods
    /// here.
    pub(crate) fn topology(&self) -> &Topology {
        &self.core.topology
    }

    pub(crate) fn formats(&self) -> &Formats {
        &self.core.formats
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.core.namespace
    }

    /// Wraps a name that a caller gave to something of this client.
    pub(crate) fn name(&self, real: &str) -> Name {
        Name::new(real, &self.hide)
    }

    /// Returns `name` as it may be shown.
    pub(crate) fn shown<'n>(&self, name: &'n str) -> Shown<'n> {
        self.hide.show(name)
    }

    /// Returns how names are shown.
    pub(crate) fn hide_keys(&self) -> &HideKeys {
        &self.hide
    }

    /// Returns the same client with names shown in another way.
    pub(crate) fn hiding(&self, hide: HideKeys) -> Self {
        Self {
            core: self.core.clone(),
            hide,
        }
    }

    /// Returns `error` as the caller gets it. If names are hidden, it holds no text that may quote
    /// one.
    pub(crate) fn told(&self, error: Error) -> Error {
        match self.hide.is_off() {
            true => error,
            false => error.without_quotes(),
        }
    }

    /// Returns 128 random bits in hex that identify this client. The names of its wake channels end
    /// in them.
    pub(crate) fn process(&self) -> &str {
        &self.core.process
    }

    /// Returns how long calls may take, except for those of caches.
    pub(crate) fn patience(&self) -> Patience {
        self.core.deadlines.command
    }

    /// Returns the deadline of a call that starts now.
    pub(crate) fn deadline(&self) -> Deadline {
        self.patience().deadline()
    }

    /// Returns how long calls of caches may take. Until then `remove`, `clear` and invalidations
    /// keep trying, whatever the setting for outages.
    pub(crate) fn cache_patience(&self) -> Patience {
        self.core.deadlines.cache
    }

    /// Returns the deadline of a cache call that starts now.
    pub(crate) fn cache_deadline(&self) -> Deadline {
        self.cache_patience().deadline()
    }

    /// Returns how many loads may run at once while caches bypass Redis.
    pub(crate) fn loads_without_redis(&self) -> usize {
        self.core.loads_without_redis
    }

    /// Returns the most bytes that a value of a cache may have.
    pub(crate) fn max_value_size(&self) -> usize {
        self.core.max_value_size
    }

    /// Returns the spawner for the tasks of this client.
    pub(crate) fn spawner(&self) -> &Spawner {
        &self.core.spawner
    }

    /// Until `until`, the server that serves `key` must be reached in time. While no connection to
    /// it answers, one is tried for every `every`, but never within 10 ms of the last. The limit of
    /// ten connections a second does not apply then.
    pub(crate) fn urgent(&self, key: &Key, until: Instant, every: Duration) {
        self.core.topology.urgent(key, until, every);
    }

    /// Returns once it is known that keys such as `key` are written in our format: see
    /// [`Formats::agree`].
    ///
    /// Cancel safety: safe.
    pub(crate) async fn agree(
        &self,
        written: Written,
        key: &Key,
        purpose: Purpose,
        deadline: Deadline,
    ) -> Result<()> {
        let Core {
            formats, topology, ..
        } = &*self.core;
        let agreed = formats
            .agree(topology, written, key, purpose, deadline)
            .await;
        agreed.map_err(|error| self.told(error))
    }

    pub(crate) async fn run(&self, call: Call, deadline: Deadline) -> Result<Reply> {
        let reply = retry::run(&self.core.topology, call, deadline).await;
        reply.map_err(|error| self.told(error))
    }

    /// Runs a call that changes what caches read at its first key. Later reads of this client at a
    /// replica return nothing older.
    ///
    /// Cancel safety: as [`run`](Self::run). A call that is dropped counts as one that may still be
    /// applied.
    pub(crate) async fn change(&self, call: Call, deadline: Deadline) -> Result<Reply> {
        let topology = &self.core.topology;
        // Announced before the call is sent: a replica must not be read while the write is running.
        let writing = call.key().and_then(|key| topology.writing(key));
        #[cfg(feature = "near")]
        let key = call.key().cloned();
        // Before it, too: a call that is dropped, or fails in an outage, must not leave the value
        // to be served.
        #[cfg(feature = "near")]
        key.iter().for_each(|key| topology.changed_here(key));
        let outcome = self.run(call, deadline).await;
        #[cfg(feature = "near")]
        key.iter().for_each(|key| topology.changed_here(key));
        if let Some(writing) = writing {
            // Not reached if the call is dropped: the write then counts as one that may still be
            // applied.
            writing.ended(&outcome);
        }
        outcome
    }

    /// As [`change`](Self::change), for a call that counts only once `replicas` have acknowledged
    /// it. Fails as [`NotReplicated`](ErrorKind::NotReplicated) if too few have by the deadline.
    pub(crate) async fn change_durably(
        &self,
        call: Call,
        replicas: usize,
        deadline: Deadline,
    ) -> Result<Reply> {
        let topology = &self.core.topology;
        let key = call.key().cloned();
        let writing = key.as_ref().and_then(|key| topology.writing(key));
        // As in `change`.
        #[cfg(feature = "near")]
        key.iter().for_each(|key| topology.changed_here(key));
        let ran = retry::run_durably(topology, &call, replicas, deadline).await;
        let outcome = ran.map_err(|error| self.told(error));
        #[cfg(feature = "near")]
        key.iter().for_each(|key| topology.changed_here(key));
        if let Some(writing) = writing {
            writing.ended(&outcome);
        }
        let (reply, count) = outcome?;
        // Any other answer has changed nothing.
        if count >= replicas || reply.status()? != "OK" {
            return Ok(reply);
        }
        let error = Error::new(
            ErrorKind::NotReplicated,
            format!(
                "{count} of {replicas} replicas of {{server}} have acknowledged the call in time; \
                 a failover may undo it, so check the replicas and call again"
            ),
        );
        Err(topology.located(error, key.as_ref()))
    }

    /// As [`change`](Self::change), for a call that changes what caches read at all of `keys`.
    pub(crate) async fn change_all<'k>(
        &self,
        call: Call,
        keys: impl Iterator<Item = &'k Key> + Clone,
        deadline: Deadline,
    ) -> Result<Reply> {
        let topology = &self.core.topology;
        let writing = keys.clone().filter_map(|key| topology.writing(key));
        let writing: Vec<_> = writing.collect();
        #[cfg(feature = "near")]
        keys.clone().for_each(|key| topology.changed_here(key));
        let outcome = self.run(call, deadline).await;
        #[cfg(feature = "near")]
        keys.for_each(|key| topology.changed_here(key));
        for writing in writing {
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

    /// Sends a plain command on `key` once, whatever becomes of it.
    ///
    /// Cancel safety: as [`command`](Self::command).
    pub(crate) async fn command_once(
        &self,
        command: redis::Cmd,
        key: &Key,
        deadline: Deadline,
    ) -> Result<redis::Value> {
        let value = retry::once(&self.core.topology, command, key, deadline).await;
        value.map_err(|error| self.told(error))
    }

    /// Returns the servers that are written to.
    pub(crate) async fn servers(&self, deadline: Deadline) -> Result<Vec<Server>> {
        let servers = self.core.topology.servers(deadline).await;
        servers.map_err(|error| self.told(error))
    }

    /// Removes keys, which one server or, in a cluster, one slot has. Returns how many there were.
    ///
    /// Cancel safety: as [`change`](Self::change).
    pub(crate) async fn unlink(&self, keys: &[&Key], deadline: Deadline) -> Result<u64> {
        let Some((first, rest)) = keys.split_first() else {
            return Ok(0);
        };
        let mut unlink = plain("UNLINK", first);
        for key in rest {
            unlink.arg(key.as_str());
        }
        let topology = &self.core.topology;
        let writing: Vec<_> = keys
            .iter()
            .filter_map(|key| topology.writing(key))
            .collect();
        #[cfg(feature = "near")]
        keys.iter().for_each(|key| topology.changed_here(key));
        let outcome = self.command(unlink, first, Retry::Safe, deadline).await;
        #[cfg(feature = "near")]
        keys.iter().for_each(|key| topology.changed_here(key));
        for writing in writing {
            writing.ended(&outcome);
        }
        let removed = integer(outcome?)?.unwrap_or_default();
        Ok(u64::try_from(removed).unwrap_or_default())
    }

    /// Makes one step of a walk over all keys of one of these servers. Only keys of the type `of`
    /// that match `glob` are returned.
    pub(crate) async fn scan(
        &self,
        server: &Server,
        cursor: u64,
        (glob, of): (&str, KeyType),
        deadline: Deadline,
    ) -> Result<Page> {
        let (topology, step) = (&self.core.topology, scan::step(cursor, glob, of));
        let reply = retry::on_server(topology, server, step, Retry::Reads, deadline).await;
        let page = reply.and_then(scan::page);
        page.map_err(|error| self.told(error))
    }

    /// Returns the number of the last session with this server. A cursor means nothing to another
    /// session: it may be with another process.
    pub(crate) fn session_with(&self, server: &Server) -> Option<u64> {
        self.core.topology.session_with(server)
    }

    /// Reads string keys. A missing key, or a key of another type, gives `None`.
    pub(crate) async fn read(&self, keys: &[Key], deadline: Deadline) -> Result<Values> {
        let values = retry::read(&self.core.topology, keys, deadline).await;
        values.map_err(|error| self.told(error))
    }

    /// As [`read`](Self::read), each key for itself: a server that cannot be read is the error of
    /// its own keys.
    ///
    /// Cancel safety: safe.
    pub(crate) async fn read_each(
        &self,
        keys: &[Key],
        deadline: Deadline,
    ) -> Vec<Result<Option<Bytes>>> {
        let reads = self.by_server(keys).into_iter().map(|part| async move {
            let own: Vec<Key> = part.iter().map(|at| keys[*at].clone()).collect();
            let found = self.read(&own, deadline).await;
            (part, found)
        });
        let mut found: Vec<_> = keys.iter().map(|_| Ok(None)).collect();
        for (part, read) in join_all(reads).await {
            match read {
                Ok(values) => part.into_iter().zip(values).for_each(|(at, value)| {
                    found[at] = Ok(value);
                }),
                Err(error) => part
                    .into_iter()
                    .for_each(|at| found[at] = Err(error.clone())),
            }
        }
        found
    }

    /// Returns the positions of those `keys` that one server serves now, for each server. Keys
    /// whose servers are not known count as those of one server.
    pub(crate) fn by_server(&self, keys: &[Key]) -> Vec<Vec<usize>> {
        let mut parts: Vec<(Option<usize>, Vec<usize>)> = Vec::with_capacity(1);
        for (at, key) in keys.iter().enumerate() {
            let server = self.server_number(key);
            match parts.iter_mut().find(|(known, _)| *known == server) {
                Some((_, part)) => part.push(at),
                None => parts.push((server, vec![at])),
            }
        }
        parts.into_iter().map(|(_, part)| part).collect()
    }

    /// Reads string keys at a replica. All values are of one moment. That moment is not before any
    /// [`change`](Self::change) of the keys by this client, but may be before a change by another.
    /// `None` if no replica may be asked, or it does not answer.
    pub(crate) async fn read_replica(&self, keys: &[Key], deadline: Deadline) -> Option<Values> {
        self.core.topology.read_replica(keys, deadline.at).await
    }

    /// Returns the pub/sub connection to the server that serves `key` now. A client over a
    /// connection that the caller made has none.
    pub(crate) fn pubsub(&self, key: &Key) -> Option<Arc<PubSub>> {
        self.core.topology.pubsub(key)
    }

    /// Calls `with` with the tracking of the server that serves `key` now, if it is known and sends
    /// pushes.
    #[cfg(feature = "near")]
    pub(crate) fn tracking<T>(
        &self,
        key: &Key,
        with: impl FnOnce(&Arc<Tracking>) -> T,
    ) -> Option<T> {
        self.core.topology.tracking(key, with)
    }

    /// Makes the near caches of this client forget `key`.
    #[cfg(feature = "near")]
    pub(crate) fn changed_here(&self, key: &Key) {
        self.core.topology.changed_here(key);
    }

    /// How many calls a server has sent on to another one so far.
    pub(crate) fn detours(&self) -> u64 {
        self.core.topology.detours()
    }

    /// Where a cached key lives while keys move from one ring of shards to another. Whatever
    /// invalidates it does so at each place.
    pub(crate) fn copies(&self, key: &Key) -> Copies {
        self.core.topology.copies(key)
    }

    /// Returns one copy of `key` per [slot group](Self::slot_group), on both rings during a
    /// migration. A copy is usually on the server of the other keys of its group, so both are
    /// unavailable together.
    pub(crate) fn for_slot_groups(&self, key: &Key) -> Vec<Key> {
        self.core.topology.for_slot_groups(key)
    }

    /// Returns the slot group of `key`.
    pub(crate) fn slot_group(&self, key: &Key) -> usize {
        self.core.topology.slot_group(key)
    }

    /// Keys with the same number may be used in one script although their slots differ, since one
    /// server serves them. In a cluster, the number is the slot.
    pub(crate) fn script_group(&self, key: &Key) -> usize {
        self.core.topology.script_group(key)
    }

    /// Returns a number that all keys share which the server of `key` serves now. `None` while that
    /// server is not known.
    pub(crate) fn server_number(&self, key: &Key) -> Option<usize> {
        self.core.topology.server_number(key)
    }

    /// Returns why there is no connection to the server that serves `key`, if that is known.
    pub(crate) fn trouble(&self, key: &Key) -> Option<Error> {
        self.core.topology.trouble(key)
    }

    /// Returns the error of fail-fast calls on `key` while the breaker of its server is open. Sends
    /// nothing.
    pub(crate) fn outage(&self, key: &Key) -> Option<Error> {
        self.core.topology.outage(key)
    }

    /// Returns the channel for the messages to this client that a load of `value` has ended. `None`
    /// while the server of `value` is not known.
    pub(crate) fn load_wake(&self, value: &Key) -> Option<Key> {
        let core = &self.core;
        // In a cluster, a script may publish only on its own server. The number changes the slot of
        // the channel until one fits.
        let channels = (0..).map(|number| core.namespace.load_wake(number, &core.process));
        core.topology.channel(value, channels)
    }

    /// Signals that a push for `key` may have been lost, because the pub/sub connection was
    /// replaced or its channels moved. After the signal, re-check the state and subscribe again at
    /// the server that serves `key` by then.
    pub(crate) fn resync(&self, key: &Key) -> Resync {
        self.pubsub(key)
            .map_or_else(Resync::never, |pubsub| pubsub.resync())
    }

    /// Returns a handle that does not keep the client alive.
    pub(crate) fn downgrade(&self) -> WeakClient {
        WeakClient {
            core: Arc::downgrade(&self.core),
            hide: self.hide.clone(),
        }
    }

    /// Returns the value of type `T` that all handles of this client share. `make` makes it on
    /// first use.
    pub(crate) fn shared<T: Send + Sync + 'static>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        self.core.extensions.shared(make)
    }
}

impl WeakClient {
    /// Returns the client, unless its last handle is gone.
    pub(crate) fn upgrade(&self) -> Option<Client> {
        Some(Client {
            core: self.core.upgrade()?,
            hide: self.hide.clone(),
        })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = &self.core;
        let mut debug = f.debug_struct("Client");
        debug
            // Holds no credentials.
            .field("address", &core.topology.address())
            .field("namespace", &core.namespace)
            .field("deadlines", &core.deadlines)
            .field("hide_keys", &self.hide);
        #[cfg(feature = "embedded")]
        debug.field("embedded", &core.server.is_some());
        debug.finish_non_exhaustive()
    }
}
