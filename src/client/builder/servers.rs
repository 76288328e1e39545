//! Where the servers are: what a caller says of them, one server or many.

use redis::aio::MultiplexedConnection;

use super::ClientBuilder;
use crate::net::address_map::AddressMap;
use crate::topology::servers::Servers;
use crate::topology::shard::{Migration, Shard};

impl ClientBuilder {
    /// The server: see [`Client::open`](crate::Client::open) for the forms.
    pub fn url(mut self, url: &str) -> Self {
        self.servers = Some(Servers::Url(url.to_owned()));
        self
    }

    /// The server that the environment variable `REDIS_URL` names. The variable is read by
    /// [`open`](Self::open) and [`connect`](Self::connect), which fail if it is missing.
    pub fn url_from_env(mut self) -> Self {
        self.servers = Some(Servers::Environment);
        self
    }

    /// A connection that the caller has made, instead of a URL: see
    /// [`Client::from_connection`](crate::Client::from_connection) for what such a client does not
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

    /// A Redis Cluster, found by any of `seeds`: `redis://[[user]:password@]host[:port]`. All of
    /// its servers are reached with the credentials of the first seed.
    ///
    /// The slots are asked for with the first call; when servers fail over or slots are moved, the
    /// client finds out, within the deadline of the calls that meet it.
    pub fn cluster<S: Into<String>>(mut self, seeds: impl IntoIterator<Item = S>) -> Self {
        self.servers = Some(Servers::Cluster(seeds.into_iter().map(S::into).collect()));
        self
    }

    /// The primary that sentinels know as `service`. `sentinels` are their URLs,
    /// `redis://[[user]:password@]host[:port]`, with the credentials of the sentinels themselves;
    /// those of the data nodes are given by [`credentials`](Self::credentials). With `rediss://`
    /// the data nodes are reached by TLS, too.
    ///
    /// The client holds a connection to each of them, asks them whenever it connects, and leaves
    /// the old primary as soon as one announces another.
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

    /// A primary and its replicas, for caches that may
    /// [read from replicas](crate::Cache::read_from). Everything else goes to the primary. When
    /// another server becomes the primary this client does not follow:
    /// [`sentinels`](Self::sentinels) does.
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

    /// Several independent servers, each with a name, a URL (see [`Client::connect`] for the forms)
    /// and a weight from 1 to 1,000: keys are spread over them in proportion to the weights.
    ///
    /// The name is what a shard is: clients that are given the same names and weights find the same
    /// keys at the same shards, whatever the order. Another host, password or order moves nothing;
    /// another name moves all that the shard has. A shard that is down fails the calls for its own
    /// keys only.
    ///
    /// One more shard of equal weight takes its share from all others, about 1/N; keys move to it
    /// only, and what a shard had that is left out goes to the others. **What is stored does not
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

    /// The first of three steps from one set of [`shards`](Self::shards) to another, with the old
    /// set in `shards` and the new one here, such that caches are not emptied:
    ///
    /// 1. every process is given `.shards(old).migrate_to(new)`: as before, but whatever is
    ///    removed, set or invalidated is removed or invalidated at its new place, too;
    /// 2. every process is given `.shards(new).migrate_from(old)`: see
    ///    [`migrate_from`](Self::migrate_from);
    /// 3. every process is given `.shards(new)`.
    ///
    /// Processes of two steps that follow each other may run side by side; a step may begin when
    /// no process is two steps behind it. **Step 3 must not begin before all that was stored in
    /// step 1 or earlier has expired:** 1.1 times the longest TTL in use, counted from the end of
    /// the last process of step 1. A server that joins must hold nothing of this namespace. A move
    /// that was called off after step 2 had begun may be begun again when what was stored in step 2
    /// has expired.
    ///
    /// **This is for caches.** Counters and locks stay with the old set through steps 1 and 2, and
    /// change places with step 3, where counters start again, and where processes of steps 2
    /// and 3 do not exclude each other with locks. Give those that matter a client of their own,
    /// whose shards do not change, or let no process of step 2 run when the first of step 3 starts.
    ///
    /// A shard is a server of one name: where both sets have it, its URL must lead to the same
    /// place.
    pub fn migrate_to<N: Into<String>, U: Into<String>>(
        mut self,
        shards: impl IntoIterator<Item = (N, U, u32)>,
    ) -> Self {
        self.migration = Some(Migration::To(parsed(shards)));
        self
    }

    /// The second of three steps from one set of [`shards`](Self::shards) to another, with the new
    /// set in `shards` and the old one here: [`migrate_to`](Self::migrate_to) has them all.
    ///
    /// Caches load and store at the new places. What is not found there is read where it was
    /// before, in a second trip. Whatever is removed, set or invalidated is removed or invalidated
    /// at its old place, too; so all servers of both sets must be up.
    pub fn migrate_from<N: Into<String>, U: Into<String>>(
        mut self,
        shards: impl IntoIterator<Item = (N, U, u32)>,
    ) -> Self {
        self.migration = Some(Migration::From(parsed(shards)));
        self
    }

    /// Where the servers that a cluster or sentinels name are reached from here. `map` is a table,
    /// or a closure that answers `None` for what stays as it is. The addresses of seeds and of
    /// sentinels themselves are not mapped: they are written as they are reached.
    ///
    /// A table has `host:port` on both sides, or a host on both, which leaves ports as they are.
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
    /// With TLS, a certificate must be good for the mapped name, or for that of
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
