//! `remove_many`: an outcome for each key.

use std::time::Duration;

use hedgerow::{ErrorKind, Result};

use crate::support::gate::Gate;
use crate::support::monitor::Monitor;
use crate::support::server::{Server, signal};
use crate::support::wait::{calls, until};

const AGES: Duration = Duration::from_secs(600);

fn kinds(outcomes: Vec<Result<()>>) -> Vec<Option<ErrorKind>> {
    let kinds = outcomes
        .into_iter()
        .map(|outcome| outcome.err().map(|error| error.kind()));
    kinds.collect()
}

#[tokio::test]
async fn each_key_has_its_own_outcome() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let keys: Vec<String> = (0..250).map(|number| format!("k{number}")).collect();
    for key in &keys {
        cache.set(key, "x", AGES).await.expect("stored");
    }
    let _: usize = server.run(&["DEL", "hr:v:{c:k7}"]).await;
    let _: usize = server.run(&["RPUSH", "hr:v:{c:k7}", "x"]).await;
    let outcomes = cache.remove_many(&keys).await.expect("an answer");
    assert!(
        outcomes[7]
            .as_ref()
            .is_err_and(|error| error.key() == Some("k7"))
    );
    let mut expected = vec![None; 250];
    expected[7] = Some(ErrorKind::WrongType);
    assert_eq!(kinds(outcomes), expected);
    assert_eq!(server.keys("hr:v:*").await, ["hr:v:{c:k7}"]);
    // What is not there counts as removed, and so does the second of two equal keys.
    let outcomes = cache.remove_many(["k1", "k1", "never"]).await;
    assert_eq!(kinds(outcomes.expect("an answer")), [None, None, None]);
}

#[tokio::test]
async fn a_bad_key_among_them_is_refused_before_anything_is_sent() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    cache.set("a", "x", AGES).await.expect("stored");
    let before = calls(&server, &["evalsha"]).await;
    let error = cache.remove_many(["a", ""]).await.expect_err("a bad key");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let none: [&str; 0] = [];
    assert!(
        cache
            .remove_many(none)
            .await
            .expect("nothing to do")
            .is_empty()
    );
    assert_eq!(calls(&server, &["evalsha"]).await, before);
    assert!(cache.get::<String>("a").await.expect("an answer").is_some());
}

#[tokio::test]
async fn loads_of_them_are_not_stored_and_those_that_wait_load_anew() {
    let server = Server::start().await;
    let (one, two) = (
        server.client().await.cache("c"),
        server.client().await.cache("c"),
    );
    let gate = Gate::closed();
    let load = |cache: &hedgerow::Cache, value: &str| {
        let (gate, value) = (gate.clone(), value.to_owned());
        tokio::spawn(
            cache
                .memoize("a", AGES, move || gate.load(value))
                .into_future(),
        )
    };
    let first = load(&one, "old");
    until("it loads", async || gate.loads() == 1).await;
    let second = load(&two, "new");
    until("the other process waits", async || {
        let fields: Vec<String> = server.run(&["HKEYS", "hr:l:{c:a}"]).await;
        fields.iter().any(|field| field.starts_with("w:"))
    })
    .await;
    let monitor = Monitor::start(&server).await;
    let outcomes = one.remove_many(["a", "b"]).await.expect("an answer");
    assert_eq!(kinds(outcomes), [None, None]);
    // By push: the takeover is ten seconds away.
    let pushed = monitor.of_scripts(&server).await;
    let pushed = pushed
        .iter()
        .filter(|it| it.to_lowercase().contains("spublish"));
    assert_eq!(pushed.count(), 1);
    until("the other process loads", async || gate.loads() == 2).await;
    gate.open();
    gate.open();
    let values = [first, second].map(async |load| load.await.expect("no panic").expect("loaded"));
    let [first, second] = futures::future::join_all(values)
        .await
        .try_into()
        .expect("two");
    assert_eq!((first.as_str(), second.as_str()), ("old", "new"));
    let kept = two.get::<String>("a").await.expect("an answer");
    assert_eq!(kept.as_deref().map(String::as_str), Some("new"));
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_the_outcome_of_each_of_its_keys() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    cache.set("a", "x", AGES).await.expect("stored");
    let pid = server.pid().await;
    signal(pid, "STOP");
    let outcomes = cache
        .remove_many(["a", "b"])
        .deadline(Duration::from_secs(2))
        .await;
    signal(pid, "CONT");
    for outcome in outcomes.expect("outcomes") {
        let error = outcome.expect_err("no answer");
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(error.is_indeterminate() && error.key().is_some(), "{error}");
    }
}
