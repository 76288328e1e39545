//! The servers of one test, and what tests do to them behind the crate's back.
//!
//! `HEDGEROW_TOPOLOGY` says what [`Server::start`] gives: the same tests run on every topology. A
//! test that needs one plain server by nature says so with [`Server::start_single`], and has one
//! everywhere; a run on another topology tells how many do.

mod clients;
mod fan;
mod limited;
mod single;

use std::io::Write as _;
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::{join_all, try_join_all};
use hedgerow::{Client, ClientBuilder};
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisResult, Value};

use crate::support::topology::{
    Clients, Cluster, Lease, Node, Sentinels, Shards, TlsServer, lease_cluster, lease_sentinels,
    lease_shards,
};
use crate::support::wait::{patient, until};
use limited::Limited;
use single::{Killed, Single};

/// Real servers; they end with the test, or serve another one.
pub struct Server(Place);

/// What stands behind a [`Server`].
enum Place {
    Single(Box<Single>),
    /// One server whose clients come as a user with few rights. The administrator may do all.
    Acl(Box<Limited>),
    Tls(Box<TlsServer>),
    Cluster(Lease<Cluster>),
    Shards(Lease<Shards>),
    Sentinel(Lease<Sentinels>),
}

impl Server {
    /// What the topology of this run says.
    pub async fn start() -> Self {
        Self::start_on(&TOPOLOGY).await
    }

    /// A topology by its name.
    pub async fn start_on(topology: &str) -> Self {
        Self(match topology {
            "single" => Place::Single(Box::new(Single::start(&[]).await)),
            "acl" => Place::Acl(Box::new(Limited::start().await)),
            "tls" => Place::Tls(Box::new(TlsServer::start(Clients::WithCertificate).await)),
            "cluster" => Place::Cluster(lease_cluster().await),
            "shards" => Place::Shards(lease_shards().await),
            "sentinel" => Place::Sentinel(lease_sentinels().await),
            unknown => panic!("HEDGEROW_TOPOLOGY: no topology is called {unknown}"),
        })
    }

    /// One plain server on every topology, for tests that reach behind it: its URL, its process.
    pub async fn start_single() -> Self {
        Self::start_with(&[]).await
    }

    /// One plain server with these arguments on every topology.
    pub async fn start_with(arguments: &[&str]) -> Self {
        note_single();
        Self(Place::Single(Box::new(Single::start(arguments).await)))
    }

    /// A client of its own: own connections, own keepers, own flights, as another process has.
    /// A [`patient`] client.
    pub async fn client(&self) -> Client {
        patient(self.builder()).open().expect("a good URL")
    }

    pub fn builder(&self) -> ClientBuilder {
        clients::builder(&self.0)
    }

    pub fn speaks_tls(&self) -> bool {
        matches!(self.0, Place::Tls(_))
    }

    /// Runs a command as the administrator: where its keys are, or on all servers where that is
    /// meant.
    pub async fn run<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_run(words)
            .await
            .unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    pub async fn try_run<T: FromRedisValue>(&self, words: &[&str]) -> RedisResult<T> {
        let nodes = self.nodes();
        if nodes.len() > 1 && fan::is_for_all(words) {
            let replies = nodes.iter().map(|node| node.try_run::<Value>(words));
            let merged = fan::merged(words, try_join_all(replies).await?);
            return redis::from_redis_value(merged).map_err(Into::into);
        }
        match &self.0 {
            Place::Single(single) => single.try_run(words).await,
            Place::Acl(limited) => limited.try_run(words).await,
            Place::Cluster(cluster) => cluster.try_run(words).await,
            Place::Shards(shards) => shards.try_run(words, clients::shard_of).await,
            Place::Tls(_) | Place::Sentinel(_) => nodes[0].try_run(words).await,
        }
    }

    /// Names of all keys that match.
    pub async fn keys(&self, pattern: &str) -> Vec<String> {
        self.run(&["KEYS", pattern]).await
    }

    /// All keys that match, on every server that has them, and the ms that they still live.
    pub async fn lives(&self, pattern: &str) -> Vec<(String, i64)> {
        let mut lives = Vec::new();
        for index in 0..self.nodes().len().max(1) {
            let keys: RedisResult<Vec<String>> = self.try_run_at(index, &["KEYS", pattern]).await;
            for key in keys.unwrap_or_else(|error| panic!("{pattern}: {error}")) {
                let left = self.try_run_at(index, &["PTTL", &key]).await;
                lives.push((key, left.expect("the server answers")));
            }
        }
        lives
    }

    /// A digest of the whole data set: equal before and after a call that changed nothing.
    pub async fn digest(&self) -> String {
        match &self.0 {
            Place::Single(_) | Place::Acl(_) => self.run(&["DEBUG", "DIGEST"]).await,
            _ => join_all(self.nodes().iter().map(|node| node.digest()))
                .await
                .concat(),
        }
    }

    /// Kills all connections whose `CLIENT LIST` name ends in `suffix`; returns how many.
    pub async fn kill_connections(&self, suffix: &str) -> usize {
        let mut killed = 0;
        for index in 0..self.nodes().len().max(1) {
            let list: String = self
                .try_run_at(index, &["CLIENT", "LIST"])
                .await
                .expect("the server answers");
            for id in fan::named(&list, suffix) {
                let one = self.try_run_at(index, &["CLIENT", "KILL", "ID", &id]).await;
                killed += one.unwrap_or(0);
            }
        }
        killed
    }

