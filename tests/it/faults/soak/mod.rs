//! Random faults for as long as one likes: `make soak`, half an hour unless `SOAK_SECONDS` says
//! otherwise.
//!
//! A lap is traffic on every primitive, some faults drawn from the seed (`HEDGEROW_SEED`), and the
//! books. When a lap is over and all is quiet, nothing is left that was not there after the first
//! laps: no lease, no queue, no waiter, no socket, no memory.

mod cluster;
mod server;

use std::cell::Cell;
use std::time::{Duration, Instant};

use hedgerow::Client;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::{Loss, Traffic};
use crate::support::wait::until;

/// How many faults a lap has.
const LAP: usize = 8;

/// Laps after which everything that is made once has been made.
const WARM: usize = 4;

/// Servers, a client of them, and the faults that they know.
trait Ground {
    /// Whether the faults may lose what was acknowledged.
    const LOSS: Loss;

    /// Brings one of the faults about, sees that it hits, and undoes it. Answers which.
    async fn bring_any(&mut self, random: &mut StdRng, traffic: &Traffic) -> String;

    /// Undoes what the faults of a lap have left behind.
    async fn mend(&mut self);

    fn client(&self) -> &Client;

    /// All keys of the servers that match.
    async fn keys(&self, pattern: &str) -> Vec<String>;

    async fn delete(&self, key: &str);
}

/// What is there when all is quiet.
#[derive(Debug, Clone, Copy)]
struct Footprint {
    resident_kib: usize,
    sockets: usize,
    keys: usize,
}

/// Lap after lap, for half of the time: there are two grounds.
async fn soak(mut ground: impl Ground) {
    let number = |name, default| {
        std::env::var(name).map_or(default, |number| number.parse().expect("a number"))
    };
    let seed: u64 = number("HEDGEROW_SEED", rand::random());
    let length = Duration::from_secs(number("SOAK_SECONDS", 1800)) / 2;
    println!("HEDGEROW_SEED={seed}, {length:?}");
    let mut random = StdRng::seed_from_u64(seed);
    let begun = Instant::now();
    let mut footprints = Vec::new();
    while begun.elapsed() < length || footprints.len() < 3 * WARM {
        let faults = lap(&mut ground, &mut random).await;
        ground.mend().await;
        let footprint = footprint(&ground).await;
        println!(
            "{:>5} s  {footprint:?}  {faults}",
            begun.elapsed().as_secs()
        );
        footprints.push(footprint);
    }
    let (early, late) = footprints[WARM..].split_at((footprints.len() - WARM) / 2);
    flat("memory (KiB)", early, late, |print| print.resident_kib);
    flat("sockets", early, late, |print| print.sockets);
    flat("keys", early, late, |print| print.keys);
}

/// Traffic and faults, and the books of both.
async fn lap<G: Ground>(ground: &mut G, random: &mut StdRng) -> String {
    let mut traffic = Traffic::start(ground.client(), 12, G::LOSS);
    traffic.flows(50).await;
    let mut faults = Vec::new();
    for _ in 0..LAP {
        traffic.strike().await;
        faults.push(ground.bring_any(random, &traffic).await);
        traffic.flows(50).await;
    }
    traffic.check().await;
    faults.join(", ")
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

/// Waits until all is quiet, and measures what is there.
async fn footprint(ground: &impl Ground) -> Footprint {
    let client = ground.client();
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
        let keys = ground.keys("hr:*").await;
        let leases = ["hr:l:", ":lock:", ":queue:", ":waiters:"];
        !keys
            .iter()
            .any(|key| leases.iter().any(|part| key.contains(part)))
    })
    .await;
    // The counters of one lap are of no use to the next, and values come and go.
    for pattern in ["hr:c:*", "hr:v:*"] {
        for key in ground.keys(pattern).await {
            ground.delete(&key).await;
        }
    }
    let last = Cell::new(usize::MAX);
    until("what was left is gone", async || {
        tokio::time::sleep(Duration::from_millis(50)).await;
        last.replace(sockets()) == last.get()
    })
    .await;
    Footprint {
        resident_kib: resident_kib(),
        sockets: last.get(),
        keys: ground.keys("*").await.len(),
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
