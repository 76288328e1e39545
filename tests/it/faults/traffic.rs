//! Counters, locks and loads in use, with books that are checked afterwards.

use std::future::IntoFuture as _;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hedgerow::{Client, Error, Outage};
use tokio::task::JoinSet;

use super::Row;
use super::report::ms;
use crate::support::wait::{bounded, until};

/// Uses of each primitive, side by side, until it is stopped.
pub struct Traffic {
    client: Client,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
    pub counters: Arc<Books>,
    pub locks: Arc<Books>,
    pub loads: Arc<Books>,
    adds: Arc<Vec<Adds>>,
    /// What a lock protects: refuses a fence smaller than one it has seen.
    resource: Arc<AtomicU64>,
    truth: Arc<Truth>,
    loss: Loss,
    /// Tells the counters of this traffic from those of another on the same server.
    run: u32,
    /// Successes before the fault.
    before: usize,
}

/// Whether the fault may lose what was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    None,
    /// Data that was acknowledged may be gone, as after an asynchronous failover.
    Data,
}

/// What became of the calls on one primitive.
#[derive(Debug, Default)]
pub struct Books {
    done: AtomicUsize,
    refused: AtomicUsize,
    unknown: AtomicUsize,
    in_flight: AtomicUsize,
    /// Calls that were in flight when the fault came.
    hit: AtomicUsize,
    /// Successes before the fault, and from then on until the last failure.
    before: AtomicUsize,
    meanwhile: AtomicUsize,
    gap: Mutex<Gap>,
}

/// The longest time without a success since it was set.
#[derive(Debug, Default)]
struct Gap {
    last: Option<Instant>,
    longest: Duration,
}

/// Of one counter.
#[derive(Debug, Default)]
struct Adds {
    known: AtomicU64,
    unknown: AtomicU64,
}

/// What stands behind the cache, and how far invalidations of it have come.
#[derive(Debug, Default)]
struct Truth {
    written: AtomicU64,
    invalidated: AtomicU64,
}

impl Traffic {
    /// Starts traffic on `counters` counters, two locks and some cached values. The client's
    /// deadlines decide how soon calls give up.
    pub fn start(client: &Client, counters: usize, loss: Loss) -> Self {
        let mut traffic = Self {
            client: client.clone(),
            stop: Arc::default(),
            tasks: JoinSet::new(),
            counters: Arc::default(),
            locks: Arc::default(),
            loads: Arc::default(),
            adds: Arc::new((0..counters).map(|_| Adds::default()).collect()),
            resource: Arc::default(),
            truth: Arc::default(),
            loss,
            run: rand::random(),
            before: 0,
        };
        for number in 0..counters {
            traffic.add_to(number);
        }
        for _ in 0..4 {
            traffic.lock();
        }
        for number in 0..4 {
            traffic.load(number);
        }
        traffic.write();
        traffic
    }

    /// Waits until each primitive has had `more` successes from now on.
    pub async fn flows(&self, more: usize) {
        for books in [&self.counters, &self.locks, &self.loads] {
            let from = books.done();
            until("the traffic flows", async || books.done() >= from + more).await;
        }
    }

    /// Waits until `more` loads have succeeded from now on, which they do without Redis.
    pub async fn loads_go_on(&self, more: usize) {
        let from = self.loads.done();
        until("loads go on", async || self.loads.done() >= from + more).await;
    }

    /// Waits until `more` loads have ended from now on, with a value or with an error.
    pub async fn loads_end(&self, more: usize) {
        let ended = || self.loads.done() + self.loads.refused() + self.loads.unknown();
        let from = ended();
        until("loads end", async || ended() >= from + more).await;
    }

    /// Successes so far.
    pub fn done(&self) -> usize {
        self.counters.done() + self.locks.done() + self.loads.done()
    }

    /// The fault comes now: notes what is in flight, and measures gaps from here on.
    pub async fn strike(&mut self) {
        self.before = self.done();
        for books in [&self.counters, &self.locks, &self.loads] {
            until("calls are in flight", async || {
                let hit = books.in_flight.load(Ordering::SeqCst);
                books.hit.store(hit, Ordering::SeqCst);
                hit > 0
            })
            .await;
            books.before.store(books.done(), Ordering::SeqCst);
            *books.gap.lock().expect("no panic") = Gap {
                last: Some(Instant::now()),
                longest: Duration::ZERO,
            };
        }
    }

    /// Stops the traffic, checks the books, and leaves a row for each primitive.
    ///
    /// # Panics
    /// When a promise was broken. A task that has seen one panics, and so does this.
    pub async fn settle(mut self, fault: u8, name: &str, topology: &str, outcome: &str) {
        let lost = self.audit().await;
        for (primitive, books, lost) in [
            ("counter", &self.counters, lost),
            ("lock", &self.locks, 0),
            ("load", &self.loads, 0),
        ] {
            Row {
                fault,
                name: name.to_owned(),
                topology: topology.to_owned(),
                primitive: primitive.to_owned(),
                outcome: outcome.to_owned(),
                before: self.before,
                hit: books.hit.load(Ordering::SeqCst),
                meanwhile: books.meanwhile.load(Ordering::SeqCst),
                refused: books.refused(),
                unknown: books.unknown(),
                lost,
                recovery_ms: ms(books.gap()),
            }
            .record();
        }
    }

    /// Stops the traffic and checks the books.
    ///
    /// # Panics
    /// As [`settle`](Self::settle).
    pub async fn check(mut self) {
        self.audit().await;
    }

