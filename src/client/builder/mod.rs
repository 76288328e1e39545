//! `ClientBuilder`: the settings of a client.
//!
//! Invariant: everything is checked before a client exists. An error never repeats the URL, which
//! may hold a password. `access` and `servers` hold the settings about login and servers.

mod access;
mod servers;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::extensions::Extensions;
use super::format::Formats;
use super::{Client, Core, Deadlines};
use crate::background::Spawner;
use crate::error::{Error, Result};
use crate::key::Namespace;
use crate::name::HideKeys;
use crate::net::address_map::AddressMap;
use crate::net::connection::backoff::ConnectRates;
use crate::net::credentials::Login;
use crate::net::endpoint::Access;
use crate::net::node::NodeConfig;
use crate::net::pipeline::PIPELINES_TO_ONE;
use crate::net::pipeline::queue::Limits;
use crate::net::pipeline::replies::MultiGet;
use crate::time::{OnOutage, Patience, Ttl};
use crate::topology::Topology;
use crate::topology::servers::Servers;
use crate::topology::shard::Migration;

/// Sets up a [`Client`]; made by [`Client::builder`].
#[must_use = "a builder does nothing until `open` or `connect` is called"]
pub struct ClientBuilder {
    servers: Option<Servers>,
    migration: Option<Migration>,
    namespace: String,
    name: String,
    deadline: Duration,
    on_outage: OnOutage,
    cache_deadline: Duration,
    cache_on_outage: OnOutage,
    connect_timeout: Duration,
    loads_without_redis: usize,
    max_value_size: usize,
    limits: Limits,
    hide_keys: HideKeys,
    spawner: Spawner,
    /// Replaces the login in the URLs of data nodes.
    login: Option<Login>,
    address_map: Option<AddressMap>,
    #[cfg(feature = "tls")]
    tls: Option<crate::net::tls::Tls>,
    #[cfg(feature = "embedded")]
    server: Option<crate::embedded::Server>,
}

impl Client {
    /// Makes a client of the server at `url`: `redis://[[user]:password@]host[:port][/db]` or
    /// `unix:///path/to/socket`. With the feature `tls` also `rediss://..`, which trusts the roots
    /// of the system (see [`ClientBuilder::tls`](ClientBuilder) for others).
    ///
    /// Each form takes these parameters behind a `?`: `db=3`, `user=` (or `username=`), `password=`
    /// (or `pass=`), and `tls=true` (or `tls=required`, `ssl=true`), which means the same as
    /// `rediss://`. Other parameters are refused, since they would have no effect. A user without a
    /// password is refused, too. In users and passwords, percent-encode characters that have a
    /// meaning in URLs: `%40` for `@`, `%2F` for `/`, `%3F` for `?`.
    ///
    /// Does no I/O and needs no runtime. The client connects with the first call that needs the
    /// server. So a service may start while Redis is down, and the client may live in a `static`.
    /// [`connect`](Self::connect) also checks that the server answers.
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
    /// `InvalidInput` if the URL is invalid. An unreachable server is not an error here.
    pub fn open(url: &str) -> Result<Self> {
        Self::builder().url(url).open()
    }

    /// Calls [`open`](Self::open), then [`ping`](Self::ping), and returns the client once the
    /// server has answered. For services that must not start without Redis.
    ///
    /// # Errors
    /// `InvalidInput` if the URL is invalid. Otherwise the reason why the server did not answer
    /// within the [deadline](ClientBuilder::deadline), 5 s by default. Wrong credentials in the URL
    /// fail at once. Those of a provider ([`ClientBuilder::credentials_from`]) are asked for again
    /// until the deadline.
    ///
    /// # Cancel safety
    /// Safe: dropping the future closes the connection.
    pub async fn connect(url: &str) -> Result<Self> {
        Self::builder().url(url).connect().await
    }

    /// As [`connect`](Self::connect), for the server in the environment variable `REDIS_URL`. For a
    /// client that does not ask the server first, use
    /// `Client::builder().`[`url_from_env()`](ClientBuilder::url_from_env)`.open()`.
    ///
    /// # Errors
    /// `InvalidInput` if the variable is missing or its value is invalid. Otherwise as
    /// [`connect`](Self::connect).
    ///
    /// # Cancel safety
    /// Safe: dropping the future closes the connection.
    pub async fn from_env() -> Result<Self> {
        Self::builder().url_from_env().connect().await
    }

    /// Returns a builder, which sets up a client step by step.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Makes a client over a connection that the caller made, with all settings at their defaults.
    /// Use [`ClientBuilder::connection`] for other settings.
    ///
    /// Such a client has no push connection: it waits for locks, and for loads in other processes,
    /// by timer. It does not reconnect either. When the connection is gone, every call fails and
    /// says so.
    pub fn from_connection(connection: redis::aio::MultiplexedConnection) -> Self {
        match Self::builder().connection(connection).open() {
            Ok(client) => client,
            Err(_) => unreachable!("the defaults are valid"),
        }
    }

