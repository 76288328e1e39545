//! `keys`, `count`, `remove_matching`, `purge`: what walks over all keys find and remove.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use hedgerow::cache::{Keys, Removed, literal};
use hedgerow::{Cache, Client, ErrorKind};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::time::timeout;

use crate::support::gate::Gate;
use crate::support::monitor::Monitor;
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;
use crate::support::wait::{bounded, calls, patient, until};

const AGES: Duration = Duration::from_secs(600);

/// More than one step of a walk looks at.
const MANY: usize = 5000;

async fn set(cache: &Cache, keys: impl IntoIterator<Item = impl AsRef<str>>) {
    for key in keys {
        let set = cache.set(key.as_ref(), "x", AGES);
        set.await.expect("stored");
    }
}

/// The keys that match, each of them once.
async fn listed(cache: &Cache, pattern: &str) -> BTreeSet<String> {
    let mut keys = cache.keys(pattern);
    let mut listed = BTreeSet::new();
    while let Some(key) = bounded("the next key", keys.next()).await {
        let key = key.expect("an answer");
        assert!(listed.insert(key.clone()), "{key:?} is listed twice");
    }
    listed
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[tokio::test]
async fn keys_are_those_of_this_cache_and_version_that_match() {
    let server = Server::start().await;
    let client = server.client().await;
    let cache = client.cache("c");
    set(&cache, ["user:1", "user:2", "user:22", "order:1", "user"]).await;
    set(&cache.clone().version(2), ["user:3"]).await;
    set(&client.cache("c:d"), ["user:4"]).await;
    set(&client.cache("*"), ["user:5"]).await;
    // Of another namespace.
    let _: () = server.run(&["SET", "hr2:v:{c:user:6}", "x"]).await;
    for (pattern, expected) in [
        ("*", &["user:1", "user:2", "user:22", "order:1", "user"][..]),
        ("user:*", &["user:1", "user:2", "user:22"]),
        ("user:?", &["user:1", "user:2"]),
        ("*:1", &["user:1", "order:1"]),
        ("user", &["user"]),
        ("user:\\*", &[]),
        ("[a-z]*", &[]),
    ] {
        assert_eq!(listed(&cache, pattern).await, names(expected), "{pattern}");
    }
    assert_eq!(
        listed(&cache.clone().version(2), "*").await,
        names(&["user:3"])
    );
    assert_eq!(listed(&client.cache("*"), "*").await, names(&["user:5"]));
    assert_eq!(cache.count().await.expect("an answer"), 5);
    cache.remove("user").await.expect("removed");
    assert_eq!(cache.count().await.expect("an answer"), 4);
}

/// Any text is a key, and each key matches its own literal pattern and no other.
#[test]
fn a_literal_pattern_matches_exactly_its_own_key() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let server = runtime.block_on(Server::start());
    let client = runtime.block_on(server.client());
    let config = Config {
        source_file: Some(file!()),
        cases: 48,
        ..Config::default()
    };
    let texts = prop::collection::btree_set("[a*?\\[\\]\\\\^{}%:é\u{1}\\-]{1,4}|\\PC{1,9}", 2..6);
    let outcome = TestRunner::new(config).run(&texts, |texts| {
        runtime.block_on(async {
            let cache = client.cache("c");
            set(&cache, &texts).await;
            for text in &texts {
                let found = listed(&cache, &literal(text)).await;
                assert_eq!(found, names(&[text]));
                let begins = listed(&cache, &format!("{}*", literal(text))).await;
                let expected = texts.iter().filter(|it| it.starts_with(text.as_str()));
                assert_eq!(begins, expected.cloned().collect());
            }
            assert_eq!(listed(&cache, "*").await, texts);
            let removed = cache.purge().await.expect("removed");
            assert_eq!(removed, texts.len() as u64);
        });
        Ok(())
    });
    let _inside = runtime.enter();
    drop((server, client));
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

#[tokio::test]
async fn a_pattern_that_means_nothing_is_refused_before_anything_is_sent() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    let before = calls(&server, &["scan"]).await;
    for pattern in ["", "a\\", &"a".repeat(1025)] {
        let mut keys = cache.keys(pattern);
        let error = keys.next().await.expect("one item").expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{pattern:?}");
        assert!(keys.next().await.is_none());
        let error = cache.remove_matching(pattern).await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{pattern:?}");
    }
    assert_eq!(calls(&server, &["scan"]).await, before);
}

