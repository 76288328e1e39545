//! Eight runtimes of both kinds share one client. Some are stopped, blocked or dropped at random;
//! no call of the others is late or wrong.
//!
//! A primitive joins by a line in `loads`: a call that is made again and again, and judges what it
//! gets, and how long it may take at most by what the crate promises. The counters are added up at
//! the end.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hedgerow::{Client, Error, ErrorKind};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

use crate::support::server::Server;

/// One call of a primitive; `host` is where it is made, `number` rises from call to call.
type Call =
    Arc<dyn Fn(Client, Arc<Host>, i64) -> BoxFuture<'static, Result<(), Error>> + Send + Sync>;

/// What is called on every runtime, and how long each may take.
fn loads() -> Vec<(Call, Duration)> {
    vec![
        (Arc::new(adds), DEADLINE),
        (Arc::new(stores), 2 * DEADLINE),
        (Arc::new(locks), WAIT + 2 * DEADLINE),
        (Arc::new(locks), WAIT + 2 * DEADLINE),
        (Arc::new(keeps), HOLD + 2 * DEADLINE),
        (Arc::new(loads_by_tag), MAX_LOAD + DEADLINE),
        (Arc::new(invalidates), 2 * DEADLINE),
    ]
}

/// What all runtimes share.
#[derive(Debug, Default)]
struct Books {
    /// The greatest fence of the lock that all of them want, and who is inside.
    fence: AtomicU64,
    inside: AtomicU64,
    grants: AtomicU64,
    /// What loaders load, and the greatest of it that nothing older may be read than.
    truth: AtomicU64,
    settled: AtomicU64,
}

/// Visits a room that one may be in at a time.
fn locks(client: Client, host: Arc<Host>, _: i64) -> BoxFuture<'static, Result<(), Error>> {
    async move {
        let lock = client.lock("room").lease(LEASE).max_hold(HOLD).wait(WAIT);
        let guard = match lock.acquire().await {
            Err(error) if was_not_free(&error) => return Ok(()),
            outcome => outcome?,
        };
        let (books, fence) = (&host.books, guard.fence().get());
        let before = books.fence.fetch_max(fence, Ordering::SeqCst);
        books.inside.store(fence, Ordering::SeqCst);
        let came_in = guard.is_held();
        tokio::time::sleep(Duration::from_millis(2)).await;
        let inside = books.inside.load(Ordering::SeqCst);
        // Whoever can prove so at the end was alone.
        if came_in && guard.is_held() && (inside != fence || before >= fence) {
            host.found(format!("{fence} came in after {before}, and met {inside}"));
        }
        books.grants.fetch_add(1, Ordering::SeqCst);
        match guard.release().await {
            // Its runtime stood still.
            Err(error) if error.kind() == ErrorKind::Lost => Ok(()),
            outcome => outcome,
        }
    }
    .boxed()
}

/// Whether a wait for a lock is over, and has had no effect. If the connection has stood still with
/// its runtime at the end of the wait, it is not known who holds the lock.
fn was_not_free(error: &Error) -> bool {
    let is_unknown = error.kind() == ErrorKind::Timeout && error.is_retryable();
    error.kind() == ErrorKind::Contended || is_unknown
}

/// Holds a lock of its own until it must have been renewed.
fn keeps(client: Client, host: Arc<Host>, number: i64) -> BoxFuture<'static, Result<(), Error>> {
    async move {
        let name = format!("{} {}", host.name, number % 3);
        let guard = client.lock(&name).lease(LEASE).wait(HOLD).acquire().await;
        let guard = match guard {
            // It was left to its lease by a call whose runtime has ended.
            Err(error) if was_not_free(&error) => return Ok(()),
            outcome => outcome?,
        };
        tokio::time::sleep(HOLD).await;
        guard.release().await
    }
    .boxed()
}

/// Reads what is loaded once for all, and never what was invalidated before.
fn loads_by_tag(
    client: Client,
    host: Arc<Host>,
    number: i64,
) -> BoxFuture<'static, Result<(), Error>> {
    async move {
        let settled = host.books.settled.load(Ordering::SeqCst);
        let books = host.books.clone();
        let load = move || async move {
            let truth = books.truth.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok::<_, Infallible>(truth)
        };
        let cache = client.cache("runtimes").max_load(MAX_LOAD);
        let key = format!("loaded {}", number % 4);
        let found = cache.memoize(&key, Duration::from_secs(600), load);
        let found = found.tags(["tag"]).await?;
        if *found < settled {
            host.found(format!("{key} is {found}, and {settled} was invalidated"));
        }
        Ok(())
    }
    .boxed()
}

