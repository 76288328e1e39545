//! Eight runtimes of both kinds share one client. Some are stopped, blocked or dropped at random; no call
//! of the others is late or wrong.
//!
//! A primitive joins by a line in `loads`: a call that is made again and again, and judges what it
//! gets. The counters are added up at the end.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hedgerow::{Client, Error, ErrorKind};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

use crate::server::Server;

/// One call of a primitive; `host` is where it is made, `number` rises from call to call.
type Call =
    Arc<dyn Fn(Client, Arc<Host>, i64) -> BoxFuture<'static, Result<(), Error>> + Send + Sync>;

/// What is called on every runtime.
fn loads() -> Vec<Call> {
    vec![Arc::new(adds), Arc::new(stores)]
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
            let mut faults = host.faults.lock().expect("no panic");
            faults.push(format!("{key} is {found:?}"));
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
    let hosts: Vec<_> = (0..HOSTS).map(|place| Arc::new(Host::new(place))).collect();
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
        for _ in 0..3 {
            let (orders, _) = &running[rand::random_range(0..HOSTS)];
            let span = Duration::from_millis(rand::random_range(300..2500));
            let trouble = match rand::random_range(0..3) {
                0 => Trouble::Stopped(span),
                1 => Trouble::Blocked(span),
                _ => Trouble::Dropped,
            };
            // One that is in trouble already has enough.
            let _ = orders.try_send(trouble);
        }
        thread::sleep(Duration::from_millis(900));
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
            assert!(
                host.judged.load(Ordering::SeqCst) > 0,
                "{} was well at times",
                host.name
            );
        }
        drop((client, server));
    });
}

impl Host {
    fn new(place: usize) -> Self {
        Self {
            name: format!("host {place}"),
            threads: [0, 2][place % 2],
            troubles: AtomicU64::new(0),
            begun: AtomicI64::new(0),
            added: AtomicI64::new(0),
            judged: AtomicU64::new(0),
            faults: Mutex::default(),
        }
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
                .map(|call| runtime.spawn(self.clone().calls(client.clone(), call, over.clone())))
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
    async fn calls(self: Arc<Self>, client: Client, call: Call, over: Arc<AtomicBool>) {
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
                if took >= DEADLINE || !is_fine {
                    let mut faults = self.faults.lock().expect("no panic");
                    faults.push(format!("after {took:?}: {outcome:?}"));
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

const HOSTS: usize = 8;
const ROUNDS: usize = 12;

/// Of a call, and how long it may take at most while others are in trouble.
const DEADLINE: Duration = Duration::from_secs(5);