#[tokio::test]
async fn a_walk_goes_on_when_its_connection_is_lost_and_misses_nothing() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let cache = client.cache("c");
    let all: BTreeSet<String> = (0..MANY).map(|number| format!("key:{number}")).collect();
    set(&cache, &all).await;
    let monitor = Monitor::start(&server).await;
    let begun = async || {
        let scans = monitor.commands(&server, "\"SCAN\"").await;
        scans
            .iter()
            .filter(|it| it.contains("\"SCAN\" \"0\""))
            .count()
    };
    let mut keys = cache.keys("*");
    let mut listed = BTreeSet::new();
    listed.insert(keys.next().await.expect("many").expect("an answer"));
    assert_eq!(begun().await, 1);
    assert!(server.kill_connections("hedgerow").await > 0);
    while let Some(key) = bounded("the next key", keys.next()).await {
        let key = key.expect("an answer");
        assert!(listed.insert(key), "each key is listed once");
    }
    assert_eq!(listed, all);
    // The cursor means nothing to another process, which may have answered since.
    assert_eq!(begun().await, 2);
}

#[tokio::test]
async fn what_matches_is_removed_and_nothing_else() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let users: Vec<String> = (0..MANY).map(|number| format!("user:{number}")).collect();
    set(&cache, &users).await;
    set(&cache, ["user", "users:1", "order:1"]).await;
    set(&cache.clone().version(1), ["user:1"]).await;

    let would = cache.remove_matching("user:*").dry_run().await;
    assert_eq!(would.expect("an answer"), MANY as u64);
    assert_eq!(cache.count().await.expect("an answer"), MANY as u64 + 3);

    let seen: Arc<Mutex<Vec<Removed>>> = Arc::default();
    let told = seen.clone();
    let removal = cache.remove_matching("user:*");
    let removal = removal.on_progress(move |removed| told.lock().expect("no panic").push(removed));
    assert_eq!(removal.await.expect("removed"), MANY as u64);
    let seen = seen.lock().expect("no panic").clone();
    assert!(
        seen.len() > 5,
        "a walk of five steps, and another: {seen:?}"
    );
    assert!(seen.is_sorted_by_key(|it| (it.steps, it.entries)));
    assert_eq!(seen.last().map(|it| it.entries), Some(MANY as u64));

    assert_eq!(
        listed(&cache, "*").await,
        names(&["user", "users:1", "order:1"])
    );
    assert_eq!(
        cache.get::<String>("user:1").await.expect("an answer"),
        None
    );
    let other = cache.version(1).get::<String>("user:1").await;
    assert!(other.expect("an answer").is_some());
}

/// The commands of a removal of many values, in the order in which the server has met them.
async fn of_a_removal() -> Vec<String> {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    set(&cache, (0..MANY).map(|number| number.to_string())).await;
    let monitor = Monitor::start(&server).await;
    let removed = cache.remove_matching("*").await.expect("removed");
    assert_eq!(removed, MANY as u64);
    monitor.commands(&server, "hr:v:{c:").await
}

#[tokio::test]
async fn the_next_page_is_asked_for_before_the_last_one_is_removed() {
    let commands = of_a_removal().await;
    let is_scan = |command: &&String| command.contains("\"SCAN\"");
    let ahead = commands.iter().take_while(is_scan).count();
    // No more: what was found and is not removed yet is held in memory.
    assert_eq!(ahead, 2);
}

#[tokio::test]
async fn one_command_removes_no_more_than_a_hundred_values() {
    let commands = of_a_removal().await;
    let unlinks = commands.iter().filter(|it| it.contains("\"UNLINK\""));
    let sizes = unlinks.map(|unlink| unlink.matches("hr:v:{c:").count());
    let sizes: Vec<usize> = sizes.collect();
    assert_eq!(sizes.iter().sum::<usize>(), MANY);
    assert_eq!(sizes.iter().max(), Some(&100));
}

#[tokio::test]
async fn a_removal_that_is_dropped_half_way_stops() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    set(&cache, (0..MANY).map(|number| number.to_string())).await;
    let mut steps = cache.remove_matching("*").steps();
    let mut first = Removed::default();
    while first.entries == 0 {
        first = steps.next().await.expect("a step").expect("an answer");
    }
    assert!(first.entries < MANY as u64, "{first:?}");
    drop(steps);
    let left = cache.count().await.expect("an answer");
    assert_eq!(left, MANY as u64 - first.entries);
}

