//! One world: a truth, the processes that read and change it, and what happens to them.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use redis::FromRedisValue;
use tokio::time::Instant;

use super::check::{Verdict, judge};
use super::faults::{Fault, Hits, bring, least, round};
use super::part::{Deeds, SLACK, Script};
use super::plan::{COLD, KEYS, Terms};
use super::truth::Truth;
use crate::support::process::Child;
use crate::support::proxy::Proxy;
use crate::support::server::Server;
use crate::support::topology::{Cluster, Port};
use crate::support::wait::bounded;

/// Where the processes keep their caches: behind proxies, which do nothing unless they are told.
pub enum Ground {
    One {
        server: Server,
        proxies: Vec<Proxy>,
    },
    Cluster {
        cluster: Cluster,
        proxies: Vec<Proxy>,
    },
}

impl Ground {
    pub async fn one() -> Self {
        let server = Server::start_single().await;
        let proxies = vec![Proxy::before(&server)];
        Self::One { server, proxies }
    }

    /// Three primaries, which tell clients to come to their proxies.
    pub async fn cluster() -> Self {
        let ports = [Port::free(), Port::free(), Port::free()];
        let told = [0, 1, 2].map(|at: usize| ports[at].number());
        let cluster = Cluster::start_announcing(&told).await;
        let mut proxies = Vec::new();
        for (port, node) in ports.into_iter().zip(cluster.nodes()) {
            proxies.push(Proxy::on_port(port, node.port()).await);
        }
        Self::Cluster { cluster, proxies }
    }

    pub fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster { .. })
    }

    pub fn proxies(&self) -> &[Proxy] {
        match self {
            Self::One { proxies, .. } | Self::Cluster { proxies, .. } => proxies,
        }
    }

    pub async fn run<T: FromRedisValue>(&self, words: &[&str]) -> T {
        match self {
            Self::One { server, .. } => server.run(words).await,
            Self::Cluster { cluster, .. } => cluster.run(words).await,
        }
    }

    pub async fn keys(&self, pattern: &str) -> Vec<String> {
        match self {
            Self::One { server, .. } => server.keys(pattern).await,
            Self::Cluster { cluster, .. } => {
                let keys: Vec<Vec<String>> = cluster.run_all(&["KEYS", pattern]).await;
                keys.concat()
            }
        }
    }

    /// Closes all connections on which pushes come. Returns how many.
    pub async fn cut_pushes(&self) -> usize {
        let words = ["CLIENT", "KILL", "TYPE", "pubsub"];
        match self {
            Self::One { server, .. } => server.run(&words).await,
            Self::Cluster { cluster, .. } => cluster.run_all::<usize>(&words).await.iter().sum(),
        }
    }

    /// Moves the slot of some key to another primary. Returns whether there was one.
    pub async fn move_slot(&self, random: &mut StdRng) -> bool {
        let Self::Cluster { cluster, .. } = self else {
            return false;
        };
        let keys = self.keys("hr:*").await;
        let Some(key) = keys.choose(random) else {
            return false;
        };
        let slot = hedgerow::key::slot(key.as_bytes());
        let from = cluster.owner_of(slot).await;
        let to = (from + random.random_range(1..3)) % 3;
        let migration = cluster.migrate(slot, to).await;
        migration.carry_all().await;
        // Some calls find their keys in both places.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..20))).await;
        migration.carry_all().await;
        migration.finish().await;
        true
    }
}

/// How much has to happen in a world, so that it is a test.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    pub lasts: Duration,
    pub reads: usize,
    pub loads: usize,
    pub invalidations: usize,
}

impl Effort {
    /// A second or two.
    pub const SHORT: Self = Self {
        lasts: Duration::from_millis(1000),
        reads: 1000,
        loads: 200,
        invalidations: 200,
    };
}

/// What came of a world.
#[derive(Debug)]
pub struct Story {
    pub verdict: Verdict,
    pub hits: Hits,
    pub deeds: Deeds,
    pub loads: usize,
    pub invalidations: usize,
    /// How often versions were raised while a load of the key was running.
    pub met: usize,
    /// How long the world was busy.
    pub busy: Duration,
}

/// A world that is on.
struct World<'g> {
    ground: &'g Ground,
    truth: Truth,
    name: String,
    terms: Terms,
    children: Vec<(Child, u32)>,
    hits: Hits,
    deeds: Deeds,
    /// How long it was busy.
    busy: Duration,
}