    /// Makes a client of a private server, which is started for it and ends with its last clone.
    ///
    /// For examples, tests and local development.
    ///
    /// # Errors
    /// `Embedded` if no `redis-server` or `valkey-server` is found, or it does not start.
    ///
    /// # Cancel safety
    /// Dropping the future ends the server.
    #[cfg(feature = "embedded")]
    pub async fn embedded() -> Result<Self> {
        let server = crate::embedded::Server::start().await?;
        let url = server.url().to_owned();
        // Without a ping: the server has answered already.
        Self::builder().url(&url).owning(server).open()
    }
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            servers: None,
            migration: None,
            namespace: "hr".to_owned(),
            name: "hedgerow".to_owned(),
            // Callers of locks and counters have nothing else to turn to, so these calls may take
            // long.
            deadline: Duration::from_secs(5),
            on_outage: OnOutage::KeepTrying,
            // A cache exists to make things fast, and its callers have a source to ask.
            cache_deadline: Duration::from_secs(1),
            cache_on_outage: OnOutage::FailFast,
            connect_timeout: Duration::from_secs(2),
            loads_without_redis: 64,
            max_value_size: 64 << 20,
            limits: Limits::default(),
            hide_keys: HideKeys::off(),
            spawner: Spawner::default(),
            login: None,
            address_map: None,
            #[cfg(feature = "tls")]
            tls: None,
            #[cfg(feature = "embedded")]
            server: None,
        }
    }
}

impl ClientBuilder {
    /// Sets the prefix of every key, `hr` by default: any text without `:`. Clients of different
    /// namespaces share nothing.
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// Sets the name that `CLIENT LIST` shows for the connections, `hedgerow` by default: at most
    /// 64 bytes, without blanks and control characters.
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Sets how long a call may take in all, retries included: 5 s by default. Cache calls have a
    /// deadline of their own, see [`cache_deadline`](Self::cache_deadline).
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets how long a cache call may take in all, without its loader, and a call of a rate
    /// limiter: 1 s by default.
    pub fn cache_deadline(mut self, deadline: Duration) -> Self {
        self.cache_deadline = deadline;
        self
    }

    /// Sets how long one attempt to connect may take: 2 s by default. Calls wait for it within
    /// their own deadlines. The attempt goes on after they have left, for later calls.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how many loads the caches of the client may run at once while they bypass Redis
    /// ([`Outage::Bypass`]): 64 by default. Choose what the source behind the cache can bear.
    ///
    /// [`Outage::Bypass`]: crate::Outage::Bypass
    pub fn loads_without_redis(mut self, most: usize) -> Self {
        self.loads_without_redis = most;
        self
    }

    /// Sets the most bytes that a value of a cache may have before it is compressed, and after it
    /// is decompressed: 64 MiB by default. A larger value is refused with
    /// [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge). If one is found in Redis, it is a miss.
    ///
    /// So no argument that is sent is larger, except for the few bytes around a value. An argument
    /// beyond 512 MiB is never sent, since no server takes one by default.
    ///
    /// A server whose `proto-max-bulk-len` is lower closes the connection on which a larger value
    /// arrives. That is the connection for large values. It is the shared connection only if no
    /// other could be made or the slot of the key is moving, and if no value of that size was lost
    /// yet. With a connection that you made, it is that one. The value is then sent again over
    /// connections that no other call uses. If those are closed as well, the call fails with
    /// `TooLarge`.
    pub fn max_value_size(mut self, bytes: usize) -> Self {
        self.max_value_size = bytes;
        self
    }

    /// Sets what calls of counters, locks and semaphores do while their server is out: by default
    /// they keep trying until their deadline. Each call can override it, for example by
    /// [`Add::fail_fast`](crate::counter::Add::fail_fast).
    pub fn on_outage(mut self, on_outage: OnOutage) -> Self {
        self.on_outage = on_outage;
        self
    }

    /// Sets what calls of caches and of rate limiters do while their server is out. By default they
    /// fail fast, except that calls that take something out of a cache keep trying. Each cache and
    /// each call can override it, for example by
    /// [`Cache::on_outage`](crate::Cache::on_outage).
    pub fn cache_on_outage(mut self, on_outage: OnOutage) -> Self {
        self.cache_on_outage = on_outage;
        self
    }

