//! The servers: the settings of [`ClientBuilder`] that say where one server or many are.
//!
//! Invariant: what is given here is kept as it is. [`open`](ClientBuilder::open) parses and checks
//! it, together with the other settings.

use redis::aio::MultiplexedConnection;

use super::ClientBuilder;
use crate::net::address_map::AddressMap;
use crate::topology::servers::Servers;
use crate::topology::shard::{Migration, Shard};

impl ClientBuilder {
    /// Sets the URL of the server: see [`Client::open`](crate::Client::open) for the forms.
    pub fn url(mut self, url: &str) -> Self {
        self.servers = Some(Servers::Url(url.to_owned()));
        self
    }

    /// Uses the server in the environment variable `REDIS_URL`. [`open`](Self::open) and
    /// [`connect`](Self::connect) read the variable, and fail if it is missing.
    pub fn url_from_env(mut self) -> Self {
        self.servers = Some(Servers::Environment);
        self
    }

    /// Uses a connection that the caller made, instead of a URL: see
    /// [`Client::from_connection`](crate::Client::from_connection) for what such a client cannot
    /// do.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use hedgerow::{Client, redis};
    ///
    /// let driver = redis::Client::open("redis://127.0.0.1:6379")?;
    /// let connection = driver.get_multiplexed_async_connection().await?;
    /// let client = Client::builder().connection(connection).namespace("shop").open()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn connection(mut self, connection: MultiplexedConnection) -> Self {
        self.servers = Some(Servers::Connection(connection));
        self
    }

    /// Uses a Redis Cluster, which is found by any of `seeds`:
    /// `redis://[[user]:password@]host[:port]`. All of its servers are reached with the credentials
    /// of the first seed.
    ///
    /// The first call asks for the slots. When servers fail over or slots are moved, the client
    /// finds out within the deadline of the calls that are affected.
    pub fn cluster<S: Into<String>>(mut self, seeds: impl IntoIterator<Item = S>) -> Self {
        self.servers = Some(Servers::Cluster(seeds.into_iter().map(S::into).collect()));
        self
    }

    /// Uses the primary that sentinels know as `service`. `sentinels` are their URLs,
    /// `redis://[[user]:password@]host[:port]`, with the credentials of the sentinels. Give those
    /// of the data nodes by [`credentials`](Self::credentials). With `rediss://` the data nodes are
    /// reached by TLS, too.
    ///
    /// The client holds a connection to each sentinel and asks all of them whenever it connects. It
    /// leaves the old primary as soon as one of them announces another.
    pub fn sentinels<S: Into<String>>(
        mut self,
        sentinels: impl IntoIterator<Item = S>,
        service: &str,
    ) -> Self {
        self.servers = Some(Servers::Sentinels {
            sentinels: sentinels.into_iter().map(S::into).collect(),
            service: service.to_owned(),
        });
        self
    }

    /// Uses a primary and its replicas, for caches that may [read from
    /// replicas](crate::Cache::read_from). Everything else goes to the primary. This client does
    /// not follow when another server becomes the primary; with [`sentinels`](Self::sentinels) it
    /// does.
    pub fn replicas<S: Into<String>>(
        mut self,
        primary: &str,
        replicas: impl IntoIterator<Item = S>,
    ) -> Self {
        self.servers = Some(Servers::Replicas {
            primary: primary.to_owned(),
            replicas: replicas.into_iter().map(S::into).collect(),
        });
        self
    }

    /// Uses several independent servers, each with a name, a URL (see [`Client::connect`] for the
    /// forms) and a weight from 1 to 1,000. Keys are spread over them in proportion to the weights.
    ///
    /// The name identifies a shard. Clients with the same names and weights find the same keys at
    /// the same shards, in whatever order these are given. Another host, password or order moves
    /// nothing. Another name moves all keys of the shard. A shard that is down fails the calls for
    /// its own keys only.
    ///
    /// A new shard of equal weight takes its share, about 1/N, from all others. Keys move to the
    /// new shard only. If a shard is left out, its keys go to the others. **What is stored does not
    /// move along.** Processes that disagree on names or weights do not exclude each other with
    /// locks, and do not see each other's invalidations. So change the set in the steps of
    /// [`migrate_to`](Self::migrate_to), or stop all processes and flush all servers, or begin with
    /// another [`namespace`](Self::namespace).
    ///
    /// ```no_run
    /// # async fn example() -> hedgerow::Result<()> {
    /// let client = hedgerow::Client::builder()
    ///     .shards([
    ///         ("a", "redis://10.0.0.1", 1),
    ///         ("b", "redis://10.0.0.2", 1),
    ///         ("big", "redis://10.0.0.3", 2),
    ///     ])
    ///     .connect()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`Client::connect`]: crate::Client::connect
    pub fn shards<N: Into<String>, U: Into<String>>(
        mut self,
        shards: impl IntoIterator<Item = (N, U, u32)>,
    ) -> Self {
        self.servers = Some(Servers::Shards(parsed(shards)));
        self
    }

    /// The first of three steps from one set of [`shards`](Self::shards) to another that do not
    /// empty the caches. The old set is in `shards` and the new one here:
    ///
    /// 1. every process is given `.shards(old).migrate_to(new)`: as before, but whatever is
    ///    removed, set or invalidated is removed or invalidated at its new place, too;
    /// 2. every process is given `.shards(new).migrate_from(old)`: see
    ///    [`migrate_from`](Self::migrate_from);
    /// 3. every process is given `.shards(new)`.
    ///
    /// Processes of two consecutive steps may run side by side. A step may begin when no process is
    /// two steps behind it. **Step 3 must not begin before everything that was stored in step 1 or
    /// earlier has expired:** 1.1 times the longest TTL in use, counted from the end of the last
    /// process of step 1. A server that joins must hold nothing of this namespace. A migration that
    /// was called off after step 2 had begun may be started again when what was stored in step 2
    /// has expired.
    ///
    /// **This is for caches.** Counters and locks stay with the old set through steps 1 and 2 and
    /// move to the new set with step 3. There counters start again, and processes of steps 2 and 3
    /// do not exclude each other with locks. Give counters and locks that matter a client of their
    /// own whose shards do not change, or let no process of step 2 run when the first of step 3
    /// starts.
    ///
    /// A name identifies a shard: if both sets have it, both URLs must lead to the same server and
    /// database.
    pub fn migrate_to<N: Into<String>, U: Into<String>>(
        mut self,
        shards: impl IntoIterator<Item = (N, U, u32)>,
    ) -> Self {
        self.migration = Some(Migration::To(parsed(shards)));
        self
    }

    /// The second of three steps from one set of [`shards`](Self::shards) to another, with the new
    /// set in `shards` and the old one here: see [`migrate_to`](Self::migrate_to) for all steps.
    ///
    /// Caches load and store on the new shards. A value that is not found there is read on its old
    /// shard, in a second trip. Whatever is removed, set or invalidated is removed or invalidated
    /// on its old shard, too. So all servers of both sets must be up.
    pub fn migrate_from<N: Into<String>, U: Into<String>>(
        mut self,
        shards: impl IntoIterator<Item = (N, U, u32)>,
    ) -> Self {
        self.migration = Some(Migration::From(parsed(shards)));
        self
    }

    /// Maps the addresses that a cluster or sentinels report to those that are reached from here.
    /// `map` is a table, or a closure that returns `None` for an address that does not change. The
    /// addresses of seeds and of sentinels themselves are not mapped, since you write them as they
    /// are reached.
    ///
    /// A table has `host:port` on both sides, or a host on both, which leaves the ports unchanged.
    ///
    /// ```
    /// # fn example() -> hedgerow::Result<()> {
    /// use hedgerow::Client;
    ///
    /// let tunnels = [
    ///     ("10.0.0.1:6379", "127.0.0.1:7001"),
    ///     ("10.0.0.2:6379", "127.0.0.1:7002"),
    /// ];
    /// let builder = Client::builder().cluster(["redis://127.0.0.1:7001"]);
    /// let client = builder.address_map(tunnels).open()?;
    ///
    /// // The hosts have other names outside; their ports are the same.
    /// let outside = |host: &str, port: u16| {
    ///     let name = host.strip_suffix(".internal")?;
    ///     Some((format!("{name}.example.com"), port))
    /// };
    /// let builder = Client::builder().cluster(["redis://a.example.com:6379"]);
    /// let client = builder.address_map(outside).open()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// With TLS, a certificate must be valid for the mapped name, or for that of
    /// [`Tls::server_name`](crate::net::tls::Tls::server_name).
    pub fn address_map(mut self, map: impl Into<AddressMap>) -> Self {
        self.address_map = Some(map.into());
        self
    }
}

fn parsed<N: Into<String>, U: Into<String>>(
    shards: impl IntoIterator<Item = (N, U, u32)>,
) -> Vec<Shard> {
    let shards = shards.into_iter().map(|(name, url, weight)| Shard {
        name: name.into(),
        url: url.into(),
        weight,
    });
    shards.collect()
}