    /// The administrators' sockets of all servers that clients write to.
    pub fn sockets(&self) -> Vec<String> {
        match &self.0 {
            Place::Single(single) => vec![single.socket().to_owned()],
            Place::Acl(limited) => vec![limited.socket().to_owned()],
            _ => {
                let sockets = self.nodes().into_iter().map(Node::socket);
                sockets.map(|path| path.display().to_string()).collect()
            }
        }
    }

    /// Of one plain server only, as are the four that follow.
    pub fn url(&self) -> &str {
        self.single().url()
    }

    pub async fn pid(&self) -> u32 {
        self.single().pid().await
    }

    /// Kills the server, which loses all of its data; its socket refuses connections from then on.
    pub async fn kill(&self) -> Killed {
        self.single().kill().await
    }

    /// Starts a new, empty one on the socket of a killed server.
    pub async fn start_again(&mut self, killed: Killed) {
        match &mut self.0 {
            Place::Single(single) => single.start_again(killed).await,
            _ => unreachable!("only a single one was killed"),
        }
    }

    /// Lets saves fail from now on, so that the server refuses writes: with a directory that is
    /// gone by the time of the save. Ended by [`saves_nothing`](Self::saves_nothing). Needs a
    /// server that was started with `--enable-protected-configs yes`.
    pub async fn cannot_save(&self) {
        let gone = format!("{}.gone", self.url().trim_start_matches("unix://"));
        std::fs::create_dir(&gone).expect("in the server's own directory");
        let _: Value = self.run(&["CONFIG", "SET", "dir", &gone]).await;
        std::fs::remove_dir(&gone).expect("just made");
        let _: Value = self.run(&["CONFIG", "SET", "save", "3600 1"]).await;
        let _: Value = self.run(&["BGSAVE"]).await;
        until("the save has failed", || async {
            let info: String = self.run(&["INFO", "persistence"]).await;
            info.contains("rdb_last_bgsave_status:err")
        })
        .await;
    }

    /// Saves nothing any more, so that no save fails.
    pub async fn saves_nothing(&self) {
        let _: Value = self.run(&["CONFIG", "SET", "save", ""]).await;
    }

    fn single(&self) -> &Single {
        match &self.0 {
            Place::Single(single) => single,
            _ => panic!("this test needs one plain server: Server::start_single"),
        }
    }

    /// Runs a command on the server with this index.
    async fn try_run_at<T: FromRedisValue>(&self, index: usize, words: &[&str]) -> RedisResult<T> {
        match &self.0 {
            Place::Single(single) => single.try_run(words).await,
            Place::Acl(limited) => limited.try_run(words).await,
            _ => self.nodes()[index].try_run(words).await,
        }
    }

    /// The servers that clients write to, where there may be more than one.
    fn nodes(&self) -> Vec<&Node> {
        match &self.0 {
            Place::Single(_) | Place::Acl(_) => Vec::new(),
            Place::Tls(server) => vec![&server.node],
            Place::Cluster(cluster) => cluster.nodes().iter().collect(),
            Place::Shards(shards) => shards.nodes().iter().collect(),
            Place::Sentinel(sentinels) => vec![sentinels.data().primary()],
        }
    }
}

/// What `HEDGEROW_TOPOLOGY` says, `single` without it.
static TOPOLOGY: LazyLock<String> =
    LazyLock::new(|| std::env::var("HEDGEROW_TOPOLOGY").unwrap_or_else(|_| "single".into()));

/// Tells who has a plain server in a run on another topology, past what captures the output of
/// tests.
fn note_single() {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    if TOPOLOGY.as_str() != "single" {
        let count = COUNT.fetch_add(1, Ordering::SeqCst) + 1;
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("a test");
        let _ = writeln!(
            std::io::stderr(),
            "{count} on one plain server, not on {}: {test}",
            *TOPOLOGY
        );
    }
}

pub async fn connection(url: &str) -> MultiplexedConnection {
    let config = redis::AsyncConnectionConfig::new()
        .set_response_timeout(None)
        .set_connection_timeout(Some(Duration::from_secs(10)));
    redis::Client::open(url)
        .expect("a good URL")
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .expect("the server accepts")
}

/// Sends a signal, such as `STOP`, `CONT` or `KILL`, to a process. After `STOP` it waits until the
/// process stands still, which the operating system brings about in its own time.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "kill -{name} {pid}"
    );
    if name == "STOP" {
        let begun = Instant::now();
        loop {
            let state = state(pid);
            if state.starts_with('T') {
                return;
            }
            assert!(!state.is_empty(), "process {pid} is gone and cannot stop");
            assert!(
                begun.elapsed() < A_MINUTE,
                "waited a minute for process {pid} to stop; its state is {state}"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

const A_MINUTE: Duration = Duration::from_secs(60);

/// The state of a process as `ps` tells it, or nothing if there is none (or only its remains).
pub fn state(pid: u32) -> String {
    let output = Command::new("ps")
        .args(["-o", "stat=", "-p", &pid.to_string()])
        .output()
        .expect("ps");
    let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if state.starts_with('Z') {
        String::new()
    } else {
        state
    }
}
