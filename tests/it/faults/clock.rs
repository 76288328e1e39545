//! The server's wall clock is stepped by an hour, forwards and backwards.
//!
//! A shim is preloaded into the server (`clock_shim.c`); it needs a C compiler called `cc`.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hedgerow::Client;

use super::{Loss, Traffic};
use crate::support::topology::{Node, Recipe};
use crate::support::wait::{bounded, queued, until};

/// A server whose clock can be stepped.
struct Stepped {
    node: Node,
    clock: File,
    _directory: tempfile::TempDir,
}

impl Stepped {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (library, clock) = (
            directory.path().join("shim.so"),
            directory.path().join("clock"),
        );
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/faults/clock_shim.c");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .status()
            .expect("a C compiler called cc is needed to step a server's clock");
        assert!(built.success(), "the shim is built");
        std::fs::write(&clock, 0i64.to_ne_bytes()).expect("written");
        let node = Recipe::new()
            .env("LD_PRELOAD", &library)
            .env("HEDGEROW_CLOCK", &clock)
            .start()
            .await;
        let clock = File::options().write(true).open(clock).expect("just made");
        Self {
            node,
            clock,
            _directory: directory,
        }
    }

    async fn client(&self) -> Client {
        let client = Client::builder().url(&self.node.url()).open();
        client.expect("a good URL")
    }

    /// Sets the clock to `seconds` beside the true time.
    async fn step(&self, seconds: i64) {
        let before = self.now().await;
        let written = self.clock.write_at(&seconds.to_ne_bytes(), 0);
        assert_eq!(written.expect("written"), 8);
        // Valkey 9.1 looks at it once a millisecond.
        until("it is stepped", async || {
            before.abs_diff(self.now().await) > HOUR.as_secs() / 2
        })
        .await;
    }

    async fn now(&self) -> u64 {
        let (seconds, _): (u64, u64) = self.node.run(&["TIME"]).await;
        seconds
    }
}

#[tokio::test]
async fn fault_28_the_clock_is_stepped_an_hour_forwards_and_back() {
    let server = Stepped::start().await;
    let mut traffic = Traffic::start(&server.client().await, 12, Loss::None);
    traffic.flows(100).await;
    let (one, two) = (server.client().await, server.client().await);
    let lock = |client: &Client| client.lock("held").wait(Duration::from_secs(60));
    let first = lock(&one).acquire().await.expect("free");

    traffic.strike().await;
    server.step(3600).await;
    // The lease has ended before its time, and its holder is told when it asks.
    let second = bounded("it is granted", lock(&two).acquire()).await;
    let second = second.expect("granted");
    assert!(second.fence() > first.fence());
    bounded("the holder is told", first.lost()).await;
    traffic.flows(100).await;
    traffic
        .settle(
            28,
            "the clock is an hour ahead",
            "one server, clock shim",
            "leases end, fences rise",
        )
        .await;

    let mut traffic = Traffic::start(&server.client().await, 12, Loss::None);
    traffic.flows(100).await;
    traffic.strike().await;
    server.step(0).await;
    traffic.flows(100).await;
    let fence = second.fence();
    second
        .release()
        .await
        .expect("it has lasted longer, not shorter");
    let third = bounded("it is granted", lock(&one).acquire()).await;
    assert!(third.expect("granted").fence() > fence);
    traffic
        .settle(
            28,
            "the clock goes back an hour",
            "one server, clock shim",
            "leases last, fences rise",
        )
        .await;
}

/// A fence has as many digits as any, whatever the clock says.
#[tokio::test]
async fn locks_work_on_a_server_whose_clock_says_1990() {
    let server = Stepped::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let now = i64::try_from(server.now().await).expect("a time");
    server.step(631_152_000 - now).await;
    let lock = |client: &Client| {
        let lock = client.lock("a").lease(Duration::from_millis(600));
        lock.wait(Duration::from_secs(60))
    };
    let first = lock(&one).acquire().await.expect("free");
    until("it is renewed twice", async || {
        let renewals = server.node.info("commandstats", "cmdstat_pexpire").await;
        !["", "calls=1"].contains(&renewals.split(',').next().unwrap_or_default())
    })
    .await;
    assert!(first.is_held());
    let fence = first.fence();
    let waiting = tokio::spawn({
        let lock = lock(&two);
        async move { lock.acquire().await }
    });
    queued(&lock(&one), 1).await;
    first.release().await.expect("held until now");
    let second = bounded("it is granted", waiting).await;
    let second = second.expect("no panic").expect("granted");
    assert!(second.fence() > fence);
    second.release().await.expect("held until now");
    let third = lock(&one).try_acquire().await.expect("an answer");
    assert!(third.expect("it is free").fence() > fence);
}

const HOUR: Duration = Duration::from_secs(3600);
