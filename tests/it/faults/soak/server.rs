//! One server behind a proxy.

use std::time::Duration;

use hedgerow::Client;
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use redis::Value;

use super::{Ground, soak};
use crate::faults::{Loss, Traffic};
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::{Server, signal};

/// What happens to a server, or on the way to it, while it is in use.
#[derive(Debug, Clone, Copy)]
enum Fault {
    ScriptsFlushed,
    RequestLost,
    ReplyLost,
    ReplyCut,
    Sliced,
    Delayed,
    BlackHole,
    DeliveredLate,
    Frozen,
    ConnectionsKilled,
    WritesPaused,
    NoConnections,
    Full,
    TooFewReplicas,
    Busy,
}

const FAULTS: [Fault; 15] = [
    Fault::ScriptsFlushed,
    Fault::RequestLost,
    Fault::ReplyLost,
    Fault::ReplyCut,
    Fault::Sliced,
    Fault::Delayed,
    Fault::BlackHole,
    Fault::DeliveredLate,
    Fault::Frozen,
    Fault::ConnectionsKilled,
    Fault::WritesPaused,
    Fault::NoConnections,
    Fault::Full,
    Fault::TooFewReplicas,
    Fault::Busy,
];

struct OneServer {
    server: Server,
    client: Client,
    proxy: Proxy,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs for a quarter of an hour: make soak"]
async fn nothing_is_lost_and_nothing_grows_under_random_faults() {
    soak(OneServer::new().await).await;
}

impl OneServer {
    async fn new() -> Self {
        let server = Server::start_with(&["--busy-reply-threshold", "50"]).await;
        let proxy = Proxy::before(&server);
        let soon = Duration::from_millis(500);
        let builder = proxy.builder().deadline(soon).cache_deadline(soon);
        Self {
            client: builder.open().expect("a good URL"),
            server,
            proxy,
        }
    }

    /// Brings the fault about, sees that it hits, and undoes it.
    async fn bring(&mut self, fault: Fault, random: &mut StdRng, traffic: &Traffic) {
        // Any frame of the next few.
        let frame = Request::nth(random.random_range(1..100));
        match fault {
            Fault::ScriptsFlushed => drop(self.admin(&["SCRIPT", "FLUSH"]).await),
            Fault::RequestLost => self.proxy.on(frame, Act::Reset).hit().await,
            Fault::ReplyLost => self.proxy.on_reply(frame, Act::Reset).hit().await,
            Fault::ReplyCut => {
                let length = random.random_range(1..40);
                self.proxy
                    .on_reply(frame, Act::Truncate(length))
                    .hit()
                    .await;
            }
            Fault::Sliced => {
                let act = Act::Slice(random.random(), Duration::from_millis(2));
                self.proxy.on(frame, act).hit().await;
            }
            Fault::Delayed => {
                let delay = Duration::from_millis(random.random_range(1..1000));
                self.proxy.on(frame, Act::Delay(delay)).hit().await;
            }
            Fault::BlackHole => self.proxy.on(frame, Act::Vanish).hit().await,
            Fault::DeliveredLate => {
                let rule = self.proxy.on(frame, Act::Hold);
                rule.hit().await;
                // Whoever sent it has given up, and has come over another connection.
                traffic.flows(20).await;
                rule.deliver();
            }
            Fault::Frozen => {
                let pid = self.server.pid().await;
                signal(pid, "STOP");
                traffic.counters.fail().await;
                signal(pid, "CONT");
            }
            Fault::ConnectionsKilled => {
                let kind = ["normal", "pubsub"].choose(random);
                let kind = kind.expect("two");
                drop(self.admin(&["CLIENT", "KILL", "TYPE", kind]).await);
            }
            Fault::WritesPaused => {
                self.admin(&["CLIENT", "PAUSE", "60000", "WRITE"]).await;
                traffic.counters.fail().await;
                self.admin(&["CLIENT", "UNPAUSE"]).await;
            }
            Fault::NoConnections => {
                self.set("maxclients", "1").await;
                self.admin(&["CLIENT", "KILL", "TYPE", "normal"]).await;
                traffic.counters.fail().await;
                self.set("maxclients", "1000").await;
            }
            Fault::Full => self.refusing(traffic, "maxmemory").await,
            Fault::TooFewReplicas => self.refusing(traffic, "min-replicas-to-write").await,
            Fault::Busy => self.busy(traffic).await,
        }
        self.proxy.clear();
    }

    /// A setting that has writes refused when it is 1.
    async fn refusing(&self, traffic: &Traffic, setting: &str) {
        self.set(setting, "1").await;
        traffic.counters.fail().await;
        self.set(setting, "0").await;
    }

    async fn busy(&self, traffic: &Traffic) {
        let mut other = crate::support::server::connection(self.server.url()).await;
        let endless = tokio::spawn(async move {
            let mut script = redis::cmd("EVAL");
            script.arg("while true do end").arg(0);
            let _: redis::RedisResult<Value> = script.query_async(&mut other).await;
        });
        traffic.counters.fail().await;
        self.admin(&["SCRIPT", "KILL"]).await;
        endless.await.expect("no panic");
    }

    async fn admin(&self, words: &[&str]) -> Value {
        self.server.run(words).await
    }

    async fn set(&self, name: &str, value: &str) {
        self.admin(&["CONFIG", "SET", name, value]).await;
    }
}

impl Ground for OneServer {
    const LOSS: Loss = Loss::None;

    async fn bring_any(&mut self, random: &mut StdRng, traffic: &Traffic) -> String {
        let fault = *FAULTS.choose(random).expect("there are some");
        self.bring(fault, random, traffic).await;
        format!("{fault:?}")
    }

    async fn mend(&mut self) {
        // What has vanished in the old proxy stays open there.
        let reborn = Proxy::before(&self.server);
        drop(std::mem::replace(&mut self.proxy, reborn));
    }

    fn client(&self) -> &Client {
        &self.client
    }

    async fn keys(&self, pattern: &str) -> Vec<String> {
        self.server.keys(pattern).await
    }

    async fn delete(&self, key: &str) {
        self.admin(&["DEL", key]).await;
    }
}
