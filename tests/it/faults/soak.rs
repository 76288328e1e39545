//! Random faults for as long as one likes: `make soak`, half an hour unless `SOAK_SECONDS` says otherwise.
//!
//! A lap is traffic on every primitive, some faults drawn from the seed (`HEDGEROW_SEED`), and the books. When
//! a lap is over and all is quiet, nothing is left that was not there after the first laps: no lease, no
//! queue, no waiter, no socket, no memory.

use std::cell::Cell;
use std::time::{Duration, Instant};

use hedgerow::Client;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use redis::Value;

use super::{Loss, Traffic};
use crate::proxy::{Act, Proxy, Request};
use crate::server::{Server, signal};
use crate::wait::until;

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

/// How many faults a lap has.
const LAP: usize = 8;

/// Laps after which everything that is made once has been made.
const WARM: usize = 4;

/// What is there when all is quiet.
#[derive(Debug, Clone, Copy)]
struct Footprint {
    resident_kib: usize,
    sockets: usize,
    keys: usize,
}

struct Ground {
    server: Server,
    client: Client,
    proxy: Proxy,
    random: StdRng,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs for half an hour: make soak"]
async fn nothing_is_lost_and_nothing_grows_under_random_faults() {
    let number = |name, default| {
        std::env::var(name).map_or(default, |number| number.parse().expect("a number"))
    };
    let seed: u64 = number("HEDGEROW_SEED", rand::random());
    let length = Duration::from_secs(number("SOAK_SECONDS", 1800));
    println!("HEDGEROW_SEED={seed}, {length:?}");
    let mut ground = Ground::new(seed).await;
    let begun = Instant::now();
    let mut footprints = Vec::new();
    while begun.elapsed() < length || footprints.len() < 3 * WARM {
        let faults = ground.lap().await;
        let footprint = ground.footprint().await;
        println!(
            "{:>5} s  {footprint:?}  {faults:?}",
            begun.elapsed().as_secs()
        );
        footprints.push(footprint);
    }
    let (early, late) = footprints[WARM..].split_at((footprints.len() - WARM) / 2);
    flat("memory (KiB)", early, late, |print| print.resident_kib);
    flat("sockets", early, late, |print| print.sockets);
    flat("keys", early, late, |print| print.keys);
}

/// The median of the later laps is within 2 % of that of the earlier ones.
fn flat(what: &str, early: &[Footprint], late: &[Footprint], of: impl Fn(&Footprint) -> usize) {
    let median = |prints: &[Footprint]| {
        let mut numbers: Vec<usize> = prints.iter().map(&of).collect();
        numbers.sort_unstable();
        numbers[numbers.len() / 2]
    };
    let (early, late) = (median(early), median(late));
    println!("{what}: {early}, later {late}");
    assert!(
        late * 100 <= early * 102,
        "{what} have grown from {early} to {late}"
    );
}

impl Ground {
    async fn new(seed: u64) -> Self {
        let server = Server::start_with(&["--busy-reply-threshold", "50"]).await;
        let proxy = Proxy::before(&server);
        let soon = Duration::from_millis(500);
        let builder = proxy.builder().deadline(soon).cache_deadline(soon);
        Self {
            client: builder.connect().await.expect("a good URL"),
            server,
            proxy,
            random: StdRng::seed_from_u64(seed),
        }
    }

    /// Traffic and faults, and the books of both.
    async fn lap(&mut self) -> Vec<Fault> {
        let mut traffic = Traffic::start(&self.client, 12, Loss::None);
        traffic.flows(50).await;
        let mut faults = Vec::new();
        for _ in 0..LAP {
            let fault = *FAULTS.choose(&mut self.random).expect("there are some");
            faults.push(fault);
            traffic.strike().await;
            self.bring(fault, &traffic).await;
            traffic.flows(50).await;
        }
        traffic.check().await;
        faults
    }

    /// Brings the fault about, sees that it hits, and undoes it.
    async fn bring(&mut self, fault: Fault, traffic: &Traffic) {
        // Any frame of the next few.
        let frame = Request::nth(self.random.random_range(1..100));
        match fault {
            Fault::ScriptsFlushed => drop(self.admin(&["SCRIPT", "FLUSH"]).await),
            Fault::RequestLost => self.proxy.on(frame, Act::Reset).hit().await,
            Fault::ReplyLost => self.proxy.on_reply(frame, Act::Reset).hit().await,
            Fault::ReplyCut => {
                let length = self.random.random_range(1..40);
                self.proxy
                    .on_reply(frame, Act::Truncate(length))
                    .hit()
                    .await;
            }
            Fault::Sliced => {
                let act = Act::Slice(self.random.random(), Duration::from_millis(2));
                self.proxy.on(frame, act).hit().await;
            }
            Fault::Delayed => {
                let delay = Duration::from_millis(self.random.random_range(1..1000));
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
                let kind = ["normal", "pubsub"].choose(&mut self.random);
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
        let mut other = crate::server::connection(self.server.url()).await;
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

    /// Waits until all is quiet, and measures what is there.
    async fn footprint(&mut self) -> Footprint {
        // What has vanished in the old proxy stays open there.
        let reborn = Proxy::before(&self.server);
        drop(std::mem::replace(&mut self.proxy, reborn));
        let (client, server) = (&self.client, &self.server);
        until("calls of every kind succeed", async || {
            let cache = client.cache("fault");
            client.counter("quiet").add(1).await.is_ok()
                && match client.lock("quiet").try_acquire().await {
                    Ok(Some(guard)) => guard.release().await.is_ok(),
                    _ => false,
                }
                && cache
                    .set("quiet", &1, Duration::from_secs(60))
                    .await
                    .is_ok()
        })
        .await;
        until("no lease, queue or waiter is left", async || {
            let keys = server.keys("hr:*").await;
            let leases = ["hr:l:", ":lock:", ":queue:", ":waiters:"];
            !keys
                .iter()
                .any(|key| leases.iter().any(|part| key.contains(part)))
        })
        .await;
        // The counters of one lap are of no use to the next, and values come and go.
        for pattern in ["hr:c:*", "hr:v:*"] {
            for key in server.keys(pattern).await {
                self.admin(&["DEL", &key]).await;
            }
        }
        let last = Cell::new(usize::MAX);
        until("the old proxy is gone", async || {
            tokio::time::sleep(Duration::from_millis(50)).await;
            last.replace(sockets()) == last.get()
        })
        .await;
        Footprint {
            resident_kib: resident_kib(),
            sockets: last.get(),
            keys: server.keys("*").await.len(),
        }
    }
}

/// How many sockets this process has open.
fn sockets() -> usize {
    let open = std::fs::read_dir("/proc/self/fd").expect("Linux");
    let target = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    target
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count()
}

/// How much memory this process has resident.
fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .expect("a number of kB")
}