fn invalidates(client: Client, host: Arc<Host>, _: i64) -> BoxFuture<'static, Result<(), Error>> {
    async move {
        let truth = host.books.truth.fetch_add(1, Ordering::SeqCst) + 1;
        client.cache("runtimes").invalidate_tags(["tag"]).await?;
        host.books.settled.fetch_max(truth, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok(())
    }
    .boxed()
}

/// Adds to the counter of the host, and keeps the books.
fn adds(client: Client, host: Arc<Host>, _: i64) -> BoxFuture<'static, Result<(), Error>> {
    async move {
        host.begun.fetch_add(1, Ordering::SeqCst);
        let added = client.counter(&host.name).add(1).await;
        match &added {
            Ok(_) => host.added.fetch_add(1, Ordering::SeqCst),
            Err(error) if error.is_indeterminate() => 0,
            // It was not applied, for certain.
            Err(_) => host.begun.fetch_sub(1, Ordering::SeqCst),
        };
        added.map(drop)
    }
    .boxed()
}

/// Stores a value that nobody else stores, and reads it back.
fn stores(client: Client, host: Arc<Host>, number: i64) -> BoxFuture<'static, Result<(), Error>> {
    async move {
        let cache = client.cache("runtimes");
        let key = format!("{} {number}", host.name);
        cache.set(&key, &number, Duration::from_secs(600)).await?;
        let found = cache.get::<i64>(&key).await?;
        if found.as_deref() != Some(&number) {
            host.found(format!("{key} is {found:?}"));
        }
        Ok(())
    }
    .boxed()
}

/// What happens to a runtime for a while.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// Nobody drives it. (The workers of one with several threads go on.)
    Stopped(Duration),
    /// All of its threads are blocked.
    Blocked(Duration),
    /// It ends, with all that lives on it, and another takes its place.
    Dropped,
}

/// One of the runtimes, and what its calls came to.
#[derive(Debug)]
struct Host {
    name: String,
    threads: usize,
    /// Odd while it is in trouble.
    troubles: AtomicU64,
    begun: AtomicI64,
    added: AtomicI64,
    judged: AtomicU64,
    books: Arc<Books>,
    /// What was late or wrong.
    faults: Mutex<Vec<String>>,
}

#[test]
fn whatever_happens_to_some_runtimes_no_call_of_the_others_is_late_or_wrong() {
    let here = Runtime::new().expect("a runtime");
    let server = here.block_on(Server::start_single());
    let builder = server.builder().deadline(DEADLINE).cache_deadline(DEADLINE);
    let client = builder.open().expect("a good URL");
    let over = Arc::new(AtomicBool::new(false));
    let books = Arc::<Books>::default();
    let hosts = (0..HOSTS).map(|place| Arc::new(Host::new(place, books.clone())));
    let hosts: Vec<_> = hosts.collect();
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let running: Vec<_> = hosts
        .iter()
        .map(|host| {
            let (orders, troubles) = mpsc::channel(1);
            let (host, client, over) = (host.clone(), client.clone(), over.clone());
            let thread = thread::spawn(move || host.run(&client, troubles, &over));
            (orders, thread)
        })
        .collect();
    for _ in 0..ROUNDS {
        // So many that what others depend on is mostly on one of them.
        for place in rand::seq::index::sample(&mut random, HOSTS, TROUBLED) {
            let (orders, _) = &running[place];
            // Some last longer than a call may take.
            let span = Duration::from_millis(random.random_range(300..8000));
            let trouble = match random.random_range(0..3) {
                0 => Trouble::Stopped(span),
                1 => Trouble::Blocked(span),
                _ => Trouble::Dropped,
            };
            // One that is in trouble already has enough.
            let _ = orders.try_send(trouble);
        }
        thread::sleep(Duration::from_millis(2500));
    }
    over.store(true, Ordering::SeqCst);
    for (orders, thread) in running {
        drop(orders);
        thread.join().expect("no panic");
    }
    here.block_on(async {
        for host in &hosts {
            let faults = std::mem::take(&mut *host.faults.lock().expect("no panic"));
            assert!(faults.is_empty(), "{}: {faults:#?}", host.name);
            let value = client.counter(&host.name).get().await.expect("read");
            let (added, begun) = (
                host.added.load(Ordering::SeqCst),
                host.begun.load(Ordering::SeqCst),
            );
            assert!(
                (added..=begun).contains(&value),
                "{}: {added} {value} {begun}",
                host.name
            );
        }
        let judged = hosts.iter().map(|host| host.judged.load(Ordering::SeqCst));
        let judged: u64 = judged.sum();
        assert!(judged > 100, "{judged} calls of hosts that were well");
        let grants = books.grants.load(Ordering::SeqCst);
        assert!(grants > 100, "{grants} of the lock that all want");
        drop((client, server));
    });
}