    /// Sets how many calls may wait to be sent to one server: 16,384 by default. Further calls are
    /// not sent and fail at once with [`Overloaded`](crate::ErrorKind::Overloaded). Renewals and
    /// releases of locks, and removals and invalidations of caches, have an eighth more room, so
    /// that a flood of other calls does not keep them out.
    ///
    /// Reads and writes of values of 64 KiB and more wait in a queue of their own. They count as
    /// well, but may use seven eighths only, so that small calls always have room.
    pub fn max_waiting(mut self, calls: usize) -> Self {
        self.limits.commands = calls;
        self
    }

    /// Sets how many bytes of arguments the calls that wait for one server may have in all: 64 MiB
    /// by default. A call that would exceed the limit fails as one beyond
    /// [`max_waiting`](Self::max_waiting) does, unless no other call waits in its queue.
    pub fn max_waiting_bytes(mut self, bytes: usize) -> Self {
        self.limits.bytes = bytes;
        self
    }

    /// Sets how errors, `Debug`, spans and events show the names that callers give to keys, tags,
    /// locks, semaphores and counters: unchanged by default. With [`HideKeys::digest`] or
    /// [`HideKeys::keyed`] they show eight hexadecimal digits instead. So personal data and session
    /// ids stay out of logs and of answers to users. Each cache can override it
    /// ([`Cache::hide_keys`](crate::Cache::hide_keys)).
    ///
    /// This covers `Display` and `Debug` of errors and of every type of this crate,
    /// [`Error::key`](crate::Error::key), the [`source`](std::error::Error::source) chain, spans
    /// and events, and the readable name in the value of a tag in Redis. If the server or the
    /// driver could quote a name, the error holds only the error code of the server.
    ///
    /// It does not cover:
    /// - the keys in Redis: a user who may read the server, its `MONITOR` or its slow log sees
    ///   names;
    /// - namespaces, and the names of caches;
    /// - the [`metadata`](crate::sync::lock::Lock::metadata) of a lock or of permits, and the text
    ///   of a loader's own error.
    pub fn hide_keys(mut self, hide: HideKeys) -> Self {
        self.hide_keys = hide;
        self
    }

    /// Sets the runtime for connections and background tasks. Without it, each lives on the runtime
    /// of the call that first needs it.
    ///
    /// Set a runtime that lives as long as the client if calls come from several runtimes that come
    /// and go, or that are not always driven. Examples are a `current_thread` runtime per worker,
    /// or one per test. While that runtime stands still, or after it has ended, tasks live where
    /// they are needed. It must have time and I/O enabled.
    ///
    /// ```
    /// # fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let background = tokio::runtime::Builder::new_multi_thread()
    ///     .worker_threads(1)
    ///     .enable_all()
    ///     .build()?;
    /// let client = hedgerow::Client::builder()
    ///     .url("redis://127.0.0.1:6379")
    ///     .runtime(background.handle().clone())
    ///     .open()?;
    /// # drop(client);
    /// # Ok(())
    /// # }
    /// # example().unwrap();
    /// ```
    pub fn runtime(mut self, runtime: tokio::runtime::Handle) -> Self {
        self.spawner = Spawner::on(runtime);
        self
    }

    /// Checks the settings and makes the client. The first call that needs the server connects.
    ///
    /// Asks no server and needs no runtime. For TLS without roots of its own, it reads those of the
    /// system.
    ///
    /// # Errors
    /// `InvalidInput` if a setting is invalid.
    pub fn open(self) -> Result<Client> {
        if self.loads_without_redis == 0 {
            return Err(Error::invalid(
                "loads_without_redis is zero; give at least 1, or keep Outage::Fail",
            ));
        }
        if self.max_value_size == 0 {
            return Err(Error::invalid(
                "the largest value size is zero; give at least 1 byte",
            ));
        }
        // The order decides which of several invalid settings is reported.
        let style = self.style()?;
        let topology = self.servers()?.topology(self.migration.as_ref(), &style)?;
        let deadlines = self.deadlines()?;
        let namespace = Namespace::new(&self.namespace)?;
        let formats = Formats::new(&namespace, &topology);
        Ok(self.core(namespace, deadlines, topology, formats))
    }

    /// Calls [`open`](Self::open), then sends a `PING`, and returns the client once the servers
    /// have answered: every one of the [`shards`](Self::shards), any primary of a
    /// [`cluster`](Self::cluster), or the primary behind [`sentinels`](Self::sentinels) or with
    /// [`replicas`](Self::replicas).
    ///
    /// # Errors
    /// As [`open`](Self::open). Otherwise the reason why a server did not answer within the
    /// [`deadline`](Self::deadline). Wrong credentials fail at once, except with
    /// [`credentials_from`](Self::credentials_from): during a rotation, the next ones may be right.
    ///
    /// # Cancel safety
    /// Safe: dropping the future closes the connections.
    pub async fn connect(self) -> Result<Client> {
        self.open()?.answered().await
    }