    /// Stops the traffic and checks the books; answers how many acknowledged adds are gone.
    async fn audit(&mut self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("no promise was broken");
        }
        let mut lost = 0;
        for (number, adds) in self.adds.iter().enumerate() {
            let name = self.counter(number);
            let known = adds.known.load(Ordering::SeqCst);
            let most = known + adds.unknown.load(Ordering::SeqCst);
            let counter = self.client.counter(&name);
            let value = loop {
                // What the fault has left behind may still be in the way of a read.
                if let Ok(value) = bounded("the counter is read", counter.get()).await {
                    break u64::try_from(value).expect("never below zero");
                }
            };
            assert!(
                value <= most,
                "{name} was added to twice: {value} of {most}"
            );
            if self.loss == Loss::None {
                assert!(value >= known, "{name} has lost adds: {value} of {known}");
            }
            lost += usize::try_from(known.saturating_sub(value)).expect("few");
        }
        lost
    }

    fn counter(&self, number: usize) -> String {
        format!("fault-{}:{number}", self.run)
    }

    fn add_to(&mut self, number: usize) {
        let counter = self.client.counter(&self.counter(number));
        let (stop, books, adds) = (self.stop.clone(), self.counters.clone(), self.adds.clone());
        self.tasks.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                match books.call(counter.add(1).into_future()).await {
                    Ok(_) => {
                        adds[number].known.fetch_add(1, Ordering::SeqCst);
                        books.success();
                    }
                    Err(error) => {
                        if error.is_indeterminate() {
                            adds[number].unknown.fetch_add(1, Ordering::SeqCst);
                        }
                        books.failure(&error).await;
                    }
                }
            }
        });
    }

    fn lock(&mut self) {
        let lock = self.client.lock("fault").lease(Duration::from_secs(2));
        let lock = lock.wait(Duration::from_secs(20));
        let (stop, books) = (self.stop.clone(), self.locks.clone());
        let resource = self.resource.clone();
        self.tasks.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                match books.call(lock.acquire()).await {
                    Ok(guard) => {
                        // Two live guards are told apart by what they protect: the fence of a guard
                        // that holds is never smaller than one that was seen before it was granted.
                        let (fence, held) = (guard.fence().get(), guard.is_held());
                        let newest = resource.fetch_max(fence, Ordering::SeqCst);
                        assert!(
                            newest < fence || !held || !guard.is_held(),
                            "fence {fence} was granted after {newest}"
                        );
                        books.success();
                        if let Err(error) = guard.release().await {
                            books.failure(&error).await;
                        }
                    }
                    Err(error) => books.failure(&error).await,
                }
            }
        });
    }

    /// Reads what [`write`](Self::write) has written, through the cache.
    fn load(&mut self, number: usize) {
        let cache = self.client.cache("fault").outage(Outage::Bypass);
        let (stop, books, truth) = (self.stop.clone(), self.loads.clone(), self.truth.clone());
        let loss = self.loss;
        self.tasks.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let least = truth.invalidated.load(Ordering::SeqCst);
                let source = truth.clone();
                let load = move || async move {
                    Ok::<_, std::io::Error>(source.written.load(Ordering::SeqCst))
                };
                let key = format!("key:{}", number % 2);
                let value = cache
                    .memoize(&key, Duration::from_secs(60), load)
                    .tags(["fault"]);
                match books.call(value.into_future()).await {
                    Ok(value) => {
                        // An invalidation may be lost like anything else that was acknowledged.
                        let told = loss == Loss::None;
                        assert!(
                            !told || *value >= least,
                            "stale: {value}, invalidated up to {least}"
                        );
                        books.success();
                    }
                    Err(error) => books.failure(&error).await,
                }
            }
        });
    }

    /// Changes the truth behind the cache and invalidates what was loaded.
    fn write(&mut self) {
        let cache = self.client.cache("fault");
        let (stop, truth) = (self.stop.clone(), self.truth.clone());
        self.tasks.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let written = truth.written.fetch_add(1, Ordering::SeqCst) + 1;
                if cache.invalidate_tags(["fault"]).await.is_ok() {
                    truth.invalidated.store(written, Ordering::SeqCst);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
}

impl Books {
    pub fn done(&self) -> usize {
        self.done.load(Ordering::SeqCst)
    }

    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }

    pub fn unknown(&self) -> usize {
        self.unknown.load(Ordering::SeqCst)
    }

    /// The longest time without a success since the fault came.
    pub fn gap(&self) -> Duration {
        self.gap.lock().expect("no panic").longest
    }

    /// Waits until calls fail, be it as refused or as unknown.
    pub async fn fail(&self) {
        let failed = || self.refused() + self.unknown();
        let from = failed();
        until("calls fail", async || failed() > from).await;
    }

    /// Counts a call as in flight.
    async fn call<T>(&self, call: impl Future<Output = T>) -> T {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let outcome = call.await;
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        outcome
    }

    fn success(&self) {
        self.done.fetch_add(1, Ordering::SeqCst);
        let mut gap = self.gap.lock().expect("no panic");
        let now = Instant::now();
        if let Some(last) = gap.last.replace(now) {
            gap.longest = gap.longest.max(now - last);
        }
    }

    /// Counts a failure. Whoever fails at once does not keep the machine from recovering.
    async fn failure(&self, error: &Error) {
        match error.is_indeterminate() {
            true => self.unknown.fetch_add(1, Ordering::SeqCst),
            false => self.refused.fetch_add(1, Ordering::SeqCst),
        };
        let since = self.done() - self.before.load(Ordering::SeqCst);
        self.meanwhile.store(since, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
