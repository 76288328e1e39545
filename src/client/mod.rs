//! Connecting: [`Client`], its settings, and how to reach and trust servers.
//!
//! Invariant: a client makes at most three connections to a server, one for commands, one for
//! pushes and one for large values, all lazily and all made anew when they are lost. `preflight`
//! has one more while it runs, a seed that is a primary has one more while it is asked for the
//! slots, and a connection that is replaced lives until its callers are answered. While a lease is
//! at stake up to 24 attempts to connect run beside each other. The primitives reach Redis through
//! the few `pub(crate)` calls here; they add their own constructors (`client.lock(..)`) beside
//! their code.

mod builder;
mod extensions;
mod format;
mod request;
mod retry;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use builder::ClientBuilder;
use extensions::Extensions;
pub(crate) use format::{Formats, Purpose, Written};
pub use request::Request;
use tokio::time::Instant;

use crate::background::Spawner;
use crate::error::{Error, Result};
use crate::key::{Key, Namespace};
pub use crate::name::HideKeys;
use crate::name::{Name, Shown};
pub use crate::net::address_map::AddressMap;
pub use crate::net::credentials::Credentials;
use crate::net::pipeline::replies::Values;
use crate::net::pubsub::{PubSub, Resync};
#[cfg(feature = "tls")]
pub use crate::net::tls::Tls;
use crate::script::{Call, Reply, Retry};
use crate::time::{Deadline, Patience};
use crate::topology::Topology;
use crate::topology::placement::Copies;

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
    extensions: Extensions,
    #[cfg(feature = "embedded")]
    server: Option<crate::embedded::Server>,
}

/// How long a whole call may take, retries included.
#[derive(Debug, Clone, Copy)]
struct Deadlines {
    command: Patience,
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

    /// Returns when the servers have answered: the primary of each shard, any primary of a cluster.
    async fn answered(self) -> Result<Self> {
        retry::greet(&self.core.topology, self.deadline()).await?;
        Ok(self)
    }

    /// The servers. For what asks each of them; calls on keys have their own methods here.
    pub(crate) fn topology(&self) -> &Topology {
        &self.core.topology
    }

    pub(crate) fn formats(&self) -> &Formats {
        &self.core.formats
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

    /// Returns when it is known that what `key` stands for is written in our format: see
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
    pub(crate) async fn read_replica(&self, keys: &[Key], deadline: Deadline) -> Option<Values> {
        self.core.topology.read_replica(keys, deadline.at).await
    }

    /// The pushes of the server that serves `key` now; a client over a brought connection has none.
    pub(crate) fn pubsub(&self, key: &Key) -> Option<Arc<PubSub>> {
        self.core.topology.pubsub(key)
    }

    /// Where a cached key lives while keys move from one ring of shards to another. Whatever
    /// invalidates it does so at each place.
    pub(crate) fn copies(&self, key: &Key) -> Copies {
        self.core.topology.copies(key)
    }

    /// A key like `key` for each [`part`](Self::slot_group) of the keys, also while keys move from one
    /// ring of shards to another. The key of a part is usually on the server of the part's other
    /// keys, so both are out together.
    pub(crate) fn for_slot_groups(&self, key: &Key) -> Vec<Key> {
        self.core.topology.for_slot_groups(key)
    }

    /// The part that `key` is in.
    pub(crate) fn slot_group(&self, key: &Key) -> usize {
        self.core.topology.slot_group(key)
    }

    /// Keys for which this is the same number may stand in one script, though they are of several
    /// slots: the same server serves them. In a cluster, the slot.
    pub(crate) fn script_group(&self, key: &Key) -> usize {
        self.core.topology.script_group(key)
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
    pub(crate) fn resync(&self, key: &Key) -> Resync {
        self.pubsub(key)
            .map_or_else(Resync::never, |pubsub| pubsub.resync())
    }

    /// The value of type `T` that all handles of this client share, made on first use.
    pub(crate) fn shared<T: Send + Sync + 'static>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        self.core.extensions.shared(make)
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
