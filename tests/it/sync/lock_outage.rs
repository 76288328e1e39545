//! Short leases and servers that are out for most of one: a guard is lost only if its server could
//! not be asked within its lease.

use std::time::{Duration, Instant};

use futures::future::join_all;
use hedgerow::{Client, Guard};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::{Server, connection};
use crate::support::wait::{bounded, until};

/// How many locks are held through each outage.
const LOCKS: usize = 20;

/// The leases that outages are survived with.
const LEASES: [Duration; 6] = [
    Duration::from_millis(300),
    Duration::from_millis(500),
    Duration::from_millis(1000),
    Duration::from_millis(2000),
    Duration::from_millis(4000),
    Duration::from_millis(8000),
];

// One thread has the client, the way to the server and the clock that tells whether the machine was
// punctual: what holds up one of them holds up all.

#[tokio::test]
async fn locks_outlive_a_server_that_refuses_connections_for_most_of_their_lease() {
    join_all(LEASES.map(|lease| {
        until_it_counts(lease, async move |server, punctual| {
            let proxy = Proxy::before(server);
            let guards = held(&Client::open(proxy.url()).expect("a good URL"), lease).await;
            just_renewed(&guards, lease).await;
            let socket = proxy.url().trim_start_matches("unix://").to_owned();
            drop(proxy);
            std::fs::remove_file(&socket).expect("it was there");
            most_of_it_is_over(&guards, lease).await;
            let _proxy = Proxy::before(server);
            punctual.survived(&guards, lease).await
        })
    }))
    .await;
}

#[tokio::test]
async fn locks_outlive_a_server_that_says_nothing_for_most_of_their_lease() {
    join_all(LEASES.map(|lease| {
        until_it_counts(lease, async move |server, punctual| {
            let proxy = Proxy::before(server);
            let guards = held(&Client::open(proxy.url()).expect("a good URL"), lease).await;
            just_renewed(&guards, lease).await;
            // Connections are accepted and asked on, and none ever answers.
            let silence = proxy.on_reply(Request::every(), Act::Vanish);
            most_of_it_is_over(&guards, lease).await;
            let is_asked = silence.hits() > 0;
            assert!(is_asked || punctual.was_late(lease), "it was asked");
            proxy.clear();
            punctual.survived(&guards, lease).await
        })
    }))
    .await;
}

#[tokio::test]
async fn locks_outlive_a_server_that_is_slower_than_their_lease_for_most_of_it() {
    join_all(LEASES.map(|lease| {
        until_it_counts(lease, async move |server, punctual| {
            let way = Way::to(server);
            let guards = held(&Client::open(&way.url).expect("a good URL"), lease).await;
            just_renewed(&guards, lease).await;
            way.takes(lease * 2);
            most_of_it_is_over(&guards, lease).await;
            // What is under way comes no sooner for that.
            way.takes(Duration::ZERO);
            punctual.survived(&guards, lease).await
        })
    }))
    .await;
}

#[tokio::test]
async fn locks_outlive_round_trips_of_two_fifths_of_their_lease() {
    join_all([500, 1500, 3000].map(Duration::from_millis).map(|lease| {
        until_it_counts(lease, async move |server, punctual| {
            let way = Way::to(server);
            let guards = held(&Client::open(&way.url).expect("a good URL"), lease).await;
            just_renewed(&guards, lease).await;
            way.takes(lease.mul_f64(0.4));
            renewed_a_few_times(server, &guards).await;
            punctual.survived(&guards, lease).await
        })
    }))
    .await;
}

#[tokio::test]
async fn locks_are_taken_and_kept_over_a_way_that_takes_two_fifths_of_their_lease() {
    join_all([500, 1000, 1500].map(Duration::from_millis).map(|lease| {
        until_it_counts(lease, async move |server, punctual| {
            let way = Way::to(server);
            way.takes(lease.mul_f64(0.4));
            // All at once, and neither a connection nor a script is there yet.
            let guards = held(&Client::open(&way.url).expect("a good URL"), lease).await;
            renewed_a_few_times(server, &guards).await;
            punctual.survived(&guards, lease).await
        })
    }))
    .await;
}

/// Makes `trial` until the machine was punctual in one: a lease that is lost while this process, or
/// the server, stood still says nothing.
async fn until_it_counts(lease: Duration, trial: impl AsyncFn(&Server, &Punctual) -> Option<()>) {
    bounded("a trial on a punctual machine", async {
        loop {
            let server = Server::start_single().await;
            let punctual = Punctual::watched(&server, lease).await;
            if trial(&server, &punctual).await.is_some() {
                return;
            }
        }
    })
    .await;
}

/// How punctual the machine is: how late a timer of this thread, and an answer of the server to a
/// connection of its own, come at worst.
struct Punctual {
    worst: watch::Receiver<Duration>,
    watching: JoinHandle<()>,
}