    fn servers(&self) -> Result<&Servers> {
        if self.migration.is_some() && !matches!(self.servers, Some(Servers::Shards(_))) {
            return Err(Error::invalid("only shards move; call `shards` too"));
        }
        self.servers
            .as_ref()
            .ok_or_else(|| Error::invalid("no server is given; call `url` first"))
    }

    fn core(
        self,
        namespace: Namespace,
        deadlines: Deadlines,
        topology: Topology,
        formats: Formats,
    ) -> Client {
        let core = Core {
            namespace,
            process: Uuid::new_v4().simple().to_string(),
            deadlines,
            loads_without_redis: self.loads_without_redis,
            max_value_size: self.max_value_size,
            spawner: self.spawner,
            topology,
            formats,
            extensions: Extensions::default(),
            #[cfg(feature = "embedded")]
            server: self.server,
        };
        Client {
            core: Arc::new(core),
            hide: self.hide_keys,
        }
    }

    fn style(&self) -> Result<NodeConfig> {
        if self.name.len() > LONGEST_NAME {
            return Err(Error::invalid(format!(
                "the client name is longer than {LONGEST_NAME} bytes; give a shorter one"
            )));
        }
        if self.name.is_empty()
            || self
                .name
                .contains(|c: char| c.is_whitespace() || c.is_control())
        {
            return Err(Error::invalid(
                "the client name is empty or has blanks; use printable characters without blanks",
            ));
        }
        if self.limits.commands == 0 || self.limits.bytes == 0 {
            return Err(Error::invalid(
                "max_waiting or max_waiting_bytes is zero; let at least one call wait",
            ));
        }
        Ok(NodeConfig {
            name: self.name.clone(),
            connect_timeout: Ttl::new("the connect timeout", self.connect_timeout)?.duration(),
            spawner: self.spawner.clone(),
            approach: self.approach()?,
            // A cluster changes this, since the keys of an `MGET` may lie in several slots.
            reads: MultiGet::Together,
            // Two, so that the server works on one while the client unpacks the other.
            pipelines: PIPELINES_TO_ONE,
            limits: self.limits,
            paces: ConnectRates::default(),
            on_trouble: None,
        })
    }

    /// Returns how servers are reached, as far as their URLs leave that open.
    fn approach(&self) -> Result<Access> {
        // The client would work until the credentials expire and then fail, so it is refused now.
        if self.login.as_ref().is_some_and(Login::runs_out) {
            return Err(Error::invalid(
                "the credentials expire and cannot be renewed; use `credentials_from`",
            ));
        }
        let mut approach = Access::default();
        approach.login.clone_from(&self.login);
        if let Some(map) = &self.address_map {
            // Without effect elsewhere, and a setting without effect hides a mistake.
            if !matches!(
                self.servers,
                Some(Servers::Cluster(_) | Servers::Sentinels { .. })
            ) {
                return Err(Error::invalid(
                    "an address map is for a cluster or sentinels; other servers are where their URLs say",
                ));
            }
            approach.addresses = map.clone().addresses()?;
        }
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            approach.tls = Some(tls.channel()?);
        }
        Ok(approach)
    }

    /// Ties the life of an embedded server to the client.
    #[cfg(feature = "embedded")]
    fn owning(mut self, server: crate::embedded::Server) -> Self {
        self.server = Some(server);
        self
    }

    fn deadlines(&self) -> Result<Deadlines> {
        Ok(Deadlines {
            command: Patience::new(
                Ttl::new("the deadline", self.deadline)?.duration(),
                self.on_outage,
            ),
            cache: Patience::new(
                Ttl::new("the cache deadline", self.cache_deadline)?.duration(),
                self.cache_on_outage,
            ),
        })
    }
}

/// The most bytes in the name of a client: servers show it in each line of `CLIENT LIST`.
const LONGEST_NAME: usize = 64;

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("servers", &self.servers)
            .field("namespace", &self.namespace)
            .field("name", &self.name)
            .field("deadline", &self.deadline)
            .field("on_outage", &self.on_outage)
            .field("cache_deadline", &self.cache_deadline)
            .field("cache_on_outage", &self.cache_on_outage)
            .field("connect_timeout", &self.connect_timeout)
            .field("login", &self.login)
            .field("address_map", &self.address_map)
            .field("loads_without_redis", &self.loads_without_redis)
            .field("max_value_size", &self.max_value_size)
            .field("max_waiting", &self.limits.commands)
            .field("max_waiting_bytes", &self.limits.bytes)
            .field("hide_keys", &self.hide_keys)
            .finish_non_exhaustive()
    }
}
