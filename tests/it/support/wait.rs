//! What the server tells of itself, and waiting for conditions. Never for a time to pass: the
//! pauses here only keep the machine free for those who bring the condition about.

use std::time::Duration;

use hedgerow::{ClientBuilder, Lock};

use crate::support::server::Server;

/// Waits until `condition` holds. What does not come true in a minute never will.
pub async fn until<C: Future<Output = bool>>(what: &str, condition: impl FnMut() -> C) {
    until_so(|| what.to_owned(), condition).await;
}

/// Does the same, and describes at the end what was waited for and what was there instead.
pub async fn until_so<C: Future<Output = bool>>(
    what: impl Fn() -> String,
    mut condition: impl FnMut() -> C,
) {
    let reached = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let reached = tokio::time::timeout(A_MINUTE, reached).await;
    reached.unwrap_or_else(|_| panic!("waited a minute for this: {}", what()));
}

/// Waits for `future`, which would hang for ever in a crate that is broken.
pub async fn bounded<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(A_MINUTE, future)
        .await
        .unwrap_or_else(|_| panic!("waited a minute for this: {what}"))
}

const A_MINUTE: Duration = Duration::from_secs(60);

/// For clients of which nobody asks how soon they give up: machines under test are slow at times.
pub fn patient(builder: ClientBuilder) -> ClientBuilder {
    let patience = Duration::from_secs(20);
    builder.deadline(patience).cache_deadline(patience)
}

/// Waits until `processes` stand in the queue of `lock`.
pub async fn queued(lock: &Lock, processes: usize) {
    until("the queue is as long as expected", || async {
        lock.inspect().await.expect("an answer").queue.len() == processes
    })
    .await;
}

/// Waits until somebody who holds or awaits the lock `name` is told by push.
pub async fn listened(server: &Server, listeners: usize) {
    until("the wake channels are subscribed", || async {
        let channels: Vec<String> = server
            .run(&["PUBSUB", "SHARDCHANNELS", "hr:*:wake:*"])
            .await;
        channels.len() >= listeners
    })
    .await;
}

/// Counts renewals of the lease at `key` until there were `renewals`: each shows as a TTL that
/// jumps up.
pub async fn renewed(server: &Server, key: &str, renewals: usize) {
    let mut last = i64::MAX;
    let mut seen = 0;
    bounded("the lease is renewed", async {
        while seen < renewals {
            let left: i64 = server.run(&["PTTL", key]).await;
            assert!(left >= 0, "the lease is gone after {seen} renewals");
            seen += usize::from(left > last);
            last = left;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// Waits until `processes` wait for the load that the lease at `key` stands for.
pub async fn waiting(server: &Server, key: &str, processes: usize) {
    until("processes wait for the load", || async {
        let fields: Vec<String> = server.run(&["HKEYS", key]).await;
        fields
            .iter()
            .filter(|field| field.starts_with("w:"))
            .count()
            >= processes
    })
    .await;
}

/// How often the server has run these commands, by whomever and also in scripts; all servers
/// together.
pub async fn calls(server: &Server, commands: &[&str]) -> usize {
    let info: String = server.run(&["INFO", "commandstats"]).await;
    let calls = info.lines().filter_map(|line| {
        let (command, figures) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        let count = figures.split(',').next()?.parse::<usize>();
        commands
            .contains(&command)
            .then(|| count.expect("a number"))
    });
    calls.sum()
}

/// The number that follows `name` in a section of the server's `INFO`; of all servers together.
pub async fn figure(server: &Server, section: &str, name: &str) -> usize {
    let info: String = server.run(&["INFO", section]).await;
    let lines = info.lines().filter_map(|line| line.strip_prefix(name));
    let numbers = lines.map(|line| {
        let digits = line.split(',').next();
        let number = digits.and_then(|digits| digits.trim().parse::<usize>().ok());
        number.expect("a number")
    });
    let numbers: Vec<usize> = numbers.collect();
    assert!(!numbers.is_empty(), "the server counts {name}");
    numbers.iter().sum()
}