#[tokio::test]
async fn a_load_that_was_under_way_is_not_stored_after_a_removal_by_pattern() {
    let server = Server::start().await;
    let client = server.client().await;
    // Another process removes.
    for remover in [server.client().await.cache("c"), client.cache("c")] {
        let (cache, gate) = (client.cache("c"), Gate::closed());
        let load = gate.clone();
        let load = tokio::spawn(
            cache
                .memoize("user:1", AGES, move || load.load("old".to_owned()))
                .into_future(),
        );
        until("it loads", async || gate.loads() == 1).await;
        let removed = remover.remove_matching("user:*").await.expect("removed");
        assert_eq!(removed, 0, "there was no value");
        gate.open();
        let own = load.await.expect("no panic").expect("loaded");
        assert_eq!(own.as_str(), "old");
        assert_eq!(
            cache.get::<String>("user:1").await.expect("an answer"),
            None
        );
    }
}

/// A load that commits behind the back of the first walk has stored its value before the second.
#[tokio::test]
async fn what_is_stored_during_the_first_walk_is_removed_by_the_second() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let cache = client.cache("c").deadline(AGES);
    cache.set("a", "x", AGES).await.expect("stored");
    let second = proxy.on(Request::nth(2).named("scan"), Act::Hold);
    let removal = tokio::spawn(cache.remove_matching("*").into_future());
    second.hit().await;
    let other = server.client().await.cache("c");
    other.set("b", "x", AGES).await.expect("stored");
    second.deliver();
    assert_eq!(removal.await.expect("no panic").expect("removed"), 2);
    assert_eq!(other.count().await.expect("an answer"), 0);
}

#[tokio::test]
async fn a_purge_frees_all_versions_of_one_cache() {
    let server = Server::start().await;
    let client = server.client().await;
    let cache = client.cache("c");
    set(&cache, ["a", "b"]).await;
    set(&cache.clone().version(7), ["a"]).await;
    set(&client.cache("d"), ["a"]).await;
    cache.clear().await.expect("cleared");
    assert_eq!(cache.get::<String>("a").await.expect("an answer"), None);
    assert_eq!(cache.purge().await.expect("removed"), 3);
    assert!(server.keys("hr:v*:{c:*}").await.is_empty());
    assert!(
        client
            .cache("d")
            .get::<String>("a")
            .await
            .expect("an answer")
            .is_some()
    );
}

#[tokio::test]
async fn a_value_of_another_type_is_left_alone() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    set(&cache, (0..MANY).map(|number| format!("k{number}"))).await;
    let foreign = "hr:v:{c:k-foreign}";
    let _: usize = server.run(&["RPUSH", foreign, "x"]).await;
    assert_eq!(listed(&cache, "k-*").await, names(&[]));
    let removed = cache.remove_matching("k*").await.expect("removed");
    assert_eq!(removed, MANY as u64);
    assert_eq!(server.keys("hr:v:*").await, [foreign]);
    // A load of it is under way, as far as anyone can tell: that is told, when the others are gone.
    set(&cache, ["k1"]).await;
    let lease = foreign.replace(":v:", ":l:");
    let _: usize = server.run(&["HSET", &lease, "token", "x"]).await;
    let error = cache.remove_matching("k*").await.expect_err("it is told");
    assert_eq!(error.kind(), ErrorKind::WrongType);
    assert!(error.to_string().contains("k-foreign"), "{error}");
    assert_eq!(server.keys("hr:v:*").await, [foreign]);
}

/// Something else writes them. They would be removed at another key, or not at all.
#[tokio::test]
async fn keys_that_are_never_spelt_so_are_neither_listed_nor_removed() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    cache.set("a", "x", AGES).await.expect("stored");
    let foreign = ["hr:v:{c:}", "hr:v0:{c:a}", "hr:v+7:{c:a}", "hr:v:{c:%7b}"];
    for key in foreign {
        let _: () = server.run(&["SET", key, "x"]).await;
    }
    assert_eq!(listed(&cache, "*").await, names(&["a"]));
    assert_eq!(cache.purge().await.expect("removed"), 1);
    for key in foreign {
        assert_eq!(server.run::<usize>(&["EXISTS", key]).await, 1, "{key}");
    }
}

