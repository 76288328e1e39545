//! Short leases and servers that are out for most of one: a guard is lost only if its server could
//! not be asked within its lease.

use std::time::{Duration, Instant};

use futures::future::join_all;
use hedgerow::{Client, Guard};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::proxy::{Act, Proxy, Request};
use crate::server::Server;
use crate::wait::{figure, until};

/// How many locks are held through each outage.
const LOCKS: usize = 20;

/// The leases that outages are survived with.
const LEASES: [Duration; 3] = [
    Duration::from_millis(1000),
    Duration::from_millis(2000),
    Duration::from_millis(4000),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_outlive_a_server_that_refuses_connections_for_most_of_their_lease() {
    for lease in LEASES {
        let server = Server::start_single().await;
        let proxy = Proxy::before(&server);
        let guards = held(&Client::open(proxy.url()).expect("a good URL"), lease).await;
        just_renewed(&guards, lease).await;
        let socket = proxy.url().trim_start_matches("unix://").to_owned();
        drop(proxy);
        std::fs::remove_file(&socket).expect("it was there");
        most_of_it_is_over(&guards, lease).await;
        let _proxy = Proxy::before(&server);
        survived(&guards, lease).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_outlive_a_server_that_says_nothing_for_most_of_their_lease() {
    for lease in LEASES {
        let server = Server::start_single().await;
        let proxy = Proxy::before(&server);
        let guards = held(&Client::open(proxy.url()).expect("a good URL"), lease).await;
        just_renewed(&guards, lease).await;
        // Connections are accepted and asked on, and none ever answers.
        let silence = proxy.on_reply(Request::every(), Act::Vanish);
        most_of_it_is_over(&guards, lease).await;
        assert!(silence.hits() > 0, "it was asked");
        proxy.clear();
        survived(&guards, lease).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_outlive_round_trips_of_two_fifths_of_their_lease() {
    for lease in [Duration::from_millis(1500), Duration::from_millis(3000)] {
        let server = Server::start_single().await;
        let way = Way::to(&server);
        let client = Client::open(&way.url).expect("a good URL");
        let guards = held(&client, lease).await;
        // The server knows the scripts from here on: what is uploaded takes another round trip.
        just_renewed(&guards, lease).await;
        until("a lease was renewed", async || {
            let stats: String = server.run(&["INFO", "commandstats"]).await;
            stats.contains("cmdstat_pexpire:")
        })
        .await;
        way.takes(lease.mul_f64(0.4));
        for _ in 0..4 {
            survived(&guards, lease).await;
            let before = figure(&server, "commandstats", "cmdstat_pexpire:calls=").await;
            until("each lease is renewed a few times more", async || {
                let now = figure(&server, "commandstats", "cmdstat_pexpire:calls=").await;
                now >= before + 3 * LOCKS || guards.iter().any(|guard| guard.loss().is_some())
            })
            .await;
        }
        survived(&guards, lease).await;
    }
}

async fn held(client: &Client, lease: Duration) -> Vec<Guard> {
    let guards = (0..LOCKS).map(|number| {
        let lock = client.lock(&format!("l{number}")).lease(lease);
        async move { lock.acquire().await.expect("free") }
    });
    join_all(guards).await
}

/// Waits until all of them were renewed a moment ago: the outage counts from there.
async fn just_renewed(guards: &[Guard], lease: Duration) {
    until("all leases are fresh", async || {
        guards
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

/// Waits until all of them were renewed again, or one is lost.
async fn survived(guards: &[Guard], lease: Duration) {
    let begun = Instant::now();
    until("all leases were renewed, or lost", async || {
        let lost = guards.iter().any(|guard| guard.loss().is_some());
        lost || guards
            .iter()
            .all(|guard| guard.remaining() > lease.mul_f64(0.5))
    })
    .await;
    let lost = guards.iter().filter(|guard| guard.loss().is_some());
    assert_eq!(
        lost.count(),
        0,
        "lost of {LOCKS}, lease {lease:?}, {:?}",
        begun.elapsed()
    );
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