impl Host {
    fn new(place: usize, books: Arc<Books>) -> Self {
        Self {
            name: format!("host {place}"),
            threads: [0, 2][place % 2],
            troubles: AtomicU64::new(0),
            begun: AtomicI64::new(0),
            added: AtomicI64::new(0),
            judged: AtomicU64::new(0),
            books,
            faults: Mutex::default(),
        }
    }

    fn found(&self, fault: String) {
        self.faults.lock().expect("no panic").push(fault);
    }

    /// Runs callers on one runtime after the other, until it is over.
    fn run(
        self: Arc<Self>,
        client: &Client,
        mut troubles: mpsc::Receiver<Trouble>,
        over: &Arc<AtomicBool>,
    ) {
        loop {
            let runtime = self.runtime();
            let callers: Vec<_> = loads()
                .into_iter()
                .map(|load| runtime.spawn(self.clone().calls(client.clone(), load, over.clone())))
                .collect();
            let dropped = loop {
                match runtime.block_on(troubles.recv()) {
                    None => break false,
                    Some(Trouble::Dropped) => break true,
                    Some(Trouble::Stopped(span)) => self.in_trouble(|| thread::sleep(span)),
                    Some(Trouble::Blocked(span)) => self.in_trouble(|| {
                        let threads = (0..self.threads.max(1))
                            .map(|_| runtime.spawn(async move { thread::sleep(span) }));
                        let threads = futures::future::join_all(threads.collect::<Vec<_>>());
                        runtime.block_on(threads);
                    }),
                }
            };
            if dropped {
                self.in_trouble(|| runtime.shutdown_background());
                continue;
            }
            for caller in callers {
                runtime.block_on(caller).expect("no panic");
            }
            return;
        }
    }

    fn runtime(&self) -> Runtime {
        let mut builder = match self.threads {
            0 => Builder::new_current_thread(),
            threads => {
                let mut builder = Builder::new_multi_thread();
                builder.worker_threads(threads);
                builder
            }
        };
        builder.enable_all().build().expect("a runtime")
    }

    fn in_trouble(&self, trouble: impl FnOnce()) {
        self.troubles.fetch_add(1, Ordering::SeqCst);
        trouble();
        self.troubles.fetch_add(1, Ordering::SeqCst);
    }

    /// Calls again and again, and judges each call that was made while this runtime was well.
    async fn calls(
        self: Arc<Self>,
        client: Client,
        (call, longest): (Call, Duration),
        over: Arc<AtomicBool>,
    ) {
        for number in 0.. {
            if over.load(Ordering::SeqCst) {
                return;
            }
            let (before, began) = (self.troubles.load(Ordering::SeqCst), Instant::now());
            let outcome = call(client.clone(), self.clone(), number).await;
            let took = began.elapsed();
            let was_well = before % 2 == 0 && self.troubles.load(Ordering::SeqCst) == before;
            if was_well {
                self.judged.fetch_add(1, Ordering::SeqCst);
                // One that was with a runtime that has stopped is told so, and soon.
                let is_told = |error: &Error| {
                    error.kind() == ErrorKind::Disconnected && error.is_indeterminate()
                };
                let is_fine = outcome.as_ref().err().is_none_or(is_told);
                if took >= longest || !is_fine {
                    self.found(format!("after {took:?} of {longest:?}: {outcome:?}"));
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

const HOSTS: usize = 8;
/// How many are in trouble at once, about.
const TROUBLED: usize = 5;
const ROUNDS: usize = 6;

/// Of a call, and how long it may take at most while others are in trouble.
const DEADLINE: Duration = Duration::from_secs(5);

/// Of a lock, how long it is held at most, and waited for.
const LEASE: Duration = Duration::from_secs(2);
const HOLD: Duration = Duration::from_secs(3);
const WAIT: Duration = Duration::from_secs(4);

/// Of a load.
const MAX_LOAD: Duration = Duration::from_secs(2);