/// Lets a world run until enough has happened, then be quiet, and judges what was written down.
pub async fn run(ground: &Ground, name: &str, terms: Terms, effort: Effort) -> Story {
    let mut world = World {
        ground,
        truth: Truth::of(KEYS),
        name: name.to_owned(),
        terms,
        children: Vec::new(),
        hits: Hits::new(),
        deeds: Deeds::default(),
        busy: Duration::ZERO,
    };
    for process in 0..PROCESSES {
        let child = world.start(process, process as u32);
        world.children.push((child, process as u32));
    }
    for (child, _) in &mut world.children {
        assert_eq!(child.says().await, "ready");
    }
    world.say("go").await;
    let begun = Instant::now();
    let busy = world.is_busy(effort);
    bounded("all faults of a world have hit", busy).await;
    world.busy = begun.elapsed();
    world.is_quiet().await;
    world.end().await
}

impl World<'_> {
    fn start(&self, process: usize, client: u32) -> Child {
        let url = self.ground.proxies().iter().map(Proxy::url);
        let script = Script {
            urls: url.map(str::to_owned).collect(),
            truth: self.truth.socket(),
            cache: self.name.clone(),
            process,
            client,
            terms: self.terms,
        };
        let words = script.words();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Child::start("history", &words)
    }

    /// Says a word to all, and waits until each has done it.
    async fn say(&mut self, word: &str) {
        for (child, _) in &mut self.children {
            child.tell(word).await;
        }
        for (child, _) in &mut self.children {
            assert_eq!(child.says().await, "done");
        }
    }

    async fn is_busy(&mut self, effort: Effort) {
        let mut random = StdRng::seed_from_u64(self.terms.seed);
        let least = least(self.ground, self.terms.network, self.terms.near);
        let begun = Instant::now();
        let hit = |hits: &Hits, (fault, least): (&Fault, &usize)| hits.get(fault) >= Some(least);
        loop {
            for fault in round(&least, &mut random) {
                let hits = self.hits.get(&fault).copied().unwrap_or(0);
                // Whoever waits for such a load, or for a push, does so for long.
                let is_costly = matches!(fault, Fault::LeaderKilled | Fault::PushesCut);
                if is_costly && hits >= 2 * least[&fault] {
                    continue;
                }
                let pause = Duration::from_millis(random.random_range(0..60));
                tokio::time::sleep(pause).await;
                let hit = match fault {
                    Fault::LeaderKilled => self.kill(&mut random).await,
                    fault => bring(self.ground, fault, &mut random).await,
                };
                *self.hits.entry(fault).or_default() += usize::from(hit);
            }
            if least.iter().all(|it| hit(&self.hits, it))
                && begun.elapsed() >= effort.lasts
                && self.truth.reads() >= effort.reads
                && self.truth.loads() >= effort.loads
                && self.truth.invalidations() >= effort.invalidations
            {
                return;
            }
        }
    }

    /// Kills a process in mid load, and starts another one in its place.
    async fn kill(&mut self, random: &mut StdRng) -> bool {
        let process = random.random_range(0..PROCESSES);
        let client = self.children[process].1;
        self.truth.hold_up(client).await;
        let client = client + PROCESSES as u32;
        let next = (self.start(process, client), client);
        let (child, _) = std::mem::replace(&mut self.children[process], next);
        child.kill().await;
        self.truth.let_go();
        let child = &mut self.children[process].0;
        assert_eq!(child.says().await, "ready");
        assert_eq!(child.ask("go").await, "done");
        true
    }

    /// Nothing is invalidated any more. What was stored too late, or is still held, shows now.
    async fn is_quiet(&mut self) {
        if self.terms.near {
            // The last changes come while pushes are lost again and again.
            let ground = self.ground;
            let cut = async {
                for _ in 0..20 {
                    ground.cut_pushes().await;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            tokio::join!(cut, self.say("quiet"));
            tokio::time::sleep(Duration::from_millis(700)).await;
        } else {
            self.say("quiet").await;
        }
        if self.terms.windows && !self.terms.network {
            self.say("warm").await;
            // Out of date from now on: one that no process knows of, one that is invalidated.
            self.truth.raise(KEYS - COLD);
            let (first, _) = &mut self.children[0];
            assert_eq!(first.ask("soften").await, "done");
            tokio::time::sleep(SLACK + Duration::from_millis(400)).await;
            self.say("read the old").await;
        }
        self.say("last").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    async fn end(mut self) -> Story {
        for (child, _) in &mut self.children {
            self.deeds.add(&child.ask("stop").await);
        }
        Story {
            verdict: judge(&self.truth.history()),
            loads: self.truth.loads(),
            invalidations: self.truth.invalidations(),
            met: self.truth.met(),
            hits: self.hits,
            deeds: self.deeds,
            busy: self.busy,
        }
    }
}

/// How many processes a world has.
const PROCESSES: usize = 4;
