//! Memoize over real processes: one load for all of them, and one more when the loader dies.

use tokio::task::JoinSet;

use crate::faults::Row;
use crate::support::process::Child;
use crate::support::server::Server;

const PROCESSES: usize = 50;

/// Processes that are connected and ready to ask.
async fn crowd(server: &Server, takeover: &str, load: &str) -> Vec<Child> {
    let mut crowd: Vec<Child> = (0..PROCESSES)
        .map(|_| Child::start("memoize", &[server.url(), takeover, load]))
        .collect();
    for child in &mut crowd {
        assert_eq!(child.says().await, "ready");
    }
    crowd
}

/// Waits until the child has its page; it may load on the way.
async fn page(mut child: Child) -> String {
    loop {
        let said = child.says().await;
        if let Some(page) = said.strip_prefix("got ") {
            return page.to_owned();
        }
        assert_eq!(said, "loading");
    }
}

#[tokio::test]
async fn fifty_processes_ask_for_one_cold_key_and_it_is_loaded_once() {
    let server = Server::start_single().await;
    let mut crowd = crowd(&server, "10000", "300").await;
    for child in &mut crowd {
        child.tell("home").await;
    }
    let mut pages = JoinSet::new();
    for child in crowd {
        pages.spawn(page(child));
    }
    let pages = pages.join_all().await;
    assert_eq!(pages.len(), PROCESSES);
    assert!(
        pages.iter().all(|page| page == "page of load 1"),
        "{pages:?}"
    );
    assert_eq!(server.run::<u64>(&["GET", "loads"]).await, 1);
}

#[tokio::test]
async fn a_loading_process_that_stood_still_stores_nothing_when_it_goes_on() {
    let server = Server::start_single().await;
    let mut first = Child::start("memoize", &[server.url(), "1000", "1500"]);
    let mut second = Child::start("memoize", &[server.url(), "1000", "1"]);
    for child in [&mut first, &mut second] {
        assert_eq!(child.says().await, "ready");
    }
    first.tell("home").await;
    assert_eq!(first.says().await, "loading");
    first.signal("STOP");
    // Its lease is taken over, and its successor has stored what it loaded.
    assert_eq!(second.ask("home").await, "loading");
    assert_eq!(second.says().await, "got page of load 2");
    let stored = server.digest().await;

    first.signal("CONT");
    assert_eq!(page(first).await, "page of load 1", "its own load");
    assert_eq!(server.digest().await, stored);
    assert_eq!(second.ask("home").await, "got page of load 2");
    Row::shown(
        9,
        "a loader stands still",
        "load",
        "its late store is refused",
        1,
        1,
    );
}

#[tokio::test]
async fn a_loading_process_that_is_killed_costs_exactly_one_more_load() {
    let server = Server::start_single().await;
    let mut crowd = crowd(&server, "2000", "300").await;
    crowd.pop();
    // Loads until it is killed, so that the others have the time to come and wait.
    let mut first = Child::start("memoize", &[server.url(), "2000", "600000"]);
    assert_eq!(first.says().await, "ready");
    first.tell("home").await;
    assert_eq!(first.says().await, "loading");
    for child in &mut crowd {
        child.tell("home").await;
    }
    // All of them wait for the load that is under way: the lease names the channels to wake.
    crate::support::wait::until("the others wait", || async {
        let waiting: Vec<String> = server.run(&["HKEYS", "hr:l:{pages:home}"]).await;
        waiting
            .iter()
            .filter(|field| field.starts_with("w:"))
            .count()
            == PROCESSES - 1
    })
    .await;
    first.kill().await;
    let mut pages = JoinSet::new();
    for child in crowd {
        pages.spawn(page(child));
    }
    let pages = pages.join_all().await;
    assert!(
        pages.iter().all(|page| page == "page of load 2"),
        "{pages:?}"
    );
    assert_eq!(server.run::<u64>(&["GET", "loads"]).await, 2);
    Row::shown(10, "a loader is killed", "load", "one more load", 1, 1);
}