#[tokio::test]
async fn a_removal_that_fails_half_way_does_not_say_that_nothing_was_removed() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let cache = client.cache("c").deadline(Duration::from_secs(1));
    let direct = server.client().await.cache("c");
    set(&direct, (0..MANY).map(|number| number.to_string())).await;
    // Behind the walk over leases, and some steps of the walk over values.
    let _silent = proxy.on(Request::nth(11).named("scan"), Act::Hold);
    let error = cache.remove_matching("*").await.expect_err("no answer");
    assert!(
        error.is_indeterminate() && !error.is_retryable(),
        "{error:?}"
    );
    let left = direct.count().await.expect("an answer");
    assert!(left > 0 && left < MANY as u64, "{left} are left");
    // Where nothing is removed, nothing is in doubt.
    let error = cache.remove_matching("*").dry_run().await;
    assert!(!error.expect_err("still silent").is_indeterminate());
}

/// The outcome of a listing, up to its first error.
async fn first_error(mut keys: Keys) -> ErrorKind {
    let error = loop {
        match keys.next().await.expect("it does not end in good order") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(keys.next().await.is_none(), "it ends after an error");
    error.kind()
}

#[tokio::test]
async fn a_walk_over_a_server_that_hangs_ends_by_the_deadline_of_any_of_its_steps() {
    // Side by side, since each walk lasts as long as its deadline. That is long enough for the
    // steps that are answered.
    join_all((1..=4).map(hangs_in_step)).await;
}

async fn hangs_in_step(step: usize) {
    let server = Server::start_single().await;
    let direct = server.client().await.cache("c");
    set(&direct, (0..MANY).map(|number| number.to_string())).await;
    for verb in ["keys", "count", "remove_matching", "purge", "dry_run"] {
        let proxy = Proxy::before(&server);
        let client = patient(proxy.builder()).open().expect("a good URL");
        let cache = client.cache("c").deadline(Duration::from_secs(1));
        // The first walk of a removal is over leases, and finds nothing.
        let hung = proxy.on(Request::nth(step).named("scan"), Act::Hold);
        let ended = async {
            match verb {
                "keys" => first_error(cache.keys("*")).await,
                "count" => cache.count().await.expect_err("no answer").kind(),
                "remove_matching" => {
                    let removal = cache.remove_matching("*");
                    removal.await.expect_err("no answer").kind()
                }
                "purge" => cache.purge().await.expect_err("no answer").kind(),
                _ => {
                    let removal = cache.remove_matching("*").dry_run();
                    removal.await.expect_err("no answer").kind()
                }
            }
        };
        let kind = bounded("it ends", ended).await;
        assert_eq!(kind, ErrorKind::Timeout, "{verb}, step {step}");
        assert_eq!(hung.hits(), 1, "{verb}, step {step}");
    }
    assert_eq!(direct.count().await.expect("an answer"), MANY as u64);
}

/// So a caller may bound a walk as a whole, or the time it waits for a key.
#[tokio::test]
async fn a_listing_goes_on_after_a_timeout_around_one_of_its_keys() {
    let server = Server::start_single().await;
    let direct = server.client().await.cache("c");
    set(&direct, (0..MANY).map(|number| number.to_string())).await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let hung = proxy.on(Request::nth(3).named("scan"), Act::Hold);
    let mut keys = client.cache("c").keys("*");
    let (mut listed, mut timeouts) = (BTreeSet::new(), 0);
    loop {
        match timeout(Duration::from_millis(200), keys.next()).await {
            Ok(Some(key)) => assert!(listed.insert(key.expect("an answer"))),
            Ok(None) => break,
            Err(_) => {
                timeouts += 1;
                hung.deliver();
            }
        }
    }
    assert!(timeouts > 0 && hung.hits() == 1);
    assert_eq!(listed.len(), MANY);
}

/// By default, caches fail fast while Redis is out. A removal may not.
#[tokio::test]
async fn a_removal_waits_for_a_server_that_comes_back() {
    let mut server = Server::start_single().await;
    // With the defaults of a user.
    let client = Client::open(server.url()).expect("a good URL");
    let cache = client.cache("c").deadline(AGES);
    set(&cache, ["a"]).await;
    let killed = server.kill().await;
    until("the breaker is open", async || {
        let read = client.cache("c").get::<String>("a").await;
        read.is_err_and(|error| error.kind() == ErrorKind::CircuitOpen)
    })
    .await;
    let removal = tokio::spawn(cache.purge().into_future());
    server.start_again(killed).await;
    let removed = bounded("it is back", removal).await.expect("no panic");
    // It keeps nothing over its restart.
    assert_eq!(removed.expect("removed"), 0);
}

#[test]
fn walks_can_go_where_tasks_go() {
    fn checked<T: Send + 'static>() {}
    checked::<hedgerow::cache::Keys>();
    checked::<hedgerow::cache::RemoveMatching>();
    checked::<hedgerow::cache::Steps>();
}