impl Punctual {
    async fn watched(server: &Server, lease: Duration) -> Self {
        let (worst, seen) = watch::channel(Duration::ZERO);
        let mut connection = connection(server.url()).await;
        let pause = (lease / 100).min(Duration::from_millis(5));
        let watching = tokio::spawn(async move {
            loop {
                let begun = Instant::now();
                tokio::time::sleep(pause).await;
                let answer = redis::cmd("PING").exec_async(&mut connection).await;
                answer.expect("the server is there");
                let late = begun.elapsed().saturating_sub(pause);
                worst.send_if_modified(|worst| {
                    let worse = late > *worst;
                    *worst = late.max(*worst);
                    worse
                });
            }
        });
        Self {
            worst: seen,
            watching,
        }
    }

    /// Whether something came so late that a lease may be lost for that: the way back takes several
    /// round trips.
    fn was_late(&self, lease: Duration) -> bool {
        *self.worst.borrow() > lease / 50
    }

    /// Waits until all of them were renewed again, or one is lost: then the machine was not
    /// punctual, and the trial does not count.
    async fn survived(&self, guards: &[Guard], lease: Duration) -> Option<()> {
        until("all leases were renewed, or lost", async || {
            one_is_lost(guards)
                || guards
                    .iter()
                    .all(|guard| guard.remaining() > lease.mul_f64(0.5))
        })
        .await;
        let lost = guards.iter().filter(|guard| guard.loss().is_some()).count();
        let worst = *self.worst.borrow();
        assert!(
            lost == 0 || self.was_late(lease),
            "lost {lost} of {LOCKS}, lease {lease:?}, the machine was at most {worst:?} late"
        );
        (lost == 0).then_some(())
    }
}

impl Drop for Punctual {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

/// Waits until each lease was renewed a few times more, or one is lost.
async fn renewed_a_few_times(server: &Server, guards: &[Guard]) {
    let renewals = async || {
        let stats: String = server.run(&["INFO", "commandstats"]).await;
        let mut lines = stats.lines();
        let line = lines.find_map(|line| line.strip_prefix("cmdstat_pexpire:calls="));
        let calls = line.and_then(|rest| rest.split(',').next()?.parse::<usize>().ok());
        calls.unwrap_or(0)
    };
    let before = renewals().await;
    until("each lease is renewed a few times more", async || {
        one_is_lost(guards) || renewals().await >= before + 12 * LOCKS
    })
    .await;
}

async fn held(client: &Client, lease: Duration) -> Vec<Guard> {
    let guards = (0..LOCKS).map(|number| {
        let lock = client.lock(&format!("l{number}")).lease(lease);
        async move { lock.acquire().await.expect("free") }
    });
    join_all(guards).await
}

fn one_is_lost(guards: &[Guard]) -> bool {
    guards.iter().any(|guard| guard.loss().is_some())
}

/// Waits until all of them were renewed a moment ago: the outage counts from there.
async fn just_renewed(guards: &[Guard], lease: Duration) {
    until("all leases are fresh", async || {
        one_is_lost(guards)
            || guards
                .iter()
                .all(|guard| guard.remaining() > lease.mul_f64(0.9))
    })
    .await;
}

/// Waits until 80 % of each lease has passed without a renewal.
async fn most_of_it_is_over(guards: &[Guard], lease: Duration) {
    until("most of the lease is over", async || {
        guards
            .iter()
            .any(|guard| guard.remaining() < lease.mul_f64(0.2))
    })
    .await;
}

/// A way to a server that may become long.
struct Way {
    url: String,
    /// How long everything takes in one direction.
    late: watch::Sender<Duration>,
    accepting: JoinHandle<()>,
}

impl Way {
    fn to(server: &Server) -> Self {
        let (way, late_by) = watch::channel(Duration::ZERO);
        let upstream = server.url().trim_start_matches("unix://").to_owned();
        let socket = format!("{upstream}.far");
        let listener = UnixListener::bind(&socket).expect("the server's directory");
        let accepting = tokio::spawn(async move {
            let mut carriers = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let server = UnixStream::connect(&upstream).await.expect("it is there");
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                carriers.spawn(late(from_client, to_server, late_by.clone()));
                carriers.spawn(late(from_server, to_client, late_by.clone()));
            }
        });
        Self {
            url: format!("unix://{socket}"),
            late: way,
            accepting,
        }
    }

    /// From here on a round trip takes so long.
    fn takes(&self, round_trip: Duration) {
        self.late.send_replace(round_trip / 2);
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Carries bytes, each as much later as any other.
async fn late(
    mut from: tokio::net::unix::OwnedReadHalf,
    mut to: tokio::net::unix::OwnedWriteHalf,
    by: watch::Receiver<Duration>,
) {
    let (sender, mut under_way) = mpsc::unbounded_channel::<(tokio::time::Instant, Vec<u8>)>();
    let reader = async move {
        let mut buffer = vec![0; 65536];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let at = tokio::time::Instant::now() + *by.borrow();
            let _ = sender.send((at, buffer[..count].to_vec()));
        }
    };
    let writer = async move {
        while let Some((at, bytes)) = under_way.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reader, writer);
}
